"""Logistic regression's fast CPU twin, with the cost and gradient of all minibatches."""

import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.cpu import ordered_sum, penalty, penalty_gradient
from msgd.kernels.vectors import aligned_empty, aligned_zeros
from msgd.models.logistic_regression import cpu
from msgd.models.logistic_regression.cpu import TASKS, Parameters, _errors, _update, _update_bias


class Backend(cpu.Backend):
    """The CPU twin; see msgd.models.interface.Backend and FullGradient."""

    def cost_and_gradient(self):
        """See msgd.models.interface.FullGradient.cost_and_gradient."""
        gradient = Parameters(*(aligned_zeros(a.size, self.float_x) for a in self.parameters))
        images = self._lists("train")
        n_batches = self.n_train_batches
        # Errors are divided by B M, so that their sum is the mean over the M minibatches.
        inverse = self.float_x(1) / self.float_x(self.batch_size * n_batches)
        minibatches = self.minibatches._replace(inverse_size=inverse)
        nll = np.empty(n_batches, self.float_x)
        start = 0
        while start < n_batches:
            stop = min(n_batches, self._end_of_piece(start))
            span = nll[start:stop]
            _add_minibatches(
                *(images.by_image, images.by_pixel, minibatches, start),
                *(self.parameters, gradient, span),
            )
            self._release_pages("train")
            start = stop
        penalty = _add_penalties(self.descent, self.parameters.weights, gradient.weights)
        return float(nll.sum() + penalty), self._as_published(gradient)


@njit(**options.CPU_PARALLEL)
def _add_minibatches(by_image, by_pixel, minibatches, first, parameters, gradient, nll):
    """Add the gradients of the minibatches from number ``first`` on, as many as ``nll`` is long.

    by_image: CSR of the training images, in patches; by_pixel: DCSC of their minibatches;
    minibatches: Minibatches whose inverse_size is 1 / (B M); gradient: Parameters, added to; nll:
    floatX, overwritten with each minibatch's negative log-likelihood divided by B M.
    """
    dtype = nll.dtype
    size = minibatches.size
    error = aligned_empty(size * parameters.bias.shape[0], dtype)  # flat (B, L)
    image_nll = np.empty(size, dtype)
    for step in range(nll.shape[0]):
        minibatch = first + step
        for task in prange(TASKS):
            images = (task * size // TASKS, (task + 1) * size // TASKS)
            _errors(images, minibatch, by_image, minibatches, parameters, error, image_nll)
        for task in prange(TASKS):
            _update(np.int64(task), by_pixel, minibatch, error, minibatches.pixel_scale, gradient)
        _update_bias(dtype.type(-1), error, gradient.bias)  # a step of rate -1 adds the gradient
        nll[step] = ordered_sum(image_nll) * minibatches.inverse_size


@njit(**options.CPU_PARALLEL)
def _add_penalties(descent, weights, weights_gradient):
    """Add the penalties' gradient to that of the flat weights; return the penalty of all."""
    task_penalty = np.empty(TASKS, weights.dtype)
    for task in prange(TASKS):
        task_penalty[task] = _add_penalty(np.int64(task), descent, weights, weights_gradient)
    return ordered_sum(task_penalty)


@njit(**options.CPU)
def _add_penalty(task, descent, weights, weights_gradient):
    """Add the penalties' gradient of every TASKS-th weight; return the penalty of these."""
    total = weights.dtype.type(0)
    for w in range(task, weights.shape[0], TASKS):
        total += penalty(weights[w], descent)
        weights_gradient[w] += penalty_gradient(weights[w], descent)
    return total
