"""Multilayer perceptron on CUDA, as plain as CUDA can be: loops over the formulas of ``model.py``.

Several minibatches are trained in one cooperative launch. Each passes through phases: forward,
layer by layer (and the penalty); loss; errors, from the last hidden layer to the first; gradient
and update, and the cost. Wherever a phase reads what other threads wrote, the whole grid waits
before it. One thread computes each sum, in a fixed order: no atomics on floats, and the same bits
for any number of blocks.

The layers lie one after the other in flat arrays; the table ``layers`` says where each starts.

Legend, beyond that of ``model.py``: N images in all, n or B of them together. Layers are numbered
from 0 here. What a phase computes has numbers, row by row, and the threads take them in turn: see
thread_of_grid. Where they lie in two dimensions, ``lane`` counts classes or units and ``row``
images or inputs.
"""

from typing import NamedTuple

import numpy as np
from numba import cuda

from msgd.kernels import options
from msgd.kernels.cuda import (
    ALL_REGISTERS,
    Images,
    activate,
    activation_slope,
    cost_phase,
    dot,
    has_penalty,
    launch_shape_of_tasks,
    loss_phase,
    penalty,
    penalty_gradient,
    pixel_dot,
    sgd_step,
    thread_of_grid,
)
from msgd.kernels.formulas import ACTIVATIONS, like
from msgd.models.cuda_backend import CudaClassifier

NO_ACTIVATION = -1  # of the last layer, beside ACTIVATIONS

# Columns of the table ``layers``, with a row per layer.
N_IN = 0  # units of the layer before it; D for the first
N_OUT = 1  # its own units
FIRST_WEIGHT = 2  # where its weights (n_in, n_out) start in the flat weights
FIRST_UNIT = 3  # where its units start in the flat biases; times B, in the flat activations


class Network(NamedTuple):
    """All layers with their parameters."""

    layers: object  # (L, 4) int64
    weights: object  # flat floatX: (n_in, n_out) of each layer in turn
    bias: object  # flat floatX: (n_out,) of each layer in turn


class Activations(NamedTuple):
    """What the B images of a minibatch have at the units of each layer in turn."""

    h: object  # flat floatX: (B, n_out), the activations; the logits of the last layer
    error: object  # flat floatX: (B, n_out), the derivatives of the cost by what is activated


class Backend(CudaClassifier):
    """The plain CUDA twin; see msgd.models.interface.Backend."""

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
            first, flat[len(shape)] = np.split(flat[len(shape)], [int(np.prod(shape))])
            parameters[name] = first.reshape(shape).copy()
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
        output = slice(int(self.layers_on_host[-1, FIRST_UNIT]) * self.batch_size, None)
        by_image = (self.batch_size, self.n_classes)
        blocks, threads = self._training_shape()
        _train[blocks, threads, self.shared.stream](
            x,
            y,
            self.pixel_scale,
            self.descent,
            self.activation,
            minibatch,
            self.layers,
            self.weights,
            self.bias,
            self.h,
            self.error,
            self.h[output].reshape(by_image),
            self.error[output].reshape(by_image),
            self.example_nll,
            self.row_penalty,
            costs,
        )

    def _training_shape(self):
        """Return (blocks, threads) of a training's launches."""
        n_in, n_out = self.layers_on_host[:, [N_IN, N_OUT]].T
        n_weights, n_units = (n_in * n_out).max(), self.batch_size * n_out.max()
        return launch_shape_of_tasks(int(max(n_weights, n_units)))

    def launch_logits(self, x, logits):
        """Overwrite logits (n, C) with those of the images x (n, D)."""
        n, n_layers = len(x), len(self.layers_on_host)
        below = None
        for number, layer in enumerate(self.layers_on_host):
            is_last = number == n_layers - 1
            size = n * int(layer[N_OUT])
            h = logits.reshape(size) if is_last else cuda.device_array(size, self.float_x)
            activation = NO_ACTIVATION if is_last else self.activation
            network = self.layers, self.weights, self.bias
            if number == 0:
                _first_layer[launch_shape_of_tasks(size)](
                    x, self.pixel_scale, activation, *network, h
                )
            else:
                _next_layer[launch_shape_of_tasks(size)](below, n, number, activation, *network, h)
            below = h


def layer_table(shapes):
    """Return ``layers``, (L, 4) int64, for weights of ``shapes``, an (n_in, n_out) per layer."""
    layers = np.zeros((len(shapes), 4), np.int64)
    first_weight = first_unit = 0
    for number, (n_in, n_out) in enumerate(shapes):
        layers[number] = n_in, n_out, first_weight, first_unit
        first_weight += n_in * n_out
        first_unit += n_out
    return layers


