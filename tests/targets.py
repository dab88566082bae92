"""Print digests of short trainings as JSON: ``python tests/targets.py float32 mlp lenet``.

test_targets.py runs this as if on other processors and compares what comes out. The first word is
floatX; of each model named after it the history, the last parameters and predictions are hashed.
"""

import hashlib
import json
import os
import sys

os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")

import numpy as np
import toy
from conftest import MemoryCheckpoint, make_dataset
from numba import njit

from msgd.kernels.vectors import fma, load, store
from msgd.models import CLASSIFIERS, MODELS, load_backend, load_model, load_trainer

SGD = {"learning_rate": 0.1, "l2": 0.001, "n_epochs": 2}


def digest(name, float_x):
    """Return the digest of a training of the model ``name`` on 20 minibatches or more."""
    dataset = make_dataset(200, 60, 20, (14, 14), 10)
    changes = SGD if MODELS[name] == "loop" else {"n_epochs": 8}
    if name not in CLASSIFIERS:
        changes = {key: value for key, value in SGD.items() if key != "l2"}
    settings = toy.settings_of(name, batch_size=20, **toy.WIDER.get(name, {}), **changes)
    parameters = load_model(name).initial_parameters(dataset, settings, float_x)
    backend = load_backend(name, "cpu")(dataset, parameters, settings, float_x)
    training = load_trainer(name)(backend, dataset, settings, MemoryCheckpoint())
    content = hashlib.sha256(json.dumps(training.history).encode())
    predicted = [backend.predict("test")] if name in CLASSIFIERS else []
    for array in (*backend.get_parameters().values(), *predicted):
        content.update(array.tobytes())
    return content.hexdigest()


@njit
def multiply_and_add(x, v, out):
    store(out, 0, fma(x, load(v, 0), load(out, 0)))


def instructions():
    """Return which of some instructions and registers the kernels are made of here."""
    multiply_and_add(np.float32(1), np.ones(16, np.float32), np.ones(16, np.float32))
    (assembly,) = multiply_and_add.inspect_asm().values()
    return [word for word in ("vfmadd", "zmm", "ymm") if word in assembly]


def main(float_name, *names):
    """Print a line of JSON: the digests by model, and what the kernels are made of."""
    float_x = np.dtype(float_name).type
    found = {name: digest(name, float_x) for name in names}
    print(json.dumps({"digests": found, "instructions": instructions()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
