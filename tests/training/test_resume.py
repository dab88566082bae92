"""A training that was killed ends with the bytes of one that was not."""

import itertools
import json
import multiprocessing
import os
import random
import shutil
import time

import numpy as np
import pytest
import toy
from conftest import as_triple, make_dataset, save_npz
from killing import files, is_killed

from msgd import provenance
from msgd.data.unpickle import unpickle
from msgd.errors import UserError
from msgd.models import MODELS
from msgd.training import checkpoint, loop, run
from msgd.training.checkpoint import Checkpoint, State, clean_states

N_EPOCHS = 6
# So many random moments per model, 20 in all.
N_KILLS = int(os.environ.get("MSGD_KILLS", "5"))
ONE_MODEL_IS_QUICK = ["logistic_regression"] + [
    pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != "logistic_regression"
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_npz(folder / "toy.npz", as_triple(make_dataset(400, 200, 40, (12, 12), 4)))
    unpickle(folder / "toy.npz", folder / "arrays", "float32", expect_mnist=False)
    return folder / "arrays"


def train(data, folder, model="logistic_regression", states="states", threads=1, **changes):
    """Train in ``folder``/run with states in ``folder``/states, saved at every validation."""
    rate = {"learning_rate": 0.05} if model in toy.SGD_MODELS else {}
    sizes = {"batch_size": 20, "n_epochs": N_EPOCHS}
    settings = toy.settings_of(model, **{**sizes, **rate, **changes})
    states = states and folder / states
    run.run_training(data, folder / "run", settings, "cpu", "float32", threads, None, states)


@pytest.mark.parametrize("improvement_test", ["threshold", "mcnemar"])
@pytest.mark.parametrize(
    "place", [(loop._Loop, "validate"), (Checkpoint, "save_snapshot"), (State, "to_bytes")]
)
def test_every_moment_of_a_short_run_can_be_the_last(data, tmp_path, improvement_test, place):
    """Before each validation, each snapshot and each state."""
    changes = {"patience": 100, "patience_increase": 1.5, "improvement_test": improvement_test}
    train(data, tmp_path / "whole", **changes)
    for call in itertools.count(1):
        folder = tmp_path / f"killed-{call}"
        if not is_killed(*place, call, lambda f=folder: train(data, f, **changes)):
            break
        train(data, folder, **changes)
        assert files(folder) == files(tmp_path / "whole"), call
    assert call > 4


def test_a_resumed_run_trains_only_what_was_missing(data, tmp_path, monkeypatch):
    assert is_killed(loop._Loop, "validate", 5, lambda: train(data, tmp_path))
    validated = []
    validate = loop._Loop.validate
    monkeypatch.setattr(
        loop._Loop, "validate", lambda *a: (validated.append(a[2]), validate(*a))[1]
    )
    train(data, tmp_path)
    assert validated == [100, 120]


def test_without_states_a_killed_run_starts_afresh(data, tmp_path):
    assert is_killed(loop._Loop, "validate", 5, lambda: train(data, tmp_path, states=None))
    assert not (tmp_path / "run" / "snapshots").exists()
    train(data, tmp_path, states=None)
    train(data, tmp_path / "whole")
    assert files(tmp_path) == files(tmp_path / "whole")


@pytest.mark.parametrize("model", ONE_MODEL_IS_QUICK)
def test_a_killed_process_goes_on(data, tmp_path, model):
    """SIGKILL at random moments of the run, on several attempts at the same run and on new ones."""
    n_epochs = {"logistic_regression": 300, "logistic_cg": 60, "mlp": 100}.get(model, 40)
    changes = {"model": model, "n_epochs": n_epochs}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["msgd.training.run", f"msgd.models.{model}.cpu"])

    def start(folder):
        process = context.Process(target=train, args=(data, folder), kwargs=changes)
        process.start()
        return process

    start(tmp_path / "warm").join()  # compiled kernels
    started = time.monotonic()
    whole = start(tmp_path / "whole")
    whole.join()
    duration = time.monotonic() - started
    assert whole.exitcode == 0
    expected, moments = files(tmp_path / "whole"), random.Random(model)
    n_kills = n_runs = n_states = 0
    while n_kills < N_KILLS or not n_states:  # some must come after a first state
        folder, n_runs = tmp_path / f"killed-{n_runs}", n_runs + 1
        assert n_runs < 100 * N_KILLS, "no kill comes after a first state"
        while True:
            is_new = not folder.exists()
            attempt = start(folder)
            attempt.join(moments.uniform(0.2, 1) * duration)
            if attempt.exitcode is not None:
                # A machine that is less busy than before: kills would come too late.
                duration *= 0.8 if is_new else 1
                break
            attempt.kill()
            attempt.join()
            n_kills += 1
            has_state = bool([*folder.glob("states/*/*.state")])
            duration *= 1 if has_state else 1.2  # busier: they would come too early
            n_states += has_state
        assert attempt.exitcode == 0
        assert files(folder) == expected, f"after {n_kills} kills"
        shutil.rmtree(folder)


def test_what_a_kill_left_of_a_file_is_removed(data, tmp_path):
    train(data, tmp_path)
    expected = files(tmp_path)
    (tmp_path / "run" / ".partial-killed.npz").write_bytes(b"half")
    assert files(tmp_path) != expected
    train(data, tmp_path)
    assert files(tmp_path) == expected


