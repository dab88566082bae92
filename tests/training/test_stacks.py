"""Stacks through their stages and files: kills anywhere, and what is gone on from."""

import itertools

import pytest
import toy
from conftest import as_triple, make_dataset, save_npz
from killing import files, is_killed

from msgd.data.unpickle import unpickle
from msgd.models import STACKS, load_backend, load_stages
from msgd.models.stack import Stack
from msgd.training import loop, run
from msgd.training.checkpoint import Checkpoint, State

# A chain is state, too.
CHANGES = {"sda": {}, "dbn": {"persistent": True}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_npz(folder / "toy.npz", as_triple(make_dataset(46, 40, 20)))
    unpickle(folder / "toy.npz", folder / "arrays", "float32", expect_mnist=False)
    return folder / "arrays"


def settings_of(model):
    changes = {"batch_size": 10, "n_epochs": 3, "learning_rate": 0.5, **CHANGES[model]}
    return toy.settings_of(model, pretraining_learning_rate=0.2, **changes)


def train(data, folder, model):
    settings = settings_of(model)
    run.run_training(data, folder / "run", settings, "cpu", "float32", 1, None, folder / "states")


PLACES = {
    "before a span": (Stack, "train"),
    "before a stage": (Stack, "begin"),
    "before a row": (loop.Training, "record"),
    "before a snapshot": (Checkpoint, "save_snapshot"),
    "before a state": (State, "to_bytes"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("model", STACKS)
@pytest.mark.parametrize("is_every_row_saved", [True, False])
def test_a_kill_at_any_place_changes_no_byte(
    data, tmp_path, monkeypatch, place, model, is_every_row_saved
):
    """With a state of every row, and with those alone that end a stage."""
    monkeypatch.setattr(Checkpoint, "is_state_due", lambda self: is_every_row_saved)
    train(data, tmp_path / "whole", model)
    expected = files(tmp_path / "whole")
    for call in itertools.count(1):
        folder = tmp_path / f"killed-{call}"
        if not is_killed(*PLACES[place], call, lambda f=folder: train(data, f, model)):
            break
        train(data, folder, model)
        assert files(folder) == expected, call
    assert call > len(load_stages(settings_of(model)))


@pytest.mark.parametrize("model", STACKS)
def test_a_killed_run_goes_on_within_its_stage(data, tmp_path, monkeypatch, model):
    """The layers below are taken as they were, and no minibatch is trained twice."""
    monkeypatch.setattr(Checkpoint, "is_state_due", lambda self: True)
    # At the last epoch of pretrain_2.
    assert is_killed(loop.Training, "record", 4, lambda: train(data, tmp_path, model))
    calls, backend = [], load_backend(model, "cpu")
    for name in ("begin", "set_state", "train"):
        original = getattr(Stack, name)

        def noting(self, *arguments, name=name, original=original):
            calls.append((name, *arguments))
            return original(self, *arguments)

        monkeypatch.setattr(backend, name, noting)
    train(data, tmp_path, model)
    stages = load_stages(settings_of(model))
    assert calls[0] == ("begin", stages[1])
    (_, state), *after = calls[1:]
    assert list(state) == ["visible_bias", *(["chain"] if model == "dbn" else [])]
    assert after[:2] == [("train", 15, 30), ("begin", stages[2])]
