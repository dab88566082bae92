"""How far a run is, told from its files while they are written, torn, moved and removed."""

import dataclasses
import json
import os
import shutil
import time

import numpy as np
import pandas as pd
import pytest
import toy
from conftest import as_triple, make_dataset, save_npz

from msgd.cli import main
from msgd.data.unpickle import unpickle
from msgd.errors import UserError
from msgd.evaluation import progress
from msgd.evaluation.progress import Watcher, history_so_far, read_run_log
from msgd.training import conjugate_gradient, loop
from msgd.training.checkpoint import State
from msgd.training_log import read_log

N_EPOCHS = 8
NAME = "toy/default"
KINDS = {
    "threshold": ("logistic_regression", {"learning_rate": 0.05, "patience": 120}),
    "mcnemar": ("logistic_regression", {"learning_rate": 0.05, "improvement_test": "mcnemar"}),
    "conjugate gradients": ("logistic_cg", {}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    random = np.random.RandomState(3)  # of wrong labels, so that errors go up and down
    triple = as_triple(make_dataset(400, 210, 40, (4, 4), 4))
    triple = tuple((x, np.where(random.uniform(size=len(y)) < 0.4, y, 3 - y)) for x, y in triple)
    save_npz(folder / "toy.npz", triple)
    unpickle(folder / "toy.npz", folder / "arrays", "float32")
    return folder / "arrays"


class Killed(BaseException):
    """Stands for the end of the process."""


def train(data, results, kind="threshold", killed_after=None, name=NAME, **changes):
    """Train as the workflow does, states at every validation; killed after so many validations."""
    model, settings = KINDS[kind]
    words = toy.words_of(model, **{"batch_size": 20, "n_epochs": N_EPOCHS, **settings, **changes})
    options = ["--log", results / "logs" / "train" / f"{name}.log", "--data", data]
    options += ["--run", results / "runs" / name, "--states", results / "states"]
    options += ["--seconds-between-states", "0", "--backend", "cpu"]
    place, function = (conjugate_gradient._Fit, "validate")
    if model != "logistic_cg":
        place, function = loop._Loop, "validate"
    original, calls = getattr(place, function), []

    def dying(*arguments, **keywords):
        if len(calls) == killed_after:
            raise Killed
        calls.append(1)
        return original(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, function, dying)
        try:
            assert main(["train", *map(str, options), *words]) == 0
        except Killed:
            assert killed_after is not None


def progress_of(results, name=NAME):
    return {run.name: run for run in Watcher(results).look()}[name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_is_followed_through_kills(data, tmp_path, kind):
    """What the log tells is what history.csv says at the end, however often it was killed."""
    train(data, tmp_path / "whole", kind)
    whole = pd.read_csv(tmp_path / "whole" / "runs" / NAME / "history.csv")
    results = tmp_path / "killed"
    for killed_after, known in ((2, 2), (0, 2), (1, 3), (2, 5)):
        train(data, results, kind, killed_after)
        run, expected = progress_of(results), whole.iloc[known - 1]
        assert (run.state, run.cap) == ("running", N_EPOCHS)
        assert (run.iteration, run.epoch) == (expected["iteration"], expected["epoch"])
        assert run.error_percent == expected["validation_error_percent"]
        assert run.best_errors == expected["best_validation_errors"]
        n_train_batches = 1 if kind == "conjugate gradients" else 20
        assert (run.best_epoch - 1) * n_train_batches < expected["best_iteration"]
        assert run.best_epoch * n_train_batches >= expected["best_iteration"]
        if kind == "conjugate gradients":
            assert run.patience_left is None
        else:
            assert run.patience_left == expected["patience"] + 1 - expected["iteration"]
        soonest, latest = run.seconds_left() or (0, 0)
        assert 0 <= soonest <= latest
        for with_state in (False, True):
            log = read_run_log(results, NAME)
            rows = pd.DataFrame(history_so_far(results, log, with_state).rows)
            assert {*rows.pop("stage")} == {"train"}
            rows = rows.astype(float)
            shared = [column for column in whole if column in rows]
            assert {*whole} - {*shared} <= {"stage", "improvement_p"}
            pd.testing.assert_frame_equal(
                rows[shared], whole[shared].head(known).astype(float), atol=1e-6, rtol=0
            )
    train(data, results, kind)
    run = progress_of(results)
    training = json.loads((results / "runs" / NAME / "training.json").read_text())
    assert (run.state, run.detail) == ("finished", training["stopped_by"])
    assert (run.epoch, run.best_epoch) == (training["epochs_run"], training["best_epoch"])
    assert run.best_errors == training["validation_errors"]
    assert run.errors == whole["validation_errors"].iloc[-1]
    assert run.patience_left is run.seconds_left() is None


def test_seconds_of_the_trainings_before_count(data, tmp_path):
    train(data, tmp_path, killed_after=3)
    assert progress_of(tmp_path).seconds < 60
    state = max(tmp_path.glob("states/*/iteration_*.state"))
    train(data, tmp_path, killed_after=1)
    before = State.from_bytes(state.read_bytes()).seconds[-1]
    assert progress_of(tmp_path).seconds >= before > 0


def test_a_state_of_another_training_is_not_taken_for_its_own(data, tmp_path):
    """Of the same settings, but other data: its validations are not those of the log."""
    train(data, tmp_path, killed_after=3)
    mine = read_run_log(tmp_path, NAME)
    text = (tmp_path / "logs/train/toy/default.log").read_text()
    assert len(progress._state_of(tmp_path / "states", mine)[0]) == 3
    for mine_says, other_says in (("(", "(1"), ("cost ", "cost 1")):
        other = read_log(text.replace(mine_says, other_says))
        assert progress._state_of(tmp_path / "states", other) == ([], [])
    mine.settings["learning_rate"] = 0.06
    assert progress._state_of(tmp_path / "states", mine) == ([], [])


def test_of_several_states_the_one_used_last_is_taken_and_of_it_the_latest(data, tmp_path):
    """As a change of the source leaves them: of the same settings, each of its own training."""
    train(data, tmp_path, killed_after=4)
    mine = read_run_log(tmp_path, NAME)
    (first,) = (tmp_path / "states").iterdir()
    latest = max(first.glob("*.state"))
    assert len(list(first.glob("*.state"))) == 2
    others = {}
    for name, seconds in (("0", 111.0), ("z", 222.0)):  # before and after the first by their names
        others[name] = shutil.copytree(first, tmp_path / "states" / name)
        state = State.from_bytes(latest.read_bytes())
        changed = dataclasses.replace(state, seconds=[seconds for _ in state.seconds])
        (others[name] / latest.name).write_bytes(changed.to_bytes())
    for used_last, seconds in (("z", 222.0), ("0", 111.0)):
        for folder in (first, *others.values()):
            when = 2e9 if folder == others[used_last] else 1e9
            os.utime(folder, (when, when))
        history, times = progress._state_of(tmp_path / "states", mine)
        assert len(history) == 4  # those of the latest state, not of the one before it
        assert set(times) == {seconds}
    (others["0"] / latest.name).write_bytes(b"torn")
    assert len(progress._state_of(tmp_path / "states", mine)[0]) == 3


def test_what_was_before_is_not_made_up_without_its_state(data, tmp_path):
    train(data, tmp_path, killed_after=4)
    train(data, tmp_path, killed_after=1)
    assert progress_of(tmp_path).best_errors is not None
    shutil.rmtree(tmp_path / "states")
    log = read_run_log(tmp_path, NAME)
    log.validations[0]["is_best"] = False
    history = history_so_far(tmp_path, log)
    assert not history.is_whole
    assert history.rows[0]["best_iteration"] is None


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("ERROR msgd train: error: the cost is not finite", "failed"),
        ("ERROR msgd train: interrupted", "interrupted"),
        ("ERROR msgd train: failed where it should not; please report this", "failed"),
        (
            "RESULT toy/default: validation error 7.5 % (1 of 2) ...; stopped by patience",
            "finished",
        ),
    ],
)
def test_how_a_training_ended(tmp_path, line, state):
    log = tmp_path / "logs" / "train" / f"{NAME}.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"2026-11-26 18:02:37,034 {line}\nTraceback (most recent call last):\n")
    run = progress_of(tmp_path)
    assert (run.state, run.is_under_way) == (state, False)
    assert run.detail in line


def test_speed_and_silence_are_judged_by_the_pauses_of_the_log(tmp_path):
    """It went on after minibatch 100; the first validation took 40 s, the next 1, 2 and 3 s."""
    lines = ["00,000 INFO going on from the state after iteration 100\n"]
    lines += [
        f"{second},000 INFO epoch 1, minibatch 5/500, iteration {iteration}: cost 0.5, "
        f"validation error 3.0 % (3/100), patience 900\n"
        for second, iteration in ((40, 120), (41, 140), (43, 160), (46, 180))
    ]
    log = tmp_path / "logs" / "train" / f"{NAME}.log"
    log.parent.mkdir(parents=True)

    def judged_after(n):
        log.write_text("".join(f"2026-11-26 18:02:{line}" for line in lines[:n]))
        run = progress_of(tmp_path)
        return run.seconds_per_iteration, run.silent_after

    assert judged_after(1) == (None, 300)
    assert judged_after(2) == (2.0, 200)
    assert judged_after(5) == (pytest.approx(0.1), 200)
    lines[0] = lines[0].replace("00,000", "39,000")
    assert judged_after(5) == (pytest.approx(0.1), 60)


def test_the_program_says_so_of_its_own_failures(data, tmp_path):
    words = ["model=logistic_regression", "batch_size=20", "validation_frequency=7000"]
    log, run = tmp_path / "logs/train" / f"{NAME}.log", tmp_path / "runs" / NAME
    assert main(["train", "--log", f"{log}", "--data", f"{data}", "--run", f"{run}", *words]) == 1
    run = progress_of(tmp_path)
    assert run.state == "failed"
    assert "validation_frequency is 7000" in run.detail


def test_a_log_may_end_anywhere(data, tmp_path):
    """A last line without its end waits; none of the cuts is an error."""
    train(data, tmp_path, killed_after=3)
    path = tmp_path / "logs" / "train" / f"{NAME}.log"
    text = path.read_text()
    counts = [len(log.validations) for n in range(len(text) + 1) if (log := read_log(text[:n]))]
    assert counts == sorted(counts)
    assert {*counts} == {0, 1, 2, 3}
    assert read_log(text[:-1]).validations == read_log(text).validations[:2]


def test_a_log_of_before_hyperparameters_stood_there(data, tmp_path):
    train(data, tmp_path, killed_after=3)
    path = tmp_path / "logs" / "train" / f"{NAME}.log"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[2:]))
    run = progress_of(tmp_path)
    assert (run.epoch, run.cap, run.seconds_left()) == (3, None, None)


