"""Pixels: which axes are channels, on which scale the numbers are, how they are stored.

Nothing of that is guessed where a guess could change the numbers: what could be two things is
refused, or read as README says, with a warning.
"""

import itertools
import logging
import math
from typing import NamedTuple

import numpy as np

from msgd.data.dataset import BYTE_SCALE, SPLITS
from msgd.data.images import check_finite
from msgd.errors import UserError

log = logging.getLogger(__name__)

MAX_CHANNELS = 4  # red, green, blue, alpha
SMALLEST_ROW = 64  # 8 x 8 pixels: from here on a square number of pixels is taken for a row of them


def shape_without_channels(path, split, x):
    """Return the shape of an image of x, (N, ...): (D,) or (height, width), no axis of one channel.

    The number of axes decides. Two: rows of D pixels. Three: pictures, (N, height, width), however
    small: (N, 1, 28) is 28 pixels wide and (N, 3, 3) nine pixels. But a picture 784 pixels high
    and 1 to 4 wide is no picture: (N, 784, 3) and (N, 3, 784) are rows with channels. Four:
    pictures with a channel axis at the end or in front; where both have length 1, it is the last.
    Raises UserError for more than one channel and for further axes.
    """
    axes = x.shape[1:]
    if len(axes) == 2:
        channel_axis = _channel_axis_of_rows(axes)
        if channel_axis is None:
            return axes
    elif len(axes) == 3:
        channel_axis = next((axis for axis in (3, 1) if x.shape[axis] == 1), None)
    elif len(axes) < 2:
        return axes
    else:
        raise UserError(f"{path}: the {split} images have shape {x.shape}, more axes than {READ}")
    if channel_axis is not None and x.shape[channel_axis] == 1:
        return axes[: channel_axis - 1] + axes[channel_axis:]
    raise UserError(
        f"{path}: the {split} images have shape {x.shape}, more than one channel; read are {READ}. "
        + _how_to_make_grey(x, channel_axis)
    )


READ = "(N, D), (N, height, width), (N, height, width, 1) and (N, 1, height, width)"


def _channel_axis_of_rows(axes):
    """Return which axis of images (N, *axes), two axes, counts channels of rows, or None."""
    for channel_axis, row_axis in ((2, 1), (1, 2)):
        channels, pixels = axes[channel_axis - 1], axes[row_axis - 1]
        is_row = pixels >= SMALLEST_ROW and math.isqrt(pixels) ** 2 == pixels
        if is_row and channels <= MAX_CHANNELS:
            return channel_axis
    return None


def _how_to_make_grey(x, channel_axis):
    """Return the words that say how images x of several channels become grey ones."""
    if channel_axis is None:  # four axes: that of the channels is short, if only one is
        short = [axis for axis in (3, 1) if x.shape[axis] <= MAX_CHANNELS]
        channel_axis = short[0] if len(short) == 1 else None
    scale = f" / {BYTE_SCALE}" if x.dtype.kind in "iu" else ""
    if channel_axis is None:
        return f"Make them grey, for instance by x.mean(axis=...){scale} over the channels."
    last = channel_axis == x.ndim - 1
    axis = -1 if last else channel_axis
    colours = ("[..., :{}]" if last else "[:, :{}]").format(1 if x.shape[channel_axis] == 2 else 3)
    alpha = colours if x.shape[channel_axis] in (2, 4) else ""
    words = f"Make them grey, for instance by x{alpha}.mean(axis={axis}){scale}"
    if x.ndim == 3:
        return f"{words}; if they have no channels, x.reshape(len(x), -1) makes rows of them."
    return f"{words}."


def common_image_shape(path, images):
    """Return (height, width); every split of ``images`` must hold images of the same shape.

    images: dict of split -> Images, of shape (D,) or (height, width).
    """
    shapes = {split: x.shape for split, x in images.items()}
    if len(set(shapes.values())) != 1:
        listed = ", ".join(f"{split} {shape}" for split, shape in shapes.items())
        raise UserError(f"{path}: images of different shapes: {listed}")
    return picture_shape(shapes["train"])


def picture_shape(shape):
    """Return (height, width) of an image of ``shape``, (D,) or (height, width).

    D pixels are a square where that is possible, else one row.
    """
    if len(shape) == 2:
        return shape
    (n_features,) = shape
    side = math.isqrt(n_features)
    return (side, side) if side * side == n_features else (1, n_features)


class Storage(NamedTuple):
    """How pixels are stored: in which type, multiplied by what before, and what that means."""

    dtype: np.dtype
    factor: int
    meaning: str

    def stored(self, rows):
        """Return pixels ``rows`` (n, D) as they are stored."""
        scaled = rows if self.factor == 1 else rows * rows.dtype.type(self.factor)
        return scaled.astype(self.dtype)


