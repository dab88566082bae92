"""The restricted Boltzmann machine in plain loops, in the letters of model.py: read this first.

x: images (B, D) floatX; v: samples (B, D) and h: samples (B, H), zeros and ones in floatX; layer:
the parameters; sampling: gibbs.Sampling; descent: the learning rate. The twin, cpu.py, computes the
same up to rounding.
"""

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.cpu import sgd_step, sigmoid, sigmoid_cross_entropy, softplus
from msgd.kernels.formulas import like
from msgd.kernels.uniform import fill_sample
from msgd.models.da.reference import TiedLayer, hidden_units
from msgd.models.logistic_regression.reference import logits as weighted_sums
from msgd.models.rbm.gibbs import GibbsNumbers, PersistentChain
from msgd.models.reference_backend import ReferenceBackend


@njit(**options.CPU_ENTRY)
def train_minibatch(x, iteration, layer, chain, sampling, descent):
    """Take one step of SGD, which changes W, b and c; return the cost before it.

    iteration: of the training, from 0; chain: h (B, H), where the chains of PCD are, which is
    overwritten with where they come to. Those of ``sampling`` are taken to the next minibatch.
    """
    positive = hidden_units(x, layer)  # s(x W + b)
    if sampling.is_persistent:
        h = chain
        cost = log_pseudo_likelihood(x, iteration % x.shape[1], layer)
    else:
        h = np.empty_like(positive)
        fill_sample(sampling.positive, positive, h)
        cost = like(x[0, 0], 0)  # not before the last step
    v, negative = np.empty_like(x), positive
    for step in range(sampling.n_steps):
        a = weighted_sums(h, layer.weights.T, layer.visible_bias)
        fill_sample(sampling.visible, sigmoids(a), v)
        negative = hidden_units(v, layer)  # s(v W + b)
        if sampling.is_persistent or sampling.n_steps > 1:
            fill_sample(sampling.hidden, negative, h)
        if not sampling.is_persistent and step == sampling.n_steps - 1:
            cost = -cross_entropy(a, x)
    update(layer, x, positive, v, negative, descent)
    return cost


@njit(**options.CPU)
def sigmoids(a):
    """Return s(a), (B, D)."""
    means = np.empty_like(a)
    for at in np.ndindex(a.shape):
        means[at] = sigmoid(a[at])
    return means


@njit(**options.CPU)
def log_pseudo_likelihood(x, j, layer):
    """Return D times the mean of log s(F(r') - F(r)); r: x rounded, r': r with pixel j flipped."""
    n_images, n_pixels = x.shape
    r = np.empty_like(x)
    for i, d in np.ndindex(x.shape):
        r[i, d] = 1 if x[i, d] > like(x[i, d], 0.5) else 0
    a = weighted_sums(r, layer.weights, layer.hidden_bias)
    total = like(x[0, 0], 0)
    for i in range(n_images):
        change = like(total, 1) - r[i, j] - r[i, j]  # r'_j - r_j, 1 or -1
        energy = change * layer.visible_bias[j]  # F(r) - F(r')
        for u in range(a.shape[1]):
            energy += softplus(a[i, u] + change * layer.weights[j, u]) - softplus(a[i, u])
        total -= softplus(energy)  # log s(-energy)
    return like(total, n_pixels) * total / like(total, n_images)


@njit(**options.CPU)
def cross_entropy(a, x):
    """Return the mean over the images of -sum_d (x log s(a) + (1 - x) log(1 - s(a)))."""
    total = like(x[0, 0], 0)
    for i in range(x.shape[0]):
        total_of_image = like(total, 0)
        for d in range(x.shape[1]):
            total_of_image += sigmoid_cross_entropy(a[i, d], x[i, d])
        total += total_of_image
    return total / like(total, x.shape[0])


@njit(**options.CPU)
def update(layer, x, positive, v, negative, descent):
    """Take a step of SGD down mean F(x) - mean F(v); positive, negative: s(x W + b), s(v W + b)."""
    weights, hidden_bias, visible_bias = layer
    batch_size = like(x[0, 0], x.shape[0])
    for d in range(x.shape[1]):
        for u in range(positive.shape[1]):
            total = like(batch_size, 0)
            for i in range(x.shape[0]):
                total += v[i, d] * negative[i, u] - x[i, d] * positive[i, u]
            weights[d, u] = sgd_step(weights[d, u], total / batch_size, descent)
    for bias, data, model in ((hidden_bias, positive, negative), (visible_bias, x, v)):
        for u in range(bias.shape[0]):
            total = like(batch_size, 0)
            for i in range(x.shape[0]):
                total += model[i, u] - data[i, u]
            bias[u] = sgd_step(bias[u], total / batch_size, descent)


class Backend(PersistentChain, ReferenceBackend):
    """The machine as the pipeline asks for it; see msgd.models.interface.Backend."""

    def build_network(self):
        """Return the layer and the chain."""
        n_features = self.dataset.n_features
        self.numbers = GibbsNumbers(n_features, self.settings)
        self.chain = np.zeros((self.batch_size, self.settings["n_hidden"]), self.float_x)
        return TiedLayer(*self.parameters.values()), self.chain

    def fetch_chain(self):
        """See msgd.models.rbm.gibbs.PersistentChain."""
        return self.chain.astype(np.uint8)

    def keep_chain(self, chain):
        """See msgd.models.rbm.gibbs.PersistentChain."""
        self.chain[:] = chain

    def train(self, first, last):
        """See msgd.models.interface.Backend.train."""
        costs, sampling = np.empty(last - first, self.float_x), self.numbers.span(first, last)
        for iteration in range(first, last):
            x, _ = self.minibatch(iteration)
            costs[iteration - first] = train_minibatch(
                x, iteration, *self.network, sampling, self.descent
            )
        return costs
