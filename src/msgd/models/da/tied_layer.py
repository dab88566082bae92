"""A layer with tied weights on the CPU: an auto-encoder's, fast. See da/model.py for the letters.

A step of SGD has two halves. Each is cut into tasks that write to different places.

- By pixels, CHUNK of them a task: their a = y W^T + b', cost and d; what they add to d W; and the
  step on d^T y. A task's weights pass through the nearest cache once for all of this.
- By units, BLOCK of them a task: e, of what all chunks added to d W, summed in order; the step on
  x~^T e; and then y of the next minibatch. Most pixels of x~ are zero (``corrupted.py``).

So the bits do not depend on threads. The weights are stored as in ``mlp/first_layer.py``, in panels
of PANEL units. Pixels are filled up to whole vectors and units to whole blocks; the bias of what is
padding is so low that its sigmoid is 0, and so its weights stay 0.

With a contraction c (ca/model.py) each chunk also writes what it adds to C, and each block what it
adds to |J|^2 / B. What the contraction does to W directly, a factor for each unit, is known with y,
so the chunks take it along with d^T y.
"""

from typing import NamedTuple

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.cpu import element, set_element
from msgd.kernels.dense_layer import BLOCK, padded
from msgd.kernels.formulas import like
from msgd.kernels.sigmoid import sigmoid, sigmoid_cross_entropy
from msgd.kernels.tiles import add_dots, move_rows, no_dots, no_rows, store_dots
from msgd.kernels.vectors import (
    LANES,
    add,
    add_outer,
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
    store_sums,
)
from msgd.models.mlp.first_layer import (
    PANEL,
    get_first_layer,
    multiply_images,
    new_first_layer,
    update_bias,
)

CHUNK = 4 * LANES  # pixels
NEVER = -1000  # the bias of padding: exp(NEVER) is 0
# A tile is as large as the processor has registers for; sums are the same in tiles of any size.
IMAGES = 5  # the published minibatches have 20 and 10
PIXELS = 4
# AVX-512 has 32 registers of LANES. Where Numba compiles for another processor, none is assumed.
HAS_AVX512 = llvm.get_host_cpu_features().get("avx512f", False) and numba.config.CPU_NAME is None
N_WIDE = 2 if HAS_AVX512 else 1
WIDTH = (1,) * N_WIDE  # vectors of LANES units
COLUMNS = (0, PANEL)[:N_WIDE]  # the weights of so many pixels next to each other


class TiedLayer(NamedTuple):
    """The parameters, with padding; all arrays are floatX."""

    panels: np.ndarray  # W: (2 blocks, pixels PANEL), see mlp/first_layer.py
    bias: np.ndarray  # b: (blocks BLOCK,)
    visible_bias: np.ndarray  # b': (pixels,)


class Parts(NamedTuple):
    """What the tasks of one half of a step leave to those of the other; all arrays are floatX."""

    is_contractive: bool
    contraction: np.floating  # c
    sums: np.ndarray  # (chunks, images BLOCK blocks): what a chunk adds to d W
    squares: np.ndarray  # (chunks, BLOCK blocks): what it adds to C
    costs: np.ndarray  # (chunks,): what it adds to the sum of the cross-entropies
    jacobians: np.ndarray  # (blocks,): what a block adds to |J|^2 / B
    factors: np.ndarray  # (BLOCK blocks,): by which a step on the contraction multiplies W


def new_tied_layer(weights, hidden_bias, visible_bias):
    """Return the TiedLayer of weights (D, H) and both biases, copied."""
    n_visible, n_hidden = weights.shape
    rows = np.zeros((padded(n_visible), n_hidden), weights.dtype)
    rows[:n_visible] = weights
    first = new_first_layer(rows, hidden_bias)
    first.bias[n_hidden:] = NEVER
    padded_bias = aligned_zeros(len(rows), weights.dtype)
    padded_bias[:n_visible], padded_bias[n_visible:] = visible_bias, NEVER
    return TiedLayer(*first, padded_bias)


def get_tied_layer(layer, n_visible, n_hidden):
    """Return copies of the weights (D, H) and of both biases of a TiedLayer."""
    weights, hidden_bias = get_first_layer(layer, n_hidden)
    return weights[:n_visible].copy(), hidden_bias, layer.visible_bias[:n_visible].copy()


