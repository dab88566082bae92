"""Figures from saved files: of the right size and frames, and true where numbers are shown."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import as_triple, has_picture, make_dataset, save_npz
from PIL import Image

from msgd.config import complete_experiment
from msgd.data.dataset import load_dataset
from msgd.data.unpickle import unpickle
from msgd.evaluation.score import score_run
from msgd.models import MODELS, load_model
from msgd.plots import learning_curve, weights
from msgd.plots.learning_curve import plot_learning_curve
from msgd.plots.mistakes import (
    confusion_matrix,
    plot_confusion,
    plot_mistakes,
    worst_mistakes,
)
from msgd.plots.weights import animate_weights, plot_weights
from msgd.training.run import run_training
from msgd.training.snapshots import load_parameters


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(data folder, run folder) of a trained and scored toy run of 5 epochs, 5 validations."""
    root = tmp_path_factory.mktemp("toy")
    save_npz(root / "toy.npz", as_triple(make_dataset(60, 30, 30, (4, 4), 3)))
    unpickle(root / "toy.npz", root / "data", "float32")
    run = root / "runs" / "toy" / "default"
    settings = complete_experiment(
        {"model": "logistic_regression", "batch_size": 10, "n_epochs": 5}
    )
    run_training(root / "data", run, settings, "cpu", "float32", 1)
    score_run(root / "data", run, "cpu", 1)
    return root / "data", run


def test_confusion_matrix_counts_labels_in_rows():
    matrix = confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_the_worst_mistakes_are_those_of_the_smallest_probability():
    assert worst_mistakes(np.array([0.3, 0.1, 0.2, 0.05]), 3).tolist() == [3, 1, 2]


@pytest.mark.parametrize("name", MODELS)
def test_weight_images_hold_the_weights_of_a_unit(name):
    dataset = make_dataset(40, 20, 20, (17, 18), 3)
    model = load_model(name)
    settings = complete_experiment({"model": name})
    parameters = model.initial_parameters(dataset, settings, np.float64)
    first = next(iter(parameters.values()))
    first[:] = np.random.RandomState(0).normal(size=first.shape)
    images = model.weight_images(parameters, dataset.image_shape)
    if first.ndim == 2:  # of the pixels
        np.testing.assert_array_equal(images[2], first[:, 2].reshape(17, 18))
    else:  # filters
        np.testing.assert_array_equal(images[2], first[2, 0])


def test_the_learning_curve_shows_the_history(folders, tmp_path, drawn):
    _, run = folders
    plot_learning_curve(run, tmp_path / "curve.png", 50)
    assert has_picture(tmp_path / "curve.png")
    errors, cost, _ = drawn[0].axes
    history = pd.read_csv(run / "history.csv")
    for axes, column in ((errors, "validation_error_percent"), (cost, "cost")):
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), history["iteration"])
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), history[column])
    (star,) = errors.lines[1].get_xydata()
    best = history["validation_error_percent"].idxmin()  # the first of equal ones
    assert star.tolist() == [history["iteration"][best], history["validation_error_percent"][best]]


