"""Comparison of the runs of a grid: the right means and winner, and a figure that can be read."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from msgd.config import compared_hyperparameters, complete_config, expand_grid
from msgd.errors import UserError
from msgd.evaluation.opened_run import TRAINING_NUMBERS
from msgd.files import write_json
from msgd.plots import comparison
from msgd.plots.comparison import compare_runs, plot_validation_error_over
from msgd.plots.style import BLUE, GREY, LINES


def make_grid(root, errors, model="mlp", **grid):
    """Write the runs of a grid; ``errors``: of 1000 examples, in the order of the runs."""
    experiment = complete_config({"experiments": {"toy": {"model": model, **grid}}})
    runs = expand_grid(experiment["experiments"]["toy"])
    folders = []
    for (name, settings), count in zip(runs.items(), errors, strict=False):
        folders.append(root / "toy" / name)
        training = dict.fromkeys(TRAINING_NUMBERS, 10)
        training |= {"validation_errors": count, "validation_examples": 1000}
        write_json(folders[-1] / "training.json", training)
        write_json(folders[-1] / "provenance.json", {"settings": settings, "data": {"sha256": {}}})
    assert len(folders) == len(runs)
    return folders, compared_hyperparameters(experiment["experiments"]["toy"])


def drawn(folders, key, monkeypatch):
    """Return the figure over ``key``, drawn but not saved."""
    figures = []
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "save_figure", lambda figure, path, dpi: figures.append(figure))
        plot_validation_error_over(folders, key, "x.png", 100)
    (figure,) = figures
    figure.canvas.draw()
    return figure


def lines_of(axes):
    """Return the lines of the figure but the star's."""
    return [line for line in axes.lines if line.get_marker() != "*"]


def star_of(axes):
    (star,) = (line for line in axes.lines if line.get_marker() == "*")
    return star


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_seeds_are_the_spread_of_the_others(tmp_path):
    # Runs: rate 0.1 with seeds 1, 2, then rate 0.01 with seeds 1, 2.
    folders, keys = make_grid(tmp_path, [40, 20, 30, 70], learning_rate=[0.1, 0.01], seed=[1, 2])
    assert keys == ["learning_rate"]
    found = compare_runs(folders, "learning_rate")
    assert found.values == [0.01, 0.1]
    assert found.others == []
    assert found.lines == {"": {0: [3.0, 7.0], 1: [4.0, 2.0]}}
    assert found.n_seeds == 2
    assert (found.best["index"], found.best["percent"]) == (1, 2.0)
    assert found.best["words"] == "learning_rate=0.1, seed=2"


def test_a_line_per_combination_of_the_others(tmp_path):
    grid = {"learning_rate": [0.1, 0.2], "n_hidden": [5, [5, 5]], "activation": ["tanh", "sigmoid"]}
    folders, keys = make_grid(tmp_path, range(10, 18), **grid)
    assert keys == ["learning_rate", "n_hidden", "activation"]
    found = compare_runs(folders, "n_hidden")
    assert found.values == [5, [5, 5]]
    assert found.lines == {
        "learning_rate=0.1, activation=tanh": {0: [1.0], 1: [1.2]},
        "learning_rate=0.1, activation=sigmoid": {0: [1.1], 1: [1.3]},
        "learning_rate=0.2, activation=tanh": {0: [1.4], 1: [1.6]},
        "learning_rate=0.2, activation=sigmoid": {0: [1.5], 1: [1.7]},
    }


def test_an_unknown_hyperparameter_is_reported(tmp_path):
    folders, _ = make_grid(tmp_path, [1], model="logistic_regression")
    with pytest.raises(UserError, match="has no hyperparameter n_hidden; it has: model, learn"):
        compare_runs(folders, "n_hidden")


def test_mean_range_and_winner_are_where_they_belong(tmp_path, monkeypatch):
    errors = [40, 30, 20, 70, 90, 100]
    folders, _ = make_grid(tmp_path, errors, learning_rate=[0.01, 0.1, 1.0], seed=[1, 2])
    (axes,) = drawn(folders, "learning_rate", monkeypatch).axes
    (line,) = lines_of(axes)
    np.testing.assert_allclose(line.get_xydata(), [[0.01, 3.5], [0.1, 4.5], [1, 9.5]])
    (bars,) = axes.collections
    spans = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert spans == [[3.0, 4.0], [2.0, 7.0], [9.0, 10.0]]
    np.testing.assert_allclose(star_of(axes).get_xydata(), [[0.1, 2]])
    assert "mean and range of 2 seeds" in axes.get_ylabel()
    assert axes.get_xscale() == "log"


