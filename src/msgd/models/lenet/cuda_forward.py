"""The phases of LeNet's fast CUDA kernels through which images pass forward.

All threads of a block call a phase. ``sizes`` is the kernel's constant Sizes, so that the compiler
knows every number in it; ``here`` and ``shared`` are the kernel's Here and Shared.
"""

from typing import NamedTuple

import numpy as np
from numba import cuda, float32, uint8, uint32, uint64

from msgd.kernels.cuda import INLINE, activate
from msgd.kernels.cuda_conv import (
    FILTER_SIZE,
    MAPS,
    ROW_WEIGHTS,
    Pair,
    clear_sums,
    convolve_pair,
    pool,
)
from msgd.kernels.cuda_product import (
    TILE_COLUMNS,
    TILE_ROWS,
    Factors,
    multiply_tile,
    tile_sum,
)
from msgd.kernels.cuda_sums import LANES, sum_over_lanes
from msgd.kernels.cuda_tensor_cores import to_tf32
from msgd.kernels.cuda_vectors import load4, store4
from msgd.models.lenet.cuda_layout import GROUP as GROUP_IMAGES
from msgd.models.lenet.cuda_layout import THREADS as BLOCK_THREADS

THREADS, GROUP = np.uint32(BLOCK_THREADS), np.uint32(GROUP_IMAGES)
N_MAPS, N_TAPS, N_ROW_WEIGHTS = np.uint32(MAPS), np.uint32(FILTER_SIZE), np.uint32(ROW_WEIGHTS)
ZERO, ONE, TWO, FOUR = np.uint32(0), np.uint32(1), np.uint32(2), np.uint32(4)

# How many loads a thread has on their way before it waits for the first. Memory takes a third of a
# microsecond to answer, or more, which a loop that waits for each load would mostly do.
AHEAD = 3
N_AHEAD = np.uint32(AHEAD)

NOTHING = np.uint32(0)  # in Shared.state: 0, see here_of
STEP = np.uint32(1)  # how many minibatches are done
IMAGE_GROUP = np.uint32(2)  # the group of images that the block is at
N_STATE = 3


class Here(NamedTuple):
    """Which thread this is."""

    t: int  # its number in the block
    block: int
    blocks: int


class Shared(NamedTuple):
    """What the threads of a block share."""

    numbers: object  # flat float32: of each phase anew
    places: object  # flat uint32: of maxima, see Kept.places2
    logits: object  # (GROUP, classes) float32
    errors: object  # (GROUP, classes) float32
    state: object  # (N_STATE,) uint32: NOTHING, STEP, IMAGE_GROUP; here and not in registers


class Maps(NamedTuple):
    """Two layouts of shared memory in the first convolution: where each part begins."""

    filters: int
    outputs: int  # of one image: (maps, squares + 1), so that maps lie in other banks
    places: int  # of the maxima, as float32, likewise


@cuda.jit(device=True, **INLINE)
def here_of(shared):
    """Return Here. The 0 in shared.state hides it from the compiler.

    It would else compute all that depends on a thread's number once, before the loop over
    minibatches, and keep it in registers through all phases: each phase asks anew.
    """
    zero = shared.state[NOTHING]
    return Here(
        uint32(cuda.threadIdx.x + zero), uint32(cuda.blockIdx.x + zero), uint32(cuda.gridDim.x)
    )


@cuda.jit(device=True, **INLINE)
def begin_groups(shared):
    """Let the block begin with its first group of images."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        shared.state[IMAGE_GROUP] = uint32(cuda.blockIdx.x)
    cuda.syncthreads()


@cuda.jit(device=True, **INLINE)
def next_group(shared):
    """Let the block go on to its next group of images."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        shared.state[IMAGE_GROUP] += uint32(cuda.gridDim.x)
    cuda.syncthreads()


@cuda.jit(device=True, **INLINE)
def images_of(group, n):
    """Return how many of n images are in a group: GROUP, but of the last perhaps fewer."""
    return min(GROUP, uint32(n - group * GROUP))


