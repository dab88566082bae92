"""Logistic regression's CPU twin, which can also tell the cost and gradient of all minibatches."""

import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.cpu import ordered_sum, penalty, penalty_gradient
from msgd.models.logistic_regression import cpu
from msgd.models.logistic_regression.cpu import TASKS, _errors, _update, _update_bias


class Backend(cpu.Backend):
    """The CPU twin; see msgd.models.interface.Backend and FullGradient."""

    def cost_and_gradient(self):
        """See msgd.models.interface.FullGradient.cost_and_gradient."""
        weights_gradient, bias_gradient = np.zeros_like(self.weights), np.zeros_like(self.bias)
        start, stop = self._rows_of(0, self.n_train_batches)
        cost = _cost_and_gradient(
            self._nonzero("train", start, stop),
            self._lit(start, stop),
            self.dataset.train_y[start:stop],
            self.pixel_scale,
            self.batch_size,
            self.dataset.n_classes,
            self.penalties,
            self.weights,
            self.bias,
            weights_gradient,
            bias_gradient,
        )
        return float(cost), self._unpad(weights_gradient, bias_gradient)


@njit(**options.CPU_PARALLEL)
def _cost_and_gradient(
    pixels,  # NonzeroPixels of all minibatches
    lit,  # their LitImages
    y,  # their (N,) int32 labels
    pixel_scale,
    batch_size,
    n_classes,
    penalties,  # (l1, l2, lp, p)
    weights,  # flat (D, W)
    bias,  # (W,)
    weights_gradient,  # flat (D, W), zeros; overwritten
    bias_gradient,  # (W,), zeros; overwritten
):
    dtype = weights.dtype
    width = bias.shape[0]
    n_features = weights.shape[0] // width
    n_train_batches = y.shape[0] // batch_size
    # Every minibatch's errors are divided by B M, so that their sum is the mean over minibatches.
    inverse = dtype.type(1) / dtype.type(batch_size * n_train_batches)
    total_nll = np.empty(n_train_batches, dtype)
    error = np.zeros(batch_size * width, dtype)
    nll = np.empty(batch_size, dtype)
    task_penalty = np.empty(TASKS, dtype)
    one = dtype.type(1)
    for minibatch in range(n_train_batches):
        for task in prange(TASKS):
            _errors(
                task * batch_size // TASKS,
                (task + 1) * batch_size // TASKS,
                minibatch * batch_size,
                pixels,
                y,
                pixel_scale,
                n_classes,
                inverse,
                weights,
                bias,
                error,
                nll,
            )
        # A step of rate -1 adds the gradient.
        for task in prange(TASKS):
            first_row = minibatch * n_features
            _update(task, first_row, lit, pixel_scale, -one, error, width, weights_gradient)
        _update_bias(-one, error, bias_gradient)
        total_nll[minibatch] = ordered_sum(nll)
    for task in prange(TASKS):
        task_penalty[task] = _add_penalty(task, penalties, weights, weights_gradient)
    return ordered_sum(total_nll) * inverse + ordered_sum(task_penalty)


@njit(**options.CPU)
def _add_penalty(task, penalties, weights, weights_gradient):
    """Add the penalty's gradient for every TASKS-th weight; return their penalty."""
    total = weights.dtype.type(0)
    for w in range(task, weights.shape[0], TASKS):
        total += penalty(weights[w], penalties)
        weights_gradient[w] += penalty_gradient(weights[w], penalties)
    return total
