"""Logistic regression in plain loops, in the letters of model.py: read this first.

x: images (B, D) floatX; y: labels (B,) int32; weights: W (D, C); bias: b (C,); descent: learning
rate and penalties. The twins, cpu.py and cuda.py, compute the same up to rounding.
"""

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.reference import loss, penalties, penalty_gradients, update
from msgd.models.reference_backend import ReferenceClassifier


@njit(**options.CPU_ENTRY)
def train_minibatch(x, y, weights, bias, descent):
    """Take one step of SGD, which changes W and b; return the cost before it."""
    nll, error = loss(logits(x, weights, bias), y)  # error = (P - onehot(y)) / B
    cost = nll + penalties(weights, descent)
    update((weights, bias), gradients(x, error, weights, descent), descent)
    return cost


@njit(**options.CPU_ENTRY)
def logits(x, weights, bias):
    """Return x W + b, (B, C)."""
    z = np.empty((x.shape[0], bias.shape[0]), x.dtype)
    z[:] = bias
    for i, d in np.ndindex(x.shape):
        for c in range(bias.shape[0]):
            z[i, c] += x[i, d] * weights[d, c]
    return z


@njit(**options.CPU)
def gradients(x, error, weights, descent):
    """Return dcost/dW = x^T error + the penalties' gradient, and dcost/db = sum_i error_i."""
    weights_gradient = penalty_gradients(weights, descent)  # and to it is added x^T error
    for d, i in np.ndindex(x.shape[1], x.shape[0]):
        for c in range(error.shape[1]):
            weights_gradient[d, c] += x[i, d] * error[i, c]
    bias_gradient = np.zeros(error.shape[1], error.dtype)
    for i, c in np.ndindex(error.shape):
        bias_gradient[c] += error[i, c]
    return weights_gradient, bias_gradient


class Backend(ReferenceClassifier):
    """Logistic regression as the pipeline asks for it; see msgd.models.interface.Backend."""

    train_minibatch = staticmethod(train_minibatch)
    logits = staticmethod(logits)