@cuda.jit(device=True, **options.CUDA)
def _first_forward_phase(images, activation, network, h):
    """Overwrite h, flat (n, n_1) floatX, with the first layer of n images: one thread per unit.

    images: msgd.kernels.cuda.Images; activation: int, one of ACTIVATIONS or NO_ACTIVATION; network:
    Network.
    """
    thread, n_threads = thread_of_grid()
    layer = network.layers[0]
    n_in, n_out = layer[N_IN], layer[N_OUT]
    for task in range(thread, images.n * n_out, n_threads):
        i, u = task // n_out, task % n_out
        column = network.weights[u : n_in * n_out : n_out]
        total = network.bias[u] + pixel_dot(images.x[images.start + i], images.pixel_scale, column)
        h[task] = total if activation == NO_ACTIVATION else activate(total, activation)


@cuda.jit(device=True, **options.CUDA)
def _next_forward_phase(below, at, n, number, activation, network, h, to):
    """Overwrite h[to :] with layer ``number`` > 0 of n images: one thread per unit.

    below[at :]: flat (n, n_in) floatX, the activations of the layer before; activation: int, one of
    ACTIVATIONS or NO_ACTIVATION; network: Network; h[to :]: flat (n, n_out) floatX.
    """
    thread, n_threads = thread_of_grid()
    layer = network.layers[number]
    n_in, n_out = layer[N_IN], layer[N_OUT]
    first_weight, first_unit = layer[FIRST_WEIGHT], layer[FIRST_UNIT]
    for task in range(thread, n * n_out, n_threads):
        i, u = task // n_out, task % n_out
        units = below[at + i * n_in : at + (i + 1) * n_in]
        column = network.weights[first_weight + u : first_weight + n_in * n_out : n_out]
        total = network.bias[first_unit + u] + dot(units, column)
        if activation != NO_ACTIVATION:
            total = activate(total, activation)
        h[to + task] = total


@cuda.jit(device=True, **options.CUDA)
def _error_phase(number, batch_size, activation, network, activations):
    """Overwrite the error of the hidden layer ``number`` of B images: one thread per unit.

    It is computed from the error of the layer after it and that layer's weights. activation: int,
    one of ACTIVATIONS; network: Network; activations: Activations, of which error is changed.
    """
    thread, n_threads = thread_of_grid()
    layer, after = network.layers[number], network.layers[number + 1]
    n_out, n_after = layer[N_OUT], after[N_OUT]
    at, at_after = layer[FIRST_UNIT] * batch_size, after[FIRST_UNIT] * batch_size
    first_weight = after[FIRST_WEIGHT]
    h, error = activations.h, activations.error
    for task in range(thread, batch_size * n_out, n_threads):
        i, u = task // n_out, task % n_out
        total = like(error[0], 0)
        for c in range(n_after):
            weight = network.weights[first_weight + u * n_after + c]
            total += error[at_after + i * n_after + c] * weight
        error[at + task] = total * activation_slope(h[at + task], activation)


@cuda.jit(device=True, **options.CUDA)
def _penalty_phase(number, first_row, descent, network, row_penalty):
    """Overwrite row_penalty[first_row : first_row + n_in] of layer ``number``: one thread per row.

    descent: msgd.kernels.arguments.Descent; network: Network; row_penalty: floatX, the penalty of
    each row of the weights of all layers.
    """
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    layer = network.layers[number]
    n_in, n_out, first_weight = layer[N_IN], layer[N_OUT], layer[FIRST_WEIGHT]
    if lane == 0:
        for d in range(row, n_in, rows):
            total = like(descent.rate, 0)
            for u in range(n_out):
                total += penalty(network.weights[first_weight + d * n_out + u], descent)
            row_penalty[first_row + d] = total


