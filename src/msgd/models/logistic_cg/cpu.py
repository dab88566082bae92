"""Logistic regression's CPU twin, which can also tell the cost and gradient of all minibatches."""

import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.cpu import ordered_sum, penalty, penalty_gradient
from msgd.models.logistic_regression import cpu


class Backend(cpu.Backend):
    """The CPU twin; see msgd.models.interface.Backend and FullGradient."""

    def cost_and_gradient(self):
        """See msgd.models.interface.FullGradient.cost_and_gradient."""
        gradient = {"weights": np.zeros_like(self.weights), "bias": np.zeros_like(self.bias)}
        cost = _cost_and_gradient(
            self.dataset.train_x,
            self.dataset.train_y,
            self.pixel_scale,
            self.batch_size,
            self.n_train_batches,
            self.penalties,
            self.weights,
            self.bias,
            self.weights_gradient,
            self.bias_gradient,
            gradient["weights"],
            gradient["bias"],
        )
        return float(cost), gradient


@njit(**options.CPU_PARALLEL)
def _cost_and_gradient(
    x,  # (N, D) uint8 or floatX
    y,  # (N,) int32
    pixel_scale,
    batch_size,
    n_train_batches,
    penalties,  # (l1, l2, lp, p)
    weights,  # (D, C)
    bias,  # (C,)
    chunk_weights,  # (P, D, C), scratch
    chunk_bias,  # (P, C), scratch
    weights_gradient,  # (D, C), zeros; overwritten
    bias_gradient,  # (C,), zeros; overwritten
):
    n_chunks, n_features, _ = chunk_weights.shape
    dtype = weights.dtype
    # Every minibatch's errors are divided by B M, so that their sum is the mean over minibatches.
    inverse = dtype.type(1) / dtype.type(batch_size * n_train_batches)
    nll = np.zeros(n_train_batches, dtype)
    chunk_nll = np.empty(n_chunks, dtype)
    chunk_penalty = np.empty(n_chunks, dtype)
    for minibatch in range(n_train_batches):
        start = minibatch * batch_size
        for p in prange(n_chunks):
            chunk_nll[p] = cpu._chunk_gradient(
                x,
                y,
                pixel_scale,
                start + p * batch_size // n_chunks,
                start + (p + 1) * batch_size // n_chunks,
                inverse,
                weights,
                bias,
                chunk_weights[p],
                chunk_bias[p],
            )
        for p in prange(n_chunks):
            first, last = p * n_features // n_chunks, (p + 1) * n_features // n_chunks
            _add_rows(first, last, chunk_weights, weights_gradient)
        for p in range(n_chunks):
            for c in range(bias.shape[0]):
                bias_gradient[c] += chunk_bias[p, c]
        nll[minibatch] = ordered_sum(chunk_nll)
    for p in prange(n_chunks):
        first, last = p * n_features // n_chunks, (p + 1) * n_features // n_chunks
        chunk_penalty[p] = _add_penalty(first, last, penalties, weights, weights_gradient)
    return ordered_sum(nll) * inverse + ordered_sum(chunk_penalty)


@njit(**options.CPU)
def _add_rows(first, last, chunk_weights, weights_gradient):
    """Add the chunks' gradients, in order, to pixel rows first..last-1 of weights_gradient."""
    for d in range(first, last):
        for c in range(weights_gradient.shape[1]):
            for p in range(chunk_weights.shape[0]):
                weights_gradient[d, c] += chunk_weights[p, d, c]


@njit(**options.CPU)
def _add_penalty(first, last, penalties, weights, weights_gradient):
    """Add the penalty's gradient to pixel rows first..last-1; return their penalty."""
    total = weights.dtype.type(0)
    for d in range(first, last):
        for c in range(weights.shape[1]):
            total += penalty(weights[d, c], penalties)
            weights_gradient[d, c] += penalty_gradient(weights[d, c], penalties)
    return total
