"""Logistic regression on the CPU, fast; ``reference.py`` computes the same in plain loops.

A minibatch is two parallel loops: over images, whose errors do not depend on each other, and over
patches of pixels, each of which sums its row of the gradient over the images in which it is nonzero
and updates its row of the weights. No sum is shared, so the bits are the same for any number of
threads.

Images are taken in patches of eight pixels and classes in blocks of ten (``kernels/patches.py``),
with L lanes for the classes. Lanes that are no class's have bias -inf, so their softmax and their
error are 0, and they stay so.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.cpu import (
    element,
    first_argmax,
    has_penalty,
    ordered_sum,
    penalty,
    penalty_gradient,
    sgd_step,
)
from msgd.kernels.patches import (
    PATCH,
    ROW,
    add_products,
    add_row,
    class_of,
    from_lanes,
    from_rows,
    lane_of,
    move_row,
    no_sums,
    patch_shape,
    to_lanes,
    to_rows,
    totals,
)
from msgd.kernels.softmax import softmax_cross_entropy_row
from msgd.kernels.sparse import share_of_columns
from msgd.kernels.vectors import LANES, add, aligned_empty, fma, load, load_half, splat, store
from msgd.models.cpu_backend import CpuClassifier

TASKS = 16  # parts that the images or the nonzero patches of a minibatch are cut into
PREDICTION_TASKS = 64  # of a split's images


class Parameters(NamedTuple):
    """The parameters, or their gradients, in the layout of the kernels."""

    weights: np.ndarray  # flat (blocks, patches, CLASSES, PATCH), see kernels/patches.py
    bias: np.ndarray  # (L,)


class Backend(CpuClassifier):
    """The CPU twin; see msgd.models.interface.Backend."""

    def __init__(self, dataset, parameters, settings, float_x, chunk_batches=None):
        self.patch = patch_shape(dataset.image_shape)
        super().__init__(dataset, parameters, settings, float_x, chunk_batches)

    def allocate(self):
        """See msgd.models.cpu_backend.CpuBackend; the kernels make their own scratch arrays."""

    def train_span(self, first, last, costs):
        """Train minibatches first..last-1 and write their costs, (last - first,) floatX."""
        images = self._lists("train")
        _train(
            *(images.by_image, images.by_pixel, self.minibatches, self.descent),
            *(first, self.parameters, costs),
        )

    def predict_rows(self, split, start, stop, predicted):
        """Write the classes of images start..stop-1 of ``split`` into predicted, int32."""
        by_image = self._lists(split).by_image.images(start, stop)
        _predict(by_image, self.pixel_scale, self.parameters, predicted)

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        return self._as_published(self.parameters)

    def _as_published(self, parameters):
        """Return Parameters, or gradients in that layout, as a dict of name -> array."""
        n_classes = self.dataset.n_classes
        weights = from_rows(parameters.weights, n_classes, self.dataset.image_shape, self.patch)
        return {"weights": weights, "bias": from_lanes(parameters.bias, n_classes)}

    def keep_parameters(self, parameters):
        """See msgd.models.cpu_backend.CpuBackend."""
        self.parameters = Parameters(
            to_rows(parameters["weights"], self.dataset.image_shape, self.patch),
            to_lanes(parameters["bias"], -np.inf),
        )


@njit(**options.CPU_PARALLEL)
def _train(by_image, by_pixel, minibatches, descent, first, parameters, costs):
    """Train a span of minibatches, the first of which is iteration ``first``.

    by_image: CSR of the training images, in patches; by_pixel: DCSC of their minibatches;
    minibatches: Minibatches; descent: Descent; parameters: Parameters, changed; costs:
    (minibatches of the span,) floatX, overwritten with the cost of each before its step.

    The penalties' gradient, taken at the old weights, and the images' move the weights one after
    the other. That is one step, for the images' errors are taken before both.
    """
    dtype = costs.dtype
    size = minibatches.size
    error = aligned_empty(size * parameters.bias.shape[0], dtype)  # flat (B, L)
    nll = np.empty(size, dtype)
    task_penalty = np.zeros(TASKS, dtype)
    for step in range(costs.shape[0]):
        minibatch = (first + step) % minibatches.per_epoch
        for task in prange(TASKS):
            images = (task * size // TASKS, (task + 1) * size // TASKS)
            _errors(images, minibatch, by_image, minibatches, parameters, error, nll)
        if has_penalty(descent):
            for task in prange(TASKS):
                task_penalty[task] = _penalise(np.int64(task), descent, parameters.weights)
        factor = -descent.rate * minibatches.pixel_scale
        for task in prange(TASKS):
            _update(np.int64(task), by_pixel, minibatch, error, factor, parameters)
        _update_bias(descent.rate, error, parameters.bias)
        costs[step] = ordered_sum(nll) * minibatches.inverse_size + ordered_sum(task_penalty)


@njit(**options.CPU)
def _errors(images, minibatch, by_image, minibatches, parameters, error, nll):
    """Overwrite error, flat (B, L), and nll (B,) of some images of a minibatch.

    images: (start, stop), numbers within the minibatch; by_image, minibatches, parameters: as in
    _train. The error is (softmax(x W + b) - onehot(y)) times minibatches.inverse_size.
    """
    n_lanes = parameters.bias.shape[0]
    first_image = minibatch * minibatches.size
    start, stop = images
    for i in range(start, stop):
        image = first_image + i
        _logits(by_image, image, minibatches.pixel_scale, parameters, error, i * n_lanes)
    # A second loop: the processor overlaps iterations of one, but not products with a softmax.
    for i in range(start, stop):
        label = lane_of(minibatches.y[first_image + i])
        nll[i] = softmax_cross_entropy_row(
            error, i * n_lanes, n_lanes, label, minibatches.inverse_size
        )


@njit(**options.CPU_INLINE)
def _logits(by_image, i, pixel_scale, parameters, logits, at):
    """Overwrite logits[at : at + L] with x W + b of image i."""
    n_blocks = parameters.bias.shape[0] // LANES
    n_patches = parameters.weights.shape[0] // (n_blocks * ROW)
    for block in range(n_blocks):
        sums = no_sums(parameters.weights)
        for k in range(by_image.indptr[i], by_image.indptr[i + 1]):
            patch = load_half(parameters.weights, by_image.data, k * PATCH)
            row = block * n_patches + element(by_image.indices, k)
            sums = add_row(patch, parameters.weights, row * ROW, sums)
        lane = block * LANES
        logit = fma(pixel_scale, totals(sums), load(parameters.bias, lane))
        store(logits, at + lane, logit)


@njit(**options.CPU)
def _update(task, by_pixel, minibatch, error, factor, parameters):
    """Add ``factor`` times x^T error to a task's share of the weights.

    by_pixel: DCSC of the minibatches' images x, of which only patches that are nonzero in some
    image of the minibatch have a gradient; error: flat (B, L); parameters: Parameters, or a
    gradient in that layout: the weights are changed.
    """
    n_lanes = parameters.bias.shape[0]
    n_blocks = n_lanes // LANES
    n_patches = parameters.weights.shape[0] // (n_blocks * ROW)
    start, stop = share_of_columns(by_pixel, minibatch, task, TASKS)
    for column in range(start, stop):
        for block in range(n_blocks):
            sums = no_sums(parameters.weights)
            for k in range(by_pixel.indptr[column], by_pixel.indptr[column + 1]):
                patch = load_half(parameters.weights, by_pixel.data, k * PATCH)
                at = element(by_pixel.indices, k) * n_lanes + block * LANES
                sums = add_products(patch, error, at, sums)
            row = block * n_patches + by_pixel.pixel[column]
            move_row(factor, sums, parameters.weights, row * ROW)


@njit(**options.CPU)
def _penalise(task, descent, weights):
    """Move a task's share of the flat weights down their penalty's gradient; return the penalty."""
    total = weights.dtype.type(0)
    for row in range(task, weights.shape[0] // ROW, TASKS):
        for w in range(row * ROW, (row + 1) * ROW):
            weight = weights[w]
            total += penalty(weight, descent)
            weights[w] = sgd_step(weight, penalty_gradient(weight, descent), descent)
    return total


@njit(**options.CPU)
def _update_bias(rate, error, bias):
    """Add -rate times the sum of the images' errors, flat (B, L), to the bias (L,)."""
    n_lanes = bias.shape[0]
    for lane in range(0, n_lanes, LANES):
        s0 = s1 = s2 = s3 = splat(bias, 0)  # several sums, so that one need not wait for another
        whole = error.shape[0] // (4 * n_lanes) * 4 * n_lanes
        for at in range(lane, whole, 4 * n_lanes):
            s0 = add(s0, load(error, at))
            s1 = add(s1, load(error, at + n_lanes))
            s2 = add(s2, load(error, at + 2 * n_lanes))
            s3 = add(s3, load(error, at + 3 * n_lanes))
        for at in range(whole + lane, error.shape[0], n_lanes):
            s0 = add(s0, load(error, at))
        gradient = add(add(s0, s1), add(s2, s3))
        store(bias, lane, fma(-rate, gradient, load(bias, lane)))


@njit(**options.CPU_PARALLEL)
def _predict(by_image, pixel_scale, parameters, predicted):
    """Overwrite predicted (n,) int32 with the classes of n images; by_image: their CSR."""
    n_examples = predicted.shape[0]
    n_lanes = parameters.bias.shape[0]
    for task in prange(PREDICTION_TASKS):
        logits = aligned_empty(n_lanes, parameters.weights.dtype)
        start = task * n_examples // PREDICTION_TASKS
        stop = (task + 1) * n_examples // PREDICTION_TASKS
        for i in range(start, stop):
            _logits(by_image, i, pixel_scale, parameters, logits, np.int64(0))
            predicted[i] = class_of(first_argmax(logits))
