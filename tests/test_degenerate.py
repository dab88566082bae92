"""Results that are extreme but legitimate: every command writes its files, whatever the model.

Through the msgd program, called in this process, where a warning is an error.
"""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import toy
from conftest import as_triple, make_dataset, save_npz
from PIL import Image

from msgd.cli import main
from msgd.models import CLASSIFIERS

FIGURES = {
    "learning_curve": "curve.png",
    "weights": "weights.png",
    "weights_animation": "weights.gif",
    "confusion": "confusion.png",
    "mistakes": "mistakes.png",
}


def triple_of(**changes):
    """Return three pairs (images, labels) of four classes."""
    sizes = {"n_train": 40, "n_valid": 20, "n_test": 20, "shape": toy.SHAPE, "n_classes": 4}
    return as_triple(make_dataset(**{**sizes, **changes}))


class Run:
    """A data set and a run of ``model`` in a folder, and what every command makes of them."""

    def __init__(self, folder, model, triple, *words):
        self.folder, self.data = folder, folder / "data"
        self.run = folder / "runs" / "toy" / "seed=1"
        folder.mkdir(exist_ok=True)
        save_npz(folder / "toy.npz", triple)
        self.call("unpickle", folder / "toy.npz", "--output", self.data)
        changes = dict(word.split("=") for word in words)
        self.train(toy.words_of(model, **{"batch_size": 10, **changes}))

    def call(self, *words):
        assert main([*map(str, words)]) == 0

    def train(self, words):
        where = ("--data", self.data, "--run", self.run, "--backend", "cpu")
        self.call("train", *where, *words)
        self.call("score", *where)

    def read(self, name):
        return json.loads((self.run / name).read_text())

    @property
    def history(self):
        return pd.read_csv(self.run / "history.csv")

    @property
    def predicted(self):
        with np.load(self.run / "test_predictions.npz") as arrays:
            return arrays["predicted"]

    def finish(self):
        """Make tables, card and figures; check that each is there and holds something."""
        out = self.folder / "out"
        self.call("tabulate", "--output", out, self.run)
        self.call("compare-published", "--output", out, self.run)
        self.call("select", "--data", self.data, "--output", out, self.run)
        where = ("--data", self.data, "--run", self.run, "--dpi", 30)
        for figure, name in FIGURES.items():
            self.call("plot", figure, *where, "--output", out / name)
        self.call("report", "--data", self.data, "--output", out / "report.html", self.run)
        equal = self.run.with_name("equal")
        shutil.copytree(self.run, equal, dirs_exist_ok=True)
        over = ("--over", "seed", "--runs", self.run, equal)
        self.call("plot", "validation_error_over", *over, "--dpi", 30, "--output", out / "over.png")
        for name in [*FIGURES.values(), "over.png"]:
            with Image.open(out / name) as image:
                colours = image.convert("RGB").getcolors(maxcolors=10**6)
                assert len(colours) > 5, f"{name} is blank"
        for name in (
            "test_scores.html",
            "published.md",
            "model_card.html",
            "best_model.npz",
            "report.html",
        ):
            assert (out / name).stat().st_size > 0
        return out


def relabelled(triple, test_y):
    train, valid, (test_x, _) = triple
    return train, valid, (test_x, test_y)


@pytest.mark.parametrize("model", CLASSIFIERS)
@pytest.mark.parametrize("shift", [0, 1])
def test_no_mistakes_and_nothing_but_mistakes(tmp_path, model, shift):
    """The test labels are the predictions, or all others."""
    first = Run(tmp_path / "first", model, triple_of(), "n_epochs=2")
    labels = (first.predicted + shift) % 4
    second = Run(tmp_path / "second", model, relabelled(triple_of(), labels), "n_epochs=2")
    assert second.read("score.json")["all_test_errors"] == shift * 20
    second.finish()