def test_torn_files_wait_for_the_next_time(data, tmp_path):
    train(data, tmp_path, killed_after=3)
    watcher = Watcher(tmp_path)
    (before,) = watcher.look()
    train(data, tmp_path)
    ended = tmp_path / "runs" / NAME / "training.json"
    whole = ended.read_text()
    for torn in ("", whole[: len(whole) // 2], "[]"):
        ended.write_text(torn)
        assert watcher.look() == [before]
    ended.write_text(whole)
    (run,) = watcher.look()
    assert run.state == "finished"
    for path in (ended, tmp_path / "logs" / "train" / f"{NAME}.log"):
        path.unlink()
    assert watcher.look() == []


@pytest.mark.parametrize(
    "line",
    [
        "2026-13-99 18:02:37,034 INFO iteration 1: cost 0.5, validation errors 3",
        "2026-11-26 18:02:37,034 INFO iteration 1: cost half, validation errors 3",
        "2026-11-26 18:02:37,034 INFO epoch 1, minibatch 1/0, iteration 1: cost 0.5, "
        "validation error 3.0 % (3/100), patience 5",
    ],
)
def test_a_log_of_nonsense_hides_no_other_run(tmp_path, line):
    folder = tmp_path / "logs" / "train" / "toy"
    folder.mkdir(parents=True)
    (folder / "odd.log").write_text(f"{line}\n")
    (folder / "default.log").write_text("2026-11-26 18:02:37,034 INFO hello\n")
    (folder / "binary.log").write_bytes(bytes(range(256)))
    assert [run.name for run in Watcher(tmp_path).look()] == [NAME]


def test_a_log_removed_while_it_is_looked_at_is_left_out(data, tmp_path, monkeypatch):
    train(data, tmp_path, killed_after=1)
    watcher = Watcher(tmp_path)
    monkeypatch.setattr(progress, "_stamp", lambda path: None)
    assert watcher.look() == []


def test_only_what_changed_is_read(data, tmp_path, monkeypatch):
    for name in ("toy/one", "toy/two"):
        train(data, tmp_path, killed_after=3, name=name)
    read = []
    original = progress.read_run_log

    def noting(results, name):
        read.append(name)
        return original(results, name)

    monkeypatch.setattr(progress, "read_run_log", noting)
    watcher = Watcher(tmp_path)
    watcher.look()
    watcher.look()
    assert sorted(read) == ["toy/one", "toy/two"]
    with (tmp_path / "logs/train/toy/two.log").open("a") as stream:
        stream.write("2026-11-26 18:02:37,034 INFO still there\n")
    watcher.look()
    assert sorted(read) == ["toy/one", "toy/two", "toy/two"]


def test_silence_is_judged_whatever_the_clocks_say(data, tmp_path):
    """Dates an hour off are taken as they are until a file is seen to change, and no longer."""
    logs = [tmp_path / "logs/train/toy" / f"{name}.log" for name in ("one", "two")]
    for log in logs:
        train(data, tmp_path, killed_after=3, name=f"toy/{log.stem}")
    now = time.time()
    for log, hours in zip(logs, (-1, -2), strict=True):
        os.utime(log, (now + hours * 3600,) * 2)
    watcher = Watcher(tmp_path)
    one, two = watcher.look()
    assert watcher.seconds_silent(one) == pytest.approx(3600, abs=60)
    assert watcher.seconds_silent(two) == pytest.approx(7200, abs=60)
    # One writes, by a clock that is an hour behind: so the other has been silent for an hour.
    with logs[0].open("a") as stream:
        stream.write("2026-11-26 18:02:37,034 INFO still there\n")
    os.utime(logs[0], (now - 3599,) * 2)
    watcher.look()
    assert watcher.seconds_silent(one) < 60
    assert watcher.seconds_silent(two) == pytest.approx(3600, abs=60)
    # And one that is ahead is not silent.
    os.utime(logs[1], (now + 3600,) * 2)
    watcher = Watcher(tmp_path)
    assert watcher.seconds_silent(watcher.look()[1]) == 0


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        Watcher(tmp_path / "nowhere")


def test_the_best_of_conjugate_gradients_is_the_first_of_the_fewest_errors(tmp_path):
    """Their log does not say which is best; without what was before, nothing does."""
    errors = [5, 3, 3, 4]
    written = [f"iteration {n}: cost 0.500000, validation errors {e}" for n, e in enumerate(errors)]
    for first, best in (
        (None, (3, 1)),
        ("going on from the state after iteration 0", (None, None)),
    ):
        lines = [first] * (first is not None) + written
        log = read_log("".join(f"2026-11-26 18:02:37,034 INFO {line}\n" for line in lines))
        last = history_so_far(tmp_path, log).rows[-1]
        assert (last["best_validation_errors"], last["best_iteration"]) == best
