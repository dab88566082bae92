"""A picture from elsewhere (photograph, scan, drawing) brought to the form of a model's images.

MNIST's digits were made so: each was scaled, its proportions kept, until its larger side had the 20
pixels of a box, with grey levels by antialiasing, and put into 28 x 28 pixels with its centre of
mass in the middle. Here the same is done to the digit of a picture, which must be found first:

1. ``read_grey``: brightness, upright, at most WORKING_SIDE pixels a side
2. ``sheet_of``: the sheet of paper alone, laid straight, if other things show around it
3. ``ink_of``: what stands out from the ground (paper under uneven light), darker or lighter
4. ``digit_of``: the ink that hangs together, without specks and what comes in from the edge
5. ``placed``: that scaled into the box and centred

A picture that has the model's own size already may need none of it: ``stored_image`` decides.
"""

import warnings
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

from msgd.errors import UserError, shown

# The kinds of files that are read; of others Pillow would hand some to another program (EPS).
KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
STRIP_PIXELS = 2**22  # of a large picture, at a time
MOST_OBLONG = 100  # of a picture's longer side, the shorter one
WORKING_SIDE = 800  # pixels; a larger picture is reduced: noise is averaged, and time saved
# MNIST's box and image; other sizes have a box in proportion.
BOX, SIDE = 20, 28
SMALLEST_SIDE = 4  # a model's image with fewer pixels a side is no picture


def read_grey(path):
    """Return the brightness of the picture ``path``, (height, width) float64, 0 black to 1 white.

    It stands as its EXIF orientation says. What is transparent gets the ground, white or black,
    that differs more from what is not. Raises UserError if there is no picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        _refuse_special(Path(path))
        with warnings.catch_warnings():  # of odd but readable files nothing is said
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=KINDS) as image:
                if max(image.size) > MOST_OBLONG * min(image.size):
                    width, height = image.size
                    raise UserError(f"it is {width} x {height} pixels, too long for its width")
                image.draft("L", (2 * WORKING_SIDE, 2 * WORKING_SIDE))  # of JPEG: much faster
                ImageOps.exif_transpose(image, in_place=True)
                return _reduced(image)
    except UnidentifiedImageError as error:
        raise UserError("it is no image of a kind that is read (PNG, JPEG, ...)") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError("it has too many pixels; make it smaller") from error
    except OSError as error:
        raise UserError(f"it cannot be read: {shown(error.strerror or str(error))}") from error
    except (ValueError, SyntaxError, EOFError, IndexError, MemoryError) as error:
        raise UserError(f"it is damaged: {shown(str(error))}") from error


def _refuse_special(path):
    """Raise UserError for a pipe or a device, which may be waited for, or read, without end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError("it is no file")