def storage_of_pixels(path, images, float_x):
    """Return the Storage of all ``images``, a dict of split -> Images.

    float_x: "float32" or "float64". bool is stored as 0 and 1 in floatX; whole numbers are bytes, k
    for the pixel k/256; floats are taken as they are, and stored as bytes where all are k/256. Logs
    one warning where that may not be what is meant. Raises UserError for splits of different types
    or on different scales, and for numbers that floatX cannot hold.
    """
    _check_one_scale(path, images)
    low, high = (
        min(x.low.min() for x in images.values()),
        max(x.high.max() for x in images.values()),
    )
    kind = images["train"].dtype.kind
    if kind == "b":
        return Storage(np.dtype(float_x), 1, f"{float_x}, bool as 0 and 1")
    as_bytes = f"uint8, k stands for k/{BYTE_SCALE}"
    if kind in "iu":
        _warn_of_small_whole_numbers(path, high)
        meaning = f"whole numbers from {low} to {high} taken for bytes"
        return Storage(np.dtype(np.uint8), 1, f"{as_bytes}: {meaning}")
    if all(x.is_bytes.all() for x in images.values()):
        return Storage(np.dtype(np.uint8), BYTE_SCALE, as_bytes)
    _warn_of_large_floats(path, images["train"], low, high)
    for split, x in images.items():
        _check_held(path, split, x, float_x)
    return Storage(
        np.dtype(float_x), 1, f"{float_x}, from {low:.4g} to {high:.4g}, taken as they are"
    )


def _check_held(path, split, images, float_x):
    """Raise UserError, with the first place, if floatX cannot hold all pixels of ``images``."""
    first = 0
    with np.errstate(over="ignore"):
        if np.isfinite([f.astype(float_x) for f in (images.low, images.high)]).all():
            return
        for rows in images.rows():
            check_finite(path, f"{split} images, as {float_x},", rows.astype(float_x), first)
            first += len(rows)


# Pictures stored as bytes come near 255 somewhere: numbers that never pass half of that are
# likely on another scale, such as 0 and 1, or 0 to 16.
LARGEST_SMALL = BYTE_SCALE // 2 - 1


def _warn_of_small_whole_numbers(path, high):
    if 0 < high <= LARGEST_SMALL:
        log.warning(
            "%s: the images are whole numbers of at most %d. They are taken for bytes, k for the "
            "pixel k/%d, so no pixel is above %.3g. If %d is full brightness, store "
            "(images / %d).astype('float32')%s; if they are bytes, this warning means nothing.",
            *(path, high, BYTE_SCALE, high / BYTE_SCALE, high, high),
            ", or images.astype(bool)" if high == 1 else "",
        )


# Floats from 0 to 1, standardised ones, and those divided by their standard deviation lie below.
LARGEST_PEAK = 4  # of a typical image without negative pixels
LARGEST_RMS = 4  # of images with negative pixels; 1 if standardised, however far outliers are


def _warn_of_large_floats(path, x, low, high):
    """Warn if float Images x are far beyond the scale 0 to 1; low, high: of all splits."""
    if x.low.min() < 0:
        with np.errstate(over="ignore"):
            squares = x.squares.sum()
        is_large = np.sqrt(squares / (len(x) * x.n_features)) > LARGEST_RMS
    else:
        peaks = _peaks(x)
        is_large = len(peaks) > 0 and np.median(peaks) > LARGEST_PEAK
    if is_large:
        log.warning(
            "%s: the images are floats from %.4g to %.4g. They are taken as they are, but learning "
            "rates are made for pixels of about 0 to 1, and training will likely be poor. Store "
            "bytes as uint8, or divide the images by their greatest possible value.",
            *(path, low, high),
        )


# Where the images of one split are so many times as bright as those of another, the two are on
# different scales: 0 to 255 beside 0 to 1, or 0 to 16 beside 0 and 1.
SCALE_RATIO = 8
# That a split lies in a smaller range does not make it one of another scale: it may be small, or
# dark. So all images of one split but a few must differ from every image of another, and these
# must be so many that it is no chance: FEW**ENOUGH is 1 in 3 million.
FEW = 0.05
ENOUGH = 5


def _check_one_scale(path, images):
    """Raise UserError, naming both, if two splits are of different types or on different scales."""
    peaks = {split: _peaks(x) for split, x in images.items()}
    negative = {split: _share_with_negative_pixels(x) for split, x in images.items()}
    for a, b in itertools.combinations(SPLITS, 2):
        is_one_type = _type_of(images[a]) == _type_of(images[b])
        is_one_scale = not any(
            _is_far_brighter(peaks[s], peaks[t])
            or _is_standardised_alone(negative[s], negative[t], len(images[t]))
            for s, t in ((a, b), (b, a))
        )
        if is_one_type and is_one_scale:
            continue
        raise UserError(
            f"{path}: the {a} images are {_described(images[a])}, the {b} images "
            f"{_described(images[b])}; store all splits in one type and on one scale, for "
            "instance all as bytes (uint8) or all as floats from 0 to 1"
        )


def _is_far_brighter(peaks, others):
    """Return whether nearly all ``peaks`` of a split lie far beyond every one of another split."""
    if len(peaks) == 0 or len(others) < ENOUGH:
        return False
    return np.quantile(peaks, FEW) > SCALE_RATIO * others.max()


def _is_standardised_alone(share, other_share, n_others):
    """Return whether nearly all images have negative pixels and, of the other split, none has."""
    return share > 1 - FEW and other_share == 0 and n_others >= ENOUGH


def _type_of(x):
    return {"b": "bool", "f": "floats"}.get(x.dtype.kind, "whole numbers")


def _described(x):
    if x.dtype.kind == "b":
        return "bool"
    return f"{_type_of(x)} ({x.dtype}) from {x.low.min():.4g} to {x.high.max():.4g}"


def _peaks(x):
    """Return the largest magnitude in each image of Images x that is not all 0, as float64."""
    peaks = np.maximum(x.high.astype(np.float64), -x.low.astype(np.float64))
    return peaks[peaks > 0]


def _share_with_negative_pixels(x):
    return (x.low < 0).mean() if x.dtype.kind == "f" else 0.0
