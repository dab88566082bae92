"""LeNet in plain loops, in the letters of model.py: read this first.

x = h_0: images (B, 1, h, w) floatX; y: labels (B,) int32; convs: layers 1 to K; denses: layers K+1
to L, a multilayer perceptron on h_K; s: which activation; pooling: p, the pool_size, and to_all,
whether maxpool_ties is ``all``; descent: learning rate and penalties. The twins, cpu.py and
cuda.py, compute the same up to rounding. Where model.py has one image, n counts the minibatch's.
"""

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.cpu import activate, activation_slope
from msgd.kernels.formulas import ACTIVATIONS, like
from msgd.kernels.reference import loss, penalties, penalty_gradients, update
from msgd.models.mlp import reference as mlp
from msgd.models.reference_backend import ReferenceClassifier


@njit(**options.CPU_ENTRY)
def train_minibatch(x, y, convs, denses, s, pooling, descent):
    """Take one step of SGD, which changes all W_l and b_l; return the cost before it."""
    p, to_all = pooling
    a, h = activations(x, convs, s, p)
    dense_h = mlp.activations(flat(h[-1]), denses, s)
    cost, error = loss(dense_h[-1], y)  # without penalties; e_L = (P - onehot(y)) / B
    # All gradients, from the last layer down, before any update: at the old parameters.
    dense_gradient, error = mlp.backward(dense_h, error, denses, s, descent)  # and e_{K+1}
    error = mlp.error_below(error, denses[0].weights, dense_h[0], s).reshape(h[-1].shape)  # e_K
    conv_gradient = []
    for layer in range(len(convs) - 1, -1, -1):
        d = unpool(error, a[layer], p, to_all)
        conv_gradient.insert(0, gradients(h[layer], d, error, convs[layer].weights, descent))
        if layer > 0:
            error = error_below(d, convs[layer].weights, h[layer], s)
    for layer in range(len(convs)):
        cost += penalties(convs[layer].weights, descent)
        update(convs[layer], conv_gradient[layer], descent)
    for layer in range(len(denses)):
        cost += penalties(denses[layer].weights, descent)
        update(denses[layer], dense_gradient[layer], descent)
    return cost


@njit(**options.CPU_ENTRY)
def logits(x, convs, denses, s, pooling):
    """Return h_{L-1} W_L + b_L, (B, C)."""
    _, h = activations(x, convs, s, pooling[0])
    return mlp.activations(flat(h[-1]), denses, s)[-1]


@njit(**options.CPU)
def flat(h):
    """Return h_K (B, M, rows, columns) as (B, n_in), in the order (map, row, column)."""
    return h.reshape(h.shape[0], h.shape[1] * h.shape[2] * h.shape[3])


@njit(**options.CPU)
def activations(x, convs, s, p):
    """Return the lists [a_1, ..., a_K] and [h_0, ..., h_K]: convs[0] makes a_1 and h_1 of h_0."""
    a, h = [], [x]
    for layer in range(len(convs)):
        a.append(convolve(h[layer], convs[layer].weights))
        h.append(pool(a[layer], convs[layer].bias, s, p))
    return a, h


@njit(**options.CPU)
def convolve(h, weights):
    """Return a[m, r, c] = sum_{k, i, j} W[m, k, f-1-i, f-1-j] h[k, r+i, c+j]; h: h_{l-1}."""
    f = weights.shape[2]
    a = np.zeros((len(h), len(weights), h.shape[2] - f + 1, h.shape[3] - f + 1), h.dtype)
    for n, m, k in np.ndindex(len(h), len(weights), h.shape[1]):
        for i in range(f):
            for j in range(f):
                weight = weights[m, k, f - 1 - i, f - 1 - j]
                for r in range(a.shape[2]):
                    for c in range(a.shape[3]):
                        a[n, m, r, c] += weight * h[n, k, r + i, c + j]
    return a


@njit(**options.CPU)
def pool(a, bias, s, p):
    """Return h_l[m, r, c] = s(max_{i, j < p} a[m, p r + i, p c + j] + b[m])."""
    h = np.empty((a.shape[0], a.shape[1], a.shape[2] // p, a.shape[3] // p), a.dtype)
    for n, m, r, c in np.ndindex(h.shape):
        h[n, m, r, c] = activate(maximum(a[n, m], r, c, p) + bias[m], s)
    return h


@njit(**options.CPU)
def maximum(a, r, c, p):
    """Return max_{i, j < p} a[p r + i, p c + j] of one map."""
    z = a[p * r, p * c]
    for i, j in np.ndindex(p, p):
        z = max(z, a[p * r + i, p * c + j])
    return z


@njit(**options.CPU)
def unpool(error, a, p, to_all):
    """Return d: a square's maximum has the square's e_l, its other pixels 0."""
    d = np.zeros_like(a)
    for n, m, r, c in np.ndindex(error.shape):
        z = maximum(a[n, m], r, c, p)
        for i, j in np.ndindex(p, p):
            if a[n, m, p * r + i, p * c + j] == z:
                d[n, m, p * r + i, p * c + j] = error[n, m, r, c]
                if not to_all:
                    break  # of equal maxima only the first
    return d


@njit(**options.CPU)
def gradients(h, d, error, weights, descent):
    """Return dcost/dW_l = sum d h_{l-1} + the penalties' gradient, and dcost/db_l = sum e_l."""
    weights_gradient, f = penalty_gradients(weights, descent), weights.shape[2]
    for n, m, k in np.ndindex(len(h), len(weights), h.shape[1]):
        for i in range(f):
            for j in range(f):
                total = like(d[n, m, 0, 0], 0)
                for r in range(d.shape[2]):
                    for c in range(d.shape[3]):
                        total += d[n, m, r, c] * h[n, k, r + i, c + j]
                weights_gradient[m, k, f - 1 - i, f - 1 - j] += total
    bias_gradient = np.zeros(error.shape[1], error.dtype)
    for n, m, r, c in np.ndindex(error.shape):
        bias_gradient[m] += error[n, m, r, c]
    return weights_gradient, bias_gradient


@njit(**options.CPU)
def error_below(d, weights, h, s):
    """Return e_{l-1}: W[m, k, f-1-i, f-1-j] d[m, r, c] is added where it goes, [k, r+i, c+j]."""
    below, f = np.zeros_like(h), weights.shape[2]
    for n, m, k in np.ndindex(len(h), len(weights), h.shape[1]):
        for i in range(f):
            for j in range(f):
                weight = weights[m, k, f - 1 - i, f - 1 - j]
                for r in range(d.shape[2]):
                    for c in range(d.shape[3]):
                        below[n, k, r + i, c + j] += weight * d[n, m, r, c]
    for at in np.ndindex(h.shape):
        below[at] *= activation_slope(h[at], s)
    return below


class Backend(ReferenceClassifier):
    """LeNet as the pipeline asks for it; see msgd.models.interface.Backend."""

    train_minibatch = staticmethod(train_minibatch)
    logits = staticmethod(logits)

    def build_network(self):
        """Return the arguments of train_minibatch between y and descent."""
        self.image_shape = 1, *self.dataset.image_shape
        arrays, settings = [*self.parameters.values()], self.settings
        layers = tuple(map(mlp.Layer, arrays[::2], arrays[1::2]))
        n_convs, s = len(settings["nkerns"]), ACTIVATIONS[settings["activation"]]
        pooling = settings["pool_size"], settings["maxpool_ties"] == "all"
        return layers[:n_convs], layers[n_convs:], s, pooling