@cuda.jit(device=True, **INLINE)
def load_pixels(images, group, sizes, here, shared):
    """Overwrite the beginning of shared.numbers with the pixels of a group of images.

    images: msgd.kernels.cuda.Images, whose x is flat.
    """
    words = cuda.local.array((AHEAD, 4), float32)
    n = images_of(group, images.n) * sizes.pixels
    first = (images.start + group * GROUP) * sizes.pixels
    i = uint32(FOUR * here.t)
    while i < n:
        for k in range(N_AHEAD):
            at = min(uint32(i + k * FOUR * THREADS), uint32(n - FOUR))
            a, b, c, d = load4(images.x, first + at)
            words[k, 0], words[k, 1], words[k, 2], words[k, 3] = a, b, c, d
        for k in range(N_AHEAD):
            at = uint32(i + k * FOUR * THREADS)
            if at < n:
                a, b = words[k, 0] * images.pixel_scale, words[k, 1] * images.pixel_scale
                c, d = words[k, 2] * images.pixel_scale, words[k, 3] * images.pixel_scale
                store4(shared.numbers, at, (a, b, c, d))
        i = uint32(i + N_AHEAD * FOUR * THREADS)


@cuda.jit(device=True, **INLINE)
def copy(source, first, n, here, target, at):
    """Copy source[first : first + n] to target[at : at + n], by all threads of a block."""
    i = here.t
    while i < n:
        target[at + i] = source[first + i]
        i = uint32(i + THREADS)


