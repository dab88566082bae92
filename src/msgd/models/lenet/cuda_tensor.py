"""The phases of LeNet's second convolution on tensor cores, in TF32: config key ``arithmetic``.

Eight warps of a block multiply; each owns whole tiles of sums (kernels/cuda_tensor_cores.py), and
what it multiplies are rounded copies in shared memory. In brackets the published sizes::

    convolution 2     two images; warp: a row of squares of both x 32 maps           [4 x 2 pieces]
                      terms: the 5 M_in numbers below each row of a filter          [5 x 13 steps]
    filters 2         an image after the other; warp: 64 weights of every map           [8 pieces]
                      terms: the pixels of a row of squares, upper row, lower row    [4 x 2 steps]
    errors of h1      two images; warp: 4 rows in either half x 8 input maps     [2 x 3 x 2 pieces]
                      terms: maps, by rows of a filter; 3 columns, then 2        [5 x 80 steps]

A step is eight terms. A map of the second convolution has 8 columns here, so 4 squares in a row: g
is a column, or q a square. Its errors lie in four planes, one for each pixel of the squares, with
the maps of a square side by side, and 0 where a pixel is no maximum: (4, squares2, error_stride).

The hidden layer's products are in kernels/cuda_product.py and, of errors, in wide tiles, in
kernels/cuda_wide_product.py. All else is float32 as without tensor cores, and so are predictions.

Limits, beside those of ``cuda.py``: a GPU of compute capability 8.0 or more, images of 28 columns
and up to 31 rows, up to 20 and 56 maps, and, of the published maps, up to 2,816 hidden units. Where
they are not met nothing stands in: it is an error (``cuda_layout.why_not_tf32``).
"""

import numpy as np
from numba import cuda, float32, int32, uint32, uint64

from msgd.kernels.cuda import INLINE, activate, activation_slope
from msgd.kernels.cuda_conv import of_warp, pool_square
from msgd.kernels.cuda_sums import EVERY_LANE, LANES
from msgd.kernels.cuda_tensor_cores import add_product, to_tf32
from msgd.kernels.cuda_vectors import load4
from msgd.models.lenet.cuda_forward import (
    AHEAD,
    FOUR,
    GROUP,
    IMAGE_GROUP,
    N_AHEAD,
    N_MAPS,
    N_TAPS,
    ONE,
    THREADS,
    TWO,
    ZERO,
    copy_words,
    here_of,
)
from msgd.models.lenet.cuda_layout import TENSOR_MAPS2, TENSOR_PADDING

TENSOR_WARPS = np.uint32(8)
THREE, EIGHT, SIXTEEN, AREA = np.uint32(3), np.uint32(8), np.uint32(16), np.uint32(25)
TASK_MAPS = np.uint32(32)  # of the second convolution, whose sums a warp owns at a time
N_PADDING = np.uint32(TENSOR_PADDING)  # numbers behind an image's errors that are read too
WEIGHT_TILES = 4  # of 16 weights of each map, whose gradients a warp sums
MAP_TILES = TENSOR_MAPS2 // 8
N_WEIGHT_TILES, N_MAP_TILES = np.uint32(WEIGHT_TILES), np.uint32(MAP_TILES)
GRADIENT_TILES = WEIGHT_TILES * MAP_TILES
ROWS = 4  # of h1 that a warp adds to, in either half; and rows of errors there
N_ROWS = np.uint32(ROWS)
TWICE_ROWS = 2 * ROWS
HALVES_AHEAD = 9  # loads on their way where few other registers are in use
N_HALVES_AHEAD = np.uint32(HALVES_AHEAD)
COLUMN_SUMS = 3 * ROWS  # rows of sums, for three columns of the filters
OTHER_COLUMN = FOUR  # the lane of the next column, by its bit


