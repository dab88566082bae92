"""Trainings in stages, with and without validation: order, history, outcome, and kills anywhere."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
import staged
from conftest import MemoryCheckpoint, as_triple, make_dataset, save_npz
from killing import files, is_killed

from msgd.data.unpickle import unpickle
from msgd.errors import UserError
from msgd.models import (
    CLASSIFIERS,
    MODELS,
    STACKS,
    UNSUPERVISED,
    Stage,
    load_backend,
    load_stages,
)
from msgd.training import loop, run
from msgd.training.checkpoint import Checkpoint, State
from msgd.training.loop import train

EMPTY_WITHOUT_VALIDATION = {
    *("validation_errors", "validation_error_percent", "patience"),
    *("best_validation_errors", "best_iteration"),
}


@pytest.fixture(autouse=True)
def models(monkeypatch, tmp_path_factory):
    staged.register(monkeypatch, tmp_path_factory.mktemp("models"))


def trained(name, **changes):
    """Train on 46 images in memory; return (Training, backend, the snapshots' iterations)."""
    settings, float_x = staged.settings_of(name, **changes), np.float64
    dataset = make_dataset(n_train=46, n_valid=40)
    parameters = staged.initial_parameters(dataset, settings, float_x)
    backend = load_backend(name, "cpu")(dataset, parameters, settings, float_x)
    checkpoint = MemoryCheckpoint()
    return train(backend, dataset, settings, checkpoint), backend, checkpoint.snapshots


# What stages there are.


def test_every_model_is_a_classifier_or_learns_without_labels():
    assert set(CLASSIFIERS) & set(UNSUPERVISED) == set()
    assert set(MODELS) - {*CLASSIFIERS, "pretrained"} <= set(UNSUPERVISED)


@pytest.mark.parametrize("model", [name for name in CLASSIFIERS if name not in STACKS])
def test_a_supervised_model_has_one_validated_stage(model):
    settings = {"model": model, "n_epochs": 7, "batch_size": 20}
    assert load_stages(settings) == [Stage("train", 7, 20, is_validated=True)]


def test_an_unsupervised_model_has_one_stage_without_validation():
    assert load_stages(staged.settings_of("da")) == [Stage("train", 6, 10, is_validated=False)]


def test_a_model_says_itself_which_stages_it_has():
    names = [stage.name for stage in load_stages(staged.settings_of("pretrained"))]
    assert names == ["pretrain_1", "pretrain_2", "fine_tune"]


# One stage without validation.


def test_an_unvalidated_stage_is_trained_epoch_by_epoch_to_its_last():
    result, backend, snapshots = trained("da")
    spans = [(4 * epoch, 4 * epoch + 4) for epoch in range(6)]
    assert backend.calls == [("begin", "train"), *(("train", *span) for span in spans)]
    assert snapshots == [0, 4, 8, 12, 16, 24, 24]
    assert result.stopped_by == "n_epochs"
    assert len(result.seconds) == 6


def test_its_history_has_the_mean_cost_of_each_epoch_and_nothing_else():
    result, _, _ = trained("da")
    again = trained("da", n_epochs=1)[1]
    again.set_parameters(staged.initial_parameters(again.dataset, again.settings, np.float64))
    again.begin(again.stage)
    for number, row in enumerate(result.history, start=1):
        assert list(row)[:4] == ["stage", "iteration", "epoch", "cost"]
        assert (row["stage"], row["iteration"], row["epoch"]) == ("train", 4 * number, number)
        assert {name for name, value in row.items() if value is None} == EMPTY_WITHOUT_VALIDATION
        assert row["cost"] == again.train(4 * number - 4, 4 * number).mean()


def test_its_best_parameters_are_those_after_the_last_epoch():
    result, backend, _ = trained("da")
    (best,), (last,) = result.best_parameters.values(), backend.get_parameters().values()
    assert (best == last).all()


def test_its_outcome_has_a_cost_in_the_place_of_errors():
    result, _, _ = trained("da")
    assert result.summary() == {
        "epochs_run": 6,
        "iterations_run": 24,
        "best_epoch": 6,
        "best_iteration": 24,
        "cost": result.history[-1]["cost"],
        "stopped_by": "n_epochs",
        "n_train_batches": 4,
        "stages": [{"name": "train", "n_train_batches": 4, "iterations_run": 24}],
    }
    cost = f"{result.history[-1]['cost']:.6g}"
    assert result.describe() == f"cost {cost} in epoch 6 of 6; stopped by n_epochs"


def test_divergence_ends_it_with_the_last_finite_epoch():
    with np.errstate(all="ignore"):
        result, _, _ = trained("da", explode=1e30)
    assert (result.stopped_by, len(result.history)) == ("divergence", 2)
    assert result.stage.iterations_run == 12
    expected, _, _ = trained("da", n_epochs=2)
    (found,), (best,) = result.best_parameters.values(), expected.best_parameters.values()
    assert (found == best).all()
    assert math.isfinite(result.summary()["cost"])


def test_parameters_that_are_not_finite_end_it_and_are_named(monkeypatch, caplog):
    monkeypatch.setattr(loop, "_are_finite", lambda _: False)
    with pytest.raises(UserError, match="the cost or a parameter is not finite"):
        trained("da")
    assert "parameters are not finite after 4: training diverged" in caplog.text


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("da", r"learning_rate \(it is 0.1\)"),
        ("pretrained", r"pretraining_learning_rate \(it is 0.7\)"),
    ],
)
def test_divergence_in_its_first_epoch_says_what_to_do(name, rate):
    with (
        pytest.raises(UserError, match=f"diverged before the end of an epoch.*lower {rate}"),
        np.errstate(all="ignore"),
    ):
        trained(name, explode=1e200)


