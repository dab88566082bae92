"""Results that hold, and results of which anything was changed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import as_triple, make_dataset, msgd, save_npz

from msgd.backends import gpu_name
from msgd.errors import UserError
from msgd.evaluation.verify import HINT, verify

RUNS = {
    "a/default": ["model=logistic_regression", "batch_size=20", "n_epochs=3"],
    "b/default": ["model=da", "n_hidden=4", "batch_size=20", "n_epochs=2"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of results of two runs, one of which is scored and selected."""
    results = tmp_path_factory.mktemp("whole") / "results"
    results.mkdir()
    save_npz(results / "toy.npz", as_triple(make_dataset(60, 30, 30, (4, 4), 3)))
    data = results / "data" / "toy"
    commands = [("unpickle", results / "toy.npz", "--output", data)]
    for name, words in RUNS.items():
        run = results / "runs" / name
        commands.append(("train", "--data", data, "--run", run, "--backend", "cpu", *words))
    scored = results / "runs" / "a" / "default"
    commands.append(("score", "--data", data, "--run", scored, "--backend", "cpu"))
    commands.append(("select", scored, "--data", data, "--output", results))
    commands.append(("tabulate", scored, "--output", results))
    for command in commands:
        done = msgd(*command)
        assert done.returncode == 0, done.stderr
    return results


@pytest.fixture
def results(whole, tmp_path):
    """Return a copy that may be changed."""
    return shutil.copytree(whole, tmp_path / "results")


def flip(path, place=-100):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def predict_otherwise(path):
    predicted = np.load(path)["predicted"]
    predicted[0] = (predicted[0] + 1) % 3
    np.savez(path, predicted=predicted)


def save_other_parameters(path):
    with np.load(path) as arrays:
        np.savez(path, **{name: arrays[name] + 1 for name in arrays})


# What is changed: of which file, how, and what is said of it.
CHANGES = {
    "a pixel": ("data/toy/test_x.npy", flip, "data/toy does not hold: "),
    "a label": ("data/toy/train_y.npy", flip, "data/toy does not hold: "),
    "a file of parameters": (
        "runs/a/default/best_parameters.npz",
        save_other_parameters,
        "the SHA-256 of the best_parameters is not that in training.json",
    ),
    "a bit of a snapshot": (
        "runs/b/default/snapshots/iteration_000000000.npz",
        lambda path: flip(path, 200),
        "the SHA-256 of the snapshots is not that in training.json",
    ),
    "the validation errors": (
        "runs/a/default/training.json",
        lambda path: edit(path, validation_errors=0),
        "runs/a/default does not hold: ",
    ),
    "the test errors": (
        "runs/a/default/score.json",
        lambda path: edit(path, test_errors=0),
        "test errors are 0 there, and ",
    ),
    "a prediction": (
        "runs/a/default/test_predictions.npz",
        predict_otherwise,
        "of 1 test images the saved predictions are others",
    ),
    "a digit of the history": (
        "runs/b/default/history.csv",
        lambda path: flip(path, -10),
        "the SHA-256 of the history is not that in training.json",
    ),
    "the cost": (
        "runs/b/default/training.json",
        lambda path: edit(path, cost=1.0),
        "runs/b/default does not hold: ",
    ),
    "a moment": (
        "runs/b/default/timings.csv",
        lambda path: path.write_text("stage,iteration,seconds\n"),
        "timings.csv is not of the rows in history.csv",
    ),
}


