"""Dense layers on the CPU, for minibatches: weighted sums of rows, and the update of a row.

Units are cut into blocks of BLOCK, whose sums stay in registers and which one task can own:
forward, backward and update. All arrays are flat. A block of the first layer is two panels of PANEL
units; the weights lie panel by panel, and within a panel input by input: the weight of input d and
unit u is ``weights[(u // PANEL * n_in + d) * PANEL + u % PANEL]``. The rows of a panel that an
image's lit pixels ask for fit the smallest cache, those of a block the next. A later layer's
weights lie unit by unit: that of input u and unit k is ``weights[k * width + u]``, width being the
number of inputs rounded up to whole blocks. Units that fill up the last block have weight 0 and
error 0, and keep them.

The order of a sum follows from its entries alone, not from how blocks are spread over threads.
"""

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.cpu import element, penalty, penalty_gradient
from msgd.kernels.vectors import LANES, add, fma, lane_sum, load, multiply_add, splat, store

VECTORS = 4
BLOCK = VECTORS * LANES
PANEL = BLOCK // 2


def n_blocks(n_units):
    """Return how many blocks ``n_units`` units need."""
    return -(-n_units // BLOCK)


def to_panels(weights):
    """Return ``weights`` (n_in, n_out) as the flat array of a first layer."""
    n_in, n_out = weights.shape
    padded = np.zeros((n_in, n_blocks(n_out) * BLOCK), weights.dtype)
    padded[:, :n_out] = weights
    return padded.reshape(n_in, -1, PANEL).transpose(1, 0, 2).ravel()


def from_panels(flat, n_in, n_out):
    """Return the (n_in, n_out) weights that to_panels laid out as ``flat``."""
    padded = flat.reshape(-1, n_in, PANEL).transpose(1, 0, 2).reshape(n_in, -1)
    return padded[:, :n_out].copy()  # of a single panel the rest is a view


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
def weighted_panel(row, first_row, value, count, array, at):
    """Return two vectors: sum_k value[k] array[at + PANEL r + (0..PANEL-1)].

    The sum has ``count`` entries; r is row[first_row + k]. Entries of even and of odd number are
    summed apart, so that one sum need not wait for the other; value[count] is 0.
    """
    even0 = even1 = odd0 = odd1 = splat(array, 0)
    for k in range(0, count, 2):
        x = element(value, k)
        a = at + element(row, first_row + k) * PANEL
        even0 = fma(x, load(array, a), even0)
        even1 = fma(x, load(array, a + LANES), even1)
        x = element(value, k + 1)
        a = at + element(row, first_row + k + 1) * PANEL
        odd0 = fma(x, load(array, a), odd0)
        odd1 = fma(x, load(array, a + LANES), odd1)
    return add(even0, odd0), add(even1, odd1)


@njit(**options.CPU_INLINE)
def store_block(array, at, block):
    """Set array[at : at + BLOCK] to the four vectors ``block``."""
    store(array, at, block[0])
    store(array, at + LANES, block[1])
    store(array, at + 2 * LANES, block[2])
    store(array, at + 3 * LANES, block[3])


@njit(**options.CPU_INLINE)
def add_block(block, factor, array, at):
    """Return the four vectors ``block`` + factor * array[at : at + BLOCK]."""
    return (
        fma(factor, load(array, at), block[0]),
        fma(factor, load(array, at + LANES), block[1]),
        fma(factor, load(array, at + 2 * LANES), block[2]),
        fma(factor, load(array, at + 3 * LANES), block[3]),
    )


@njit(**options.CPU_INLINE)
def multiply_block(block, array, at, total):
    """Return the vector ``total`` + the products of ``block`` and array[at : at + BLOCK]."""
    total = multiply_add(block[0], load(array, at), total)
    total = multiply_add(block[1], load(array, at + LANES), total)
    total = multiply_add(block[2], load(array, at + 2 * LANES), total)
    return multiply_add(block[3], load(array, at + 3 * LANES), total)


@njit(**options.CPU_INLINE)
def dot_block(left, at_left, right, at_right):
    """Return the sum over u < BLOCK of left[at_left + u] right[at_right + u]."""
    total = splat(left, 0)
    for u in range(0, BLOCK, LANES):
        total = multiply_add(load(left, at_left + u), load(right, at_right + u), total)
    return lane_sum(total)


@njit(**options.CPU_INLINE)
def scaled_block(factor, block, array):
    """Return the four vectors factor * ``block``, in the type of ``array``."""
    zero = splat(array, 0)
    return (
        fma(factor, block[0], zero),
        fma(factor, block[1], zero),
        fma(factor, block[2], zero),
        fma(factor, block[3], zero),
    )


@njit(**options.CPU_INLINE)
def update_block(weights, left, right, step, shrink):
    """Update a block of weights; return a vector that sums to their squares before it.

    left, right: where its two panels lie; step: four vectors, -rate gradient: w becomes
    shrink w + step, where shrink is 1 - 2 rate l2.
    """
    w0 = load(weights, left)
    w1 = load(weights, left + LANES)
    w2 = load(weights, right)
    w3 = load(weights, right + LANES)
    store(weights, left, fma(shrink, w0, step[0]))
    store(weights, left + LANES, fma(shrink, w1, step[1]))
    store(weights, right, fma(shrink, w2, step[2]))
    store(weights, right + LANES, fma(shrink, w3, step[3]))
    squares = multiply_add(w1, w1, multiply_add(w0, w0, splat(weights, 0)))
    return multiply_add(w3, w3, multiply_add(w2, w2, squares))


@njit(**options.CPU)
def penalise_panel(weights, at, rate, penalties):
    """Move weights[at : at + PANEL] down their penalty's gradient; return the penalty.

    For penalties that update_block does not cover; the padding's weights of 0 stay 0.
    """
    total = weights.dtype.type(0)
    for w in range(at, at + PANEL):
        weight = weights[w]
        total += penalty(weight, penalties)
        weights[w] = weight - rate * penalty_gradient(weight, penalties)
    return total
