"""The plain loops of every model: judged by the oracles, and the fast CPU twins judged by them.

The bounds are tighter than those of the contract that every backend keeps, contract.py.
"""

import sys
import types

import numpy as np
import oracle
import oracle_lenet
import pandas as pd
import pytest
from conftest import as_triple, make_dataset, save_npz

from msgd.config import complete_experiment
from msgd.data.unpickle import unpickle
from msgd.errors import UserError
from msgd.evaluation.score import score_run
from msgd.files import read_json
from msgd.models import load_backend, load_model
from msgd.provenance import is_made_by_this_source
from msgd.source import PACKAGE
from msgd.training.run import run_training
from msgd.training.snapshots import load_parameters

FLOATS = {"float32": np.float32, "float64": np.float64}
PENALTIES = {"l1": 0.01, "l2": 0.02, "lp": 0.03, "p": 1.5}
CASES = {
    "lr": {"model": "logistic_regression"},
    "lr, penalties": {"model": "logistic_regression", **PENALTIES},
    "mlp": {"model": "mlp", "n_hidden": 5},
    "mlp, sigmoids": {"model": "mlp", "n_hidden": [4, 6], "activation": "sigmoid", "l2": 0},
    "mlp, penalties": {"model": "mlp", "n_hidden": [7, 3], **PENALTIES},
    "lenet": {"model": "lenet", "nkerns": [2, 3], "filter_size": 3, "n_hidden": 4},
    "lenet, penalties": {
        "model": "lenet",
        "nkerns": [3, 2],
        "filter_size": 2,
        "n_hidden": 4,
        "pool_size": 1,
        **PENALTIES,
    },
    "lenet, sigmoids": {
        "model": "lenet",
        "nkerns": [3],
        "filter_size": 2,
        "pool_size": 3,
        "n_hidden": [4, 3],
        "activation": "sigmoid",
    },
}
PLAIN = ["lr", "mlp", "lenet"]


class Oracle:
    """The cost and gradients of a model: from a list of arrays, float64 images and labels."""

    def __init__(self, settings, dataset):
        self.settings, self.shape = settings, dataset.image_shape
        self.penalties = {name: settings[name] for name in ("l1", "l2", "lp", "p")}

    def ask(self, what, parameters, x, y):
        """Return ``what``: "cost" or "gradients"."""
        if self.settings["model"] == "lenet":
            images = x.reshape(-1, *self.shape)
            return getattr(oracle_lenet, what)(parameters, images, y, self.settings)
        # Logistic regression is a multilayer perceptron without a hidden layer.
        more = {"kind": self.settings.get("activation"), **self.penalties}
        return getattr(oracle, f"mlp_{what}")(parameters, x, y, **more)


def settings_of(case, **changes):
    return complete_experiment({**CASES[case], "batch_size": 6, **changes})


def toy(float_x):
    """26 training images: four minibatches of 6, a tail of 2."""
    return make_dataset(26, 15, 15, (11, 10), 3, "uint8" if float_x == np.float32 else "float64")


def random_parameters(dataset, settings, float_x):
    """The initial parameters, but with nothing at zero."""
    random = np.random.RandomState(5)
    initial = load_model(settings["model"]).initial_parameters(dataset, settings, np.float64)
    return {
        name: (array + 0.3 * random.normal(size=array.shape)).astype(float_x)
        for name, array in initial.items()
    }


def make_backend(device, dataset, settings, float_x, parameters=None):
    if parameters is None:
        model = load_model(settings["model"])
        parameters = model.initial_parameters(dataset, settings, float_x)
    return load_backend(settings["model"], device)(dataset, parameters, settings, float_x)


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def as_list(parameters):
    return [array.astype(np.float64) for array in parameters.values()]


@pytest.mark.parametrize("float_name", FLOATS)
@pytest.mark.parametrize("case", CASES)
def test_a_step_agrees_with_the_oracle(case, float_name):
    """Subtracting the step rounds a parameter by half a unit; its gradient has a few roundings."""
    float_x, rate = FLOATS[float_name], 0.5
    eps = np.finfo(float_x).eps
    dataset, settings = toy(float_x), settings_of(case, learning_rate=rate)
    parameters = random_parameters(dataset, settings, float_x)
    backend = make_backend("reference", dataset, settings, float_x, parameters)
    (cost,) = backend.train(0, 1)

    oracles, before = Oracle(settings, dataset), as_list(parameters)
    rows = oracle.pixels(dataset.train_x[:6]), dataset.train_y[:6]
    expected_cost = oracles.ask("cost", before, *rows)
    assert abs(cost - expected_cost) <= 8 * eps * expected_cost
    after, gradients = backend.get_parameters(), oracles.ask("gradients", before, *rows)
    assert list(after) == list(parameters)
    for array, old, gradient in zip(after.values(), before, gradients, strict=True):
        assert array.dtype == float_x
        step = rate * np.linalg.norm(gradient)
        error = np.linalg.norm(array - (old - rate * gradient))
        assert error <= eps * (np.linalg.norm(old) + 16 * step)
        assert step > 0