@pytest.mark.parametrize(
    ("iterations", "of_epochs"),
    [
        ([10], [0, 1]),
        ([10, 20], [0, 1, 2]),
        ([10, 20, 30], [0, 1, 2, 3]),
        ([5, 10], [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_the_axes_of_few_epochs_have_whole_ones(iterations, of_epochs):
    """Unless validations lie within them."""
    n = len(iterations)
    columns = {"epoch": np.arange(1, n + 1), "iteration": iterations, "stage": "train"}
    columns |= {"cost": 1.5, "validation_errors": 5, "best_validation_errors": 5}
    history = pd.DataFrame({**columns, "validation_error_percent": 50.0, "patience": 90})
    history["best_iteration"] = iterations[0]
    best = {"best_iteration": iterations[0], "best_epoch": 1, "validation_errors": 5}
    rest = {"validation_examples": 10, "n_train_batches": 10, "stopped_by": "n_epochs"}
    training = {**best, **rest, "iterations_run": iterations[-1]}
    figure = learning_curve._figure(history, training, {"patience": 90})
    figure.canvas.draw()
    (epochs,) = figure.axes[0].child_axes
    low, high = epochs.get_xlim()
    ticks = [float(tick) for tick in epochs.get_xticks() if low <= tick <= high]
    np.testing.assert_allclose(ticks, of_epochs, atol=1e-12)
    assert not [tick for tick in figure.axes[-1].get_xticks() if tick % 1]
    unlabelled = history.assign(validation_errors=np.nan)
    figure = learning_curve._figure(unlabelled, training, {})
    figure.canvas.draw()
    assert not [tick for tick in figure.axes[0].get_xticks() if tick % 1]
    plt.close("all")


def test_the_sheet_of_weights_shows_every_snapshot(folders, tmp_path, drawn):
    data, run = folders
    plot_weights(data, run, tmp_path / "weights.png", 50, "RdBu_r")
    assert has_picture(tmp_path / "weights.png")
    sheet = drawn[0].axes[0]
    snapshots = [load_parameters(path) for path in sorted((run / "snapshots").iterdir())]
    expected = [p["weights"].T.reshape(-1, 4, 4) for p in snapshots]
    assert len(expected) == 6
    largest = np.abs(expected).max()
    for top, (shown, images) in enumerate(zip(sheet.images, expected, strict=True)):
        np.testing.assert_array_equal(cut(shown, 3, 4), images)
        left, right, low, high = shown.get_extent()
        assert (left, right, high) == (0, pytest.approx(3 - weights.GAP), top)
        assert low == pytest.approx(top + 1 - weights.GAP)
        assert shown.get_clim() == pytest.approx((-largest, largest))
    assert [label.get_text() for label in sheet.get_xticklabels()] == ["0", "1", "2"]
    titles = [label.get_text() for label in sheet.get_yticklabels()]
    assert titles == [f"epoch {k}" for k in range(6)]


@pytest.mark.parametrize(
    ("iteration", "words"),
    [
        (0, "pretrain_1, epoch 0"),
        (5, "pretrain_1, epoch 1"),
        (7, "train, epoch 1, minibatch 2/3"),
        (8, "train, epoch 1"),
        (10, "train, epoch 2, minibatch 2/3"),
    ],
)
def test_a_snapshot_within_an_epoch_says_its_minibatch(iteration, words):
    stages = [
        {"name": "pretrain_1", "n_train_batches": 5, "iterations_run": 5},
        {"name": "train", "n_train_batches": 3, "iterations_run": 5},
    ]
    assert weights._when(iteration, stages) == words
    if words.startswith("train"):
        alone = weights._when(iteration - 5, stages[1:])
        assert alone == words.removeprefix("train, ")


def cut(picture, n, width):
    """Return the ``n`` images (n, height, width) that a row holds side by side, gaps between."""
    array = picture.get_array().filled(np.nan)
    bounds = np.flatnonzero(np.diff(np.isnan(array).all(axis=0), prepend=True, append=True))
    assert len(bounds) == 2 * n
    found = [array[:, a:b] for a, b in bounds.reshape(n, 2)]
    assert len({image.shape for image in found}) == 1
    times = found[0].shape[1] // width
    for image in found:
        np.testing.assert_array_equal(image, np.repeat(image[:, ::times], times, axis=1))
    return np.stack([image[:, ::times] for image in found])


@pytest.mark.parametrize(("n", "shape"), [(1, (4, 4)), (3, (28, 28)), (10, (5, 5)), (2, (1, 784))])
def test_images_side_by_side_have_a_gap_between_them_of_one_share(n, shape):
    images = np.random.RandomState(0).normal(size=(n, *shape)).astype(np.float32)
    row = weights.side_by_side(images)
    assert row.dtype == np.float32
    picture = type("Picture", (), {"get_array": lambda self: np.ma.masked_array(row)})()
    np.testing.assert_array_equal(cut(picture, n, shape[1]), images)
    gap = np.count_nonzero(np.isnan(row).all(axis=0)) / max(n - 1, 1)
    assert n == 1 or gap / ((row.shape[1] + gap) / n) == pytest.approx(weights.GAP, abs=0.01)


def test_the_confusion_matrix_shows_the_counts(folders, tmp_path, drawn):
    data, run = folders
    plot_confusion(data, run, tmp_path / "confusion.png", 50)
    assert has_picture(tmp_path / "confusion.png")
    (axes,) = drawn[0].axes
    with np.load(run / "test_predictions.npz") as arrays:
        matrix = confusion_matrix(np.load(data / "test_y.npy"), arrays["predicted"], 3)
    written = {text.get_position(): int(text.get_text()) for text in axes.texts}
    assert written == {(c, r): matrix[r, c] for r, c in np.ndindex(3, 3)}
    np.fill_diagonal(matrix, 0)
    assert matrix.any()
    np.testing.assert_array_equal(axes.images[0].get_array(), matrix)


def test_the_worst_mistakes_are_shown_with_their_images(folders, tmp_path, drawn):
    data, run = folders
    dataset = load_dataset(data)
    parameters, settings = load_parameters(run / "best_parameters.npz"), None
    images = dataset.images("test", slice(None))
    found = load_model("logistic_regression").probabilities(parameters, images, settings, (4, 4))
    predicted, labels = found.argmax(axis=1), dataset.test_y
    wrong = [i for i in range(len(labels)) if predicted[i] != labels[i]]
    worst = sorted(wrong, key=lambda i: found[i, labels[i]])[:4]
    assert worst
    plot_mistakes(data, run, tmp_path / "mistakes.png", 50, 4)
    assert has_picture(tmp_path / "mistakes.png")
    shown = [axes for axes in drawn[0].axes if axes.images]
    for axes, i in zip(shown, worst, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array().ravel(), images[i])
        assert axes.get_title().startswith(f"it says {predicted[i]}: ")
        label, number = (text.get_text() for text in axes.texts)
        assert label.startswith(f"label {labels[i]}: ")
        assert number == f"#{i}"


@pytest.mark.parametrize(
    ("changes", "panels"),
    [
        ({"model": "logistic_regression"}, 3),
        ({"model": "logistic_regression", "improvement_test": "mcnemar"}, 4),
        ({"model": "logistic_cg"}, 2),
    ],
)
def test_the_learning_curve_shows_what_its_rule_saw(folders, tmp_path, drawn, changes, panels):
    run = tmp_path / "toy" / "seed=3"
    settings = complete_experiment({"batch_size": 10, "n_epochs": 5, **changes})
    run_training(folders[0], run, settings, "cpu", "float32", 1)
    plot_learning_curve(run, tmp_path / "curve.png", 50)
    (figure,) = drawn
    assert len(figure.axes) == panels
    assert figure.get_suptitle().startswith("toy seed=3: ended by")
    if panels == 4:
        drawn = figure.axes[3].lines[0].get_ydata()
        p = pd.read_csv(run / "history.csv")["improvement_p"]
        np.testing.assert_array_equal(drawn, np.maximum(p, 1e-6))


def test_the_dpi_sets_the_size(folders, tmp_path):
    _, run = folders
    sizes = []
    for dpi in (40, 80):
        plot_learning_curve(run, tmp_path / "curve.png", dpi)
        with Image.open(tmp_path / "curve.png") as image:
            sizes.append(image.size)
    assert sizes[1] == (2 * sizes[0][0], 2 * sizes[0][1])


def test_the_animation_has_a_frame_per_snapshot(folders, tmp_path):
    data, run = folders
    animate_weights(data, run, tmp_path / "weights.gif", 50, "RdBu_r", 3)
    with Image.open(tmp_path / "weights.gif") as image:
        assert image.n_frames == len(list((run / "snapshots").glob("*.npz"))) == 6
        frames = []
        for number in range(6):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
    below_the_title = frames[0].shape[0] // 3
    for one, next_one in pairwise(frame[below_the_title:] for frame in frames):
        assert (one != next_one).any()


def test_a_last_row_of_the_animation_may_not_be_full(monkeypatch, tmp_path):
    images = np.ones((2, 7, 3, 3), np.float32)
    found = weights.WeightImages(["epoch 0", "epoch 1"], images, 7)
    monkeypatch.setattr(weights, "load_weight_images", lambda *_: found)
    rows = []
    monkeypatch.setattr(weights, "draw_rows", keep_rows(weights.draw_rows, rows))
    animate_weights("data", "run", tmp_path / "weights.gif", 50, "RdBu_r", 3)
    (drawn,) = rows
    assert drawn.shape == (2, 5, 3, 3)
    assert np.isfinite(drawn.reshape(10, 9)).all(axis=1).tolist() == [True] * 7 + [False] * 3


def keep_rows(function, rows):
    def keep(axes, images, **options):
        rows.append(images)
        return function(axes, images, **options)

    return keep
