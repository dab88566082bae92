"""Logistic regression's CUDA twin, which also computes cost and gradient of all minibatches.

The phases are those of training, with a sum over the minibatches instead of the update.
"""

import numpy as np
from numba import cuda

from msgd.kernels import options
from msgd.kernels.cuda import (
    Images,
    launch_shape,
    loss_phase,
    ordered_sum,
    penalty_gradient,
    penalty_phase,
)
from msgd.kernels.formulas import like
from msgd.models.cuda_backend import translate_device_errors
from msgd.models.logistic_regression import cuda_plain as minibatch_sgd


class Backend(minibatch_sgd.Backend):
    """The CUDA twin; see msgd.models.interface.Backend and FullGradient."""

    @translate_device_errors
    def cost_and_gradient(self):
        """See msgd.models.interface.FullGradient.cost_and_gradient."""
        n_train_batches = self.shared.n_train_batches
        gradient = {
            name: cuda.to_device(np.zeros(array.shape, self.float_x))
            for name, array in self.parameters.items()
        }
        costs = cuda.device_array(n_train_batches, self.float_x)
        blocks, threads = launch_shape(max(self.batch_size, len(self.row_penalty) + 1))
        for x, y, minibatch, step, count in self.shared.train_pieces(0, n_train_batches):
            _add_gradients[blocks, threads, self.shared.stream](
                x,
                y,
                self.pixel_scale,
                n_train_batches,
                self.descent,
                minibatch,
                self.parameters["weights"],
                self.parameters["bias"],
                self.logits,
                self.error,
                self.example_nll,
                self.row_penalty,
                gradient["weights"],
                gradient["bias"],
                costs[step : step + count],
            )
        cost = float(np.sum(costs.copy_to_host(), dtype=np.float64))
        return cost, {name: array.copy_to_host() for name, array in gradient.items()}


@cuda.jit(device=True, **options.CUDA)
def _gradient_phase(images, share, descent, error, weights, sums, bias_sums):
    """Add a minibatch's share of the gradients to the sums: one thread per parameter.

    images: msgd.kernels.cuda.Images, B of them; share: 1/M, floatX, the minibatch's share of the
    penalty; descent: msgd.kernels.arguments.Descent; error: (B, C) floatX; weights: (D, C) floatX.
    sums (D, C) and bias_sums (C,), floatX, are added to. Row D of the grid is the bias.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    n_features = weights.shape[0]
    for d in range(row, n_features + 1, rows):
        for c in range(lane, weights.shape[1], lanes):
            gradient = like(share, 0)
            if d < n_features:
                for i in range(images.n):
                    pixel = images.x[images.start + i, d] * images.pixel_scale
                    gradient += pixel * error[i, c]
                sums[d, c] += gradient + share * penalty_gradient(weights[d, c], descent)
            else:
                for i in range(images.n):
                    gradient += error[i, c]
                bias_sums[c] += gradient


@cuda.jit(**options.CUDA_ENTRY)
def _add_gradients(
    x,  # (N, D) uint8 or floatX
    y,  # (N,) int32
    pixel_scale,  # floatX, what a stored pixel is multiplied by
    n_train_batches,  # M, of the whole training set
    descent,  # msgd.kernels.arguments.Descent, of which the penalties count
    minibatch,  # number of the first one
    weights,  # (D, C) floatX
    bias,  # (C,) floatX
    logits,  # (B, C) floatX, scratch
    error,  # (B, C) floatX, scratch
    example_nll,  # (B,) floatX, scratch
    row_penalty,  # (D,) floatX, scratch
    sums,  # (D, C) floatX, added to
    bias_sums,  # (C,) floatX, added to
    costs,  # floatX, one per minibatch, overwritten with its share of the cost
):
    """Add the gradients of one minibatch after the other; write the share of each in the cost."""
    grid = cuda.cg.this_grid()
    lane, row = cuda.grid(2)
    batch_size = logits.shape[0]
    share = like(pixel_scale, 1) / like(pixel_scale, n_train_batches)
    inverse = share / like(pixel_scale, batch_size)
    penalty_phase(descent, weights, row_penalty)
    for step in range(costs.shape[0]):
        start = (minibatch + step) * batch_size
        images = Images(x, start, batch_size, pixel_scale)
        minibatch_sgd._forward_phase(images, weights, bias, logits)
        grid.sync()
        loss_phase(y, start, inverse, logits, error, example_nll)
        grid.sync()
        _gradient_phase(images, share, descent, error, weights, sums, bias_sums)
        if lane == 0 and row == 0:
            costs[step] = ordered_sum(example_nll) * inverse + ordered_sum(row_penalty) * share
        grid.sync()
