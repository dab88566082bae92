"""Formulas written once, in plain Python that Numba compiles for CPU and for CUDA.

They call nothing but ``math``, ``like`` and each other. In arithmetic every constant goes through
``like``, because a bare ``0`` or ``1.0`` beside a float32 would make Numba compute in float64.
"""

import math


def like(x, value):
    """Return the number ``value`` in the type of ``x``."""
    return type(x)(value)


def softmax_cross_entropy(logits, label, inverse_batch_size, error):
    """Return the negative log-likelihood of ``label``; write the gradient of 1/B of it.

    logits: (C,) floatX; label: int in [0, C); inverse_batch_size: 1/B, floatX.
    error: (C,) floatX, overwritten with (softmax(logits) - onehot(label)) / B, the gradient of
    the mean negative log-likelihood over the minibatch. The maximum is subtracted first, so that
    no exponential overflows. ``logits`` and ``error`` must not be the same array.
    """
    n_classes = logits.shape[0]
    highest = logits[0]
    for c in range(1, n_classes):
        if logits[c] > highest:
            highest = logits[c]
    total = like(highest, 0)
    for c in range(n_classes):
        exponential = math.exp(logits[c] - highest)
        error[c] = exponential
        total += like(highest, exponential)
    scale = inverse_batch_size / total
    for c in range(n_classes):
        error[c] *= scale
    error[label] -= inverse_batch_size
    return like(highest, math.log(total)) - (logits[label] - highest)


def tanh(x):
    """Return the hyperbolic tangent of ``x`` in its own type."""
    return like(x, math.tanh(x))


def sigmoid(x):
    """Return 1 / (1 + exp(-x)), without overflow for any ``x``."""
    if x >= like(x, 0):
        return like(x, 1) / (like(x, 1) + like(x, math.exp(-x)))
    exponential = like(x, math.exp(x))
    return exponential / (like(x, 1) + exponential)


def sigmoid_cross_entropy(x, target):
    """Return -(t log s(x) + (1 - t) log(1 - s(x))) of the sigmoid s and the target t.

    It is log(1 + exp(x)) - t x, here without overflow for any ``x`` of the type of ``target``.
    """
    largest = x if x > like(x, 0) else like(x, 0)
    return largest - target * x + like(x, math.log1p(math.exp(-abs(x))))


def softplus(x):
    """Return log(1 + exp(x)) = -log s(-x) of the sigmoid s, without overflow for any ``x``."""
    return sigmoid_cross_entropy(x, like(x, 0))


TANH, SIGMOID = 0, 1
ACTIVATIONS = {"tanh": TANH, "sigmoid": SIGMOID}


def activate(x, kind):
    """Return the activation of ``x``: tanh for kind TANH, the logistic sigmoid for SIGMOID."""
    return tanh(x) if kind == TANH else sigmoid(x)


def activation_slope(h, kind):
    """Return the derivative of the activation where its value is ``h``: 1 - h^2 or h (1 - h)."""
    return like(h, 1) - h * h if kind == TANH else h * (like(h, 1) - h)


def first_argmax(values):
    """Return the first index of the maximum of ``values``, (C,) floatX: the predicted class."""
    best, highest = 0, values[0]
    for c in range(1, values.shape[0]):
        value = values[c]
        if value > highest:
            best, highest = c, value
    return best


def penalty(weight, descent):
    """Return l1 |w| + l2 w^2 + lp |w|^p, one weight's share of the regularised cost.

    descent: msgd.kernels.arguments.Descent.
    """
    total = descent.l1 * abs(weight) + descent.l2 * weight * weight
    if descent.lp > like(descent.lp, 0):
        total += descent.lp * like(weight, math.pow(abs(weight), descent.p))
    return total


def penalty_gradient(weight, descent):
    """Return the derivative of penalty by the weight, where d|w|/dw is 0 at 0."""
    slope = descent.l1
    if descent.lp > like(descent.lp, 0):
        power = like(weight, math.pow(abs(weight), descent.p - like(descent.p, 1)))
        slope += descent.lp * descent.p * power
    gradient = (descent.l2 + descent.l2) * weight
    if weight > like(weight, 0):
        gradient += slope
    elif weight < like(weight, 0):
        gradient -= slope
    return gradient


def has_penalty(descent):
    """Return whether any of the penalties is not zero."""
    return descent.l1 > 0 or descent.l2 > 0 or descent.lp > 0


def sgd_step(parameter, gradient, descent):
    """Return ``parameter`` after a step of stochastic gradient descent: w - rate dcost/dw."""
    return parameter - descent.rate * gradient


def is_l2_alone(descent):
    """Return whether a step on the penalties is one factor for all weights: no l1 and no lp."""
    return descent.l1 == 0 and descent.lp == 0


def l2_factor(descent):
    """Return what a step on l2 w^2 alone multiplies a weight by: 1 - 2 rate l2."""
    return like(descent.rate, 1) - (descent.rate + descent.rate) * descent.l2
