"""Multilayer perceptron on CUDA, for speed: one launch trains a span of minibatches.

The hidden units are split over blocks of threads, four each. A block keeps its units' parameters to
itself for the whole span; between blocks travel only their shares of the logits.

::

             block 0            block 1             A thread has, in registers,
           units 0 1 2 3      units 4 5 6 7         - the weights from its 4 pixels to the block's
          +-------------+    +-------------+          4 units, for the whole span,
      t=0 | pixels 0-3  |    | pixels 0-3  |        - these pixels of a tile of images.
      t=1 | pixels 4-7  |    | pixels 4-7  |  ...
       :  |    4 x 4    |    |    4 x 4    |        A block has, in shared memory,
          |   weights   |    |   weights   |        - the weights from its units to the C classes,
          +-------------+    +-------------+          their biases, and the biases of the classes.
     last | 4 x C       |    | 4 x C       |          The last warp, which has no pixels, updates
     warp |   weights   |    |   weights   |          them.
          +------+------+    +------+------+
                 | shares of logits |               Blocks exchange, in device memory,
                 +--------+---------+               - what their units add to the (B, C) logits.

    1 forward    a thread: what its pixels add to the units' inputs; sums over lanes, then warps
    2 activate   a thread per image and unit
    3 share      a thread per image and class: what the block's units add to the logit
                 ---- the grid waits ----
    4 logits     a warp per logit: the sum over all blocks
                 ---- the grid waits ----
    5 loss       a thread per image; every block computes the same
      penalties  a thread: of its weights, and their step
    6 errors     a thread per image and unit
    7 update     a thread: its weights; the last warp: what is in shared memory

Each sum has one order: over a thread's pixels, the lanes of a warp, the warps, the units of a
block, the blocks. So the bits are the same on every device.

Limits: float32, one hidden layer, images of bytes, a multiple of 4 pixels up to 1,024, 64 classes,
no lp, a multiprocessor for each 4 hidden units, and what shared memory holds: of 10 classes,
minibatches of 400 images. Where they are not met (``why_plain``) the plain kernels serve.

Legend, beyond that of ``model.py``: N images in all, B of a minibatch. A tile is the images whose
pixels are in registers at a time; a slot is the place of one. A quarter is 8 of a warp's 32 lanes.
"""

import functools
from typing import NamedTuple

import numpy as np
from numba import cuda, float32, uint32, uint64

from msgd.kernels import options
from msgd.kernels.arguments import Descent
from msgd.kernels.cuda import (
    HAS_WARPS,
    INLINE,
    IS_SIMULATOR,
    activate,
    activation_slope,
    has_penalty,
    is_l2_alone,
    l2_factor,
    ordered_sum,
    penalty,
    penalty_gradient,
    sgd_step,
    softmax_cross_entropy,
)
from msgd.kernels.cuda_sums import EVERY_LANE, LANES, sum_over_lanes
from msgd.kernels.cuda_vectors import bytes4, load4
from msgd.kernels.formulas import ACTIVATIONS
from msgd.models.cuda_backend import log_plain
from msgd.models.mlp import cuda_plain

# Sizes are unsigned: of a signed index Numba asks whether it counts from the end.
PIXELS = np.uint32(4)  # of a thread: the bytes of a word
UNITS = np.uint32(4)  # of a block
QUARTERS = np.uint32(4)
EIGHT = np.uint32(8)  # lanes of a quarter
ZERO, ONE, TWO = np.uint32(0), np.uint32(1), np.uint32(2)

MOST_IN_TILE = 20  # more images and the registers run out
MOST_PIXELS = 4 * 256  # of an image; a thread for each four
MOST_CLASSES = 64
MOST_SHARED_BYTES = 48 * 1024
PREDICTED_TOGETHER = 10_000  # images whose blocks' shares are in memory at a time
PREDICTING_BLOCKS = 2  # for the same units, each with a part of the images


class Sizes(NamedTuple):
    """What kernels are compiled for: sizes, uint32, and the activation."""

    batch_size: object  # B
    tile: object  # images of a tile, a multiple of QUARTERS
    tiles: object  # of a minibatch
    has_gaps: object  # whether a tile may have fewer images than it has room for, bool
    words: object  # of an image: a word is four pixels
    hidden: object  # units in all
    classes: object  # C
    blocks: object  # with UNITS of the hidden units each; the last may have fewer
    pixel_warps: object  # warps with pixels; a block has one warp more
    threads: object  # of a block
    activation: object  # of the hidden units: one of ACTIVATIONS


class Registers(NamedTuple):
    """What a thread has in registers."""

    weights: object  # (PIXELS, UNITS) float32
    pixels: object  # (tile, PIXELS) float32, unscaled
    words: object  # (tile,) uint32, pixels as they are stored
    sums: object  # (tile / 2, UNITS) float32: shares of the units' inputs
    gradient: object  # (PIXELS, UNITS) float32: of the weights, the pixels unscaled


