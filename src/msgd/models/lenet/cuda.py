"""LeNet on CUDA: fast kernels for the published layers; those of ``cuda_plain.py`` for all others.

Many minibatches are trained in one cooperative launch, with a block of 320 threads on each SM. A
minibatch (in brackets: with the published sizes, 500 images) passes through::

    a group of 4 images in a block, 125 groups
      convolution 1          thread: a pair of squares of 5 maps of an image    [72 x 4 a round]
      convolution 2          thread: a pair of squares of 5 maps of an image    [4 x 8 x 10]
    = grid waits ===========================================================================
    a tile of 64 images x 32 hidden units in a block, [8 x 16] tiles: kernels/cuda_product.py
      hidden layer           thread: 8 x 4 sums, each of a quarter of the terms
    = grid waits ===========================================================================
    a group of 4 images in a block
      last layer             warp: a class; lane: every 32nd hidden unit
      loss, hidden errors    thread: an image, then a hidden unit
    = grid waits ===========================================================================
      last weights, biases   block: 4 hidden units; thread: an eighth of a sum
    a tile in a block, [8 x 25 + 8 x 25]
      errors of h2           64 images x 32 features
      hidden weights         64 units x 32 features; the next ones lie beside those of now
    = grid waits ===========================================================================
    a group of 4 images in a block, which keeps its part of the gradients
      filters 2              warp: 5 output maps; lane: an input map; 125 sums in registers
      errors of h1           warp: a row of squares; lane: an input map; 6 rows of its pixels
      filters 1              thread: a map and every 16th square; 25 sums
    = grid waits ===========================================================================
      filters, their biases  thread: one of them; adds the groups' parts in order
    = grid waits ===========================================================================

A square is the 2 x 2 pixels of a map that pooling reduces to one. In brackets is how many pieces of
work there are: pairs of squares times bundles of 5 maps, images too if a group passes together. A
prediction passes through what lies before the third wait, as three kernels. Bits do not depend on
the number of blocks: sizes fix every sum's order.

Limits: float32, two layers of 5 x 5 filters with pooling by 2, one hidden layer, images of 20 or 28
columns and 16 to 35 rows, up to 10 classes, and as many maps and hidden units as shared memory
holds: of 28 x 28 pixels 20 and 50 maps, and with them 2,944 units. Where they are not met
(``cuda_layout.why_plain``) the plain kernels serve.

The parameters lie flat between launches, as in ``cuda_plain.py``; kernels arrange them before a
launch and flatten them after it. ``cuda_forward.py`` and ``cuda_backward.py`` have the phases, and
``cuda_tensor.py`` those that tensor cores take over where ``arithmetic`` is tf32.
"""

import functools

import numpy as np
from numba import cuda, float32, uint32

from msgd.errors import UserError
from msgd.kernels import cuda as kernels
from msgd.kernels import options
from msgd.kernels.cuda import HAS_WARPS, IS_SIMULATOR, Images
from msgd.kernels.cuda_sums import sum_over_lanes
from msgd.kernels.cuda_tensor_cores import COMPUTE_CAPABILITY, to_tf32
from msgd.kernels.formulas import has_penalty
from msgd.models.cuda_backend import log_plain
from msgd.models.lenet import cuda_plain
from msgd.models.lenet.cuda_backward import (
    CHUNK,
    Network,
    Training,
    conv1_gradient_phase,
    conv2_error_phase,
    conv2_gradient_phase,
    conv_update_phase,
    hidden_backward_phase,
    images_of_step,
    last_update_phase,
    loss_phase,
    penalty_phase,
)
from msgd.models.lenet.cuda_forward import (
    IMAGE_GROUP,
    N_STATE,
    NOTHING,
    STEP,
    Shared,
    begin_groups,
    conv1_phase,
    conv2_phase,
    here_of,
    hidden_phase,
    logits_phase,
    next_group,
)
from msgd.models.lenet.cuda_layout import (
    GROUP,
    PREDICTED_TOGETHER,
    THREADS,
    Arranged,
    errors_of,
    kept_of,
    shared_sizes,
    sizes_of,
    why_not_tf32,
    why_plain,
    zeros,
)
from msgd.models.lenet.cuda_tensor import (
    conv2_error_tensor_phase,
    conv2_tensor_phase,
    note_places,
)

BLOCKS_PER_SM = 2  # that predict; of those that train, one
GROUP_IMAGES, ZERO, ONE = np.uint32(GROUP), np.uint32(0), np.uint32(1)
BOUNDS = (THREADS, BLOCKS_PER_SM)  # the compiler keeps to registers that let them


