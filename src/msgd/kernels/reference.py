"""The shared formulas over whole arrays, in plain loops: what every model's reference.py needs.

Sums run in the order of their index and in floatX. Parameters are of any number of dimensions. What
is imported from ``kernels.cpu`` is ``kernels/formulas.py``, compiled, and the sum of the images'
costs, which goes by runs, for there may be as many as 50,000.
"""

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.cpu import (
    ordered_sum,
    penalty,
    penalty_gradient,
    sgd_step,
    softmax_cross_entropy,
)
from msgd.kernels.formulas import like


@njit(**options.CPU)
def loss(logits, y):
    """Return -(1/B) sum_i log P(Y = y_i | x_i), and the error (P - onehot(y)) / B, (B, C).

    logits: (B, C) floatX, whose softmax is P; y: (B,) labels.
    """
    inverse_batch_size = like(logits[0, 0], 1) / like(logits[0, 0], y.shape[0])
    nll, error = np.empty_like(logits[:, 0]), np.empty_like(logits)
    for i in range(y.shape[0]):
        # Overwrites error[i], too.
        nll[i] = softmax_cross_entropy(logits[i], y[i], inverse_batch_size, error[i])
    return ordered_sum(nll) * inverse_batch_size, error


@njit(**options.CPU)
def penalties(weights, descent):
    """Return l1 sum |W| + l2 sum W^2 + lp sum |W|^p; descent: msgd.kernels.arguments.Descent."""
    total = like(descent.rate, 0)
    for row in range(weights.shape[0]):  # row by row: one long sum would lose digits in float32
        total_of_row = like(total, 0)
        for weight in weights[row].flat:
            total_of_row += penalty(weight, descent)
        total += total_of_row
    return total


@njit(**options.CPU)
def penalty_gradients(weights, descent):
    """Return the gradient of ``penalties`` by the weights, of their shape."""
    gradient = np.empty_like(weights)
    for at in np.ndindex(weights.shape):
        gradient[at] = penalty_gradient(weights[at], descent)
    return gradient


@njit(**options.CPU)
def update(layer, gradient, descent):
    """Take a step of SGD: overwrite the weights and the bias of a layer.

    layer: (weights, bias); gradient: the derivatives of the cost by them, (dcost/dW, dcost/db).
    """
    weights, bias = layer
    weights_gradient, bias_gradient = gradient
    for at in np.ndindex(weights.shape):
        weights[at] = sgd_step(weights[at], weights_gradient[at], descent)
    for at in np.ndindex(bias.shape):
        bias[at] = sgd_step(bias[at], bias_gradient[at], descent)