@pytest.mark.parametrize("float_name", FLOATS)
@pytest.mark.parametrize("case", PLAIN)
def test_ten_steps_follow_the_oracle_over_an_epoch_edge(case, float_name):
    float_x, rate = FLOATS[float_name], 0.3
    dataset, settings = toy(float_x), settings_of(case, learning_rate=rate)
    parameters = random_parameters(dataset, settings, float_x)
    backend = make_backend("reference", dataset, settings, float_x, parameters)
    costs = np.concatenate([backend.train(0, 3), backend.train(3, 10)])

    oracles, expected = Oracle(settings, dataset), as_list(parameters)
    x, y = oracle.pixels(dataset.train_x), dataset.train_y
    tolerance = 10 * np.finfo(float_x).eps  # a unit in the last place for every step
    for step, cost in enumerate(costs):
        rows = slice(step % 4 * 6, step % 4 * 6 + 6)
        expected_cost = oracles.ask("cost", expected, x[rows], y[rows])
        assert abs(cost - expected_cost) <= tolerance * expected_cost
        for array, gradient in zip(
            expected, oracles.ask("gradients", expected, x[rows], y[rows]), strict=True
        ):
            array -= rate * gradient
    for found, array in zip(backend.get_parameters().values(), expected, strict=True):
        assert relative(found, array) <= tolerance


PUBLISHED = {"logistic_regression": 3, "mlp": 30, "lenet": 2}


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_fast_twin_follows_the_reference_at_the_published_sizes(model):
    settings = complete_experiment({"model": model})
    n_batches = PUBLISHED[model]
    dataset = make_dataset(n_batches * settings["batch_size"], 600, 20, (28, 28), 10)
    follow(dataset, settings, n_batches)


def follow(dataset, settings, n_batches):
    """Train on both devices from the same start; every step may cost a unit in the last place.

    A bias may be small by cancellation, so all parameters are measured together.
    """
    found = {}
    for device in ("reference", "cpu"):
        backend = make_backend(device, dataset, settings, np.float64)
        costs = backend.train(0, n_batches)
        theta = np.concatenate([array.ravel() for array in backend.get_parameters().values()])
        found[device] = costs, theta, backend.count_errors("valid")
    (costs, theta, errors), (twins_costs, twins_theta, twins_errors) = found.values()
    eps = np.finfo(np.float64).eps
    assert relative(twins_theta, theta) <= n_batches * eps
    # A cost is a sum over the images of a minibatch, each rounded once, beside the parameters'.
    rounding = (n_batches + settings["batch_size"]) * eps
    np.testing.assert_allclose(twins_costs, costs, rtol=rounding)
    assert twins_errors == errors


@pytest.mark.epochs
@pytest.mark.parametrize("model", PUBLISHED)
def test_the_fast_twin_follows_the_reference_over_an_epoch_of_mnist(mnist, model):
    settings = complete_experiment({"model": model})
    follow(mnist, settings, {"logistic_regression": 83, "mlp": 2500, "lenet": 10}[model])


@pytest.mark.parametrize("case", ["lr, penalties", "mlp", "lenet"])
def test_a_whole_run_by_the_reference_is_the_twins_to_rounding(case, tmp_path):
    save_npz(tmp_path / "toy.npz", as_triple(make_dataset(60, 40, 30, (10, 10), 3)))
    unpickle(tmp_path / "toy.npz", tmp_path / "data", "float64")
    settings = settings_of(case, n_epochs=6, learning_rate=0.02)
    states, found = tmp_path / "states", {}
    for device in ("cpu", "reference"):
        folder = tmp_path / "run" / device
        run_training(tmp_path / "data", folder, settings, device, "float64", 1, states=states)
        score_run(tmp_path / "data", folder, device, 1)
        history = pd.read_csv(folder / "history.csv")
        costs = history.pop("cost").to_numpy()
        best = load_parameters(folder / "best_parameters.npz")
        found[device] = costs, history.to_csv(), read_json(folder / "score.json"), best
        training, provenance = (
            read_json(folder / f"{name}.json") for name in ("training", "provenance")
        )
        assert training["backend"] == provenance["device"] == device
        assert is_made_by_this_source(provenance["code"], settings["model"], device)
    assert len(list(states.iterdir())) == 2, "states of one device are not another's"
    (costs, history, score, best), (twins_costs, *twins) = found["reference"], found["cpu"]
    assert [history, score] == twins[:2]
    assert "best_validation_errors" in history
    np.testing.assert_allclose(costs, twins_costs, rtol=1e-12)
    for name, array in best.items():
        assert relative(array, twins[2][name]) <= 1e-12


def test_a_model_with_no_more_than_a_reference_says_so(monkeypatch):
    room = types.ModuleType("msgd.models.new")
    room.__path__ = []  # a folder without files
    monkeypatch.setitem(sys.modules, "msgd.models.new", room)
    with pytest.raises(UserError, match=r"new has no cpu\.py yet; backend: reference runs it"):
        load_backend("new", "cpu")


@pytest.mark.parametrize(
    ("model", "most"), [("logistic_regression", 55), ("mlp", 95), ("lenet", 165)]
)
def test_a_reference_is_short(model, most):
    """It is what is read first; what makes it longer belongs in the fast twins."""
    text = (PACKAGE / "models" / model / "reference.py").read_text()
    assert len(text.splitlines()) <= most
