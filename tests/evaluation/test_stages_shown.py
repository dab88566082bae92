"""Runs in stages, and runs without labels, as everything shows them that reads a run."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
import staged
from conftest import as_triple, has_picture, make_dataset, save_npz
from PIL import Image
from rich.console import Console

from msgd.cli import main
from msgd.data.unpickle import unpickle
from msgd.errors import UserError
from msgd.evaluation.opened_run import open_run
from msgd.evaluation.progress import (
    Watcher,
    _gaps,
    _seconds_per_iteration,
    history_so_far,
    read_run_log,
)
from msgd.evaluation.score import score_run
from msgd.evaluation.selection import best_run, score_rows
from msgd.evaluation.tensorboard import write_event_file
from msgd.evaluation.watch import describe
from msgd.files import read_json, write_json
from msgd.plots import weights
from msgd.plots.learning_curve import (
    cost_label,
    plot_learning_curve,
    plot_learning_curve_so_far,
)
from msgd.plots.reconstructions import MOST_IMAGES, corrupted, plot_reconstructions
from msgd.plots.weights import animate_weights, plot_weights
from msgd.report.page import write_report
from msgd.training.loop import Training
from msgd.training_log import TrainingLog

DA, PRETRAINED, SUPERVISED = "da/default", "pretrained/default", "lr/default"
SETTINGS = {
    DA: ["model=da"],
    PRETRAINED: ["model=pretrained", "learning_rate=0.02"],
    SUPERVISED: ["model=logistic_regression", "batch_size=10", "n_epochs=3"],
}


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        staged.register(patch, tmp_path_factory.mktemp("models"))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_npz(folder / "toy.npz", as_triple(make_dataset(46, 40, 20, (4, 5))))
    unpickle(folder / "toy.npz", folder / "arrays", "float32")
    return folder / "arrays"


class Killed(BaseException):
    """Stands for the end of the process."""


def train(data, results, name, killed_at=None):
    """Train as the workflow does, states at every row; killed before so many rows."""
    options = ["--log", results / "logs" / "train" / f"{name}.log", "--data", data]
    options += ["--run", results / "runs" / name, "--states", results / "states"]
    options += ["--seconds-between-states", "0", "--backend", "cpu"]
    record = Training.record

    def dying(self, *row, **more):
        if len(self.history) == killed_at:
            raise Killed
        record(self, *row, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "record", dying)
        try:
            assert main(["train", *map(str, options), *SETTINGS[name]]) == 0
        except Killed:
            assert killed_at is not None


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    """Finished runs of all three kinds, scored where they can be."""
    folder = tmp_path_factory.mktemp("results")
    for name in SETTINGS:
        train(data, folder, name)
        if name != DA:
            score_run(data, folder / "runs" / name, "cpu", 1)
    return folder


def progress_of(results, name):
    return {run.name: run for run in Watcher(results).look()}[name]


# While they train.


@pytest.mark.parametrize("name", [DA, PRETRAINED])
def test_a_training_in_stages_is_followed_through_kills(data, results, tmp_path, name):
    whole = pd.read_csv(results / "runs" / name / "history.csv")
    for n_rows in range(1, len(whole)):
        train(data, tmp_path, name, n_rows)
        found, last = progress_of(tmp_path, name), whole.iloc[n_rows - 1]
        assert found.state == "running"
        assert found.stage == (None if name == DA else last["stage"])
        assert (found.iteration, found.epoch) == (last["iteration"], last["epoch"])
        assert found.cost == pytest.approx(last["cost"], abs=1e-6)
        assert found.cap == {"train": 6, "fine_tune": 8}.get(last["stage"], 3)
        assert found.seconds_left()[1] >= 0
        if last["stage"] == "fine_tune":
            assert found.error_percent == last["validation_error_percent"]
        else:
            assert found.errors is found.best_errors is found.patience_left is None
        rows = pd.DataFrame(history_so_far(tmp_path, read_run_log(tmp_path, name)).rows)
        assert [*rows["stage"]] == [*whole["stage"][:n_rows]]
        del rows["stage"]
        pd.testing.assert_frame_equal(
            rows.astype(float), whole[[*rows]].head(n_rows).astype(float), atol=1e-6, rtol=0
        )


def test_the_speed_is_that_within_a_stage():
    """Between the last epoch of one and the first of the next lies what begins a stage."""
    rows = [("pretrain_1", 2), ("pretrain_1", 4), ("fine_tune", 6), ("fine_tune", 8)]
    log = TrainingLog(
        validations=[{"stage": stage, "iteration": iteration} for stage, iteration in rows],
        times=[0.0, 10.0, 500.0, 510.0],
        began=0.0,
    )
    assert _gaps(log) == [(10.0, 2), (10.0, 2)]
    assert _seconds_per_iteration(log) == 5


def test_what_is_done_of_a_finished_run_is_said(results):
    training = read_json(results / "runs" / DA / "training.json")
    found = progress_of(results, DA)
    assert (found.state, found.detail, found.epoch) == ("finished", "n_epochs", 6)
    assert found.cost == pytest.approx(training["cost"])
    assert found.errors is found.best_errors is found.examples is found.stage is None
    found = progress_of(results, PRETRAINED)
    assert found.stage == "fine_tune"
    assert found.best_errors is not None


def test_a_run_of_a_version_without_stages_is_still_shown(results, tmp_path):
    shutil.copytree(results / "runs" / SUPERVISED, tmp_path / "runs" / SUPERVISED)
    path = tmp_path / "runs" / SUPERVISED / "training.json"
    training = read_json(path)
    del training["stages"]
    write_json(path, training)
    for name in ("history.csv", "timings.csv"):
        table = path.with_name(name)
        pd.read_csv(table).drop(columns="stage").to_csv(table, index=False)
    assert progress_of(tmp_path, SUPERVISED).best_errors == training["validation_errors"]


def lines_of(results, width=200):
    console = Console(width=width, height=50, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(describe(Watcher(results), width))
    return [" ".join(line.split()) for line in captured.get().splitlines()]


def test_the_table_on_a_terminal_shows_costs_where_there_are_no_errors(data, results, tmp_path):
    header, *rows, _, caption = lines_of(results)
    assert header.startswith("run state epoch cost error best")
    cost = read_json(results / "runs" / DA / "training.json")["cost"]
    (row,) = (row for row in rows if row.startswith(DA))
    assert row.startswith(f"{DA} finished 6 of 6 {cost:.6g} ")
    assert "cost: mean of the latest epoch" in caption
    train(data, tmp_path, PRETRAINED, 5)
    (row,) = (row for row in lines_of(tmp_path) if row.startswith(PRETRAINED))
    assert row.startswith(f"{PRETRAINED} running pretrain_2: 2 of 3 ")
    train(data, tmp_path / "other", SUPERVISED)
    assert "cost" not in lines_of(tmp_path / "other")[0]


def test_a_narrow_terminal_leaves_columns_out(results):
    for width in range(30, 130):
        assert all(len(line) <= width for line in lines_of(results, width)), width


# Curves.


def test_without_validation_the_curve_is_the_cost_of_each_epoch(results, tmp_path, drawn):
    plot_learning_curve(results / "runs" / DA, tmp_path / "curve.png", 50)
    assert has_picture(tmp_path / "curve.png")
    (axes,) = drawn[0].axes
    history = pd.read_csv(results / "runs" / DA / "history.csv")
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), history["epoch"])
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), history["cost"])
    assert axes.get_xlabel() == "epoch"
    assert axes.get_ylabel() == "mean cost of the epoch"
    assert drawn[0].get_suptitle() == "da: ended by the cap on epochs in epoch 6"


def test_every_stage_without_validation_has_a_curve_of_its_own(results, tmp_path, drawn):
    plot_learning_curve(results / "runs" / PRETRAINED, tmp_path / "curve.png", 50)
    first, second, errors, cost, patience = drawn[0].axes
    history = pd.read_csv(results / "runs" / PRETRAINED / "history.csv")
    for axes, stage in ((first, "pretrain_1"), (second, "pretrain_2")):
        rows = history[history["stage"] == stage]
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), rows["cost"])
        assert axes.get_ylabel().startswith(stage)
        assert axes.get_xlim()[1] < 4, "it shares no iterations with the last"
    rows = history[history["stage"] == "fine_tune"]
    np.testing.assert_array_equal(errors.lines[0].get_xdata(), rows["iteration"])
    np.testing.assert_array_equal(errors.lines[0].get_ydata(), rows["validation_error_percent"])
    assert errors.get_xlim() == cost.get_xlim() == patience.get_xlim()


@pytest.mark.parametrize(("name", "n_rows", "n_panels"), [(DA, 2, 1), (PRETRAINED, 5, 2)])
def test_an_unfinished_run_has_a_curve_too(data, tmp_path, drawn, name, n_rows, n_panels):
    train(data, tmp_path, name, n_rows)
    plot_learning_curve_so_far(tmp_path / "runs" / name, tmp_path / "curve.png", 50)
    assert len(drawn[0].axes) == n_panels
    cap = {DA: 6, PRETRAINED: 3}[name]
    assert f"unfinished, drawn in epoch 2 of at most {cap}" in drawn[0].get_suptitle()


def test_a_cost_has_the_name_of_what_it_is():
    assert cost_label({"model": "da"}) == cost_label({"model": "ca"}) == "mean cost of the epoch"
    assert cost_label({"model": "rbm", "persistent": True}) == "log pseudo-likelihood"
    assert cost_label({"model": "rbm", "persistent": False}) == "minus the cross-entropy"


# Weights.


def test_weights_without_labels_are_a_square_of_the_last_snapshot(data, tmp_path, drawn, results):
    plot_weights(data, results / "runs" / DA, tmp_path / "weights.png", 50, "RdBu_r")
    assert has_picture(tmp_path / "weights.png")
    assert drawn[0].get_suptitle() == "da: weights of the first layer in epoch 6, 3 units"
    found = weights.load_weight_images(data, results / "runs" / DA)
    run = open_run(results / "runs" / DA, data)
    last = run.best_parameters()["weights"].reshape(3, *run.dataset.image_shape)
    np.testing.assert_array_equal(found.images[-1], last)


def test_a_square_has_a_hundred_units_in_ten_rows(monkeypatch, tmp_path, drawn):
    images = np.random.RandomState(0).normal(size=(3, 100, 4, 4)).astype(np.float32)
    found = weights.WeightImages(["epoch 0", "epoch 1", "epoch 15"], images, 500, is_square=True)
    monkeypatch.setattr(weights, "load_weight_images", lambda *_: found)
    plot_weights("data", "runs/da/default", tmp_path / "weights.png", 50, "RdBu_r")
    pictures = drawn[0].axes[0].images
    assert len(pictures) == 10
    shares = images[-1] / np.abs(images[-1]).max(axis=(1, 2), keepdims=True)
    for picture, row in zip(pictures, shares.reshape(10, 10, 4, 4), strict=True):
        assert picture.get_clim() == (-1, 1)
        np.testing.assert_array_equal(picture.get_array(), weights.side_by_side(row))
    assert "epoch 15, the first 100 of 500 units" in drawn[0].get_suptitle()
    animate_weights("data", "runs/da/default", tmp_path / "weights.gif", 50, "RdBu_r", 3)
    with Image.open(tmp_path / "weights.gif") as animation:
        assert animation.n_frames == 3
        assert animation.width <= 10 * 0.6 * 50 + 1


def test_the_share_of_the_largest_weight_ignores_what_is_not_finite():
    images = np.array([[[1.0, -4.0]], [[np.nan, 2.0]], [[-np.inf, 0.5]], [[0.0, 0.0]]])
    with np.errstate(all="raise"):
        shares = weights.of_their_largest(images)
    expected = [[[0.25, -1.0]], [[np.nan, 1.0]], [[-np.inf, 1.0]], [[0.0, 0.0]]]
    np.testing.assert_array_equal(shares, expected)


def test_what_is_left_over_of_the_last_row_is_empty():
    images = np.arange(7.0).reshape(7, 1, 1)
    rows = weights.in_rows(images, 3)
    assert rows.shape == (3, 3, 1, 1)
    np.testing.assert_array_equal(rows.ravel(), [*range(7), np.nan, np.nan])


def test_a_snapshot_is_of_a_stage_and_its_epoch(data, results):
    found = weights.load_weight_images(data, results / "runs" / PRETRAINED)
    names = ["pretrain_1, epoch 0", "pretrain_1, epoch 1", "pretrain_1, epoch 2"]
    assert found.titles[:3] == names
    assert found.titles[3:6] == [
        "pretrain_1, epoch 3",
        "pretrain_2, epoch 1",
        "pretrain_2, epoch 3",
    ]
    assert found.titles[6].startswith("fine_tune, epoch ")
    assert not found.is_square


# Reconstructions.


def test_reconstructions_stand_below_what_they_are_of(data, results, tmp_path, drawn):
    plot_reconstructions(data, results / "runs" / DA, tmp_path / "pictures.png", 50)
    assert has_picture(tmp_path / "pictures.png")
    run = open_run(results / "runs" / DA, data)
    shape, n = run.dataset.image_shape, MOST_IMAGES
    shown = np.stack([axes.images[0].get_array() for axes in drawn[0].axes])
    images, given, made = shown.reshape(3, n, -1)
    np.testing.assert_array_equal(images, run.dataset.images("test", slice(0, n)))
    np.testing.assert_array_equal(given, corrupted(images, 0.25, run.settings["seed"]))
    best = run.best_parameters()
    np.testing.assert_array_equal(made, staged.reconstructions(best, given))
    assert shown.shape == (3 * n, *shape)
    labels = [axes.get_ylabel() for axes in drawn[0].axes if axes.get_ylabel()]
    assert labels == ["images", "25 % set to 0", "reconstructions"]


def test_without_corruption_there_is_no_row_of_it(data, tmp_path, monkeypatch, drawn):
    monkeypatch.setitem(SETTINGS, DA, ["model=da", "corruption=0"])
    train(data, tmp_path, DA)
    plot_reconstructions(data, tmp_path / "runs" / DA, tmp_path / "pictures.png", 50)
    assert len(drawn[0].axes) == 2 * MOST_IMAGES


def test_a_model_that_reconstructs_nothing_says_so(data, results, tmp_path):
    with pytest.raises(UserError, match="which reconstructs no images; those that do: da, ca"):
        plot_reconstructions(data, results / "runs" / SUPERVISED, tmp_path / "pictures.png", 50)


def test_as_many_pixels_are_set_to_zero_as_asked():
    images = np.ones((50, 1000))
    found = corrupted(images, 0.3, 7)
    assert {*np.unique(found)} == {0, 1}
    assert 0.69 < found.mean() < 0.71
    np.testing.assert_array_equal(corrupted(images, 0, 7), images)


# Scores and selection are for classifiers.


def test_without_labels_there_is_no_score_and_no_part_in_a_selection(data, results):
    run = results / "runs" / DA
    for ask in (
        lambda: score_run(data, run, "cpu", 1),
        lambda: score_rows([results / "runs" / SUPERVISED, run]),
        lambda: best_run([results / "runs" / SUPERVISED, run]),
    ):
        with pytest.raises(UserError, match=rf"{run} is of the model da, which learns without"):
            ask()


def test_a_pretrained_classifier_takes_part(results):
    runs = [results / "runs" / name for name in (SUPERVISED, PRETRAINED)]
    assert best_run(runs) in runs
    rows = score_rows(runs)
    assert sum(row["selected"] for row in rows) == 1
    assert rows[1]["best_epoch"] <= rows[1]["epochs_run"] <= 8


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("training.json", lambda t: {**t, "cost": None}, "cost is None"),
        ("training.json", lambda t: {**t, "cost": 1.5}, "holds files of two runs: history.csv"),
        ("training.json", lambda t: {**t, "iterations_run": None}, "iterations_run is None"),
    ],
)
def test_what_is_not_whole_is_named(results, tmp_path, file, change, message):
    run = tmp_path / "da" / "default"
    shutil.copytree(results / "runs" / DA, run)
    write_json(run / file, change(read_json(run / file)))
    with pytest.raises(UserError, match=re.escape(message)):
        open_run(run).history()


def test_timings_of_another_stage_are_not_the_runs(results, tmp_path):
    run = tmp_path / "da" / "default"
    shutil.copytree(results / "runs" / DA, run)
    text = (run / "timings.csv").read_text()
    (run / "timings.csv").write_text(text.replace("train,", "pretrain_1,"))
    with pytest.raises(UserError, match=r"timings.csv is not of the rows in history.csv"):
        open_run(run).seconds()


def test_counts_of_validations_are_whole_numbers_beside_rows_without_any(results):
    validations = open_run(results / "runs" / PRETRAINED).validations()
    assert {*validations["stage"]} == {"fine_tune"}
    for name in ("validation_errors", "patience", "best_validation_errors", "best_iteration"):
        assert validations[name].dtype == np.int64


# The page and TensorBoard.


def test_the_page_tells_what_was_learned_without_labels(data, results, tmp_path):
    folders = [results / "runs" / name for name in SETTINGS]
    write_report(folders, data, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count('id="unlabelled"') == 1
    titles = re.findall("<h3>(.*?)</h3>", text[text.index('id="unlabelled"') :])
    assert titles[:3] == ["da", "pretrained, pretrain_1", "pretrained, pretrain_2"]
    history = pd.read_csv(results / "runs" / DA / "history.csv")
    first, last = history["cost"].iloc[0], history["cost"].iloc[-1]
    assert f"from {first:.4g} in the first epoch to {last:.4g} in epoch 6" in text
    assert text.count('<figure class="square">') == 1
    assert "The weights of each of the 3 units after epoch 6" in text


def test_of_a_grid_the_page_has_no_curves_of_runs_that_were_not_selected(data, results, tmp_path):
    for name in ("learning_rate=1", "learning_rate=2"):
        shutil.copytree(results / "runs" / PRETRAINED, tmp_path / "pretrained" / name)
    runs = [results / "runs" / SUPERVISED, *(tmp_path / "pretrained").iterdir()]
    write_report(runs, data, tmp_path / "report.html")
    assert "unlabelled" not in (tmp_path / "report.html").read_text()


def test_the_page_of_classifiers_alone_has_no_such_section(data, results, tmp_path):
    write_report([results / "runs" / SUPERVISED], data, tmp_path / "report.html")
    assert "unlabelled" not in (tmp_path / "report.html").read_text()


def test_without_an_answer_there_is_no_page(data, results, tmp_path):
    with pytest.raises(UserError, match="none of these runs predicts classes"):
        write_report([results / "runs" / DA], data, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", [DA, PRETRAINED])
def test_event_files_count_steps_through_all_stages(results, tmp_path, name):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    write_event_file(results / "runs" / name, tmp_path)
    events = accumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    history = pd.read_csv(results / "runs" / name / "history.csv")
    from tensorboard.util.tensor_util import make_ndarray

    costs = events.Tensors("training/cost")
    assert [cost.step for cost in costs] == sorted({cost.step for cost in costs})
    found = [float(make_ndarray(cost.tensor_proto)) for cost in costs]
    np.testing.assert_allclose(found, history["cost"], rtol=1e-6)
    training = read_json(results / "runs" / name / "training.json")
    total = sum(stage["iterations_run"] for stage in training["stages"])
    assert costs[-1].step <= total
    if name == DA:
        assert costs[-1].step == total
        assert "validation/error_percent" not in events.Tags()["tensors"]
