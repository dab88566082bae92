"""The multilayer perceptron in plain loops, in the letters of model.py: read this first.

x = h_0: images (B, D) floatX; y: labels (B,) int32; layers: the layers 1 to L, so that layers[0]
makes h_1 of h_0; s: which activation; descent: learning rate and penalties. A layer's sums and
gradients are those of logistic regression on h_{l-1}. The twins, cpu.py and cuda.py, compute the
same up to rounding.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.cpu import activate, activation_slope
from msgd.kernels.formulas import ACTIVATIONS, like
from msgd.kernels.reference import loss, penalties, update
from msgd.models.logistic_regression.reference import gradients
from msgd.models.logistic_regression.reference import logits as weighted_sums
from msgd.models.reference_backend import ReferenceClassifier


class Layer(NamedTuple):
    """The parameters of a layer l."""

    weights: np.ndarray  # W_l (n_{l-1}, n_l)
    bias: np.ndarray  # b_l (n_l,)


@njit(**options.CPU_ENTRY)
def train_minibatch(x, y, layers, s, descent):
    """Take one step of SGD, which changes all W_l and b_l; return the cost before it."""
    h = activations(x, layers, s)
    cost, error = loss(h[-1], y)  # without penalties; e_L = (P - onehot(y)) / B
    gradient, _ = backward(h, error, layers, s, descent)  # of all layers, before any update
    for layer in range(len(layers)):
        cost += penalties(layers[layer].weights, descent)
        update(layers[layer], gradient[layer], descent)
    return cost


@njit(**options.CPU_ENTRY)
def logits(x, layers, s):
    """Return h_{L-1} W_L + b_L, (B, C)."""
    return activations(x, layers, s)[-1]


@njit(**options.CPU)
def activations(x, layers, s):
    """Return the list [h_0, ..., h_{L-1}, logits]; h_l = s(h_{l-1} W_l + b_l) is (B, n_l)."""
    h = [x]
    for layer in range(len(layers)):  # from 0: layers[layer] makes h[layer + 1] of h[layer]
        z = weighted_sums(h[layer], layers[layer].weights, layers[layer].bias)
        if layer < len(layers) - 1:
            for at in np.ndindex(z.shape):
                z[at] = activate(z[at], s)
        h.append(z)
    return h


@njit(**options.CPU)
def backward(h, error, layers, s, descent):
    """Return the list of (dcost/dW_l, dcost/db_l), and e_1; error: e_L; layers[l - 1] has W_l."""
    gradient = [gradients(h[-2], error, layers[-1].weights, descent)]
    for layer in range(len(layers) - 1, 0, -1):
        error = error_below(error, layers[layer].weights, h[layer], s)
        gradient.insert(0, gradients(h[layer - 1], error, layers[layer - 1].weights, descent))
    return gradient, error


@njit(**options.CPU)
def error_below(error, weights, h, s):
    """Return e_{l-1} = (e_l W_l^T) s'(h_{l-1}), (B, n_{l-1}), given e_l, W_l and h_{l-1}."""
    below = np.empty_like(h)
    for i, d in np.ndindex(h.shape):
        total = like(h[i, d], 0)
        for u in range(error.shape[1]):
            total += error[i, u] * weights[d, u]
        below[i, d] = total * activation_slope(h[i, d], s)
    return below


class Backend(ReferenceClassifier):
    """The multilayer perceptron as the pipeline asks for it; see msgd.models.interface.Backend."""

    train_minibatch = staticmethod(train_minibatch)
    logits = staticmethod(logits)

    def build_network(self):
        """Return the layers and s."""
        arrays = [*self.parameters.values()]
        layers = tuple(map(Layer, arrays[::2], arrays[1::2]))
        return layers, ACTIVATIONS[self.settings["activation"]]
