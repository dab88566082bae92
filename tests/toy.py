"""Toy settings, once: the smallest network of each model that has every kind of its layers."""

import conftest as _  # noqa: F401 (before msgd: it sees to Numba and to the simulator)
import numpy as np

from msgd.config import complete_experiment
from msgd.models import (
    CLASSIFIERS,
    DEVICES,
    MODELS,
    UNSUPERVISED,
    load_backend,
    load_model,
)

PRETRAINING = {"pretraining_epochs": 2, "pretraining_batch_size": 3}
# Layers, where a model has any to choose. A model without an entry trains with its defaults.
LAYERS = {
    "mlp": {"n_hidden": [5, 4]},
    "lenet": {"nkerns": [2, 3], "filter_size": 2, "n_hidden": 4},
    "sda": {"n_hidden": [5, 4], "corruption": 0.3, **PRETRAINING},
    "dbn": {"n_hidden": [5, 4], **PRETRAINING},
    **{name: {"n_hidden": 5} for name in UNSUPERVISED},
}
# The same of what the fast CUDA kernels can train, on images of FAST_SHAPE.
FAST_LAYERS = {
    "mlp": {"n_hidden": 6},
    "lenet": {"nkerns": [5, 10], "filter_size": 5, "n_hidden": 12},
}
FAST_SHAPE = (16, 20)
SHAPE = (7, 7)  # the smallest images that such a LeNet can have: 7 x 7, 3 x 3, 1 x 1

SGD_MODELS = [name for name in CLASSIFIERS if MODELS[name] == "loop"]


BACKENDS = [(name, device) for name in MODELS for device in DEVICES]


def settings_of(name, **changes):
    """Return the settings of a toy of the model ``name``, those in ``changes`` changed."""
    return complete_experiment({"model": name, **LAYERS.get(name, {}), **changes})


def published_settings(name, **changes):
    """Return the published settings of the model ``name``, those in ``changes`` changed."""
    return complete_experiment({"model": name, **changes})


def words_of(name, **changes):
    """Return the words by which the msgd program gets the toy's settings, in any order."""
    words = {"model": name, **LAYERS.get(name, {}), **changes}
    return [f"{key}={value}" for key, value in words.items()]


def random_parameters(dataset, settings, float_x, noise=0.1):
    """Return the initial parameters with noise on all of them, so that none is 0."""
    random = np.random.RandomState(5)
    initial = load_model(settings["model"]).initial_parameters(dataset, settings, np.float64)
    return {
        name: (array + random.normal(0, noise, array.shape)).astype(float_x)
        for name, array in initial.items()
    }


def make_backend(device, dataset, settings, parameters, chunk_batches=None):
    """Return the Backend of a device with ``parameters``, whose floatX is theirs."""
    float_x = next(iter(parameters.values())).dtype.type
    backend = load_backend(settings["model"], device)
    return backend(dataset, parameters, settings, float_x, chunk_batches)
