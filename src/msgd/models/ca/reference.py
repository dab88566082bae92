"""The contractive auto-encoder in plain loops, in the letters of model.py: read this first.

x: images (B, D) floatX; layer: the parameters; c: the contraction; descent: the learning rate. What
it has in common with the denoising one is imported. The twins, cpu.py and cuda.py, compute the same
up to rounding.
"""

import math

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.cpu import activation_slope
from msgd.kernels.formulas import SIGMOID, like
from msgd.models.ca.jacobian import JacobianNorms
from msgd.models.da.reference import (
    TiedLayer,
    hidden_units,
    reconstruction_loss,
    update,
    weights_gradient,
)
from msgd.models.mlp.reference import error_below
from msgd.models.reference_backend import ReferenceBackend


@njit(**options.CPU_ENTRY)
def train_minibatch(x, layer, c, descent):
    """Take one step of SGD, which changes W, b and b'; return the cost before, and |J|^2 / B."""
    y = hidden_units(x, layer)
    cost, d = reconstruction_loss(x, y, layer)
    e = error_below(d, layer.weights.T, y, SIGMOID)
    jacobian, factors = contract(y, layer.weights, c, e)
    gradient = weights_gradient(x, y, d, e) + layer.weights * factors
    update(layer, gradient, e, d, descent)
    return cost + c * jacobian, jacobian


@njit(**options.CPU)
def contract(y, weights, c, e):
    """Add what (c/B) |J|^2 adds to e, (B, H).

    Returns |J|^2 / B, and (2 c/B) sum_i y'_ih^2, (H,), the factor of W in its gradient by W.
    """
    factors, factor = np.zeros_like(y[0]), like(c, 2) * c / like(c, y.shape[0])
    total, one = like(c, 0), like(c, 1)
    for h in range(y.shape[1]):
        square = like(c, 0)  # C_h = sum_k W_kh^2
        for k in range(weights.shape[0]):
            square += weights[k, h] * weights[k, h]
        slopes = like(c, 0)  # sum_i y'_ih^2
        for i in range(y.shape[0]):
            slope = activation_slope(y[i, h], SIGMOID)
            slopes += slope * slope
            e[i, h] += factor * slope * slope * (one - y[i, h] - y[i, h]) * square
        factors[h] = factor * slopes
        total += slopes * square
    return total / like(c, y.shape[0]), factors


class Backend(JacobianNorms, ReferenceBackend):
    """The contractive auto-encoder as the pipeline asks for it; see interface.Backend.

    jacobian_norms: of the minibatches of the last call of train, sqrt(|J|^2 / B) each.
    """

    def build_network(self):
        """Return the layer and the contraction."""
        layer = TiedLayer(*self.parameters.values())
        return layer, self.float_x(self.settings["contraction"])

    def train(self, first, last):
        """See msgd.models.interface.Backend.train."""
        costs, self.jacobian_norms = np.empty((2, last - first), self.float_x)
        for iteration in range(first, last):
            x, _ = self.minibatch(iteration)
            cost, jacobian = train_minibatch(x, *self.network, self.descent)
            costs[iteration - first] = cost
            self.jacobian_norms[iteration - first] = math.sqrt(jacobian)
        return costs
