"""The wall between training and kernels: what every ``Backend`` offers, whatever its model.

A backend holds a model's parameters and the six shared variables where its kernels run. The
training loop asks two things of it: train a span of minibatches, and count the zero-one errors of a
split. So Python stays out of the way for as long as nothing has to be decided.
"""

from typing import Protocol

import numpy as np


class Backend(Protocol):
    """A model on a device. ``cpu.py`` and ``cuda.py`` of every model room hold one each."""

    def __init__(self, dataset, parameters, settings, float_x, chunk_batches=None):
        """Take the shared variables and the initial parameters to the device.

        dataset: msgd.data.dataset.Dataset; parameters: dict of name -> floatX array, in the
        model's order; settings: the experiment's hyperparameters, batch_size a number; float_x:
        np.float32 or np.float64; chunk_batches: how many training minibatches a CUDA device holds
        at a time, None for all (the CPU maps the arrays from disk in any case).
        """

    def train(self, first, last):
        """Train minibatches first..last-1; return the cost of each, (last - first,) floatX.

        Minibatch i is rows [jB, (j+1)B) of train with j = i mod n_train_batches: no shuffling.
        Changes the parameters. Where calls end may change how sums are rounded; the training loop
        ends them where the settings say, so that runs repeat bit for bit.
        """

    def count_errors(self, split):
        """Return how many of the n_evaluated(N, B) examples of ``split`` are misclassified."""

    def predict(self, split):
        """Return the predicted class of every example of ``split``, (N,) int32."""

    def get_parameters(self):
        """Return a copy of the parameters: dict of name -> floatX array, in the model's order."""

    def set_parameters(self, parameters):
        """Replace the parameters by ``parameters``, a dict as get_parameters returns."""


class FullGradient(Protocol):
    """What the backends of a model trained on the whole training set offer beside Backend."""

    def cost_and_gradient(self):
        """Return (cost, gradient): the mean over the whole minibatches of the training set.

        cost: float; gradient: dict of name -> floatX array, as get_parameters. Changes nothing.
        """


def n_batches(n_examples, batch_size):
    """Return how many whole minibatches ``n_examples`` make; the tail is dropped, as published."""
    return n_examples // batch_size


def n_evaluated(n_examples, batch_size):
    """Return how many examples of a split count in its zero-one errors.

    The published code evaluates in whole minibatches and drops the tail: 9,600 of 10,000 for a
    batch of 600. A split smaller than one minibatch (as under gradient descent on the whole
    training set) would leave nothing to count; then all of it counts.
    """
    return n_batches(n_examples, batch_size) * batch_size or n_examples


def count_mistakes(predicted, labels, batch_size):
    """Return the errors among the evaluated examples; predicted and labels: (N,) integers."""
    n = n_evaluated(len(labels), batch_size)
    return int(np.count_nonzero(predicted[:n] != labels[:n]))
