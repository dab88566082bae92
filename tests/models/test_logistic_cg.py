"""Conjugate gradients: the full gradient on every device, and the whole fit, against the oracle."""

import dataclasses

import numpy as np
import pytest
import toy
from conftest import MemoryCheckpoint, make_dataset
from contract import Contract, Sizes, as_images
from scipy.optimize import fmin_cg
from test_logistic_regression import ADAPTER, PENALISED

from msgd.config import complete_experiment
from msgd.errors import UserError
from msgd.models import DEVICES
from msgd.models.logistic_cg import model
from msgd.training.conjugate_gradient import train

PENALTIES = {"l1": 0.0, "l2": 0.02, "lp": 0.01, "p": 3}  # what has a derivative everywhere
SIZES = [
    Sizes(10, (3, 3), 4, PENALISED),
    Sizes(1, (1, 7), 2, {}),
    Sizes(17, (2, 5), 11, {"lp": 0.03, "p": 3}),
]


class TestContract(Contract):
    """The full gradient is the mean of minibatches' gradients: the oracle is the other model's."""

    adapter = dataclasses.replace(
        ADAPTER,
        name="logistic_cg",
        sizes={"cpu": SIZES, "cuda": SIZES},
        tolerances={"float32": 5e-6, "float64": 1e-13},
        kinds=(("float32", "uint8"), ("float64", "uint8")),
    )


@pytest.mark.parametrize("device", DEVICES)
def test_a_fit_follows_scipy_on_the_oracle(device):
    dataset = make_dataset(n_train=47, n_valid=30, n_classes=3)
    settings = toy.settings_of("logistic_cg", batch_size=10, n_epochs=6, **PENALTIES)
    zeros = model.initial_parameters(dataset, settings, np.float64)
    backend = toy.make_backend(device, dataset, settings, zeros)
    checkpoint = MemoryCheckpoint()
    result = train(backend, dataset, settings, checkpoint)

    def unflatten(theta):
        return [theta[:27].reshape(9, 3), theta[27:]]

    counts = []

    def count(theta):
        images = as_images(dataset.valid_x, dataset.image_shape)
        predicted = ADAPTER.logits(unflatten(theta), images, settings).argmax(axis=1)
        counts.append(int((predicted != dataset.valid_y).sum()))

    def expected(theta):
        return TestContract().expected_of(dataset, settings, unflatten(theta))

    fmin_cg(
        lambda theta: expected(theta)[0],
        np.zeros(30),
        lambda theta: np.concatenate([array.ravel() for array in expected(theta)[1]]),
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


def test_convergence_is_reported():
    dataset = make_dataset(n_train=47, n_classes=3)
    settings = toy.settings_of("logistic_cg", batch_size=10, n_epochs=500, l2=1.0)
    zeros = model.initial_parameters(dataset, settings, np.float64)
    backend = toy.make_backend("cpu", dataset, settings, zeros)
    result = train(backend, dataset, settings, MemoryCheckpoint())
    assert result.stopped_by == "convergence"
    assert result.iterations_run < 500


def test_keys_of_minibatch_sgd_are_refused():
    with pytest.raises(UserError, match="learning_rate is not a known key"):
        complete_experiment({"model": "logistic_cg", "learning_rate": 0.1})
