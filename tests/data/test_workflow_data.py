"""Data as people have them, through the workflow: a file below ~, without a validation part."""

import json
import pickle

import numpy as np
import pytest
import yaml
from conftest import snakemake

EXPERIMENTS = {"a": {"model": "logistic_regression", "batch_size": 25, "n_epochs": 1}}


def write_config(folder, **config):
    text = yaml.safe_dump({"experiments": EXPERIMENTS, **config})
    (folder / "config.yaml").write_text(text)


@pytest.fixture
def home(tmp_path):
    """A home folder with Keras-like data of 0 to 16: whole numbers, one channel, no validation."""
    random = np.random.RandomState(0)
    arrays = {}
    for split, n in (("train", 60), ("test", 20)):
        arrays[f"x_{split}"] = random.randint(0, 17, (n, 4, 4, 1))
        arrays[f"y_{split}"] = np.arange(n)[:, None] % 3
    (tmp_path / "home").mkdir()
    np.savez(tmp_path / "home" / "toy.npz", **arrays)
    return tmp_path / "home"


def test_they_are_read_and_what_was_assumed_is_said(tmp_path, home):
    write_config(tmp_path, dataset="~/toy.npz")
    summary = tmp_path / "results" / "data" / "toy" / "dataset.json"
    target = summary.relative_to(tmp_path)
    done = snakemake(tmp_path, "--cores", "1", target, HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert json.loads(summary.read_text())["examples"] == {"train": 50, "valid": 10, "test": 20}
    assert done.stderr.count("whole numbers of at most 16") == 1
    log = (tmp_path / "results" / "logs" / "unpickle.log").read_text()
    assert "the last 10 of 60 training images are split off" in log
    again = snakemake(tmp_path, "-n", target, HOME=str(home))
    assert "Nothing to be done" in again.stdout + again.stderr


def test_settings_are_checked_against_what_is_left_for_training(tmp_path, home):
    settings = {**EXPERIMENTS["a"], "batch_size": 51}
    write_config(tmp_path, dataset="~/toy.npz", experiments={"a": settings})
    done = snakemake(tmp_path, "--cores", "1", HOME=str(home))
    assert done.returncode != 0
    assert "batch_size is 51; allowed: at most 50" in done.stderr


def test_a_pickle_says_how_many_it_has_once_it_has_been_read(tmp_path):
    """It has no header to be read before; so the training refuses, before its first minibatch."""
    pair = np.random.RandomState(0).rand(60, 16).astype(np.float32), np.arange(60) % 3
    (tmp_path / "toy.pkl").write_bytes(pickle.dumps((pair, pair, pair)))
    settings = {**EXPERIMENTS["a"], "batch_size": 61}
    write_config(tmp_path, dataset="toy.pkl", experiments={"a": settings})
    done = snakemake(tmp_path, "--cores", "1", "results/runs/a/default/history.csv")
    assert done.returncode != 0
    assert "batch_size is 61; allowed: at most 60, the number of training examples" in done.stderr
    assert not (tmp_path / "results" / "runs" / "a" / "default" / "history.csv").exists()


@pytest.mark.parametrize("path", ["~/absent.npz", "absent/toy.npz"])
def test_a_path_not_found_is_reported_with_its_folder(tmp_path, home, path):
    write_config(tmp_path, dataset=path)
    done = snakemake(tmp_path, "--cores", "1", HOME=str(home))
    assert done.returncode != 0
    folder = home if "~" in path else tmp_path / "absent"
    assert f"it was sought in {folder}" in done.stderr
    assert "Traceback" not in done.stderr
