"""A convolution layer with max-pooling on the CPU, cut into independent tasks.

The formulas, and the legend of letters, are those of ``models/lenet/model.py``; T are the images of
a tile. In the kernels, layer is a ConvLayer, and below and above are the Activations of its inputs
and of its units, in the order (row, column, map): so a row of a patch is one run of f M_in numbers.
is_maximum is an image's row of what new_marks returns. Filters are stored flipped, so that the true
convolution becomes a sum over the patch in order. A *square* is the p x p pixels that pooling
reduces to one unit, a *strip* the pixels of a row of squares::

    convolve_image    h_l from h_{l-1}: convolve, pool, activate    a task is a chunk of images
    backward_image    e_{l-1} from e_l                              the same
    image_gradient    dcost/dW_l and dcost/db_l                     the same
    update_filter     W_l and b_l                                   a task is a map

A tile's images are cut into CHUNKS, each of which has gradients of its own.
update_filter adds those gradients in order, so the bits do not depend on threads.

Max-pooling's gradient goes to one pixel in four (p = 2, no ties). So the way back walks over lists
of those pixels instead of multiplying zeros. The exception is the gradient of a layer whose patches
are short, such as the first: see _is_listed.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.cpu import element, ordered_sum, penalty, penalty_gradient, sgd_step
from msgd.kernels.dense_layer import activate_all, multiply_by_slope, padded
from msgd.kernels.products import (
    GROUP,
    THREE_VECTORS,
    TWO_VECTORS,
    Factor,
    Panel,
    add_product,
)
from msgd.kernels.vectors import (
    HALF,
    LANES,
    add,
    aligned_zeros,
    append_marked,
    fma_at,
    in_a_row,
    load_at,
    load_half,
    maximum,
    multiply,
    store,
    store_at,
    store_equal,
)

CHUNKS = 16  # of a tile's images
TAPS = 128  # of a patch whose weights are used together, so that they stay in the cache
VECTORS = 5  # of a patch whose sums stay in registers together, see _five


class ConvLayer(NamedTuple):
    """The sizes of a convolution layer, its parameters and its gradients.

    A *tap* is one of the f run numbers of a patch. Weights that only fill up a row to ``width`` or
    ``padded_run`` are 0.
    """

    maps: int  # M
    width: int  # maps rounded up to whole vectors of HALF, two at least
    filter_size: int  # f
    run: int  # numbers of a patch's row: f M_in
    padded_run: int  # run rounded up to whole vectors of LANES
    input_row: int  # numbers of a row of the input: w M_in
    pool_size: int  # p
    out_height: int
    out_width: int
    first_only: bool  # of tied maxima only the first gets the gradient
    is_listed: bool  # the weights' gradient goes over lists of pixels, see _is_listed
    # Where patches start in an image of the input, int64:
    patch: np.ndarray  # (n_pixels,) for all pixels of a map, square by square
    strip_patch: np.ndarray  # (p^2 out_width, filled up to GROUP) for a row of squares
    # Where the numbers of a patch are from its start, int64:
    tap: np.ndarray  # (f run, filled up to GROUP)
    vector_tap: np.ndarray  # (f padded_run / LANES,) the first of each vector
    # floatX:
    forward_weights: np.ndarray  # flat (f run, width): a row for each tap
    backward_weights: np.ndarray  # flat (M, f, padded_run): a row for each row of a filter
    bias: np.ndarray  # (width,)
    # The gradients of each chunk: as backward_weights if is_listed, else (len(tap), width). Zeros
    # between minibatches, but for taps and maps that only fill up vectors, which mean nothing.
    weights_gradient: np.ndarray  # (CHUNKS, numbers of such a gradient)
    bias_gradient: np.ndarray  # (CHUNKS, width)


# In NumPy: run once per Backend, or per snapshot.


def new_conv_layer(shape, first_only, float_x):
    """Return a ConvLayer whose parameters are all 0. shape: msgd.models.lenet.model.ConvShape."""
    in_maps, _, in_width, maps, f, p = shape
    run, width, input_row = f * in_maps, max(padded(maps, HALF), LANES), in_width * in_maps
    # (out_height, out_width, p, p): where the patch of each pixel starts, square by square
    row, column, i, j = np.ogrid[: shape.out_height, : shape.out_width, :p, :p]
    patch = (row * p + i) * input_row + (column * p + j) * in_maps
    tap_rows = np.arange(f)[:, None] * input_row
    tap = _filled_up((tap_rows + np.arange(run)).ravel())
    is_listed = _is_listed(shape, run, width)
    n_weights = maps * f * padded(run)
    n_gradients = n_weights if is_listed else len(tap) * width
    return ConvLayer(
        maps=maps,
        width=width,
        filter_size=f,
        run=run,
        padded_run=padded(run),
        input_row=input_row,
        pool_size=p,
        out_height=shape.out_height,
        out_width=shape.out_width,
        first_only=first_only,
        is_listed=is_listed,
        patch=patch.ravel(),
        strip_patch=_filled_up(patch[0].ravel()),
        tap=tap,
        vector_tap=(tap_rows + np.arange(0, padded(run), LANES)).ravel(),
        forward_weights=aligned_zeros(f * run * width, float_x),
        backward_weights=aligned_zeros(n_weights, float_x),
        bias=aligned_zeros(width, float_x),
        weights_gradient=aligned_zeros(CHUNKS * n_gradients, float_x).reshape(CHUNKS, -1),
        bias_gradient=aligned_zeros(CHUNKS * width, float_x).reshape(CHUNKS, -1),
    )


def new_marks(layer, n_images):
    """Return is_maximum of a ConvLayer for tiles of up to n_images.

    That is (n_images, n_pixels M + HALF) uint8, which says where gradients go, pixel by pixel in
    the order of ``patch``. A row ends with padding, because vectors reach beyond the last map.
    """
    n_marks = len(layer.patch) * layer.maps + HALF
    return aligned_zeros(n_images * n_marks, np.uint8).reshape(n_images, n_marks)


def set_filters(layer, filters, bias):
    """Copy filters (M, M_in, f, f), as they are published, and bias (M,) into ``layer``."""
    f = layer.filter_size
    patches = filters[:, :, ::-1, ::-1].transpose(0, 2, 3, 1)  # (M, f, f, M_in)
    rows = layer.backward_weights.reshape(layer.maps, f, layer.padded_run)
    rows[:, :, : layer.run] = patches.reshape(layer.maps, f, layer.run)
    forward = layer.forward_weights.reshape(f * layer.run, layer.width)
    forward[:, : layer.maps] = patches.reshape(layer.maps, -1).T
    layer.bias[: layer.maps] = bias


def get_filters(layer):
    """Return copies of the layer's filters (M, M_in, f, f) and bias (M,)."""
    f = layer.filter_size
    rows = layer.backward_weights.reshape(layer.maps, f, layer.padded_run)[:, :, : layer.run]
    patches = rows.reshape(layer.maps, f, f, -1)
    filters = patches[:, ::-1, ::-1].transpose(0, 3, 1, 2).copy()  # of 1x1 filters it is a view
    return filters, layer.bias[: layer.maps].copy()