def _reduced(image):
    """Return the brightness of a Pillow image, reduced to WORKING_SIDE pixels a side if larger.

    It is taken strip by strip: as float64 a large picture would take gigabytes.
    """
    from PIL import Image

    factor = -(-max(image.size) // WORKING_SIDE)
    brightness = _brightness_of(image, factor)
    if factor == 1:
        return brightness(image)
    strips = (
        Image.fromarray(brightness(strip).astype(np.float32)).reduce(factor)
        for strip in _strips(image, factor)
    )
    return np.concatenate([np.asarray(strip, np.float64) for strip in strips])


def _strips(image, factor):
    """Yield a Pillow image in strips of whole rows, their number a multiple of ``factor``."""
    width, height = image.size
    step = factor * max(1, STRIP_PIXELS // (factor * width))
    if step >= height:
        yield image
        return
    for top in range(0, height, step):
        yield image.crop((0, top, width, min(top + step, height)))


def _brightness_of(image, factor):
    """Return the function by which a Pillow image, or a strip of it, becomes float64 from 0 to 1.

    What depends on all of the image is found here.
    """
    if image.has_transparency_data:
        pairs = map(_grey_and_alpha, _strips(image, factor))
        light, opaque = np.sum([((grey * alpha).sum(), alpha.sum()) for grey, alpha in pairs], 0)
        ground = 0 if light > opaque / 2 else 1

        def on_ground(part):
            grey, alpha = _grey_and_alpha(part)
            return grey * alpha + (1 - alpha) * ground

        return on_ground
    if image.mode.startswith("I;16"):
        return lambda part: np.asarray(part, np.float64) / 65535
    if image.mode in ("I", "F"):  # on a scale of its own
        ends = [(pixels.min(), pixels.max()) for pixels in map(_numbers, _strips(image, factor))]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        return lambda part: (_numbers(part) - low) / (high - low or 1)
    return lambda part: np.asarray(part.convert("L"), np.float64) / 255


def _grey_and_alpha(part):
    return [np.asarray(band, np.float64) / 255 for band in part.convert("LA").split()]


def _numbers(part):
    return np.nan_to_num(np.asarray(part, np.float64))


BLANK = "it is blank: nothing stands out from its ground"
# A picture is blank if less stands out: of the noise's standard deviation, of the range from black
# to white, and of the picture's larger side.
LEAST_CONTRAST = 6
LEAST_RANGE = 0.04
LEAST_EXTENT = 0.015
# Ink on a larger share of the picture than this: cut out closely, with its ground at the edges.
CLOSE_SHARE = 0.2
CLEARLY_TWO = 0.8  # separation of ink and ground; see _parted
# Shares that a sheet of paper has at least, of the rectangle around it and of the picture, and of
# the rectangle's longer side the shorter one. No digit is so much of a rectangle but a straight 1,
# which is slimmer: with its hole filled, a printed 0 has up to 0.845.
LEAST_SHEET, LEAST_OF_PICTURE, SLIMMEST_SHEET = 0.85, 0.25, 0.5
STRAIGHT = 1.0  # degrees; by less no picture is turned
# Of the largest piece of ink, in pixels: a smaller one is a speck.
SPECK = 0.05
FULL = 0.75  # share of the inked pixels with less ink than a full stroke
EDGE = 0.5  # of full ink, where a stroke ends


def sheet_of(grey):
    """Return ``grey`` (height, width), cut down to the sheet of paper in it, if one is seen.

    A sheet is nearly a rectangle, of another brightness than most of the picture's edges. If it
    lies askew, the picture is turned until it lies straight, by less than 45 degrees.
    """
    smooth = _smoothed(grey)
    threshold, separation = _parted(smooth)
    is_light = smooth > threshold
    labels, boxes = _labelled(is_light != (_edges(is_light).mean() > 0.5))
    if separation <= CLEARLY_TWO or not boxes:
        return grey
    bare = labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1
    sheet = ndimage.binary_fill_holes(bare)
    # First what also tells that its pixels span an area, for a rectangle around them.
    is_narrow = min(side.stop - side.start for side in _box_of(sheet)) < SMALLEST_SIDE
    if is_narrow or sheet.sum() <= LEAST_OF_PICTURE * grey.size:
        return grey
    degrees, sides = _rectangle_around(sheet)
    is_sheet = (
        sheet.sum() > LEAST_SHEET * np.prod(sides)
        and min(sides) > SLIMMEST_SHEET * max(sides)
        and bare.sum() > (1 - CLOSE_SHARE) * sheet.sum()  # no frame
    )
    if not is_sheet:
        return grey
    if abs(degrees) > STRAIGHT:
        grey = ndimage.rotate(grey, degrees, order=1, mode="nearest")
        sheet = ndimage.rotate(sheet, degrees, order=0)
    return grey[_box_of(sheet)]


def _rectangle_around(mask):
    """Return (degrees, sides): of the smallest rectangle around the pixels of ``mask``.

    degrees: by which a picture must be turned for the rectangle to stand straight, from -45 to 45;
    sides: two lengths in pixels. One of its sides runs along a side of the convex hull.
    """
    points = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    corners = points[ConvexHull(points).vertices]
    rows, columns = np.diff(corners, axis=0, append=corners[:1]).T
    angles = np.arctan2(rows, columns) % (np.pi / 2)
    axes = np.stack([np.cos(angles), np.sin(angles), -np.sin(angles), np.cos(angles)], axis=-1)
    sides = np.ptp(axes.reshape(-1, 2, 2) @ corners[:, ::-1].T, axis=-1) + 1  # (angles, 2)
    best = np.argmin(sides.prod(axis=-1))
    degrees = np.degrees(angles[best])
    return degrees - 90 * (degrees > 45), sides[best]


def ink_of(grey):
    """Return (ink, noise): how much ink is on each pixel, (height, width) float64, 0 on the ground.

    grey: brightness, same shape. Ink is a difference of brightness; noise is the standard deviation
    of that of the ground.
    """
    smooth = _smoothed(grey)
    threshold, separation = _parted(smooth)
    is_light = smooth > threshold
    if separation > CLEARLY_TWO and CLOSE_SHARE < is_light.mean() < 1 - CLOSE_SHARE:
        sign = 1 if _edges(is_light).mean() < 0.5 else -1
        difference = smooth - np.median(smooth[is_light == (sign < 0)])
    else:  # ink covers less than the ground: its side has the longer tail
        difference = smooth - _surface(smooth)
        sign = 1 if (difference**3).sum() > 0 else -1
    # Ink is all on one side, so the other one is ground alone.
    other = difference[sign * difference <= 0]
    noise = 1.4826 * np.median(np.abs(other)) if other.size else 0.0
    return np.clip(sign * difference, 0, None), noise


def _smoothed(grey):
    return ndimage.gaussian_filter(grey, max(grey.shape) / WORKING_SIDE)


def _edges(image):
    """Return the pixels on the four edges of ``image`` (height, width)."""
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


def _parted(values):
    """Return (threshold, separation): where ``values`` are best parted in two, and how well.

    Otsu's criterion: the separation is the variance between the two parts, as a share of the whole;
    that of Gaussian noise is 2/pi.
    """
    counts, bounds = np.histogram(values, 128)
    middles = (bounds[1:] + bounds[:-1]) / 2
    n, mean = counts.sum(), np.average(middles, weights=counts)
    below = np.cumsum(counts)[:-1]
    sums = np.cumsum(counts * (middles - mean))[:-1]
    between = sums**2 / (below * (n - below))
    best = np.argmax(between)
    whole = np.average((middles - mean) ** 2, weights=counts)
    return bounds[1:-1][best], between[best] / whole if whole else 0.0


def _surface(grey):
    """Return a quadratic surface, the ground under ``grey`` (height, width), of the same shape.

    It is fitted to a grid of points by least absolute deviations, which ink on a small part of the
    picture hardly moves.
    """
    rows, columns = (_grid(n) for n in grey.shape)
    points = grey[np.ix_(rows, columns)].ravel()
    terms = _terms(rows, columns, grey.shape).reshape(6, -1)
    weights = np.ones(len(points))
    for _ in range(30):  # reweighted least squares
        weighted = terms * weights
        normal = np.einsum("ik,jk->ij", weighted, terms)
        coefficients = np.linalg.lstsq(normal, weighted @ points, rcond=None)[0]
        weights = 1 / np.maximum(np.abs(points - coefficients @ terms), 1e-3)
    every_row, every_column = map(np.arange, grey.shape)
    return np.tensordot(coefficients, _terms(every_row, every_column, grey.shape), 1)


def _grid(n, most=40):
    """Return at most ``most`` indices below ``n``, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def _terms(rows, columns, shape):
    """Return the terms of a quadratic surface, (6, len(rows), len(columns)), from -1 to 1."""
    scaled = (2 * i / max(1, n - 1) - 1 for i, n in zip((rows, columns), shape, strict=True))
    y, x = np.meshgrid(*scaled, indexing="ij")
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y])


def digit_of(ink, noise):
    """Return the digit alone, cut out of ``ink`` and scaled from 0 to 1 (full ink).

    ink, noise: as ink_of returns them. Raises UserError if there is none.
    """
    pieces = _without_edges(ink > max(LEAST_CONTRAST * noise, LEAST_RANGE))
    if not _is_large_enough(pieces):
        raise UserError(BLANK)
    full = np.quantile(ink[pieces], FULL)
    strokes = _without_specks(_without_edges(pieces & (ink > EDGE * full)))
    around = ndimage.binary_dilation(strokes, iterations=2) & pieces
    box = _box_of(strokes)
    return np.clip(ink / full, 0, 1)[box] * around[box]


def _box_of(mask):
    """Return the slices of the rows and columns that ``mask``, not empty, lies in."""
    return ndimage.find_objects(mask.astype(np.uint8))[0]


EIGHT = np.ones((3, 3), bool)  # diagonal neighbours touch


def _is_large_enough(pieces):
    _, boxes = _labelled(pieces)
    return any(_extent(box) >= max(3, LEAST_EXTENT * max(pieces.shape)) for box in boxes)


def _labelled(mask):
    labels, _ = ndimage.label(mask, EIGHT)
    return labels, ndimage.find_objects(labels)


def _extent(box):
    return max(side.stop - side.start for side in box)


def _without_edges(mask):
    """Return ``mask`` without the pieces that reach the picture's edge: shadows, frames, a desk.

    If no piece of some size is left, the digit itself reaches the edge, and all stay.
    """
    labels, boxes = _labelled(mask)
    inside = [
        number
        for number, box in enumerate(boxes, start=1)
        if all(s.start > 0 and s.stop < n for s, n in zip(box, mask.shape, strict=True))
    ]
    least = max(8, 0.04 * max(mask.shape))
    if not any(_extent(boxes[number - 1]) >= least for number in inside):
        return mask
    return np.isin(labels, inside)


def _without_specks(mask):
    labels, _ = _labelled(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return (sizes >= SPECK * sizes.max())[labels] & mask


def placed(digit, image_shape):
    """Return ``digit`` in an image of ``image_shape``, as MNIST's are, float64 from 0 to 1.

    digit: (height, width) from 0 to 1. It is scaled, proportions kept, to fill a box of 20/28 of
    the image's height and width, whichever it reaches first, and its centre of mass is put in the
    middle of the image.
    """
    from PIL import Image

    box = [max(1, round(side * BOX / SIDE)) for side in image_shape]
    scale = min(b / n for b, n in zip(box, digit.shape, strict=True))
    height, width = (max(1, round(n * scale)) for n in digit.shape)
    small = Image.fromarray(digit.astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    small = np.clip(np.asarray(small, np.float64), 0, None)
    small /= small.max()
    image = np.zeros(image_shape)
    corner = [
        int(np.clip(round(n / 2 - c), 0, n - s))
        for n, c, s in zip(image_shape, ndimage.center_of_mass(small), small.shape, strict=True)
    ]
    rows, columns = (slice(c, c + s) for c, s in zip(corner, small.shape, strict=True))
    image[rows, columns] = small
    return image


def stored_image(grey, model):
    """Return an image as ``model`` (ModelFile) takes it: (height, width) of its stored pixels.

    grey: brightness as read_grey returns it. A picture of the model's own size is taken as it is,
    if the data were MNIST only where its digit has MNIST's size and place, else made light on dark.
    Raises UserError if the picture is blank, or the model's images too narrow for any other.
    """
    if np.ptp(grey) < LEAST_RANGE:
        raise UserError(BLANK)
    ground, full = model.pixels["background"], model.pixels["ink"]
    if grey.shape == model.image_shape and not model.is_mnist:
        dark, light = sorted((ground, full))
        image = dark + grey * (light - dark)
    else:
        image = ground + _ink_in_place(grey, model) * (full - ground)
    if model.pixel_type == np.uint8:
        image = np.rint(image)
    return image.astype(model.pixel_type)


def _ink_in_place(grey, model):
    """Return ink from 0 to 1, of the model's image shape, the digit in MNIST's size and place."""
    if grey.shape == model.image_shape:
        light = grey if np.median(_edges(grey)) < 0.5 else 1 - grey
        if _is_placed(light):
            return light
    if min(model.image_shape) < SMALLEST_SIDE:
        height, width = model.image_shape
        raise UserError(f"it has not the size of the model's images, {height} x {width} pixels")
    return placed(digit_of(*ink_of(sheet_of(grey))), model.image_shape)


def _is_placed(ink):
    """Return whether ``ink`` (height, width), 0 to 1, is a digit as MNIST has them.

    That is on a ground of 0, as large as its box, with its centre of mass in the middle.
    """
    strokes = ink > EDGE / 2
    if np.median(_edges(ink)) > LEAST_RANGE or not strokes.any():
        return False
    rows, columns = (np.flatnonzero(strokes.any(axis=axis)) for axis in (1, 0))
    shares = [np.ptp(i) + 1 for i in (rows, columns)] / (np.array(ink.shape) * BOX / SIDE)
    centre = np.array(ndimage.center_of_mass(ink)) - np.array(ink.shape) / 2
    return abs(shares.max() - 1) < 0.11 and np.abs(centre).max() < 1.1
