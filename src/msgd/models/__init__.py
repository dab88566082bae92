"""The registry of models: one room each, the same doors in every room.

``model.py`` holds the parameters, their initialisation recipe and the formulas; ``reference.py``,
``cpu.py`` and ``cuda.py`` hold a ``Backend`` each with the same public names (see
``msgd.models.interface``): the formulas in plain loops, and the two fast ones. ``cuda_plain.py``
has one more, whose kernels are plain and serve where the fast ones of ``cuda.py`` do not.
"""

import importlib
from typing import NamedTuple

from msgd.errors import UserError

# What a model runs on, each in the file of its name in the model's room.
DEVICES = ("cpu", "cuda", "reference")

# Each model with the module of msgd.training that trains it.
MODELS = {
    "logistic_regression": "loop",
    "logistic_cg": "conjugate_gradient",
    "mlp": "loop",
    "lenet": "loop",
    "da": "loop",
    "ca": "loop",
    "rbm": "loop",
    "sda": "loop",
    "dbn": "loop",
}
# Those that learn from images alone. They predict no classes, so nothing counts their errors: no
# validation, no score, no part in the selection.
UNSUPERVISED = ("da", "ca", "rbm")
# Those of them whose model.py has reconstructions(parameters, images).
AUTOENCODERS = ("da", "ca")
# Those of them whose room has samples.py, with N_STEPS and sample_chains.
SAMPLERS = ("rbm",)
CLASSIFIERS = tuple(name for name in MODELS if name not in UNSUPERVISED)
# Those of them whose layers learn without labels first; see stack.py.
STACKS = ("sda", "dbn")


class Stage(NamedTuple):
    """A part of a training: so many epochs of minibatches, all of one size.

    is_validated: whether the patience rule watches it by validation errors; if not, it runs to its
    last epoch, and the history tells its cost.
    """

    name: str
    n_epochs: int
    batch_size: int
    is_validated: bool


def load_model(name):
    """Return the module ``msgd.models.<name>.model``."""
    return importlib.import_module(f"msgd.models.{name}.model")


def load_stages(settings):
    """Return the Stages (list) of a training with ``settings``, completed hyperparameters.

    A model that is trained in several defines ``stages(settings)`` in its model.py.
    """
    model = load_model(settings["model"])
    if hasattr(model, "stages"):
        return model.stages(settings)
    is_validated = settings["model"] not in UNSUPERVISED
    return [Stage("train", settings["n_epochs"], settings["batch_size"], is_validated)]


def load_backend(name, device):
    """Return the class ``Backend`` of model ``name`` for ``device``, one of DEVICES.

    Raises UserError if the model has no such file: a new model begins with its reference.
    """
    module = f"msgd.models.{name}.{device}"
    try:
        return importlib.import_module(module).Backend
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UserError(f"{name} has no {device}.py yet; backend: reference runs it") from error


def load_trainer(name):
    """Return the function train(backend, dataset, settings, checkpoint) of model ``name``."""
    return importlib.import_module(f"msgd.training.{MODELS[name]}").train
