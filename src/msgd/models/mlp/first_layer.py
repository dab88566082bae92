"""The MLP's first layer on the CPU: its inputs are images, and most of their pixels are zero.

The units are cut into blocks of BLOCK. A block's sums fit into registers, and one task does all of
a block's work. A block's weights are two panels of PANEL units, and in a panel the weights of one
pixel lie next to each other: weight (d, u) of the layer is ``panels[u // PANEL, d PANEL + u %
PANEL]``. The rows of a panel that one image needs fit the smallest cache, those of a block the
next. Units that fill up the last block have weights and errors of 0, and keep them.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.cpu import (
    activate,
    element,
    penalty,
    penalty_gradient,
    set_element,
    sgd_step,
)
from msgd.kernels.dense_layer import BLOCK
from msgd.kernels.formulas import like
from msgd.kernels.sparse import SPARE, scale
from msgd.kernels.vectors import (
    LANES,
    add,
    aligned,
    aligned_empty,
    aligned_zeros,
    fma,
    high_half,
    lane_sum,
    load,
    load_wide,
    low_half,
    multiply,
    multiply_add,
    splat,
    splat_wide,
    store,
)

PANEL = BLOCK // 2


class FirstLayer(NamedTuple):
    """The weights W (D, n_1) and the bias of the first layer, filled up to whole blocks."""

    panels: np.ndarray  # (2 blocks, D PANEL) floatX
    bias: np.ndarray  # (blocks BLOCK,) floatX


def n_blocks(n_units):
    """Return how many blocks ``n_units`` units need."""
    return -(-n_units // BLOCK)


def new_first_layer(weights, bias):
    """Return the FirstLayer of weights (D, n_1) and bias (n_1,), copied."""
    n_in, n_out = weights.shape
    padded = np.zeros((n_in, n_blocks(n_out) * BLOCK), weights.dtype)
    padded[:, :n_out] = weights
    panels = aligned([padded.reshape(n_in, -1, PANEL).transpose(1, 0, 2).ravel()])
    padded_bias = aligned_zeros(padded.shape[1], bias.dtype)
    padded_bias[:n_out] = bias
    return FirstLayer(panels.reshape(-1, n_in * PANEL), padded_bias)


def get_first_layer(layer, n_out):
    """Return copies of a FirstLayer's weights (D, n_out) and bias (n_out,)."""
    n_panels = len(layer.panels)
    panels = layer.panels.reshape(n_panels, -1, PANEL)
    weights = panels.transpose(1, 0, 2).reshape(-1, n_panels * PANEL)
    return weights[:, :n_out].copy(), layer.bias[:n_out].copy()  # a single panel's would be a view


