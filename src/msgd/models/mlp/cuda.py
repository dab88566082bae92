"""Multilayer perceptron on CUDA: loops over the formulas of ``model.py``.

The layers lie one after the other in flat arrays; a table (``layers``) says where each starts. A
span of minibatches is one cooperative launch. Each minibatch passes through forward phases, layer
by layer; loss; errors, from the last hidden layer to the first; gradient and update; after each the
whole grid waits. Every sum is taken by one thread in a fixed order: no atomics on floats, and the
same bits for any number of blocks.

Threads lie in two dimensions: x counts the units of a layer, y counts examples or inputs.
"""

import numpy as np
from numba import cuda

from msgd.kernels import options
from msgd.kernels.cuda import (
    activate,
    activation_slope,
    launch_shape,
    loss_phase,
    ordered_sum,
    penalty,
    penalty_gradient,
)
from msgd.kernels.formulas import ACTIVATIONS, like
from msgd.models.cuda_backend import CudaBackend

# The columns of ``layers``, (L, 4) int64: a row per layer.
N_IN = 0  # units of the layer before it
N_OUT = 1  # its units
WEIGHTS = 2  # where its weights, (n_in, n_out) in C order, start in the flat weights
UNITS = 3  # where its units start in the flat biases; times B, in the flat activations and errors


class Backend(CudaBackend):
    """The CUDA twin; see msgd.models.interface.Backend."""

    def keep_parameters(self, parameters):
        """See msgd.models.cuda_backend.CudaBackend."""
        self.shapes = {name: array.shape for name, array in parameters.items()}
        self.weights, self.bias = (
            cuda.to_device(np.concatenate([a.ravel() for a in parameters.values() if a.ndim == n]))
            for n in (2, 1)
        )

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        flat = {2: self.weights.copy_to_host(), 1: self.bias.copy_to_host()}
        parameters = {}
        for name, shape in self.shapes.items():
            taken, flat[len(shape)] = np.split(flat[len(shape)], [int(np.prod(shape))])
            parameters[name] = taken.reshape(shape).copy()
        return parameters

    def allocate(self):
        """Make the table of layers and the scratch arrays of training."""
        self.activation = ACTIVATIONS[self.settings["activation"]]
        weights = [shape for shape in self.shapes.values() if len(shape) == 2]
        self.layers_on_host = layer_table(weights)
        self.layers = cuda.to_device(self.layers_on_host)
        n_units = len(self.bias)
        self.h = cuda.device_array(n_units * self.batch_size, self.float_x)
        self.error = cuda.device_array(n_units * self.batch_size, self.float_x)
        self.example_nll = cuda.device_array(self.batch_size, self.float_x)
        self.row_penalty = cuda.device_array(sum(n_in for n_in, _ in weights), self.float_x)

    def launch_train(self, x, y, minibatch, costs):
        """Train len(costs) minibatches of x and y from number ``minibatch`` on."""
        output = slice(int(self.layers_on_host[-1, UNITS]) * self.batch_size, None)
        by_example = (self.batch_size, self.n_classes)
        blocks, threads = launch_shape(max(self.batch_size, x.shape[1] + 1))
        _train[blocks, threads, self.shared.stream](
            x,
            y,
            self.pixel_scale,
            self.learning_rate,
            self.penalties,
            self.activation,
            minibatch,
            self.layers,
            self.weights,
            self.bias,
            self.h,
            self.error,
            self.h[output].reshape(by_example),
            self.error[output].reshape(by_example),
            self.example_nll,
            self.row_penalty,
            costs,
        )

    def launch_logits(self, x, logits):
        """Overwrite logits (n, C) with those of the images x (n, D)."""
        before = None
        for layer, (_, n_out, _, _) in enumerate(self.layers_on_host):
            is_last = layer == len(self.layers_on_host) - 1
            size = len(x) * int(n_out)
            after = logits.reshape(size) if is_last else cuda.device_array(size, self.float_x)
            activation = NO_ACTIVATION if is_last else self.activation
            network = self.layers, self.weights, self.bias, after
            if layer == 0:
                _first_layer[launch_shape(len(x))](x, self.pixel_scale, activation, *network)
            else:
                _next_layer[launch_shape(len(x))](before, len(x), layer, activation, *network)
            before = after


