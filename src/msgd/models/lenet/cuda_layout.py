"""Sizes, limits and memory of LeNet's fast CUDA kernels: what the host prepares for them.

The kernels keep each parameter where the threads that read it lie side by side, some of them twice.
``Layout`` says where: every array is made by NumPy from the numbers of the parameters themselves,
so that a kernel can copy them in and out by a table.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import cuda

from msgd.kernels.cuda_conv import FILTER_AREA, FILTER_SIZE, MAPS, PATCH, ROW_WEIGHTS
from msgd.kernels.cuda_product import SHARED_FLOATS as PRODUCT_FLOATS
from msgd.kernels.cuda_wide_product import SHARED_FLOATS as WIDE_PRODUCT_FLOATS
from msgd.kernels.formulas import ACTIVATIONS
from msgd.models.lenet.model import conv_shapes, dense_sizes

THREADS = 320  # of a block: ten warps
WARPS = THREADS // 32
GROUP = 4  # images of a block
STRIP = 72  # numbers of PATCH rows below the second convolution, at most; registers of a thread
SHARED_BYTES = 48 * 1024
PREDICTED_TOGETHER = 5000  # images that pass through the layers at a time, in 175 MB
# Tensor cores, see cuda_tensor.py: of the filters' gradients, maps2 x 25 maps1, each of 8 warps has
# up to 7 tiles of 8 rows by 4 of 16 columns.
TENSOR_WEIGHTS = 8 * 4 * 16  # of those columns
TENSOR_MAPS1, TENSOR_MAPS2 = TENSOR_WEIGHTS // FILTER_AREA, 56
TENSOR_PADDING = 64  # numbers behind the errors of an image that may be read too
TENSOR_COLUMNS2, TENSOR_SQUARES2 = 4, 16
TENSOR_TILE = 8  # columns of a tile, and terms of a step


class Sizes(NamedTuple):
    """What the kernels are compiled for, all np.uint32.

    Padded sizes fill tiles of the matrix products. A square is one of max-pooling, and an output of
    the layer; a pair of them lies side by side.
    """

    width: int  # columns of an image
    pixels: int  # of an image
    maps1: int  # of the first convolution layer
    columns1: int  # of squares of one of its maps
    squares1: int  # of one of its maps
    maps2: int  # and of the second
    columns2: int
    squares2: int
    features: int  # inputs of the hidden layer: maps2 x squares2
    features_padded: int
    hidden: int  # units of the hidden layer
    hidden_padded: int
    classes: int
    batch: int  # images that pass through together
    batch_padded: int
    activation: int  # of ACTIVATIONS
    first_only: int  # 1: of tied maxima the first alone has an error
    tf32: int  # 1: tensor cores multiply, see cuda_tensor.py
    error_stride: int  # of the errors that they read: between places, numbers of maps
    error_plane: int  # and between planes of places

    @property
    def bundles(self):
        """Bundles of MAPS maps of either convolution layer, the last one perhaps not full."""
        return -(-int(self.maps1) // MAPS), -(-int(self.maps2) // MAPS)

    @property
    def groups(self):
        """Groups of images: each passes through the convolutions in one block."""
        return -(-int(self.batch) // GROUP)

    @property
    def partial(self):
        """Numbers of the convolution layers' gradients: two layers' weights and biases."""
        return (int(self.maps2) * int(self.maps1) + int(self.maps1)) * FILTER_AREA + int(
            self.maps2 + self.maps1
        )


def sizes_of(image_shape, settings, n_classes, batch, tf32=False):
    """Return the Sizes for images of (height, width), ``batch`` of which pass through together."""
    first, second = conv_shapes(image_shape, settings)
    features, hidden, _ = dense_sizes([first, second], settings, n_classes)
    numbers = {
        "width": image_shape[1],
        "pixels": math.prod(image_shape),
        "maps1": first.out_maps,
        "columns1": first.out_width,
        "squares1": first.out_height * first.out_width,
        "maps2": second.out_maps,
        "columns2": second.out_width,
        "squares2": second.out_height * second.out_width,
        "features": features,
        "features_padded": up(features, 64 if tf32 else 32),
        "hidden": hidden,
        "hidden_padded": up(hidden, 128 if tf32 else 64),
        "classes": n_classes,
        "batch": batch,
        "batch_padded": up(batch, 128 if tf32 else 64),
        "activation": ACTIVATIONS[settings["activation"]],
        "first_only": settings["maxpool_ties"] == "first",
        "tf32": tf32,
    }
    # Both so that what a warp reads at once lies in different banks of shared memory: an odd number
    # of times 8, and 4 more than the places take.
    tiles = -(-second.out_maps // TENSOR_TILE)
    numbers["error_stride"] = TENSOR_TILE * (tiles // 2 * 2 + 1)
    numbers["error_plane"] = numbers["squares2"] * numbers["error_stride"] + 4
    return Sizes(**{name: np.uint32(number) for name, number in numbers.items()})


def up(n, multiple):
    """Return the smallest number >= n that ``multiple`` divides."""
    return -(-n // multiple) * multiple


def why_plain(image_shape, settings, n_classes):
    """Return why the fast kernels cannot serve a network, or "" if they can.

    The limits of its layers; float32 and warps are asked for by the Backend.
    """
    n_hidden = settings["n_hidden"]
    one_hidden = not isinstance(n_hidden, list) or len(n_hidden) == 1
    layers = len(settings["nkerns"]), settings["filter_size"], settings["pool_size"]
    if layers != (2, FILTER_SIZE, 2) or not one_hidden:
        return "not two layers of 5 x 5 filters with pooling by 2 and one hidden layer"
    sizes = sizes_of(image_shape, settings, n_classes, GROUP)
    rows2 = int(sizes.squares2) // int(sizes.columns2)
    if sizes.width % 4 or sizes.columns1 % 4 or sizes.columns2 % 2:
        return f"images have {image_shape[1]} columns; allowed: 20 or 28"
    if PATCH * sizes.columns1 > STRIP or 2 * rows2 > WARPS:
        return f"images have {image_shape[0]} x {image_shape[1]} pixels; allowed: up to 35 rows"
    if sizes.maps1 > 32 or sizes.bundles[1] * sizes.squares2 * GROUP // 2 > THREADS:
        return f"nkerns is {settings['nkerns']}: more maps than a block has threads for"
    if sizes.squares1 > THREADS or 7 * MAPS * sizes.bundles[1] > 2 * THREADS:
        return f"nkerns is {settings['nkerns']}: more than a block has threads to load"
    if sizes.classes > WARPS:
        return f"there are {n_classes} classes; allowed: up to {WARPS}"
    return _why_too_much_shared(sizes)


def _why_too_much_shared(sizes):
    """Return that a block's shared memory is too small for networks of ``sizes``, or ""."""
    numbers, places = shared_sizes(sizes)
    used = 4 * (numbers + places + 2 * GROUP * int(sizes.classes) + 3)
    if used <= SHARED_BYTES:
        return ""
    return f"nkerns and n_hidden take {used} bytes of shared memory; allowed: {SHARED_BYTES}"


