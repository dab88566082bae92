"""What the reference backends of all models share; see msgd.models.interface.Backend."""

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.arguments import descent_of
from msgd.kernels.cpu import first_argmax
from msgd.models.interface import (
    OneStage,
    check_parameters,
    check_parts,
    count_mistakes,
    expected_arrays,
    n_batches,
)


class ReferenceBackend(OneStage):
    """A model in plain loops, one minibatch after the other, on one thread of the CPU.

    A room's reference.py adds a compiled function as a static method: ``train_minibatch(x, y,
    *network, descent)``, which takes one step of SGD and returns the cost before it. x:
    (n, *image_shape) floatX; y: (n,) int32. ``build_network()`` returns the arguments ``network``;
    the parameters among them are the arrays of ``self.parameters``.
    """

    def __init__(self, dataset, parameters, settings, float_x, chunk_batches=None):
        check_parts(dataset, settings, float_x, chunk_batches)
        self.expected = expected_arrays(dataset, settings, float_x)
        self.dataset = dataset
        self.settings = settings
        self.float_x = float_x
        self.batch_size = settings["batch_size"]
        self.n_train_batches = n_batches(len(dataset.train_x), self.batch_size)
        self.descent = descent_of(settings, float_x)
        self.parameters = {name: np.empty(*array) for name, array in self.expected.items()}
        self.set_parameters(parameters)
        self.image_shape = (dataset.n_features,)
        self.network = self.build_network()

    def build_network(self):
        """Return the arguments of the room's functions: here, the parameters in their order."""
        return tuple(self.parameters.values())

    def train(self, first, last):
        """See msgd.models.interface.Backend.train."""
        costs = np.empty(last - first, self.float_x)
        for iteration in range(first, last):
            x, y = self.minibatch(iteration)
            costs[iteration - first] = self.train_minibatch(x, y, *self.network, self.descent)
        return costs

    def minibatch(self, iteration):
        """Return the images and labels of an iteration of training."""
        return self._examples("train", iteration % self.n_train_batches * self.batch_size)

    def _examples(self, split, start):
        """Return (x, y) of the examples start..start+B-1 of ``split``, pixels scaled to floatX."""
        x, y = self.dataset.split(split)
        rows = slice(start, start + self.batch_size)
        pixels = x[rows].astype(self.float_x) * self.float_x(self.dataset.pixel_scale)
        self.dataset.release_pages(split)  # the file may be larger than the memory
        return pixels.reshape(-1, *self.image_shape), y[rows]

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        return {name: array.copy() for name, array in self.parameters.items()}

    def set_parameters(self, parameters):
        """See msgd.models.interface.Backend.set_parameters."""
        check_parameters(parameters, self.expected)
        for name, array in parameters.items():
            self.parameters[name][...] = array


class ReferenceClassifier(ReferenceBackend):
    """A classifier in plain loops: its room adds ``logits(x, *network)``, as a static method too.

    That returns the logits of every image, (n, C).
    """

    def count_errors(self, split):
        """See msgd.models.interface.Classifier.count_errors."""
        return count_mistakes(self.predict(split), self.dataset.split(split)[1], self.batch_size)

    def predict(self, split):
        """See msgd.models.interface.Classifier.predict."""
        _, labels = self.dataset.split(split)
        predicted = np.empty(len(labels), np.int32)
        for start in range(0, len(labels), self.batch_size):
            x, y = self._examples(split, start)
            _predict(self.logits(x, *self.network), predicted[start : start + len(y)])
        return predicted


@njit(**options.CPU_ENTRY)
def _predict(logits, predicted):
    """Overwrite predicted (n,) int32 with the first class of the largest of logits (n, C)."""
    for i in range(predicted.shape[0]):
        predicted[i] = first_argmax(logits[i])