@cuda.jit(device=True, **options.CUDA)
def _update_phase(images, number, descent, network, activations):
    """Change the weights and biases of layer ``number`` by a step of SGD: one thread per parameter.

    Each sums its gradient over the B images in order. images: msgd.kernels.cuda.Images, which the
    first layer reads; descent: msgd.kernels.arguments.Descent; network: Network; activations:
    Activations. The biases' numbers come after those of the weights.
    """
    thread, n_threads = thread_of_grid()
    layer = network.layers[number]
    n_in, n_out = layer[N_IN], layer[N_OUT]
    first_weight, first_unit = layer[FIRST_WEIGHT], layer[FIRST_UNIT]
    at = first_unit * images.n
    below = at - n_in * images.n  # where the layer before starts; not used by the first
    h, error = activations.h, activations.error
    for task in range(thread, (n_in + 1) * n_out, n_threads):
        d, u = task // n_out, task % n_out
        gradient = like(descent.rate, 0)
        if d == n_in:
            for i in range(images.n):
                gradient += error[at + i * n_out + u]
            unit = first_unit + u
            network.bias[unit] = sgd_step(network.bias[unit], gradient, descent)
            continue
        if number == 0:
            for i in range(images.n):
                pixel = images.x[images.start + i, d] * images.pixel_scale
                gradient += pixel * error[at + i * n_out + u]
        else:
            for i in range(images.n):
                gradient += h[below + i * n_in + d] * error[at + i * n_out + u]
        w = first_weight + task
        gradient += penalty_gradient(network.weights[w], descent)
        network.weights[w] = sgd_step(network.weights[w], gradient, descent)


@cuda.jit(**ALL_REGISTERS, **options.CUDA_ENTRY)
def _train(
    x,  # (N, D) uint8 or floatX
    y,  # (N,) int32
    pixel_scale,  # floatX, what a stored pixel is multiplied by
    descent,  # msgd.kernels.arguments.Descent
    activation,  # of the hidden layers: one of ACTIVATIONS
    minibatch,  # number of the first one
    layers,  # (L, 4) int64
    weights,  # flat floatX, changed; see Network
    bias,  # flat floatX, changed
    h,  # flat floatX, scratch; see Activations
    error,  # flat floatX, scratch
    logits,  # (B, C), the end of h
    logits_error,  # (B, C), the end of error
    example_nll,  # (B,) floatX, scratch
    row_penalty,  # floatX, scratch: the penalty of each row of the weights of all layers
    costs,  # floatX, one per minibatch, overwritten
):
    """Train one minibatch after the other; write the cost of each before its update."""
    grid = cuda.cg.this_grid()
    n_layers = layers.shape[0]
    batch_size = logits.shape[0]
    inverse_batch_size = like(pixel_scale, 1) / like(pixel_scale, batch_size)
    network, activations = Network(layers, weights, bias), Activations(h, error)
    for step in range(costs.shape[0]):
        images = Images(x, (minibatch + step) * batch_size, batch_size, pixel_scale)
        first_row = 0
        for number in range(n_layers):
            kind = activation if number < n_layers - 1 else NO_ACTIVATION
            if number == 0:
                _first_forward_phase(images, kind, network, h)
            else:
                at = layers[number - 1, FIRST_UNIT] * batch_size
                to = layers[number, FIRST_UNIT] * batch_size
                _next_forward_phase(h, at, batch_size, number, kind, network, h, to)
            if has_penalty(descent):
                _penalty_phase(number, first_row, descent, network, row_penalty)
            first_row += layers[number, N_IN]
            grid.sync()
        loss_phase(y, images.start, inverse_batch_size, logits, logits_error, example_nll)
        grid.sync()
        for number in range(n_layers - 2, -1, -1):
            _error_phase(number, batch_size, activation, network, activations)
            grid.sync()
        for number in range(n_layers):
            _update_phase(images, number, descent, network, activations)
        cost_phase(descent, inverse_batch_size, example_nll, row_penalty, costs, step)
        grid.sync()


@cuda.jit(**options.CUDA_ENTRY)
def _first_layer(x, pixel_scale, activation, layers, weights, bias, h):
    """Overwrite h, flat (n, n_1) floatX, with the first layer of the images x, (n, D).

    x: uint8 or floatX; pixel_scale: floatX; activation: int, one of ACTIVATIONS or NO_ACTIVATION;
    layers, weights, bias: see Network.
    """
    images = Images(x, 0, x.shape[0], pixel_scale)
    _first_forward_phase(images, activation, Network(layers, weights, bias), h)


@cuda.jit(**options.CUDA_ENTRY)
def _next_layer(below, n, number, activation, layers, weights, bias, h):
    """Overwrite h, flat (n, n_out) floatX, with layer ``number`` > 0 of n images.

    below: flat (n, n_in) floatX, the activations of the layer before; activation: int, one of
    ACTIVATIONS or NO_ACTIVATION; layers, weights, bias: see Network.
    """
    network = Network(layers, weights, bias)
    _next_forward_phase(below, 0, n, number, activation, network, h, 0)