def why_not_tf32(image_shape, settings, n_classes):
    """Return why tensor cores cannot serve a network that the fast kernels can, or "" if they can.

    The limits of its layers; see cuda_tensor.py.
    """
    sizes = sizes_of(image_shape, settings, n_classes, GROUP, tf32=True)
    if sizes.columns2 != TENSOR_COLUMNS2 or sizes.squares2 > TENSOR_SQUARES2:
        height, width = image_shape
        return f"images have {height} x {width} pixels; allowed: up to 31 rows of 28"
    if sizes.maps1 > TENSOR_MAPS1 or sizes.maps2 > TENSOR_MAPS2:
        nkerns = settings["nkerns"]
        return f"nkerns is {nkerns}; allowed: up to {TENSOR_MAPS1} and {TENSOR_MAPS2} maps"
    return _why_too_much_shared(sizes)


def shared_sizes(sizes):
    """Return how many numbers and words of places the largest phases keep in shared memory."""
    s = Sizes(*map(int, sizes))
    row_weights, columns1 = int(ROW_WEIGHTS), s.columns1
    rows2 = s.squares2 // s.columns2
    map2 = s.maps1 * s.squares1
    of_a_tile = max(PRODUCT_FLOATS, WIDE_PRODUCT_FLOATS)
    numbers = max(
        of_a_tile,
        GROUP * s.pixels
        + FILTER_SIZE * s.bundles[0] * row_weights
        + 2 * MAPS * s.bundles[0] * (s.squares1 + 1),
        2 * (GROUP * s.squares1 + FILTER_SIZE * s.bundles[1] * row_weights),
        GROUP * s.hidden_padded,
        map2 + up(MAPS * s.bundles[1] * s.squares2, 4),
        2 * s.features_padded,
        2 * rows2 * PATCH * columns1 * s.maps1,
        GROUP * (s.pixels + s.squares1),
        (FILTER_AREA + 1) * THREADS,
    )
    if s.tf32:
        errors = 4 * s.error_plane + TENSOR_PADDING
        numbers = max(
            numbers,
            2 * (map2 + s.squares2 * s.maps2) + TENSOR_TILE,
            map2 + TENSOR_TILE + errors,
            2 * (errors + (rows2 + 4) * columns1 * s.maps1) + TENSOR_PADDING,
        )
    return numbers, TENSOR_WEIGHTS if s.tf32 else 2 * s.squares2 * s.bundles[1]


