"""Logistic regression on CUDA, fast; ``cuda_plain.py`` computes the same in plain loops.

A span of minibatches is one cooperative launch. The images of a minibatch are split over blocks of
threads; at the published sizes, 600 images of 784 pixels in 10 classes, over 100 of them::

    block 0: images 0 to 5        block 1: images 6 to 11        ...    block 99: images 594 to 599

      thread t of a block: pixels 4t to 4t+3 of its 6 images, and their weights for 10 classes
         |  products of 4 pixels and 4 weights,
         |  summed over the 32 lanes of a warp by shuffles, over warps in shared memory
      6 x 10 logits
         |  softmax: a thread for each image
      6 x 10 errors, and the negative log-likelihoods
         |
      thread t: gradient of its 4 x 10 weights, summed over the 6 images

    partials, a row for each block:  | weights of class 0 | of class 1 | ... | bias | cost |
    ------------------------------------ the grid waits ------------------------------------
      block b: the b-th hundredth of the columns, each summed over the 100 rows in order;
               updates its parameters, and one block writes the cost
    ------------------------------------ the grid waits ------------------------------------

So the bits depend on the sizes alone: on no order of threads, on no device. ``sizes_of`` says how
other sizes are split: into at most 100 blocks, which take their images in rounds if they are many.
Where the last images are too few for a block, it takes some of its neighbour's again, with error
0. The penalties of the weights of before the step are shares of the cost column, too.

On the device the parameters have the order of a row of partials, class by class, so that threads
side by side read and write pixels side by side, 16 bytes each.

What the kernels here do not serve, those of cuda_plain.py do; see ``why_plain``: float64, a number
of pixels that four does not divide or above 1024, more than 16 classes, fewer multiprocessors than
blocks, and Numba's simulator without warps.
"""

import functools
from typing import NamedTuple

import numpy as np
from numba import cuda

from msgd.kernels import options
from msgd.kernels.cuda import (
    BLOCKS_PER_SM,
    HAS_WARPS,
    INLINE,
    IS_SIMULATOR,
    Images,
    penalty,
    penalty_gradient,
    sgd_step,
    softmax_cross_entropy,
)
from msgd.kernels.cuda_sums import LANES, sum_each_over_lanes, sum_over_lanes
from msgd.kernels.cuda_vectors import load4, store4
from msgd.kernels.formulas import has_penalty
from msgd.models.cuda_backend import log_plain
from msgd.models.logistic_regression import cuda_plain

MOST_PIXELS = 1024  # of an image: 256 threads
MOST_CLASSES = 16  # registers hold 4 weights and 4 gradients of each
MOST_BLOCKS = 100  # they wait for each other, so a device must hold them all at once
MOST_IMAGES = 6  # that a block takes at once, their pixels in registers
# In kernels a bare number is signed, and beside unsigned indices Numba would make floats of both.
ZERO, ONE, TWO, THREE, FOUR = (np.uint32(n) for n in range(5))


class Sizes(NamedTuple):
    """Who does what in a launch, as np.uint32: constants to the compiler, which unrolls by them."""

    pixels: int  # D, a multiple of 4
    classes: int  # C
    batch_size: int  # B
    images: int  # S, that a block takes at once
    rounds: int  # how often it does
    image_blocks: int  # blocks that have images: rows of partials
    blocks: int  # of the grid
    threads: int  # of a block
    readers: int  # the first D / 4 threads, which have pixels
    columns: int  # of a row of partials: the parameters, and the cost
    stride: int  # from a row of partials to the next, a multiple of 4
    share: int  # columns that a block sums
    teams: int  # of threads that sum a column together, each over its part of the rows
    together: int  # images whose logits are summed over a warp at once
    groups: int  # of so many images