def test_what_names_a_state_is_recorded_with_the_result():
    assert {package.__name__ for package in checkpoint.PACKAGES} <= {*provenance.PACKAGES}


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_torn_state_gives_way_to_the_one_before(data, tmp_path, damage, caplog):
    train(data, tmp_path)
    expected = files(tmp_path)
    earlier, latest = sorted(tmp_path.glob("states/*/*.state"))
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 1
    torn = {"cut": content[: len(content) // 2], "flipped": content, "empty": b""}[damage]
    latest.write_bytes(torn)
    train(data, tmp_path)
    assert files(tmp_path) == expected
    assert "is damaged; falling back" in caplog.text
    earlier.write_bytes(b"torn")
    latest.write_bytes(b"torn")
    train(data, tmp_path)
    assert files(tmp_path) == expected


@pytest.mark.parametrize("damage", ["lost", "flipped"])
def test_lost_or_torn_snapshots_make_a_state_useless(data, tmp_path, damage):
    train(data, tmp_path)
    expected = files(tmp_path)
    for snapshot in tmp_path.glob("states/*/snapshots/*"):
        content = bytearray(snapshot.read_bytes())
        content[len(content) // 2] ^= 1
        if damage == "flipped":
            snapshot.write_bytes(content)
        else:
            snapshot.unlink()
    train(data, tmp_path)
    assert files(tmp_path) == expected


@pytest.mark.parametrize("model", MODELS)
def test_raising_the_cap_of_a_finished_run_continues_it(data, tmp_path, model, monkeypatch):
    train(data, tmp_path / "whole", model, n_epochs=N_EPOCHS + 3)
    train(data, tmp_path, model)
    saved = []
    to_bytes = State.to_bytes
    monkeypatch.setattr(State, "to_bytes", lambda s: (saved.append(s.iteration), to_bytes(s))[1])
    train(data, tmp_path, model, n_epochs=N_EPOCHS + 3)
    assert files(tmp_path) == files(tmp_path / "whole")
    assert min(saved) > N_EPOCHS, "it began again"


def test_lowering_the_cap_trains_afresh_and_keeps_the_longer_run(data, tmp_path):
    train(data, tmp_path / "short", n_epochs=2)
    train(data, tmp_path)
    states = sorted(tmp_path.glob("states/*/*.state"))
    train(data, tmp_path, n_epochs=2)
    assert files(tmp_path) == files(tmp_path / "short")
    assert sorted(tmp_path.glob("states/*/*.state")) == states


@pytest.mark.parametrize(
    "edit",
    [
        {"learning_rate": 0.051},
        {"l2": 1e-3},
        {"seed": 2},
        {"patience": 70},
        {"improvement_test": "mcnemar"},
        {"batch_size": 21},
    ],
)
def test_what_shapes_the_result_starts_afresh(data, tmp_path, edit):
    train(data, tmp_path)
    train(data, tmp_path, **edit)
    train(data, tmp_path / "whole", **edit)
    assert files(tmp_path) == files(tmp_path / "whole")
    assert len([*tmp_path.glob("states/*")]) == 2


def test_other_data_and_other_code_start_afresh(data, tmp_path, monkeypatch):
    train(data, tmp_path)
    other = shutil.copytree(data, tmp_path / "arrays")
    images = np.load(other / "train_x.npy")
    np.save(other / "train_x.npy", images[::-1].copy())
    summary = json.loads((other / "dataset.json").read_text())
    summary["sha256"]["train_x"] = "0" * 64
    (other / "dataset.json").write_text(json.dumps(summary))
    train(other, tmp_path)
    assert len([*tmp_path.glob("states/*")]) == 2
    monkeypatch.setattr(checkpoint, "sha256_of_source", lambda files: "edited")
    train(data, tmp_path)
    assert len([*tmp_path.glob("states/*")]) == 3


def test_a_state_of_another_run_is_refused(data, tmp_path):
    """Put there by hand; of the same shapes it would be gone on from, of others it would crash."""
    train(data, tmp_path)
    (own,) = tmp_path.glob("states/*")
    for name, changes in (("rate", {"learning_rate": 0.1}), ("mlp", {"model": "mlp"})):
        train(data, tmp_path / name, **changes)
        (other,) = tmp_path.glob(f"{name}/states/*")
        for state in own.glob("*.state"):
            shutil.copyfile(other / state.name, state)
        with pytest.raises(
            UserError, match=rf"{own}/iteration_\d+.state is a state of another run"
        ):
            train(data, tmp_path)


def test_two_states_are_kept_and_a_page_says_whose_they_are(data, tmp_path):
    train(data, tmp_path)
    (folder,) = (tmp_path / "states").iterdir()
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "iteration_000000100.state",
        "iteration_000000120.state",
        "run.json",
        "snapshots",
    ]
    assert json.loads((folder / "run.json").read_text())["settings"]["batch_size"] == 20


def test_states_are_saved_no_more_often_than_asked(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    saver = Checkpoint(tmp_path, tmp_path / "states", seconds_between=5)
    assert not saver.is_state_due()
    now[0] += 4.9
    assert not saver.is_state_due()
    now[0] += 0.2
    assert saver.is_state_due()
    assert not Checkpoint(tmp_path, None).is_state_due()


def test_states_out_of_use_are_removed(data, tmp_path):
    train(data, tmp_path)
    train(data, tmp_path, seed=2)
    old, new = sorted((tmp_path / "states").iterdir())
    os.utime(old, (0, time.time() - 3 * 86400))
    assert clean_states(tmp_path / "states", 2) == 1
    assert [*(tmp_path / "states").iterdir()] == [new]
    with pytest.raises(UserError, match="is not a state of a run; nothing was removed"):
        clean_states(tmp_path, 0)
    assert clean_states(tmp_path / "states", 0) == 1
    assert clean_states(tmp_path / "absent", 0) == 0
