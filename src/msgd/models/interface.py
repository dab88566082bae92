"""The wall between training and kernels: what every ``Backend`` offers, whatever its model.

A backend holds a model's parameters and the six shared variables where its kernels run. The
training loop asks it to train a span of minibatches, and a classifier to count the zero-one errors
of a split. One that learns without labels may have ``describe_epoch()``: what the log is to say, in
words, beside the cost of the last call of train, an epoch. So Python stays out of the way for as
long as nothing has to be decided.
"""

from typing import Protocol

import numpy as np

from msgd.errors import UserError
from msgd.models import load_model


class Backend(Protocol):
    """A model on a device: ``reference.py``, ``cpu.py``, ``cuda.py`` of its room hold one each."""

    def __init__(self, dataset, parameters, settings, float_x, chunk_batches=None):
        """Take the shared variables and the initial parameters to the device.

        dataset: msgd.data.dataset.Dataset; parameters: dict of name -> floatX array, in the
        model's order; settings: the experiment's hyperparameters, batch_size a number; float_x:
        np.float32 or np.float64; chunk_batches: how many training minibatches a CUDA device holds
        at a time, None for all (the CPU maps the arrays from disk in any case). Raises UserError,
        before any kernel is called, if these do not fit each other.
        """

    def begin(self, stage):
        """Get ready for the minibatches of ``stage``, a msgd.models.Stage.

        Called with the parameters as the stages before have left them, and before set_state where a
        training that was killed goes on within the stage.
        """

    def train(self, first, last):
        """Train minibatches first..last-1 of the stage; return their costs, (last - first,) floatX.

        Minibatch i is rows [jB, (j+1)B) of train with j = i mod n_train_batches: no shuffling.
        Random numbers follow from the stage and i alone. Changes the parameters. Where calls end
        may change how sums are rounded; the training loop ends them where the settings say, so that
        runs repeat bit for bit.
        """

    def get_parameters(self):
        """Return a copy of the parameters: dict of name -> floatX array, in the model's order."""

    def set_parameters(self, parameters):
        """Replace the parameters by ``parameters``, a dict as get_parameters returns.

        Raises UserError if its names, shapes or dtypes are others: no kernel sees unchecked sizes.
        """

    def get_state(self):
        """Return a copy of what training needs beside the parameters: dict of name -> array."""

    def set_state(self, state):
        """Replace it by ``state``, a dict as get_state returns in the same stage."""


class Classifier(Backend, Protocol):
    """A backend that predicts classes: what a validated stage and the scores ask for."""

    def count_errors(self, split):
        """Return how many of the n_evaluated(N, B) examples of ``split`` are misclassified."""

    def predict(self, split):
        """Return the predicted class of every example of ``split``, (N,) int32."""


class OneStage:
    """What a backend of one stage does that needs nothing beside its parameters: nothing."""

    def begin(self, stage):
        """See Backend.begin."""

    def get_state(self):
        """See Backend.get_state."""
        return {}

    def set_state(self, state):
        """See Backend.set_state."""


def check_parts(dataset, settings, float_x, chunk_batches):
    """Raise UserError unless a Backend can be made of its arguments; see Backend.__init__.

    A Dataset's arrays fit each other, or it would not be there.
    """
    check_batch_size(settings, "batch_size", len(dataset.train_x))
    pixels = dataset.train_x.dtype
    if pixels not in (np.dtype(np.uint8), np.dtype(float_x)):
        raise UserError(
            f"{dataset.folder or 'the data set'} holds pixels of {pixels}, but floatX is "
            f"{np.dtype(float_x)}; write it anew with msgd unpickle --floatX {np.dtype(float_x)}"
        )
    if chunk_batches is not None and (type(chunk_batches) is not int or chunk_batches < 1):
        raise UserError(
            f"device_chunk_batches is {chunk_batches!r}; allowed: a whole number >= 1 or null"
        )


def check_batch_size(settings, key, n_train):
    """Raise UserError unless settings[key] is a number of images that a minibatch can have."""
    batch_size = settings[key]
    if not isinstance(batch_size, int) or not 1 <= batch_size <= n_train:
        raise UserError(
            f"{key} is {batch_size}; allowed: 1 to {n_train}, the number of training examples"
        )


def expected_arrays(dataset, settings, float_x):
    """Return {name: (shape, dtype)} of the parameters of settings["model"], in the model's order.

    Raises UserError if the model cannot have images of that size.
    """
    parameters = load_model(settings["model"]).initial_parameters(dataset, settings, float_x)
    return {name: (array.shape, array.dtype) for name, array in parameters.items()}


def check_parameters(parameters, expected, what="what is given does not fit the model"):
    """Raise UserError unless ``parameters`` (dict of name -> array) are the ``expected_arrays``."""
    if list(parameters) != list(expected):
        names = ", ".join(parameters) or "no arrays"
        raise UserError(f"{what}: it holds {names}, not {', '.join(expected)}")
    for name, (shape, dtype) in expected.items():
        array = parameters[name]
        if array.shape != shape or array.dtype != dtype:
            raise UserError(f"{what}: {name} is {array.shape} {array.dtype}, not {shape} {dtype}")


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