def sizes_of(n_pixels, n_classes, batch_size):
    """Return the Sizes by which a minibatch is split, or other images, ``batch_size`` at a time."""
    per_block = -(-batch_size // MOST_BLOCKS)
    rounds = -(-per_block // MOST_IMAGES)
    images = -(-per_block // rounds)
    image_blocks = -(-batch_size // (images * rounds))
    threads = -(-max(n_pixels // 4, images * (n_classes + 1)) // 32) * 32
    columns = (n_pixels + 1) * n_classes + 1
    blocks = max(image_blocks, -(-columns // threads))
    share = -(-columns // blocks)
    teams = max(n for n in range(1, threads // share + 1) if image_blocks % n == 0)
    together = min(32 // n_classes, images)
    numbers = (
        *(n_pixels, n_classes, batch_size, images, rounds, image_blocks, blocks, threads),
        *(n_pixels // 4, columns, -(-columns // 4) * 4, share, teams),
        *(together, -(-images // together)),
    )
    return Sizes(*map(np.uint32, numbers))


def why_plain(n_pixels, n_classes, batch_size, float_x):
    """Return why the kernels here cannot serve, or "" if they can."""
    if float_x != np.float32:
        return "floatX is not float32"
    if n_pixels % 4 or n_pixels > MOST_PIXELS:
        return f"images have {n_pixels} pixels; allowed: multiples of 4 up to {MOST_PIXELS}"
    if n_classes > MOST_CLASSES:
        return f"there are {n_classes} classes; allowed: up to {MOST_CLASSES}"
    if IS_SIMULATOR:
        return "" if HAS_WARPS else "Numba's simulator has no warps"
    blocks = sizes_of(n_pixels, n_classes, batch_size).blocks
    available = cuda.get_current_device().MULTIPROCESSOR_COUNT
    if available < blocks:
        return f"the device has {available} multiprocessors; needed: {blocks}"
    return ""


class Backend(cuda_plain.Backend):
    """The CUDA twin; see msgd.models.interface.Backend."""

    @functools.cached_property
    def why_plain(self):
        """Why the plain kernels serve, or "" if the fast ones do."""
        n_pixels = self.shared.dataset.n_features
        why = why_plain(n_pixels, self.n_classes, self.batch_size, self.float_x)
        log_plain(why)
        return why

    @functools.cached_property
    def sizes(self):
        """The Sizes of the fast kernels."""
        return sizes_of(self.shared.dataset.n_features, self.n_classes, self.batch_size)

    def allocate(self):
        """Make the scratch arrays of training, and the kernels for its sizes."""
        if self.why_plain:
            super().allocate()
            return
        n_partials = int(self.sizes.image_blocks) * int(self.sizes.stride)
        self.partials = cuda.device_array(n_partials, np.float32)
        self.is_penalised = has_penalty(self.descent)
        self.train_kernel = make_train(self.sizes)
        n_pixels = self.shared.dataset.n_features
        self.logits_sizes = sizes_of(n_pixels, self.n_classes, MOST_BLOCKS * MOST_IMAGES)
        self.logits_kernel = make_logits(self.logits_sizes)

    def keep_parameters(self, parameters):
        """Copy the parameters to the device, in the order of a row of partials."""
        if self.why_plain:
            super().keep_parameters(parameters)
            return
        weights, bias = parameters["weights"], parameters["bias"]
        row = np.zeros(self.sizes.stride, np.float32)
        row[: weights.size] = weights.T.ravel()
        row[weights.size : weights.size + bias.size] = bias
        self.parameters = cuda.to_device(row)

    def fetch_parameters(self):
        """Return a copy of the parameters as a dict of name -> array."""
        if self.why_plain:
            return super().fetch_parameters()
        row = self.parameters.copy_to_host()
        n_weights = self.n_classes * self.shared.dataset.n_features
        weights = row[:n_weights].reshape(self.n_classes, -1).T
        bias = row[n_weights : n_weights + self.n_classes]
        return {"weights": np.ascontiguousarray(weights), "bias": bias.copy()}

    def launch_train(self, x, y, minibatch, costs):
        """Train len(costs) minibatches of x and y from number ``minibatch`` on."""
        if self.why_plain:
            super().launch_train(x, y, minibatch, costs)
            return
        blocks, threads = int(self.sizes.blocks), int(self.sizes.threads)
        self.train_kernel[blocks, threads, self.shared.stream](
            x,
            y,
            self.pixel_scale,
            self.descent,
            self.is_penalised,
            minibatch,
            self.parameters,
            self.partials,
            costs,
        )

    def launch_logits(self, x, logits):
        """Overwrite logits (n, C) with those of the images x (n, D)."""
        if self.why_plain:
            super().launch_logits(x, logits)
            return
        blocks = min(-(-len(x) // MOST_IMAGES), resident_blocks())
        self.logits_kernel[blocks, int(self.logits_sizes.threads)](
            x, self.pixel_scale, self.parameters, logits
        )


def resident_blocks():
    """Return how many blocks take turns at predicting: as many as the device holds at once."""
    if IS_SIMULATOR:
        return 2
    return BLOCKS_PER_SM * cuda.get_current_device().MULTIPROCESSOR_COUNT


class Registers(NamedTuple):
    """Arrays in the registers of a thread, float32."""

    weights: object  # (C, 4), of the thread's four pixels
    gradient: object  # (C, 4), by them
    pixels: object  # (S, 4)
    sums: object  # (32,)


class Shared(NamedTuple):
    """Arrays in the shared memory of a block, float32."""

    warp_sums: object  # (warps, S C), of products of a warp's pixels and weights
    logits: object  # (S, C)
    error: object  # (S, C + 1): the derivatives of the cost by the logits, and the image's cost
    warp_penalty: object  # (warps,), of the block's share of the weights
    team_sums: object  # (teams, share), of columns of partials


class Arrays(NamedTuple):
    """Arrays of the whole grid, float32."""

    parameters: object  # (stride,): the weights class by class, the bias, padding
    partials: object  # flat (image_blocks, stride): so the gradients of blocks, and their costs
    costs: object  # one per minibatch


def make_train(sizes):
    """Return the kernel that trains minibatches of these Sizes."""
    n_images, classes, threads = int(sizes.images), int(sizes.classes), int(sizes.threads)
    n_logits, n_errors, warps = n_images * classes, classes + 1, threads // 32
    teams, share = int(sizes.teams), int(sizes.share)

    @cuda.jit(launch_bounds=(threads, 1), **options.CUDA_ENTRY)
    def _train_fast(
        x,  # (N, D) uint8 or float32
        y,  # (N,) int32
        pixel_scale,  # float32, what a stored pixel is multiplied by
        descent,  # msgd.kernels.arguments.Descent
        is_penalised,  # whether any of its penalties is not zero
        minibatch,  # number of the first one
        parameters,  # (stride,) float32, changed; see Arrays
        partials,  # flat (image_blocks, stride) float32, scratch
        costs,  # float32, one per minibatch, overwritten
    ):
        """Train one minibatch after the other; write the cost of each before its update."""
        weights = cuda.local.array((classes, 4), np.float32)
        gradient = cuda.local.array((classes, 4), np.float32)
        pixels = cuda.local.array((n_images, 4), np.float32)
        sums = cuda.local.array(32, np.float32)
        registers = Registers(weights, gradient, pixels, sums)
        warp_sums = cuda.shared.array((warps, n_logits), np.float32)
        logits = cuda.shared.array((n_images, classes), np.float32)
        error = cuda.shared.array((n_images, n_errors), np.float32)
        warp_penalty = cuda.shared.array(warps, np.float32)
        team_sums = cuda.shared.array((teams, share), np.float32)
        shared = Shared(warp_sums, logits, error, warp_penalty, team_sums)
        arrays = Arrays(parameters, partials, costs)
        grid = cuda.cg.this_grid()
        for step in range(np.uint32(costs.shape[0])):
            if np.uint32(cuda.blockIdx.x) < sizes.image_blocks:
                start = (np.uint32(minibatch) + step) * sizes.batch_size
                images = Images(x, start, sizes.batch_size, pixel_scale)
                column = _gradient(sizes, images, y, parameters, registers, shared)
                if is_penalised:
                    column += _penalty(sizes, descent, parameters, shared.warp_penalty)
                _write_partials(sizes, registers.gradient, column, partials)
            grid.sync()
            _update(sizes, step, descent, is_penalised, arrays, team_sums)
            grid.sync()

    return _train_fast


@cuda.jit(device=True, **INLINE)
def _gradient(sizes, images, y, parameters, registers, shared):
    """Sum the gradient of the block's images: of the thread's weights into registers.gradient.

    images: msgd.kernels.cuda.Images, the minibatch; y: (N,) int32; parameters: (stride,) float32.
    Returns, to thread c below C, the gradient of bias c, and to thread C the cost without penalty.

    Where the minibatch ends before S images, they are counted back from its end; those of them that
    come before ``first``, whose turn was earlier, have error 0.
    """
    thread = np.uint32(cuda.threadIdx.x)
    column = np.float32(0)
    for c in range(sizes.classes):
        for p in range(FOUR):
            registers.gradient[c, p] = np.float32(0)
    for done in range(sizes.rounds):
        first = (np.uint32(cuda.blockIdx.x) * sizes.rounds + done) * sizes.images
        begin = min(np.uint32(first), np.uint32(sizes.batch_size - sizes.images))
        taken = Images(images.x, images.start + begin, sizes.images, images.pixel_scale)
        # Asked for here and used at the end, because memory takes long to answer.
        label = y[taken.start + min(thread, sizes.images - ONE)]
        _read_weights(sizes, parameters, registers.weights)
        _write_logits(sizes, taken, parameters, registers, shared)
        cuda.syncthreads()
        if thread < sizes.images:
            _write_error(sizes, begin + thread >= first, label, thread, shared)
        cuda.syncthreads()
        _add_gradient(sizes, shared.error, registers)
        if thread <= sizes.classes:
            for s in range(sizes.images):
                column += shared.error[s, thread]
    return column


@cuda.jit(device=True, **INLINE)
def _read_weights(sizes, parameters, weights):
    """Overwrite weights (C, 4) with those of the thread's pixels; without pixels, the first ones.

    parameters: (stride,) float32.
    """
    thread = np.uint32(cuda.threadIdx.x)
    pixel = FOUR * thread if thread < sizes.readers else FOUR * ZERO
    for c in range(sizes.classes):
        w0, w1, w2, w3 = load4(parameters, c * sizes.pixels + pixel)
        weights[c, ZERO], weights[c, ONE], weights[c, TWO], weights[c, THREE] = w0, w1, w2, w3


@cuda.jit(device=True, **INLINE)
def _write_logits(sizes, images, parameters, registers, shared):
    """Overwrite shared.logits (S, C) with those of S images.

    images: msgd.kernels.cuda.Images; if they are fewer than S, the last one is taken again.
    registers.weights have been read, and registers.pixels are kept for the gradient. The caller
    waits for the block before it reads the logits, and again before it calls anew.
    """
    thread = np.uint32(cuda.threadIdx.x)
    bias = parameters[sizes.classes * sizes.pixels + thread % sizes.classes]
    _read_pixels(sizes, images, registers.pixels)
    for group in range(sizes.groups):
        _write_warp_sums(sizes, group * sizes.together, registers, shared.warp_sums)
    cuda.syncthreads()
    if thread < sizes.images * sizes.classes:
        logit = bias
        for warp in range(sizes.threads // LANES):
            logit += shared.warp_sums[warp, thread]
        shared.logits[thread // sizes.classes, thread % sizes.classes] = logit


@cuda.jit(device=True, **INLINE)
def _read_pixels(sizes, images, pixels):
    """Overwrite pixels (S, 4) float32 with the thread's of S images; images: as in _write_logits.

    A thread beyond the pixels gets zeros.
    """
    thread = np.uint32(cuda.threadIdx.x)
    has_pixels = thread < sizes.readers
    pixel = FOUR * thread if has_pixels else FOUR * ZERO
    scale = images.pixel_scale if has_pixels else np.float32(0)
    start = images.start * sizes.pixels + pixel
    for s in range(sizes.images):
        i = min(np.uint32(s), np.uint32(images.n - ONE))
        x0, x1, x2, x3 = load4(images.x, start + i * sizes.pixels)
        pixels[s, ZERO], pixels[s, ONE] = np.float32(x0) * scale, np.float32(x1) * scale
        pixels[s, TWO], pixels[s, THREE] = np.float32(x2) * scale, np.float32(x3) * scale


@cuda.jit(device=True, **INLINE)
def _write_warp_sums(sizes, first, registers, warp_sums):
    """Overwrite the warp's row of warp_sums (warps, S C) for image ``first`` and those together.

    registers: pixels and weights of the thread; sums is scratch.
    """
    warp, lane = np.uint32(cuda.threadIdx.x) // LANES, np.uint32(cuda.threadIdx.x) % LANES
    pixels, weights, sums = registers.pixels, registers.weights, registers.sums
    for i in range(LANES):
        sums[i] = np.float32(0)
    for s in range(sizes.together):
        if first + s < sizes.images:
            for c in range(sizes.classes):
                total = pixels[first + s, ZERO] * weights[c, ZERO]
                for p in range(ONE, FOUR):
                    total += pixels[first + s, p] * weights[c, p]
                sums[s * sizes.classes + c] = total
    total = sum_each_over_lanes(sums, lane)
    place = first * sizes.classes + lane
    if lane < sizes.together * sizes.classes and place < sizes.images * sizes.classes:
        warp_sums[warp, place] = total


@cuda.jit(device=True, **INLINE)
def _write_error(sizes, is_there, label, s, shared):
    """Overwrite row s of shared.error (S, C + 1): the gradient by the logits, and the cost.

    is_there: whether the image is the block's; if not, both are 0. label: int32.
    """
    error = shared.error[s]
    if is_there:
        inverse_batch_size = np.float32(1) / np.float32(sizes.batch_size)
        nll = softmax_cross_entropy(shared.logits[s], label, inverse_batch_size, error)
        error[sizes.classes] = nll * inverse_batch_size
    else:
        for c in range(sizes.classes + ONE):
            error[c] = np.float32(0)


@cuda.jit(device=True, **INLINE)
def _add_gradient(sizes, error, registers):
    """Add to registers.gradient (C, 4) the pixels (S, 4) times error (S, C + 1)."""
    for s in range(sizes.images):
        for c in range(sizes.classes):
            derivative = error[s, c]
            for p in range(FOUR):
                registers.gradient[c, p] += registers.pixels[s, p] * derivative


@cuda.jit(device=True, **INLINE)
def _penalty(sizes, descent, parameters, warp_penalty):
    """Return to thread C the penalty of the block's share of all weights, to others 0.

    Threads of all blocks with images take weights in turn. descent: msgd.kernels.arguments.Descent;
    parameters: (stride,) float32; warp_penalty: (warps,) float32, overwritten.
    """
    thread = np.uint32(cuda.threadIdx.x)
    total = np.float32(0)
    k = np.uint32(cuda.blockIdx.x) * sizes.threads + thread
    while k < sizes.classes * sizes.pixels:
        total += penalty(parameters[k], descent)
        k += sizes.image_blocks * sizes.threads
    total = sum_over_lanes(total)
    if thread % LANES == ZERO:
        warp_penalty[thread // LANES] = total
    cuda.syncthreads()
    total = np.float32(0)
    if thread == sizes.classes:
        for warp in range(sizes.threads // LANES):
            total += warp_penalty[warp]
    return total


@cuda.jit(device=True, **INLINE)
def _write_partials(sizes, gradient, column, partials):
    """Overwrite the block's row of partials with gradient (C, 4) and column, see _gradient."""
    thread = np.uint32(cuda.threadIdx.x)
    row = np.uint32(cuda.blockIdx.x) * sizes.stride
    if thread < sizes.readers:
        for c in range(sizes.classes):
            four = gradient[c, ZERO], gradient[c, ONE], gradient[c, TWO], gradient[c, THREE]
            store4(partials, row + c * sizes.pixels + FOUR * thread, four)
    if thread <= sizes.classes:
        partials[row + sizes.classes * sizes.pixels + thread] = column


@cuda.jit(device=True, **INLINE)
def _update(sizes, step, descent, is_penalised, arrays, team_sums):
    """Sum the block's share of the columns of partials and take a step of SGD with them.

    A team of threads sums its part of the rows, one column a thread; the first team adds the sums
    of all, team_sums (teams, share), in order. arrays: Arrays; parameters and costs[step] change.
    """
    thread = np.uint32(cuda.threadIdx.x)
    team, k = thread // sizes.share, thread % sizes.share
    column = np.uint32(cuda.blockIdx.x) * sizes.share + k
    is_there = column < sizes.columns
    old = np.float32(0)
    if team < sizes.teams and is_there:
        old = arrays.parameters[column]
        n_rows = sizes.image_blocks // sizes.teams
        first = team * n_rows * sizes.stride + column
        total = arrays.partials[first]
        for j in range(ONE, n_rows):
            total += arrays.partials[first + j * sizes.stride]
        team_sums[team, k] = total
    cuda.syncthreads()
    if team == ZERO and is_there:
        total = team_sums[ZERO, k]
        for other in range(ONE, sizes.teams):
            total += team_sums[other, k]
        if column == sizes.columns - ONE:
            arrays.costs[step] = total
        else:
            if is_penalised and column < sizes.classes * sizes.pixels:
                total += penalty_gradient(old, descent)
            arrays.parameters[column] = sgd_step(old, total, descent)


def make_logits(sizes):
    """Return the kernel that computes the logits of any number of images, in groups of S."""
    n_images, classes, threads = int(sizes.images), int(sizes.classes), int(sizes.threads)
    n_logits, warps = n_images * classes, threads // 32

    @cuda.jit(launch_bounds=(threads, 1), **options.CUDA_ENTRY)
    def _logits_fast(x, pixel_scale, parameters, found):
        """Overwrite found (n, C) float32 with the logits of the images x, (n, D) uint8 or float32.

        pixel_scale: float32; parameters: (stride,) float32. Blocks take groups of images in turn.
        """
        weights = cuda.local.array((classes, 4), np.float32)
        pixels = cuda.local.array((n_images, 4), np.float32)
        sums = cuda.local.array(32, np.float32)
        registers = Registers(weights, weights, pixels, sums)
        warp_sums = cuda.shared.array((warps, n_logits), np.float32)
        logits = cuda.shared.array((n_images, classes), np.float32)
        shared = Shared(warp_sums, logits, logits, logits, logits)
        thread = np.uint32(cuda.threadIdx.x)
        _read_weights(sizes, parameters, weights)
        n = np.uint32(x.shape[0])
        first = np.uint32(cuda.blockIdx.x) * sizes.images
        while first < n:
            images = Images(x, first, min(sizes.images, n - first), pixel_scale)
            _write_logits(sizes, images, parameters, registers, shared)
            cuda.syncthreads()
            s, c = thread // sizes.classes, thread % sizes.classes
            if s < sizes.images and first + s < n:
                found[first + s, c] = logits[s, c]
            first += np.uint32(cuda.gridDim.x) * sizes.images

    return _logits_fast
