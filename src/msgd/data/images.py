"""The images of a split: checked in one pass, and kept where they are, for they may be many."""

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from msgd.data.dataset import BYTE_SCALE
from msgd.data.pieces import StoredArray, pieces
from msgd.errors import UserError


@dataclass(frozen=True)
class Images:
    """N images out of an array that is read in pieces, and what the checks ask about each of them.

    They are N rows of ``array``, from row ``first`` on; shape: of one image, (D,) or (height,
    width). Arrays (N,): low and high, the smallest and the largest pixel, in the images' type;
    squares, the sum of the squared pixels, at least in float64, and is_bytes, whether every pixel
    is k/256, both of floats only, else zeros.
    """

    array: StoredArray | np.ndarray
    shape: tuple[int, ...]
    first: int
    low: np.ndarray
    high: np.ndarray
    squares: np.ndarray
    is_bytes: np.ndarray

    @property
    def dtype(self):
        """The type of the pixels as they are stored in the source."""
        return self.array.dtype

    @property
    def n_features(self):
        """D, the number of pixels of an image."""
        return int(np.prod(self.shape))

    def __len__(self):
        return len(self.low)

    def part(self, start, stop):
        """Return images ``start`` to ``stop``."""
        summaries = (self.low, self.high, self.squares, self.is_bytes)
        parts = (summary[start:stop] for summary in summaries)
        return Images(self.array, self.shape, self.first + start, *parts)

    def rows(self):
        """Yield the images in order, in arrays (n, D) in C order.

        The whole array is read, for a part of it too: a checksum at its end is verified by that.
        """
        at = 0
        for piece in pieces(self.array):
            ends = (self.first, self.first + len(self))
            start, stop = (min(max(end - at, 0), len(piece)) for end in ends)
            if start < stop:
                yield _rows(piece[start:stop])
            at += len(piece)


def _rows(piece):
    """Return images (n, ...) as (n, D), each in one row in C order."""
    return np.ascontiguousarray(piece.reshape(len(piece), -1))


def read_images(path, split, array, shape):
    """Return the images of ``array`` (N, ...), each of ``shape``, after a pass over all of them.

    Raises UserError for whole numbers that are no bytes, for a NaN and for an infinity.
    """
    summaries, first = [], 0
    with progress(f"checking {split} images", len(array)) as bar:
        for piece in pieces(array):
            if piece.dtype.kind == "f":
                check_finite(path, f"{split} images", piece.reshape(-1, *shape), first)
            summaries.append(_summaries(_rows(piece)))
            first += len(piece)
            bar.update(len(piece))
    columns = (np.concatenate(column) for column in zip(*summaries, strict=True))
    images = Images(array, shape, 0, *columns)
    if images.dtype.kind in "iu" and (images.low.min() < 0 or images.high.max() >= BYTE_SCALE):
        raise UserError(
            f"{path}: the {split} images are whole numbers from {images.low.min()} to "
            f"{images.high.max()}; "
            "whole numbers are bytes, 0 to 255, and k stands for the pixel k/256; "
            "store others as floats from 0 to 1, divided by their greatest possible value"
        )
    return images


def progress(title, total):
    """Return a bar that counts images, shown on a terminal if it takes more than a second."""
    return tqdm(desc=title, total=total, unit="image", disable=None, leave=False, delay=1)


def check_finite(path, name, array, first=0):
    """Raise UserError, with the first place, if ``array`` holds a NaN or an infinity.

    Its rows are those from ``first`` on of what is called ``name``.
    """
    finite = np.isfinite(array)
    if not finite.all():
        row, *others = (int(i) for i in np.argwhere(~finite)[0])
        value = array[(row, *others)]
        raise UserError(f"{path}: the {name} hold {value} at index {(first + row, *others)}")


def _summaries(x):
    """Return low, high, squares and is_bytes of images x (n, D); see Images."""
    low, high = x.min(axis=1), x.max(axis=1)
    if x.dtype.kind != "f":
        return low, high, np.zeros(len(x)), np.zeros(len(x), bool)
    with np.errstate(over="ignore"):
        squares = np.einsum("nd,nd->n", x, x, dtype=np.result_type(x, np.float64))
        scaled = x * x.dtype.type(BYTE_SCALE)
    is_bytes = (scaled >= 0) & (scaled < BYTE_SCALE) & (scaled == np.floor(scaled))
    return low, high, squares, is_bytes.all(axis=1)