def test_whole_results_hold(whole):
    done = msgd("verify", whole, "--backend", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(" holds: ") == 4  # the data, two runs, the model
    score = json.loads((whole / "runs/a/default/score.json").read_text())
    assert f"{score['test_errors']} test errors" in done.stderr


@pytest.mark.skipif(bool(gpu_name()), reason="there is a GPU")
def test_the_device_is_said_once_for_all_runs_of_a_model(results):
    shutil.copytree(results / "runs/a/default", results / "runs/like_a/default")
    done = msgd("verify", results, "--backend", "auto")
    assert "like_a/default holds" in done.stderr
    assert done.stderr.count("backend auto takes cpu") == 1, done.stderr


def test_the_program_says_what_does_not_hold(results):
    edit(results / "runs/a/default/score.json", test_errors=0)
    done = msgd("verify", results, "--backend", "cpu")
    assert done.returncode == 1
    assert "msgd verify: error: " in done.stderr
    assert done.stderr.count("does not hold: test errors are 0 there, and ") == 1
    assert done.stderr.endswith(f"msgd verify: {HINT}\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_found(what, results):
    name, change, message = CHANGES[what]
    change(results / name)
    assert message in "\n".join(verify(results, "cpu"))


HASHED = [
    *(f"data/toy/{split}_{part}.npy" for split in ("train", "valid", "test") for part in "xy"),
    *(f"runs/{name}/best_parameters.npz" for name in RUNS),
    *(f"runs/{name}/history.csv" for name in RUNS),
    *(f"runs/{name}/snapshots/iteration_000000000.npz" for name in RUNS),
]


@pytest.mark.parametrize("name", HASHED)
def test_a_bit_is_found_wherever_it_changes(name, results, record_property):
    """At the start, in the middle, at the end; the command that makes the file anew is named."""
    content = (results / name).read_bytes()
    places = [0, len(content) // 2, len(content) - 1]
    record_property("cases", len(places))
    for place in places:
        flip(results / name, place)
        finding, *_ = verify(results, "cpu")
        folder = "/".join(name.split("/")[: 3 if name.startswith("runs") else 2])
        made_by = "unpickle" if name.startswith("data") else f"results/{folder}/training.json"
        assert finding.startswith(f"{results / folder} does not hold: ")
        assert finding.endswith(made_by)
        assert "snakemake --cores all " in finding
        (results / name).write_bytes(content)
    assert verify(results, "cpu") == []


def test_a_model_file_of_other_parameters_is_found(results):
    with np.load(results / "best_model.npz") as arrays:
        changed = {name: arrays[name] for name in arrays}
    changed["bias"] = changed["bias"] + 1
    np.savez(results / "best_model.npz", **changed)
    (finding,) = verify(results, "cpu")
    assert "best_model.npz does not hold: bias are not those of" in finding


def test_a_run_of_data_that_are_gone_is_found(results):
    shutil.rmtree(results / "data")
    findings = verify(results, "cpu")
    assert len(findings) == 2
    assert all("trained on other data than are there" in finding for finding in findings)


def remove(path):
    (shutil.rmtree if path.is_dir() else Path.unlink)(path)


# What is removed, what is then missing, and what makes it anew.
REMOVED = {
    "runs": ("runs/a/default", "runs/a/default/score.json"),
    "runs/a": ("runs/a/default", "runs/a/default/score.json"),
    "runs/a/default/score.json": ("runs/a/default/score.json", "runs/a/default/score.json"),
    **{
        f"runs/b/default/{name}": (f"runs/b/default/{name}", "runs/b/default/training.json")
        for name in (
            "provenance.json",
            "training.json",
            "timings.csv",
            "history.csv",
            "best_parameters.npz",
            "snapshots",
        )
    },
}


@pytest.mark.parametrize("name", REMOVED)
def test_what_was_removed_is_found(name, results):
    what, made_by = REMOVED[name]
    remove(results / name)
    findings = [one for one in verify(results, "cpu") if "best_model" not in one]
    assert len(findings) == 1
    assert f"{results / what} is missing" in findings[0]
    assert f" --forcerun results/{made_by}" in findings[0]
    assert "Errno" not in findings[0]


def test_a_training_under_way_is_no_finding(results):
    shutil.copytree(results / "runs/a/default/snapshots", results / "runs/c/default/snapshots")
    assert verify(results, "cpu") == []


@pytest.mark.parametrize(
    "content", [b"", b"run\na\n", b"\xff\x00", b"experiment,run\na\n", b"experiment,run\n/a,b\n"]
)
def test_a_table_that_lists_no_runs_is_found(content, results):
    (results / "test_scores.csv").write_bytes(content)
    (finding,) = verify(results, "cpu")
    assert "test_scores.csv does not hold: it is not one of msgd's" in finding


def test_the_command_is_for_the_folder_of_the_workflow(results, monkeypatch):
    """From elsewhere with --directory; of results by another name nobody knows how."""
    remove(results / "runs/b/default/history.csv")
    again = "make it anew with snakemake --cores all"
    target = "runs/b/default/training.json"
    (finding,) = verify(results, "cpu")
    place = f"--directory {results.parent} --forcerun results/{target}"
    assert finding.endswith(f"{again} {place}")
    monkeypatch.chdir(results.parent)
    (finding,) = verify("results", "cpu")
    assert finding.endswith(f"{again} --forcerun results/{target}")
    results.rename("kept")
    (finding,) = verify("kept", "cpu")
    assert finding.endswith(f"{again} --forcerun kept/{target}")


def test_where_nothing_is_finished_is_said(tmp_path):
    with pytest.raises(UserError, match="holds no finished run"):
        verify(tmp_path)
    (tmp_path / "file").touch()
    for name in ("nosuch", "file"):
        with pytest.raises(UserError, match=f"{name} is not a folder; give the folder of results"):
            verify(tmp_path / name)
