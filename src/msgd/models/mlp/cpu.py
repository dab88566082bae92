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
    softmax_cross_entropy,
)
from msgd.kernels.dense import (
    BLOCK,
    add_block,
    dot_block,
    from_blocks,
    from_rows,
    n_blocks,
    penalise_block,
    store_block,
    to_blocks,
    to_rows,
    update_block,
    weighted_block,
)
from msgd.kernels.formulas import ACTIVATIONS
from msgd.kernels.nonzero import scale
from msgd.kernels.simd import add, lane_sum, splat
from msgd.models.cpu_backend import CpuBackend

# The columns of ``layers``, (L, 6) int64: a row per layer.
N_IN = 0  # its inputs: pixels, or the units of the layer before rounded up to whole blocks
N_OUT = 1  # its units
WIDTH = 2  # its units rounded up to whole blocks
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
        start, stop = self._rows_of(first, last)
        _train(
            self._nonzero("train", start, stop),
            self._lit(start, stop),
            self.dataset.train_y[start:stop],
            self.pixel_scale,
            self.batch_size,
            self.rates,
            self.has_penalties,
            self.penalties,
            self.activation,
            first % self.n_train_batches - start // self.batch_size,
            self.layers,
            self.weights,
            self.bias,
            costs,
        )

    def predict_rows(self, split, start, stop, predicted):
        """Write the classes of images start..stop-1 of ``split`` into predicted, int32."""
        pixels = self._nonzero(split, start, stop)
        network = self.layers, self.weights, self.bias
        _predict(pixels, self.pixel_scale, self.activation, *network, predicted)

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        parameters = {}
        starts = [*self.layers[1:, WEIGHTS], len(self.weights)]
        for number, (n_in, n_out) in enumerate(self.shapes, start=1):
            first_weight, first_unit = self.layers[number - 1, [WEIGHTS, UNITS]]
            from_flat = from_blocks if number == 1 else from_rows
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
        self.weights = np.concatenate([to_blocks(weights[0]), *map(to_rows, weights[1:])])
        self.bias = np.concatenate([to_blocks(array[None]) for array in biases])


