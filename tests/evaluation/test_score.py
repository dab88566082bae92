"""The test score: of the best parameters, with and without the tail batch."""

import numpy as np
import oracle
import pytest
from conftest import as_triple, make_dataset, save_npz

from msgd.config import complete_experiment
from msgd.data.unpickle import unpickle
from msgd.evaluation.score import score_run
from msgd.files import read_json
from msgd.models import DEVICES
from msgd.training.run import run_training
from msgd.training.snapshots import list_snapshots, load_parameters, save_parameters


def predict(parameters, dataset):
    x = oracle.pixels(dataset.test_x)
    return oracle.logistic_regression_predict(
        [array.astype(np.float64) for array in parameters.values()], x
    )


@pytest.mark.parametrize("backend", DEVICES)
@pytest.mark.parametrize("batch_size", [10, "all"])
def test_a_toy_run_is_scored_as_the_oracle_does(tmp_path, backend, batch_size):
    dataset = make_dataset(60, 30, 37, (4, 4), 4)
    save_npz(tmp_path / "toy.npz", as_triple(dataset))
    unpickle(tmp_path / "toy.npz", tmp_path / "data", "float64")
    run = tmp_path / "toy" / "default"
    settings = complete_experiment(
        {"model": "logistic_regression", "batch_size": batch_size, "n_epochs": 4}
    )
    run_training(tmp_path / "data", run, settings, backend, "float64", 1)
    best = load_parameters(run / "best_parameters.npz")
    # Parameters that err often, in the tail too, and differ from those of every snapshot.
    best["weights"] += np.random.RandomState(3).normal(size=best["weights"].shape)
    save_parameters(run / "best_parameters.npz", best)
    score_run(tmp_path / "data", run, backend, 1)

    expected = predict(best, dataset)
    for _, path in list_snapshots(run / "snapshots"):
        assert (predict(load_parameters(path), dataset) != expected).any()
    wrong = expected != dataset.test_y
    n_counted = 30 if batch_size == 10 else 37
    assert wrong[30:].any()
    with np.load(run / "test_predictions.npz") as arrays:
        np.testing.assert_array_equal(arrays["predicted"], expected)
    assert read_json(run / "score.json") == {
        "test_errors": int(wrong[:n_counted].sum()),
        "test_examples": n_counted,
        "all_test_errors": int(wrong.sum()),
        "all_test_examples": 37,
    }


def test_a_shorter_run_leaves_no_snapshots_of_a_longer_one(tmp_path):
    save_npz(tmp_path / "toy.npz", as_triple(make_dataset(60, 30, 30)))
    unpickle(tmp_path / "toy.npz", tmp_path / "data", "float32")
    run = tmp_path / "toy" / "default"
    for n_epochs in (4, 2):
        settings = complete_experiment(
            {"model": "logistic_regression", "batch_size": 20, "n_epochs": n_epochs}
        )
        run_training(tmp_path / "data", run, settings, "cpu", "float32", 1)
    assert [iteration for iteration, _ in list_snapshots(run / "snapshots")] == [0, 3, 6]
