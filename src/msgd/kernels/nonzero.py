"""The nonzero pixels of images, listed once: four fifths of MNIST's pixels are zero.

Leaving out products with zero changes no sum, and the lists are the same in every epoch, for
minibatches are never shuffled. A forward pass goes through them image by image, a gradient pixel by
pixel. An entry is one pixel, or a patch of ``size`` pixels of which one at least is not zero
(``kernels/patches.py``): what is said of pixels here then holds for patches.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.simd import (
    LANES,
    aligned_zeros,
    fma,
    lane_sum,
    load,
    load_as,
    multiply_add,
    splat,
    store,
)

TASKS = 64  # parts that the images are cut into
# Places that lists and their scratch have beyond their entries: vectors read and write whole
# vectors, and a file of no entries at all could not be mapped.
SPARE = 2 * LANES
AT_ONCE = 4  # dot products, so that one sum need not wait for the other


class NonzeroPixels(NamedTuple):
    """The nonzero pixels of n images, image after image.

    first: (n + 1,) int64, image i has the entries first[i] to first[i+1] - 1; position: (E,) uint16
    or uint32, which pixel or patch, ascending; value: (E size,) uint8 or floatX, as stored.
    Position and value have SPARE zeros more.
    """

    first: np.ndarray
    position: np.ndarray
    value: np.ndarray

    def rows(self, start, stop):
        """Return the lists of images start..stop-1, without copying."""
        return NonzeroPixels(self.first[start : stop + 1], self.position, self.value)


class LitImages(NamedTuple):
    """The images of each group in which a pixel is not zero, pixel after pixel.

    A group is a minibatch or several that follow each other.

    first: (groups + 1,) int64, group g has the rows first[g] to first[g+1] - 1, one for each pixel
    that is lit in one of its images; pixel: (R,) uint16 or uint32, which, ascending; entry:
    (R + 1,) int64, row r has the entries entry[r] to entry[r+1] - 1; image: (E,) uint16 or uint32,
    its number within the group; value: (E size,) as in NonzeroPixels. Pixel, image and value have
    SPARE zeros more.

    The images of even pixels ascend and those of odd pixels descend: going through one pixel after
    the other, one comes upon what belongs to an image again while it is in the cache.
    """

    first: np.ndarray
    pixel: np.ndarray
    entry: np.ndarray
    image: np.ndarray
    value: np.ndarray


class Products(NamedTuple):
    """The products of each image with images of its group: rows of their Gram matrices.

    product: (n group_size,) floatX; product[i group_size + j] is the sum over pixels of image i
    times image j of its group, up to the last image of i's own minibatch, and of no meaning beyond.
    """

    product: np.ndarray


def list_nonzero(x, size=1):
    """Return the NonzeroPixels of the images x (n, D), uint8 or floatX, in entries of ``size``."""
    n_images, n_features = x.shape
    first = np.zeros(n_images + 1, np.int64)
    _count(x, size, first[1:])
    np.cumsum(first, out=first)
    position = np.zeros(first[-1] + SPARE, _index_type(n_features // size))
    value = np.zeros(first[-1] * size + SPARE, x.dtype)
    _fill(x, size, first, position, value)
    return NonzeroPixels(first, position, value)


@njit(**options.CPU_INLINE)
def _is_lit(x, i, start, size):
    """Return whether one of the pixels start..start+size-1 of image i is not zero."""
    is_lit = False
    for d in range(start, start + size):
        is_lit |= x[i, d] != 0
    return is_lit


@njit(**options.CPU_ENTRY)  # on one thread: a parallel loop takes longer to compile than this
def _count(x, size, counts):
    """Overwrite counts (n,) with the number of entries of every image of x (n, D)."""
    n_images, n_features = x.shape
    for i in range(n_images):
        count = 0
        for p in range(n_features // size):
            count += _is_lit(x, i, p * size, size)
        counts[i] = count


@njit(**options.CPU_PARALLEL)
def _fill(x, size, first, position, value):
    """Overwrite position (E,) and value (E size,) with the entries of the images x (n, D)."""
    n_images, n_features = x.shape
    for task in prange(TASKS):
        for i in range(task * n_images // TASKS, (task + 1) * n_images // TASKS):
            at = first[i]
            for p in range(n_features // size):
                if _is_lit(x, i, p * size, size):
                    position[at] = p
                    for d in range(size):
                        value[at * size + d] = x[i, p * size + d]
                    at += 1


def _index_type(n):
    """Return the smallest dtype here for numbers below n."""
    return np.uint16 if n <= 2**16 else np.uint32


def list_lit(pixels, group_size, n_positions, size=1):
    """Return the LitImages of ``pixels`` (NonzeroPixels); the last group may be a smaller one.

    n_positions: how many pixels an image has, or patches of ``size`` pixels.
    """
    n_groups = -(-(len(pixels.first) - 1) // group_size)
    first = np.zeros(n_groups + 1, np.int64)
    _count_lit(pixels, group_size, n_positions, first[1:])
    np.cumsum(first, out=first)
    n_entries = pixels.first[-1] - pixels.first[0]
    lit = LitImages(
        first,
        np.zeros(first[-1] + SPARE, _index_type(n_positions)),
        np.zeros(first[-1] + 1, np.int64),
        np.zeros(n_entries + SPARE, _index_type(group_size)),
        np.zeros(n_entries * size + SPARE, pixels.value.dtype),
    )
    _fill_lit(pixels, group_size, n_positions, size, *lit)
    return lit


@njit(**options.CPU_ENTRY)
def _count_lit(pixels, group_size, n_positions, counts):
    """Overwrite counts (groups,) with the number of pixels that are lit in each group."""
    n_images = pixels.first.shape[0] - 1
    for group in range(counts.shape[0]):
        is_lit = np.zeros(n_positions, np.uint8)
        start = group * group_size
        stop = min(start + group_size, n_images)
        for entry in range(pixels.first[start], pixels.first[stop]):
            is_lit[pixels.position[entry]] = 1
        counts[group] = np.count_nonzero(is_lit)


@njit(**options.CPU_PARALLEL)
def _fill_lit(pixels, group_size, n_positions, size, first, pixel, entry, image, value):
    """Overwrite the arrays of LitImages after first.

    As arrays, not as one LitImages: Numba drops what is written to a tuple's in a parallel loop.
    """
    n_images = pixels.first.shape[0] - 1
    for group in prange(first.shape[0] - 1):
        start = group * group_size
        stop = min(start + group_size, n_images)
        count = np.zeros(n_positions, np.int64)
        for k in range(pixels.first[start], pixels.first[stop]):
            count[pixels.position[k]] += 1
        row = first[group]
        at = pixels.first[start] - pixels.first[0]
        next_entry = np.empty(n_positions, np.int64)
        for d in range(n_positions):
            next_entry[d] = at if d % 2 == 0 else at + count[d] - 1
            if count[d]:
                at += count[d]
                pixel[row] = d
                entry[row + 1] = at
                row += 1
        for i in range(start, stop):
            for k in range(pixels.first[i], pixels.first[i + 1]):
                d = pixels.position[k]
                image[next_entry[d]] = i - start
                for j in range(size):
                    value[next_entry[d] * size + j] = pixels.value[k * size + j]
                next_entry[d] += 1 if d % 2 == 0 else -1


def list_products(pixels, batch_size, group_size, n_positions, pixel_scale):
    """Return the Products of ``pixels`` (NonzeroPixels, no patches), in pixel_scale's type."""
    width = -(-n_positions // LANES) * LANES
    n_images = len(pixels.first) - 1
    images = aligned_zeros((group_size + AT_ONCE) * width, pixel_scale.dtype)
    product = np.zeros(n_images * group_size, pixel_scale.dtype)
    _fill_products(pixels, batch_size, group_size, pixel_scale, width, images, product)
    return Products(product)


@njit(**options.CPU_ENTRY)
def _fill_products(pixels, batch_size, group_size, pixel_scale, width, images, product):
    """Overwrite product of Products; images: for a group's, (group_size + AT_ONCE, width)."""
    n_images = pixels.first.shape[0] - 1
    for start in range(0, n_images, group_size):
        images[:] = 0
        for i in range(start, min(start + group_size, n_images)):
            for k in range(pixels.first[i], pixels.first[i + 1]):
                at = (i - start) * width + pixels.position[k]
                images[at] = pixel_scale * pixels.value[k]
        for i in range(start, min(start + group_size, n_images)):
            n_products = (i // batch_size + 1) * batch_size - start
            for j in range(0, n_products, AT_ONCE):
                products = _dot_rows(images, (i - start) * width, j * width, width)
                for q in range(min(AT_ONCE, n_products - j)):
                    product[i * group_size + j + q] = products[q]


@njit(**options.CPU_INLINE)
def _dot_rows(images, left, right, width):
    """Return the dot products of images[left : left + width] with AT_ONCE rows from ``right``."""
    s0 = s1 = s2 = s3 = splat(images, 0)
    for d in range(0, width, LANES):
        x = load(images, left + d)
        s0 = multiply_add(x, load(images, right + d), s0)
        s1 = multiply_add(x, load(images, right + width + d), s1)
        s2 = multiply_add(x, load(images, right + 2 * width + d), s2)
        s3 = multiply_add(x, load(images, right + 3 * width + d), s3)
    return lane_sum(s0), lane_sum(s1), lane_sum(s2), lane_sum(s3)


@njit(**options.CPU)
def share_of_rows(lit, group, task, n_tasks):
    """Return (start, stop): a task's rows of a group, such that all have about as many entries.

    Rows belong to the task in whose share of the entries they begin.
    """
    first, last = lit.first[group], lit.first[group + 1]
    begins = lit.entry[first:last]
    before, n_entries = lit.entry[first], lit.entry[last] - lit.entry[first]
    start = np.searchsorted(begins, before + task * n_entries // n_tasks)
    stop = np.searchsorted(begins, before + (task + 1) * n_entries // n_tasks)
    return first + start, first + stop


@njit(**options.CPU_INLINE)
def scale(stored, first, count, pixel_scale, value):
    """Overwrite value[:count] with the pixels stored[first : first + count] as floatX.

    ``value`` has SPARE places more; the LANES that follow its numbers are set to 0.
    """
    zero = splat(value, 0)
    for k in range(0, count, LANES):
        store(value, k, fma(pixel_scale, load_as(value, stored, first + k), zero))
    store(value, count, zero)
