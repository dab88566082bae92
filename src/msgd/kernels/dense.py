"""Dense layers on the CPU, for minibatches: weighted sums of rows, and the update of a row.

Units are cut into blocks of BLOCK, whose sums stay in registers. All arrays are flat. The first
layer's weights lie block by block, and within a block input by input: the weight of input d and
unit u is ``weights[(u // BLOCK * n_in + d) * BLOCK + u % BLOCK]``, so a block fits a core's cache.
A later layer's lie unit by unit: that of input u and unit k is ``weights[k * width + u]``, width
being the number of inputs rounded up to whole blocks. So in both a block of the hidden units is
BLOCK numbers in a row, and one task can own it: forward, backward and update. Units that fill up
the last block have weight 0 and error 0, and keep them.

Sums run over their entries in order, so they do not depend on how blocks are spread over threads.
"""

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.cpu import element, penalty, penalty_gradient
from msgd.kernels.simd import LANES, add, fma, lane_sum, load, multiply_add, splat, store

VECTORS = 4
BLOCK = VECTORS * LANES


def n_blocks(n_units):
    """Return how many blocks ``n_units`` units need."""
    return -(-n_units // BLOCK)


def to_blocks(weights):
    """Return ``weights`` (n_in, n_out) as the flat array of a first layer."""
    n_in, n_out = weights.shape
    padded = np.zeros((n_in, n_blocks(n_out) * BLOCK), weights.dtype)
    padded[:, :n_out] = weights
    return padded.reshape(n_in, -1, BLOCK).transpose(1, 0, 2).ravel()


def from_blocks(flat, n_in, n_out):
    """Return the (n_in, n_out) weights that to_blocks laid out as ``flat``."""
    padded = flat.reshape(-1, n_in, BLOCK).transpose(1, 0, 2).reshape(n_in, -1)
    return padded[:, :n_out].copy()  # of a single block the rest is a view


def to_rows(weights):
    """Return ``weights`` (n_in, n_out) as the flat array of a later layer."""
    n_in, n_out = weights.shape
    padded = np.zeros((n_out, n_blocks(n_in) * BLOCK), weights.dtype)
    padded[:, :n_in] = weights.T
    return padded.ravel()


def from_rows(flat, n_in, n_out):
    """Return the (n_in, n_out) weights that to_rows laid out as ``flat``."""
    return np.ascontiguousarray(flat.reshape(n_out, -1)[:, :n_in].T)


@njit(**options.CPU_INLINE)
def weighted_block(row, first_row, value, first_value, stride, count, array, at, width):
    """Return four vectors: sum_k value[first_value + k stride] array[at + width r + (0..BLOCK-1)].

    The sum has ``count`` entries, in order; r is row[first_row + k].
    """
    s0 = s1 = s2 = s3 = splat(array, 0)
    for k in range(count):
        x = element(value, first_value + k * stride)
        a = at + element(row, first_row + k) * width
        s0 = fma(x, load(array, a), s0)
        s1 = fma(x, load(array, a + LANES), s1)
        s2 = fma(x, load(array, a + 2 * LANES), s2)
        s3 = fma(x, load(array, a + 3 * LANES), s3)
    return s0, s1, s2, s3


@njit(**options.CPU_INLINE)
def store_block(array, at, block):
    """Set array[at : at + BLOCK] to the four vectors ``block``."""
    store(array, at, block[0])
    store(array, at + LANES, block[1])
    store(array, at + 2 * LANES, block[2])
    store(array, at + 3 * LANES, block[3])


@njit(**options.CPU_INLINE)
def add_block(array, at, block):
    """Return the four vectors array[at : at + BLOCK] + ``block``."""
    return (
        add(load(array, at), block[0]),
        add(load(array, at + LANES), block[1]),
        add(load(array, at + 2 * LANES), block[2]),
        add(load(array, at + 3 * LANES), block[3]),
    )


@njit(**options.CPU_INLINE)
def dot_block(left, at_left, right, at_right):
    """Return the sum over u < BLOCK of left[at_left + u] right[at_right + u]."""
    total = splat(left, 0)
    for u in range(0, BLOCK, LANES):
        total = multiply_add(load(left, at_left + u), load(right, at_right + u), total)
    return lane_sum(total)


@njit(**options.CPU_INLINE)
def update_block(weights, at, gradient, rates):
    """Update weights[at : at + BLOCK]; return a vector that sums to their squares before it.

    gradient: four vectors; rates: (learning rate, l2): w becomes (1 - 2 rate l2) w - rate gradient.
    """
    rate, l2 = rates
    shrink = weights.dtype.type(1) - (rate + rate) * l2
    squares = zero = splat(weights, 0)
    w0 = load(weights, at)
    w1 = load(weights, at + LANES)
    w2 = load(weights, at + 2 * LANES)
    w3 = load(weights, at + 3 * LANES)
    store(weights, at, fma(shrink, w0, fma(-rate, gradient[0], zero)))
    store(weights, at + LANES, fma(shrink, w1, fma(-rate, gradient[1], zero)))
    store(weights, at + 2 * LANES, fma(shrink, w2, fma(-rate, gradient[2], zero)))
    store(weights, at + 3 * LANES, fma(shrink, w3, fma(-rate, gradient[3], zero)))
    squares = multiply_add(w1, w1, multiply_add(w0, w0, squares))
    return multiply_add(w3, w3, multiply_add(w2, w2, squares))


@njit(**options.CPU)
def penalise_block(weights, at, rate, penalties):
    """Move weights[at : at + BLOCK] down their penalty's gradient; return the penalty.

    For penalties that update_block does not cover; the padding's weights of 0 stay 0.
    """
    total = weights.dtype.type(0)
    for w in range(at, at + BLOCK):
        weight = weights[w]
        total += penalty(weight, penalties)
        weights[w] = weight - rate * penalty_gradient(weight, penalties)
    return total
