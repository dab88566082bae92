"""Logistic regression's CPU twin, which can also tell the cost and gradient of all minibatches."""

import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.cpu import ordered_sum, penalty, penalty_gradient
from msgd.kernels.vectors import aligned_empty, aligned_zeros
from msgd.models.logistic_regression import cpu
from msgd.models.logistic_regression.cpu import TASKS, _errors, _update, _update_bias


class Backend(cpu.Backend):
    """The CPU twin; see msgd.models.interface.Backend and FullGradient."""

    def cost_and_gradient(self):
        """See msgd.models.interface.FullGradient.cost_and_gradient."""
        weights_gradient = aligned_zeros(self.weights.size, self.float_x)
        bias_gradient = aligned_zeros(self.bias.size, self.float_x)
        lists = self._lists("train")
        nll = np.empty(self.n_train_batches, self.float_x)
        start = 0
        while start < self.n_train_batches:
            stop = min(self.n_train_batches, self._end_of_piece(start))
            _add_minibatches(
                lists.by_image,
                lists.by_pixel,
                self.dataset.train_y,
                self.pixel_scale,
                self.batch_size,
                start,
                stop,
                self.weights,
                self.bias,
                weights_gradient,
                bias_gradient,
                nll,
            )
            self._release_pages("train")
            start = stop
        penalty = _add_penalties(self.penalties, self.weights, weights_gradient)
        return float(nll.sum() + penalty), self._unpad(weights_gradient, bias_gradient)


@njit(**options.CPU_PARALLEL)
def _add_minibatches(
    by_image,  # CSR of the training images
    by_pixel,  # DCSC of their minibatches
    y,  # (N,) int32
    pixel_scale,
    batch_size,
    first,  # the minibatches added are first..last-1 of M
    last,
    weights,  # flat (blocks, P, CLASSES, PATCH), see kernels/patches.py
    bias,  # (W,)
    weights_gradient,  # as weights, added to
    bias_gradient,  # (W,), added to
    minibatch_nll,  # (M,), theirs overwritten: 1/M of their mean negative log-likelihoods
):
    dtype = weights.dtype
    width = bias.shape[0]
    # Every minibatch's errors are divided by B M, so that their sum is the mean over minibatches.
    inverse = dtype.type(1) / dtype.type(batch_size * minibatch_nll.shape[0])
    error = aligned_empty(batch_size * width, dtype)
    nll = np.empty(batch_size, dtype)
    one = dtype.type(1)
    for minibatch in range(first, last):
        for task in prange(TASKS):
            _errors(
                task * batch_size // TASKS,
                (task + 1) * batch_size // TASKS,
                minibatch * batch_size,
                by_image,
                y,
                pixel_scale,
                inverse,
                weights,
                bias,
                error,
                nll,
            )
        # A step of rate -1 adds the gradient.
        for task in prange(TASKS):
            share = np.int64(task)
            _update(share, minibatch, by_pixel, pixel_scale, -one, error, width, weights_gradient)
        _update_bias(-one, error, bias_gradient)
        minibatch_nll[minibatch] = ordered_sum(nll) * inverse


@njit(**options.CPU_PARALLEL)
def _add_penalties(penalties, weights, weights_gradient):
    """Add the gradient of the penalties, (l1, l2, lp, p); return the penalty of all weights."""
    task_penalty = np.empty(TASKS, weights.dtype)
    for task in prange(TASKS):
        task_penalty[task] = _add_penalty(np.int64(task), penalties, weights, weights_gradient)
    return ordered_sum(task_penalty)


@njit(**options.CPU)
def _add_penalty(task, penalties, weights, weights_gradient):
    """Add the penalty's gradient for every TASKS-th weight; return their penalty."""
    total = weights.dtype.type(0)
    for w in range(task, weights.shape[0], TASKS):
        total += penalty(weights[w], penalties)
        weights_gradient[w] += penalty_gradient(weights[w], penalties)
    return total
