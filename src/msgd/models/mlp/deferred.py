"""Deferred updates of the MLP's first layer on the CPU: minibatches in groups share one update.

Most of the network's weights are in the first layer. They exceed a core's nearest caches, and
reading and writing all of them takes longer than the rest of a step. So a few minibatches in a row
form a group, and the weights are updated once, after the last of them. The minibatches in between
correct their sums for the updates that are still due. That is the arithmetic of an update after
every minibatch, summed in another order.

The symbols, for minibatches k = 0, 1, ... of a group, and where the code has them:

    W       weights as stored, those before minibatch 0     FirstLayer.panels
    W_k     weights before minibatch k                      stored nowhere
    X_k     images of minibatch k                           CSR
    X       images of minibatches 0..k-1                    CSR and DCSC
    e_k     errors of the layer's units                     Activations.error
    q       a step's factor on W:  1 - 2 rate l2            _step_factor
    S_k     steps of minibatch k:  -rate e_k                Deferred.pending, from group.row on
    S       steps pending:  S_j q^(k-1-j) for j < k         Deferred.pending, the rows before
    Z_k     sums of minibatch k without bias:  X_k W_k      Deferred.z, from group.row on
    X X^T   the group's Gram matrix                         Deferred.gram

and the formulas:

    W_k          =  q^k W + X^T S                              ``end_group``
    Z_k          =  q^k (X_k W) + (X_k X^T) S                  ``forward_block``
    W_{k+1}      =  q W_k + X_k^T S_k                          ``defer_steps``
    |W_{k+1}|^2  =  q^2 |W_k|^2 + growth_k                     ``end_group``
    growth_k     =  <2 q Z_k + (X_k X_k^T) S_k, S_k>           ``defer_steps``

``begin_group`` computes X_k W for all minibatches of a group at once, while its block of W is in
the cache. The products of images are the same in every epoch. |W_k|^2 is needed for the l2 penalty
in the cost of minibatch k.

All this rests on q being one factor for all weights. l1 and lp move each weight by an amount of its
own, so beside one of them a group is one minibatch (``largest_group``), q is 1, and the gradient of
all penalties moves W on its own (``first_layer.penalise``).

Units are cut into blocks (``first_layer.py``); every kernel here computes one block of them.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from msgd.kernels import formulas, options
from msgd.kernels.cpu import element, is_l2_alone, l2_factor
from msgd.kernels.formulas import like
from msgd.kernels.vectors import (
    LANES,
    aligned_zeros,
    fma,
    lane_sum,
    load,
    load_wide,
    multiply_add,
    splat,
    splat_wide,
    store,
)
from msgd.models.mlp.first_layer import (
    BLOCK,
    activate_block,
    add_image_products,
    multiply_images,
    penalise,
)

GROUP_IMAGES = 80  # of several minibatches, at most: then a block of S fits the L1 cache


class Deferred(NamedTuple):
    """What a training call keeps of a group, each block of units apart; all arrays are floatX."""

    gram: np.ndarray  # flat (images, size): row i is image i times all images of its group
    size: int  # images of a whole group
    z: np.ndarray  # (blocks, size BLOCK): of a block, a row of BLOCK for each image of the group
    pending: np.ndarray  # (blocks, size BLOCK)
    growth: np.ndarray  # (blocks, minibatches of a group)
    penalty: np.ndarray  # (blocks, minibatches of a group): of a block of W, before each


class Group(NamedTuple):
    """A minibatch and its place in its group, as far as the group is within a training call."""

    number: int  # of the group in the epoch
    k: int  # of the minibatch in the group
    first_image: int  # of the minibatch, in the epoch
    row: int  # of its first image in z and pending, and its place in rows of gram
    n_pending: int  # minibatches before it whose steps are pending
    n_left: int  # minibatches from this one on until the update; 0 after the call's last one
    factor: np.floating  # q^n_pending


def largest_group(batch_size, descent):
    """Return how many minibatches make a group."""
    return max(1, GROUP_IMAGES // batch_size) if formulas.is_l2_alone(descent) else 1


def new_deferred(gram, batch_size, group_batches, n_units):
    """Return the Deferred of a first layer of ``n_units``, in whole blocks; gram: as there."""
    blocks, size = n_units // BLOCK, group_batches * batch_size
    z, pending = aligned_zeros(2 * blocks * size * BLOCK, gram.dtype).reshape(2, blocks, -1)
    growth, penalty = np.zeros((2, blocks, group_batches), gram.dtype)
    return Deferred(gram, size, z, pending, growth, penalty)


@njit(**options.CPU)
def group_of(step, n_steps, first, minibatches, descent, size):
    """Return the Group of minibatch ``step`` of a call that trains n_steps from ``first`` on.

    minibatches: Minibatches; descent: Descent; size: images of a whole group. An epoch's last group
    may be smaller. A call begins and ends a group where it begins and ends itself, because the
    caller may read W. Of a minibatch after the last one n_left is 0, and nothing is to be read.
    """
    minibatch = (first + step) % minibatches.per_epoch
    in_group = size // minibatches.size
    k = minibatch % in_group
    n_pending = min(k, step)
    n_left = min(in_group - k, minibatches.per_epoch - minibatch, n_steps - step)
    first_image = minibatch * minibatches.size
    factor = _power(_step_factor(descent), n_pending)
    row = k * minibatches.size
    return Group(minibatch // in_group, k, first_image, row, n_pending, n_left, factor)


@njit(**options.CPU)
def _step_factor(descent):
    """Return q; 1 where ``first_layer.penalise`` moves the weights."""
    return l2_factor(descent) if is_l2_alone(descent) else like(descent.rate, 1)


@njit(**options.CPU)
def _power(q, n):
    """Return q^n."""
    power = like(q, 1)
    for _ in range(n):
        power *= q
    return power


@njit(**options.CPU)
def begin_group(block, group, by_image, minibatches, layer, deferred):
    """Begin a group with this minibatch: S = 0, and z = X W of all its images.

    by_image: CSR of the training images; layer: FirstLayer; deferred: Deferred, z and pending are
    overwritten.
    """
    deferred.pending[block][:] = 0
    images = (group.first_image, group.first_image + group.n_left * minibatches.size)
    z = deferred.z[block]
    multiply_images(block, by_image, images, minibatches.pixel_scale, layer, z, group.row)


@njit(**options.CPU_INLINE)
def forward_block(block, group, minibatches, layer, deferred, units):
    """Turn X_k W in z into Z_k = q^k (X_k W) + (X_k X^T) S; overwrite the units by it and b.

    layer: FirstLayer; deferred: Deferred, z is changed; units: Activations.
    """
    z, pending = deferred.z[block], deferred.pending[block]
    for i in range(minibatches.size):
        row, at = (group.first_image + i) * deferred.size, (group.row + i) * BLOCK
        moved = _products(deferred.gram, row, pending, 0, group.row)
        store(z, at, fma(group.factor, load_wide(z, at, BLOCK), moved))
    for i in range(minibatches.size):
        activate_block(block, z, (group.row + i) * BLOCK, layer, units, i)


@njit(**options.CPU_INLINE)
def defer_steps(block, group, minibatches, descent, deferred, units):
    """Add a minibatch's steps to those pending: S becomes (q S, S_k); overwrite its growth_k.

    descent: Descent; deferred: Deferred, pending and growth are changed; units: Activations.
    """
    pending, shrink = deferred.pending[block], _step_factor(descent)
    zero = splat(pending, 0)
    for at in range(0, group.row * BLOCK, LANES):
        store(pending, at, fma(shrink, load(pending, at), zero))
    for i in range(minibatches.size):
        for u in range(0, BLOCK, LANES):
            error = load(units.error, i * units.stride + block * BLOCK + u)
            store(pending, (group.row + i) * BLOCK + u, fma(-descent.rate, error, zero))
    if descent.l2 != 0 and group.n_left > 1:  # the next minibatch asks for |W_{k+1}|^2
        deferred.growth[block, group.k] = _growth(group, minibatches, shrink, deferred, block)


@njit(**options.CPU)
def _growth(group, minibatches, shrink, deferred, block):
    """Return growth_k = <2 q Z_k + (X_k X_k^T) S_k, S_k> of a block."""
    z, pending = deferred.z[block], deferred.pending[block]
    growth = splat_wide(pending, 0, BLOCK)
    for i in range(minibatches.size):
        row, at = (group.first_image + i) * deferred.size + group.row, (group.row + i) * BLOCK
        moved = _products(deferred.gram, row, pending, group.row, minibatches.size)
        moved = fma(shrink + shrink, load_wide(z, at, BLOCK), moved)
        growth = multiply_add(moved, load_wide(pending, at, BLOCK), growth)
    return lane_sum(growth)


@njit(**options.CPU_INLINE)
def _products(gram, first, pending, row, count):
    """Return the vector sum_j gram[first + j] times row ``row`` + j of pending, over j < count."""
    total = splat_wide(pending, 0, BLOCK)
    for j in range(count):
        total = fma(element(gram, first + j), load_wide(pending, (row + j) * BLOCK, BLOCK), total)
    return total


@njit(**options.CPU)
def end_group(block, group, by_pixel, minibatches, descent, layer, deferred):
    """End a group with this minibatch: W becomes q^n W + X^T S.

    by_pixel: DCSC of the groups' images; layer: FirstLayer, changed; deferred: Deferred, whose
    penalty is overwritten with that of the block's weights before each minibatch of the group.
    """
    pending, penalty = deferred.pending[block], deferred.penalty[block]
    shrink = _step_factor(descent)
    if not is_l2_alone(descent):
        whole = (np.int64(0), layer.panels.shape[1])
        left = penalise(layer.panels[2 * block], whole, descent)
        penalty[group.k] = left + penalise(layer.panels[2 * block + 1], whole, descent)
    scale, factor = minibatches.pixel_scale, group.factor * shrink
    square = add_image_products(block, by_pixel, group.number, scale, pending, factor, layer)
    if is_l2_alone(descent) and descent.l2 != 0:
        for k in range(group.k - group.n_pending, group.k + 1):
            penalty[k] = descent.l2 * square
            square = shrink * shrink * square + deferred.growth[block, k]