def maps_first(weights, layer):
    """Return weights (n_in, n_out) of the dense layer above with rows in order (map, row, column).

    The kernels have them in the order of ``layer``'s units, (row, column, map).
    """
    cube = weights.reshape(layer.out_height, layer.out_width, layer.maps, -1)
    return cube.transpose(2, 0, 1, 3).reshape(weights.shape)


def maps_last(weights, layer):
    """Return weights (n_in, n_out) with rows in order (row, column, map): undo maps_first."""
    cube = weights.reshape(layer.maps, layer.out_height, layer.out_width, -1)
    return cube.transpose(1, 2, 0, 3).reshape(weights.shape)


def _filled_up(offsets):
    """Return ``offsets`` with the last one repeated up to whole groups."""
    return np.pad(offsets, (0, -len(offsets) % GROUP), mode="edge")


def _is_listed(shape, run, width):
    """Return whether the gradient of a layer's weights goes over lists of pixels.

    The gradient of a maximum goes to one pixel of a square. Products over all pixels multiply p^2
    times as much, but waste fewer lanes of their vectors, and building the lists costs as much as
    using them. ``shape``: a ConvShape.
    """
    pixels = shape.pool_size**2
    return pixels * run * width > 2 * shape.out_maps * padded(run)


# Forward.