class Parameters(NamedTuple):
    """The parameters as the kernels read them: parts of one array, flat float32, padded with 0.

    A filter row for MAPS maps is 28 numbers: weight v of map m at 5 v + m. Filters are flipped.
    For tensor cores the second layer's lie by their tiles: see _forward_tiles, _backward_tiles.
    """

    filters1: object  # (5, bundles, 28)
    filters2: object  # (maps1, 5, bundles, 28)
    last_weights: object  # (classes, hidden_padded)
    weights: object  # (2, features_padded, hidden_padded): old and new by turns
    weights_by_unit: object  # (2, hidden_padded, features_padded): the same again
    filters2_by_map: object  # (maps2, 25, maps1): filters2 again
    filters2_exact: object  # of tensor cores alone, (maps2, 25, maps1): what they have in TF32
    bias1: object  # (MAPS x bundles,)
    bias2: object  # (MAPS x bundles,)
    hidden_bias: object  # (hidden_padded,)
    last_bias: object  # (classes,)


def numbers_of(sizes):
    """Return the numbers of the parameters, int32 in the shapes of the model; filters flipped.

    They are counted in the model's order.
    """
    s = Sizes(*map(int, sizes))
    shapes = (
        *((s.maps1, 1, 5, 5), (s.maps1,), (s.maps2, s.maps1, 5, 5), (s.maps2,)),
        *((s.features, s.hidden), (s.hidden,), (s.hidden, s.classes), (s.classes,)),
    )
    numbers, start = [], 0
    for shape in shapes:
        numbers.append(np.arange(start, start + math.prod(shape), dtype=np.int32).reshape(shape))
        start += math.prod(shape)
    for layer in (0, 2):
        numbers[layer] = numbers[layer][:, :, ::-1, ::-1]
    return numbers


def layout_of(sizes):
    """Return a Parameters of int32 arrays that hold, in each place, which parameter lies there.

    -1 is padding.
    """
    s = Sizes(*map(int, sizes))
    numbers = numbers_of(sizes)
    filters1, bias1, filters2, bias2, weights, hidden_bias, last_weights, last_bias = numbers
    weights = _padded(weights, (s.features_padded, s.hidden_padded))
    arrays = [
        _filter_rows(filters1),
        _forward_tiles(filters2) if s.tf32 else _filter_rows(filters2),
        _padded(last_weights.T, (s.classes, s.hidden_padded)),
        np.stack([weights, weights]),
        np.stack([weights.T, weights.T]),
        _backward_tiles(filters2) if s.tf32 else _by_map(filters2),
        _by_map(filters2) if s.tf32 else np.empty(0, np.int32),
        _padded(bias1, (MAPS * s.bundles[0],)),
        _padded(bias2, (MAPS * s.bundles[1],)),
        _padded(hidden_bias, (s.hidden_padded,)),
        last_bias,
    ]
    return Parameters(*arrays)


