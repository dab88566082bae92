"""Convolutions of 5 x 5 filters with 2 x 2 max-pooling in float32, in the registers of a thread.

Filters are stored flipped, so that a convolution is a correlation: weight (u, v) meets the pixel u
rows below and v columns right of the output's own place.

Forward, a thread owns a pair of pooling squares side by side, of MAPS output maps::

    6 x 8 pixels of one input map       2 x 4 outputs of 5 maps = 40 sums
    . . . . . . . .                     a a b b      squares a and b; each is pooled to one
    . . . . . . . .                     a a b b
    . . . . . . . .   two rows are in registers at a time

Backward, only a square's maxima have an error. ``places`` are their bits: 1, 2, 4, 8 for the pixels
of the square in row-major order, one bit alone unless maxima are tied. Threads of a warp share the
square and its places, so that they branch together (of_warp lets the compiler know), and skip the
other pixels' products.
"""

from typing import NamedTuple

import numpy as np
from numba import cuda, float32, int32, uint32

from msgd.kernels.cuda import INLINE
from msgd.kernels.cuda_sums import EVERY_LANE
from msgd.kernels.cuda_vectors import read4

FILTER_SIZE, FILTER_AREA = 5, 25
MAPS = 5  # output maps of a thread
N_MAPS, N_TAPS, AREA = np.uint32(MAPS), np.uint32(FILTER_SIZE), np.uint32(FILTER_AREA)
ROW_WEIGHTS = np.uint32(28)  # of a filter row for MAPS maps: 5 v + m, and three that are not used
WORDS = np.uint32(ROW_WEIGHTS // 4)
PATCH = 6  # rows and columns of the pixels that a pooling square comes from
N_PATCH = np.uint32(PATCH)
ZERO, ONE, TWO = np.uint32(0), np.uint32(1), np.uint32(2)
FOUR, EIGHT = np.uint32(4), np.uint32(8)
LOWER = np.uint32(4)  # where the lower of a map's two rows of sums begins
ROW = np.uint32(8)  # pixels of a row in registers


class Pair(NamedTuple):
    """Registers of a thread that convolves a pair of squares, all float32."""

    sums: object  # (MAPS, 8): of each map two rows of four
    pixels: object  # (16,): two rows of the input
    weights: object  # (28,): a filter row of the maps


@cuda.jit(device=True, **INLINE)
def clear_sums(sums):
    """Overwrite sums (MAPS, 8) float32 with 0."""
    for m in range(N_MAPS):
        for i in range(TWO * LOWER):
            sums[m, i] = float32(0)


@cuda.jit(device=True, **INLINE)
def convolve_pair(shared, pixel, width, weight, row_stride, pair):
    """Add to pair.sums the correlation of one input map with one filter of each of MAPS maps.

    shared: flat float32; shared[pixel] is the patch's first pixel, and rows of pixels are ``width``
    apart; shared[weight] is the first filter row of ROW_WEIGHTS, and rows are row_stride apart.
    """
    sums, pixels, weights = pair
    for _ in range(N_TAPS):
        for y in range(TWO):
            read4(shared, pixel + y * width, pixels, y * ROW)
            read4(shared, pixel + y * width + FOUR, pixels, y * ROW + FOUR)
        for word in range(WORDS):
            read4(shared, weight + word * FOUR, weights, word * FOUR)
        for v in range(N_TAPS):
            for m in range(N_MAPS):
                for y in range(TWO):
                    for x in range(FOUR):
                        product = weights[N_MAPS * v + m] * pixels[ROW * y + x + v]
                        sums[m, y * LOWER + x] += product
        pixel += width
        weight += row_stride


@cuda.jit(device=True, **INLINE)
def pool(sums, m, square, first_only):
    """Return the maximum of a square of the pair and its places (see above).

    sums: (MAPS, 8) float32; m: which map; square: 0 or 1; first_only: whether of tied maxima the
    first alone counts. m and square: constants, or the sums leave the registers.
    """
    at = TWO * square
    a, b = sums[m, at], sums[m, at + ONE]
    c, d = sums[m, at + LOWER], sums[m, at + LOWER + ONE]
    return pool_square(a, b, c, d, first_only)


@cuda.jit(device=True, **INLINE)
def pool_square(a, b, c, d, first_only):
    """Return the maximum of a square's pixels in row-major order, float32, and its places.

    first_only: as in ``pool``.
    """
    highest = max(max(a, b), max(c, d))
    places = uint32(ONE if a == highest else ZERO) | uint32(TWO if b == highest else ZERO)
    places |= uint32(FOUR if c == highest else ZERO) | uint32(EIGHT if d == highest else ZERO)
    if first_only:
        places &= ~places + ONE  # the lowest bit
    return highest, places


@cuda.jit(device=True, **INLINE)
def of_warp(word):
    """Return ``word``, uint32 below 2^31, which all threads of the warp have.

    Of a number that one of them hands to all, the compiler knows that it is the same, and that
    branches on it need not gather the warp again.
    """
    return uint32(cuda.shfl_sync(EVERY_LANE, int32(word), 0))


@cuda.jit(device=True, **INLINE)
def spread_error(error, places, weights, first, width, below):
    """Add error x weights to the pixels that the maxima of a square come from.

    error: of the square, float32; places: see above; weights: (25,) float32 registers; below: flat
    float32 registers with rows of ``width``, changed from ``first`` on. first, width: constants.
    """
    for y in range(TWO):
        for x in range(TWO):
            if places & (ONE << (TWO * y + x)):
                for u in range(N_TAPS):
                    for v in range(N_TAPS):
                        at = first + (y + u) * width + x + v
                        below[at] += error * weights[N_TAPS * u + v]


@cuda.jit(device=True, **INLINE)
def gather_gradient(error, places, y, patch, first, gradient):
    """Add error x pixels to a filter's gradient, for the maxima in row y of a square.

    error: of the square, float32; places: see above; patch: (36,) float32 registers, the pixels the
    square comes from; gradient: float32 registers, 25 of which change, from ``first`` on. y, first:
    constants.
    """
    for x in range(TWO):
        if places & (ONE << (TWO * y + x)):
            for u in range(N_TAPS):
                for v in range(N_TAPS):
                    pixel = patch[N_PATCH * (y + u) + x + v]
                    gradient[first + N_TAPS * u + v] += error * pixel
