"""Logistic regression on the CPU: loops over the formulas of ``model.py``.

A minibatch is two parallel loops: over images, whose errors do not depend on each other, and over
pixels, each of which sums its row of the gradient over the images in which it is lit and updates
its row of the weights. No sum is shared, so the bits are the same for any number of threads.

The weights are a flat (D, W) array, W being the number of classes rounded up to whole vectors of
``kernels/simd.py``: a pixel's row of them is a vector or a few. The columns that fill up the last
vector have weight 0 and error 0, and keep them.
"""

import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.cpu import (
    first_argmax,
    ordered_sum,
    penalty,
    penalty_gradient,
    softmax_cross_entropy,
)
from msgd.kernels.nonzero import scale, weighted_rows
from msgd.kernels.simd import LANES, add, fma, load, splat, store
from msgd.models.cpu_backend import CpuBackend

TASKS = 16  # parts that the images or the pixels of a minibatch are cut into
PREDICTION_TASKS = 64  # of a split's images


class Backend(CpuBackend):
    """The CPU twin; see msgd.models.interface.Backend."""

    def allocate(self):
        """Say whether there are penalties: without them the update is plain arithmetic."""
        self.has_penalties = any(self.penalties[:3])

    def train_span(self, first, last, costs):
        """Train minibatches first..last-1 and write their costs, (last - first,) floatX."""
        start, stop = self._rows_of(first, last)
        _train(
            self._nonzero("train", start, stop),
            self._lit(start, stop),
            self.dataset.train_y[start:stop],
            self.pixel_scale,
            self.batch_size,
            self.dataset.n_classes,
            self.learning_rate,
            self.has_penalties,
            self.penalties,
            first % self.n_train_batches - start // self.batch_size,
            self.weights,
            self.bias,
            costs,
        )

    def predict_rows(self, split, start, stop, predicted):
        """Write the classes of images start..stop-1 of ``split`` into predicted, int32."""
        pixels = self._nonzero(split, start, stop)
        _predict(
            pixels, self.pixel_scale, self.weights, self.bias, self.dataset.n_classes, predicted
        )

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        return self._unpad(self.weights, self.bias)

    def _unpad(self, weights, bias):
        """Return flat (D, W) ``weights`` and (W,) ``bias``, or gradients, as named parameters."""
        n_classes = self.dataset.n_classes
        columns = weights.reshape(-1, bias.size)[:, :n_classes]
        return {"weights": columns.copy(), "bias": bias[:n_classes].copy()}

    def set_parameters(self, parameters):
        """See msgd.models.interface.Backend.set_parameters."""
        self.weights = to_vectors(parameters["weights"])
        self.bias = to_vectors(parameters["bias"][None])