@pytest.mark.parametrize(
    ("grid", "scale", "labels"),
    [
        ({"learning_rate": [0.1, 0.001, 0.01]}, "log", ["0.001", "0.01", "0.1"]),
        ({"learning_rate": [0.1, 0.2, 0.15]}, "linear", ["0.1", "0.15", "0.2"]),
        ({"l2": [0.01, 0.0, 0.0001]}, "linear", ["0", "0.0001", "0.01"]),
        ({"batch_size": [600, "all", 20]}, "linear", ["600", "all", "20"]),
        ({"validation_frequency": [None, 5]}, "linear", ["null", "5"]),
        ({"nkerns": [[20, 50], [9]], "model": "lenet"}, "linear", ["[20, 50]", "[9]"]),
        ({"seed": [23455, 1]}, "linear", ["1", "23455"]),
    ],
)
def test_the_axis_suits_the_values(tmp_path, monkeypatch, grid, scale, labels):
    folders, (key,) = make_grid(tmp_path, range(30, 40), **grid)
    (axes,) = drawn(folders, key, monkeypatch).axes
    assert axes.get_xscale() == scale
    assert [label.get_text() for label in axes.get_xticklabels()] == labels
    assert axes.get_xlabel() == key
    is_spaced_evenly = scale == "linear" and labels != ["0.1", "0.15", "0.2"]
    if is_spaced_evenly:
        assert list(axes.get_xticks()) == [*range(len(labels))]


def test_seeds_and_names_are_not_joined_like_numbers(tmp_path, monkeypatch):
    for key, values, style in (
        ("seed", [1, 2], "None"),
        ("activation", ["tanh", "sigmoid"], ":"),
        ("l2", [0.1, 0.2], "-"),
    ):
        folders, _ = make_grid(tmp_path / key, [30, 31], **{key: values})
        (axes,) = drawn(folders, key, monkeypatch).axes
        assert {line.get_linestyle() for line in lines_of(axes)} == {style}


def test_few_lines_have_colours_many_are_grey(tmp_path, monkeypatch):
    few = {"learning_rate": [0.1, 0.2], "batch_size": [*range(1, len(LINES) + 1)]}
    folders, _ = make_grid(tmp_path / "few", range(20, 60), **few)
    figure = drawn(folders, "learning_rate", monkeypatch)
    assert [line.get_color() for line in lines_of(figure.axes[0])] == [*LINES]
    assert figure.axes[0].get_window_extent().height > 0.7 * 400  # whatever the legend's height
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[:-1] == [f"batch_size={n}" for n in few["batch_size"]]
    assert texts[-1] == "lowest: 2.00 % (20 of 1,000), learning_rate=0.1, batch_size=1"

    many = {**few, "batch_size": [*range(1, len(LINES) + 2)]}
    folders, _ = make_grid(tmp_path / "many", [*range(40, 20, -1)][:14], **many)
    figure = drawn(folders, "learning_rate", monkeypatch)
    colours = [line.get_color() for line in lines_of(figure.axes[0])]
    assert colours == [GREY] * len(LINES) + [BLUE]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[:2] == ["batch_size=7", "the other 6 values of batch_size"]


GRIDS = {
    "one": {"learning_rate": [0.001, 0.003, 0.01, 0.03, 0.1, 0.11, 0.12, 1.0]},
    "two": {"learning_rate": [0.001, 0.01, 0.1], "activation": ["tanh", "sigmoid"], "seed": [1, 2]},
    "three": {
        "learning_rate": [0.01, 0.1],
        "n_hidden": [200, [500, 500, 500, 500], [1000, 1000]],
        "activation": ["tanh", "sigmoid"],
        "l2": [0, 0.0001, 0.01],
        "batch_size": [20, "all"],
        "seed": [1, 2],
    },
    "seeds": {"seed": [*range(10**9, 10**9 + 14)]},
}


def drawn_errors(axes):
    """Return the labels of the axis of errors that lie within it: the others are not drawn."""
    low, high = axes.get_ylim()
    pairs = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    return [label for place, label in pairs if low <= place <= high]


@pytest.mark.parametrize("name", GRIDS)
def test_no_text_is_cut_or_covered(tmp_path, monkeypatch, name):
    errors = itertools.cycle([25, 700, 31, 18, 90])
    folders, keys = make_grid(tmp_path, errors, **GRIDS[name])
    for key in keys:
        figure = drawn(folders, key, monkeypatch)
        (axes,) = figure.axes
        ticks = [label for label in axes.get_xticklabels() if label.get_text()]
        legend = figure.legends[0]
        texts = [figure._suptitle, axes.xaxis.label, axes.yaxis.label, *legend.get_texts()]
        for text in [*texts, *ticks, *drawn_errors(axes)]:
            box = text.get_window_extent()
            assert figure.bbox.x0 <= box.x0, text
            assert box.x1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0, text
            assert box.y1 <= figure.bbox.y1, text
        if not any(label.get_rotation() for label in ticks):
            boxes = [label.get_window_extent() for label in ticks]
            assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes)), key
        assert legend.get_window_extent().y1 <= axes.xaxis.label.get_window_extent().y0
        assert axes.get_window_extent().height > 200


def test_the_file_is_drawn(tmp_path):
    folders, _ = make_grid(tmp_path, [30, 20], learning_rate=[0.1, 0.01])
    sizes = []
    for dpi in (40, 80):
        plot_validation_error_over(folders, "learning_rate", tmp_path / "over.png", dpi)
        with Image.open(tmp_path / "over.png") as image:
            sizes.append(image.size)
            assert len(image.convert("RGB").getcolors(maxcolors=10**6)) > 20
    assert sizes[1] == (2 * sizes[0][0], 2 * sizes[0][1])