@njit(**options.CPU)
def multiply_images(block, by_image, images, pixel_scale, layer, sums, row):
    """Overwrite rows of sums, from ``row`` on, with images times a block of W.

    by_image: CSR; images: (start, stop), which of them; pixel_scale: floatX; layer: FirstLayer;
    sums: flat (rows, BLOCK), a row for each image.
    """
    start, stop = images
    value = aligned_empty(layer.panels.shape[1] // PANEL + SPARE, sums.dtype)
    for half in range(2):
        panel = layer.panels[2 * block + half]
        for i in range(start, stop):
            first, count = by_image.indptr[i], by_image.indptr[i + 1] - by_image.indptr[i]
            scale(by_image.data, first, count, pixel_scale, value)
            total = _panel_sum(by_image.indices, first, value, count, panel)
            store(sums, (row + i - start) * BLOCK + half * PANEL, total)


@njit(**options.CPU_INLINE)
def _panel_sum(indices, first, value, count, panel):
    """Return the vector sum_k value[k] panel[PANEL r : + PANEL], r = indices[first + k].

    Entries of even and of odd number are summed apart, so that one sum need not wait for the
    other; value[count] is 0.
    """
    even = odd = splat_wide(panel, 0, PANEL)
    for k in range(0, count, 2):
        at = element(indices, first + k) * PANEL
        even = fma(element(value, k), load_wide(panel, at, PANEL), even)
        at = element(indices, first + k + 1) * PANEL
        odd = fma(element(value, k + 1), load_wide(panel, at, PANEL), odd)
    return add(even, odd)


@njit(**options.CPU_INLINE)
def activate_block(block, sums, at, layer, units, i):
    """Overwrite a block of units, row i: the activation of sums[at : at + BLOCK] and the bias.

    layer: FirstLayer; units: Activations.
    """
    unit = block * BLOCK
    to = i * units.stride + unit
    bias = load_wide(layer.bias, unit, BLOCK)
    store(units.h, to, add(load_wide(sums, at, BLOCK), bias))
    for u in range(BLOCK):
        set_element(units.h, to + u, activate(element(units.h, to + u), units.kind))


@njit(**options.CPU)
def add_image_products(block, by_pixel, group, pixel_scale, steps, factor, layer):
    """Set a block of W to factor W + X^T steps; return the sum of the old weights' squares.

    by_pixel: DCSC of the groups of images; group: which of them X is; steps: flat (images of a
    group, BLOCK); layer: FirstLayer, whose panels 2 block and 2 block + 1 are changed.
    """
    left, right = layer.panels[2 * block], layer.panels[2 * block + 1]
    column, end = by_pixel.groups[group], by_pixel.groups[group + 1]
    value = aligned_empty(steps.shape[0] // BLOCK + SPARE, steps.dtype)
    squares = splat_wide(steps, 0, PANEL)
    for d in range(left.shape[0] // PANEL):
        first, count = by_pixel.indptr[column], 0
        if column < end and by_pixel.pixel[column] == d:
            column += 1
            count = by_pixel.indptr[column] - first
        scale(by_pixel.data, first, count, pixel_scale, value)
        step = _block_sum(by_pixel.indices, first, value, count, steps)
        squares = add(squares, _move(left, right, d * PANEL, factor, step))
    return lane_sum(squares)


@njit(**options.CPU_INLINE)
def _block_sum(indices, first, value, count, steps):
    """Return the vector sum_k value[k] steps[BLOCK r : + BLOCK], r = indices[first + k]."""
    total = splat_wide(steps, 0, BLOCK)
    for k in range(count):
        at = element(indices, first + k) * BLOCK
        total = fma(element(value, k), load_wide(steps, at, BLOCK), total)
    return total


@njit(**options.CPU_INLINE)
def _move(left, right, at, factor, step):
    """Set a row of two panels to factor times itself plus step; return the old weights' squares.

    left, right: the panels; at: where the row begins; step: vector of BLOCK. The squares are a
    vector of PANEL. They are no part of the caller's sum yet, which then waits for one addition.
    """
    old_left, old_right = load_wide(left, at, PANEL), load_wide(right, at, PANEL)
    store(left, at, fma(factor, old_left, low_half(step)))
    store(right, at, fma(factor, old_right, high_half(step)))
    return multiply_add(old_right, old_right, multiply(old_left, old_left))


@njit(**options.CPU)
def penalise(weights, span, descent):
    """Move a span of weights down their penalties' gradient.

    weights: flat; span: (start, stop). Returns their penalties before. Weights of 0 that fill up a
    block stay 0.
    """
    total = like(descent.rate, 0)
    start, stop = span
    for w in range(start, stop):
        weight = weights[w]
        total += penalty(weight, descent)
        weights[w] = sgd_step(weight, penalty_gradient(weight, descent), descent)
    return total


@njit(**options.CPU_INLINE)
def update_bias(bias, descent, above, units, n):
    """Update the biases of units (start, stop) by n images' errors, above.error.

    bias: flat, of this layer or a later one; descent: Descent; above: Activations of the units.
    """
    start, stop = units
    for u in range(start, stop, LANES):
        gradient = splat(bias, 0)
        for i in range(n):
            gradient = add(gradient, load(above.error, i * above.stride + u))
        store(bias, u, fma(-descent.rate, gradient, load(bias, u)))
