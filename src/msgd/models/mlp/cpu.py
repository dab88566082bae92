"""Multilayer perceptron on the CPU: loops over the formulas of ``model.py``.

The layers lie one after the other in flat arrays, in the blocks of ``kernels/dense.py``; a table
(``layers``) says where each starts. A minibatch passes through parallel loops whose tasks do not
depend on each other: list the nonzero pixels; forward, layer by layer; logits and loss, example by
example; errors of the hidden layers, from the last to the second; errors and update of the first,
block by block; update of the others. How many tasks there are follows from sizes alone and no sum
is shared between tasks, so the bits are the same for any number of threads.
"""

import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.cpu import (
    activate,
    activation_slope,
    first_argmax,
    gather_nonzero,
    ordered_sum,
    softmax_cross_entropy,
)
from msgd.kernels.dense import (
    BLOCK,
    forward_block,
    from_blocks,
    input_error,
    n_blocks,
    penalise_row,
    to_blocks,
    update_row,
)
from msgd.kernels.formulas import ACTIVATIONS
from msgd.kernels.simd import lane_sum
from msgd.models.cpu_backend import CpuBackend

# The columns of ``layers``, (L, 4) int64: a row per layer.
N_IN = 0  # units of the layer before it
WIDTH = 1  # its units, rounded up to whole blocks
WEIGHTS = 2  # where its weights start in the flat weights
UNITS = 3  # where its units start in the flat biases; times B, in the flat activations and errors

TASKS = 16  # parts that a loop over pixels, rows or examples is cut into
PREDICTION_CHUNKS = 64  # of a split's images


class Backend(CpuBackend):
    """The CPU twin; see msgd.models.interface.Backend."""

    def allocate(self):
        """Make the table of layers, and choose the way penalties are taken."""
        self.activation = ACTIVATIONS[self.settings["activation"]]
        self.layers = layer_table(self.shapes)
        # l2 alone is part of the update's arithmetic; beside another, all take the long way.
        l1, l2, lp, _ = self.penalties
        self.has_penalties = bool(l1 or lp)
        self.rates = self.learning_rate, self.float_x(0) if self.has_penalties else l2

    def train_span(self, first, last, costs):
        """Train minibatches first..last-1 and write their costs, (last - first,) floatX."""
        _train(
            self.dataset.train_x,
            self.dataset.train_y,
            self.pixel_scale,
            self.batch_size,
            self.n_train_batches,
            self.dataset.n_classes,
            self.rates,
            self.has_penalties,
            self.penalties,
            self.activation,
            first,
            last,
            self.layers,
            self.weights,
            self.bias,
            costs,
        )

    def predict_rows(self, split, start, stop, predicted):
        """Write the classes of images start..stop-1 of ``split`` into predicted, int32."""
        x = self.dataset.split(split)[0][start:stop]
        n_classes = self.dataset.n_classes
        network = self.layers, self.weights, self.bias
        _predict(x, self.pixel_scale, n_classes, self.activation, *network, predicted)

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        parameters = {}
        for number, (n_in, n_out) in enumerate(self.shapes, start=1):
            _, width, first_weight, first_unit = self.layers[number - 1]
            weights = self.weights[first_weight : first_weight + n_in * width]
            parameters[f"weights_{number}"] = from_blocks(weights, n_in, n_out)
            parameters[f"bias_{number}"] = self.bias[first_unit : first_unit + n_out].copy()
        return parameters

    def set_parameters(self, parameters):
        """See msgd.models.interface.Backend.set_parameters."""
        weights = [array for array in parameters.values() if array.ndim == 2]
        biases = [array for array in parameters.values() if array.ndim == 1]
        self.shapes = [array.shape for array in weights]
        self.weights = np.concatenate([to_blocks(array) for array in weights])
        self.bias = np.concatenate([to_blocks(array[None]) for array in biases])


