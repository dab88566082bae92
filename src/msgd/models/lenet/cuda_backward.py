"""The phases of LeNet's fast CUDA kernels through which errors pass backward, and updates.

As in ``cuda_forward.py``. An error is the derivative of the cost by what goes into an activation.
"""

from typing import NamedTuple

import numpy as np
from numba import cuda, float32, uint8, uint32, uint64

from msgd.kernels.cuda import (
    INLINE,
    Images,
    activation_slope,
    has_penalty,
    penalty,
    penalty_gradient,
    sgd_step,
    softmax_cross_entropy,
)
from msgd.kernels.cuda_conv import (
    FILTER_AREA,
    MAPS,
    PATCH,
    gather_gradient,
    of_warp,
    spread_error,
)
from msgd.kernels.cuda_product import (
    SUM_STRIDE,
    TILE_COLUMNS,
    TILE_ROWS,
    Factors,
    multiply_tile,
    tile_sum,
)
from msgd.kernels.cuda_sums import LANES, sum_over_lanes
from msgd.kernels.cuda_tensor_cores import to_tf32
from msgd.kernels.cuda_vectors import store4
from msgd.kernels.cuda_wide_product import (
    WIDE_COLUMNS,
    WIDE_ROWS,
    WIDE_STRIDE,
    multiply_wide_tile,
)
from msgd.models.lenet.cuda_forward import (
    AHEAD,
    FOUR,
    GROUP,
    IMAGE_GROUP,
    N_AHEAD,
    N_MAPS,
    N_TAPS,
    ONE,
    STEP,
    THREADS,
    TWO,
    ZERO,
    copy,
    copy_words,
    here_of,
    images_of,
    load_pixels,
)
from msgd.models.lenet.cuda_layout import GROUP as GROUP_IMAGES
from msgd.models.lenet.cuda_layout import STRIP
from msgd.models.lenet.cuda_layout import THREADS as BLOCK_THREADS
from msgd.models.lenet.cuda_tensor import conv2_gradient_tensors