@pytest.mark.parametrize("model", CLASSIFIERS)
def test_the_least_of_everything(tmp_path, model):
    """Two classes, one validation and one test example, one minibatch, trained once."""
    triple = triple_of(n_train=6, n_valid=1, n_test=1, n_classes=2)
    run = Run(tmp_path, model, triple, "batch_size=all", "n_epochs=1")
    assert run.history["validation_errors"].notna().sum() == 1
    assert run.read("score.json")["all_test_examples"] == 1
    run.finish()
    for snapshot in sorted((run.run / "snapshots").iterdir())[1:]:
        snapshot.unlink()
    run.finish()


@pytest.mark.parametrize("model", CLASSIFIERS)
def test_pixels_that_say_nothing(tmp_path, model):
    """All are zero: so are weights, or their gradients; one class is predicted and no other."""
    triple = triple_of()
    black = [(np.zeros_like(x), y) for x, y in triple]
    run = Run(tmp_path, model, relabelled(black, triple[2][1] % 3), "n_epochs=2")
    assert len(np.unique(run.predicted)) == 1
    run.finish()


@pytest.mark.parametrize("model", toy.SGD_MODELS)
def test_a_training_that_diverged_late(tmp_path, model):
    """Each step multiplies the weights by -19; the last snapshot holds what came of it."""
    words = ("learning_rate=10", "l2=1", "validation_frequency=1", "n_epochs=100")
    run = Run(tmp_path, model, triple_of(), *words)
    assert run.read("training.json")["stopped_by"] == "divergence"
    assert len(run.history) > 1
    run.finish()


def test_conjugate_gradients_that_begin_at_the_minimum(tmp_path):
    """Nothing is better than where they begin; going on from that finds the same."""
    black = [(np.zeros_like(x), y) for x, y in triple_of()]
    run = Run(tmp_path, "logistic_cg", black, "n_epochs=9")
    assert run.history[["iteration", "epoch", "best_iteration"]].to_numpy().tolist() == [[0, 0, 0]]
    training = run.read("training.json")
    assert (training["epochs_run"], training["stopped_by"]) == (0, "convergence")
    assert len(list((run.run / "snapshots").iterdir())) == 1
    history = (run.run / "history.csv").read_bytes()
    words = toy.words_of("logistic_cg", batch_size=10, n_epochs=9)
    for _ in range(2):  # the second goes on from the state of the first
        run.train([*words, "--states", tmp_path / "states", "--seconds-between-states", 0])
        assert (run.run / "history.csv").read_bytes() == history
    run.finish()


@pytest.mark.parametrize("words", [["l2=1.0e+30"], ["lp=1.0e+20", "p=9"], ["l1=1.0e+38"]])
def test_conjugate_gradients_that_overflow(tmp_path, caplog, words):
    """They keep what they came to, or say that they came to nothing."""
    try:
        run = Run(tmp_path, "logistic_cg", triple_of(), *words)
    except AssertionError:
        assert "error: conjugate gradients made no iteration" in caplog.text
        assert "please report" not in caplog.text
    else:
        run.finish()


@pytest.mark.parametrize("cost", [[np.nan], [0.0, np.nan, np.inf], [np.inf, np.inf], [0.0, 0.0]])
def test_costs_that_are_no_numbers_are_left_out_of_the_curve(tmp_path, cost):
    run = Run(
        tmp_path, "logistic_regression", triple_of(), "n_epochs=3", "improvement_test=mcnemar"
    )
    history = run.history.tail(len(cost)).assign(cost=cost)  # its end is that of training.json
    history.to_csv(run.run / "history.csv", index=False)
    timings = pd.read_csv(run.run / "timings.csv").tail(len(cost))
    timings.to_csv(run.run / "timings.csv", index=False)
    run.finish()


@pytest.mark.parametrize("model", CLASSIFIERS)
def test_a_cost_of_zero(tmp_path, model):
    """Each class has pixels of its own, and steps are so large that the softmax is 0 or 1."""
    triple = [(np.repeat(np.eye(4)[y] * 255 / 256, 16, axis=1), y) for _, y in triple_of()]
    big = () if model == "logistic_cg" else ("learning_rate=3000", "validation_frequency=1")
    run = Run(tmp_path, model, triple, *big, "n_epochs=60")
    if model == "logistic_regression":
        assert (run.history["cost"] == 0).any()
        assert run.read("training.json")["validation_errors"] == 0
    run.finish()
