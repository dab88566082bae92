"""Conjugate gradients: the full gradient on every device, and the whole fit, against the oracle."""

import numpy as np
import oracle
import pytest
from conftest import MemoryCheckpoint, make_dataset
from scipy.optimize import fmin_cg

from msgd.config import complete_experiment
from msgd.errors import UserError
from msgd.models import DEVICES, load_backend
from msgd.models.logistic_cg import model
from msgd.training.conjugate_gradient import train

PENALTIES = {"l1": 0.0, "l2": 0.02}


def make_backend(device, dataset, parameters, float_x=np.float64, chunk_batches=None, **changes):
    settings = complete_experiment({"model": "logistic_cg", "batch_size": 10, **changes})
    backend = load_backend("logistic_cg", device)
    return backend(dataset, parameters, settings, float_x, chunk_batches), settings


def oracle_cost_and_gradient(dataset, parameters, batch_size=10):
    """The mean over whole minibatches, as published: of their costs and of their gradients."""
    x, y = oracle.pixels(dataset.train_x), dataset.train_y
    batches = [slice(i, i + batch_size) for i in range(0, len(x) - batch_size + 1, batch_size)]
    costs = [oracle.logistic_regression_cost(parameters, x[b], y[b], **PENALTIES) for b in batches]
    gradients = [
        oracle.logistic_regression_gradients(parameters, x[b], y[b], **PENALTIES) for b in batches
    ]
    return np.mean(costs), [np.mean(arrays, axis=0) for arrays in zip(*gradients, strict=True)]


@pytest.mark.parametrize("chunk_batches", [None, 1, 3])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("float_x", "tolerance"), [(np.float32, 5e-6), (np.float64, 1e-13)])
def test_the_full_gradient_agrees_with_the_oracle(device, float_x, tolerance, chunk_batches):
    dataset = make_dataset(n_train=47, n_classes=4)
    random = np.random.RandomState(2)
    parameters = {
        "weights": random.normal(size=(9, 4)).astype(float_x),
        "bias": random.normal(size=4).astype(float_x),
    }
    backend, _ = make_backend(device, dataset, parameters, float_x, chunk_batches, **PENALTIES)
    cost, gradient = backend.cost_and_gradient()
    before = [array.astype(np.float64) for array in parameters.values()]
    expected_cost, expected = oracle_cost_and_gradient(dataset, before)
    assert abs(cost - expected_cost) <= tolerance * expected_cost
    for found, array in zip(gradient.values(), expected, strict=True):
        assert found.dtype == float_x
        assert np.linalg.norm(found - array) <= tolerance * np.linalg.norm(array)


@pytest.mark.parametrize("device", DEVICES)
def test_a_fit_follows_scipy_on_the_oracle(device):
    dataset = make_dataset(n_train=47, n_valid=30, n_classes=3)
    settings = complete_experiment({"model": "logistic_cg"})
    zeros = model.initial_parameters(dataset, settings, np.float64)
    backend, settings = make_backend(device, dataset, zeros, n_epochs=6, **PENALTIES)
    checkpoint = MemoryCheckpoint()
    result = train(backend, dataset, settings, checkpoint)

    def unflatten(theta):
        return [theta[:27].reshape(9, 3), theta[27:]]

    counts = []

    def count(theta):
        predicted = oracle.logistic_regression_predict(
            unflatten(theta), oracle.pixels(dataset.valid_x)
        )
        counts.append(int((predicted != dataset.valid_y).sum()))

    fmin_cg(
        lambda theta: oracle_cost_and_gradient(dataset, unflatten(theta))[0],
        np.zeros(30),
        lambda theta: np.concatenate(
            [a.ravel() for a in oracle_cost_and_gradient(dataset, unflatten(theta))[1]]
        ),
        maxiter=6,
        callback=count,
        disp=False,
    )
    assert [row["validation_errors"] for row in result.history] == counts
    assert len(counts) == 6
    assert result.history[-1]["cost"] < result.history[0]["cost"]
    assert result.stopped_by == "n_epochs"
    assert checkpoint.snapshots == [0, 1, 2, 3, 4, 6, 6]
    summary = result.summary()
    assert summary["validation_errors"] == min(counts)
    assert summary["best_iteration"] == counts.index(min(counts)) + 1


def test_convergence_is_told():
    dataset = make_dataset(n_train=47, n_classes=3)
    zeros = model.initial_parameters(dataset, {}, np.float64)
    backend, settings = make_backend("cpu", dataset, zeros, n_epochs=500, l2=1.0)
    result = train(backend, dataset, settings, MemoryCheckpoint())
    assert result.stopped_by == "convergence"
    assert result.iterations_run < 500


def test_keys_of_minibatch_sgd_are_refused():
    with pytest.raises(UserError, match="learning_rate is not a known key"):
        complete_experiment({"model": "logistic_cg", "learning_rate": 0.1})
