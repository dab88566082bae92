"""What the steps of a GPU day share: where they put what they find, and what they run."""

import json
import statistics
import time

import numpy as np
from common import ROOT
from gpu_day import PACKED

import msgd.kernels.options  # noqa: F401, before numba.cuda, which it sees to

MODELS = ("logistic_regression", "lenet", "mlp")  # what takes longest last
TF32 = {"arithmetic": "tf32"}  # changes of LeNet's settings


class MissingError(Exception):
    """What the step needs is not on this machine."""


class Found(dict):
    """What a step found so far, by name; kept in a file."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def __setitem__(self, name, value):
        super().__setitem__(name, value)
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps(self, indent=1, default=str))
        partial.replace(self.path)


class Day:
    """The folder of the day, and its sizes: those of the tutorials or, in a rehearsal, of toys."""

    def __init__(self, folder, is_rehearsal=False, seconds=60):
        self.folder, self.is_rehearsal = folder, is_rehearsal
        self.seconds = seconds  # until the step is ended
        self.models = MODELS[:1] if is_rehearsal else MODELS

    def dataset(self):
        """Return MNIST, or a toy."""
        if self.is_rehearsal:
            return toy_dataset()
        from msgd.data.dataset import load_dataset
        from msgd.data.unpickle import unpickle

        arrays = self.folder / "mnist"
        if not (arrays / "dataset.json").exists():
            places = [PACKED / "mnist.pkl.gz", ROOT / "results" / "downloads" / "mnist.pkl.gz"]
            archive = next((path for path in places if path.exists()), None)
            if archive is None:
                raise MissingError(
                    f"mnist.pkl.gz, sought in {places[0].parent} and {places[1].parent}"
                )
            unpickle(archive, arrays, "float32", expect_mnist=True)
        return load_dataset(arrays)

    def epochs(self, model, wanted):
        """Return how many epochs to train: ``wanted``, a dict by model, but one in a rehearsal."""
        return 1 if self.is_rehearsal else wanted[model]


def toy_dataset():
    """Return a data set of noise, 80 training images of 10 x 10 pixels in 3 classes."""
    from conftest import make_dataset

    return make_dataset(80, 40, 40, (10, 10), 3)


def settings_of(model, is_toy, **changes):
    """Return the completed settings of ``model``: the tutorials', or a toy's; some changed."""
    import toy

    if is_toy:
        return toy.settings_of(model, batch_size=20, **changes)
    return toy.published_settings(model, **changes)


def make_backend(model, device, dataset, float_name="float32", is_toy=False, **changes):
    """Return (backend, minibatches of an epoch) at the beginning of a training.

    device: one of msgd.models.DEVICES, or "cuda_plain" for the plain CUDA kernels alone; changes:
    of the settings.
    """
    settings, float_x = settings_of(model, is_toy, **changes), np.dtype(float_name).type
    return start(model, device, dataset, settings, float_x)


def make_fast_toy(model, shape=None, **changes):
    """Return the same of a toy that the fast CUDA kernels train, on noise of its own shape."""
    import toy
    from conftest import make_dataset

    dataset = make_dataset(80, 40, 40, shape or toy.FAST_SHAPE, 3)
    layers = toy.FAST_LAYERS.get(model, {})
    settings = toy.settings_of(model, batch_size=20, **{**layers, **changes})
    backend, n = start(model, "cuda", dataset, settings, np.float32)
    if backend.why_plain:
        raise RuntimeError(f"the plain kernels serve {model}: {backend.why_plain}")
    return backend, n


def start(model, device, dataset, settings, float_x):
    """Return (backend, minibatches of an epoch) with initial parameters; device: as above."""
    from msgd.models import load_backend, load_model, load_stages

    parameters = load_model(model).initial_parameters(dataset, settings, float_x)
    backend = load_backend(model, device)(dataset, parameters, settings, float_x)
    backend.begin(load_stages(settings)[0])
    return backend, len(dataset.train_x) // settings["batch_size"]


def median_seconds(work, repeats=5):
    """Return the median time of ``work()``, of which the first is not counted."""
    from numba import cuda

    seconds = []
    for _ in range(repeats + 1):
        cuda.synchronize()
        started = time.perf_counter()
        work()
        cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
