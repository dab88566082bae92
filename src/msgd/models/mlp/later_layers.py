"""The MLP's layers after the first on the CPU, for small minibatches: one copy of the weights.

A layer's inputs are cut into blocks of BLOCK, as the units below it are, and one task does all of a
block's work: what the block adds to the layer's sums, its errors, the update of its weights. With
h_0 (B, n_in) the activations below, h_1 (B, n_out) the layer's own, e_0 and e_1 their errors:

    h_1  = s(sum over blocks of h_0 W, in order, + b)      ``multiply_block``, then ``add_blocks``
    e_0  = (e_1 W^T) s'(h_0)                               ``error_block``
    W    = W - rate (h_0^T e_1 + penalty's gradient)       ``update_block``
    b    = b - rate sum_i e_1                              ``update_bias``

The order of a sum follows from its terms alone, not from how blocks are spread over threads.

``kernels/dense_layer.py`` has the same formulas for tiles of hundreds of images. It keeps two
copies of the weights and a gradient, which pays where each weight is used that often. With 20
images the updates of these would take longer than the products.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.cpu import (
    activate,
    activation_slope,
    element,
    is_l2_alone,
    l2_factor,
    ordered_sum,
    set_element,
    softmax_cross_entropy_row,
)
from msgd.kernels.dense_layer import LOGITS
from msgd.kernels.formulas import like
from msgd.kernels.vectors import (
    LANES,
    add,
    aligned,
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
from msgd.models.mlp.first_layer import BLOCK, fill_up, n_blocks, penalise


class DenseLayer(NamedTuple):
    """The parameters of a dense layer, filled up with zeros; all arrays are floatX."""

    n_out: int
    weights: np.ndarray  # flat (n_out, n_in in whole blocks): W^T
    bias: np.ndarray  # (width,): n_out in whole blocks; of the last layer in whole vectors
    sums: np.ndarray  # (blocks, T width), scratch: what each block of inputs adds to the units


def new_dense_layer(weights, bias, n_images, kind):
    """Return the DenseLayer of weights (n_in, n_out) and bias (n_out,), for up to n_images.

    kind: of activation. LOGITS are filled up to whole vectors with -inf, whose softmax is 0.
    """
    n_in, n_out = weights.shape
    rows = np.zeros((n_out, n_blocks(n_in) * BLOCK), weights.dtype)
    rows[:, :n_in] = weights.T
    padded_bias = fill_up(bias, kind)
    if kind == LOGITS:
        padded_bias = aligned_zeros(-(-n_out // LANES) * LANES, bias.dtype)
        padded_bias[:n_out] = bias
        padded_bias[n_out:] = -np.inf
    sums = aligned_zeros(n_blocks(n_in) * n_images * len(padded_bias), bias.dtype)
    return DenseLayer(n_out, aligned([rows.ravel()]), padded_bias, sums.reshape(n_blocks(n_in), -1))


def get_dense_layer(layer, n_in):
    """Return copies of a DenseLayer's weights (n_in, n_out) and bias (n_out,)."""
    weights = layer.weights.reshape(layer.n_out, -1)[:, :n_in]
    return np.ascontiguousarray(weights.T), layer.bias[: layer.n_out].copy()


# Kernels. layer: DenseLayer; below, above: Activations of its inputs and of its units; n: images.


@njit(**options.CPU_INLINE)
def multiply_block(block, layer, below, images):
    """Overwrite what a block of inputs adds to the units' sums, for images (start, stop)."""
    width, n_in = layer.bias.shape[0], layer.sums.shape[0] * BLOCK
    sums = layer.sums[block]
    start, stop = images
    for i in range(start, stop):
        for k in range(layer.n_out):
            product = _dot(below.h, i * below.stride, layer.weights, k * n_in, block)
            set_element(sums, i * width + k, product)


@njit(**options.CPU_INLINE)
def _dot(h, row, weights, weights_row, block):
    """Return the dot product of a block of two rows of inputs."""
    total = splat(h, 0)
    for u in range(block * BLOCK, (block + 1) * BLOCK, LANES):
        total = multiply_add(load(h, row + u), load(weights, weights_row + u), total)
    return lane_sum(total)


