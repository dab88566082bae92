"""Made-up models of one stage or several, in NumPy: what the loop asks of a backend, as a toy.

``register(monkeypatch, folder)`` registers them for a test: "da", which learns without labels, in
the place of the model of that name, and "pretrained", which ends as a classifier. Their steps hang
on everything that a backend may keep: on the parameters, on a state beside them that is carried
from step to step within a stage, on noise drawn by stage and minibatch, and on what the stage
before left. A training that goes on from anything less than all of it comes to other numbers.
"""

import sys
import types

import numpy as np

from msgd import config, models
from msgd.models import Stage

UNITS = 3


class Backend:
    """Follows the images about with decaying noise; predicts by the nearest unit."""

    def __init__(self, dataset, parameters, settings, float_x, chunk_batches=None):
        self.dataset, self.settings, self.float_x = dataset, settings, float_x
        self.x = dataset.train_x * float_x(dataset.pixel_scale)
        self.set_parameters(parameters)
        self.calls = []

    def begin(self, stage):
        """See msgd.models.interface.Backend."""
        self.calls.append(("begin", stage.name))
        self.stage = stage
        self.seed = sum(map(ord, stage.name))
        self.velocity = self.parameters["weights"] * self.float_x(0.1)  # of the stage before

    def train(self, first, last):
        """See msgd.models.interface.Backend."""
        self.calls.append(("train", first, last))
        size = self.stage.batch_size
        per_epoch = len(self.x) // size
        costs = np.empty(last - first, self.float_x)
        for i in range(first, last):
            x = self.x[i % per_epoch * size : (i % per_epoch + 1) * size]
            noise = np.random.RandomState(self.seed + i).uniform(size=x.shape).astype(x.dtype)
            away = self.parameters["weights"] - (x * noise).mean(axis=0)
            costs[i - first] = self.float_x(self.settings["explode"]) ** i * (away**2).mean()
            self.velocity = self.velocity * self.float_x(0.5) - self.float_x(0.1) * away
            self.parameters["weights"] = self.parameters["weights"] + self.velocity
        return costs

    def get_parameters(self):
        """See msgd.models.interface.Backend."""
        return {name: array.copy() for name, array in self.parameters.items()}

    def set_parameters(self, parameters):
        """See msgd.models.interface.Backend."""
        self.parameters = {name: array.copy() for name, array in parameters.items()}

    def get_state(self):
        """See msgd.models.interface.Backend."""
        return {"velocity": self.velocity.copy()}

    def set_state(self, state):
        """See msgd.models.interface.Backend."""
        self.calls.append(("set_state", *state))
        self.velocity = state["velocity"].copy()

    def predict(self, split):
        """See msgd.models.interface.Classifier."""
        x = self.dataset.split(split)[0] * self.float_x(self.dataset.pixel_scale)
        far = ((x[:, None] - self.parameters["weights"]) ** 2).sum(axis=2)
        return far.argmin(axis=1).astype(np.int32)

    def count_errors(self, split):
        """See msgd.models.interface.Classifier."""
        return int(np.count_nonzero(self.predict(split) != self.dataset.split(split)[1]))


def initial_parameters(dataset, settings, float_x):
    """Return weights (UNITS, D), drawn by the seed."""
    random = np.random.RandomState(settings["seed"])
    return {"weights": random.uniform(size=(UNITS, dataset.n_features)).astype(float_x)}


def weight_images(parameters, image_shape):
    """Return a picture per unit, (UNITS, height, width)."""
    return parameters["weights"].reshape(-1, *image_shape)


def reconstructions(parameters, images):
    """Return the mean unit for every image, (len(images), D): recognised by its being the same."""
    return np.tile(parameters["weights"].mean(axis=0), (len(images), 1))


def two_pretrained_layers(settings):
    """Return the stages of a model that is pre-trained layer by layer and then fine-tuned."""
    n_epochs = settings["pretraining_epochs"]
    return [
        Stage("pretrain_1", n_epochs, 5, is_validated=False),
        Stage("pretrain_2", n_epochs, 10, is_validated=False),
        Stage("fine_tune", settings["n_epochs"], settings["batch_size"], is_validated=True),
    ]


HYPERPARAMETERS = {
    "da": """
learning_rate: { default: 0.1 }
batch_size: { default: 10 }
n_epochs: { default: 6 }
patience: null
patience_increase: null
improvement_threshold: null
improvement_test: null
improvement_alpha: null
validation_frequency: null
corruption: { type: number, default: 0.25, description: share of pixels set to 0 }
explode: { type: number, default: 1 , description: factor of each cost over the one before }
""",
    "pretrained": """
learning_rate: { default: 0.1 }
batch_size: { default: 20 }
n_epochs: { default: 8 }
patience: { default: 8 }
patience_increase: { default: 1.5 }
pretraining_epochs: { type: integer, default: 3, description: of a layer }
pretraining_learning_rate: { type: number, default: 0.7, description: of a layer }
explode: { type: number, default: 1 , description: factor of each cost over the one before }
""",
}


def register(monkeypatch, folder):
    """Register the models, with their rooms' settings in ``folder`` beside links to the others."""
    for room in config.MODELS_FOLDER.glob("*/hyperparameters.yaml"):
        if room.parent.name not in HYPERPARAMETERS:
            (folder / room.parent.name).symlink_to(room.parent)
    monkeypatch.setattr(config, "MODELS_FOLDER", folder)
    for name, text in HYPERPARAMETERS.items():
        (folder / name).mkdir()
        (folder / name / "hyperparameters.yaml").write_text(text)
        model = types.ModuleType(f"msgd.models.{name}.model")
        model.initial_parameters = initial_parameters
        model.weight_images = weight_images
        model.reconstructions = reconstructions
        if name == "pretrained":
            model.stages = two_pretrained_layers
        backend = types.ModuleType(f"msgd.models.{name}.cpu")
        backend.Backend = Backend
        monkeypatch.setitem(models.MODELS, name, "loop")
        for module in (model, backend):
            monkeypatch.setitem(sys.modules, module.__name__, module)


def settings_of(name, **changes):
    """Return completed settings of the model ``name``, once it is registered."""
    return config.complete_experiment({"model": name, **changes})