@njit(**options.CPU)
def convolve_image(layer, is_maximum, below, above, i):
    """Overwrite above.h and is_maximum of image i, a strip at a time: a row of squares."""
    strip = _new_strip(layer)
    row_length = layer.out_width * layer.maps
    for row in range(layer.out_height):
        strip[:] = 0
        start = i * below.stride + row * layer.pool_size * layer.input_row
        taps = layer.tap[: layer.filter_size * layer.run]
        patches = Factor(below.h, start, layer.strip_patch, taps)
        _add_maps(patches, layer.strip_patch.shape[0], layer.forward_weights, strip, layer.width)
        _pool(layer, is_maximum, above, i, row, strip)
        at = i * above.stride + row * row_length
        activate_all(above.h[at : at + row_length], above.kind)


@njit(**options.CPU)
def _new_strip(layer):
    """Return zeros for the pixels of a row of squares, flat (len(strip_patch), width)."""
    return aligned_zeros(layer.strip_patch.shape[0] * layer.width, layer.bias.dtype)


@njit(**options.CPU)
def _add_maps(left, n_rows, right, out, width):
    """Add left (n_rows, n_terms) times right (n_terms, width) to out (n_rows, width).

    left: Factor whose columns are a list; right, out: flat. The maps are cut into panels of three
    vectors, whose sums and weights fill the registers best, or two where the width is not a
    multiple of three.
    """
    n_terms = left.column.shape[0]
    unit = 0
    while unit < width:
        n_left = (width - unit) // HALF
        n_vectors = 2 if n_left in (2, 4) else 3
        for begin in range(0, n_terms, TAPS):
            column = left.column[begin : min(begin + TAPS, n_terms)]
            some = Factor(left.array, left.start, left.row, column)
            panel = Panel(right, begin * width + unit, width)
            to = Panel(out, unit, width)
            if n_vectors == 3:
                add_product(some, n_rows, column.shape[0], panel, to, THREE_VECTORS)
            else:
                add_product(some, n_rows, column.shape[0], panel, to, TWO_VECTORS)
        unit += n_vectors * HALF