def layer_table(shapes):
    """Return ``layers`` for dense layers whose weights have ``shapes`` (n_in, n_out), in order."""
    layers = np.zeros((len(shapes), 4), np.int64)
    first_weight = first_unit = 0
    for row, (n_in, n_out) in zip(layers, shapes, strict=True):
        width = n_blocks(n_out) * BLOCK
        row[:] = n_in, width, first_weight, first_unit
        first_weight += n_in * width
        first_unit += width
    return layers


@njit(**options.CPU_PARALLEL)
def _train(
    x,  # (N, D) uint8 or floatX
    y,  # (N,) int32
    pixel_scale,
    batch_size,
    n_train_batches,
    n_classes,
    rates,  # (learning rate, l2)
    has_penalties,
    penalties,  # (l1, l2, lp, p); used instead of the l2 of rates if has_penalties
    activation,
    first,
    last,
    layers,  # (L, 4)
    weights,  # flat, changed
    bias,  # flat, changed
    costs,  # (last - first,), overwritten
):
    dtype = weights.dtype
    n_features = x.shape[1]
    n_layers = layers.shape[0]
    n_first_blocks = layers[0, WIDTH] // BLOCK
    inverse_batch_size = dtype.type(1) / dtype.type(batch_size)
    h = np.zeros(bias.shape[0] * batch_size, dtype)  # activations of all layers
    error = np.zeros(bias.shape[0] * batch_size, dtype)  # and their errors
    nll = np.empty(batch_size, dtype)
    task_penalty = np.zeros(n_first_blocks + (n_layers - 1) * TASKS, dtype)
    # The nonzero pixels of the minibatch: by example, n_features places for each; and by pixel.
    position = np.empty(batch_size * n_features, np.int64)
    value = np.empty(batch_size * n_features, dtype)
    n_nonzero = np.empty(batch_size, np.int64)
    example_of = np.empty(n_features * batch_size, np.int64)
    value_of = np.empty(n_features * batch_size, dtype)
    n_lit = np.empty(n_features, np.int64)
    every = np.arange(max(batch_size, bias.shape[0]))  # the list of all examples, or of all units

    for iteration in range(first, last):
        start = iteration % n_train_batches * batch_size
        for task in prange(TASKS):
            _gather_rows(x, start, batch_size, task, pixel_scale, position, value, n_nonzero)
            _gather_columns(x, start, batch_size, task, pixel_scale, example_of, value_of, n_lit)
        for block in prange(n_first_blocks):
            for i in range(batch_size):
                _forward_first(
                    position, value, n_nonzero[i], i, block, activation, layers, weights, bias, h
                )
        for layer in range(1, n_layers - 1):
            for block in prange(layers[layer, WIDTH] // BLOCK):
                for i in range(batch_size):
                    at = _forward_next(every, i, batch_size, layer, block, layers, weights, bias, h)
                    _activate(h, at, activation)
        for i in prange(batch_size):
            _forward_all_blocks(every, i, batch_size, n_layers - 1, layers, weights, bias, h)
            nll[i] = _loss(
                y[start + i], i, batch_size, n_classes, inverse_batch_size, layers, h, error
            )
        for layer in range(n_layers - 2, 0, -1):
            for block in prange(layers[layer, WIDTH] // BLOCK):
                _hidden_error(layer, block, batch_size, activation, layers, weights, h, error)
        for block in prange(n_first_blocks):
            _hidden_error(0, block, batch_size, activation, layers, weights, h, error)
            task_penalty[block] = _update_first(
                example_of,
                value_of,
                n_lit,
                batch_size,
                block,
                rates,
                has_penalties,
                penalties,
                layers,
                error,
                weights,
                bias,
            )
        for task in prange((n_layers - 1) * TASKS):
            task_penalty[n_first_blocks + task] = _update_next(
                every,
                batch_size,
                1 + task // TASKS,
                task % TASKS,
                rates,
                has_penalties,
                penalties,
                layers,
                h,
                error,
                weights,
                bias,
            )
        mean_nll = ordered_sum(nll) * inverse_batch_size
        costs[iteration - first] = mean_nll + ordered_sum(task_penalty)


@njit(**options.CPU)
def _gather_rows(x, start, batch_size, task, pixel_scale, position, value, n_nonzero):
    """List the nonzero pixels of a task's share of the examples."""
    n_features = x.shape[1]
    for i in range(task * batch_size // TASKS, (task + 1) * batch_size // TASKS):
        to = slice(i * n_features, (i + 1) * n_features)
        n_nonzero[i] = gather_nonzero(x, start + i, pixel_scale, position[to], value[to])


@njit(**options.CPU)
def _gather_columns(x, start, batch_size, task, pixel_scale, example_of, value_of, n_lit):
    """List, for a task's share of the pixels, the examples in which the pixel is not zero."""
    n_features = x.shape[1]
    for d in range(task * n_features // TASKS, (task + 1) * n_features // TASKS):
        count = 0
        for i in range(batch_size):
            pixel = x[start + i, d]
            if pixel != 0:
                example_of[d * batch_size + count] = i
                value_of[d * batch_size + count] = pixel * pixel_scale
                count += 1
        n_lit[d] = count


@njit(**options.CPU)
def _activate(h, at, activation):
    """Apply the activation to a block."""
    for u in range(at, at + BLOCK):
        h[u] = activate(h[u], activation)


@njit(**options.CPU)
def _forward_first(position, value, count, i, block, activation, layers, weights, bias, h):
    """Overwrite a block of the first layer's activations of example i from its listed pixels."""
    n_in, width = layers[0, N_IN], layers[0, WIDTH]
    unit = block * BLOCK
    at, to = i * n_in, i * width + unit
    forward_block(position, at, value, at, count, weights, unit * n_in, bias, unit, h, to)
    _activate(h, to, activation)


@njit(**options.CPU)
def _forward_next(every, i, batch_size, layer, block, layers, weights, bias, h):
    """Overwrite a block of a later layer's sums of example i; return where it starts in h."""
    n_in, width, first_weight, first_unit = layers[layer]
    before = layers[layer - 1, UNITS] * batch_size + i * layers[layer - 1, WIDTH]
    unit = block * BLOCK
    to = first_unit * batch_size + i * width + unit
    at = first_weight + unit * n_in
    forward_block(every, 0, h, before, n_in, weights, at, bias, first_unit + unit, h, to)
    return to


@njit(**options.CPU)
def _forward_all_blocks(every, i, batch_size, layer, layers, weights, bias, h):
    for block in range(layers[layer, WIDTH] // BLOCK):
        _forward_next(every, i, batch_size, layer, block, layers, weights, bias, h)


@njit(**options.CPU)
def _loss(label, i, batch_size, n_classes, inverse_batch_size, layers, h, error):
    """Overwrite the errors of example i's logits; return its negative log-likelihood."""
    at = layers[-1, UNITS] * batch_size + i * layers[-1, WIDTH]
    logits, to = h[at : at + n_classes], error[at : at + n_classes]
    return softmax_cross_entropy(logits, label, inverse_batch_size, to)


@njit(**options.CPU)
def _hidden_error(layer, block, batch_size, activation, layers, weights, h, error):
    """Overwrite a block of a hidden layer's errors from those of the layer after it."""
    n_units, width_after, first_weight, unit_after = layers[layer + 1]
    first_unit, width = layers[layer, UNITS], layers[layer, WIDTH]
    for i in range(batch_size):
        at = first_unit * batch_size + i * width
        after = unit_after * batch_size + i * width_after
        for u in range(block * BLOCK, min((block + 1) * BLOCK, n_units)):
            slope = activation_slope(h[at + u], activation)
            error[at + u] = slope * input_error(
                error, after, weights, first_weight, n_units, width_after, u
            )


@njit(**options.CPU)
def _update_first(
    example_of,
    value_of,
    n_lit,
    batch_size,
    block,
    rates,
    has_penalties,
    penalties,
    layers,
    error,
    weights,
    bias,
):
    """Update a block of the first layer; return its penalty before the update."""
    n_in, width = layers[0, N_IN], layers[0, WIDTH]
    unit = block * BLOCK
    total = weights.dtype.type(0)
    for d in range(n_in):
        at, row = d * batch_size, (unit * n_in) + d * BLOCK
        if has_penalties:
            total += penalise_row(weights, row, rates[0], penalties)
        squares = update_row(
            example_of, at, value_of, at, 1, n_lit[d], error, unit, width, weights, row, rates
        )
        total += rates[1] * lane_sum(squares)
    _update_bias(0, block, batch_size, rates[0], layers, error, bias)
    return total


@njit(**options.CPU)
def _update_next(
    every,
    batch_size,
    layer,
    task,
    rates,
    has_penalties,
    penalties,
    layers,
    h,
    error,
    weights,
    bias,
):
    """Update a task's share of a later layer's inputs; return their penalty before the update."""
    n_in, width, first_weight, first_unit = layers[layer]
    before, width_before = layers[layer - 1, UNITS] * batch_size, layers[layer - 1, WIDTH]
    total = weights.dtype.type(0)
    for block in range(width // BLOCK):
        at = first_unit * batch_size + block * BLOCK
        for d in range(task * n_in // TASKS, (task + 1) * n_in // TASKS):
            row = first_weight + (block * n_in + d) * BLOCK
            if has_penalties:
                total += penalise_row(weights, row, rates[0], penalties)
            squares = update_row(
                every,
                0,
                h,
                before + d,
                width_before,
                batch_size,
                error,
                at,
                width,
                weights,
                row,
                rates,
            )
            total += rates[1] * lane_sum(squares)
        if task == 0:
            _update_bias(layer, block, batch_size, rates[0], layers, error, bias)
    return total


@njit(**options.CPU)
def _update_bias(layer, block, batch_size, rate, layers, error, bias):
    """Update a block of a layer's biases."""
    width, first_unit = layers[layer, WIDTH], layers[layer, UNITS]
    for u in range(block * BLOCK, (block + 1) * BLOCK):
        gradient = bias.dtype.type(0)
        for i in range(batch_size):
            gradient += error[first_unit * batch_size + i * width + u]
        bias[first_unit + u] -= rate * gradient


@njit(**options.CPU_PARALLEL)
def _predict(x, pixel_scale, n_classes, activation, layers, weights, bias, predicted):
    """Overwrite predicted (N,) int32 with the class of every image of x (N, D)."""
    n_examples, n_features = x.shape
    n_layers = layers.shape[0]
    every = np.arange(bias.shape[0])
    for chunk in prange(PREDICTION_CHUNKS):
        position = np.empty(n_features, np.int64)
        value = np.empty(n_features, weights.dtype)
        h = np.empty(bias.shape[0], weights.dtype)  # of one image at a time
        start = chunk * n_examples // PREDICTION_CHUNKS
        stop = (chunk + 1) * n_examples // PREDICTION_CHUNKS
        for i in range(start, stop):
            count = gather_nonzero(x, i, pixel_scale, position, value)
            for block in range(layers[0, WIDTH] // BLOCK):
                _forward_first(
                    position, value, count, 0, block, activation, layers, weights, bias, h
                )
            for layer in range(1, n_layers):
                for block in range(layers[layer, WIDTH] // BLOCK):
                    at = _forward_next(every, 0, 1, layer, block, layers, weights, bias, h)
                    if layer < n_layers - 1:
                        _activate(h, at, activation)
            at = layers[-1, UNITS]
            predicted[i] = first_argmax(h[at : at + n_classes])
