"""The training loop: against the oracle's published loop, and at its edges."""

import numpy as np
import oracle
import pytest
from conftest import MemoryCheckpoint, make_dataset

from msgd.config import complete_experiment
from msgd.errors import UserError
from msgd.models import load_backend
from msgd.models.logistic_regression import model
from msgd.training.loop import train


def run(dataset, device="cpu", float_x=np.float64, **changes):
    """Train logistic regression; return (Training, the iterations of the snapshots)."""
    settings = complete_experiment({"model": "logistic_regression", **changes})
    parameters = model.initial_parameters(dataset, settings, float_x)
    backend = load_backend("logistic_regression", device)(dataset, parameters, settings, float_x)
    checkpoint = MemoryCheckpoint()
    result = train(backend, dataset, settings, checkpoint)
    return result, checkpoint.snapshots


def run_oracle(dataset, **changes):
    settings = complete_experiment({"model": "logistic_regression", **changes})
    zeros = [np.zeros((dataset.n_features, dataset.n_classes)), np.zeros(dataset.n_classes)]
    data = {
        split: (oracle.pixels(dataset.split(split)[0]), dataset.split(split)[1])
        for split in ("train", "valid")
    }
    penalties = oracle.penalties_of(settings)
    return oracle.train(
        zeros,
        lambda p, x, y: oracle.logistic_regression_gradients(p, x, y, **penalties),
        oracle.logistic_regression_predict,
        lambda p, x, y: oracle.logistic_regression_cost(p, x, y, **penalties),
        data,
        settings,
    )


PENALTIES = {"l1": 0.002, "l2": 0.01, "lp": 0.003, "p": 1.5}
CASES = {
    "patience ends it mid-epoch": {"batch_size": 6, "patience": 17, "n_epochs": 50},
    "the cap ends it": {"batch_size": 6, "patience": 1000, "n_epochs": 4},
    "validations within the epoch": {
        "batch_size": 4,
        "patience": 25,
        "validation_frequency": 3,
        "n_epochs": 9,
    },
    "validations across epochs": {
        "batch_size": 20,
        "patience": 60,
        "validation_frequency": 5,
        "n_epochs": 30,
    },
    "GD, the whole set at once": {"batch_size": 46, "patience": 30, "n_epochs": 100},
    "SGD, one example at a time": {"batch_size": 1, "patience": 40, "n_epochs": 6},
    "penalties": {
        "batch_size": 6,
        "patience": 20,
        "n_epochs": 20,
        **PENALTIES,
    },
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("case", CASES)
def test_a_whole_run_agrees_with_the_published_loop(device, case):
    changes = {"learning_rate": 0.2, "patience_increase": 2, **CASES[case]}
    dataset = make_dataset(n_train=46, n_valid=50, n_test=5, shape=(2, 3), n_classes=3)
    expected = run_oracle(dataset, **changes)
    result, _ = run(dataset, device, **changes)
    counts = [row["validation_errors"] for row in result.history]
    assert counts == expected["counts"]
    assert len(set(counts)) > 1, "a case in which nothing changes tests nothing"
    summary = result.summary()
    for key in ("iterations_run", "epochs_run", "best_iteration"):
        assert summary[key] == expected[key], key
    assert result.history[-1]["patience"] == expected["patience"]
    costs = [row["cost"] for row in result.history]
    np.testing.assert_allclose(costs, expected["costs"], rtol=1e-9)
    for found, best in zip(
        result.best_parameters.values(), expected["best_parameters"], strict=True
    ):
        np.testing.assert_allclose(found, best, rtol=1e-9, atol=1e-12)


def test_who_stops_the_run_is_reported():
    dataset = make_dataset(n_train=46, n_valid=92)
    assert run(dataset, batch_size=6, patience=17)[0].stopped_by == "patience"
    assert run(dataset, batch_size=6, n_epochs=2)[0].stopped_by == "n_epochs"


def test_history_rows_hold_the_mean_cost_and_the_best_so_far():
    dataset = make_dataset(n_train=46, n_valid=92)
    result, _ = run(dataset, batch_size=6, n_epochs=5, learning_rate=1.0)
    best = float("inf")
    for number, row in enumerate(result.history, start=1):
        assert (row["iteration"], row["epoch"]) == (7 * number, number)
        best = min(best, row["validation_errors"])
        assert row["best_validation_errors"] == best
        assert row["validation_error_percent"] == 100 * row["validation_errors"] / 90
    assert result.history[0]["cost"] > result.history[-1]["cost"] > 0
    assert len(result.seconds) == len(result.history)
    assert sorted(result.seconds) == result.seconds


def test_snapshots_are_taken_at_the_start_on_schedule_and_at_the_end():
    dataset = make_dataset(n_train=40)
    _, snapshots = run(dataset, batch_size=10, n_epochs=5)
    assert snapshots == [0, 4, 8, 12, 16, 20]


def test_divergence_ends_the_run_and_keeps_the_best():
    dataset = make_dataset(n_train=40)
    with np.errstate(all="ignore"):
        result, _ = run(
            dataset, batch_size=10, learning_rate=20.0, l2=1.0, n_epochs=500, float_x=np.float32
        )
    assert result.stopped_by == "divergence"
    assert all(np.isfinite(array).all() for array in result.best_parameters.values())


def test_divergence_before_the_first_validation_says_what_to_do():
    dataset = make_dataset(n_train=40)
    with (
        pytest.raises(UserError, match=r"diverged.*lower learning_rate"),
        np.errstate(all="ignore"),
    ):
        run(
            dataset,
            batch_size=10,
            learning_rate=1e30,
            l2=1.0,
            n_epochs=50,
            validation_frequency=100,
            float_x=np.float32,
        )


def test_parameters_that_are_not_finite_are_no_best():
    """The first step makes them so, from zeros, whose cost is finite: the validation sees it."""
    with (
        pytest.raises(UserError, match=r"diverged.*lower learning_rate"),
        np.errstate(all="ignore"),
    ):
        run(
            make_dataset(n_train=40),
            batch_size=10,
            learning_rate=1e39,
            n_epochs=3,
            validation_frequency=1,
            float_x=np.float32,
        )


def test_a_run_without_any_validation_is_an_error():
    with pytest.raises(UserError, match="validation_frequency is 100"):
        run(make_dataset(n_train=40), batch_size=10, n_epochs=2, validation_frequency=100)
