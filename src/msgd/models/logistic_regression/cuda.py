"""Logistic regression on CUDA: loops over the formulas of ``model.py``.

A span of minibatches is one cooperative launch. Each minibatch passes through three phases (logits;
loss; gradient and update), after each of which the whole grid waits. Every sum is taken by one
thread in a fixed order: no atomics on floats, and the same bits for any number of blocks.

Threads lie in two dimensions: x counts classes, y counts examples or pixels.
"""

import numpy as np
from numba import cuda

from msgd.kernels import options
from msgd.kernels.cuda import (
    first_argmax,
    launch_shape,
    penalty,
    penalty_gradient,
    require_device,
    softmax_cross_entropy,
)
from msgd.kernels.formulas import like
from msgd.models.interface import n_batches, n_evaluated


class Backend:
    """The CUDA twin; see msgd.models.interface.Backend."""

    def __init__(self, dataset, parameters, settings, float_x):
        require_device()
        self.dataset = dataset
        self.batch_size = settings["batch_size"]
        self.n_train_batches = n_batches(len(dataset.train_x), self.batch_size)
        self.pixel_scale = float_x(dataset.pixel_scale)
        self.rates = tuple(float_x(settings[name]) for name in ("learning_rate", "l1", "l2"))
        self.shared = {
            split: tuple(cuda.to_device(array) for array in dataset.split(split))
            for split in ("train", "valid", "test")
        }
        self.set_parameters(parameters)
        n_features, n_classes = self.weights.shape
        self.logits = cuda.device_array((self.batch_size, n_classes), float_x)
        self.error = cuda.device_array((self.batch_size, n_classes), float_x)
        self.example_nll = cuda.device_array(self.batch_size, float_x)
        self.row_penalty = cuda.device_array(n_features, float_x)

    def train(self, first, last):
        """See msgd.models.interface.Backend.train."""
        costs = cuda.device_array(last - first, self.weights.dtype)
        _train[launch_shape(max(self.batch_size, len(self.row_penalty)))](
            *self.shared["train"],
            self.pixel_scale,
            self.batch_size,
            self.n_train_batches,
            *self.rates,
            first % self.n_train_batches,
            self.weights,
            self.bias,
            self.logits,
            self.error,
            self.example_nll,
            self.row_penalty,
            costs,
        )
        return costs.copy_to_host()

    def count_errors(self, split):
        """See msgd.models.interface.Backend.count_errors."""
        _, y = self.shared[split]
        count = cuda.to_device(np.zeros(1, np.int32))
        n_counted = n_evaluated(len(y), self.batch_size)
        _count_mistakes[launch_shape(n_counted)](self._predict(split), y, n_counted, count)
        return int(count.copy_to_host()[0])

    def predict(self, split):
        """See msgd.models.interface.Backend.predict."""
        return self._predict(split).copy_to_host()

    def _predict(self, split):
        """Return the predicted classes of ``split`` as a device array, (N,) int32."""
        x, _ = self.shared[split]
        logits = cuda.device_array((len(x), len(self.bias)), self.weights.dtype)
        predicted = cuda.device_array(len(x), np.int32)
        shape = launch_shape(len(x))
        _predict_logits[shape](x, self.pixel_scale, self.weights, self.bias, logits)
        _predict_classes[shape](logits, predicted)
        return predicted

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        return {"weights": self.weights.copy_to_host(), "bias": self.bias.copy_to_host()}

    def set_parameters(self, parameters):
        """See msgd.models.interface.Backend.set_parameters."""
        self.weights = cuda.to_device(parameters["weights"])
        self.bias = cuda.to_device(parameters["bias"])


@cuda.jit(device=True, **options.CUDA)
def _logits_phase(x, start, n_examples, pixel_scale, weights, bias, logits):
    """Overwrite logits (n_examples, C) with x W + b of the images from ``start`` on."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    for i in range(row, n_examples, rows):
        for c in range(lane, weights.shape[1], lanes):
            logit = bias[c]
            for d in range(weights.shape[0]):
                logit += x[start + i, d] * pixel_scale * weights[d, c]
            logits[i, c] = logit


@cuda.jit(device=True, **options.CUDA)
def _penalty_phase(l1, l2, weights, row_penalty):
    """Overwrite row_penalty (D,) with the penalty of each pixel's weights."""
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    if lane == 0:
        for d in range(row, weights.shape[0], rows):
            total = like(l1, 0)
            for c in range(weights.shape[1]):
                total += penalty(weights[d, c], l1, l2)
            row_penalty[d] = total