@njit(**options.CPU)
def add_blocks(layer, above, units, n):
    """Overwrite above.h for units (start, stop) of n images: the blocks' sums and the bias."""
    width = layer.bias.shape[0]
    start, stop = units
    for i in range(n):
        for u in range(start, stop, LANES):
            total = load(layer.bias, u)
            for block in range(layer.sums.shape[0]):
                total = add(total, load(layer.sums[block], i * width + u))
            store(above.h, i * above.stride + u, total)


@njit(**options.CPU)
def activate_units(above, units, n):
    """Apply the activation to units (start, stop) of n images."""
    start, stop = units
    for i in range(n):
        for u in range(i * above.stride + start, i * above.stride + stop):
            set_element(above.h, u, activate(element(above.h, u), above.kind))


@njit(**options.CPU)
def loss(layer, above, labels, inverse_size):
    """Overwrite the last layer's logits and errors; return the minibatch's mean loss.

    labels: (B,) int32; inverse_size: 1/B, floatX. See formulas.softmax_cross_entropy.
    """
    n, width = labels.shape[0], layer.bias.shape[0]
    nll = np.empty(n, layer.bias.dtype)
    add_blocks(layer, above, (np.int64(0), width), n)
    for i in range(n):
        at = i * above.stride
        for u in range(at, at + width, LANES):
            store(above.error, u, load(above.h, u))
        nll[i] = softmax_cross_entropy_row(above.error, at, width, labels[i], inverse_size)
    return ordered_sum(nll) * inverse_size


@njit(**options.CPU_INLINE)
def error_block(block, layer, below, above, n):
    """Overwrite below.error of a block of inputs."""
    n_in, start = layer.sums.shape[0] * BLOCK, block * BLOCK
    for i in range(n):
        total = splat_wide(below.error, 0, BLOCK)
        for k in range(layer.n_out):
            weights = load_wide(layer.weights, k * n_in + start, BLOCK)
            total = fma(element(above.error, i * above.stride + k), weights, total)
        to = i * below.stride + start
        store(below.error, to, total)
        for u in range(BLOCK):
            slope = activation_slope(element(below.h, to + u), below.kind)
            set_element(below.error, to + u, slope * element(below.error, to + u))


@njit(**options.CPU_INLINE)
def update_block(block, layer, descent, below, above, n):
    """Update the weights of a block of inputs; return their penalty before.

    A step on l2 alone multiplies the weights by one factor; with l1 or lp they are moved one by
    one first.
    """
    n_in, zero = layer.sums.shape[0] * BLOCK, splat_wide(layer.weights, 0, BLOCK)
    squares = zero
    total, factor = like(descent.rate, 0), like(descent.rate, 1)
    if is_l2_alone(descent):
        factor = l2_factor(descent)
    for k in range(layer.n_out):
        at = k * n_in + block * BLOCK
        if not is_l2_alone(descent):
            total += penalise(layer.weights, (at, at + BLOCK), descent)
        gradient = zero
        for i in range(n):
            inputs = load_wide(below.h, i * below.stride + block * BLOCK, BLOCK)
            gradient = fma(element(above.error, i * above.stride + k), inputs, gradient)
        old = load_wide(layer.weights, at, BLOCK)
        squares = multiply_add(old, old, squares)
        store(layer.weights, at, fma(factor, old, fma(-descent.rate, gradient, zero)))
    # Not simply the product: squares may overflow, and 0 times infinity is no number.
    return descent.l2 * lane_sum(squares) if is_l2_alone(descent) and descent.l2 != 0 else total


@njit(**options.CPU_INLINE)
def update_bias(bias, descent, above, units, n):
    """Update the biases of units (start, stop), of this layer or the first, by n images' errors."""
    start, stop = units
    for u in range(start, stop, LANES):
        gradient = splat(bias, 0)
        for i in range(n):
            gradient = add(gradient, load(above.error, i * above.stride + u))
        store(bias, u, fma(-descent.rate, gradient, load(bias, u)))