# Several stages.


def test_stages_follow_each_other_and_count_from_one():
    result, backend, snapshots = trained("pretrained")
    begun = [call[1] for call in backend.calls if call[0] == "begin"]
    assert begun == ["pretrain_1", "pretrain_2", "fine_tune"]
    rows = [(row["stage"], row["iteration"], row["epoch"]) for row in result.history]
    assert rows[:3] == [("pretrain_1", 9 * epoch, epoch) for epoch in (1, 2, 3)]
    assert rows[3:6] == [("pretrain_2", 4 * epoch, epoch) for epoch in (1, 2, 3)]
    assert rows[6:8] == [("fine_tune", 2, 1), ("fine_tune", 4, 2)]
    assert snapshots[:8] == [0, 9, 18, 27, 27, 31, 39, 39], "over the whole run, and at each end"


def test_the_last_stage_is_ruled_by_patience_and_has_the_best_parameters():
    result, _, _ = trained("pretrained")
    assert [row["validation_errors"] is None for row in result.history[:7]] == [True] * 6 + [False]
    assert result.stopped_by == "patience"
    summary, last = result.summary(), result.history[-1]
    assert summary["validation_errors"] == last["best_validation_errors"]
    assert summary["iterations_run"] == 9, "of the stage, as the published figures count"
    assert [stage["iterations_run"] for stage in summary["stages"]] == [27, 12, 9]
    assert [stage["n_train_batches"] for stage in summary["stages"]] == [9, 4, 2]
    assert result.iterations_run == 48


# Files and kills.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_npz(folder / "toy.npz", as_triple(make_dataset(46, 40, 20)))
    unpickle(folder / "toy.npz", folder / "arrays", "float32", expect_mnist=False)
    return folder / "arrays"


