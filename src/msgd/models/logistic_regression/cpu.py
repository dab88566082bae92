"""Logistic regression on the CPU: loops over the formulas of ``model.py``.

A minibatch is two parallel loops: over images, whose errors do not depend on each other, and over
patches of pixels, each of which sums its row of the gradient over the images in which it is nonzero
and updates its row of the weights. No sum is shared, so the bits are the same for any number of
threads.

Images are taken in patches of eight pixels and classes in blocks of ten (``kernels/patches.py``).
The columns of W that are no class's have bias -inf, so their softmax and error are 0, and they
stay so.
"""

import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.cpu import (
    element,
    first_argmax,
    ordered_sum,
    penalty,
    penalty_gradient,
    softmax_cross_entropy_row,
)
from msgd.kernels.patches import (
    PATCH,
    ROW,
    add_products,
    add_row,
    class_of,
    column_of,
    from_columns,
    from_rows,
    move_row,
    no_sums,
    patch_shape,
    to_columns,
    to_rows,
    totals,
)
from msgd.kernels.sparse import share_of_columns
from msgd.kernels.vectors import LANES, add, aligned_empty, fma, load, load_half, splat, store
from msgd.models.cpu_backend import CpuBackend

TASKS = 16  # parts that the images or the nonzero patches of a minibatch are cut into
PREDICTION_TASKS = 64  # of a split's images


class Backend(CpuBackend):
    """The CPU twin; see msgd.models.interface.Backend."""

    def __init__(self, dataset, parameters, settings, float_x, chunk_batches=None):
        self.patch = patch_shape(dataset.image_shape)
        super().__init__(dataset, parameters, settings, float_x, chunk_batches)

    def allocate(self):
        """Say whether there are penalties."""
        self.has_penalties = any((self.descent.l1, self.descent.l2, self.descent.lp))

    def train_span(self, first, last, costs):
        """Train minibatches first..last-1 and write their costs, (last - first,) floatX."""
        lists = self._lists("train")
        _train(
            lists.by_image,
            lists.by_pixel,
            self.dataset.train_y,
            self.pixel_scale,
            self.batch_size,
            self.learning_rate,
            self.has_penalties,
            self.penalties,
            first,
            self.n_train_batches,
            self.weights,
            self.bias,
            costs,
        )

    def predict_rows(self, split, start, stop, predicted):
        """Write the classes of images start..stop-1 of ``split`` into predicted, int32."""
        by_image = self._lists(split).by_image.images(start, stop)
        _predict(by_image, self.pixel_scale, self.weights, self.bias, predicted)

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        return self._unpad(self.weights, self.bias)

    def _unpad(self, weights, bias):
        """Return flat ``weights`` and (W,) ``bias``, or gradients, as named parameters."""
        n_classes = self.dataset.n_classes
        weights = from_rows(weights, n_classes, self.dataset.image_shape, self.patch)
        return {"weights": weights, "bias": from_columns(bias, n_classes)}

    def keep_parameters(self, parameters):
        """See msgd.models.cpu_backend.CpuBackend."""
        self.weights = to_rows(parameters["weights"], self.dataset.image_shape, self.patch)
        self.bias = to_columns(parameters["bias"], -np.inf)


@njit(**options.CPU_PARALLEL)
def _train(
    by_image,  # CSR of the training images, in patches
    by_pixel,  # DCSC of their minibatches
    y,  # (N,) int32
    pixel_scale,
    batch_size,
    learning_rate,
    has_penalties,
    penalties,  # (l1, l2, lp, p)
    first,  # the iteration of the span's beginning
    n_train_batches,
    weights,  # flat (blocks, P, CLASSES, PATCH), see kernels/patches.py; changed
    bias,  # (W,), changed
    costs,  # one for each minibatch of the span, overwritten
):
    dtype = weights.dtype
    width = bias.shape[0]
    inverse_batch_size = dtype.type(1) / dtype.type(batch_size)
    error = aligned_empty(batch_size * width, dtype)
    nll = np.empty(batch_size, dtype)
    task_penalty = np.zeros(TASKS, dtype)
    for step in range(costs.shape[0]):
        minibatch = (first + step) % n_train_batches
        for task in prange(TASKS):
            _errors(
                task * batch_size // TASKS,
                (task + 1) * batch_size // TASKS,
                minibatch * batch_size,
                by_image,
                y,
                pixel_scale,
                inverse_batch_size,
                weights,
                bias,
                error,
                nll,
            )
        if has_penalties:
            for task in prange(TASKS):
                task_penalty[task] = _penalise(np.int64(task), learning_rate, penalties, weights)
        for task in prange(TASKS):
            share = np.int64(task)
            _update(share, minibatch, by_pixel, pixel_scale, learning_rate, error, width, weights)
        _update_bias(learning_rate, error, bias)
        costs[step] = ordered_sum(nll) * inverse_batch_size + ordered_sum(task_penalty)