def to_vectors(array):
    """Return ``array`` (n, C) as a flat (n, W) array, zeros in the columns that fill up."""
    n_rows, n_columns = array.shape
    padded = np.zeros((n_rows, -(-n_columns // LANES) * LANES), array.dtype)
    padded[:, :n_columns] = array
    return padded.ravel()


@njit(**options.CPU_PARALLEL)
def _train(
    pixels,  # NonzeroPixels of the minibatches that the span goes round
    lit,  # their LitImages
    y,  # their (N,) int32 labels
    pixel_scale,
    batch_size,
    n_classes,
    learning_rate,
    has_penalties,
    penalties,  # (l1, l2, lp, p)
    first,  # the minibatch of the span's beginning
    weights,  # flat (D, W), changed
    bias,  # (W,), changed
    costs,  # one for each minibatch of the span, overwritten
):
    dtype = weights.dtype
    width = bias.shape[0]
    n_features = weights.shape[0] // width
    n_batches = y.shape[0] // batch_size
    inverse_batch_size = dtype.type(1) / dtype.type(batch_size)
    error = np.zeros(batch_size * width, dtype)
    nll = np.empty(batch_size, dtype)
    task_penalty = np.zeros(TASKS, dtype)
    for step in range(costs.shape[0]):
        minibatch = (first + step) % n_batches
        for task in prange(TASKS):
            _errors(
                task * batch_size // TASKS,
                (task + 1) * batch_size // TASKS,
                minibatch * batch_size,
                pixels,
                y,
                pixel_scale,
                n_classes,
                inverse_batch_size,
                weights,
                bias,
                error,
                nll,
            )
        for task in prange(TASKS):
            if has_penalties:
                task_penalty[task] = _penalise(task, width, learning_rate, penalties, weights)
            first_row = minibatch * n_features
            _update(task, first_row, lit, pixel_scale, learning_rate, error, width, weights)
        _update_bias(learning_rate, error, bias)
        costs[step] = ordered_sum(nll) * inverse_batch_size + ordered_sum(task_penalty)


@njit(**options.CPU)
def _errors(
    start,
    stop,
    first_image,
    pixels,
    y,
    pixel_scale,
    n_classes,
    inverse_batch_size,
    weights,
    bias,
    error,
    nll,
):
    """Overwrite error (B, W) and nll (B,) of images start..stop-1 of a minibatch.

    first_image: the minibatch's first in ``pixels`` and y.
    """
    width = bias.shape[0]
    value = np.empty(weights.shape[0] // width, weights.dtype)
    logits = np.empty(width, weights.dtype)
    image_error = np.zeros(width, weights.dtype)
    class_logits, class_error = logits[:n_classes], image_error[:n_classes]  # slicing is slow
    for i in range(start, stop):
        _logits(pixels, first_image + i, pixel_scale, weights, bias, value, logits)
        nll[i] = softmax_cross_entropy(
            class_logits, y[first_image + i], inverse_batch_size, class_error
        )
        for column in range(0, width, LANES):
            store(error, i * width + column, load(image_error, column))


@njit(**options.CPU)
def _logits(pixels, i, pixel_scale, weights, bias, value, logits):
    """Overwrite logits (W,) with x W + b of image i; value (D,) is scratch."""
    width = bias.shape[0]
    first = pixels.first[i]
    count = pixels.first[i + 1] - first
    scale(pixels.value, first, count, pixel_scale, value)
    for column in range(0, width, LANES):
        total = weighted_rows(pixels.position, first, count, value, weights, width, column)
        store(logits, column, add(load(bias, column), total))


@njit(**options.CPU)
def _update(task, first_row, lit, pixel_scale, learning_rate, error, width, weights):
    """Update a task's share of the pixels: every TASKS-th, for their entries are spread unevenly.

    first_row: pixel 0 of the minibatch in ``lit``; error: flat (B, W).
    """
    value = np.empty(error.shape[0] // width, weights.dtype)
    for d in range(task, weights.shape[0] // width, TASKS):
        first = lit.first[first_row + d]
        count = lit.first[first_row + d + 1] - first
        scale(lit.value, first, count, pixel_scale, value)
        for column in range(0, width, LANES):
            gradient = weighted_rows(lit.image, first, count, value, error, width, column)
            at = d * width + column
            store(weights, at, fma(-learning_rate, gradient, load(weights, at)))


@njit(**options.CPU)
def _penalise(task, width, learning_rate, penalties, weights):
    """Move a task's share of the weights down their penalty's gradient; return the penalty."""
    total = weights.dtype.type(0)
    for d in range(task, weights.shape[0] // width, TASKS):
        for w in range(d * width, (d + 1) * width):
            weight = weights[w]
            total += penalty(weight, penalties)
            weights[w] = weight - learning_rate * penalty_gradient(weight, penalties)
    return total


@njit(**options.CPU)
def _update_bias(learning_rate, error, bias):
    """Update the bias (W,) by the sum of the images' errors, flat (B, W), in order."""
    width = bias.shape[0]
    for column in range(0, width, LANES):
        gradient = splat(bias, 0)
        for at in range(column, error.shape[0], width):
            gradient = add(gradient, load(error, at))
        store(bias, column, fma(-learning_rate, gradient, load(bias, column)))


@njit(**options.CPU_PARALLEL)
def _predict(pixels, pixel_scale, weights, bias, n_classes, predicted):
    """Overwrite predicted (N,) int32 with the class of every image."""
    n_examples = predicted.shape[0]
    width = bias.shape[0]
    for task in prange(PREDICTION_TASKS):
        value = np.empty(weights.shape[0] // width, weights.dtype)
        logits = np.empty(width, weights.dtype)
        class_logits = logits[:n_classes]
        start = task * n_examples // PREDICTION_TASKS
        stop = (task + 1) * n_examples // PREDICTION_TASKS
        for i in range(start, stop):
            _logits(pixels, i, pixel_scale, weights, bias, value, logits)
            predicted[i] = first_argmax(class_logits)
