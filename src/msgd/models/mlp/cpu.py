"""Multilayer perceptron on the CPU: loops over the formulas of ``model.py``.

The layers lie one after the other in flat arrays, laid out as ``kernels/dense.py`` says; a table
(``layers``) says where each starts. The hidden units are cut into blocks, and a task owns a block:
it takes the block's errors from those of the next layer, updates the weights that leave it and, in
the first hidden layer, those that enter it, and at once goes forward with the next minibatch, while
these weights are in its cache. What a block adds to the next layer's sums is kept apart for each
block and added in order. So a step of a network with one hidden layer is a single parallel loop,
and logits and loss, which are short, between two of them; every further hidden layer adds a loop
backward and one forward. No sum is shared between tasks, so the bits are the same for any number of
threads.
"""

import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.cpu import (
    activate,
    activation_slope,
    element,
    first_argmax,
    ordered_sum,
    set_element,
    softmax_cross_entropy_row,
)
from msgd.kernels.dense import (
    BLOCK,
    PANEL,
    dot_block,
    from_panels,
    from_rows,
    n_blocks,
    penalise_panel,
    scaled_block,
    store_block,
    to_panels,
    to_rows,
    update_block,
    weighted_block,
    weighted_panel,
)
from msgd.kernels.formulas import ACTIVATIONS
from msgd.kernels.nonzero import SPARE, scale
from msgd.kernels.simd import (
    LANES,
    add,
    aligned,
    aligned_empty,
    aligned_zeros,
    fma,
    lane_sum,
    load,
    splat,
    store,
)
from msgd.models.cpu_backend import CpuBackend

# The columns of ``layers``, (L, 6) int64: a row per layer.
N_IN = 0  # its inputs: pixels, or the units of the layer before rounded up to whole blocks
N_OUT = 1  # its units
WIDTH = 2  # its units rounded up to whole blocks; those of the last layer to whole vectors
WEIGHTS = 3  # where its weights start in the flat weights
UNITS = 4  # where its units start in the flat biases; times B, in the flat activations and errors
SUMS = 5  # times B, where the blocks of the layer before leave their sums; none for the first layer

PREDICTION_IMAGES = 32  # that go through the network together


class Backend(CpuBackend):
    """The CPU twin; see msgd.models.interface.Backend."""

    def allocate(self):
        """Choose the way penalties are taken."""
        self.activation = ACTIVATIONS[self.settings["activation"]]
        # l2 alone is part of the update's arithmetic; beside another, all take the long way.
        l1, l2, lp, _ = self.penalties
        self.has_penalties = bool(l1 or lp)
        self.rates = self.learning_rate, self.float_x(0) if self.has_penalties else l2

    def train_span(self, first, last, costs):
        """Train minibatches first..last-1 and write their costs, (last - first,) floatX."""
        lists = self._lists("train")
        _train(
            lists.pixels,
            lists.lit,
            self.dataset.train_y,
            self.pixel_scale,
            self.batch_size,
            self.rates,
            self.has_penalties,
            self.penalties,
            self.activation,
            first,
            self.n_train_batches,
            self.layers,
            self.weights,
            self.bias,
            costs,
        )

    def predict_rows(self, split, start, stop, predicted):
        """Write the classes of images start..stop-1 of ``split`` into predicted, int32."""
        pixels = self._lists(split).pixels.rows(start, stop)
        network = self.layers, self.weights, self.bias
        _predict(pixels, self.pixel_scale, self.activation, *network, predicted)

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        parameters = {}
        starts = [*self.layers[1:, WEIGHTS], len(self.weights)]
        for number, (n_in, n_out) in enumerate(self.shapes, start=1):
            first_weight, first_unit = self.layers[number - 1, [WEIGHTS, UNITS]]
            from_flat = from_panels if number == 1 else from_rows
            flat = self.weights[first_weight : starts[number - 1]]
            parameters[f"weights_{number}"] = from_flat(flat, n_in, n_out)
            parameters[f"bias_{number}"] = self.bias[first_unit : first_unit + n_out].copy()
        return parameters

    def set_parameters(self, parameters):
        """See msgd.models.interface.Backend.set_parameters."""
        weights = [array for array in parameters.values() if array.ndim == 2]
        biases = [array for array in parameters.values() if array.ndim == 1]
        self.shapes = [array.shape for array in weights]
        self.layers = layer_table(self.shapes)
        self.weights = aligned([to_panels(weights[0]), *map(to_rows, weights[1:])])
        self.bias = aligned_zeros(self.layers[:, WIDTH].sum(), self.float_x)
        self.bias[self.layers[-1, UNITS] :] = -np.inf  # for the last layer's padding: softmax 0
        for first_unit, array in zip(self.layers[:, UNITS], biases, strict=True):
            self.bias[first_unit : first_unit + len(array)] = array


