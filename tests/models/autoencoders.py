"""What the tests of the auto-encoders share: settings, the oracle's steps, fingerprints."""

import hashlib

import conftest as _  # noqa: F401 (before msgd: it sees to Numba and to the simulator)
import numpy as np
import oracle

from msgd.config import experiment_schema
from msgd.kernels.uniform import fill_uniform, new_position
from msgd.models import load_backend, load_model

NAMES = ["weights", "hidden_bias", "visible_bias"]
FLOATS = {"float32": np.float32, "float64": np.float64}
# Of the costs and of the parameters after a few steps: a few roundings for each of them.
TOLERANCE = {"float32": 3e-6, "float64": 1e-13}


def settings_of(name, **changes):
    """Return the published settings of the model ``name``, those in ``changes`` changed."""
    schema = experiment_schema(name)["properties"]
    defaults = {key: entry["default"] for key, entry in schema.items() if "default" in entry}
    return {"model": name, **defaults, **changes}


def random_parameters(dataset, settings, float_x, noise=0.1):
    """Return the initial parameters with noise on all of them, so that none is 0."""
    random = np.random.RandomState(5)
    initial = load_model(settings["model"]).initial_parameters(dataset, settings, np.float64)
    return {
        name: (array + random.normal(0, noise, array.shape)).astype(float_x)
        for name, array in initial.items()
    }


def make_backend(device, dataset, settings, parameters):
    """Return the Backend of a device with ``parameters``, whose floatX is theirs."""
    float_x = parameters["weights"].dtype.type
    return load_backend(settings["model"], device)(dataset, parameters, settings, float_x)


def masks_of(settings, n_features, n):
    """Return the first n masks of a denoising auto-encoder, (n, B, D) float64; None of others."""
    if "corruption" not in settings:
        return None
    shape = settings["batch_size"], n_features
    position = new_position(load_model("da").mask_draws(n_features, settings))
    masks = []
    for _step in range(n):
        u = np.empty(shape)
        fill_uniform(position, u)
        masks.append((u < 1 - settings["corruption"]).astype(np.float64))
    return masks


def follow(dataset, settings, given, n_steps):
    """Return the oracle's costs and parameters (list) of ``n_steps`` steps from ``given``."""
    x, batch_size = oracle.pixels(dataset.train_x), settings["batch_size"]
    parameters = [array.astype(np.float64) for array in given.values()]
    masks = masks_of(settings, x.shape[1], n_steps)
    costs = []
    for step in range(n_steps):
        start = step % (len(x) // batch_size) * batch_size
        images = x[start : start + batch_size]
        corrupted = images if masks is None else masks[step] * images
        batch = parameters, images, corrupted, settings.get("contraction", 0.0)
        costs.append(oracle.autoencoder_cost(*batch))
        gradients = oracle.autoencoder_gradients(*batch)
        for array, gradient in zip(parameters, gradients, strict=True):
            array -= settings["learning_rate"] * gradient
    return costs, parameters


def check_steps(device, dataset, settings, float_name, spans):
    """Hold the costs and the parameters of a training in ``spans`` against the oracle."""
    tolerance = TOLERANCE[float_name]
    given = random_parameters(dataset, settings, FLOATS[float_name])
    backend = make_backend(device, dataset, settings, given)
    costs = np.concatenate([backend.train(*span) for span in spans])
    assert costs.dtype == FLOATS[float_name]
    expected_costs, expected = follow(dataset, settings, given, spans[-1][1])
    np.testing.assert_allclose(costs, expected_costs, rtol=tolerance)
    found = backend.get_parameters()
    assert list(found) == NAMES
    for array, right, before in zip(found.values(), expected, given.values(), strict=True):
        assert array.dtype == FLOATS[float_name]
        assert np.linalg.norm(array - right) <= tolerance * np.linalg.norm(right)
        assert np.linalg.norm(right - before) > 1000 * tolerance * np.linalg.norm(right)


def bits(*results):
    """Return the bytes of arrays, and of dicts of arrays."""
    arrays = []
    for result in results:
        arrays += result.values() if isinstance(result, dict) else [result]
    return [array.tobytes() for array in arrays]


def sha256(array):
    return hashlib.sha256(array).hexdigest()