class Shared(NamedTuple):
    """What the threads of a block have in shared memory, float32."""

    sums: object  # (warps, tile, UNITS): shares of the units' inputs
    hidden: object  # flat (slots, UNITS): the activations of the block's units
    hidden_error: object  # flat (slots, UNITS): the derivatives of the cost by the units' inputs
    logits: object  # (slots, C)
    logits_error: object  # (slots, C): the derivatives of the cost by the logits
    weights: object  # (UNITS, C): of the second layer
    hidden_bias: object  # (UNITS,)
    bias: object  # (C,)
    costs: object  # (warps + slots,): the penalty of each warp's weights, the loss of each image


class Place(NamedTuple):
    """Where a thread is, uint32."""

    block: object
    thread: object  # in its block; has the pixels of word ``thread``, if there is one
    warp: object
    lane: object
    quarter: object


class Batch(NamedTuple):
    """The images that pass through the network together."""

    x: object  # flat uint32: all images, a word for four pixels
    start: object  # the first of them, uint64
    n: object  # how many, uint32
    next_start: object  # where as many begin that come next; ``start`` if there are none


class Task(NamedTuple):
    """What is the same for all minibatches."""

    y: object  # (N,) int32, the labels
    pixel_scale: object  # float32
    descent: object  # msgd.kernels.arguments.Descent


class Exchange(NamedTuple):
    """What blocks write for each other, and for the costs, flat float32 in device memory."""

    shares: object  # (B, C, whole warps of blocks): what each block adds to a logit
    logits: object  # (B, C)
    example_nll: object  # (steps, B), the negative log-likelihoods
    penalties: object  # (steps, blocks)