def new_parts(layer, n_images, contraction):
    """Return the Parts of a TiedLayer for minibatches of n_images; contraction: c, or None."""
    n_units, float_x = len(layer.bias), layer.bias.dtype
    n_chunks = -(-len(layer.visible_bias) // CHUNK)
    sums = aligned_zeros(n_chunks * padded(n_images, IMAGES) * n_units, float_x)
    return Parts(
        is_contractive=contraction is not None,
        contraction=float_x.type(contraction or 0),
        sums=sums.reshape(n_chunks, -1),
        squares=np.zeros((n_chunks, n_units), float_x),
        costs=np.zeros(n_chunks, float_x),
        jacobians=np.zeros(n_units // BLOCK, float_x),
        factors=np.ones(n_units, float_x),
    )


# Kernels. x: the stored images (N, D); image: the minibatch's first; minibatches: Minibatches;
# descent: Descent; layer: TiedLayer; units, pixels: Activations of it, y and e, x and d; parts:
# Parts.


@njit(**options.CPU)
def train_chunk(chunk, image, x, minibatches, descent, layer, units, pixels, parts):
    """Do a chunk's work of a minibatch; change its weights and visible biases.

    pixels.h and .error, and the chunk's place in parts.sums, .squares and .costs are overwritten.
    """
    start, stop = chunk * CHUNK, min((chunk + 1) * CHUNK, layer.visible_bias.shape[0])
    n = minibatches.size
    for i in range(n):
        at = i * pixels.stride
        for k in range(start, min(stop, x.shape[1])):
            set_element(pixels.h, at + k, minibatches.pixel_scale * x[image + i, k])
    _sum_units(start, stop, n, layer, units, pixels)
    parts.costs[chunk] = _compare(start, stop, minibatches, layer, pixels)
    update_bias(layer.visible_bias, descent, pixels, (start, stop), n)
    for panel in range(layer.panels.shape[0]):
        weights, unit = layer.panels[panel], panel * PANEL
        for width in range(0, PANEL, N_WIDE * LANES):
            place = start * PANEL + width
            sums, row = parts.sums[chunk], layer.bias.shape[0]
            _sum_pixels(weights, place, (start, stop), n, pixels, sums, row, unit + width)
        if parts.is_contractive:
            _sum_squares(weights, (start, stop), parts.squares[chunk], unit)
        for width in range(0, PANEL, N_WIDE * LANES):
            _move_weights(weights, (start, stop), n, descent, (units, pixels), parts, unit, width)


@njit(**options.CPU_INLINE)
def _rows(first, stride):
    """Return where IMAGES rows begin."""
    return (first, first + stride, first + 2 * stride, first + 3 * stride, first + 4 * stride)


@njit(**options.CPU)
def _sum_units(start, stop, n, layer, units, pixels):
    """Overwrite pixels.error by y W^T, pixels start..stop-1, of n images and what fills a tile."""
    weights, per_panel = layer.panels.reshape(-1), layer.panels.shape[1]
    for i in range(0, n, IMAGES):
        rows = _rows(i * units.stride, units.stride)
        for k in range(start, stop, N_WIDE):
            tile = no_dots(weights, rows, COLUMNS)
            for panel in range(layer.panels.shape[0]):
                at = panel * per_panel + k * PANEL
                for u in range(0, PANEL, LANES):
                    unit = panel * PANEL + u
                    tile = add_dots(units.h, rows, unit, weights, COLUMNS, at + u, tile)
            store_dots(pixels.error, i * pixels.stride + k, pixels.stride, rows, tile)


@njit(**options.CPU)
def _compare(start, stop, minibatches, layer, pixels):
    """Turn y W^T in pixels.error into d; return the sum of the cross-entropies."""
    values, errors = pixels.h, pixels.error
    cost, zero = like(minibatches.inverse_size, 0), splat(values, 0)
    for i in range(minibatches.size):
        costs = zero
        for k in range(start, stop, LANES):
            at = i * pixels.stride + k
            a, target = add(load(errors, at), load(layer.visible_bias, k)), load(values, at)
            share, more = sigmoid_cross_entropy(a, target, values)
            costs = add(costs, more)
            store(errors, at, fma(minibatches.inverse_size, fma(-1, target, share), zero))
        cost += lane_sum(costs)
    return cost


@njit(**options.CPU)
def _sum_pixels(weights, place, span, n, pixels, sums, width, unit):
    """Overwrite what pixels (start, stop) add to d W, of n images and WIDTH units from ``unit``.

    weights: a panel; place: of the first weight; sums: of the chunk, for each image a row of
    ``width``.
    """
    start, stop = span
    for i in range(0, n, IMAGES):
        rows = _rows(i * pixels.stride, pixels.stride)
        tile = no_rows(sums, rows, WIDTH)
        for k in range(start, stop):
            at = place + (k - start) * PANEL
            tile = add_outer(pixels.error, rows, k, weights, at, tile)
        store_sums(sums, i * width + unit, width, rows, tile)


@njit(**options.CPU)
def _sum_squares(weights, span, squares, unit):
    """Overwrite squares[unit : unit + PANEL]: of the weights of pixels (start, stop) of a panel."""
    start, stop = span
    total = splat_wide(squares, 0, PANEL)
    for k in range(start, stop):
        row = load_wide(weights, k * PANEL, PANEL)
        total = multiply_add(row, row, total)
    store(squares, unit, total)


@njit(**options.CPU)
def _move_weights(weights, span, n, descent, activations, parts, unit, width):
    """Take the step on d^T y and the contraction for pixels (start, stop), WIDTH units of a panel.

    weights: the panel; activations: units and pixels; unit, width: of the panel, within it.
    """
    start, stop = span
    units, pixels = activations
    for k in range(start, stop, PIXELS):
        rows = (k, k + 1, k + 2, k + 3)
        tile = no_rows(weights, rows, WIDTH)
        for i in range(n):
            at = i * units.stride + unit + width
            tile = add_outer(pixels.error, rows, i * pixels.stride, units.h, at, tile)
        at = k * PANEL + width
        move_rows(weights, at, PANEL, rows, parts.factors, unit + width, -descent.rate, tile)


@njit(**options.CPU)
def train_block(block, by_pixel, minibatches, descent, layer, units, parts):
    """Do a block of units' work of a minibatch; change its weights and hidden biases.

    by_pixel: DCSC of x~, one group. units.error, and the block's place in parts.jacobians, are
    overwritten.
    """
    n, first = minibatches.size, block * BLOCK
    total = splat(units.h, 0)
    for u in range(first, first + BLOCK, LANES):
        total = add(total, _errors(u, n, minibatches, units, parts))
    parts.jacobians[block] = minibatches.inverse_size * lane_sum(total)
    update_bias(layer.bias, descent, units, (first, first + BLOCK), n)
    steps = aligned_empty(n * BLOCK, units.h.dtype)
    zero = splat(steps, 0)
    for i in range(n):
        for u in range(0, BLOCK, LANES):
            error = load(units.error, i * units.stride + first + u)
            store(steps, i * BLOCK + u, fma(-descent.rate, error, zero))
    _add_products(block, by_pixel, steps, layer)


@njit(**options.CPU)
def _errors(unit, n, minibatches, units, parts):
    """Overwrite e of LANES units; return what they add to |J|^2, lane by lane."""
    width, zero, one = parts.factors.shape[0], splat(units.h, 0), splat(units.h, 1)
    square = zero
    for chunk in range(parts.squares.shape[0]):
        square = add(square, load(parts.squares[chunk], unit))
    double = (parts.contraction + parts.contraction) * minibatches.inverse_size
    doubled = fma(double, square, zero)
    jacobian = zero
    for i in range(n):
        total = load(parts.sums[0], i * width + unit)
        for chunk in range(1, parts.sums.shape[0]):
            total = add(total, load(parts.sums[chunk], i * width + unit))
        y = load(units.h, i * units.stride + unit)
        slope = multiply(y, fma(-1, y, one))
        error = multiply(total, slope)
        if parts.is_contractive:
            slope_2 = multiply(slope, slope)
            jacobian = multiply_add(slope_2, square, jacobian)
            error = multiply_add(multiply(slope_2, fma(-2, y, one)), doubled, error)
        store(units.error, i * units.stride + unit, error)
    return jacobian


@njit(**options.CPU)
def _add_products(block, by_pixel, steps, layer):
    """Add x~^T steps to a block of W; steps: flat (images, BLOCK)."""
    left, right = layer.panels[2 * block], layer.panels[2 * block + 1]
    for column in range(by_pixel.groups[0], by_pixel.groups[1]):
        step = splat_wide(steps, 0, BLOCK)
        for k in range(by_pixel.indptr[column], by_pixel.indptr[column + 1]):
            at = element(by_pixel.indices, k) * BLOCK
            step = fma(element(by_pixel.data, k), load_wide(steps, at, BLOCK), step)
        at = element(by_pixel.pixel, column) * PANEL
        store(left, at, add(load_wide(left, at, PANEL), low_half(step)))
        store(right, at, add(load_wide(right, at, PANEL), high_half(step)))


@njit(**options.CPU)
def forward_block(block, by_image, minibatches, descent, layer, units, parts):
    """Overwrite a block of y, and of parts.factors, with those of the images of by_image, a CSR."""
    n, first = minibatches.size, block * BLOCK
    sums = aligned_empty(n * BLOCK, units.h.dtype)
    one = like(minibatches.inverse_size, 1)
    multiply_images(block, by_image, (np.int64(0), n), one, layer, sums, np.int64(0))
    for u in range(0, BLOCK, LANES):
        bias, total = load(layer.bias, first + u), splat(sums, 0)
        for i in range(n):
            y = sigmoid(add(load(sums, i * BLOCK + u), bias), sums)
            store(units.h, i * units.stride + first + u, y)
            slope = multiply(y, fma(-1, y, splat(sums, 1)))
            total = multiply_add(slope, slope, total)
        if parts.is_contractive:
            double = (parts.contraction + parts.contraction) * minibatches.inverse_size
            shrunk = fma(-descent.rate * double, total, splat(sums, 1))
            store(parts.factors, first + u, shrunk)