def train_in(data, folder, name, **changes):
    settings, states = staged.settings_of(name, **changes), folder / "states"
    run.run_training(data, folder / "run", settings, "cpu", "float32", 1, None, states)


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("name", ["da", "pretrained"])
def test_the_files_say_of_which_stage_a_row_is(data, tmp_path, name):
    train_in(data, tmp_path, name)
    history, timings = rows_of(tmp_path / "run/history.csv"), rows_of(tmp_path / "run/timings.csv")
    stages = [stage.name for stage in load_stages(staged.settings_of(name))]
    assert list(dict.fromkeys(row["stage"] for row in history)) == stages
    assert [*timings[0]] == ["stage", "iteration", "seconds"]
    for row, timing in zip(history, timings, strict=True):
        assert next(iter(row)) == "stage"
        assert [row["stage"], row["iteration"]] == [timing["stage"], timing["iteration"]]
        empty = {name for name, value in row.items() if value == ""}
        assert empty == (set() if row["stage"] == "fine_tune" else EMPTY_WITHOUT_VALIDATION)
        assert row["validation_errors"] == "" or row["validation_errors"].isdecimal()
    training = json.loads((tmp_path / "run/training.json").read_text())
    assert [stage["name"] for stage in training["stages"]] == stages


PLACES = {
    "before a span": (staged.Backend, "train"),
    "before a stage": (staged.Backend, "begin"),
    "before a row": (loop.Training, "record"),
    "before a snapshot": (Checkpoint, "save_snapshot"),
    "before a state": (State, "to_bytes"),
    "after a state": (Checkpoint, "is_state_due"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("model", "changes"),
    [("da", {}), ("pretrained", {}), ("pretrained", {"improvement_test": "mcnemar"})],
)
@pytest.mark.parametrize("is_every_row_saved", [True, False])
def test_a_kill_at_any_place_changes_no_byte(
    data, tmp_path, monkeypatch, place, model, changes, is_every_row_saved
):
    """With a state of every row, and with those alone that end a stage."""
    monkeypatch.setattr(Checkpoint, "is_state_due", lambda self: is_every_row_saved)
    train_in(data, tmp_path / "whole", model, **changes)
    expected = files(tmp_path / "whole")
    for call in itertools.count(1):
        folder = tmp_path / f"killed-{call}"

        def train_here(folder=folder):
            train_in(data, folder, model, **changes)

        # What a resumed run saves is gone on from, too.
        n_kills = sum(is_killed(*PLACES[place], call, train_here) for _ in range(2))
        if not n_kills:
            break
        train_here()
        assert files(folder) == expected, call
    assert call > 1


def test_a_killed_run_goes_on_within_its_stage(data, tmp_path, monkeypatch):
    """Not from the beginning of the run, nor of the stage: it trains only what was missing."""
    monkeypatch.setattr(Checkpoint, "is_state_due", lambda self: True)
    # At the last epoch of pretrain_2.
    assert is_killed(loop.Training, "record", 6, lambda: train_in(data, tmp_path, "pretrained"))
    made, init = [], staged.Backend.__init__
    with monkeypatch.context() as patch:
        patch.setattr(
            staged.Backend, "__init__", lambda self, *a: (made.append(self), init(self, *a))[1]
        )
        train_in(data, tmp_path, "pretrained")
    assert made[0].calls[:4] == [
        ("begin", "pretrain_2"),
        ("set_state", "velocity"),
        ("train", 8, 12),
        ("begin", "fine_tune"),
    ]


@pytest.mark.parametrize(
    ("name", "n_epochs", "more"), [("da", 6, {}), ("pretrained", 8, {"patience": 1000})]
)
def test_raising_the_cap_goes_on_from_the_last_row(
    data, tmp_path, monkeypatch, name, n_epochs, more
):
    train_in(data, tmp_path / "whole", name, n_epochs=n_epochs + 3, **more)
    train_in(data, tmp_path, name, n_epochs=n_epochs, **more)
    spans, original = [], staged.Backend.train
    monkeypatch.setattr(
        staged.Backend, "train", lambda self, *span: (spans.append(span), original(self, *span))[1]
    )
    train_in(data, tmp_path, name, n_epochs=n_epochs + 3, **more)
    assert files(tmp_path) == files(tmp_path / "whole")
    assert len(spans) == 3