AREA, N_PATCH = np.uint32(FILTER_AREA), np.uint32(PATCH)
OWN_GRADIENT, PATCH_AREA = MAPS * FILTER_AREA, PATCH * PATCH
N_OWN_GRADIENT = np.uint32(OWN_GRADIENT)
STRIP_SQUARES = (STRIP // PATCH - FILTER_AREA // 5 + 1) // 2  # of a row, at most
WARPS = np.uint32(BLOCK_THREADS // 32)
PARTS = np.uint32(8)  # of the images, in sums over a minibatch
# Terms of a sum that a thread reads before it adds the first: see AHEAD.
EIGHT, GROUPS = 8, 25
N_EIGHT, N_GROUPS = np.uint32(EIGHT), np.uint32(GROUPS)
TOGETHER = 7  # numbers of a tile that a thread reads before it writes the first
N_TOGETHER = np.uint32(TOGETHER)
TERMS = np.uint32(16)  # of a thread in a chunk of penalties
CHUNK = TERMS * THREADS


class Training(NamedTuple):
    """The images of a span of minibatches, and what is noted of them."""

    x: object  # flat uint8 or float32, pixels of all training images
    y: object  # (N,) int32
    pixel_scale: float  # float32, what a stored pixel is multiplied by
    minibatch: int  # number of the first one
    inverse_size: float  # 1/B, float32
    example_nll: object  # (N,) float32, of the minibatches overwritten
    penalties: object  # (minibatches or more, chunks) float32, overwritten if there are any


class Network(NamedTuple):
    """All arrays of training."""

    arranged: object  # flat float32, all parameters
    gradients: object  # (partial,) int32, see conv_update_phase
    tiles: object  # (2, ...) int32, see there; of tensor cores alone
    parameters: object  # Parameters
    kept: object  # Kept
    errors: object  # Errors


@cuda.jit(device=True, **INLINE)
def images_of_step(training, sizes, shared):
    """Return the Images of the minibatch that the block is at."""
    first = uint32((uint32(training.minibatch) + shared.state[STEP]) * sizes.batch)
    return Images(training.x, first, sizes.batch, training.pixel_scale)


@cuda.jit(device=True, **INLINE)
def updated(weight, gradient, descent):
    """Return a weight after a step; gradient: without the penalties'."""
    if has_penalty(descent):
        gradient += penalty_gradient(weight, descent)
    return sgd_step(weight, gradient, descent)


@cuda.jit(device=True, **INLINE)
def loss_phase(training, group, sizes, network, here, shared):
    """Overwrite errors.last, hidden and hidden_by_unit of a group of images, and example_nll.

    training: Training; network: Network. After logits_phase, which leaves logits and hidden in
    shared memory. One thread per image, then one per hidden unit.
    """
    first, image = group * GROUP, here.t
    if image < images_of(group, sizes.batch):
        example = images_of_step(training, sizes, shared).start + first + image
        training.example_nll[example] = softmax_cross_entropy(
            shared.logits[image], training.y[example], training.inverse_size, shared.errors[image]
        )
    elif image < GROUP:
        for c in range(sizes.classes):
            shared.errors[image, c] = float32(0)
    cuda.syncthreads()
    i = here.t
    if i < GROUP * sizes.classes:
        error = shared.errors[uint32(i // sizes.classes), uint32(i % sizes.classes)]
        network.errors.last[first * sizes.classes + i] = error
    unit = here.t
    while unit < sizes.hidden:
        _hidden_error(first, unit, sizes, network, shared)
        unit = uint32(unit + THREADS)


@cuda.jit(device=True, **INLINE)
def _hidden_error(first, unit, sizes, network, shared):
    """Write the errors of a hidden unit for the GROUP images from number ``first`` on."""
    error = cuda.local.array(GROUP_IMAGES, float32)
    errors = network.errors
    for image in range(GROUP):
        error[image] = float32(0)
    for c in range(sizes.classes):
        weight = network.parameters.last_weights[c * sizes.hidden_padded + unit]
        for image in range(GROUP):
            error[image] += shared.errors[image, c] * weight
    for image in range(GROUP):
        h = shared.numbers[image * sizes.hidden_padded + unit]
        error[image] *= activation_slope(h, sizes.activation)
        errors.hidden[(first + image) * sizes.hidden_padded + unit] = error[image]
    words = error[0], error[1], error[2], error[3]
    store4(errors.hidden_by_unit, unit * sizes.batch_padded + first, words)


@cuda.jit(device=True, **INLINE)
def last_update_phase(descent, sizes, network, here, shared):
    """Update the last weights, and the biases of both dense layers.

    A block owns four hidden units, the last one the last bias too. A sum over the minibatch has
    eight parts, each of a thread.
    """
    numbers, errors, parameters = shared.numbers, network.errors, network.parameters
    in_part = FOUR * sizes.classes
    part, q = uint32(here.t // in_part), uint32(here.t % in_part)
    of_unit, c = uint32(q // sizes.classes), uint32(q % sizes.classes)
    biases = PARTS * in_part  # where the parts of the biases' sums begin
    quad = here.block
    while quad * FOUR < sizes.hidden:
        unit = quad * FOUR + of_unit
        cuda.syncthreads()
        if part < PARTS:
            numbers[here.t] = _sum_products(part, unit, c, sizes, network)
        if here.t < PARTS * FOUR:
            first = here.t // FOUR * sizes.hidden_padded + quad * FOUR + here.t % FOUR
            numbers[biases + here.t] = _sum_rows(errors.hidden, first, sizes.hidden_padded, sizes)
        cuda.syncthreads()
        if part == ZERO and unit < sizes.hidden:
            at = c * sizes.hidden_padded + unit
            gradient = _add_parts(numbers, here.t, in_part)
            weight = parameters.last_weights[at]
            parameters.last_weights[at] = updated(weight, gradient, descent)
        unit = quad * FOUR + here.t
        if here.t < FOUR and unit < sizes.hidden:
            gradient = _add_parts(numbers, biases + here.t, FOUR)
            bias = parameters.hidden_bias[unit]
            parameters.hidden_bias[unit] = sgd_step(bias, gradient, descent)
        quad = uint32(quad + here.blocks)
    if here.block == here.blocks - ONE:
        _update_last_bias(descent, sizes, network, here, shared)


@cuda.jit(device=True, **INLINE)
def _update_last_bias(descent, sizes, network, here, shared):
    """Update the last bias, by one block."""
    numbers, bias, n_classes = shared.numbers, network.parameters.last_bias, sizes.classes
    cuda.syncthreads()
    if here.t < PARTS * n_classes:
        numbers[here.t] = _sum_rows(network.errors.last, uint64(here.t), n_classes, sizes)
    cuda.syncthreads()
    if here.t < n_classes:
        gradient = _add_parts(numbers, here.t, n_classes)
        bias[here.t] = sgd_step(bias[here.t], gradient, descent)


@cuda.jit(device=True, **INLINE)
def _sum_products(part, unit, c, sizes, network):
    """Return a part's sum of hidden x error of the last layer, for a unit and a class."""
    kept, errors = network.kept, network.errors
    h = uint64(part * sizes.hidden_padded + unit)
    error = uint64(part * sizes.classes + c)
    units, products = cuda.local.array(EIGHT, float32), cuda.local.array(EIGHT, float32)
    total = float32(0)
    for i in range(sizes.batch_padded // (N_EIGHT * PARTS)):
        for j in range(N_EIGHT):
            at = (i * N_EIGHT + j) * PARTS
            units[j] = kept.hidden[h + at * sizes.hidden_padded]
            products[j] = errors.last[error + at * sizes.classes]
        for j in range(N_EIGHT):
            total += units[j] * products[j]
    return total


@cuda.jit(device=True, **INLINE)
def _sum_rows(array, first, stride, sizes):
    """Return the sum of every PARTS-th row's number from array[first] on; stride: of the rows."""
    numbers = cuda.local.array(EIGHT, float32)
    total = float32(0)
    for i in range(sizes.batch_padded // (N_EIGHT * PARTS)):
        for j in range(N_EIGHT):
            numbers[j] = array[first + (i * N_EIGHT + j) * (PARTS * stride)]
        for j in range(N_EIGHT):
            total += numbers[j]
    return total


@cuda.jit(device=True, **INLINE)
def _add_parts(numbers, first, stride):
    """Return the sum of PARTS numbers, in their order."""
    total = numbers[first]
    for part in range(ONE, PARTS):
        total += numbers[first + part * stride]
    return total


@cuda.jit(device=True, **INLINE)
def _tile_shape(sizes):
    """Return the rows and columns of a tile of hidden_backward_phase."""
    if sizes.tf32:
        return WIDE_ROWS, WIDE_COLUMNS
    return TILE_ROWS, TILE_COLUMNS


@cuda.jit(device=True, **INLINE)
def _multiply(factors, n_terms, sizes, here, numbers):
    """Multiply a tile of n_terms terms; _sum_of returns its sums. factors: Factors."""
    if sizes.tf32:
        multiply_wide_tile(factors, n_terms, here.t, numbers)
    else:
        multiply_tile(factors, n_terms // FOUR, here.t, ZERO, numbers)


@cuda.jit(device=True, **INLINE)
def _sum_of(numbers, m, n, sizes):
    """Return the sum in row m and column n of a tile."""
    return numbers[m * WIDE_STRIDE + n] if sizes.tf32 else tile_sum(numbers, m, n)


@cuda.jit(device=True, **INLINE)
def hidden_backward_phase(newer, descent, sizes, network, here, shared):
    """Overwrite errors.h2, and the older of the hidden layer's weights with the next ones.

    Tiles of two products are numbered one after the other: errors (images x features), then
    gradients (units x features), which are at once subtracted. The last blocks take the first
    tiles: if some get one more than others, it is those that had no part in last_update_phase.
    """
    rows, columns = _tile_shape(sizes)
    parameters, in_row = network.parameters, sizes.features_padded // columns
    n_errors = sizes.batch_padded // rows * in_row
    first = newer * sizes.hidden_padded * sizes.features_padded
    tile = uint32(here.blocks - ONE - here.block)
    while tile < n_errors:
        row, column = uint32(tile // in_row) * rows, uint32(tile % in_row) * columns
        factors = Factors(
            network.errors.hidden_by_unit,
            uint64(row),
            sizes.batch_padded,
            parameters.weights_by_unit,
            uint64(first + column),
            sizes.features_padded,
        )
        _multiply(factors, sizes.hidden_padded, sizes, here, shared.numbers)
        _finish_error_tile(row, column, sizes, network, here, shared.numbers)
        tile = uint32(tile + here.blocks)
    while tile < n_errors + sizes.hidden_padded // rows * in_row:
        number = uint32(tile - n_errors)
        row, column = uint32(number // in_row) * rows, uint32(number % in_row) * columns
        factors = Factors(
            network.errors.hidden,
            uint64(row),
            sizes.hidden_padded,
            network.kept.h2,
            uint64(column),
            sizes.features_padded,
        )
        _multiply(factors, sizes.batch_padded, sizes, here, shared.numbers)
        _finish_gradient_tile(row, column, newer, descent, sizes, parameters, here, shared.numbers)
        tile = uint32(tile + here.blocks)


@cuda.jit(device=True, **INLINE)
def _finish_error_tile(row, column, sizes, network, here, numbers):
    """Write the errors of a tile of images and features; those of padding are 0."""
    h = cuda.local.array(TOGETHER, float32)
    rows, columns = _tile_shape(sizes)
    first = row * sizes.features_padded + column
    i = here.t
    while i < rows * columns:
        for j in range(N_TOGETHER):
            at = min(uint32(i + j * THREADS), uint32(rows * columns - ONE))
            h[j] = network.kept.h2[first + at // columns * sizes.features_padded + at % columns]
        for j in range(N_TOGETHER):
            m, n = i // columns, i % columns
            if m < rows:
                slope = activation_slope(h[j], sizes.activation)
                error = _sum_of(numbers, m, n, sizes) * slope
                network.errors.h2[first + m * sizes.features_padded + n] = error
            i = uint32(i + THREADS)


@cuda.jit(device=True, **INLINE)
def _finish_gradient_tile(row, column, newer, descent, sizes, parameters, here, numbers):
    """Update the weights of a tile of units and features; write both copies of the next ones."""
    weights = cuda.local.array(TOGETHER, float32)
    rows, columns = _tile_shape(sizes)
    together = N_TOGETHER if sizes.tf32 else ONE  # more, and the registers of float32 run out
    stride = WIDE_STRIDE if sizes.tf32 else SUM_STRIDE
    size, first = sizes.hidden_padded * sizes.features_padded, row * sizes.features_padded + column
    now, then = newer * size + first, (ONE - newer) * size
    by_unit, by_feature = parameters.weights_by_unit, parameters.weights
    i = here.t
    while i < rows * columns:
        for j in range(together):
            at = min(uint32(i + j * THREADS), uint32(rows * columns - ONE))
            weights[j] = by_unit[now + at // columns * sizes.features_padded + at % columns]
        for j in range(together):
            m, n = i // columns, i % columns
            if m < rows:
                weight = updated(weights[j], _sum_of(numbers, m, n, sizes), descent)
                by_unit[then + first + m * sizes.features_padded + n] = weight
                numbers[m * stride + n] = weight
            i = uint32(i + THREADS)
    cuda.syncthreads()
    i = here.t
    while i < rows * columns:
        m, n = i % rows, i // rows
        at = (column + n) * sizes.hidden_padded + row + m
        by_feature[then + at] = numbers[m * stride + n]
        i = uint32(i + THREADS)


@cuda.jit(device=True, **INLINE)
def conv2_gradient_phase(sizes, network, shared):
    """Overwrite the group's part of errors.partial with the gradients of the second convolution.

    A warp owns five output maps and a lane an input map: 125 sums. One image after the other, with
    h1 and the errors in shared memory. Tensor cores do it otherwise: see cuda_tensor.py.
    """
    if sizes.tf32:
        conv2_gradient_tensors(sizes, network, shared)
    else:
        _conv2_gradient_sums(sizes, network, shared)
    here, group = here_of(shared), shared.state[IMAGE_GROUP]
    k = uint32(THREADS - ONE - here.t)  # the last warps: tensor cores have no work for them
    if k < sizes.maps2:
        to_bias = _sum_errors(group, k, sizes, network.errors)
        at = group * _partial_size(sizes) + sizes.maps2 * sizes.maps1 * AREA + k
        network.errors.partial[at] = to_bias


@cuda.jit(device=True, **INLINE)
def _conv2_gradient_sums(sizes, network, shared):
    """Overwrite the group's part of errors.partial with the gradients of the second filters."""
    gradient = cuda.local.array(OWN_GRADIENT, float32)
    for i in range(N_OWN_GRADIENT):
        gradient[i] = float32(0)
    image = uint32(shared.state[IMAGE_GROUP] * GROUP)
    while image < sizes.batch and image < (shared.state[IMAGE_GROUP] + ONE) * GROUP:
        cuda.syncthreads()
        _load_square_errors(image, sizes, network, here_of(shared), shared)
        cuda.syncthreads()
        _add_image(sizes, here_of(shared), shared, gradient)
        image = uint32(image + ONE)
    here, group = here_of(shared), shared.state[IMAGE_GROUP]
    first, warp, lane = group * _partial_size(sizes), here.t // LANES, here.t % LANES
    if warp * N_MAPS < sizes.maps2 and lane < sizes.maps1:
        _keep_gradient(first, warp, lane, sizes, network.errors.partial, gradient)


@cuda.jit(device=True, **INLINE)
def _load_square_errors(image, sizes, network, here, shared):
    """Load h1, then the errors of h2, and the places of an image to shared memory."""
    n_h1 = sizes.squares1 * sizes.maps1
    n_places = sizes.squares2 * ((sizes.maps2 + N_MAPS - ONE) // N_MAPS)
    kept, at = network.kept, image * sizes.features_padded
    copy_words(kept.h1_by_square, image * n_h1, n_h1, here, shared.numbers, ZERO)
    copy_words(network.errors.h2, at, sizes.features, here, shared.numbers, n_h1)
    copy(kept.places2, image * n_places, n_places, here, shared.places, ZERO)


@cuda.jit(device=True, **INLINE)
def _add_image(sizes, here, shared, gradient):
    """Add what the image in shared memory adds to gradient, (125,) float32 registers."""
    patch = cuda.local.array(PATCH_AREA, float32)
    bundle, lane = uint32(here.t // LANES), uint32(here.t % LANES)
    k = lane if lane < sizes.maps1 else ZERO
    square = ZERO  # a range would need five registers
    while bundle * N_MAPS < sizes.maps2 and square < sizes.squares2:
        _add_square(square, bundle, k, sizes, shared, patch, gradient)
        square = uint32(square + ONE)


@cuda.jit(device=True, **INLINE)
def _sum_errors(group, k, sizes, errors):
    """Return the sum of the errors of map k of the second convolution in a group of images."""
    total = float32(0)
    at = uint64(group * GROUP * sizes.features_padded + k * sizes.squares2)
    for image in range(GROUP):  # those that are not there have errors of 0
        for square in range(sizes.squares2):
            total += errors.h2[at + image * sizes.features_padded + square]
    return total


@cuda.jit(device=True, **INLINE)
def _partial_size(sizes):
    """Return how many numbers a group has in errors.partial."""
    weights = (sizes.maps2 * sizes.maps1 + sizes.maps1) * AREA
    return weights + sizes.maps2 + sizes.maps1


@cuda.jit(device=True, **INLINE)
def _add_square(square, bundle, k, sizes, shared, patch, gradient):
    """Add what a square of five maps adds to their gradients by map k, (125,) float32 registers.

    patch: (36,) float32 registers, the part of map k below the square. Its last row is read where
    the first is no longer needed: registers are few here.
    """
    row, column = uint32(square // sizes.columns2), uint32(square % sizes.columns2)
    corner = (TWO * row * sizes.columns1 + TWO * column) * sizes.maps1 + uint64(k)
    errors = uint64(sizes.squares1 * sizes.maps1 + bundle * N_MAPS * sizes.squares2 + square)
    bundles = (sizes.maps2 + N_MAPS - ONE) // N_MAPS
    places = of_warp(shared.places[square * bundles + bundle])
    for y in range(N_TAPS):
        _read_row(corner, y, sizes, shared.numbers, patch)
    _add_maxima(errors, places, ZERO, sizes, shared.numbers, patch, gradient)
    cuda.syncwarp()  # no need but registers: what follows is read here, not in advance
    _read_row(corner, N_TAPS, sizes, shared.numbers, patch)
    _add_maxima(errors, places, ONE, sizes, shared.numbers, patch, gradient)


@cuda.jit(device=True, **INLINE)
def _add_maxima(errors, places, y, sizes, numbers, patch, gradient):
    """Add to the gradients of five maps what the maxima in row y of a square add.

    errors: where in ``numbers`` the first map's is; places: of the five maps, see Kept.
    """
    for m in range(N_MAPS):
        error = numbers[errors + m * sizes.squares2]
        gather_gradient(error, places >> (FOUR * m), y, patch, m * AREA, gradient)


@cuda.jit(device=True, **INLINE)
def _read_row(corner, y, sizes, numbers, patch):
    """Overwrite row y of patch (36,) float32 registers: numbers from ``corner`` on, by map."""
    at = corner + y * sizes.columns1 * sizes.maps1
    for x in range(N_PATCH):
        patch[N_PATCH * y + x] = numbers[at + x * sizes.maps1]


@cuda.jit(device=True, **INLINE)
def _keep_gradient(first, bundle, lane, sizes, partial, gradient):
    """Write the gradients of five maps (maps2, 25, maps1) to partial[first] and following."""
    at = first + bundle * N_MAPS * AREA * sizes.maps1 + lane
    for m in range(N_MAPS):
        if bundle * N_MAPS + m < sizes.maps2:
            for tap in range(AREA):
                partial[at + (m * AREA + tap) * sizes.maps1] = gradient[m * AREA + tap]


@cuda.jit(device=True, **INLINE)
def conv2_error_phase(group, sizes, network, here, shared):
    """Overwrite a group's errors.h1. Two images pass at a time.

    A warp owns a row of squares of one image and a lane an input map: of it the 6 rows of pixels
    below those squares, in registers. Rows of different warps overlap, and are added at the end.
    """
    strip = cuda.local.array(STRIP, float32)
    kept, errors, numbers = network.kept, network.errors, shared.numbers
    rows2 = sizes.squares2 // sizes.columns2
    warp, lane = uint32(here.t // LANES), uint32(here.t % LANES)
    works = warp < TWO * rows2
    n_strip = N_PATCH * sizes.columns1
    for pair in range(TWO):
        image = group * GROUP + TWO * pair
        cuda.syncthreads()
        n, at = TWO * sizes.features_padded, image * sizes.features_padded
        copy_words(errors.h2, at, n, here, numbers, ZERO)
        n_places = sizes.squares2 * ((sizes.maps2 + N_MAPS - ONE) // N_MAPS)
        copy(kept.places2, image * n_places, TWO * n_places, here, shared.places, ZERO)
        cuda.syncthreads()
        for i in range(n_strip):
            strip[i] = float32(0)  # by all: what some threads keep would live through all phases
        if works:
            _spread_row(warp, lane, sizes, network.parameters, shared, strip)
        cuda.syncthreads()
        if works and lane < sizes.maps1:
            at = uint64(warp * n_strip * sizes.maps1 + lane)
            for i in range(n_strip):
                numbers[at + i * sizes.maps1] = strip[i]
        cuda.syncthreads()
        _add_strips(image, sizes, network, here, numbers)


@cuda.jit(device=True, **INLINE)
def _spread_row(warp, lane, sizes, parameters, shared, strip):
    """Add the errors of a row of squares of all maps to the strip below it, in registers.

    The next map's filter is on its way while one is used.
    """
    weights = cuda.local.array(FILTER_AREA, float32)
    next_weights = cuda.local.array(FILTER_AREA, float32)
    words = cuda.local.array(STRIP_SQUARES, uint32)  # the places of a bundle's maps
    rows2 = sizes.squares2 // sizes.columns2
    of_pair, row = uint32(warp // rows2), uint32(warp % rows2)
    error = uint64(of_pair * sizes.features_padded + row * sizes.columns2)
    weight = uint64(lane if lane < sizes.maps1 else ZERO)
    bundles = (sizes.maps2 + N_MAPS - ONE) // N_MAPS
    first = uint64((of_pair * sizes.squares2 + row * sizes.columns2) * bundles)
    last = weight + (sizes.maps2 - ONE) * AREA * sizes.maps1
    _read_filter(weight, sizes, parameters, next_weights)
    for bundle in range(bundles):
        for column in range(sizes.columns2):
            words[column] = of_warp(shared.places[first + column * bundles + bundle])
        for _ in range(min(N_MAPS, sizes.maps2 - bundle * N_MAPS)):
            for tap in range(AREA):
                weights[tap] = next_weights[tap]
            weight = min(weight + AREA * sizes.maps1, last)
            _read_filter(weight, sizes, parameters, next_weights)
            for column in range(sizes.columns2):
                value, places = shared.numbers[error + column], words[column]
                spread_error(value, places, weights, TWO * column, sizes.columns1, strip)
                words[column] = places >> FOUR
            error += sizes.squares2


@cuda.jit(device=True, **INLINE)
def _read_filter(weight, sizes, parameters, weights):
    """Overwrite weights (25,) float32 registers with a filter of the second convolution."""
    for tap in range(AREA):
        weights[tap] = parameters.filters2_by_map[weight + tap * sizes.maps1]


@cuda.jit(device=True, **INLINE)
def _add_strips(image, sizes, network, here, numbers):
    """Write errors.h1 of two images from number ``image`` on: the sums of overlapping strips."""
    h = cuda.local.array(AHEAD, float32)
    n, in_row = sizes.squares1 * sizes.maps1, sizes.columns1 * sizes.maps1
    rows2 = sizes.squares2 // sizes.columns2
    i = here.t
    while i < TWO * n:
        for j in range(N_AHEAD):
            at = min(uint32(i + j * THREADS), uint32(TWO * n - ONE))
            h[j] = network.kept.h1_by_square[image * n + at]
        for j in range(N_AHEAD):
            of_pair, at = uint32(i // n), uint32(i % n)
            y = uint32(at // in_row)
            total = float32(0)
            for row in range(rows2):
                if y >= TWO * row and y < TWO * row + N_PATCH and i < TWO * n:
                    strip = (of_pair * rows2 + row) * N_PATCH * in_row
                    total += numbers[strip + at - TWO * row * in_row]
            if i < TWO * n:
                slope = activation_slope(h[j], sizes.activation)
                network.errors.h1[image * n + i] = total * slope
            i = uint32(i + THREADS)


@cuda.jit(device=True, **INLINE)
def conv1_gradient_phase(images, group, sizes, network, here, shared):
    """Overwrite a group's part of errors.partial with the gradients of the first convolution.

    A thread owns a map and every so manieth square: 25 sums and the bias's, which the block then
    adds in order. What it needs of its next squares is on its way. images:
    msgd.kernels.cuda.Images.
    """
    gradient = cuda.local.array(FILTER_AREA, float32)
    error, places = cuda.local.array(AHEAD, float32), cuda.local.array(AHEAD, uint8)
    numbers, n = shared.numbers, (AREA + ONE) * sizes.maps1
    slots = THREADS // sizes.maps1
    slot, k = uint32(here.t // sizes.maps1), uint32(here.t % sizes.maps1)
    n_squares = images_of(group, images.n) * sizes.squares1
    to_bias = float32(0)
    for tap in range(AREA):
        gradient[tap] = float32(0)
    cuda.syncthreads()
    load_pixels(images, group, sizes, here, shared)
    cuda.syncthreads()
    _mark_dark(images_of(group, images.n), sizes, here, numbers)
    cuda.syncthreads()
    if slot < slots:
        first = uint64(group * GROUP * sizes.squares1 * sizes.maps1 + k)
        errors, all_places = network.errors.h1, network.kept.places1
        for j in range(N_AHEAD):
            at = first + min(uint32(slot + j * slots), uint32(n_squares - ONE)) * sizes.maps1
            error[j], places[j] = errors[at], all_places[at]
        square = slot  # of those of all images
        while square < n_squares:
            for j in range(N_AHEAD):
                if square < n_squares:
                    to_bias += error[j]
                    _add_square1(square, error[j], places[j], sizes, numbers, gradient)
                later = min(uint32(square + N_AHEAD * slots), uint32(n_squares - ONE))
                at = first + later * sizes.maps1
                error[j], places[j] = errors[at], all_places[at]
                square = uint32(square + slots)
    cuda.syncthreads()
    if slot < slots:
        at = uint64(slot * n + k)
        for tap in range(AREA):
            numbers[at + tap * sizes.maps1] = gradient[tap]
        numbers[at + AREA * sizes.maps1] = to_bias
    cuda.syncthreads()
    first = group * _partial_size(sizes) + sizes.maps2 * (sizes.maps1 * AREA + ONE)
    i = here.t
    while i < n:
        total = numbers[i]
        for later in range(ONE, slots):
            total += numbers[later * n + i]
        network.errors.partial[first + i] = total
        i = uint32(i + THREADS)


@cuda.jit(device=True, **INLINE)
def _mark_dark(n_images, sizes, here, numbers):
    """Note behind the pixels, for each square of the images, 0 if all it comes from are 0, else 1.

    A third of MNIST's squares: there all four pixels are tied, and their products are 0.
    """
    i = here.t
    while i < n_images * sizes.squares1:
        image, square = uint32(i // sizes.squares1), uint32(i % sizes.squares1)
        row, column = uint32(square // sizes.columns1), uint32(square % sizes.columns1)
        corner = uint64(image * sizes.pixels + TWO * (row * sizes.width + column))
        mark = float32(0)
        for y in range(N_PATCH):
            for x in range(N_PATCH):
                if numbers[corner + y * sizes.width + x] != float32(0):
                    mark = float32(1)
        numbers[GROUP * sizes.pixels + i] = mark
        i = uint32(i + THREADS)


@cuda.jit(device=True, **INLINE)
def _add_square1(square, error, places, sizes, numbers, gradient):
    """Add what a square of a map, of the group's images, adds to its filter's gradient.

    error: the square's; places: of its maxima, uint8; gradient: (25,) float32 registers. The maxima
    of the lanes' maps differ: each goes through its own, of which there are several only where they
    are tied.
    """
    image, of_image = uint32(square // sizes.squares1), uint32(square % sizes.squares1)
    row, column = TWO * uint32(of_image // sizes.columns1), TWO * uint32(of_image % sizes.columns1)
    corner = image * sizes.pixels + row * sizes.width + column
    places = uint32(places)
    if numbers[GROUP * sizes.pixels + square] == float32(0):
        places = ZERO
    while places != ZERO:
        place = uint32(cuda.ffs(places)) - ONE
        pixel = uint64(corner + (place >> ONE) * sizes.width + (place & ONE))
        for u in range(N_TAPS):
            for v in range(N_TAPS):
                gradient[N_TAPS * u + v] += error * numbers[pixel + u * sizes.width + v]
        places = uint32(places & (places - ONE))


@cuda.jit(device=True, **INLINE)
def conv_update_phase(descent, sizes, network, here):
    """Add the groups' gradients of both convolution layers in order and update their parameters.

    One thread per parameter; network.gradients says where in network.arranged those are that
    errors.partial has gradients of, and network.tiles where tensor cores have the filters.
    """
    arranged, places = network.arranged, network.gradients
    n, n_groups = _partial_size(sizes), (sizes.batch + GROUP - ONE) // GROUP
    of_weights2, of_weights1 = sizes.maps2 * sizes.maps1 * AREA, sizes.maps1 * AREA
    i = uint32(here.block * THREADS + here.t)
    while i < n:
        gradient = _sum_groups(i, n_groups, n, network.errors.partial)
        place = uint32(places[i])
        weights1 = of_weights2 + sizes.maps2  # where those of the first layer begin
        if i < of_weights2 or (i >= weights1 and i < weights1 + of_weights1):
            arranged[place] = updated(arranged[place], gradient, descent)
        else:
            arranged[place] = sgd_step(arranged[place], gradient, descent)
        if i < of_weights2:
            if sizes.tf32:
                rounded = to_tf32(arranged[place])
                network.parameters.filters2[uint32(network.tiles[0, i])] = rounded
                network.parameters.filters2_by_map[uint32(network.tiles[1, i])] = rounded
            else:
                network.parameters.filters2_by_map[i] = arranged[place]
        i = uint32(i + here.blocks * THREADS)


@cuda.jit(device=True, **INLINE)
def _sum_groups(i, n_groups, n, partial):
    """Return the sum of number i of all groups, in their order; n: numbers of a group."""
    numbers = cuda.local.array(GROUPS, float32)
    total, at = float32(0), uint64(i)
    for _ in range(n_groups // N_GROUPS):
        for j in range(N_GROUPS):
            numbers[j] = partial[at + j * n]
        for j in range(N_GROUPS):
            total += numbers[j]
        at += N_GROUPS * n
    for j in range(n_groups % N_GROUPS):
        total += partial[at + j * n]
    return total


@cuda.jit(device=True, **INLINE)
def penalty_phase(training, descent, sizes, network, n_filters, shared):
    """Overwrite the step's training.penalties with the penalty of each chunk of the weights.

    network.arranged has n_filters numbers of the filters and of the last layer, then twice the
    hidden layer's weights, old and new. A block owns a chunk.
    """
    here, newer = here_of(shared), shared.state[STEP] & ONE
    arranged, penalties = network.arranged, training.penalties[shared.state[STEP]]
    size = sizes.features_padded * sizes.hidden_padded
    warp, lane = uint32(here.t // LANES), uint32(here.t % LANES)
    chunk = here.block
    while chunk < uint32(penalties.shape[0]):
        total = float32(0)
        for term in range(TERMS):
            i = chunk * CHUNK + term * THREADS + here.t
            if i < n_filters + size:
                at = i if i < n_filters else i + newer * size
                total += penalty(arranged[at], descent)
        total = sum_over_lanes(total)
        cuda.syncthreads()
        if lane == ZERO:
            shared.numbers[warp] = total
        cuda.syncthreads()
        if here.t == ZERO:
            for i in range(ONE, WARPS):
                total += shared.numbers[i]
            penalties[chunk] = total
        chunk = uint32(chunk + here.blocks)
