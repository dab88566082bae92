"""Logistic regression on CUDA: loops over the formulas of ``model.py``.

A span of minibatches is one cooperative launch. Each minibatch passes through three phases (logits;
loss; gradient and update), after each of which the whole grid waits. Every sum is taken by one
thread in a fixed order: no atomics on floats, and the same bits for any number of blocks.

Threads lie in two dimensions: x counts classes, y counts examples or pixels.
"""

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
from msgd.models.cuda_backend import CudaBackend


class Backend(CudaBackend):
    """The CUDA twin; see msgd.models.interface.Backend."""

    def allocate(self):
        """Make the scratch arrays of training."""
        n_features = self.parameters["weights"].shape[0]
        self.logits = cuda.device_array((self.batch_size, self.n_classes), self.float_x)
        self.error = cuda.device_array((self.batch_size, self.n_classes), self.float_x)
        self.example_nll = cuda.device_array(self.batch_size, self.float_x)
        self.row_penalty = cuda.device_array(n_features, self.float_x)

    def launch_train(self, x, y, minibatch, costs):
        """Train len(costs) minibatches of x and y from number ``minibatch`` on."""
        blocks, threads = launch_shape(max(self.batch_size, len(self.row_penalty) + 1))
        _train[blocks, threads, self.shared.stream](
            x,
            y,
            self.pixel_scale,
            self.batch_size,
            self.learning_rate,
            self.penalties,
            minibatch,
            self.parameters["weights"],
            self.parameters["bias"],
            self.logits,
            self.error,
            self.example_nll,
            self.row_penalty,
            costs,
        )

    def launch_logits(self, x, logits):
        """Overwrite logits (n, C) with those of the images x (n, D)."""
        parameters = self.parameters["weights"], self.parameters["bias"]
        _logits[launch_shape(len(x))](x, self.pixel_scale, *parameters, logits)


@cuda.jit(device=True, **options.CUDA)
def _logits_phase(x, start, pixel_scale, weights, bias, logits):
    """Overwrite logits (n, C) with x W + b of the n images from ``start`` on."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    for i in range(row, logits.shape[0], rows):
        for c in range(lane, weights.shape[1], lanes):
            logit = bias[c]
            for d in range(weights.shape[0]):
                logit += x[start + i, d] * pixel_scale * weights[d, c]
            logits[i, c] = logit


@cuda.jit(device=True, **options.CUDA)
def _update_phase(x, start, pixel_scale, learning_rate, penalties, error, weights, bias):
    """Update every parameter by its gradient, summed over the examples in order: one thread each.

    Row D of the grid is the bias.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    n_features = weights.shape[0]
    for d in range(row, n_features + 1, rows):
        for c in range(lane, weights.shape[1], lanes):
            gradient = like(learning_rate, 0)
            if d < n_features:
                for i in range(error.shape[0]):
                    gradient += x[start + i, d] * pixel_scale * error[i, c]
                weight = weights[d, c]
                gradient += penalty_gradient(weight, penalties)
                weights[d, c] = weight - learning_rate * gradient
            else:
                for i in range(error.shape[0]):
                    gradient += error[i, c]
                bias[c] -= learning_rate * gradient


@cuda.jit(**options.CUDA_ENTRY)
def _train(
    x,  # (N, D) uint8 or floatX
    y,  # (N,) int32
    pixel_scale,
    batch_size,
    learning_rate,
    penalties,  # (l1, l2, lp, p)
    minibatch,  # number of the first one
    weights,  # (D, C), changed
    bias,  # (C,), changed
    logits,  # (B, C), scratch
    error,  # (B, C), scratch
    example_nll,  # (B,), scratch
    row_penalty,  # (D,), scratch
    costs,  # one per minibatch, overwritten
):
    grid = cuda.cg.this_grid()
    lane, row = cuda.grid(2)
    inverse_batch_size = like(learning_rate, 1) / like(learning_rate, batch_size)
    for step in range(costs.shape[0]):
        start = (minibatch + step) * batch_size
        _logits_phase(x, start, pixel_scale, weights, bias, logits)
        penalty_phase(penalties, weights, row_penalty)
        grid.sync()
        loss_phase(y, start, inverse_batch_size, logits, error, example_nll)
        grid.sync()
        _update_phase(x, start, pixel_scale, learning_rate, penalties, error, weights, bias)
        if lane == 0 and row == 0:
            mean_nll = ordered_sum(example_nll) * inverse_batch_size
            costs[step] = mean_nll + ordered_sum(row_penalty)
        grid.sync()


@cuda.jit(**options.CUDA_ENTRY)
def _logits(x, pixel_scale, weights, bias, logits):
    """Overwrite logits (n, C) with x W + b of every image of x (n, D)."""
    _logits_phase(x, 0, pixel_scale, weights, bias, logits)
