"""Logistic regression on CUDA, as plain as CUDA can be: loops over the formulas of ``model.py``.

Several minibatches are trained in one cooperative launch. Each passes through three phases, after
each of which the whole grid waits: forward (and the penalty); loss; gradient and update. One thread
computes each sum, in a fixed order: no atomics on floats, and the same bits for any number of
blocks.

Legend: N images in all, B of a minibatch, D pixels of an image, C classes. Threads lie in two
dimensions: ``lane`` counts classes, ``row`` counts images or pixels.
"""

from numba import cuda

from msgd.kernels import options
from msgd.kernels.cuda import (
    Images,
    cost_phase,
    launch_shape,
    loss_phase,
    penalty_gradient,
    penalty_phase,
    sgd_step,
)
from msgd.kernels.formulas import like
from msgd.models.cuda_backend import CudaClassifier


class Backend(CudaClassifier):
    """The plain CUDA twin; see msgd.models.interface.Backend."""

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
            self.descent,
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
def _forward_phase(images, weights, bias, logits):
    """Overwrite logits (n, C) floatX with x W + b: one thread per image and class.

    images: msgd.kernels.cuda.Images, n of them; weights: (D, C) floatX; bias: (C,) floatX.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    for i in range(row, images.n, rows):
        for c in range(lane, weights.shape[1], lanes):
            logit = bias[c]
            for d in range(weights.shape[0]):
                logit += images.x[images.start + i, d] * images.pixel_scale * weights[d, c]
            logits[i, c] = logit


@cuda.jit(device=True, **options.CUDA)
def _update_phase(images, descent, error, weights, bias):
    """Change weights (D, C) and bias (C,), floatX, by a step of SGD: one thread per parameter.

    Each sums its gradient over the B images in order. images: msgd.kernels.cuda.Images; descent:
    msgd.kernels.arguments.Descent; error: (B, C) floatX, the derivatives of the cost by the logits.
    Row D of the grid is the bias.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    n_features = weights.shape[0]
    for d in range(row, n_features + 1, rows):
        for c in range(lane, weights.shape[1], lanes):
            gradient = like(descent.rate, 0)
            if d < n_features:
                for i in range(images.n):
                    pixel = images.x[images.start + i, d] * images.pixel_scale
                    gradient += pixel * error[i, c]
                gradient += penalty_gradient(weights[d, c], descent)
                weights[d, c] = sgd_step(weights[d, c], gradient, descent)
            else:
                for i in range(images.n):
                    gradient += error[i, c]
                bias[c] = sgd_step(bias[c], gradient, descent)


@cuda.jit(**options.CUDA_ENTRY)
def _train(
    x,  # (N, D) uint8 or floatX
    y,  # (N,) int32
    pixel_scale,  # floatX, what a stored pixel is multiplied by
    batch_size,  # B
    descent,  # msgd.kernels.arguments.Descent
    minibatch,  # number of the first one
    weights,  # (D, C) floatX, changed
    bias,  # (C,) floatX, changed
    logits,  # (B, C) floatX, scratch
    error,  # (B, C) floatX, scratch
    example_nll,  # (B,) floatX, scratch
    row_penalty,  # (D,) floatX, scratch
    costs,  # floatX, one per minibatch, overwritten
):
    """Train one minibatch after the other; write the cost of each before its update."""
    grid = cuda.cg.this_grid()
    inverse_batch_size = like(pixel_scale, 1) / like(pixel_scale, batch_size)
    for step in range(costs.shape[0]):
        start = (minibatch + step) * batch_size
        images = Images(x, start, batch_size, pixel_scale)
        _forward_phase(images, weights, bias, logits)
        penalty_phase(descent, weights, row_penalty)
        grid.sync()
        loss_phase(y, start, inverse_batch_size, logits, error, example_nll)
        grid.sync()
        _update_phase(images, descent, error, weights, bias)
        cost_phase(descent, inverse_batch_size, example_nll, row_penalty, costs, step)
        grid.sync()


@cuda.jit(**options.CUDA_ENTRY)
def _logits(x, pixel_scale, weights, bias, logits):
    """Overwrite logits (n, C) floatX with x W + b of every image of x, (n, D) uint8 or floatX.

    pixel_scale: floatX; weights: (D, C) floatX; bias: (C,) floatX.
    """
    _forward_phase(Images(x, 0, x.shape[0], pixel_scale), weights, bias, logits)
