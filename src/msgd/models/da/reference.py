"""The denoising auto-encoder in plain loops, in the letters of model.py: read this first.

x: images (B, D) floatX; corrupted: x~ (B, D); layer: the parameters; descent: the learning rate.
The twins, cpu.py and cuda.py, compute the same up to rounding.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.cpu import activate, sgd_step, sigmoid, sigmoid_cross_entropy
from msgd.kernels.formulas import SIGMOID, like
from msgd.kernels.uniform import fill_mask
from msgd.models.da.model import mask_draws
from msgd.models.logistic_regression.reference import logits as weighted_sums
from msgd.models.mlp.reference import error_below
from msgd.models.reference_backend import ReferenceBackend
from msgd.models.unsupervised_backend import RandomNumbers


class TiedLayer(NamedTuple):
    """The parameters."""

    weights: np.ndarray  # W (D, H)
    hidden_bias: np.ndarray  # b (H,)
    visible_bias: np.ndarray  # b' (D,)


@njit(**options.CPU_ENTRY)
def train_minibatch(x, corrupted, layer, descent):
    """Take one step of SGD, which changes W, b and b'; return the cost before it."""
    y = hidden_units(corrupted, layer)
    cost, d = reconstruction_loss(x, y, layer)
    e = error_below(d, layer.weights.T, y, SIGMOID)
    update(layer, weights_gradient(corrupted, y, d, e), e, d, descent)
    return cost


@njit(**options.CPU)
def hidden_units(x, layer):
    """Return y = s(x W + b), (B, H)."""
    y = weighted_sums(x, layer.weights, layer.hidden_bias)
    for at in np.ndindex(y.shape):
        y[at] = activate(y[at], SIGMOID)
    return y


@njit(**options.CPU)
def reconstruction_loss(x, y, layer):
    """Return the mean over the images of their cross-entropy, and d = (z - x) / B, (B, D)."""
    a, batch_size = weighted_sums(y, layer.weights.T, layer.visible_bias), like(x[0, 0], len(x))
    total, d = like(batch_size, 0), np.empty_like(x)
    for i in range(x.shape[0]):
        total_of_image = like(total, 0)
        for k in range(x.shape[1]):
            total_of_image += sigmoid_cross_entropy(a[i, k], x[i, k])
            d[i, k] = (sigmoid(a[i, k]) - x[i, k]) / batch_size
        total += total_of_image
    return total / batch_size, d


@njit(**options.CPU)
def weights_gradient(x, y, d, e):
    """Return x^T e + d^T y, (D, H)."""
    gradient = np.zeros((x.shape[1], y.shape[1]), x.dtype)
    for i, k in np.ndindex(x.shape):
        for h in range(y.shape[1]):
            gradient[k, h] += x[i, k] * e[i, h] + d[i, k] * y[i, h]
    return gradient


@njit(**options.CPU)
def update(layer, gradient, e, d, descent):
    """Take a step of SGD by the gradient dcost/dW and, for the biases, by the sums of e and d."""
    for at in np.ndindex(gradient.shape):
        layer.weights[at] = sgd_step(layer.weights[at], gradient[at], descent)
    for bias, errors in ((layer.hidden_bias, e), (layer.visible_bias, d)):
        for u in range(errors.shape[1]):
            total = like(errors[0, u], 0)
            for i in range(errors.shape[0]):
                total += errors[i, u]
            bias[u] = sgd_step(bias[u], total, descent)


class Backend(ReferenceBackend):
    """The denoising auto-encoder as the pipeline asks for it; see msgd.models.interface.Backend."""

    def build_network(self):
        """Return the layer; find where the masks' random numbers begin."""
        self.masks = RandomNumbers(mask_draws(self.dataset.n_features, self.settings))
        return (TiedLayer(*self.parameters.values()),)

    def train(self, first, last):
        """See msgd.models.interface.Backend.train."""
        costs, position = np.empty(last - first, self.float_x), self.masks.span(first, last)
        mask = np.empty((self.batch_size, self.dataset.n_features), self.float_x)
        for iteration in range(first, last):
            x, _ = self.minibatch(iteration)
            fill_mask(position, self.float_x(1 - self.settings["corruption"]), mask)
            costs[iteration - first] = train_minibatch(x, mask * x, *self.network, self.descent)
        return costs