NO_ACTIVATION = -1


def layer_table(shapes):
    """Return ``layers`` for dense layers whose weights have ``shapes`` (n_in, n_out), in order."""
    layers = np.zeros((len(shapes), 4), np.int64)
    first_weight = first_unit = 0
    for row, (n_in, n_out) in zip(layers, shapes, strict=True):
        row[:] = n_in, n_out, first_weight, first_unit
        first_weight += n_in * n_out
        first_unit += n_out
    return layers


@cuda.jit(device=True, **options.CUDA)
def _first_phase(x, start, n_examples, pixel_scale, activation, layers, weights, bias, h):
    """Overwrite h[: n n_1] with the first layer of the images x[start : start + n_examples]."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    n_in, n_out = layers[0, N_IN], layers[0, N_OUT]
    for i in range(row, n_examples, rows):
        for u in range(lane, n_out, lanes):
            total = bias[u]
            for d in range(n_in):
                total += x[start + i, d] * pixel_scale * weights[d * n_out + u]
            h[i * n_out + u] = total if activation == NO_ACTIVATION else activate(total, activation)


@cuda.jit(device=True, **options.CUDA)
def _next_phase(source, at, n_examples, layer, activation, layers, weights, bias, h, to):
    """Overwrite h[to : to + n n_l] with a later layer of the activations source[at :]."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    n_in, n_out = layers[layer, N_IN], layers[layer, N_OUT]
    first_weight, first_unit = layers[layer, WEIGHTS], layers[layer, UNITS]
    for i in range(row, n_examples, rows):
        for u in range(lane, n_out, lanes):
            total = bias[first_unit + u]
            for d in range(n_in):
                total += source[at + i * n_in + d] * weights[first_weight + d * n_out + u]
            if activation != NO_ACTIVATION:
                total = activate(total, activation)
            h[to + i * n_out + u] = total


@cuda.jit(device=True, **options.CUDA)
def _error_phase(layer, batch_size, activation, layers, weights, h, error):
    """Overwrite the errors of a hidden layer from those of the layer after it."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    n_units, n_after = layers[layer, N_OUT], layers[layer + 1, N_OUT]
    at = layers[layer, UNITS] * batch_size
    after = layers[layer + 1, UNITS] * batch_size
    first_weight = layers[layer + 1, WEIGHTS]
    for i in range(row, batch_size, rows):
        for u in range(lane, n_units, lanes):
            total = like(error[0], 0)
            for c in range(n_after):
                total += error[after + i * n_after + c] * weights[first_weight + u * n_after + c]
            unit = at + i * n_units + u
            error[unit] = total * activation_slope(h[unit], activation)


@cuda.jit(device=True, **options.CUDA)
def _penalty_phase(layer, first_row, penalties, layers, weights, row_penalty):
    """Overwrite row_penalty from ``first_row`` on with the penalty of each of a layer's inputs."""
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    n_in, n_out = layers[layer, N_IN], layers[layer, N_OUT]
    first_weight = layers[layer, WEIGHTS]
    if lane == 0:
        for d in range(row, n_in, rows):
            total = like(penalties.rate, 0)
            for u in range(n_out):
                total += penalty(weights[first_weight + d * n_out + u], penalties)
            row_penalty[first_row + d] = total


