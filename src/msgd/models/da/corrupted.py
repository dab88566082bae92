"""The corrupted images of a minibatch, x~ = m * x, as lists of their nonzero pixels.

They are made for every minibatch from the lists of the images, which are made once, and its mask.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.sparse import CSR, DCSC, SPARE
from msgd.kernels.uniform import Position, draw_mask


class Masks(NamedTuple):
    """The masks of the minibatches of a training call, in their order."""

    share: np.floating  # 1 - corruption; where it is 1 nothing is drawn
    mask: np.ndarray  # flat (B, D) uint8, scratch
    position: Position  # of the random numbers of the next mask


class Corrupted(NamedTuple):
    """The nonzero pixels of x~, both ways."""

    by_image: CSR
    by_pixel: DCSC  # in one group


def new_corrupted(n_images, n_features, indices, float_x):
    """Return a Corrupted with room for n_images; indices: the dtypes of those of CSR and DCSC."""
    size = n_images * n_features + SPARE
    return Corrupted(
        CSR(np.zeros(n_images + 1, np.int64), np.zeros(size, indices[0]), np.zeros(size, float_x)),
        DCSC(
            np.zeros(2, np.int64),
            np.zeros(n_features + SPARE, indices[0]),
            np.zeros(n_features + 1, np.int64),
            np.zeros(size, indices[1]),
            np.zeros(size, float_x),
        ),
    )


@njit(**options.CPU)
def corrupt(minibatch, images, pixel_scale, masks, to):
    """Overwrite ``to``, a Corrupted, with those of a minibatch; draw its mask.

    minibatch: its number in the epoch; images: (by_image, by_pixel) of all training images, CSR and
    DCSC, of which a group is a minibatch; masks: (share, mask, position) of Masks, changed.
    """
    share, mask, position = masks
    if share < 1:
        draw_mask(position, (np.int64(0), mask.shape[0]), share, mask, np.int64(0))
    by_image, by_pixel = images
    n_images = to[0].indptr.shape[0] - 1
    _corrupt_images(minibatch * n_images, by_image, pixel_scale, mask, to[0])
    _corrupt_pixels(minibatch, by_pixel, pixel_scale, mask.reshape(n_images, -1), to[1])


@njit(**options.CPU)
def _corrupt_images(first, by_image, pixel_scale, mask, to):
    """Overwrite ``to``, a CSR, with the pixels of images from ``first`` on that the mask leaves."""
    at, n_images = 0, to.indptr.shape[0] - 1
    n_features = mask.shape[0] // n_images
    for i in range(n_images):
        for k in range(by_image.indptr[first + i], by_image.indptr[first + i + 1]):
            pixel = by_image.indices[k]
            to.indices[at], to.data[at] = pixel, pixel_scale * by_image.data[k]
            at += mask[i * n_features + pixel]
        to.indptr[i + 1] = at


@njit(**options.CPU)
def _corrupt_pixels(group, by_pixel, pixel_scale, mask, to):
    """Overwrite ``to``, a DCSC of one group, with what the mask leaves of a group of by_pixel."""
    at, column = 0, 0
    for given in range(by_pixel.groups[group], by_pixel.groups[group + 1]):
        pixel = by_pixel.pixel[given]
        for k in range(by_pixel.indptr[given], by_pixel.indptr[given + 1]):
            i = by_pixel.indices[k]
            to.indices[at], to.data[at] = i, pixel_scale * by_pixel.data[k]
            at += mask[i, pixel]
        if at > to.indptr[column]:
            to.pixel[column], to.indptr[column + 1] = pixel, at
            column += 1
    to.groups[1] = column