@njit(**options.CPU)
def _pool(layer, is_maximum, above, i, row, strip):
    """Overwrite above.h with maximum + bias of every square of a row, image i, from its strip.

    is_maximum, of the image, is overwritten with 1 where the gradient goes. The last vector of a
    square's or a pixel's maps reaches into the first maps of the next. So squares and pixels run
    forward and maps backward, and each overhanging store is overwritten by the right values.
    """
    per_square = layer.pool_size * layer.pool_size
    for column in range(layer.out_width):
        square = row * layer.out_width + column
        to = square * per_square * layer.maps
        for m in range((layer.maps - 1) // HALF * HALF, -1, -HALF):
            first = column * per_square * layer.width + m
            highest = load_half(strip, strip, first)
            for k in range(1, per_square):
                highest = maximum(highest, load_half(strip, strip, first + k * layer.width))
            for k in range(per_square):
                here = load_half(strip, strip, first + k * layer.width)
                store_equal(is_maximum, to + k * layer.maps + m, here, highest)
            at = i * above.stride + square * layer.maps + m
            store(above.h, at, add(highest, load_half(strip, layer.bias, m)))
        if layer.first_only:
            _keep_first(is_maximum[to : to + per_square * layer.maps], layer.maps)


@njit(**options.CPU)
def _keep_first(is_maximum, maps):
    """Clear all marks of a map but the first; is_maximum: (p^2 M,) of a square."""
    for m in range(maps):
        found = 0
        for k in range(m, is_maximum.shape[0], maps):
            is_maximum[k] &= found == 0
            found |= is_maximum[k]


# Backward.


@njit(**options.CPU)
def backward_image(layer, is_maximum, below, above, i):
    """Overwrite below.error of image i."""
    n_pixels = layer.patch.shape[0]
    list_map = np.empty(n_pixels * layer.maps + 8, np.int64)  # 8 more, see append_marked
    list_start = np.empty(n_pixels + 1, np.int64)
    first, last = i * below.stride, (i + 1) * below.stride
    below.error[first:last] = 0
    _list_maps(is_maximum, layer.maps, list_map, list_start)
    n_vectors = layer.vector_tap.shape[0]
    whole = n_vectors // VECTORS * VECTORS
    for v in range(0, whole, VECTORS):
        taps = _five(layer.vector_tap, v)
        _spread(layer, below, above, i, v, taps, list_map, list_start)
    for v in range(whole, n_vectors):
        taps = (layer.vector_tap[v],)
        _spread(layer, below, above, i, v, taps, list_map, list_start)
    multiply_by_slope(below.error[first:last], below.h[first:last], below.kind)


@njit(**options.CPU)
def _list_maps(is_maximum, maps, list_map, list_start):
    """List the maps that get a gradient, pixel by pixel.

    list_map: overwritten with their numbers; those of pixel k are at list_start[k] up to, not with,
    list_start[k + 1].
    """
    count = 0
    for k in range(list_start.shape[0] - 1):
        list_start[k] = count
        for m in range(0, maps, 8):
            count = append_marked(is_maximum, k * maps + m, min(maps - m, 8), m, list_map, count)
    list_start[list_start.shape[0] - 1] = count


@njit(**options.CPU)
def _five(offsets, v):
    """Return five offsets from the list as a tuple, from number v on."""
    return offsets[v], offsets[v + 1], offsets[v + 2], offsets[v + 3], offsets[v + 4]


@njit(**options.CPU)
def _spread(layer, below, above, i, v, taps, list_map, list_start):
    """Add every listed map's error times its weights to some vectors of the patch it came from.

    taps: vector_tap of the vectors v, v + 1, ..., a tuple; image i of below.error is changed.
    Vectors are stored in the order of the patch: one may reach into the next, to which it then adds
    zeros.
    """
    per_square, length = layer.pool_size * layer.pool_size, layer.filter_size * layer.padded_run
    for pixel in range(layer.patch.shape[0]):
        unit = i * above.stride + pixel // per_square * layer.maps
        at = i * below.stride + layer.patch[pixel]
        sums = load_at(below.error, at, taps)
        for k in range(list_start[pixel], list_start[pixel + 1]):
            m = element(list_map, k)
            weights = m * length + v * LANES
            error = element(above.error, unit + m)
            sums = fma_at(error, layer.backward_weights, weights, in_a_row(taps), sums)
        store_at(below.error, at, taps, sums)


# Gradient.


@njit(**options.CPU)
def image_gradient(layer, is_maximum, below, above, i, chunk):
    """Add image i's gradients to those of its chunk."""
    _add_bias_gradient(layer, above, i, layer.bias_gradient[chunk])
    weights_gradient = layer.weights_gradient[chunk]
    if layer.is_listed:
        list_patch = np.empty(layer.patch.shape[0], np.int64)
        list_error = np.empty(layer.patch.shape[0], layer.bias.dtype)
        for m in range(layer.maps):
            count = _list_pixels(layer, is_maximum, above, i, m, list_patch, list_error)
            listed = list_patch[:count], list_error[:count]
            to = m * layer.filter_size * layer.padded_run
            _add_patches(below.h, i * below.stride, layer.vector_tap, listed, weights_gradient, to)
        return
    strip = _new_strip(layer)
    n_pixels = layer.out_width * layer.pool_size * layer.pool_size
    for row in range(layer.out_height):
        _unpool(layer, is_maximum, above, i, row, strip)
        start = i * below.stride + row * layer.pool_size * layer.input_row
        patches = Factor(below.h, start, layer.tap, layer.strip_patch[:n_pixels])  # transposed
        _add_maps(patches, layer.tap.shape[0], strip, weights_gradient, layer.width)


@njit(**options.CPU)
def _add_bias_gradient(layer, above, i, bias_gradient):
    """Add the errors of all squares of image i to bias_gradient (width,), map by map."""
    for m in range(0, layer.maps, HALF):
        total = load_half(above.error, above.error, i * above.stride + m)
        for square in range(1, layer.out_height * layer.out_width):
            at = i * above.stride + square * layer.maps + m
            total = add(total, load_half(above.error, above.error, at))
        store(bias_gradient, m, add(load_half(bias_gradient, bias_gradient, m), total))


@njit(**options.CPU)
def _unpool(layer, is_maximum, above, i, row, strip):
    """Overwrite the strip of a row of squares, image i, with the error of its pixels."""
    per_square, maps = layer.pool_size * layer.pool_size, layer.maps
    for column in range(layer.out_width):
        square = row * layer.out_width + column
        for k in range(per_square):
            to = (column * per_square + k) * layer.width
            for m in range(0, maps, HALF):
                mark = load_half(strip, is_maximum, (square * per_square + k) * maps + m)
                error = load_half(strip, above.error, i * above.stride + square * maps + m)
                store(strip, to + m, multiply(mark, error))


@njit(**options.CPU)
def _list_pixels(layer, is_maximum, above, i, m, list_patch, list_error):
    """List the pixels of map m that get a gradient; return how many.

    list_patch, list_error: overwritten with where their patches start and with their errors.
    """
    per_square = layer.pool_size * layer.pool_size
    count = 0
    for square in range(layer.out_height * layer.out_width):
        error = element(above.error, i * above.stride + square * layer.maps + m)
        for k in range(square * per_square, (square + 1) * per_square):
            list_patch[np.uint64(count)] = layer.patch[k]
            list_error[np.uint64(count)] = error
            count += element(is_maximum, k * layer.maps + m)
    return count


@njit(**options.CPU)
def _add_patches(x, start, vector_tap, listed, gradient, to):
    """Add to a map's gradient the sum of the listed errors times their patches of x.

    x, start: h of the layer below and where the image starts in it; listed: (patches, errors);
    gradient[to : + f padded_run] is changed.
    """
    n_vectors = vector_tap.shape[0]
    whole = n_vectors // VECTORS * VECTORS
    for v in range(0, whole, VECTORS):
        _add_vectors(x, start, _five(vector_tap, v), listed, gradient, to + v * LANES)
    for v in range(whole, n_vectors):
        _add_vectors(x, start, (vector_tap[v],), listed, gradient, to + v * LANES)


@njit(**options.CPU)
def _add_vectors(x, start, taps, listed, gradient, to):
    """Do what _add_patches does for some vectors of the patches, taps: where in the patch."""
    patches, errors = listed
    sums = load_at(gradient, to, in_a_row(taps))
    for k in range(patches.shape[0]):
        sums = fma_at(element(errors, k), x, start + element(patches, k), taps, sums)
    store_at(gradient, to, in_a_row(taps), sums)


# Update.


@njit(**options.CPU)
def update_filter(layer, descent, m):
    """Update map m's filter and bias, set their gradients to 0; return the filter's old penalty.

    descent: msgd.kernels.arguments.Descent.
    """
    total = layer.bias.dtype.type(0)
    for i in range(layer.filter_size):
        row = (m * layer.filter_size + i) * layer.padded_run
        for k in range(layer.run):
            weight = layer.backward_weights[row + k]
            total += penalty(weight, descent)
            forward = (i * layer.run + k) * layer.width + m
            at = row + k if layer.is_listed else forward
            gradient = ordered_sum(layer.weights_gradient[:, at])
            layer.weights_gradient[:, at] = 0
            weight = sgd_step(weight, gradient + penalty_gradient(weight, descent), descent)
            layer.backward_weights[row + k] = weight
            layer.forward_weights[forward] = weight
    bias_gradient = ordered_sum(layer.bias_gradient[:, m])
    layer.bias[m] = sgd_step(layer.bias[m], bias_gradient, descent)
    layer.bias_gradient[:, m] = 0
    return total