def layer_table(shapes):
    """Return ``layers`` for dense layers whose weights have ``shapes`` (n_in, n_out), in order."""
    layers = np.zeros((len(shapes), 6), np.int64)
    first_weight = first_unit = first_sum = 0
    for number, (n_in, n_out) in enumerate(shapes):
        width = n_blocks(n_out) * BLOCK
        if number == len(shapes) - 1:
            width = -(-n_out // LANES) * LANES
        if number:
            n_in = layers[number - 1, WIDTH]
        layers[number] = n_in, n_out, width, first_weight, first_unit, first_sum
        first_weight += n_in * (n_out if number else width)
        first_unit += width
        first_sum += n_in // BLOCK * width if number else 0
    return layers


@njit(**options.CPU)
def _n_sums(layers):
    """Return how many sums of blocks there are for each image."""
    last = layers[-1]
    return last[SUMS] + last[N_IN] // BLOCK * last[WIDTH]


@njit(**options.CPU_PARALLEL)
def _train(
    pixels,  # NonzeroPixels of the training images
    lit,  # LitImages of their minibatches
    y,  # (N,) int32
    pixel_scale,
    batch_size,
    rates,  # (learning rate, l2)
    has_penalties,
    penalties,  # (l1, l2, lp, p); used instead of the l2 of rates if has_penalties
    activation,
    first,  # the iteration of the span's beginning
    n_train_batches,
    layers,  # (L, 6)
    weights,  # flat, changed
    bias,  # flat, changed
    costs,  # one for each minibatch of the span, overwritten
):
    dtype = weights.dtype
    n_layers = layers.shape[0]
    n_steps = costs.shape[0]
    h = aligned_zeros(bias.shape[0] * batch_size, dtype)  # activations of all layers
    error = aligned_zeros(bias.shape[0] * batch_size, dtype)  # and their errors
    sums = aligned_zeros(_n_sums(layers) * batch_size, dtype)
    block_penalty = np.zeros(bias.shape[0] // BLOCK, dtype)
    every = np.arange(max(batch_size, bias.shape[0]))  # the list of all images, or of all units
    mean_nll = dtype.type(0)

    for step in range(-1, n_steps):  # backward with minibatch ``step``, forward with the next
        minibatch = (first + step) % n_train_batches
        following = (first + step + 1) % n_train_batches
        is_backward, is_forward = step >= 0, step + 1 < n_steps
        if is_backward:
            for layer in range(n_layers - 2, 0, -1):
                for block in prange(layers[layer, WIDTH] // BLOCK):
                    block_penalty[layers[layer, UNITS] // BLOCK + block] = _backward(
                        layer,
                        block,
                        batch_size,
                        activation,
                        rates,
                        has_penalties,
                        penalties,
                        every,
                        layers,
                        weights,
                        bias,
                        h,
                        error,
                    )
        for block in prange(layers[0, WIDTH] // BLOCK):
            if is_backward:
                leaving = _backward(
                    0,
                    block,
                    batch_size,
                    activation,
                    rates,
                    has_penalties,
                    penalties,
                    every,
                    layers,
                    weights,
                    bias,
                    h,
                    error,
                )
                entering = _update_first(
                    lit,
                    minibatch,
                    pixel_scale,
                    block,
                    batch_size,
                    rates,
                    has_penalties,
                    penalties,
                    layers,
                    weights,
                    error,
                )
                block_penalty[block] = leaving + entering
            if is_forward:
                image = following * batch_size
                _forward_first(
                    pixels, image, pixel_scale, block, batch_size, layers, weights, bias, h
                )
                _finish(0, block, batch_size, activation, layers, weights, h, sums)
        if is_backward:
            costs[step] = mean_nll + ordered_sum(block_penalty)
        if is_forward:
            for layer in range(1, n_layers - 1):
                for block in prange(layers[layer, WIDTH] // BLOCK):
                    unit = block * BLOCK
                    _add_sums(layer, unit, unit + BLOCK, batch_size, layers, bias, sums, h)
                    _finish(layer, block, batch_size, activation, layers, weights, h, sums)
            mean_nll = _loss(y, following * batch_size, batch_size, layers, bias, sums, h, error)
            _update_bias(
                n_layers - 1, 0, layers[-1, WIDTH], batch_size, rates[0], layers, error, bias
            )


@njit(**options.CPU)
def _forward_first(pixels, first_image, pixel_scale, block, n_images, layers, weights, bias, h):
    """Overwrite a block's sums in the first layer, h, for ``n_images`` from ``first_image`` on."""
    n_in, width = layers[0, N_IN], layers[0, WIDTH]
    value = aligned_empty(n_in + SPARE, weights.dtype)
    for unit in range(block * BLOCK, (block + 1) * BLOCK, PANEL):
        for i in range(n_images):
            first = pixels.first[first_image + i]
            count = pixels.first[first_image + i + 1] - first
            scale(pixels.value, first, count, pixel_scale, value)
            left, right = weighted_panel(pixels.position, first, value, count, weights, unit * n_in)
            to = i * width + unit
            store(h, to, add(load(bias, unit), left))
            store(h, to + LANES, add(load(bias, unit + LANES), right))


@njit(**options.CPU)
def _finish(layer, block, n_images, activation, layers, weights, h, sums):
    """Apply the activation to a block, and overwrite what it adds to the next layer's sums."""
    width, first_unit = layers[layer, WIDTH], layers[layer, UNITS]
    n_in, n_out, width_after, first_weight, _, first_sum = layers[layer + 1]
    for i in range(n_images):
        at = first_unit * n_images + i * width + block * BLOCK
        for u in range(BLOCK):
            set_element(h, at + u, activate(element(h, at + u), activation))
        to = (first_sum + block * width_after) * n_images + i * width_after
        for k in range(n_out):
            weight = first_weight + k * n_in + block * BLOCK
            set_element(sums, to + k, dot_block(h, at, weights, weight))


@njit(**options.CPU)
def _add_sums(layer, start, stop, n_images, layers, bias, sums, h):
    """Overwrite units start..stop-1 of a later layer in h: bias and what the blocks before add."""
    n_in, _, width, _, first_unit, first_sum = layers[layer]
    for i in range(n_images):
        for u in range(start, stop, LANES):
            total = load(bias, first_unit + u)
            for before in range(n_in // BLOCK):
                at = (first_sum + before * width) * n_images + i * width + u
                total = add(total, load(sums, at))
            store(h, first_unit * n_images + i * width + u, total)


@njit(**options.CPU)
def _loss(y, first_image, batch_size, layers, bias, sums, h, error):
    """Overwrite the errors of the logits; return the mean negative log-likelihood."""
    layer = layers.shape[0] - 1
    width, first_unit = layers[layer, WIDTH], layers[layer, UNITS]
    dtype = h.dtype
    inverse_batch_size = dtype.type(1) / dtype.type(batch_size)
    _add_sums(layer, 0, width, batch_size, layers, bias, sums, h)
    nll = np.empty(batch_size, dtype)
    for i in range(batch_size):
        at = first_unit * batch_size + i * width
        for u in range(at, at + width, LANES):
            store(error, u, load(h, u))
        nll[i] = softmax_cross_entropy_row(error, at, width, y[first_image + i], inverse_batch_size)
    return ordered_sum(nll) * inverse_batch_size


@njit(**options.CPU)
def _backward(
    layer,
    block,
    batch_size,
    activation,
    rates,
    has_penalties,
    penalties,
    every,
    layers,
    weights,
    bias,
    h,
    error,
):
    """Overwrite a hidden block's errors, update its bias and what leaves it; return the penalty."""
    width, first_unit = layers[layer, WIDTH], layers[layer, UNITS]
    n_in, n_out, width_after, first_weight, unit_after, _ = layers[layer + 1]
    after = unit_after * batch_size
    leaving = first_weight + block * BLOCK
    at = first_unit * batch_size + block * BLOCK
    for i in range(batch_size):
        total = weighted_block(
            every, 0, error, after + i * width_after, 1, n_out, weights, leaving, n_in
        )
        to = at + i * width
        store_block(error, to, total)
        for u in range(BLOCK):
            slope = activation_slope(element(h, to + u), activation)
            set_element(error, to + u, slope * element(error, to + u))
    unit = block * BLOCK
    _update_bias(layer, unit, unit + BLOCK, batch_size, rates[0], layers, error, bias)
    taken = weights.dtype.type(0)
    squares = splat(weights, 0)
    for k in range(n_out):
        gradient = weighted_block(every, 0, error, after + k, width_after, batch_size, h, at, width)
        row = leaving + k * n_in
        if has_penalties:
            taken += penalise_panel(weights, row, rates[0], penalties)
            taken += penalise_panel(weights, row + PANEL, rates[0], penalties)
        step = scaled_block(-rates[0], gradient, weights)
        squares = add(squares, update_block(weights, row, row + PANEL, step, rates))
    return taken + rates[1] * lane_sum(squares)


@njit(**options.CPU)
def _update_first(
    lit,
    minibatch,
    pixel_scale,
    block,
    batch_size,
    rates,
    has_penalties,
    penalties,
    layers,
    weights,
    error,
):
    """Update a block of the first layer; return its penalty before the update."""
    n_in, width = layers[0, N_IN], layers[0, WIDTH]
    unit = block * BLOCK
    lit_row, last_row = lit.first[minibatch], lit.first[minibatch + 1]
    first = lit.entry[lit_row]
    value = aligned_empty(lit.entry[last_row] - first + SPARE, weights.dtype)
    scale(lit.value, first, lit.entry[last_row] - first, -rates[0] * pixel_scale, value)
    taken = weights.dtype.type(0)
    squares = splat(weights, 0)
    for d in range(n_in):
        entry, count = lit.entry[lit_row], 0
        if lit_row < last_row and lit.pixel[lit_row] == d:
            lit_row += 1
            count = lit.entry[lit_row] - entry
        step = weighted_block(lit.image, entry, value, entry - first, 1, count, error, unit, width)
        left = unit * n_in + d * PANEL
        right = left + n_in * PANEL
        if has_penalties:
            taken += penalise_panel(weights, left, rates[0], penalties)
            taken += penalise_panel(weights, right, rates[0], penalties)
        squares = add(squares, update_block(weights, left, right, step, rates))
    return taken + rates[1] * lane_sum(squares)


@njit(**options.CPU)
def _update_bias(layer, start, stop, batch_size, rate, layers, error, bias):
    """Update the biases of units start..stop-1 of a layer."""
    width, first_unit = layers[layer, WIDTH], layers[layer, UNITS]
    for u in range(start, stop, LANES):
        gradient = splat(bias, 0)
        for i in range(batch_size):
            gradient = add(gradient, load(error, first_unit * batch_size + i * width + u))
        at = first_unit + u
        store(bias, at, fma(-rate, gradient, load(bias, at)))


@njit(**options.CPU_PARALLEL)
def _predict(pixels, pixel_scale, activation, layers, weights, bias, predicted):
    """Overwrite predicted (N,) int32 with the class of every image."""
    n_examples = predicted.shape[0]
    n_layers = layers.shape[0]
    n_classes, width, first_unit = layers[-1, N_OUT], layers[-1, WIDTH], layers[-1, UNITS]
    n_sums = _n_sums(layers)
    for task in prange((n_examples + PREDICTION_IMAGES - 1) // PREDICTION_IMAGES):
        start = task * PREDICTION_IMAGES
        n = min(PREDICTION_IMAGES, n_examples - start)
        h = aligned_zeros(bias.shape[0] * n, weights.dtype)
        sums = aligned_zeros(n_sums * n, weights.dtype)
        for layer in range(n_layers):
            if layer > 0:
                _add_sums(layer, 0, layers[layer, WIDTH], n, layers, bias, sums, h)
            if layer < n_layers - 1:
                for block in range(layers[layer, WIDTH] // BLOCK):
                    if layer == 0:
                        _forward_first(
                            pixels, start, pixel_scale, block, n, layers, weights, bias, h
                        )
                    _finish(layer, block, n, activation, layers, weights, h, sums)
        for i in range(n):
            at = first_unit * n + i * width
            predicted[start + i] = first_argmax(h[at : at + n_classes])
