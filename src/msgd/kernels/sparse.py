"""Images as sparse matrices, made once: four fifths of MNIST's pixels are zero.

Leaving out products with zero changes no sum, and the matrices are the same in every epoch, for
minibatches are never shuffled. A forward pass needs them image by image (CSR), a gradient pixel by
pixel (DCSC). An entry is one pixel, or a patch of ``size`` pixels of which one at least is not zero
(``kernels/patches.py``): what is said of pixels here then holds for patches.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.vectors import (
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


class CSR(NamedTuple):
    """The nonzero pixels of n images, image after image: compressed sparse rows, as in SciPy.

    indptr: (n + 1,) int64, image i has the entries indptr[i] to indptr[i+1] - 1; indices: (E,)
    uint16 or uint32, which pixel or patch, ascending; data: (E size,) uint8 or floatX, as stored.
    indices and data have SPARE zeros more.
    """

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray

    def images(self, start, stop):
        """Return the CSR of images start..stop-1, without copying."""
        return CSR(self.indptr[start : stop + 1], self.indices, self.data)


class DCSC(NamedTuple):
    """The nonzero pixels of groups of images, pixel after pixel: compressed sparse columns.

    Doubly compressed, for in a group most pixels are zero in all images: a column is there only
    for a pixel that is nonzero in one of them. A group is one minibatch or several consecutive
    ones.

    groups: (n_groups + 1,) int64, group g has the columns groups[g] to groups[g+1] - 1; pixel:
    (columns,) uint16 or uint32, which, ascending; indptr: (columns + 1,) int64, column c has the
    entries indptr[c] to indptr[c+1] - 1; indices: (E,) uint16 or uint32, the image's number within
    the group; data: (E size,) as in CSR. pixel, indices and data have SPARE zeros more.

    The images of even pixels ascend and those of odd pixels descend, so consecutive columns revisit
    the same images while what belongs to these is still in the cache.
    """

    groups: np.ndarray
    pixel: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray


class Gram(NamedTuple):
    """The products of each image with images of its group: rows of the groups' Gram matrices.

    products: (n group_size,) floatX; products[i group_size + j] is the sum over pixels of image i
    times image j of its group. It is valid up to the last image of i's own minibatch; the rest is
    uninitialised.
    """

    products: np.ndarray


def to_csr(x, size=1):
    """Return the CSR of the images x (n, D), uint8 or floatX, in entries of ``size``."""
    n_images, n_features = x.shape
    indptr = np.zeros(n_images + 1, np.int64)
    _count(x, size, indptr[1:])
    np.cumsum(indptr, out=indptr)
    indices = np.zeros(indptr[-1] + SPARE, _index_type(n_features // size))
    data = np.zeros(indptr[-1] * size + SPARE, x.dtype)
    _fill(x, size, indptr, indices, data)
    return CSR(indptr, indices, data)


@njit(**options.CPU_INLINE)
def _is_nonzero(x, i, start, size):
    """Return whether one of the pixels start..start+size-1 of image i is not zero."""
    is_nonzero = False
    for d in range(start, start + size):
        is_nonzero |= x[i, d] != 0
    return is_nonzero


@njit(**options.CPU_ENTRY)  # on one thread: a parallel loop takes longer to compile than this
def _count(x, size, counts):
    """Overwrite counts (n,) with the number of entries of every image of x (n, D)."""
    n_images, n_features = x.shape
    for i in range(n_images):
        count = 0
        for p in range(n_features // size):
            count += _is_nonzero(x, i, p * size, size)
        counts[i] = count


@njit(**options.CPU_PARALLEL)
def _fill(x, size, indptr, indices, data):
    """Overwrite indices (E,) and data (E size,) with the entries of the images x (n, D)."""
    n_images, n_features = x.shape
    for task in prange(TASKS):
        for i in range(task * n_images // TASKS, (task + 1) * n_images // TASKS):
            at = indptr[i]
            for p in range(n_features // size):
                if _is_nonzero(x, i, p * size, size):
                    indices[at] = p
                    for d in range(size):
                        data[at * size + d] = x[i, p * size + d]
                    at += 1


def _index_type(n):
    """Return the smallest dtype here for numbers below n."""
    return np.uint16 if n <= 2**16 else np.uint32


def to_dcsc(by_image, group_size, n_positions, size=1):
    """Return the DCSC of ``by_image`` (CSR); the last group may be a smaller one.

    n_positions: how many pixels an image has, or patches of ``size`` pixels.
    """
    n_groups = -(-(len(by_image.indptr) - 1) // group_size)
    groups = np.zeros(n_groups + 1, np.int64)
    _count_columns(by_image, group_size, n_positions, groups[1:])
    np.cumsum(groups, out=groups)
    n_entries = by_image.indptr[-1] - by_image.indptr[0]
    by_pixel = DCSC(
        groups,
        np.zeros(groups[-1] + SPARE, _index_type(n_positions)),
        np.zeros(groups[-1] + 1, np.int64),
        np.zeros(n_entries + SPARE, _index_type(group_size)),
        np.zeros(n_entries * size + SPARE, by_image.data.dtype),
    )
    _fill_dcsc(by_image, group_size, n_positions, size, by_pixel)
    return by_pixel


@njit(**options.CPU_ENTRY)
def _count_columns(by_image, group_size, n_positions, counts):
    """Overwrite counts (n_groups,) with the number of columns of each group."""
    n_images = by_image.indptr.shape[0] - 1
    for group in range(counts.shape[0]):
        is_nonzero = np.zeros(n_positions, np.uint8)
        start = group * group_size
        stop = min(start + group_size, n_images)
        for entry in range(by_image.indptr[start], by_image.indptr[stop]):
            is_nonzero[by_image.indices[entry]] = 1
        counts[group] = np.count_nonzero(is_nonzero)


@njit(**options.CPU_PARALLEL)
def _fill_dcsc(by_image, group_size, n_positions, size, by_pixel):
    """Overwrite the arrays of ``by_pixel`` after groups."""
    for group in prange(by_pixel.groups.shape[0] - 1):
        _fill_group(np.int64(group), by_image, group_size, n_positions, size, by_pixel)


@njit(**options.CPU)
def _fill_group(group, by_image, group_size, n_positions, size, by_pixel):
    """Overwrite the columns of one group: count the entries of each pixel, then place them."""
    start = group * group_size
    stop = min(start + group_size, by_image.indptr.shape[0] - 1)
    count = np.zeros(n_positions, np.int64)
    for k in range(by_image.indptr[start], by_image.indptr[stop]):
        count[by_image.indices[k]] += 1
    column = by_pixel.groups[group]
    at = by_image.indptr[start] - by_image.indptr[0]
    next_entry = np.empty(n_positions, np.int64)
    for d in range(n_positions):
        next_entry[d] = at if d % 2 == 0 else at + count[d] - 1
        if count[d]:
            at += count[d]
            by_pixel.pixel[column] = d
            by_pixel.indptr[column + 1] = at
            column += 1
    for i in range(start, stop):
        for k in range(by_image.indptr[i], by_image.indptr[i + 1]):
            d = by_image.indices[k]
            to = next_entry[d]
            by_pixel.indices[to] = i - start
            for j in range(size):
                by_pixel.data[to * size + j] = by_image.data[k * size + j]
            next_entry[d] += 1 if d % 2 == 0 else -1


def to_gram(by_image, batch_size, group_size, n_positions, pixel_scale):
    """Return the Gram of ``by_image`` (CSR, no patches), in pixel_scale's type."""
    width = -(-n_positions // LANES) * LANES
    n_images = len(by_image.indptr) - 1
    images = aligned_zeros((group_size + AT_ONCE) * width, pixel_scale.dtype)
    products = np.zeros(n_images * group_size, pixel_scale.dtype)
    _fill_gram(by_image, batch_size, group_size, pixel_scale, width, images, products)
    return Gram(products)


@njit(**options.CPU_ENTRY)
def _fill_gram(by_image, batch_size, group_size, pixel_scale, width, images, products):
    """Overwrite ``products`` of Gram; images: for a group's, (group_size + AT_ONCE, width)."""
    n_images = by_image.indptr.shape[0] - 1
    for start in range(0, n_images, group_size):
        images[:] = 0
        for i in range(start, min(start + group_size, n_images)):
            for k in range(by_image.indptr[i], by_image.indptr[i + 1]):
                at = (i - start) * width + by_image.indices[k]
                images[at] = pixel_scale * by_image.data[k]
        for i in range(start, min(start + group_size, n_images)):
            n_products = (i // batch_size + 1) * batch_size - start
            for j in range(0, n_products, AT_ONCE):
                dots = _dot_rows(images, (i - start) * width, j * width, width)
                for q in range(min(AT_ONCE, n_products - j)):
                    products[i * group_size + j + q] = dots[q]


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
def share_of_columns(by_pixel, group, task, n_tasks):
    """Return (start, stop): a task's rows of a group, such that all have about as many entries.

    Rows belong to the task in whose share of the entries they begin.
    """
    first, last = by_pixel.groups[group], by_pixel.groups[group + 1]
    begins = by_pixel.indptr[first:last]
    before, n_entries = by_pixel.indptr[first], by_pixel.indptr[last] - by_pixel.indptr[first]
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
