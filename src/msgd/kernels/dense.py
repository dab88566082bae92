"""Dense layers on the CPU, for minibatches: forward product, error of the inputs, update.

The units of a layer are cut into blocks of BLOCK. A layer's weights lie block by block, and within
a block row by row: the weight of input d and unit u is ``weights[(u // BLOCK * n_in + d) * BLOCK +
u % BLOCK]``. So one input times one block is four vectors in a row, and a block's sums stay in
registers. Units that fill up the last block have weight 0 and error 0, and keep them.

Activations and errors of a layer are flat (B, width) arrays, width being the number of units
rounded up to whole blocks. Sums run over the inputs (forward) or the examples (update) in order, so
they do not depend on how blocks are spread over threads.
"""

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.cpu import penalty, penalty_gradient
from msgd.kernels.simd import LANES, fma, lane_sum, load, multiply_add, splat, store

VECTORS = 4
BLOCK = VECTORS * LANES


def n_blocks(n_units):
    """Return how many blocks ``n_units`` units need."""
    return -(-n_units // BLOCK)


def to_blocks(weights):
    """Return ``weights`` (n_in, n_out) as the flat array of blocks described above."""
    n_in, n_out = weights.shape
    padded = np.zeros((n_in, n_blocks(n_out) * BLOCK), weights.dtype)
    padded[:, :n_out] = weights
    return padded.reshape(n_in, -1, BLOCK).transpose(1, 0, 2).ravel()


def from_blocks(flat, n_in, n_out):
    """Return the (n_in, n_out) weights that to_blocks laid out as ``flat``."""
    padded = flat.reshape(-1, n_in, BLOCK).transpose(1, 0, 2).reshape(n_in, -1)
    return np.ascontiguousarray(padded[:, :n_out])


@njit(**options.CPU_INLINE)
def forward_block(
    position, first_position, value, first_value, count, weights, block, bias, first_bias, out, to
):
    """Write bias + sum_k value[k] weights[position[k]] of one example and block to out[to:].

    position: input numbers, ``count`` of them from ``first_position`` on; value: the inputs, from
    ``first_value`` on; block: where the block starts in ``weights``; first_bias: where its biases
    start in ``bias``. out[to : to + BLOCK] is overwritten.
    """
    s0 = load(bias, first_bias)
    s1 = load(bias, first_bias + LANES)
    s2 = load(bias, first_bias + 2 * LANES)
    s3 = load(bias, first_bias + 3 * LANES)
    for k in range(count):
        x = value[first_value + k]
        at = block + position[first_position + k] * BLOCK
        s0 = fma(x, load(weights, at), s0)
        s1 = fma(x, load(weights, at + LANES), s1)
        s2 = fma(x, load(weights, at + 2 * LANES), s2)
        s3 = fma(x, load(weights, at + 3 * LANES), s3)
    store(out, to, s0)
    store(out, to + LANES, s1)
    store(out, to + 2 * LANES, s2)
    store(out, to + 3 * LANES, s3)


@njit(**options.CPU_INLINE)
def input_error(error, at, weights, first_weight, n_in, width, unit):
    """Return sum_u error[u] weights[unit, u], the error that reaches input ``unit`` of a layer.

    error: the layer's errors of one example from ``at`` on, ``width`` of them; first_weight: where
    the layer starts in ``weights``; n_in: its inputs.
    """
    total = splat(error, 0)
    for u in range(0, width, BLOCK):
        row = first_weight + (u * n_in) + unit * BLOCK
        for lane in range(0, BLOCK, LANES):
            total = multiply_add(load(error, at + u + lane), load(weights, row + lane), total)
    return lane_sum(total)


@njit(**options.CPU_INLINE)
def update_row(
    example, first_example, value, first_value, stride, count, error, at, width, weights, row, rates
):
    """Update a block's weights of one input; return a vector that sums to their squares before it.

    The gradient is the sum over k of value[k] error[example[k]]: example numbers, ``count`` of them
    from ``first_example`` on; values of the input from ``first_value`` on, ``stride`` apart; error:
    flat (B, width), the block's units from ``at`` on. ``rates`` is (learning rate, l2):
    weights[row : row + BLOCK] becomes (1 - 2 rate l2) w - rate gradient.
    """
    rate, l2 = rates
    shrink = weights.dtype.type(1) - (rate + rate) * l2
    zero = splat(weights, 0)
    g0 = g1 = g2 = g3 = zero
    for k in range(count):
        x = value[first_value + k * stride]
        e = example[first_example + k] * width + at
        g0 = fma(x, load(error, e), g0)
        g1 = fma(x, load(error, e + LANES), g1)
        g2 = fma(x, load(error, e + 2 * LANES), g2)
        g3 = fma(x, load(error, e + 3 * LANES), g3)
    w0 = load(weights, row)
    w1 = load(weights, row + LANES)
    w2 = load(weights, row + 2 * LANES)
    w3 = load(weights, row + 3 * LANES)
    store(weights, row, fma(shrink, w0, fma(-rate, g0, zero)))
    store(weights, row + LANES, fma(shrink, w1, fma(-rate, g1, zero)))
    store(weights, row + 2 * LANES, fma(shrink, w2, fma(-rate, g2, zero)))
    store(weights, row + 3 * LANES, fma(shrink, w3, fma(-rate, g3, zero)))
    squares = multiply_add(w1, w1, multiply_add(w0, w0, zero))
    return multiply_add(w3, w3, multiply_add(w2, w2, squares))


@njit(**options.CPU)
def penalise_row(weights, row, rate, penalties):
    """Move a block's weights of one input down the gradient of their penalty; return the penalty.

    For penalties that update_row does not cover; the padding's weights of 0 stay 0.
    """
    total = weights.dtype.type(0)
    for w in range(row, row + BLOCK):
        weight = weights[w]
        total += penalty(weight, penalties)
        weights[w] = weight - rate * penalty_gradient(weight, penalties)
    return total
