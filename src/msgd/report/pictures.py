"""Images and weights as small PNG files inside the page, to be seen on light and dark alike.

They have no background of their own: where there is no ink, or a weight is 0, the page shows.
"""

import base64
import io

import numpy as np
from PIL import Image

LONGEST_SIDE = 64  # pixels; larger pictures are made smaller, so that the page stays small
LEVELS = 127  # of a weight, on either side of 0
# Of weights: visible on white and on black. They are the page's accent, and its cool counterpart.
POSITIVE, NEGATIVE = (224, 86, 32), (84, 122, 168)


def ink_picture(images):
    """Return PNG bytes of ``images`` one below the other, dark where a pixel is large.

    images: (n, height, width) floats between 0 and 1. What is not ink is transparent.
    """
    return ink_mosaic(images, 1)


def ink_mosaic(images, n_columns):
    """Return PNG bytes of ``images`` side by side, ``n_columns`` in a row, as ink_picture does.

    images: (n, height, width), n a multiple of n_columns.
    """
    tiles = [_padded(_at_most(image)) for image in images]
    rows = [tiles[start : start + n_columns] for start in range(0, len(tiles), n_columns)]
    shown = np.block(rows)
    alpha = np.rint(255 * np.clip(shown, 0, 1)).astype(np.uint8)
    return _png(Image.fromarray(np.stack([np.zeros_like(alpha), alpha], axis=2), "LA"))


def _padded(image):
    """Return ``image`` with a thin empty frame, so that pictures do not touch."""
    return np.pad(image, max(1, min(image.shape) // 14))


def weight_mosaic(images, limit, n_columns):
    """Return PNG bytes of weight ``images`` side by side, without gaps, ``n_columns`` in a row.

    images: (n, height, width) floats; a weight of ``limit`` or -limit has the full colour, one that
    is not finite none. Places left over at the end are empty.
    """
    finite = np.where(np.isfinite(images), images, 0.0) / limit
    tiles = [_at_most(image) for image in finite]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % n_columns)
    rows = [tiles[start : start + n_columns] for start in range(0, len(tiles), n_columns)]
    levels = np.rint(LEVELS * np.clip(np.block(rows), -1, 1)).astype(int) + LEVELS
    picture = Image.fromarray(levels.astype(np.uint8), "P")
    picture.putpalette(bytes(NEGATIVE * LEVELS + POSITIVE * (LEVELS + 1)))
    share = np.abs(np.arange(-LEVELS, LEVELS + 1)) / LEVELS
    return _png(picture, transparency=np.rint(255 * share**0.8).astype(np.uint8).tobytes())


def _at_most(image):
    """Return ``image`` (height, width), made smaller if a side is longer than LONGEST_SIDE."""
    if max(image.shape) <= LONGEST_SIDE:
        return image
    size = [max(1, round(side * LONGEST_SIDE / max(image.shape))) for side in image.shape[::-1]]
    picture = Image.fromarray(image.astype(np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BOX), np.float64)


def _png(picture, **options):
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True, **options)
    return stream.getvalue()


def data_uri(png):
    """Return PNG bytes as the address of a picture that travels inside the page."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