class Backend(cuda_plain.Backend):
    """The CUDA twin; see msgd.models.interface.Backend."""

    def allocate(self):
        """Choose the kernels and make their scratch arrays."""
        self.why_plain = why_plain(self.shared.dataset, self.settings, self.float_x)
        log_plain(self.why_plain)
        if self.why_plain:
            super().allocate()
            return
        self.sizes = sizes_of(self.shared.dataset, self.settings)
        self._train_fast, self._share_logits_fast = make_kernels(self.sizes)
        n_logits = self.batch_size * self.n_classes
        self.shares = cuda.device_array(n_logits * blocks_row(self.sizes), self.float_x)
        self.logits = cuda.device_array(n_logits, self.float_x)

    def launch_train(self, x, y, minibatch, costs):
        """Train len(costs) minibatches of x and y from number ``minibatch`` on."""
        if self.why_plain:
            super().launch_train(x, y, minibatch, costs)
            return
        stream, sizes = self.shared.stream, self.sizes
        nll_shape, penalties_shape = (len(costs), self.batch_size), (len(costs), int(sizes.blocks))
        example_nll = self._buffer("example_nll", nll_shape, self.float_x)
        penalties = self._buffer("penalties", penalties_shape, self.float_x)
        self._train_fast[int(sizes.blocks), int(sizes.threads), stream](
            words_of(x),
            minibatch,
            len(costs),
            y,
            self.pixel_scale,
            self.descent,
            self.weights,
            self.bias,
            self.shares,
            self.logits,
            example_nll.reshape(example_nll.size),
            penalties.reshape(penalties.size),
        )
        blocks = -(-len(costs) // options.THREADS_PER_BLOCK)
        _sum_costs[blocks, options.THREADS_PER_BLOCK, stream](example_nll, penalties, costs)

    def launch_logits(self, x, logits):
        """Overwrite logits (n, C) with those of the images x (n, D)."""
        if self.why_plain:
            super().launch_logits(x, logits)
            return
        sizes = self.sizes
        together = min(len(x), PREDICTED_TOGETHER)
        row = blocks_row(sizes)
        n_shares = together * self.n_classes * row
        shares = self._buffer("shares_of_predictions", (n_shares,), self.float_x)
        for start in range(0, len(x), together):
            part = slice(start, min(start + together, len(x)))
            n = part.stop - start
            self._share_logits_fast[(int(sizes.blocks), PREDICTING_BLOCKS), int(sizes.threads)](
                words_of(x[part]),
                n,
                self.pixel_scale,
                self.weights,
                self.bias,
                shares,
            )
            warps = options.THREADS_PER_BLOCK // int(LANES)
            blocks = -(-n * self.n_classes // warps)
            _sum_logits[blocks, options.THREADS_PER_BLOCK](
                shares,
                int(sizes.blocks),
                self.bias[int(sizes.hidden) :],
                logits[part].reshape(n * self.n_classes),
            )


def why_plain(dataset, settings, float_x):
    """Return why the fast kernels cannot train this, or "" if they can."""
    n_features, n_classes = dataset.train_x.shape[1], dataset.n_classes
    if not HAS_WARPS:
        return "Numba's simulator has no warps"
    if float_x != np.float32:
        return "floatX is not float32"
    if np.size(settings["n_hidden"]) > 1:
        return "there is more than one hidden layer"
    if dataset.train_x.dtype != np.uint8:
        return "the pixels are not stored as bytes"
    if n_features % PIXELS or n_features > MOST_PIXELS:
        return f"images have {n_features} pixels; allowed: multiples of 4 up to {MOST_PIXELS}"
    if settings["lp"] > 0:
        return "lp is not 0"
    if n_classes > MOST_CLASSES:
        return f"there are {n_classes} classes; allowed: up to {MOST_CLASSES}"
    sizes = sizes_of(dataset, settings)
    if shared_bytes(sizes) > MOST_SHARED_BYTES:
        return (
            f"minibatches of {sizes.batch_size} images take {shared_bytes(sizes)} bytes of shared "
            f"memory; allowed: {MOST_SHARED_BYTES}"
        )
    if not IS_SIMULATOR:
        resident = cuda.get_current_device().MULTIPROCESSOR_COUNT
        if sizes.blocks > resident:
            return f"the device has {resident} multiprocessors; needed: {sizes.blocks}"
    return ""


def sizes_of(dataset, settings):
    """Return the Sizes for a data set and the settings of an experiment."""
    batch_size = settings["batch_size"]
    tiles = -(-batch_size // MOST_IN_TILE)
    tile = -(-batch_size // (tiles * int(QUARTERS))) * int(QUARTERS)
    words = dataset.train_x.shape[1] // int(PIXELS)
    n_threads = max(words, tile * int(UNITS))  # phase 2 has no loop over threads
    pixel_warps = -(-n_threads // int(LANES))
    hidden, classes = np.ravel(settings["n_hidden"])[0], dataset.n_classes
    blocks = -(-hidden // int(UNITS))
    threads = (pixel_warps + 1) * int(LANES)
    numbers = batch_size, tile, tiles, 0, words, hidden, classes, blocks, pixel_warps, threads
    activation = ACTIVATIONS[settings["activation"]]
    sizes = Sizes(*map(np.uint32, numbers), activation)
    return sizes._replace(has_gaps=tile * tiles > batch_size)


def shared_shapes(sizes):
    """Return the shapes of the arrays of Shared, in their order."""
    numbers = sizes.tile * sizes.tiles, sizes.pixel_warps, sizes.classes, UNITS
    slots, warps, classes, units = map(int, numbers)
    return (
        *((warps, int(sizes.tile), units), slots * units, slots * units),
        *((slots, classes), (slots, classes), (units, classes), units, classes, warps + slots),
    )


def shared_bytes(sizes):
    """Return the shared memory of a block that trains."""
    return 4 * sum(int(np.prod(shape)) for shape in shared_shapes(sizes))


def blocks_row(sizes):
    """Return how many numbers lie between the shares of two logits: whole warps of blocks."""
    return -(-int(sizes.blocks) // int(LANES)) * int(LANES)


def words_of(x):
    """Return images x (n, D) uint8 as flat uint32, four pixels each."""
    return x.reshape(x.size).view(np.uint32)


@cuda.jit(device=True, **INLINE)
def _place():
    """Return the Place of the calling thread."""
    thread = uint32(cuda.threadIdx.x)
    lane = uint32(thread % LANES)
    return Place(
        uint32(cuda.blockIdx.x), thread, uint32(thread // LANES), lane, uint32(lane // EIGHT)
    )


@cuda.jit(device=True, **INLINE)
def _is_unit(unit, place, sizes):
    """Return whether the block's ``unit`` is one: the last block may have fewer than UNITS."""
    return sizes.hidden % UNITS == 0 or place.block * UNITS + unit < sizes.hidden


@cuda.jit(device=True, **INLINE)
def _load_parameters(weights, bias, sizes, place, registers, shared):
    """Take the block's parameters from flat ``weights`` and ``bias`` (see cuda_plain.Network).

    Overwrites registers.weights and, in ``shared``, weights, hidden_bias and bias. What would
    belong to pixels or units that are not there is 0.
    """
    zero = float32(0)
    for pixel in range(PIXELS):
        row = (place.thread * PIXELS + pixel) * sizes.hidden + place.block * UNITS
        for unit in range(UNITS):
            registers.weights[pixel, unit] = zero
            if place.thread < sizes.words and _is_unit(unit, place, sizes):
                registers.weights[pixel, unit] = weights[row + unit]
    first = sizes.words * PIXELS * sizes.hidden  # of the second layer
    for base in range(ZERO, UNITS * sizes.classes, sizes.threads):
        k = uint32(base + place.thread)
        if k < UNITS * sizes.classes:
            unit, c = k // sizes.classes, k % sizes.classes
            shared.weights[unit, c] = zero
            if _is_unit(unit, place, sizes):
                row = first + (place.block * UNITS + unit) * sizes.classes
                shared.weights[unit, c] = weights[row + c]
    if place.thread < UNITS:
        shared.hidden_bias[place.thread] = zero
        if _is_unit(place.thread, place, sizes):
            shared.hidden_bias[place.thread] = bias[place.block * UNITS + place.thread]
    if place.thread < sizes.classes:
        shared.bias[place.thread] = bias[sizes.hidden + place.thread]


@cuda.jit(device=True, **INLINE)
def _store_parameters(weights, bias, sizes, place, registers, shared):
    """Write the block's parameters to flat ``weights`` and ``bias``; the inverse of loading."""
    if place.thread < sizes.words:
        for pixel in range(PIXELS):
            row = (place.thread * PIXELS + pixel) * sizes.hidden + place.block * UNITS
            for unit in range(UNITS):
                if _is_unit(unit, place, sizes):
                    weights[row + unit] = registers.weights[pixel, unit]
    first = sizes.words * PIXELS * sizes.hidden
    for base in range(ZERO, UNITS * sizes.classes, sizes.threads):
        k = uint32(base + place.thread)
        if k < UNITS * sizes.classes:
            unit, c = k // sizes.classes, k % sizes.classes
            if _is_unit(unit, place, sizes):
                row = first + (place.block * UNITS + unit) * sizes.classes
                weights[row + c] = shared.weights[unit, c]
    if place.thread < UNITS and _is_unit(place.thread, place, sizes):
        bias[place.block * UNITS + place.thread] = shared.hidden_bias[place.thread]
    if place.block == 0 and place.thread < sizes.classes:
        bias[sizes.hidden + place.thread] = shared.bias[place.thread]


@cuda.jit(device=True, **INLINE)
def _image_of(slot, quarter, sizes):
    """Return which image of a tile is in a ``slot`` of the registers of a quarter's threads.

    The quarters have a tile's images in different orders. So when lanes add up their sums, what
    lane and partner exchange lies in the same registers of both, and nobody has to choose.
    """
    images = sizes.tile // QUARTERS
    return (slot // images ^ quarter) * images + slot % images


@cuda.jit(device=True, **INLINE)
def _fetch(x, start, n, sizes, place, words):
    """Overwrite words (tile,) uint32 with the thread's word of each image of a tile.

    x: flat uint32, the images; the tile's are x's ``start`` and following, ``n`` at most: a slot
    without an image gets 0.
    """
    if place.thread < sizes.words:
        for slot in range(sizes.tile):
            image = _image_of(slot, place.quarter, sizes)
            if not sizes.has_gaps or image < n:
                words[slot] = x[(start + image) * sizes.words + place.thread]
            else:
                words[slot] = uint32(0)


@cuda.jit(device=True, **INLINE)
def _unpack(sizes, registers):
    """Overwrite registers.pixels with the bytes of registers.words."""
    for slot in range(sizes.tile):
        first, second, third, fourth = bytes4(registers.words[slot])
        registers.pixels[slot, 0] = first
        registers.pixels[slot, 1] = second
        registers.pixels[slot, 2] = third
        registers.pixels[slot, 3] = fourth


@cuda.jit(device=True, **INLINE)
def _share(slot, unit, registers):
    """Return what the thread's pixels of an image add to the input of a unit, unscaled."""
    total = registers.pixels[slot, 0] * registers.weights[0, unit]
    for pixel in range(ONE, PIXELS):
        total += registers.pixels[slot, pixel] * registers.weights[pixel, unit]
    return total


@cuda.jit(device=True, **INLINE)
def _forward(sizes, place, registers, sums_of_warps):
    """Write a warp's shares of the inputs of units to sums_of_warps (warps, tile, UNITS).

    The sums over the lanes: at each level lane and partner each keep half of their numbers, and add
    to them what the other gives. So they halve the images, twice, and the units, twice. At the last
    level there is one number left, which two lanes both add up.
    """
    images = sizes.tile // QUARTERS
    sums = registers.sums
    for slot in range(TWO * images):
        for unit in range(UNITS):
            given = _share(slot + TWO * images, unit, registers)
            kept = _share(slot, unit, registers)
            sums[slot, unit] = kept + cuda.shfl_xor_sync(EVERY_LANE, given, 16)
    for slot in range(images):
        for unit in range(UNITS):
            sums[slot, unit] += cuda.shfl_xor_sync(EVERY_LANE, sums[slot + images, unit], 8)
        upper = place.lane & 4 != 0
        first = _keep_half(upper, sums[slot, 0], sums[slot, 2], 4)
        second = _keep_half(upper, sums[slot, 1], sums[slot, 3], 4)
        total = _keep_half(place.lane & 2 != 0, first, second, 2)
        total += cuda.shfl_xor_sync(EVERY_LANE, total, 1)
        if place.lane & 1 == 0 and place.warp < sizes.pixel_warps:
            image = place.quarter * images + slot
            sums_of_warps[place.warp, image, (place.lane >> ONE) & np.uint32(3)] = total


@cuda.jit(device=True, **INLINE)
def _keep_half(upper, low, high, distance):
    """Return ``high`` if upper, else ``low``, plus the same of the lane at that distance."""
    kept, given = (high, low) if upper else (low, high)
    return kept + cuda.shfl_xor_sync(EVERY_LANE, given, distance)


@cuda.jit(device=True, **INLINE)
def _activate_tile(tile, pixel_scale, sizes, place, shared):
    """Overwrite the activations of a tile's images in shared.hidden: a thread each.

    Those of units and images that are not there are 0, and so add nothing to the gradients.
    """
    slot, unit = place.thread // UNITS, place.thread % UNITS
    if slot < sizes.tile:
        total = shared.sums[0, slot, unit]
        for warp in range(ONE, sizes.pixel_warps):
            total += shared.sums[warp, slot, unit]
        h = activate(total * pixel_scale + shared.hidden_bias[unit], sizes.activation)
        image = tile * sizes.tile + slot
        is_there = _is_unit(unit, place, sizes) and image < sizes.batch_size
        shared.hidden[image * UNITS + unit] = h if is_there else float32(0)


@cuda.jit(device=True, **INLINE)
def _share_logits(first, n, sizes, place, shared, shares):
    """Write what the block's units add to the logits of n images to ``shares``, flat (.., C, row).

    first: which image of ``shares`` the first is. A thread per image and class.
    """
    row = (sizes.blocks + LANES - ONE) // LANES * LANES
    for base in range(ZERO, n * sizes.classes, sizes.threads):
        k = uint32(base + place.thread)
        if k < n * sizes.classes:
            image, c = k // sizes.classes, k % sizes.classes
            share = shared.hidden[image * UNITS] * shared.weights[0, c]
            for unit in range(ONE, UNITS):
                share += shared.hidden[image * UNITS + unit] * shared.weights[unit, c]
            shares[(first * sizes.classes + k) * row + place.block] = share


@cuda.jit(device=True, **INLINE)
def _sum_shares(shares, logit, blocks, lane):
    """Return the sum over all blocks of their shares of a logit, to each lane of a warp."""
    row = (blocks + LANES - ONE) // LANES * LANES
    total = float32(0)
    for base in range(ZERO, blocks, LANES):
        block = uint32(base + lane)
        if block < blocks:
            total += shares[logit * row + block]
    return sum_over_lanes(total)


@cuda.jit(device=True, **INLINE)
def _sum_logits_of_minibatch(sizes, place, shared, exchange):
    """Overwrite exchange.logits: a warp per logit, of all warps of the grid."""
    warps = sizes.pixel_warps + ONE
    logit = place.warp * sizes.blocks + place.block
    while logit < sizes.batch_size * sizes.classes:
        total = _sum_shares(exchange.shares, logit, sizes.blocks, place.lane)
        if place.lane == 0:
            exchange.logits[logit] = total + shared.bias[logit % sizes.classes]
        logit += warps * sizes.blocks


@cuda.jit(device=True, **INLINE)
def _penalise(descent, sizes, place, registers, shared):
    """Take the step of SGD on the penalties alone, of the first layer's weights.

    Before, writes the penalties of all the block's weights to shared.costs, a sum per warp: a
    thread adds up those of its own weights and, by its number, of the second layer's. The last warp
    has no pixels and is not called.
    """
    total = float32(0)
    if is_l2_alone(descent):
        for pixel in range(PIXELS):
            for unit in range(UNITS):
                weight = registers.weights[pixel, unit]
                total += weight * weight
                registers.weights[pixel, unit] = weight * l2_factor(descent)
        total *= descent.l2
    else:
        for pixel in range(PIXELS):
            for unit in range(UNITS):
                weight = registers.weights[pixel, unit]
                total += penalty(weight, descent)
                registers.weights[pixel, unit] = sgd_step(
                    weight, penalty_gradient(weight, descent), descent
                )
    for base in range(ZERO, UNITS * sizes.classes, sizes.pixel_warps * LANES):
        k = uint32(base + place.thread)
        if k < UNITS * sizes.classes:
            total += penalty(shared.weights[k // sizes.classes, k % sizes.classes], descent)
    total = sum_over_lanes(total)
    if place.lane == 0:
        shared.costs[place.warp] = total


@cuda.jit(device=True, **INLINE)
def _loss(y, start, sizes, place, shared, logits):
    """Overwrite shared.logits_error and the losses: a thread per image, the same in all blocks.

    y: (N,) int32, the labels, of which the minibatch's begin at ``start``; logits: see Exchange.
    The first image's thread is the block's last, for the last warp has the least to do. An image
    that is not there keeps the error 0.
    """
    inverse_batch_size = float32(1) / float32(sizes.batch_size)
    for base in range(ZERO, sizes.batch_size, sizes.threads):
        image = uint32(base + sizes.threads - ONE - place.thread)
        if image < sizes.batch_size:
            label = y[start + image]
            for c in range(sizes.classes):
                shared.logits[image, c] = logits[image * sizes.classes + c]
            shared.costs[sizes.pixel_warps + image] = softmax_cross_entropy(
                shared.logits[image], label, inverse_batch_size, shared.logits_error[image]
            )


@cuda.jit(device=True, **INLINE)
def _write_costs(step, sizes, place, shared, exchange):
    """Write what the cost of step ``step`` is made of to ``exchange``: the block's last warp.

    The negative log-likelihoods are the same in all blocks; block 0 writes them.
    """
    if place.warp < sizes.pixel_warps:
        return
    if place.block == 0:
        for base in range(ZERO, sizes.batch_size, LANES):
            image = uint32(base + place.lane)
            if image < sizes.batch_size:
                exchange.example_nll[step * sizes.batch_size + image] = shared.costs[
                    sizes.pixel_warps + image
                ]
    if place.lane == 0:
        total = shared.costs[0]
        for warp in range(ONE, sizes.pixel_warps):
            total += shared.costs[warp]
        exchange.penalties[step * sizes.blocks + place.block] = total


@cuda.jit(device=True, **INLINE)
def _hidden_errors(sizes, place, shared):
    """Overwrite shared.hidden_error: a thread per image and unit."""
    for base in range(ZERO, sizes.tiles * sizes.tile * UNITS, sizes.threads):
        k = uint32(base + place.thread)
        if k < sizes.tiles * sizes.tile * UNITS:
            image, unit = k // UNITS, k % UNITS
            total = shared.logits_error[image, 0] * shared.weights[unit, 0]
            for c in range(ONE, sizes.classes):
                total += shared.logits_error[image, c] * shared.weights[unit, c]
            shared.hidden_error[k] = total * activation_slope(shared.hidden[k], sizes.activation)


@cuda.jit(device=True, **INLINE)
def _add_gradient(tile, sizes, place, registers, shared):
    """Add a tile's part of the gradient of the thread's weights to registers.gradient."""
    for slot in range(sizes.tile):
        image = tile * sizes.tile + _image_of(slot, place.quarter, sizes)
        first, second, third, fourth = load4(shared.hidden_error, image * UNITS)
        for pixel in range(PIXELS):
            registers.gradient[pixel, 0] += registers.pixels[slot, pixel] * first
            registers.gradient[pixel, 1] += registers.pixels[slot, pixel] * second
            registers.gradient[pixel, 2] += registers.pixels[slot, pixel] * third
            registers.gradient[pixel, 3] += registers.pixels[slot, pixel] * fourth


@cuda.jit(device=True, **INLINE)
def _update_shared(descent, sizes, place, registers, shared):
    """Take a step of SGD on what is in shared memory: the last warp, a lane per class, then unit.

    registers: of a warp without pixels; the first row of the gradient is overwritten.
    """
    slots = sizes.tiles * sizes.tile
    for base in range(ZERO, sizes.classes, LANES):
        c = uint32(base + place.lane)
        if c < sizes.classes:
            of_bias = float32(0)
            for unit in range(UNITS):
                registers.gradient[0, unit] = float32(0)
            for image in range(slots):
                error = shared.logits_error[image, c]
                first, second, third, fourth = load4(shared.hidden, image * UNITS)
                of_bias += error
                registers.gradient[0, 0] += first * error
                registers.gradient[0, 1] += second * error
                registers.gradient[0, 2] += third * error
                registers.gradient[0, 3] += fourth * error
            shared.bias[c] = sgd_step(shared.bias[c], of_bias, descent)
            for unit in range(UNITS):
                weight = shared.weights[unit, c]
                gradient = registers.gradient[0, unit] + penalty_gradient(weight, descent)
                shared.weights[unit, c] = sgd_step(weight, gradient, descent)
    if place.lane < UNITS:
        of_bias = float32(0)
        for image in range(slots):
            of_bias += shared.hidden_error[image * UNITS + place.lane]
        bias = shared.hidden_bias[place.lane]
        shared.hidden_bias[place.lane] = sgd_step(bias, of_bias, descent)


@cuda.jit(device=True, **INLINE)
def _activate_batch(batch, pixel_scale, sizes, place, registers, shared):
    """Overwrite shared.hidden with the activations of the block's units for a batch.

    If it is one tile, its words are in the registers already.
    """
    for tile in range(sizes.tiles):
        first = tile * sizes.tile
        if sizes.tiles > ONE:
            _fetch(batch.x, batch.start + first, batch.n - first, sizes, place, registers.words)
        _unpack(sizes, registers)
        _forward(sizes, place, registers, shared.sums)
        cuda.syncthreads()
        _activate_tile(tile, pixel_scale, sizes, place, shared)
        cuda.syncthreads()


@cuda.jit(device=True, **INLINE)
def _update(batch, pixel_scale, descent, sizes, place, registers, shared):
    """Take a step of SGD on the block's parameters; the penalties' step on the weights is taken.

    If a batch is one tile, the words of the next one are fetched meanwhile.
    """
    if place.warp == sizes.pixel_warps:
        _update_shared(descent, sizes, place, registers, shared)
        return
    for pixel in range(PIXELS):
        for unit in range(UNITS):
            registers.gradient[pixel, unit] = float32(0)
    if sizes.tiles == ONE:
        _fetch(batch.x, batch.next_start, batch.n, sizes, place, registers.words)
    for tile in range(sizes.tiles):
        if sizes.tiles > ONE:
            first = tile * sizes.tile
            _fetch(batch.x, batch.start + first, batch.n - first, sizes, place, registers.words)
            _unpack(sizes, registers)
        _add_gradient(tile, sizes, place, registers, shared)
    for pixel in range(PIXELS):
        for unit in range(UNITS):
            gradient = registers.gradient[pixel, unit] * pixel_scale
            registers.weights[pixel, unit] = sgd_step(
                registers.weights[pixel, unit], gradient, descent
            )


@cuda.jit(device=True, **INLINE)
def _exchange_logits(sizes, place, shared, exchange):
    """Overwrite exchange.logits with the sums over all blocks."""
    grid = cuda.cg.this_grid()
    zero = np.uint32(0)
    _share_logits(zero, sizes.batch_size, sizes, place, shared, exchange.shares)
    grid.sync()
    _sum_logits_of_minibatch(sizes, place, shared, exchange)
    grid.sync()


@cuda.jit(device=True, **INLINE)
def _begin(sizes, place, registers, shared):
    """Overwrite with 0 what is read before it is written, or where there are no images."""
    for slot in range(sizes.tile):
        registers.words[slot] = uint32(0)
    for base in range(ZERO, sizes.tiles * sizes.tile * sizes.classes, sizes.threads):
        k = uint32(base + place.thread)
        if k < sizes.tiles * sizes.tile * sizes.classes:
            shared.logits_error[k // sizes.classes, k % sizes.classes] = float32(0)
    if place.thread < sizes.pixel_warps:
        shared.costs[place.thread] = float32(0)


@cuda.jit(device=True, **INLINE)
def _train_minibatch(batch, task, step, sizes, place, registers, shared, exchange):
    """Train the minibatch ``batch``, the span's number ``step``. exchange: Exchange."""
    scale = task.pixel_scale
    _activate_batch(batch, scale, sizes, place, registers, shared)
    _exchange_logits(sizes, place, shared, exchange)
    if place.warp < sizes.pixel_warps and has_penalty(task.descent):
        _penalise(task.descent, sizes, place, registers, shared)
    _loss(task.y, batch.start, sizes, place, shared, exchange.logits)
    cuda.syncthreads()
    _hidden_errors(sizes, place, shared)
    _write_costs(step, sizes, place, shared, exchange)
    cuda.syncthreads()
    _update(batch, scale, task.descent, sizes, place, registers, shared)


def make_shared_memory(sizes):
    """Return the function that returns the arrays Shared of the calling thread's block."""
    sums, hidden, hidden_error, logits, logits_error, *more = shared_shapes(sizes)
    weights, hidden_bias, bias, costs = more

    @cuda.jit(device=True, **INLINE)
    def shared_memory():
        """Return the block's Shared."""
        return Shared(
            cuda.shared.array(sums, float32),
            cuda.shared.array(hidden, float32, alignment=16),
            cuda.shared.array(hidden_error, float32, alignment=16),
            cuda.shared.array(logits, float32),
            cuda.shared.array(logits_error, float32),
            cuda.shared.array(weights, float32),
            cuda.shared.array(hidden_bias, float32),
            cuda.shared.array(bias, float32),
            cuda.shared.array(costs, float32),
        )

    return shared_memory


def make_train(sizes):
    """Return the kernel that trains a span of minibatches, for some Sizes.

    Of its arguments x is flat uint32 (see words_of), minibatch the number of the first one and
    n_steps how many they are; y, pixel_scale and descent are those of a Task; weights
    and bias (see cuda_plain.Network) are changed; the rest, an Exchange, is overwritten.
    """
    shared_memory = make_shared_memory(sizes)
    numbers = sizes.tile, sizes.tile // 2, PIXELS, UNITS, sizes.threads
    tile, half, pixels, units, threads = map(int, numbers)

    @cuda.jit(launch_bounds=(threads, 1), **options.CUDA_ENTRY)
    def _train_fast(
        x,
        minibatch,
        n_steps,
        y,
        pixel_scale,
        descent,
        weights,
        bias,
        shares,
        logits,
        example_nll,
        penalties,
    ):
        """Train one minibatch after the other, with the parameters in registers."""
        registers = Registers(
            cuda.local.array((pixels, units), float32),
            cuda.local.array((tile, pixels), float32),
            cuda.local.array(tile, uint32),
            cuda.local.array((half, units), float32),
            cuda.local.array((pixels, units), float32),
        )
        place, shared = _place(), shared_memory()
        no_lp = Descent(descent.rate, descent.l1, descent.l2, float32(0), float32(1))
        task = Task(y, pixel_scale, no_lp)
        exchange = Exchange(shares, logits, example_nll, penalties)
        _begin(sizes, place, registers, shared)
        _load_parameters(weights, bias, sizes, place, registers, shared)
        steps, n = uint32(n_steps), sizes.batch_size
        _fetch(x, uint64(minibatch) * n, n, sizes, place, registers.words)
        for step in range(steps):
            start = (uint64(minibatch) + step) * n
            batch = Batch(x, start, n, start + n if step + ONE < steps else start)
            _train_minibatch(batch, task, step, sizes, place, registers, shared, exchange)
        cuda.syncthreads()
        _store_parameters(weights, bias, sizes, place, registers, shared)

    return _train_fast


def make_share_logits(sizes):
    """Return the kernel that computes what each block adds to the logits of images, for some Sizes.

    Of its arguments x is flat uint32, n images; weights and bias: see cuda_plain.Network; shares is
    overwritten, see Exchange. The second dimension of the grid counts blocks with the same units,
    which share the tiles of images out.
    """
    shared_memory = make_shared_memory(sizes)
    numbers = sizes.tile, sizes.tile // 2, PIXELS, UNITS, sizes.threads
    tile, half, pixels, units, threads = map(int, numbers)

    @cuda.jit(launch_bounds=(threads, 1), **options.CUDA_ENTRY)
    def _share_logits_fast(x, n, pixel_scale, weights, bias, shares):
        """Compute tile after tile."""
        registers = Registers(
            cuda.local.array((pixels, units), float32),
            cuda.local.array((tile, pixels), float32),
            cuda.local.array(tile, uint32),
            cuda.local.array((half, units), float32),
            cuda.local.array((pixels, units), float32),
        )
        place, shared = _place(), shared_memory()
        _begin(sizes, place, registers, shared)
        _load_parameters(weights, bias, sizes, place, registers, shared)
        images, n_tiles = uint32(n), uint32((uint32(n) + sizes.tile - ONE) // sizes.tile)
        number = uint32(cuda.blockIdx.y)
        while number < n_tiles:
            first = number * sizes.tile
            there = min(sizes.tile, images - first)
            _fetch(x, first, there, sizes, place, registers.words)
            batch = Batch(x, first, there, first)
            _activate_batch(batch, pixel_scale, sizes, place, registers, shared)
            _share_logits(first, there, sizes, place, shared, shares)
            number = uint32(number + uint32(cuda.gridDim.y))

    return _share_logits_fast


@functools.cache
def make_kernels(sizes):
    """Return (_train_fast, _share_logits_fast), compiled for some Sizes at their first launch.

    Predictions go by single tiles, whatever the minibatch.
    """
    predicting = sizes._replace(tiles=ONE, batch_size=sizes.tile, has_gaps=True)
    return make_train(sizes), make_share_logits(predicting)


@cuda.jit(**options.CUDA_ENTRY)
def _sum_logits(shares, blocks, bias, logits):
    """Overwrite logits, flat (n, C) float32, with the sums of ``shares`` and biases: a warp each.

    shares: see Exchange, of ``blocks`` blocks; bias: (C,) float32.
    """
    thread, classes = uint32(cuda.grid(1)), uint32(bias.shape[0])
    logit, lane = uint32(thread // LANES), uint32(thread % LANES)
    if logit < logits.shape[0]:
        total = _sum_shares(shares, logit, uint32(blocks), lane)
        if lane == 0:
            logits[logit] = total + bias[logit % classes]


@cuda.jit(**options.CUDA_ENTRY)
def _sum_costs(example_nll, penalties, costs):
    """Overwrite costs (steps,) float32 with the costs of minibatches, a thread each.

    example_nll: (steps, B) float32; penalties: (steps, blocks) float32: those of Exchange.
    """
    step = cuda.grid(1)
    if step < costs.shape[0]:
        n_images = float32(example_nll.shape[1])
        costs[step] = ordered_sum(example_nll[step]) / n_images + ordered_sum(penalties[step])