class Backend(cuda_plain.Backend):
    """The CUDA twin; see msgd.models.interface.Backend."""

    def allocate(self):
        """Make the scratch arrays of the fast kernels where they serve, else of the plain ones."""
        self.why_plain = self._why_plain()
        tf32 = self.settings.get("arithmetic") == "tf32"
        self.why_not_tf32 = self._why_not_tf32() if tf32 else ""
        log_plain(self.why_plain)
        if self.why_plain:
            super().allocate()
            return
        shape, n_classes = self.shared.dataset.image_shape, self.n_classes
        together = sizes_of(shape, self.settings, n_classes, PREDICTED_TOGETHER)
        minibatch = sizes_of(shape, self.settings, n_classes, self.batch_size, tf32)
        self.arranged = arranged = Arranged.of(minibatch)
        self.arranged_to_predict = Arranged.of(together) if tf32 else arranged
        self.predicted, self.forward = kept_of(together), make_forward(together)
        self.network = Network(
            arranged.all,
            arranged.tables.gradients,
            arranged.tables.tiles,
            arranged.parts,
            kept_of(minibatch),
            errors_of(minibatch),
        )
        self._train_fast = make_training(minibatch, arranged.n_filters)
        self.example_nll = zeros(len(self.shared.dataset.train_x))
        size = arranged.n_filters + arranged.parts.weights.size // 2
        self.n_chunks = -(-size // int(CHUNK)) if has_penalty(self.descent) else 0
        self.penalties = zeros((self.shared.n_train_batches, max(self.n_chunks, 1)))

    def _why_plain(self):
        """Return why the plain kernels serve this network and device, or "" if the fast ones do."""
        if self.float_x is not np.float32:
            return "floatX is not float32"
        if not HAS_WARPS:
            return "Numba's simulator has no warps"
        return why_plain(self.shared.dataset.image_shape, self.settings, self.n_classes)

    def _why_not_tf32(self):
        """Return why tensor cores cannot train this network on this device, or ""."""
        capability = COMPUTE_CAPABILITY
        if not IS_SIMULATOR:
            capability = cuda.get_current_device().compute_capability
        if capability < COMPUTE_CAPABILITY:
            return "the GPU has compute capability {}.{}; allowed: 8.0 or more".format(*capability)
        shape = self.shared.dataset.image_shape
        return self.why_plain or why_not_tf32(shape, self.settings, self.n_classes)

    def launch_train(self, x, y, minibatch, costs):
        """Train len(costs) minibatches of x and y from number ``minibatch`` on."""
        if self.why_not_tf32:
            raise UserError(f"arithmetic is tf32, but {self.why_not_tf32}; set arithmetic: float32")
        if self.why_plain:
            super().launch_train(x, y, minibatch, costs)
            return
        arranged, stream, n_steps = self.arranged, self.shared.stream, len(costs)
        launch = resident_blocks(1), THREADS, stream
        training = Training(
            x.reshape(x.size),
            y,
            self.pixel_scale,
            minibatch,
            1 / np.float32(self.batch_size),
            self.example_nll,
            self.penalties,
        )
        places = arranged.tables.places[n_steps % 2]
        _arrange_fast[launch](self.parameters, arranged.tables.source, arranged.all)
        if self.network.tiles.size:
            _round_fast[launch](arranged.parts.filters2)
            _round_fast[launch](arranged.parts.filters2_by_map)
        self._train_fast[launch](training, self.descent, n_steps, self.network)
        _flatten_fast[launch](arranged.all, places, self.parameters)
        _costs_fast[n_steps, 32, stream](training, self.batch_size, self.n_chunks, costs)

    def launch_logits(self, x, logits):
        """Overwrite logits (n, C) with those of the images x (n, D), some images at a time."""
        if self.why_plain:
            super().launch_logits(x, logits)
            return
        arranged = self.arranged_to_predict
        _arrange_fast[resident_blocks(1), THREADS](
            self.parameters, arranged.tables.source, arranged.all
        )
        for start in range(0, len(x), PREDICTED_TOGETHER):
            stop = min(start + PREDICTED_TOGETHER, len(x))
            self._launch_forward_fast(x[start:stop], logits[start:stop])

    def _launch_forward_fast(self, x, logits):
        n = len(x)
        all_blocks = resident_blocks(BLOCKS_PER_SM)
        blocks = min(-(-n // GROUP), all_blocks)
        convolve, multiply, classify = self.forward
        parameters, kept = self.arranged_to_predict.parts, self.predicted
        pixels = x.reshape(x.size)
        convolve[blocks, THREADS](pixels, n, self.pixel_scale, parameters, kept)
        multiply[all_blocks, THREADS](n, parameters, kept)
        classify[blocks, THREADS](parameters, kept, logits)


@cuda.jit(device=True, **kernels.INLINE)
def convolutions(training, sizes, network, shared):
    """Pass a minibatch forward through both convolution layers: a group of images after another.

    training: Training; sizes: Sizes; network: Network; shared: Shared.
    """
    parameters, kept = network.parameters, network.kept
    begin_groups(shared)
    while shared.state[IMAGE_GROUP] * GROUP_IMAGES < sizes.batch:
        images, group = images_of_step(training, sizes, shared), shared.state[IMAGE_GROUP]
        conv1_phase(images, group, sizes, parameters, kept, here_of(shared), shared)
        group, here = shared.state[IMAGE_GROUP], here_of(shared)
        if sizes.tf32:
            conv2_tensor_phase(sizes.batch, group, sizes, parameters, kept, here, shared)
        else:
            conv2_phase(sizes.batch, group, sizes, parameters, kept, here, shared)
        next_group(shared)


@cuda.jit(device=True, **kernels.INLINE)
def losses(training, sizes, network, shared):
    """Pass a minibatch through the last layer and back to the hidden units. Arguments as above."""
    parameters, kept = network.parameters, network.kept
    begin_groups(shared)
    while shared.state[IMAGE_GROUP] * GROUP_IMAGES < sizes.batch:
        here, group = here_of(shared), shared.state[IMAGE_GROUP]
        logits_phase(group, sizes, parameters, kept, here, shared)
        loss_phase(training, group, sizes, network, here, shared)
        next_group(shared)


@cuda.jit(device=True, **kernels.INLINE)
def convolution_gradients(training, sizes, network, shared):
    """Pass errors back through both convolution layers. Arguments as above."""
    begin_groups(shared)
    while shared.state[IMAGE_GROUP] * GROUP_IMAGES < sizes.batch:
        conv2_gradient_phase(sizes, network, shared)
        here, group = here_of(shared), shared.state[IMAGE_GROUP]
        if sizes.tf32:
            conv2_error_tensor_phase(group, sizes, network, shared)
        else:
            conv2_error_phase(group, sizes, network, here, shared)
        here, group = here_of(shared), shared.state[IMAGE_GROUP]
        images = images_of_step(training, sizes, shared)
        conv1_gradient_phase(images, group, sizes, network, here, shared)
        next_group(shared)


def resident_blocks(per_sm):
    """Return how many blocks the device holds at once, ``per_sm`` on each of its SMs."""
    if IS_SIMULATOR:
        return kernels.SIMULATOR_BLOCKS
    return per_sm * cuda.get_current_device().MULTIPROCESSOR_COUNT


@cuda.jit(**options.CUDA_ENTRY)
def _arrange_fast(parameters, source, arranged):
    """Overwrite arranged, flat float32, with the parameters (n,) float32 as ``source`` says.

    source: int32, as long as arranged: the number of a parameter, or -1 for 0.
    """
    i = cuda.grid(1)
    while i < arranged.shape[0]:
        number = source[i]
        arranged[i] = parameters[number] if number >= 0 else float32(0)
        i += cuda.gridsize(1)


@cuda.jit(**options.CUDA_ENTRY)
def _round_fast(arranged):
    """Round ``arranged``, flat float32, to TF32."""
    i = cuda.grid(1)
    while i < arranged.shape[0]:
        arranged[i] = to_tf32(arranged[i])
        i += cuda.gridsize(1)


@cuda.jit(**options.CUDA_ENTRY)
def _flatten_fast(arranged, places, parameters):
    """Overwrite parameters (n,) float32 with those of ``arranged``, flat float32.

    places: (n,) int32, where each lies there.
    """
    i = cuda.grid(1)
    while i < parameters.shape[0]:
        parameters[i] = arranged[places[i]]
        i += cuda.gridsize(1)


@cuda.jit(**options.CUDA_ENTRY)
def _costs_fast(training, batch_size, n_chunks, costs):
    """Overwrite costs (n,) float32 with those of the minibatches: a block of one warp for each.

    training: Training, with n_chunks penalties of each. A lane adds every 32nd term.
    """
    step, lane = cuda.blockIdx.x, cuda.threadIdx.x
    first = (training.minibatch + step) * batch_size
    nll, weights = float32(0), float32(0)
    i = lane
    while i < batch_size:
        nll += training.example_nll[first + i]
        i += 32
    i = lane
    while i < n_chunks:
        weights += training.penalties[step, i]
        i += 32
    nll, weights = sum_over_lanes(nll), sum_over_lanes(weights)
    if lane == 0:
        costs[step] = nll * training.inverse_size + weights


def make_shared_memory(sizes):
    """Return the function that returns the Shared of the calling thread's block."""
    n_numbers, n_places = shared_sizes(sizes)
    n_classes = int(sizes.classes)

    @cuda.jit(device=True, **kernels.INLINE)
    def shared_memory():
        """Return the block's Shared, no minibatch done."""
        numbers = cuda.shared.array(n_numbers, float32, alignment=16)
        places = cuda.shared.array(n_places, uint32)
        logits = cuda.shared.array((GROUP, n_classes), float32)
        errors = cuda.shared.array((GROUP, n_classes), float32)
        state = cuda.shared.array(N_STATE, uint32)
        state[NOTHING], state[STEP] = ZERO, ZERO
        cuda.syncthreads()
        return Shared(numbers, places, logits, errors, state)

    return shared_memory


@functools.cache
def make_training(sizes, n_filters):
    """Return the kernel that trains minibatches of ``sizes``, of images as of network.

    n_filters: see penalty_phase.
    """
    shared_memory = make_shared_memory(sizes)
    before_weights = np.uint32(n_filters)

    @cuda.jit(launch_bounds=(THREADS, 1), **options.CUDA_ENTRY)
    def _train_fast(training, descent, n_steps, network):
        """Train one minibatch after the other: see the drawing above.

        training: Training, of n_steps minibatches; descent: msgd.kernels.arguments.Descent;
        network: Network, changed.
        """
        shared = shared_memory()
        state = shared.state
        if sizes.tf32:
            note_places(sizes, shared)
        while state[STEP] < uint32(n_steps):
            if kernels.has_penalty(descent):
                penalty_phase(training, descent, sizes, network, before_weights, shared)
            convolutions(training, sizes, network, shared)
            cuda.cg.this_grid().sync()
            parameters, kept, newer = network.parameters, network.kept, state[STEP] & ONE
            hidden_phase(sizes.batch, newer, sizes, parameters, kept, here_of(shared), shared)
            cuda.cg.this_grid().sync()
            losses(training, sizes, network, shared)
            cuda.cg.this_grid().sync()
            last_update_phase(descent, sizes, network, here_of(shared), shared)
            newer = state[STEP] & ONE
            hidden_backward_phase(newer, descent, sizes, network, here_of(shared), shared)
            cuda.cg.this_grid().sync()
            convolution_gradients(training, sizes, network, shared)
            cuda.cg.this_grid().sync()
            conv_update_phase(descent, sizes, network, here_of(shared))
            cuda.cg.this_grid().sync()
            if cuda.threadIdx.x == 0:
                state[STEP] += ONE
            cuda.syncthreads()

    return _train_fast


@functools.cache
def make_forward(sizes):
    """Return the three kernels of a prediction of up to sizes.batch images."""
    shared_memory = make_shared_memory(sizes)

    @cuda.jit(launch_bounds=BOUNDS, **options.CUDA_ENTRY)
    def _convolve_fast(x, n, pixel_scale, parameters, kept):
        """Pass n images through both convolution layers: a group of images in each block.

        x: flat uint8 or float32, their pixels; parameters: Parameters; kept: Kept, overwritten.
        """
        shared = shared_memory()
        here = here_of(shared)
        images = Images(x, ZERO, uint32(n), pixel_scale)
        group = here.block
        while group * GROUP_IMAGES < images.n:
            conv1_phase(images, group, sizes, parameters, kept, here, shared)
            conv2_phase(images.n, group, sizes, parameters, kept, here, shared)
            group = uint32(group + here.blocks)

    @cuda.jit(launch_bounds=BOUNDS, **options.CUDA_ENTRY)
    def _hidden_fast(n, parameters, kept):
        """Overwrite kept.hidden of n images: see hidden_phase. parameters: Parameters."""
        shared = shared_memory()
        hidden_phase(uint32(n), ZERO, sizes, parameters, kept, here_of(shared), shared)

    @cuda.jit(launch_bounds=(THREADS, 1), **options.CUDA_ENTRY)
    def _logits_fast(parameters, kept, logits):
        """Overwrite logits (n, C) float32 from kept.hidden: a group of images in each block."""
        shared = shared_memory()
        here = here_of(shared)
        group = here.block
        while group * GROUP_IMAGES < uint32(logits.shape[0]):
            logits_phase(group, sizes, parameters, kept, here, shared)
            image = group * GROUP_IMAGES + here.t // sizes.classes
            if here.t < GROUP_IMAGES * sizes.classes and image < uint32(logits.shape[0]):
                c = here.t % sizes.classes
                logits[image, c] = shared.logits[here.t // sizes.classes, c]
            group = uint32(group + here.blocks)

    return _convolve_fast, _hidden_fast, _logits_fast