@njit(**options.CPU)
def _errors(
    start,
    stop,
    first_image,
    by_image,
    y,
    pixel_scale,
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
    for i in range(start, stop):
        _logits(by_image, first_image + i, pixel_scale, weights, bias, error, i * width)
    for i in range(start, stop):  # apart: the processor overlaps the one's images, not the two
        label = column_of(y[first_image + i])
        nll[i] = softmax_cross_entropy_row(error, i * width, width, label, inverse_batch_size)


@njit(**options.CPU_INLINE)
def _logits(by_image, i, pixel_scale, weights, bias, logits, at):
    """Overwrite logits[at : at + W] with x W + b of image i."""
    n_blocks = bias.shape[0] // LANES
    n_patches = weights.shape[0] // (n_blocks * ROW)
    for block in range(n_blocks):
        sums = no_sums(weights)
        for k in range(by_image.indptr[i], by_image.indptr[i + 1]):
            patch = load_half(weights, by_image.data, k * PATCH)
            row = block * n_patches + element(by_image.indices, k)
            sums = add_row(patch, weights, row * ROW, sums)
        column = block * LANES
        store(logits, at + column, fma(pixel_scale, totals(sums), load(bias, column)))


@njit(**options.CPU)
def _update(task, minibatch, by_pixel, pixel_scale, learning_rate, error, width, weights):
    """Update a task's share of the patches that are lit in a minibatch; error: flat (B, W)."""
    n_blocks = width // LANES
    n_patches = weights.shape[0] // (n_blocks * ROW)
    start, stop = share_of_columns(by_pixel, minibatch, task, TASKS)
    for column in range(start, stop):
        for block in range(n_blocks):
            sums = no_sums(weights)
            for k in range(by_pixel.indptr[column], by_pixel.indptr[column + 1]):
                patch = load_half(weights, by_pixel.data, k * PATCH)
                at = element(by_pixel.indices, k) * width + block * LANES
                sums = add_products(patch, error, at, sums)
            row = block * n_patches + by_pixel.pixel[column]
            move_row(-learning_rate * pixel_scale, sums, weights, row * ROW)


@njit(**options.CPU)
def _penalise(task, learning_rate, penalties, weights):
    """Move a task's share of the weights down their penalty's gradient; return the penalty."""
    total = weights.dtype.type(0)
    for row in range(task, weights.shape[0] // ROW, TASKS):
        for w in range(row * ROW, (row + 1) * ROW):
            weight = weights[w]
            total += penalty(weight, penalties)
            weights[w] = weight - learning_rate * penalty_gradient(weight, penalties)
    return total


@njit(**options.CPU)
def _update_bias(learning_rate, error, bias):
    """Update the bias (W,) by the sum of the images' errors, flat (B, W), in a fixed order."""
    width = bias.shape[0]
    for column in range(0, width, LANES):
        s0 = s1 = s2 = s3 = splat(bias, 0)  # several sums, so that one need not wait for another
        whole = error.shape[0] // (4 * width) * 4 * width
        for at in range(column, whole, 4 * width):
            s0 = add(s0, load(error, at))
            s1 = add(s1, load(error, at + width))
            s2 = add(s2, load(error, at + 2 * width))
            s3 = add(s3, load(error, at + 3 * width))
        for at in range(whole + column, error.shape[0], width):
            s0 = add(s0, load(error, at))
        gradient = add(add(s0, s1), add(s2, s3))
        store(bias, column, fma(-learning_rate, gradient, load(bias, column)))


@njit(**options.CPU_PARALLEL)
def _predict(by_image, pixel_scale, weights, bias, predicted):
    """Overwrite predicted (N,) int32 with the class of every image."""
    n_examples = predicted.shape[0]
    width = bias.shape[0]
    for task in prange(PREDICTION_TASKS):
        logits = aligned_empty(width, weights.dtype)
        start = task * n_examples // PREDICTION_TASKS
        stop = (task + 1) * n_examples // PREDICTION_TASKS
        for i in range(start, stop):
            _logits(by_image, i, pixel_scale, weights, bias, logits, np.int64(0))
            predicted[i] = class_of(first_argmax(logits))
