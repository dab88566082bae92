"""The oracle of LeNet: convolution, pooling, cost, gradients, naively, in float64 NumPy.

Shares no code with msgd. Parameters are a list [weights, bias, weights, bias, ...], filters
(M, M_in, f, f) first, then dense weights (n_in, n_out). A true convolution is written as its
definition, with the filter running backwards over the image.
"""

import numpy as np
from oracle import mean_nll, onehot, penalties_of, penalty, penalty_gradient, softmax


def convolve(h, filters):
    """out[n, m, r, c] = sum_{k, u, v} filters[m, k, u, v] h[n, k, r + f-1 - u, c + f-1 - v]."""
    f = filters.shape[2]
    rows, columns = h.shape[2] - f + 1, h.shape[3] - f + 1
    out = np.zeros((len(h), len(filters), rows, columns))
    for u in range(f):
        for v in range(f):
            r, c = f - 1 - u, f - 1 - v
            shifted = h[:, :, r : r + rows, c : c + columns]
            out += np.einsum("nkrc,mk->nmrc", shifted, filters[:, :, u, v])
    return out


def convolve_gradients(h, filters, error):
    """The gradients of sum(error * convolve(h, filters)) by h and by filters."""
    f = filters.shape[2]
    rows, columns = error.shape[2:]
    to_h, to_filters = np.zeros_like(h), np.zeros_like(filters)
    for u in range(f):
        for v in range(f):
            r, c = f - 1 - u, f - 1 - v
            shifted = h[:, :, r : r + rows, c : c + columns]
            to_filters[:, :, u, v] = np.einsum("nkrc,nmrc->mk", shifted, error)
            to_h[:, :, r : r + rows, c : c + columns] += np.einsum(
                "nmrc,mk->nkrc", error, filters[:, :, u, v]
            )
    return to_h, to_filters


def squares(a, p):
    """Every square of p x p as a row: (n, M, rows, columns, p * p); left-over edges dropped."""
    rows, columns = a.shape[2] // p, a.shape[3] // p
    out = np.zeros((*a.shape[:2], rows, columns, p * p))
    for r in range(rows):
        for c in range(columns):
            square = a[:, :, r * p : (r + 1) * p, c * p : (c + 1) * p]
            out[:, :, r, c] = square.reshape(*a.shape[:2], p * p)
    return out


def max_pool(a, p):
    return squares(a, p).max(axis=-1)


def max_pool_gradient(a, p, error, ties):
    """The error of the maxima, (n, M, rows, columns), carried to the pixels of a."""
    all_squares = squares(a, p)
    is_maximum = all_squares == all_squares.max(axis=-1, keepdims=True)
    if ties == "first":
        is_maximum &= is_maximum.cumsum(axis=-1) == 1
    out = np.zeros_like(a)
    for r in range(error.shape[2]):
        for c in range(error.shape[3]):
            share = is_maximum[:, :, r, c] * error[:, :, r, c, None]
            out[:, :, r * p : (r + 1) * p, c * p : (c + 1) * p] = share.reshape(*a.shape[:2], p, p)
    return out


def activate(z, activation):
    return np.tanh(z) if activation == "tanh" else 1 / (1 + np.exp(-z))


def slope(h, activation):
    return 1 - h**2 if activation == "tanh" else h * (1 - h)


def forward(parameters, images, settings):
    """The input of every layer, the convolutions before pooling, and the logits.

    images: (n, height, width) float64 pixels.
    """
    h = images[:, None]
    inputs, convolved = [], []
    pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
    for number, (weights, bias) in enumerate(pairs):
        if weights.ndim == 2 and h.ndim == 4:
            h = h.reshape(len(h), -1)
        inputs.append(h)
        if weights.ndim == 4:
            convolved.append(convolve(h, weights))
            pooled = max_pool(convolved[-1], settings["pool_size"])
            h = activate(pooled + bias[:, None, None], settings["activation"])
        else:
            h = h @ weights + bias
            if number < len(pairs) - 1:
                h = activate(h, settings["activation"])
    return inputs, convolved, h


def cost(parameters, images, y, settings):
    """Mean negative log-likelihood plus penalties."""
    penalties = penalties_of(settings)
    nll = mean_nll(forward(parameters, images, settings)[2], y)
    return nll + sum(penalty(weights, **penalties) for weights in parameters[::2])


def gradients(parameters, images, y, settings):
    """The gradients of cost by all parameters, in their order."""
    inputs, convolved, logits = forward(parameters, images, settings)
    error = (softmax(logits) - onehot(y, logits.shape[1])) / len(y)
    found = []
    for number in range(len(inputs) - 1, -1, -1):
        weights, h = parameters[2 * number], inputs[number]
        if weights.ndim == 2:
            to_bias = error.sum(axis=0)
            to_weights, to_h = h.T @ error, error @ weights.T
        else:
            a = convolved[number]
            to_bias = error.sum(axis=(0, 2, 3))
            on_pixels = max_pool_gradient(a, settings["pool_size"], error, settings["maxpool_ties"])
            to_h, to_weights = convolve_gradients(h, weights, on_pixels)
        to_weights = to_weights + penalty_gradient(weights, **penalties_of(settings))
        found = [to_weights, to_bias, *found]
        if number > 0:
            error = to_h * slope(h, settings["activation"])
            below = parameters[2 * (number - 1)]
            if below.ndim == 4 and error.ndim == 2:
                a = convolved[number - 1]
                rows, columns = (size // settings["pool_size"] for size in a.shape[2:])
                error = error.reshape(len(y), a.shape[1], rows, columns)
    return found
