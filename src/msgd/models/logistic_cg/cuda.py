"""Logistic regression's CUDA twin, which can also tell the cost and gradient of all minibatches.

The phases are those of training, with a sum over the minibatches in the place of the update.
"""

import numpy as np
from numba import cuda

from msgd.kernels import options
from msgd.kernels.cuda import (
    launch_shape,
    loss_phase,
    ordered_sum,
    penalty_gradient,
    penalty_phase,
)
from msgd.kernels.formulas import like
from msgd.models.cuda_backend import device_errors_told
from msgd.models.logistic_regression import cuda as minibatch_sgd


class Backend(minibatch_sgd.Backend):
    """The CUDA twin; see msgd.models.interface.Backend and FullGradient."""

    @device_errors_told
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
                self.penalties,
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
def _gradient_phase(x, start, pixel_scale, share, penalties, error, weights, sums, bias_sums):
    """Add a minibatch's gradients to sums (D, C) and bias_sums (C,): one thread per parameter.

    share: 1/M, the minibatch's share of the penalty.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    n_features = weights.shape[0]
    for d in range(row, n_features + 1, rows):
        for c in range(lane, weights.shape[1], lanes):
            gradient = like(share, 0)
            if d < n_features:
                for i in range(error.shape[0]):
                    gradient += x[start + i, d] * pixel_scale * error[i, c]
                sums[d, c] += gradient + share * penalty_gradient(weights[d, c], penalties)
            else:
                for i in range(error.shape[0]):
                    gradient += error[i, c]
                bias_sums[c] += gradient


@cuda.jit(**options.CUDA_ENTRY)
def _add_gradients(
    x,  # (N, D) uint8 or floatX
    y,  # (N,) int32
    pixel_scale,
    n_train_batches,  # M
    penalties,  # (l1, l2, lp, p)
    minibatch,  # number of the first one
    weights,  # (D, C)
    bias,  # (C,)
    logits,  # (B, C), scratch
    error,  # (B, C), scratch
    example_nll,  # (B,), scratch
    row_penalty,  # (D,), scratch
    sums,  # (D, C), added to
    bias_sums,  # (C,), added to
    costs,  # one per minibatch, overwritten with its share of the cost
):
    grid = cuda.cg.this_grid()
    lane, row = cuda.grid(2)
    batch_size = logits.shape[0]
    share = like(pixel_scale, 1) / like(pixel_scale, n_train_batches)
    inverse = share / like(pixel_scale, batch_size)
    penalty_phase(penalties, weights, row_penalty)
    for step in range(costs.shape[0]):
        start = (minibatch + step) * batch_size
        minibatch_sgd._logits_phase(x, start, pixel_scale, weights, bias, logits)
        grid.sync()
        loss_phase(y, start, inverse, logits, error, example_nll)
        grid.sync()
        _gradient_phase(x, start, pixel_scale, share, penalties, error, weights, sums, bias_sums)
        if lane == 0 and row == 0:
            costs[step] = ordered_sum(example_nll) * inverse + ordered_sum(row_penalty) * share
        grid.sync()