@cuda.jit(device=True, **INLINE)
def _warp_of(here):
    """Return the number of the thread's warp, and of its lane g and q."""
    lane = uint32(here.t % LANES)
    return of_warp(uint32(here.t // LANES)), uint32(lane // FOUR), uint32(lane % FOUR)


@cuda.jit(device=True, **INLINE)
def _clear(at, n, here, numbers):
    """Overwrite numbers[at : at + n] with 0; others may be reading there until all have come."""
    cuda.syncthreads()
    i = here.t
    while i < n:
        numbers[at + i] = float32(0)
        i = uint32(i + THREADS)


@cuda.jit(device=True, **INLINE)
def conv2_tensor_phase(n_images, group, sizes, parameters, kept, here, shared):
    """Do as conv2_phase of cuda_forward.py."""
    size = sizes.squares1 * sizes.maps1
    warp, g, q = _warp_of(here)
    parts = (sizes.maps2 + TASK_MAPS - ONE) // TASK_MAPS
    rows2 = sizes.squares2 // sizes.columns2
    # The terms of a step may lie so far beyond an image: they are multiplied by 0.
    _clear(TWO * size, EIGHT, here, shared.numbers)
    for pair in range(TWO):
        first = group * GROUP + TWO * pair
        cuda.syncthreads()
        copy_words(kept.h1, first * size, TWO * size, here, shared.numbers, ZERO)
        cuda.syncthreads()
        task = warp
        while task < rows2 * parts and warp < TENSOR_WARPS:
            row, part = uint32(task // parts), uint32(task % parts)
            _convolve_row(n_images, first, row, part, (g, q), sizes, parameters, kept, shared)
            task = uint32(task + TENSOR_WARPS)
        cuda.syncthreads()
        _keep_places(first, sizes, kept, here, shared.numbers)


@cuda.jit(device=True, **INLINE)
def _convolve_row(n_images, first, row, part, lane, sizes, parameters, kept, shared):
    """Convolve a row of squares of two images, from number ``first`` on, with TASK_MAPS; keep it.

    lane: its g, a column of pixels, and q.
    """
    sums = cuda.local.array((8, 4), float32)
    for tile in range(EIGHT):
        for k in range(FOUR):
            sums[tile, k] = float32(0)
    g, q = lane
    words = cuda.local.array((AHEAD, 8), float32)
    steps = (N_TAPS * sizes.maps1 + EIGHT - ONE) // EIGHT  # of a row of the filters
    all_steps = N_TAPS * steps
    pairs = (sizes.maps2 + TASK_MAPS - ONE) // TASK_MAPS * TWO  # of tiles of 8 maps
    in_row, size = sizes.columns1 * sizes.maps1, sizes.squares1 * sizes.maps1
    weight = uint32((TWO * part * LANES + FOUR * g + q) * FOUR)
    in_step = pairs * LANES * FOUR
    last = uint32(weight + (all_steps - ONE) * in_step)
    for j in range(N_AHEAD):
        _read_weights(min(uint32(weight + j * in_step), last), parameters, words, j)
    at, column = uint64(TWO * row * in_row + g * sizes.maps1 + q), ZERO
    for _ in range(all_steps // N_AHEAD):
        for j in range(N_AHEAD):
            _add_step(at, size, in_row, words, j, shared.numbers, sums)
            weight = uint32(weight + in_step)
            _read_weights(
                min(uint32(weight + (N_AHEAD - ONE) * in_step), last), parameters, words, j
            )
            at, column = at + EIGHT, uint32(column + ONE)
            if column == steps:  # on to the next row of the filters
                at, column = at + in_row - EIGHT * steps, ZERO
    for j in range(all_steps % N_AHEAD):
        _add_step(at, size, in_row, words, j, shared.numbers, sums)
        at, column = at + EIGHT, uint32(column + ONE)
        if column == steps:
            at, column = at + in_row - EIGHT * steps, ZERO
    for image in range(TWO):
        if first + image < n_images:
            for tile in range(FOUR):
                k = TASK_MAPS * part + EIGHT * tile + TWO * q + (g & ONE)
                square = row * sizes.columns2 + g // TWO
                highest, places = _pool_lanes(sums, image * FOUR + tile, g, sizes)
                if k < sizes.maps2:
                    h = activate(highest + parameters.bias2[k], sizes.activation)
                    unit = k * sizes.squares2 + square
                    kept.h2[(first + image) * sizes.features_padded + unit] = h
                    kept.h2_by_unit[unit * sizes.batch_padded + first + image] = h
                    at = (image * sizes.squares2 + square) * sizes.maps2 + k
                    shared.numbers[TWO * size + EIGHT + at] = float32(places)


@cuda.jit(device=True, **INLINE)
def _add_step(at, size, in_row, words, j, numbers, sums):
    """Add a step of eight terms to the sums of two images; words[j]: the filters' numbers.

    at: where in ``numbers`` the lane's first term of the first image is; size: of an image.
    """
    for image in range(TWO):
        a = _two_rows(numbers, at + image * size, in_row)
        for tile in range(FOUR):
            b = words[j, TWO * tile], words[j, TWO * tile + ONE]
            add_product(a, b, sums, image * FOUR + tile)


@cuda.jit(device=True, **INLINE)
def _read_weights(at, parameters, words, j):
    """Overwrite words[j], 8 float32 registers, with a lane's numbers of B for a step's four tiles.

    at: where in parameters.filters2 they begin.
    """
    word, next_word = (
        load4(parameters.filters2, at),
        load4(parameters.filters2, at + LANES * FOUR),
    )
    for k in range(FOUR):
        words[j, k], words[j, FOUR + k] = word[k], next_word[k]


@cuda.jit(device=True, **INLINE)
def _two_rows(numbers, at, in_row):
    """Return a lane's numbers of A: its rows are the columns of a row of pixels, and of the next.

    numbers[at] is the lane's first term of its column; in_row: how far apart rows of pixels lie.
    """
    return numbers[at], numbers[at + in_row], numbers[at + FOUR], numbers[at + in_row + FOUR]


@cuda.jit(device=True, **INLINE)
def _pool_lanes(sums, tile, g, sizes):
    """Return the maximum and its places of one square of one map, see pool_square.

    A lane holds two rows of one column of two maps, and the lane of the other column the rest: each
    gives one map away, so that a lane of an even column gets the first and one of an odd the other.
    """
    is_odd = g & ONE
    # All are loaded before one is chosen: a chosen address would move them to memory.
    a, b, c, d = sums[tile, 0], sums[tile, 1], sums[tile, 2], sums[tile, 3]
    own_upper, given_upper = (b, a) if is_odd else (a, b)
    own_lower, given_lower = (d, c) if is_odd else (c, d)
    upper = cuda.shfl_xor_sync(EVERY_LANE, given_upper, OTHER_COLUMN)
    lower = cuda.shfl_xor_sync(EVERY_LANE, given_lower, OTHER_COLUMN)
    if is_odd:
        return pool_square(upper, own_upper, lower, own_lower, sizes.first_only)
    return pool_square(own_upper, upper, own_lower, lower, sizes.first_only)


@cuda.jit(device=True, **INLINE)
def _keep_places(first, sizes, kept, here, numbers):
    """Overwrite kept.places2 of two images from number ``first`` on with what is in ``numbers``."""
    bundles = (sizes.maps2 + N_MAPS - ONE) // N_MAPS
    places = TWO * sizes.squares1 * sizes.maps1 + EIGHT
    i = here.t
    while i < TWO * sizes.squares2 * bundles:
        square, bundle = uint32(i // bundles), uint32(i % bundles)
        word = ZERO
        for m in range(N_MAPS):
            k = bundle * N_MAPS + m
            if k < sizes.maps2:
                place = uint32(numbers[places + square * sizes.maps2 + k])
                word = uint32(word | place << (FOUR * m))
        kept.places2[first * sizes.squares2 * bundles + i] = word
        i = uint32(i + THREADS)


@cuda.jit(device=True, **INLINE)
def _load_errors(image, at, sizes, network, here, numbers):
    """Overwrite the planes at numbers[at] with an image's errors of h2, in TF32; not padding."""
    error, word = cuda.local.array(AHEAD, float32), cuda.local.array(AHEAD, uint32)
    bundles = (sizes.maps2 + N_MAPS - ONE) // N_MAPS
    n = sizes.squares2 * sizes.maps2
    i = here.t
    while i < n:
        for j in range(N_AHEAD):
            later = min(uint32(i + j * THREADS), uint32(n - ONE))
            k, square = uint32(later // sizes.squares2), uint32(later % sizes.squares2)
            error[j] = network.errors.h2[image * sizes.features_padded + later]
            of_square = (image * sizes.squares2 + square) * bundles
            word[j] = network.kept.places2[of_square + k // N_MAPS]
        for j in range(N_AHEAD):
            k, square = uint32(i // sizes.squares2), uint32(i % sizes.squares2)
            places = word[j] >> (FOUR * (k % N_MAPS))
            rounded = to_tf32(error[j])
            for place in range(FOUR):
                target = at + place * sizes.error_plane + square * sizes.error_stride + k
                if i < n:
                    numbers[target] = rounded if places & (ONE << place) else float32(0)
            i = uint32(i + THREADS)


@cuda.jit(device=True, **INLINE)
def note_places(sizes, shared):
    """Overwrite shared.places: where the pixel that each weight of a map meets lies in h1.

    Counted from the first weight's. A training on tensor cores has no other use for that array; to
    work it out anew for each row of pixels would take more registers than there are.
    """
    skipped = sizes.columns1 * sizes.maps1 - N_TAPS * sizes.maps1  # from one filter row to the next
    weight = uint32(cuda.threadIdx.x)
    while weight < TENSOR_WARPS * N_WEIGHT_TILES * SIXTEEN:
        row = uint32(weight // (N_TAPS * sizes.maps1))
        shared.places[weight] = weight + min(row, N_TAPS - ONE) * skipped
        weight = uint32(weight + THREADS)
    cuda.syncthreads()


@cuda.jit(device=True, **INLINE)
def conv2_gradient_tensors(sizes, network, shared):
    """Overwrite the weights' gradients in the group's part of errors.partial, see cuda_backward.py.

    They are (maps2, 25 maps1); here a warp owns 64 of the 25 maps1 weights, of all maps. Tiles go
    beyond both: what is read there reaches none of the sums that are kept.
    """
    gradient = cuda.local.array((GRADIENT_TILES, 4), float32)
    for i in range(np.uint32(GRADIENT_TILES)):
        for k in range(FOUR):
            gradient[i, k] = float32(0)
    size = sizes.squares1 * sizes.maps1
    image = uint32(shared.state[IMAGE_GROUP] * GROUP)
    while image < sizes.batch and image < (shared.state[IMAGE_GROUP] + ONE) * GROUP:
        here = here_of(shared)
        cuda.syncthreads()
        copy_words(network.kept.h1, image * size, size, here, shared.numbers, ZERO)
        _load_errors(image, size + EIGHT, sizes, network, here, shared.numbers)
        cuda.syncthreads()
        _add_image(sizes, shared, gradient)
        image = uint32(image + ONE)
    _keep_gradient(sizes, network.errors.partial, shared, gradient)


@cuda.jit(device=True, **INLINE)
def _map_tiles(sizes):
    """Return how many tiles of 8 maps there are, up to MAP_TILES."""
    return (sizes.maps2 + EIGHT - ONE) // EIGHT


@cuda.jit(device=True, **INLINE)
def _add_image(sizes, shared, gradient):
    """Add what the image in shared memory adds to a warp's tiles: h1, and the errors behind it."""
    a = cuda.local.array(4, float32)
    b = cuda.local.array((MAP_TILES, 2), float32)
    numbers, plane = shared.numbers, sizes.error_plane
    in_row, errors = sizes.columns1 * sizes.maps1, sizes.squares1 * sizes.maps1 + EIGHT
    warp, g, q = _warp_of(here_of(shared))
    row = ZERO  # of pixels
    while row < TWO * (sizes.squares2 // sizes.columns2) and warp < TENSOR_WARPS:
        square = row // TWO * sizes.columns2 + q
        at = uint64(errors + TWO * (row & ONE) * plane + square * sizes.error_stride + g)
        for m in range(_map_tiles(sizes)):
            b[m, 0], b[m, 1] = numbers[at + EIGHT * m], numbers[at + plane + EIGHT * m]
        pixel = uint64(row * in_row + TWO * q * sizes.maps1)
        for i in range(N_WEIGHT_TILES):
            for half in range(TWO):
                at = pixel + shared.places[_weight(warp, i, half, g)]
                a[half], a[TWO + half] = numbers[at], numbers[at + sizes.maps1]
            of_a = a[0], a[1], a[2], a[3]
            for m in range(_map_tiles(sizes)):
                add_product(of_a, (b[m, 0], b[m, 1]), gradient, i * N_MAP_TILES + m)
        row = uint32(row + ONE)


@cuda.jit(device=True, **INLINE)
def _weight(warp, i, half, g):
    """Return which of the weights of a map a lane's row of A is of, in the warp's tile i.

    Behind the last one there may be some that are not: of their sums none is kept.
    """
    return (warp * N_WEIGHT_TILES + i) * SIXTEEN + EIGHT * half + g


@cuda.jit(device=True, **INLINE)
def _keep_gradient(sizes, partial, shared, gradient):
    """Write a warp's tiles of the gradient to the group's part of errors.partial."""
    n = AREA * sizes.maps1
    warp, g, q = _warp_of(here_of(shared))
    first = shared.state[IMAGE_GROUP] * (n * (sizes.maps2 + ONE) + sizes.maps2 + sizes.maps1)
    for i in range(N_WEIGHT_TILES):
        for half in range(TWO):
            weight = _weight(warp, i, half, g)
            for m in range(_map_tiles(sizes)):
                for odd in range(TWO):
                    k = m * EIGHT + TWO * q + odd
                    if warp < TENSOR_WARPS and weight < n and k < sizes.maps2:
                        value = gradient[i * N_MAP_TILES + m, TWO * half + odd]
                        partial[uint64(first + k * n + weight)] = value


@cuda.jit(device=True, **INLINE)
def conv2_error_tensor_phase(group, sizes, network, shared):
    """Do as conv2_error_phase of cuda_backward.py. Two images pass at a time.

    Behind the errors of both lie a row of 0, for rows of errors that are not there, and then what
    the lower halves of their errors add to h1's, (2, rows, columns1, maps1).
    """
    size, tasks = FOUR * sizes.error_plane + N_PADDING, FOUR * _map_tiles1(sizes)
    _clear(ZERO, TWO * size + N_PADDING, here_of(shared), shared.numbers)
    for pair in range(TWO):
        here, first = here_of(shared), group * GROUP + TWO * pair
        cuda.syncthreads()
        _load_errors(first, ZERO, sizes, network, here, shared.numbers)
        _load_errors(first + ONE, size, sizes, network, here, shared.numbers)
        cuda.syncthreads()
        warp = of_warp(uint32(here_of(shared).t // LANES))
        task = warp
        while task < tasks and warp < TENSOR_WARPS:
            if task & ONE == ZERO:
                _spread_rows(first, task, ZERO, sizes, network, shared)
            else:
                _spread_rows(first, task, ONE, sizes, network, shared)
            task = uint32(task + TENSOR_WARPS)
        cuda.syncthreads()
        _add_halves(first, sizes, network, here_of(shared), shared.numbers)


@cuda.jit(device=True, **INLINE)
def _behind_errors(sizes):
    """Return where in shared.numbers what lies behind the errors of both images begins."""
    return TWO * (FOUR * sizes.error_plane + N_PADDING) + N_PADDING


@cuda.jit(device=True, **INLINE)
def _map_tiles1(sizes):
    """Return how many tiles of 8 input maps there are."""
    return (sizes.maps1 + EIGHT - ONE) // EIGHT


@cuda.jit(device=True, **INLINE)
def _own(task, sizes, shared):
    """Return which image of a pair, tile of maps and part a task is of, and the lane's g and q."""
    lane = uint32(here_of(shared).t % LANES)
    tile = uint32(task // TWO % _map_tiles1(sizes))
    return task // TWO // _map_tiles1(sizes), tile, task & ONE, lane // FOUR, lane % FOUR


@cuda.jit(device=True, **INLINE)
def _spread_rows(first, task, part, sizes, network, shared):
    """Spread an image's errors over ROWS rows of h1 in either half, for 8 of its maps.

    first: number of the first image of the pair; part: that of the task, a constant. Three columns
    of the filters are multiplied, then two: registers hold no more.
    """
    inside = cuda.local.array((ROWS, 4), float32)
    beyond = cuda.local.array((ROWS, 4), float32)
    for i in range(N_ROWS):
        for k in range(FOUR):
            inside[i, k], beyond[i, k] = float32(0), float32(0)
    _spread_columns(ZERO, THREE, task, part, sizes, network, shared, inside, beyond)
    _spread_columns(THREE, TWO, task, part, sizes, network, shared, inside, beyond)
    _keep_rows(first, task, sizes, network, shared, inside, beyond)


@cuda.jit(device=True, **INLINE)
def _spread_columns(v, n, task, part, sizes, network, shared, inside, beyond):
    """Add to inside and beyond (see _move) what columns v to v + n - 1 of the filters give.

    v, part: constants; n: 2 or 3, too. Their sums lie by the columns of the errors, and are moved
    on from lane to lane at the end.
    """
    sums = cuda.local.array((COLUMN_SUMS, 4), float32)
    errors = cuda.local.array((TWICE_ROWS, 4), float32)
    for i in range(np.uint32(COLUMN_SUMS)):
        for k in range(FOUR):
            sums[i, k] = float32(0)
    _, tile, _, g, q = _own(task, sizes, shared)
    pairs = (sizes.maps2 + SIXTEEN - ONE) // SIXTEEN
    in_column = pairs * N_TAPS * LANES * FOUR
    weight = uint64((tile * N_TAPS + v) * in_column + (FOUR * g + q) * FOUR)
    for step in range(pairs):
        _read_rows(task, step, sizes, shared, errors)
        _add_column(ZERO, part, weight, network.parameters, errors, sums)
        _add_column(ONE, part, weight + in_column, network.parameters, errors, sums)
        if n > TWO:
            _add_column(TWO, part, weight + TWO * in_column, network.parameters, errors, sums)
        weight += N_TAPS * LANES * FOUR
    for column in range(n):
        _move(v + column, column, (g, q), sums, inside, beyond)


@cuda.jit(device=True, **INLINE)
def _move(v, column, lane, sums, inside, beyond):
    """Add the sums of column v of the filters, rows ROWS column and on, to where they belong.

    inside, beyond: (ROWS, 4) float32 registers. Column x of h1 gets what column x - v of the errors
    gives: the lane of column g gets it from the one of column g - v. Where there is none it gets,
    going round, what column g + 8 - v has: that is for column 8 + g.
    """
    g, q = lane
    source = int32(((g + EIGHT - v) & (EIGHT - ONE)) * FOUR + q)
    for i in range(N_ROWS):
        for k in range(FOUR):
            got = cuda.shfl_sync(EVERY_LANE, sums[column * N_ROWS + i, k], source)
            inside[i, k] += got if g >= v else float32(0)
            beyond[i, k] += float32(0) if g >= v else got


@cuda.jit(device=True, **INLINE)
def _read_rows(task, step, sizes, shared, errors):
    """Overwrite errors (2 ROWS, 4) with all rows of an image's errors, of 16 maps: by halves.

    Of each lane the four numbers are of maps q, q + 4, q + 8, q + 12 in column g.
    """
    image, _, _, g, q = _own(task, sizes, shared)
    stride, plane, half = sizes.error_stride, sizes.error_plane, sizes.squares2 // sizes.columns2
    size = FOUR * plane + N_PADDING
    column = image * size + (g & ONE) * plane + g // TWO * stride + step * SIXTEEN
    for i in range(TWO * N_ROWS):
        y = i % N_ROWS + half * (i // N_ROWS)
        at = column + (y & ONE) * TWO * plane + y // TWO * sizes.columns2 * stride
        at = uint64(q + (at if i % N_ROWS < half else TWO * size))
        for k in range(FOUR):
            errors[i, k] = shared.numbers[at + FOUR * k]


@cuda.jit(device=True, **INLINE)
def _add_column(column, part, weight, parameters, errors, sums):
    """Add to sums[ROWS column] and on what 16 maps and a column of the filters add, in two steps.

    A warp has rows ROWS part to ROWS part + 3 of h1. column, part: constants; weight: where in
    parameters.filters2_by_map the lane's numbers of the column begin.
    """
    for u in range(N_TAPS):
        words = load4(parameters.filters2_by_map, weight + u * LANES * FOUR)
        for i in range(N_ROWS):
            row = part * N_ROWS + i
            if row >= u and row < u + N_ROWS:  # the row of errors that row u of the filters meets
                y, lower = row - u, row - u + N_ROWS
                a = errors[y, 0], errors[lower, 0], errors[y, 1], errors[lower, 1]
                add_product(a, (words[0], words[1]), sums, column * N_ROWS + i)
                a = errors[y, 2], errors[lower, 2], errors[y, 3], errors[lower, 3]
                add_product(a, (words[2], words[3]), sums, column * N_ROWS + i)


@cuda.jit(device=True, **INLINE)
def _keep_rows(first, task, sizes, network, shared, inside, beyond):
    """Write what the upper half adds to errors.h1, and what the lower half adds beside it.

    inside, beyond: (ROWS, 4) float32 registers, of columns g and 8 + g.
    """
    image, tile, part, g, q = _own(task, sizes, shared)
    for i in range(N_ROWS):
        row = part * N_ROWS + i
        for k in range(FOUR):
            m, is_lower = tile * EIGHT + TWO * q + k % TWO, k // TWO
            of_pair, errors, numbers = (first, image), network.errors, shared.numbers
            _keep(inside[i, k], of_pair, (row, g, m), is_lower, sizes, errors, numbers)
            _keep(beyond[i, k], of_pair, (row, g + EIGHT, m), is_lower, sizes, errors, numbers)


@cuda.jit(device=True, **INLINE)
def _keep(value, of_pair, place, is_lower, sizes, errors, numbers):
    """Write one number of _keep_rows, if there is such a row, column and map, its ``place``.

    of_pair: the first image of the pair, and which of them this is.
    """
    first, image = of_pair
    row, x, m = place
    rows = sizes.squares2 // sizes.columns2 + N_ROWS
    if row < rows and x < sizes.columns1 and m < sizes.maps1:
        at = (row * sizes.columns1 + x) * sizes.maps1 + m
        if is_lower:
            numbers[_behind_errors(sizes) + image * rows * sizes.columns1 * sizes.maps1 + at] = (
                value
            )
        else:
            errors.h1[(first + image) * sizes.squares1 * sizes.maps1 + at] = value


@cuda.jit(device=True, **INLINE)
def _add_halves(first, sizes, network, here, numbers):
    """Overwrite errors.h1 of two images: what both halves add, times the activation's slope."""
    upper, h = cuda.local.array(HALVES_AHEAD, float32), cuda.local.array(HALVES_AHEAD, float32)
    half, n = sizes.squares2 // sizes.columns2, sizes.squares1 * sizes.maps1
    in_row = sizes.columns1 * sizes.maps1
    rows, behind = half + N_ROWS, _behind_errors(sizes)
    i = here.t
    while i < TWO * n:
        for j in range(N_HALVES_AHEAD):
            at = uint64(first * n + min(uint32(i + j * THREADS), uint32(TWO * n - ONE)))
            upper[j], h[j] = network.errors.h1[at], network.kept.h1_by_square[at]
        for j in range(N_HALVES_AHEAD):
            image, at = uint32(i // n), uint32(i % n)
            y = uint32(at // in_row)
            total = upper[j] if y < rows else float32(0)
            if y >= half and y < half + rows and i < TWO * n:
                total += numbers[behind + image * rows * in_row + at - half * in_row]
            if i < TWO * n:
                slope = activation_slope(h[j], sizes.activation)
                network.errors.h1[first * n + i] = total * slope
            i = uint32(i + THREADS)
