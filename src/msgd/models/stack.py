"""Stacks: layers that learn one after the other without labels, and then together as a classifier.

A stack trains by the Backends of other models. Each of its layers is trained by one that learns
without labels, on what the layers below, which are finished, make of the training images; and all
of them, with a softmax above, by the multilayer perceptron. What the layers below make is computed
once, when a layer begins, and not for every minibatch.
"""

import dataclasses

import numpy as np

from msgd.errors import UserError
from msgd.models import load_model
from msgd.models.interface import check_batch_size


class Stack:
    """A stack on a device; see msgd.models.interface.Classifier.

    A room's file for the device adds ``layer_backend`` and ``classifier_backend``, the Backends of
    that device, and ``represent``, a static method as msgd.models.represent has it. Its model.py
    says what they are given: ``layer_settings(settings, number)``, of a layer counted from 1, and
    ``classifier_settings(settings)``.

    The parameters are the classifier's in every stage. The visible biases of the layer that is
    being trained are a part of its state; when it is finished nothing asks for them.
    """

    def __init__(self, dataset, parameters, settings, float_x, chunk_batches=None):
        self.dataset, self.settings, self.float_x = dataset, settings, float_x
        self.chunk_batches = chunk_batches
        self.model = load_model(settings["model"])
        self.classifier = self.classifier_backend(
            dataset, parameters, self.model.classifier_settings(settings), float_x, chunk_batches
        )
        self.layer, self.names = None, ()  # the one that is being trained; of its parameters

    def begin(self, stage):
        """See msgd.models.interface.Backend.begin."""
        stages = self.model.stages(self.settings)
        parameters = self.get_parameters()
        self.layer = None  # and its images, to leave room for those of the next one
        self.classifier.set_parameters(parameters)
        if stage == stages[-1]:
            self.classifier.begin(stage)
        else:
            self._begin_layer(1 + stages.index(stage), parameters)
            self.layer.begin(stage)

    def _begin_layer(self, number, parameters):
        """Make ``layer``, the Backend of layer ``number``, counted from 1, with ``parameters``.

        Raises UserError if there are too few images for a minibatch: who predicts has few.
        """
        check_batch_size(self.settings, "pretraining_batch_size", len(self.dataset.train_x))
        arrays = [*parameters.values()]
        layers = list(zip(arrays[::2], arrays[1::2], strict=True))
        dataset, (weights, bias) = self.dataset, layers[number - 1]
        if number > 1:
            images = self.represent(dataset, layers[: number - 1], self.float_x)
            dataset = _with_images(dataset, images)
        self.names = f"weights_{number}", f"bias_{number}"
        self.layer = self.layer_backend(
            dataset,
            _of_layer(weights, bias, np.zeros(len(weights), self.float_x)),
            self.model.layer_settings(self.settings, number),
            self.float_x,
            self.chunk_batches,
        )

    def train(self, first, last):
        """See msgd.models.interface.Backend.train."""
        return (self.layer or self.classifier).train(first, last)

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        parameters = self.classifier.get_parameters()
        if self.layer:
            weights, hidden_bias, _ = self.layer.get_parameters().values()
            parameters |= zip(self.names, (weights, hidden_bias), strict=True)
        return parameters

    def set_parameters(self, parameters):
        """See msgd.models.interface.Backend.set_parameters."""
        self.classifier.set_parameters(parameters)
        if self.layer:
            *_, visible_bias = self.layer.get_parameters().values()
            arrays = (parameters[name] for name in self.names)
            self.layer.set_parameters(_of_layer(*arrays, visible_bias))

    def get_state(self):
        """See msgd.models.interface.Backend.get_state: of a layer with its visible biases."""
        if not self.layer:
            return self.classifier.get_state()
        visible_bias = self.layer.get_parameters()["visible_bias"]
        return {"visible_bias": visible_bias, **self.layer.get_state()}

    def set_state(self, state):
        """See msgd.models.interface.Backend.set_state."""
        if not self.layer:
            self.classifier.set_state(state)
            return
        if list(state) != list(self.get_state()):
            raise UserError(f"the state holds {list(state)}, not {list(self.get_state())}")
        visible_bias, *_ = state.values()
        self.layer.set_parameters({**self.layer.get_parameters(), "visible_bias": visible_bias})
        self.layer.set_state(
            {name: array for name, array in state.items() if name != "visible_bias"}
        )

    def count_errors(self, split):
        """See msgd.models.interface.Classifier.count_errors."""
        return self._whole().count_errors(split)

    def predict(self, split):
        """See msgd.models.interface.Classifier.predict."""
        return self._whole().predict(split)

    def _whole(self):
        """Return the classifier, with the parameters as they are."""
        if self.layer:
            self.classifier.set_parameters(self.get_parameters())
        return self.classifier


def _of_layer(weights, hidden_bias, visible_bias):
    """Return the parameters of a layer on its own."""
    return {"weights": weights, "hidden_bias": hidden_bias, "visible_bias": visible_bias}


def _with_images(dataset, images):
    """Return ``dataset``, a Dataset, with ``images`` (N, n_units) floatX in the place of train_x.

    They are made read-only, as arrays of files are, for which kernels are compiled. The other
    splits, which no layer asks for, are a single image each.
    """
    images.flags.writeable = False
    others = {f"{split}_x": images[:1] for split in ("valid", "test")}
    others |= {f"{split}_y": dataset.train_y[:1] for split in ("valid", "test")}
    shape = 1, images.shape[1]
    return dataclasses.replace(dataset, train_x=images, image_shape=shape, **others)