@cuda.jit(device=True, **INLINE)
def copy_words(source, first, n, here, target, at):
    """Copy as ``copy``, 16 bytes at once: first and at are multiples of 4, and so is n made.

    source, target: float32, with room for that.
    """
    words = cuda.local.array((AHEAD, 4), float32)
    last = uint32((n - ONE) // FOUR * FOUR)
    i = uint32(FOUR * here.t)
    while i < n:
        for k in range(N_AHEAD):
            a, b, c, d = load4(source, first + min(uint32(i + k * FOUR * THREADS), last))
            words[k, 0], words[k, 1], words[k, 2], words[k, 3] = a, b, c, d
        for k in range(N_AHEAD):
            if i + k * FOUR * THREADS < n:
                word = words[k, 0], words[k, 1], words[k, 2], words[k, 3]
                store4(target, at + i + k * FOUR * THREADS, word)
        i = uint32(i + N_AHEAD * FOUR * THREADS)


@cuda.jit(device=True, **INLINE)
def conv1_phase(images, group, sizes, parameters, kept, here, shared):
    """Overwrite a group's kept.h1, h1_by_square and places1: convolve, pool and activate.

    images: msgd.kernels.cuda.Images; parameters: Parameters; kept: Kept. A thread owns a pair of
    squares of five maps. One image after the other passes through shared memory, so that the block
    writes neighbouring numbers together.
    """
    bundles = (sizes.maps1 + N_MAPS - ONE) // N_MAPS
    filters, at = GROUP * sizes.pixels, N_TAPS * bundles * N_ROW_WEIGHTS
    outputs = N_MAPS * bundles * (sizes.squares1 + ONE)
    maps = Maps(filters, filters + at, filters + at + outputs)
    cuda.syncthreads()
    load_pixels(images, group, sizes, here, shared)
    copy_words(parameters.filters1, ZERO, at, here, shared.numbers, filters)
    cuda.syncthreads()
    for image in range(images_of(group, images.n)):
        task = here.t
        while task < sizes.squares1 // TWO * bundles:
            _conv1_pair(image, task, sizes, parameters, shared.numbers, maps)
            task = uint32(task + THREADS)
        cuda.syncthreads()
        _keep_h1(group * GROUP + image, sizes, kept, here, shared.numbers, maps)
        cuda.syncthreads()


@cuda.jit(device=True, **INLINE)
def _conv1_pair(image, task, sizes, parameters, numbers, maps):
    """Write a pair of squares of five maps of an image, number ``task``, to shared memory."""
    sums = cuda.local.array((MAPS, 8), float32)
    pixels = cuda.local.array(16, float32)
    weights = cuda.local.array(28, float32)
    pairs, pairs_in_row = sizes.squares1 // TWO, sizes.columns1 // TWO
    bundles = (sizes.maps1 + N_MAPS - ONE) // N_MAPS
    bundle, pair = uint32(task // pairs), uint32(task % pairs)
    row, column = uint32(pair // pairs_in_row), uint32(pair % pairs_in_row)
    corner = image * sizes.pixels + TWO * row * sizes.width + FOUR * column
    clear_sums(sums)
    weight = maps.filters + bundle * N_ROW_WEIGHTS
    registers = Pair(sums, pixels, weights)
    convolve_pair(numbers, corner, sizes.width, weight, bundles * N_ROW_WEIGHTS, registers)
    for m in range(N_MAPS):
        k = bundle * N_MAPS + m
        bias = parameters.bias1[k]
        for square in range(TWO):
            highest, places = pool(sums, m, square, sizes.first_only)
            at = k * (sizes.squares1 + ONE) + row * sizes.columns1 + TWO * column + square
            numbers[maps.outputs + at] = activate(highest + bias, sizes.activation)
            numbers[maps.places + at] = float32(places)


@cuda.jit(device=True, **INLINE)
def _keep_h1(image, sizes, kept, here, numbers, maps):
    """Copy the outputs of an image from shared memory to kept.h1, h1_by_square and places1."""
    n = sizes.maps1 * sizes.squares1
    stride, first = sizes.squares1 + ONE, image * n
    i = here.t
    while i < n:
        at = uint32(i // sizes.squares1) * stride + uint32(i % sizes.squares1)
        h = numbers[maps.outputs + at]
        at = uint32(i % sizes.maps1) * stride + uint32(i // sizes.maps1)
        kept.h1[first + i] = to_tf32(numbers[maps.outputs + at]) if sizes.tf32 else h
        kept.h1_by_square[first + i] = numbers[maps.outputs + at]
        kept.places1[first + i] = uint8(numbers[maps.places + at])
        i = uint32(i + THREADS)


@cuda.jit(device=True, **INLINE)
def conv2_phase(n_images, group, sizes, parameters, kept, here, shared):
    """Overwrite a group's kept.h2, h2_by_unit and places2 from its kept.h1.

    A thread owns a pair of squares of five maps of one image, through all input maps. An input map
    of the four images and its filters lie in shared memory while those of the next are on their
    way, in registers.
    """
    sums = cuda.local.array((MAPS, 8), float32)
    pixels = cuda.local.array(16, float32)
    weights = cuda.local.array(28, float32)
    registers = Pair(sums, pixels, weights)
    clear_sums(sums)
    bundles = (sizes.maps2 + N_MAPS - ONE) // N_MAPS
    pairs, in_row = sizes.squares2 // TWO, sizes.columns2 // TWO
    works = here.t < GROUP * pairs * bundles
    task = here.t if works else ZERO
    bundle, pair = uint32(task // pairs % bundles), uint32(task % pairs)
    filters = GROUP * sizes.squares1
    buffer = uint64(filters + N_TAPS * bundles * N_ROW_WEIGHTS)
    corner = uint32(task // (pairs * bundles)) * sizes.squares1
    corner += TWO * uint32(pair // in_row) * sizes.columns1 + FOUR * uint32(pair % in_row)
    weight = filters + bundle * N_ROW_WEIGHTS
    cuda.syncthreads()
    words = _fetch_map(ZERO, group, sizes, parameters, kept, here)
    _put_map(uint64(ZERO), sizes, here, shared.numbers, words)
    cuda.syncthreads()
    current = uint64(ZERO)
    for k in range(sizes.maps1):
        has_next = k + ONE < sizes.maps1
        if has_next:
            words = _fetch_map(k + ONE, group, sizes, parameters, kept, here)
        if works:
            at, row_weights = current + weight, bundles * N_ROW_WEIGHTS
            convolve_pair(
                shared.numbers, current + corner, sizes.columns1, at, row_weights, registers
            )
        current = buffer - current
        if has_next:
            _put_map(current, sizes, here, shared.numbers, words)
        cuda.syncthreads()
    if works and uint32(task // (pairs * bundles)) < images_of(group, n_images):
        _keep_h2(group, task, sizes, parameters, kept, sums)


@cuda.jit(device=True, **INLINE)
def _fetch_map(k, group, sizes, parameters, kept, here):
    """Return three words of 16 bytes: of input map k of four images, and of its filters."""
    nothing = float32(0), float32(0), float32(0), float32(0)
    h, filters, filters_later = nothing, nothing, nothing
    words = sizes.squares1 // FOUR  # of an image's map
    bundles = (sizes.maps2 + N_MAPS - ONE) // N_MAPS
    size = N_TAPS * bundles * N_ROW_WEIGHTS
    if here.t < sizes.squares1:
        image, word = uint32(here.t // words), uint32(here.t % words)
        at = (group * GROUP + image) * sizes.maps1 + k
        h = load4(kept.h1, at * sizes.squares1 + FOUR * word)
    if FOUR * here.t < size:
        filters = load4(parameters.filters2, k * size + FOUR * here.t)
    if FOUR * (here.t + THREADS) < size:
        filters_later = load4(parameters.filters2, k * size + FOUR * (here.t + THREADS))
    return h, filters, filters_later


@cuda.jit(device=True, **INLINE)
def _put_map(current, sizes, here, numbers, words):
    """Write what _fetch_map returned to the buffer that begins at numbers[current]."""
    bundles = (sizes.maps2 + N_MAPS - ONE) // N_MAPS
    size = N_TAPS * bundles * N_ROW_WEIGHTS
    filters = current + GROUP * sizes.squares1
    if here.t < sizes.squares1:
        store4(numbers, current + FOUR * here.t, words[0])
    if FOUR * here.t < size:
        store4(numbers, filters + FOUR * here.t, words[1])
    if FOUR * (here.t + THREADS) < size:
        store4(numbers, filters + FOUR * (here.t + THREADS), words[2])


@cuda.jit(device=True, **INLINE)
def _keep_h2(group, task, sizes, parameters, kept, sums):
    """Pool and activate sums (MAPS, 8) float32 registers into kept.h2, h2_by_unit and places2."""
    bundles = (sizes.maps2 + N_MAPS - ONE) // N_MAPS
    pairs, in_row = sizes.squares2 // TWO, sizes.columns2 // TWO
    bundle, pair = uint32(task // pairs % bundles), uint32(task % pairs)
    row, column = uint32(pair // in_row), uint32(pair % in_row)
    image = group * GROUP + uint32(task // (pairs * bundles))
    for square in range(TWO):
        at = row * sizes.columns2 + TWO * column + square
        word = ZERO
        for m in range(N_MAPS):
            k = bundle * N_MAPS + m
            highest, places = pool(sums, m, square, sizes.first_only)
            word = uint32(word | places << (FOUR * m))
            if k < sizes.maps2:
                h = activate(highest + parameters.bias2[k], sizes.activation)
                unit = k * sizes.squares2 + at
                kept.h2[image * sizes.features_padded + unit] = h
                kept.h2_by_unit[unit * sizes.batch_padded + image] = h
        kept.places2[(image * sizes.squares2 + at) * bundles + bundle] = word


@cuda.jit(device=True, **INLINE)
def hidden_phase(n_images, newer, sizes, parameters, kept, here, shared):
    """Overwrite kept.hidden of n_images: a tile of 64 images by 32 units after the other.

    newer: 0 or 1, which of the weights are the newer ones.
    """
    in_row = sizes.hidden_padded // TILE_COLUMNS
    first = newer * sizes.features_padded * sizes.hidden_padded
    tile = here.block
    while tile < uint32((n_images + TILE_ROWS - ONE) // TILE_ROWS) * in_row:
        row, column = uint32(tile // in_row) * TILE_ROWS, uint32(tile % in_row) * TILE_COLUMNS
        factors = Factors(
            kept.h2_by_unit,
            uint64(row),
            sizes.batch_padded,
            parameters.weights,
            uint64(first + column),
            sizes.hidden_padded,
        )
        multiply_tile(factors, sizes.features_padded // FOUR, here.t, sizes.tf32, shared.numbers)
        i = here.t
        while i < TILE_ROWS * TILE_COLUMNS:
            image, unit = row + i // TILE_COLUMNS, column + i % TILE_COLUMNS
            z = tile_sum(shared.numbers, i // TILE_COLUMNS, i % TILE_COLUMNS)
            if image < n_images:
                h = activate(z + parameters.hidden_bias[unit], sizes.activation)
                kept.hidden[image * sizes.hidden_padded + unit] = h
            i = uint32(i + THREADS)
        tile = uint32(tile + here.blocks)


@cuda.jit(device=True, **INLINE)
def logits_phase(group, sizes, parameters, kept, here, shared):
    """Overwrite shared.logits with those of a group of images, and shared.numbers with its hidden.

    A warp owns a class: its lanes add every 32nd term, and then each other's sums.
    """
    sums = cuda.local.array(GROUP_IMAGES, float32)
    c, lane = uint32(here.t // LANES), uint32(here.t % LANES)
    cuda.syncthreads()
    first, n = group * GROUP * sizes.hidden_padded, GROUP * sizes.hidden_padded
    copy_words(kept.hidden, first, n, here, shared.numbers, ZERO)
    cuda.syncthreads()
    for image in range(GROUP):
        sums[image] = float32(0)
    if c < sizes.classes:
        for i in range(sizes.hidden_padded // LANES):
            unit = lane + i * LANES
            weight = parameters.last_weights[c * sizes.hidden_padded + unit]
            for image in range(GROUP):
                sums[image] += shared.numbers[image * sizes.hidden_padded + unit] * weight
        for image in range(GROUP):
            sums[image] = sum_over_lanes(sums[image])
        if lane == ZERO:
            for image in range(GROUP):
                shared.logits[image, c] = sums[image] + parameters.last_bias[c]
    cuda.syncthreads()