@cuda.jit(device=True, **options.CUDA)
def _update_phase(
    x,
    start,
    pixel_scale,
    batch_size,
    learning_rate,
    penalties,
    layer,
    layers,
    weights,
    bias,
    h,
    error,
):
    """Update a layer by its gradients, summed over the examples in order: one thread each.

    Row n_in of the grid is the bias.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    n_in, n_out = layers[layer, N_IN], layers[layer, N_OUT]
    first_weight, first_unit = layers[layer, WEIGHTS], layers[layer, UNITS]
    at = first_unit * batch_size
    before = at - n_in * batch_size  # where the layer before starts; not used by the first
    for d in range(row, n_in + 1, rows):
        for u in range(lane, n_out, lanes):
            gradient = like(learning_rate, 0)
            if d == n_in:
                for i in range(batch_size):
                    gradient += error[at + i * n_out + u]
                bias[first_unit + u] -= learning_rate * gradient
                continue
            if layer == 0:
                for i in range(batch_size):
                    gradient += x[start + i, d] * pixel_scale * error[at + i * n_out + u]
            else:
                for i in range(batch_size):
                    gradient += h[before + i * n_in + d] * error[at + i * n_out + u]
            w = first_weight + d * n_out + u
            gradient += penalty_gradient(weights[w], penalties)
            weights[w] -= learning_rate * gradient


@cuda.jit(**options.CUDA_ENTRY)
def _train(
    x,  # (N, D) uint8 or floatX
    y,  # (N,) int32
    pixel_scale,
    learning_rate,
    penalties,  # (l1, l2, lp, p)
    activation,
    minibatch,  # number of the first one
    layers,  # (L, 4)
    weights,  # flat, changed
    bias,  # flat, changed
    h,  # flat, scratch: activations of all layers
    error,  # flat, scratch: their errors
    logits,  # (B, C), the end of h
    logits_error,  # (B, C), the end of error
    example_nll,  # (B,), scratch
    row_penalty,  # a place per input of every layer, scratch
    costs,  # one per minibatch, overwritten
):
    grid = cuda.cg.this_grid()
    lane, row = cuda.grid(2)
    n_layers = layers.shape[0]
    batch_size = logits.shape[0]
    inverse_batch_size = like(learning_rate, 1) / like(learning_rate, batch_size)
    for step in range(costs.shape[0]):
        start = (minibatch + step) * batch_size
        first_row = 0
        for layer in range(n_layers):
            kind = activation if layer < n_layers - 1 else NO_ACTIVATION
            if layer == 0:
                _first_phase(x, start, batch_size, pixel_scale, kind, layers, weights, bias, h)
            else:
                at = layers[layer - 1, UNITS] * batch_size
                to = layers[layer, UNITS] * batch_size
                _next_phase(h, at, batch_size, layer, kind, layers, weights, bias, h, to)
            _penalty_phase(layer, first_row, penalties, layers, weights, row_penalty)
            first_row += layers[layer, N_IN]
            grid.sync()
        loss_phase(y, start, inverse_batch_size, logits, logits_error, example_nll)
        grid.sync()
        for layer in range(n_layers - 2, -1, -1):
            _error_phase(layer, batch_size, activation, layers, weights, h, error)
            grid.sync()
        for layer in range(n_layers):
            _update_phase(
                x,
                start,
                pixel_scale,
                batch_size,
                learning_rate,
                penalties,
                layer,
                layers,
                weights,
                bias,
                h,
                error,
            )
        if lane == 0 and row == 0:
            mean_nll = ordered_sum(example_nll) * inverse_batch_size
            costs[step] = mean_nll + ordered_sum(row_penalty)
        grid.sync()


@cuda.jit(**options.CUDA_ENTRY)
def _first_layer(x, pixel_scale, activation, layers, weights, bias, h):
    """Overwrite h (flat) with the first layer of the images x (n, D)."""
    _first_phase(x, 0, x.shape[0], pixel_scale, activation, layers, weights, bias, h)


@cuda.jit(**options.CUDA_ENTRY)
def _next_layer(source, n_examples, layer, activation, layers, weights, bias, h):
    """Overwrite h (flat) with a later layer of the activations ``source`` (flat)."""
    _next_phase(source, 0, n_examples, layer, activation, layers, weights, bias, h, 0)