@cuda.jit(device=True, **options.CUDA)
def _loss_phase(y, start, n_examples, inverse_batch_size, logits, error, example_nll):
    """Overwrite error (B, C) and example_nll (B,) from the logits: one thread per example."""
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    if lane == 0:
        for i in range(row, n_examples, rows):
            example_nll[i] = softmax_cross_entropy(
                logits[i], y[start + i], inverse_batch_size, error[i]
            )


@cuda.jit(device=True, **options.CUDA)
def _update_phase(x, start, n_examples, pixel_scale, learning_rate, l1, l2, error, weights, bias):
    """Update every parameter by its gradient, summed over the examples in order: one thread each.

    Row D of the grid is the bias.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    n_features = weights.shape[0]
    for d in range(row, n_features + 1, rows):
        for c in range(lane, weights.shape[1], lanes):
            gradient = like(learning_rate, 0)
            if d < n_features:
                for i in range(n_examples):
                    gradient += x[start + i, d] * pixel_scale * error[i, c]
                weight = weights[d, c]
                gradient += penalty_gradient(weight, l1, l2)
                weights[d, c] = weight - learning_rate * gradient
            else:
                for i in range(n_examples):
                    gradient += error[i, c]
                bias[c] -= learning_rate * gradient


@cuda.jit(device=True, **options.CUDA)
def _ordered_sum(values):
    total = values[0]
    for i in range(1, values.shape[0]):
        total += values[i]
    return total


@cuda.jit(**options.CUDA)
def _train(
    x,  # (N, D) uint8 or floatX
    y,  # (N,) int32
    pixel_scale,
    batch_size,
    n_train_batches,
    learning_rate,
    l1,
    l2,
    minibatch,  # the first one's number, below n_train_batches
    weights,  # (D, C), changed
    bias,  # (C,), changed
    logits,  # (B, C), scratch
    error,  # (B, C), scratch
    example_nll,  # (B,), scratch
    row_penalty,  # (D,), scratch
    costs,  # one per minibatch of the span, overwritten
):
    grid = cuda.cg.this_grid()
    lane, row = cuda.grid(2)
    inverse_batch_size = like(learning_rate, 1) / like(learning_rate, batch_size)
    for step in range(costs.shape[0]):
        start = minibatch * batch_size
        _logits_phase(x, start, batch_size, pixel_scale, weights, bias, logits)
        _penalty_phase(l1, l2, weights, row_penalty)
        grid.sync()
        _loss_phase(y, start, batch_size, inverse_batch_size, logits, error, example_nll)
        grid.sync()
        _update_phase(
            x, start, batch_size, pixel_scale, learning_rate, l1, l2, error, weights, bias
        )
        if lane == 0 and row == 0:
            mean_nll = _ordered_sum(example_nll) * inverse_batch_size
            costs[step] = mean_nll + _ordered_sum(row_penalty)
        grid.sync()
        minibatch += 1
        if minibatch == n_train_batches:
            minibatch = 0


@cuda.jit(**options.CUDA)
def _predict_logits(x, pixel_scale, weights, bias, logits):
    """Overwrite logits (N, C) with x W + b of every image of x (N, D)."""
    _logits_phase(x, 0, x.shape[0], pixel_scale, weights, bias, logits)


@cuda.jit(**options.CUDA)
def _predict_classes(logits, predicted):
    """Overwrite predicted (N,) int32 with the class of largest logit."""
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    if lane == 0:
        for i in range(row, logits.shape[0], rows):
            predicted[i] = first_argmax(logits[i])


@cuda.jit(**options.CUDA)
def _count_mistakes(predicted, y, n_counted, count):
    """Add to count[0] how many of the first n_counted predictions differ from y (N,)."""
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    if lane == 0:
        for i in range(row, n_counted, rows):
            if predicted[i] != y[i]:
                cuda.atomic.add(count, 0, 1)  # integers: the order does not matter
