"""Digests of short trainings, and as a program of its own their JSON.

``python tests/digests.py float32 cpu mlp lenet`` is what test_determinism.py runs as if on other
processors. The first word is floatX, the second the device; each model named after them is trained
to its end in several ways, of which none may change a bit: with other numbers of threads, or on the
simulator with its threads in another order, once more, and killed and gone on with. History, last
and best parameters, and predictions are hashed.
"""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")

import numba
import numpy as np
import toy
from conftest import MemoryCheckpoint, make_dataset
from killing import is_killed
from numba import njit

from msgd.kernels.vectors import fma, load, store
from msgd.models import CLASSIFIERS, MODELS, STACKS, UNSUPERVISED, load_model, load_trainer
from msgd.training.checkpoint import Checkpoint, State

SGD = {"learning_rate": 0.1, "n_epochs": 2}
L2 = {"l2": 0.001}
FEW = {"batch_size": 2, "n_epochs": 2}
# Layers of more than two blocks or panels, so that loops over whole ones and over rests are run.
WIDE = {
    "mlp": [{"n_hidden": [70, 20]}],
    "lenet": [{"nkerns": [4, 6], "filter_size": 3, "n_hidden": 500}],
    "da": [{"n_hidden": 137}],
    "ca": [{"n_hidden": 137}],
    "rbm": [{"n_hidden": 137}, {"n_hidden": 137, "persistent": False, "gibbs_steps": 3}],
    "sda": [{"n_hidden": [137, 73]}],
    "dbn": [{"n_hidden": [137, 73]}],
}


class Case:
    """A short training of the model ``name`` on a device, with changes of its toy settings."""

    def __init__(self, name, device, float_x, dataset, changes):
        self.name, self.device, self.float_x, self.dataset = name, device, float_x, dataset
        self.settings = toy.settings_of(name, **changes)

    def train(self, checkpoint):
        """Train to the end; return the digest of all that comes out."""
        of_model = self.dataset, self.settings
        parameters = load_model(self.name).initial_parameters(*of_model, self.float_x)
        backend = toy.make_backend(self.device, *of_model, parameters)
        result = load_trainer(self.name)(backend, *of_model, checkpoint)
        content = hashlib.sha256(json.dumps(result.history).encode())
        predicted = [backend.predict("test")] if self.name in CLASSIFIERS else []
        last, best = backend.get_parameters(), result.best_parameters
        for array in (*last.values(), *best.values(), *predicted):
            content.update(array.tobytes())
        return content.hexdigest()

    def train_killed(self):
        """The same of a training that is killed after its first state and goes on from there."""
        with tempfile.TemporaryDirectory() as folder:
            snapshots, states = Path(folder, "snapshots"), Path(folder, "states")

            def train():
                return self.train(Checkpoint(snapshots, states))

            assert is_killed(State, "to_bytes", 2, train)
            assert len([*states.glob("*.state")]) == 1
            return train()

    def digests(self):
        """Return {way: digest}."""
        found = {}
        for way, prepared in WAYS[self.device].items():
            with prepared():
                found[way] = self.train(MemoryCheckpoint())
        return {**found, "killed": self.train_killed()}


@contextlib.contextmanager
def on_threads(n_threads):
    """Let CPU kernels run on so many threads; NUMBA_NUM_THREADS must be as many at least."""
    before = numba.get_num_threads()
    numba.set_num_threads(n_threads)
    try:
        yield
    finally:
        numba.set_num_threads(before)


@contextlib.contextmanager
def in_order(order):
    """Let the simulator run its threads in an order of tests/simulator.py."""
    before = os.environ.get("MSGD_SIMULATOR_ORDER", "forward")
    os.environ["MSGD_SIMULATOR_ORDER"] = order
    try:
        yield
    finally:
        os.environ["MSGD_SIMULATOR_ORDER"] = before


TWICE = {"once": contextlib.nullcontext, "again": contextlib.nullcontext}
WAYS = {
    "cpu": TWICE | {f"{n} threads": partial(on_threads, n) for n in (1, 2, 4)},
    "cuda": TWICE | {f"order {order}": partial(in_order, order) for order in ("reverse", "7")},
    "reference": TWICE,
}


def wide_cases(name, device, float_x):
    """Return the Cases of a model, of 20 minibatches or more."""
    dataset = make_dataset(200, 60, 20, (14, 14), 10)
    changes = SGD if MODELS[name] == "loop" else {"n_epochs": 8}
    changes = changes if name in UNSUPERVISED or MODELS[name] != "loop" else {**changes, **L2}
    wide = WIDE.get(name, [{}])
    return [Case(name, device, float_x, dataset, {"batch_size": 20, **changes, **w}) for w in wide]


def small_cases(name, device, float_x):
    """Return the Cases of a model at sizes for the simulator, plain kernels and fast ones."""
    small = [(toy.SHAPE, {})]
    if name in STACKS:
        small = [(toy.SHAPE, {"pretraining_batch_size": 2, "pretraining_epochs": 1})]
    if name in toy.FAST_LAYERS and float_x == np.float32:
        small.append((toy.FAST_SHAPE, toy.FAST_LAYERS[name]))
    return [
        Case(name, device, float_x, make_dataset(6, 4, 4, shape, 3), {**FEW, **changes})
        for shape, changes in small
    ]


@njit
def multiply_and_add(x, v, out):
    store(out, 0, fma(x, load(v, 0), load(out, 0)))


def instructions():
    """Return which of some instructions and registers the kernels are made of here."""
    multiply_and_add(np.float32(1), np.ones(16, np.float32), np.ones(16, np.float32))
    (assembly,) = multiply_and_add.inspect_asm().values()
    return [word for word in ("vfmadd", "zmm", "ymm") if word in assembly]


def main(float_name, device, *names):
    """Print a line of JSON: {case: {way: digest}}, and what the kernels are made of."""
    float_x = np.dtype(float_name).type
    found = {}
    for name in names:
        for number, case in enumerate(wide_cases(name, device, float_x), start=1):
            found[f"{name} {number}"] = case.digests()
    print(json.dumps({"digests": found, "instructions": instructions()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
