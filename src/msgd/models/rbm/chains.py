"""The two layers of the machine on the CPU, for the images of a minibatch, and sampling them.

A sample is a row of zeros and ones, so what it adds to the other layer's units is a sum of the
weights' rows of its ones: no product, and nothing of the zeros, which soon are four of five. Each
layer has the weights by rows of the other one's units, so there are two copies of them.

The weights lie in panels of PANEL units, whose sums stay in registers while the rows pass. A panel
serves all images of a task before the next one is read. All sums are those of one image, in the
order of its ones, so images can be cut up between threads in any way.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.cpu import element
from msgd.kernels.dense_layer import padded
from msgd.kernels.sigmoid import sigmoid
from msgd.kernels.uniform import draw_sample
from msgd.kernels.vectors import (
    HALF,
    LANES,
    add_at,
    aligned_zeros,
    append_marked,
    in_a_row,
    load,
    load_at,
    store,
    store_at,
)

VECTORS = (
    0,
    0,
    0,
    0,
)  # of a panel, as many as numbers: eight sums of half a vector beside each other
PANEL = len(VECTORS) * LANES
# The bias of units that only fill a panel up: their mean is 0, and so is log(1 + exp(bias)).
NEVER = -1e4


class Units(NamedTuple):
    """A layer, visible or hidden, of a minibatch of B images. Row i of images is at i ``stride``.

    The other layer has n_other units.
    """

    n: int  # units
    stride: int  # n, in whole panels
    n_rows: int  # n_other, in whole vectors of HALF
    weights: np.ndarray  # flat (panels, n_rows, PANEL) floatX: row j is what j of the others adds
    bias: np.ndarray  # (stride,) floatX
    means: np.ndarray  # flat (B, stride) floatX: what goes into the sigmoid, then its value
    marks: np.ndarray  # flat (B, stride) uint8: the samples
    ones: np.ndarray  # flat (B, stride) int64: which units are one in the sample, ascending
    n_ones: np.ndarray  # (B,) int64: how many


def new_units(n_images, n, n_other, float_x):
    """Return Units whose weights and samples are all 0."""
    stride = padded(n, PANEL)
    n_rows = padded(n_other, HALF)
    units = Units(
        n=n,
        stride=stride,
        n_rows=n_rows,
        weights=aligned_zeros(stride * n_rows, float_x),
        bias=aligned_zeros(stride, float_x),
        means=aligned_zeros(n_images * stride, float_x),
        marks=np.zeros(n_images * stride + HALF, np.uint8),
        ones=np.zeros(n_images * stride + HALF, np.int64),
        n_ones=np.zeros(n_images, np.int64),
    )
    units.bias[n:] = NEVER
    return units


def set_weights(units, weights):
    """Copy weights (n_other, n) into ``units``."""
    rows = np.zeros((units.n_rows, units.stride), weights.dtype)
    rows[: weights.shape[0], : weights.shape[1]] = weights
    units.weights[:] = rows.reshape(units.n_rows, -1, PANEL).transpose(1, 0, 2).ravel()


def get_weights(units, n_other):
    """Return a copy of the weights, (n_other, n)."""
    panels = units.weights.reshape(-1, units.n_rows, PANEL)
    rows = panels.transpose(1, 0, 2).reshape(units.n_rows, units.stride)
    return rows[:n_other, : units.n].copy()


# Kernels. images: (start, stop), of the minibatch.


@njit(**options.CPU)
def n_panels(units):
    """Return how many panels the units fill."""
    return units.stride // PANEL


@njit(**options.CPU)
def sum_ones(units, numbers, n_ones, stride, images, out):
    """Overwrite out (B, units.stride) with the bias and the weights' rows of the others' ones.

    Image i's are numbers[i stride : + n_ones[i]], int64.
    """
    for panel in range(n_panels(units)):
        first = panel * units.n_rows * PANEL
        for i in range(images[0], images[1]):
            sums = load_at(units.bias, panel * PANEL, in_a_row(VECTORS))
            start = i * stride
            for k in range(start, start + n_ones[i]):
                row = first + element(numbers, k) * PANEL
                sums = add_at(units.weights, row, in_a_row(VECTORS), sums)
            store_at(out, i * units.stride + panel * PANEL, in_a_row(VECTORS), sums)


@njit(**options.CPU)
def take_sigmoids(a, start, stop):
    """Overwrite a[start:stop], flat and whole vectors, with its sigmoids."""
    for k in range(start, stop, LANES):
        store(a, k, sigmoid(load(a, k), a))


@njit(**options.CPU)
def draw_units(units, position, means, i):
    """Overwrite the sample of image i: ones with the probabilities means (B, stride).

    position: msgd.kernels.uniform.Position, of draws of (B, n), whose elements of the image are
    taken to the next draw.
    """
    start, stop = i * units.stride, (i + 1) * units.stride
    span = (i * units.n, (i + 1) * units.n)
    draw_sample(position, span, means[start:stop], units.marks[start:stop], 0)
    list_ones(units, i)


@njit(**options.CPU)
def list_ones(units, i):
    """Overwrite the list of ones of image i by its marks."""
    start, count = i * units.stride, np.int64(0)
    numbers = units.ones[start:]
    for k in range(0, units.n, HALF):  # beyond the last unit marks are 0
        count = append_marked(units.marks, start + k, HALF, k, numbers, count)
    units.n_ones[i] = count


@njit(**options.CPU)
def sample_given(units, others, position, images):
    """Overwrite the means and the samples of images by the samples of the other layer.

    units, others: Units; position: as in draw_units.
    """
    mean_given(units, others, images)
    for i in range(images[0], images[1]):
        draw_units(units, position, units.means, i)


@njit(**options.CPU)
def mean_given(units, others, images):
    """Overwrite the means of images by the samples of the other layer."""
    sum_ones(units, others.ones, others.n_ones, others.stride, images, units.means)
    take_sigmoids(units.means, images[0] * units.stride, images[1] * units.stride)
