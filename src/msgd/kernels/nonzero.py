"""The nonzero pixels of images, listed once: four fifths of MNIST's pixels are zero.

Leaving out products with zero changes no sum, and the lists are the same in every epoch, for
minibatches are never shuffled. A forward pass goes through them image by image, a gradient pixel by
pixel.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.cpu import element
from msgd.kernels.simd import add, fma, load, splat

TASKS = 64  # parts that the images are cut into


class NonzeroPixels(NamedTuple):
    """The nonzero pixels of n images, image after image.

    first: (n + 1,) int64, image i has the entries first[i] to first[i+1] - 1; position: (E,) uint16
    or uint32, which pixel; value: (E,) uint8 or floatX, as stored, in ascending order of position.
    """

    first: np.ndarray
    position: np.ndarray
    value: np.ndarray

    def rows(self, start, stop):
        """Return the lists of images start..stop-1, without copying."""
        return NonzeroPixels(self.first[start : stop + 1], self.position, self.value)


class LitImages(NamedTuple):
    """The images of each minibatch in which a pixel is not zero, pixel after pixel.

    first: (M D + 1,) int64, pixel d of minibatch m has the entries first[m D + d] to
    first[m D + d + 1] - 1; image: uint16 or uint32, its number within the minibatch, ascending;
    value: as in NonzeroPixels.
    """

    first: np.ndarray
    image: np.ndarray
    value: np.ndarray


def list_nonzero(x):
    """Return the NonzeroPixels of the images x (n, D), uint8 or floatX."""
    n_images, n_features = x.shape
    first = np.zeros(n_images + 1, np.int64)
    _count(x, first[1:])
    np.cumsum(first, out=first)
    position = np.empty(first[-1], np.uint16 if n_features <= 2**16 else np.uint32)
    value = np.empty(first[-1], x.dtype)
    _fill(x, first, position, value)
    return NonzeroPixels(first, position, value)


@njit(**options.CPU_PARALLEL)
def _count(x, counts):
    """Overwrite counts (n,) with the number of nonzero pixels of every image of x (n, D)."""
    n_images, n_features = x.shape
    for task in prange(TASKS):
        for i in range(task * n_images // TASKS, (task + 1) * n_images // TASKS):
            count = 0
            for d in range(n_features):
                count += x[i, d] != 0
            counts[i] = count


@njit(**options.CPU_PARALLEL)
def _fill(x, first, position, value):
    """Overwrite position and value (E,) with the entries of the images x (n, D)."""
    n_images, n_features = x.shape
    for task in prange(TASKS):
        for i in range(task * n_images // TASKS, (task + 1) * n_images // TASKS):
            at = first[i]
            for d in range(n_features):
                pixel = x[i, d]
                if pixel != 0:
                    position[at] = d
                    value[at] = pixel
                    at += 1


def list_lit(pixels, batch_size, n_features):
    """Return the LitImages of the minibatches that ``pixels`` (NonzeroPixels) make, no tail."""
    n_minibatches = (len(pixels.first) - 1) // batch_size
    first = np.zeros(n_minibatches * n_features + 1, np.int64)
    n_entries = pixels.first[n_minibatches * batch_size] - pixels.first[0]
    image = np.empty(n_entries, np.uint16 if batch_size <= 2**16 else np.uint32)
    value = np.empty(n_entries, pixels.value.dtype)
    _transpose(pixels, batch_size, n_features, first, image, value)
    return LitImages(first, image, value)


@njit(**options.CPU_PARALLEL)
def _transpose(pixels, batch_size, n_features, first, image, value):
    """Overwrite the arrays of LitImages; first is zeros (M D + 1,)."""
    for minibatch in prange((first.shape[0] - 1) // n_features):
        start = minibatch * batch_size
        row = minibatch * n_features
        next_entry = np.zeros(n_features, np.int64)
        for entry in range(pixels.first[start], pixels.first[start + batch_size]):
            next_entry[pixels.position[entry]] += 1
        at = pixels.first[start] - pixels.first[0]
        for d in range(n_features):
            count = next_entry[d]
            next_entry[d] = at
            at += count
            first[row + d + 1] = at
        for i in range(batch_size):
            for entry in range(pixels.first[start + i], pixels.first[start + i + 1]):
                d = pixels.position[entry]
                image[next_entry[d]] = i
                value[next_entry[d]] = pixels.value[entry]
                next_entry[d] += 1


@njit(**options.CPU_INLINE)
def scale(stored, first, count, pixel_scale, value):
    """Overwrite value[:count] with the pixels stored[first : first + count] as floatX."""
    for k in range(count):
        value[k] = element(stored, first + k) * pixel_scale


@njit(**options.CPU_INLINE)
def weighted_rows(row, first, count, value, array, width, column):
    """Return the vector sum_k value[k] array[row[first + k], column : column + LANES], k < count.

    array: flat, its rows ``width`` long. Entries of even and of odd number are summed apart, so
    that one sum need not wait for the other.
    """
    even = odd = splat(array, 0)
    for k in range(0, count - 1, 2):
        at = element(row, first + k) * width + column
        even = fma(element(value, k), load(array, at), even)
        at = element(row, first + k + 1) * width + column
        odd = fma(element(value, k + 1), load(array, at), odd)
    if count % 2:
        at = element(row, first + count - 1) * width + column
        even = fma(element(value, count - 1), load(array, at), even)
    return add(even, odd)