def _padded(array, shape):
    """Return ``array`` with -1 behind each axis, so that it has the ``shape``."""
    return np.pad(
        array,
        [(0, n - m) for n, m in zip(shape, array.shape, strict=True)],
        constant_values=-1,
    )


def _filter_rows(filters):
    """Return filters (M, M_in, 5, 5) as (M_in, 5, bundles, 28), see Parameters."""
    maps, maps_in = filters.shape[:2]
    bundles = -(-maps // MAPS)
    filters = _padded(filters, (bundles * MAPS, *filters.shape[1:]))
    rows = filters.reshape(bundles, MAPS, maps_in, FILTER_SIZE, FILTER_SIZE)
    rows = rows.transpose(2, 3, 0, 4, 1).reshape(maps_in, FILTER_SIZE, bundles, FILTER_AREA)
    return _padded(rows, (*rows.shape[:3], int(ROW_WEIGHTS)))


def _by_map(filters):
    """Return filters (M, M_in, 5, 5) as (M, 25, M_in)."""
    return filters.reshape(*filters.shape[:2], FILTER_AREA).transpose(0, 2, 1)


def _forward_tiles(filters):
    """Return filters (M, M_in, 5, 5) as a warp's lanes read them: (5, steps, M / 16, 32, 4).

    A step is eight terms of a filter row, of which there are 5 M_in: all maps of a column after
    each other. A lane gets its two numbers of each of two tiles of 8 maps.
    """
    maps, maps_in = filters.shape[:2]
    steps, pairs = -(-FILTER_SIZE * maps_in // 8), up(-(-maps // 16), 2)
    rows = filters.transpose(2, 3, 1, 0).reshape(FILTER_SIZE, FILTER_SIZE * maps_in, maps)
    rows = _padded(rows, (FILTER_SIZE, 8 * steps, 16 * pairs))
    # Of a term its step, half and q, of a map its pair, tile and g: see kernels/cuda_tensor_cores.
    parts = rows.reshape(FILTER_SIZE, steps, 2, 4, pairs, 2, 8)
    return parts.transpose(0, 1, 4, 6, 3, 5, 2).reshape(FILTER_SIZE, steps, pairs, 32, 4)


def _backward_tiles(filters):
    """Return filters (M, M_in, 5, 5) likewise, for errors: (M_in / 8, 5, M / 16, 5, 32, 4).

    A tile has 8 of M_in. Then come the column of a tap, the terms, which are 16 maps in two steps,
    and the row of a tap.
    """
    maps, maps_in = filters.shape[:2]
    pairs, tiles = -(-maps // 16), -(-maps_in // 8)
    taps = _padded(filters.transpose(3, 2, 0, 1), (FILTER_SIZE, FILTER_SIZE, 16 * pairs, 8 * tiles))
    parts = taps.reshape(FILTER_SIZE, FILTER_SIZE, pairs, 2, 2, 4, tiles, 8)
    parts = parts.transpose(6, 0, 2, 1, 7, 5, 3, 4)
    return parts.reshape(tiles, FILTER_SIZE, pairs, FILTER_SIZE, 32, 4)


class Tables(NamedTuple):
    """Device arrays by which kernels copy parameters; numbers of padding are -1."""

    source: object  # int32: of each number of the arranged ones, which parameter it is
    places: tuple  # two (parameters,) int32: where each lies, by which of the weights is the newer
    gradients: object  # (partial,) int32: where each parameter of the convolutions lies
    # (2, maps2 x 25 x maps1) int32: where each of filters2_exact lies in filters2 and by map.
    tiles: object


class Arranged(NamedTuple):
    """The parameters on the device as the kernels read them."""

    all: object  # flat float32, of which the parts are slices
    n_filters: int  # numbers of all before the hidden layer's weights
    parts: Parameters
    tables: Tables

    @classmethod
    def of(cls, sizes):
        """Return one with parameters of 0."""
        layout = layout_of(sizes)
        starts, end = [], 0
        for array in layout:
            starts.append(end)
            end += up(array.size, 64)  # 256 bytes, so that each can be read 16 bytes at once
        source = np.full(end, -1, np.int32)
        for start, array in zip(starts, layout, strict=True):
            source[start : start + array.size] = array.ravel()
        numbers = cuda.to_device(np.zeros(end, np.float32))
        slices = [slice(s, s + a.size) for s, a in zip(starts, layout, strict=True)]
        parts = Parameters(*(numbers[part] for part in slices))
        starts = Parameters(*starts)
        return cls(numbers, starts.weights, parts, _tables(sizes, starts, layout, source))


def _tables(sizes, starts, layout, source):
    """Return the Tables of a layout whose arrays start at ``starts`` in ``source``."""
    n_parameters = 1 + source.max()
    older = layout.weights[0].size
    exact = layout.filters2_exact.ravel()
    copies = ("weights", "weights_by_unit", "filters2_by_map", "filters2" if exact.size else "")
    places = []
    for newer in range(2):
        place = np.full(n_parameters, -1, np.int32)
        for name in layout._fields:
            if name not in copies:
                _place(place, getattr(starts, name), getattr(layout, name))
        _place(place, starts.weights + newer * older, layout.weights[0])
        places.append(place)
    filters1, bias1, filters2, bias2 = numbers_of(sizes)[:4]
    order = _by_map(filters2), bias2, filters1.reshape(-1, FILTER_AREA).T, bias1
    gradients = np.concatenate([places[0][array.ravel()] for array in order])
    tiles = np.full((2, n_parameters), -1, np.int32)
    _place(tiles[0], 0, layout.filters2)
    _place(tiles[1], 0, layout.filters2_by_map)
    tables = source, *places, gradients, tiles[:, exact]
    source, old, new, gradients, tiles = (
        cuda.to_device(np.ascontiguousarray(table)) for table in tables
    )
    return Tables(source, (old, new), gradients, tiles)


def _place(place, start, array):
    """Write to ``place`` where the parameters of an array of the layout lie."""
    at = np.flatnonzero(array.ravel() >= 0)
    place[array.ravel()[at]] = start + at


class Kept(NamedTuple):
    """What a layer passes to the next one, and what training needs of it later; flat float32."""

    h1: object  # (images, maps1, squares1); of tensor cores as the next one, in TF32
    h1_by_square: object  # (images, squares1, maps1): the same again
    places1: object  # (images, squares1, maps1) uint8: of maxima, see kernels/cuda_conv.py
    h2: object  # (batch_padded, features_padded)
    h2_by_unit: object  # (features_padded, batch_padded): the same again
    places2: object  # (images, squares2, bundles) uint32: map m of a bundle at bits 4 m to 4 m + 3
    hidden: object  # (batch_padded, hidden_padded)


class Errors(NamedTuple):
    """Derivatives of the cost by what goes into the activations, and gradients; flat float32."""

    last: object  # (batch_padded, classes)
    hidden: object  # (batch_padded, hidden_padded)
    hidden_by_unit: object  # (hidden_padded, batch_padded): the same again
    h2: object  # (batch_padded, features_padded)
    h1: object  # (images, squares1, maps1)
    partial: object  # (groups, partial): gradients of the convolutions from each group of images


def kept_of(sizes):
    """Return a Kept on the device; what is padding stays 0."""
    s = Sizes(*map(int, sizes))
    images = GROUP * s.groups
    first = images * s.maps1 * s.squares1
    return Kept(
        zeros(first),
        zeros(first),
        zeros(first, np.uint8),
        zeros(s.batch_padded * s.features_padded),
        zeros(s.features_padded * s.batch_padded),
        zeros(images * s.squares2 * s.bundles[1], np.uint32),
        zeros(s.batch_padded * s.hidden_padded),
    )


def errors_of(sizes):
    """Return an Errors on the device; what is padding stays 0."""
    s = Sizes(*map(int, sizes))
    return Errors(
        zeros(s.batch_padded * s.classes),
        zeros(s.batch_padded * s.hidden_padded),
        zeros(s.hidden_padded * s.batch_padded),
        zeros(s.batch_padded * s.features_padded),
        zeros(GROUP * s.groups * s.maps1 * s.squares1),
        zeros(s.groups * s.partial),
    )


def zeros(shape, dtype=np.float32):
    """Return a device array of zeros."""
    return cuda.to_device(np.zeros(shape, dtype))
