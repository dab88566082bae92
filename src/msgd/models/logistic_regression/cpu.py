"""Logistic regression on the CPU: loops over the formulas of ``model.py``.

A minibatch is cut into P chunks of images, one thread each; then the weights are cut into P blocks
of pixel rows, one thread each, which add the P partial gradients in order and update. P follows
from the batch size alone, so the bits are the same for any number of threads.
"""

import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.cpu import (
    first_argmax,
    gather_nonzero,
    ordered_sum,
    penalty,
    penalty_gradient,
    softmax_cross_entropy,
)
from msgd.models.cpu_backend import CpuBackend

PREDICTION_CHUNKS = 64  # of a split's images; each image is independent of the others


class Backend(CpuBackend):
    """The CPU twin; see msgd.models.interface.Backend."""

    def allocate(self):
        """Make the scratch arrays of training."""
        n_chunks = options.n_chunks(self.batch_size)
        self.weights_gradient = np.empty((n_chunks, *self.weights.shape), self.float_x)
        self.bias_gradient = np.empty((n_chunks, *self.bias.shape), self.float_x)

    def train_span(self, first, last, costs):
        """Train minibatches first..last-1 and write their costs, (last - first,) floatX."""
        _train(
            self.dataset.train_x,
            self.dataset.train_y,
            self.pixel_scale,
            self.batch_size,
            self.n_train_batches,
            self.learning_rate,
            self.penalties,
            first,
            last,
            self.weights,
            self.bias,
            self.weights_gradient,
            self.bias_gradient,
            costs,
        )

    def predict_classes(self, x, predicted):
        """Write the classes of the images x (n, D) into predicted (n,) int32."""
        _predict(x, self.pixel_scale, self.weights, self.bias, predicted)

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        return {"weights": self.weights.copy(), "bias": self.bias.copy()}

    def set_parameters(self, parameters):
        """See msgd.models.interface.Backend.set_parameters."""
        self.weights = parameters["weights"].copy()
        self.bias = parameters["bias"].copy()


@njit(**options.CPU_PARALLEL)
def _train(
    x,  # (N, D) uint8 or floatX
    y,  # (N,) int32
    pixel_scale,
    batch_size,
    n_train_batches,
    learning_rate,
    penalties,  # (l1, l2, lp, p)
    first,
    last,
    weights,  # (D, C), changed
    bias,  # (C,), changed
    weights_gradient,  # (P, D, C), scratch
    bias_gradient,  # (P, C), scratch
    costs,  # (last - first,), overwritten
):
    n_chunks = weights_gradient.shape[0]
    n_features = weights.shape[0]
    inverse_batch_size = weights.dtype.type(1) / weights.dtype.type(batch_size)
    chunk_nll = np.empty(n_chunks, weights.dtype)
    chunk_penalty = np.empty(n_chunks, weights.dtype)
    for iteration in range(first, last):
        start = iteration % n_train_batches * batch_size
        for p in prange(n_chunks):
            chunk_nll[p] = _chunk_gradient(
                x,
                y,
                pixel_scale,
                start + p * batch_size // n_chunks,
                start + (p + 1) * batch_size // n_chunks,
                inverse_batch_size,
                weights,
                bias,
                weights_gradient[p],
                bias_gradient[p],
            )
        for p in prange(n_chunks):
            chunk_penalty[p] = _update_rows(
                p * n_features // n_chunks,
                (p + 1) * n_features // n_chunks,
                learning_rate,
                penalties,
                weights,
                weights_gradient,
            )
        _update_bias(learning_rate, bias, bias_gradient)
        costs[iteration - first] = ordered_sum(chunk_nll) * inverse_batch_size + ordered_sum(
            chunk_penalty
        )


@njit(**options.CPU)
def _chunk_gradient(
    x,
    y,
    pixel_scale,
    start,
    stop,
    inverse_batch_size,
    weights,
    bias,
    weights_gradient,
    bias_gradient,
):
    """Overwrite the gradients (D, C), (C,) with sums over images start..stop-1; return the NLL."""
    n_features, n_classes = weights.shape
    position = np.empty(n_features, np.int64)
    value = np.empty(n_features, weights.dtype)
    logits = np.empty(n_classes, weights.dtype)
    error = np.empty(n_classes, weights.dtype)
    weights_gradient[:] = 0
    bias_gradient[:] = 0
    nll = weights.dtype.type(0)
    for i in range(start, stop):
        n_nonzero = gather_nonzero(x, i, pixel_scale, position, value)
        _logits(position, value, n_nonzero, weights, bias, logits)
        nll += softmax_cross_entropy(logits, y[i], inverse_batch_size, error)
        for c in range(n_classes):
            bias_gradient[c] += error[c]
        for j in range(n_nonzero):
            d = position[j]
            for c in range(n_classes):
                weights_gradient[d, c] += value[j] * error[c]
    return nll


@njit(**options.CPU)
def _logits(position, value, n_nonzero, weights, bias, logits):
    """Overwrite logits (C,) with x W + b for the image whose nonzero pixels are listed."""
    for c in range(logits.shape[0]):
        logits[c] = bias[c]
    for j in range(n_nonzero):
        d = position[j]
        for c in range(logits.shape[0]):
            logits[c] += value[j] * weights[d, c]


@njit(**options.CPU)
def _update_rows(start, stop, learning_rate, penalties, weights, weights_gradient):
    """Update pixel rows start..stop-1 of the weights; return their penalty before the update."""
    total = weights.dtype.type(0)
    for d in range(start, stop):
        for c in range(weights.shape[1]):
            weight = weights[d, c]
            total += penalty(weight, penalties)
            gradient = weights_gradient[0, d, c]
            for p in range(1, weights_gradient.shape[0]):
                gradient += weights_gradient[p, d, c]
            weights[d, c] = weight - learning_rate * (
                gradient + penalty_gradient(weight, penalties)
            )
    return total


@njit(**options.CPU)
def _update_bias(learning_rate, bias, bias_gradient):
    for c in range(bias.shape[0]):
        gradient = bias_gradient[0, c]
        for p in range(1, bias_gradient.shape[0]):
            gradient += bias_gradient[p, c]
        bias[c] -= learning_rate * gradient


@njit(**options.CPU_PARALLEL)
def _predict(x, pixel_scale, weights, bias, predicted):
    """Overwrite predicted (N,) int32 with the class of every image of x (N, D)."""
    n_examples, n_features = x.shape
    for p in prange(PREDICTION_CHUNKS):
        position = np.empty(n_features, np.int64)
        value = np.empty(n_features, weights.dtype)
        logits = np.empty(bias.shape[0], weights.dtype)
        start = p * n_examples // PREDICTION_CHUNKS
        stop = (p + 1) * n_examples // PREDICTION_CHUNKS
        for i in range(start, stop):
            n_nonzero = gather_nonzero(x, i, pixel_scale, position, value)
            _logits(position, value, n_nonzero, weights, bias, logits)
            predicted[i] = first_argmax(logits)