def layer_table(shapes):
    """Return ``layers`` for dense layers whose weights have ``shapes`` (n_in, n_out), in order."""
    layers = np.zeros((len(shapes), 6), np.int64)
    first_weight = first_unit = first_sum = 0
    for number, (n_in, n_out) in enumerate(shapes):
        width = n_blocks(n_out) * BLOCK
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
    pixels,  # NonzeroPixels of the minibatches that the span goes round
    lit,  # their LitImages
    y,  # their (N,) int32 labels
    pixel_scale,
    batch_size,
    rates,  # (learning rate, l2)
    has_penalties,
    penalties,  # (l1, l2, lp, p); used instead of the l2 of rates if has_penalties
    activation,
    first,  # the minibatch of the span's beginning
    layers,  # (L, 6)
    weights,  # flat, changed
    bias,  # flat, changed
    costs,  # one for each minibatch of the span, overwritten
):
    dtype = weights.dtype
    n_layers = layers.shape[0]
    n_minibatches = y.shape[0] // batch_size
    n_steps = costs.shape[0]
    h = np.zeros(bias.shape[0] * batch_size, dtype)  # activations of all layers
    error = np.zeros(bias.shape[0] * batch_size, dtype)  # and their errors
    sums = np.zeros(_n_sums(layers) * batch_size, dtype)
    block_penalty = np.zeros(bias.shape[0] // BLOCK, dtype)
    every = np.arange(max(batch_size, bias.shape[0]))  # the list of all images, or of all units
    mean_nll = dtype.type(0)

    for step in range(-1, n_steps):  # backward with minibatch ``step``, forward with the next
        minibatch = (first + step) % n_minibatches
        following = (first + step + 1) % n_minibatches
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
                    _add_sums(layer, block, batch_size, layers, bias, sums, h)
                    _finish(layer, block, batch_size, activation, layers, weights, h, sums)
            mean_nll = _loss(y, following * batch_size, batch_size, layers, bias, sums, h, error)
            for block in range(layers[n_layers - 1, WIDTH] // BLOCK):
                _update_bias(n_layers - 1, block, batch_size, rates[0], layers, error, bias)


@njit(**options.CPU)
def _forward_first(pixels, first_image, pixel_scale, block, n_images, layers, weights, bias, h):
    """Overwrite a block's sums in the first layer, h, for ``n_images`` from ``first_image`` on."""
    n_in, width = layers[0, N_IN], layers[0, WIDTH]
    unit = block * BLOCK
    value = np.empty(n_in, weights.dtype)
    for i in range(n_images):
        first = pixels.first[first_image + i]
        count = pixels.first[first_image + i + 1] - first
        scale(pixels.value, first, count, pixel_scale, value)
        total = weighted_block(
            pixels.position, first, value, 0, 1, count, weights, unit * n_in, BLOCK
        )
        store_block(h, i * width + unit, add_block(bias, unit, total))


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
def _add_sums(layer, block, n_images, layers, bias, sums, h):
    """Overwrite a block of a later layer in h with its biases and what the blocks before it add."""
    n_in, _, width, _, first_unit, first_sum = layers[layer]
    unit = block * BLOCK
    for i in range(n_images):
        to = first_unit * n_images + i * width + unit
        for u in range(BLOCK):
            total = bias[first_unit + unit + u]
            for before in range(n_in // BLOCK):
                total += element(
                    sums, (first_sum + before * width) * n_images + i * width + unit + u
                )
            set_element(h, to + u, total)


@njit(**options.CPU)
def _loss(y, first_image, batch_size, layers, bias, sums, h, error):
    """Overwrite the errors of the logits; return the mean negative log-likelihood."""
    layer = layers.shape[0] - 1
    n_classes, width, first_unit = layers[layer, N_OUT], layers[layer, WIDTH], layers[layer, UNITS]
    dtype = h.dtype
    inverse_batch_size = dtype.type(1) / dtype.type(batch_size)
    for block in range(width // BLOCK):
        _add_sums(layer, block, batch_size, layers, bias, sums, h)
    nll = np.empty(batch_size, dtype)
    for i in range(batch_size):
        at = first_unit * batch_size + i * width
        logits, to = h[at : at + n_classes], error[at : at + n_classes]
        nll[i] = softmax_cross_entropy(logits, y[first_image + i], inverse_batch_size, to)
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
    _update_bias(layer, block, batch_size, rates[0], layers, error, bias)
    taken = weights.dtype.type(0)
    squares = splat(weights, 0)
    for k in range(n_out):
        gradient = weighted_block(every, 0, error, after + k, width_after, batch_size, h, at, width)
        row = leaving + k * n_in
        if has_penalties:
            taken += penalise_block(weights, row, rates[0], penalties)
        squares = add(squares, update_block(weights, row, gradient, rates))
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
    value = np.empty(batch_size, weights.dtype)
    taken = weights.dtype.type(0)
    squares = splat(weights, 0)
    for d in range(n_in):
        first = lit.first[minibatch * n_in + d]
        count = lit.first[minibatch * n_in + d + 1] - first
        scale(lit.value, first, count, pixel_scale, value)
        gradient = weighted_block(lit.image, first, value, 0, 1, count, error, unit, width)
        row = (unit * n_in) + d * BLOCK
        if has_penalties:
            taken += penalise_block(weights, row, rates[0], penalties)
        squares = add(squares, update_block(weights, row, gradient, rates))
    return taken + rates[1] * lane_sum(squares)


@njit(**options.CPU)
def _update_bias(layer, block, batch_size, rate, layers, error, bias):
    """Update a block of a layer's biases."""
    width, first_unit = layers[layer, WIDTH], layers[layer, UNITS]
    for u in range(block * BLOCK, (block + 1) * BLOCK):
        gradient = bias.dtype.type(0)
        for i in range(batch_size):
            gradient += element(error, first_unit * batch_size + i * width + u)
        bias[first_unit + u] -= rate * gradient


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
        h = np.zeros(bias.shape[0] * n, weights.dtype)
        sums = np.zeros(n_sums * n, weights.dtype)
        for layer in range(n_layers):
            for block in range(layers[layer, WIDTH] // BLOCK):
                if layer == 0:
                    _forward_first(pixels, start, pixel_scale, block, n, layers, weights, bias, h)
                else:
                    _add_sums(layer, block, n, layers, bias, sums, h)
                if layer < n_layers - 1:
                    _finish(layer, block, n, activation, layers, weights, h, sums)
        for i in range(n):
            at = first_unit * n + i * width
            predicted[start + i] = first_argmax(h[at : at + n_classes])
