"""The learning curve of a training that has not ended: what is known, and that it is not all."""

import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import as_triple, has_picture, make_dataset, save_npz

from msgd.cli import main
from msgd.data.unpickle import unpickle

KNOWN = 4  # validations of 6


@pytest.fixture
def run(tmp_path, request):
    """The folder of a run by the given rule whose log and files are as after some validations."""
    save_npz(tmp_path / "toy.npz", as_triple(make_dataset(60, 30, 30, (4, 4), 3)))
    unpickle(tmp_path / "toy.npz", tmp_path / "data", "float32")
    run, log = tmp_path / "runs" / "toy" / "default", tmp_path / "logs/train/toy/default.log"
    options = ["--log", log, "--data", tmp_path / "data", "--run", run]
    options += ["--states", tmp_path / "states", "--seconds-between-states", "0"]
    words = ["model=logistic_regression", "batch_size=10", "n_epochs=6", "learning_rate=0.01"]
    assert main(["train", *map(str, options), *words, f"improvement_test={request.param}"]) == 0
    (run / "history.csv").rename(tmp_path / "history.csv")
    for path in (run / "training.json", run / "provenance.json"):
        path.rename(tmp_path / path.name)
    lines = log.read_text().splitlines(keepends=True)
    (last,) = [n for n, line in enumerate(lines) if f"epoch {KNOWN}," in line]
    log.write_text("".join(lines[: last + 1]))
    return run


def draw(run, path):
    return main(["plot", "learning_curve_so_far", "--run", f"{run}", "--output", f"{path}"])


@pytest.mark.parametrize("run", ["threshold", "mcnemar"], indirect=True)
def test_the_curve_so_far_shows_what_is_known(run, tmp_path, drawn):
    assert draw(run / ".." / run.name, tmp_path / "curve.png") == 0
    assert has_picture(tmp_path / "curve.png")
    (figure,) = drawn
    assert figure.get_suptitle() == f"toy: unfinished, drawn in epoch {KNOWN} of at most 6"
    history = pd.read_csv(tmp_path / "history.csv").head(KNOWN)
    errors, cost, patience, *p = figure.axes
    columns = ("validation_error_percent", "cost")
    for axes, column in zip((errors, cost), columns, strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), history["iteration"])
        np.testing.assert_allclose(axes.lines[0].get_ydata(), history[column], atol=1e-6)
    (star,) = errors.lines[1].get_xydata()
    best = history["validation_error_percent"].idxmin()
    assert star.tolist() == [history["iteration"][best], history["validation_error_percent"][best]]
    np.testing.assert_array_equal(
        patience.lines[1].get_ydata()[1:-1],
        history["patience"],
    )
    if "improvement_p" in history:  # which the log does not hold, but the state does
        np.testing.assert_array_equal(p[0].lines[0].get_ydata()[1:], history["improvement_p"][1:])
    assert len(p) == ("improvement_p" in history)


@pytest.mark.parametrize("run", ["threshold"], indirect=True)
def test_a_finished_run_is_drawn_as_such(run, tmp_path, drawn):
    for name in ("training.json", "provenance.json", "history.csv"):
        (tmp_path / name).rename(run / name)
    assert draw(run, tmp_path / "curve.png") == 0  # it goes on, with more epochs
    assert drawn[-1].get_suptitle() == f"toy: unfinished, drawn in epoch {KNOWN} of at most 6"
    (tmp_path / "logs/train/toy/default.log").unlink()
    assert draw(run, tmp_path / "curve.png") == 0
    assert drawn[-1].get_suptitle() == "toy: ended by the cap on epochs in epoch 6"


@pytest.mark.parametrize("run", ["threshold"], indirect=True)
def test_what_cannot_be_drawn_is_reported(run, tmp_path, capsys):
    log = tmp_path / "logs/train/toy/default.log"
    whole = log.read_text()

    def error_of(run):
        assert draw(run, tmp_path / "curve.png") == 1
        assert not (tmp_path / "curve.png").exists()
        return capsys.readouterr().err

    log.write_text("".join(whole.splitlines(keepends=True)[:3]))
    assert "toy/default has had no validation yet" in error_of(run)
    log.write_text("2026-11-26 18:02:37,034 INFO iteration 1: cost 0.5, validation errors 3\n")
    assert "does not say among how many examples" in error_of(run)
    line = "2026-11-26 18:02:37,034 INFO going on from the state after iteration 2\n"
    log.write_text(line + whole)
    shutil.rmtree(tmp_path / "states")
    assert "no longer in" in error_of(run)
    log.unlink()
    assert "has no log of a training of toy/default" in error_of(run)
    assert "is not the folder of a run" in error_of(tmp_path / "data")
