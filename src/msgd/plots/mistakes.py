"""What a run gets wrong on the test set: the confusion matrix, and the worst mistakes."""

from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.ticker import StrMethodFormatter

from msgd.data.content import check_images
from msgd.evaluation.opened_run import open_run
from msgd.models import load_model
from msgd.plots.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    picture,
    run_title,
    save_figure,
    set_title,
    whole_numbers,
)
from msgd.wording import times


def confusion_matrix(labels, predicted, n_classes):
    """Return the (C, C) counts of label (row) against predicted class (column)."""
    matrix = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


# Up to so many classes the counts are written into the matrix; more are seen as colours.
MOST_WRITTEN_CLASSES = 30
CELL = 0.52  # inches, of a class where counts are written,
WRITTEN_SIDE = 11  # unless the matrix would be larger
MAP_SIDE = 6.5  # inches, of the matrix where they are not
LISTED = 30  # the most frequent mistakes that stand beside it


def plot_confusion(data_folder, run_folder, path, dpi):
    """Draw the confusion matrix over the whole test set to the PNG file ``path``.

    Colour counts the mistakes only: the correct ones would drown them. Of many classes the most
    frequent mistakes are listed; of more than the picture has room for, several share a cell.
    """
    run = open_run(run_folder, data_folder)
    dataset, labels, predicted = run.dataset, run.dataset.test_y, run.predicted()
    wrong = labels != predicted
    title = (
        f"{run_title(run_folder)}: {times(np.count_nonzero(wrong), 'mistake')} among "
        f"{times(len(labels), 'test image')}"
    )
    if dataset.n_classes <= MOST_WRITTEN_CLASSES:
        figure = _written_confusion(confusion_matrix(labels, predicted, dataset.n_classes))
    else:
        cells = int((MAP_SIDE - 0.3) * dpi / 2)  # of two dots or more
        figure = _mapped_confusion(labels[wrong], predicted[wrong], dataset.n_classes, cells)
    set_title(figure, title)
    save_figure(figure, path, dpi)


def _written_confusion(matrix):
    """Return a figure of ``matrix`` (C, C) in which every count is written."""
    n_classes = len(matrix)
    mistakes = matrix - np.diag(np.diag(matrix))
    cell = min(CELL, WRITTEN_SIDE / n_classes)
    side = 2.2 + cell * n_classes
    figure, axes = plt.subplots(figsize=(max(side, 4.2), max(side * 0.95, 3)))
    axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=max(1, mistakes.max() * 1.3))
    digits = len(str(matrix.max()))
    size = min(mpl.rcParams["font.size"], cell * 72 / (0.75 * digits))
    for label, column in np.ndindex(matrix.shape):
        count = matrix[label, column]
        is_right = label == column
        look = {
            "color": BLUE if is_right else INK if count else "#cccccc",
            "weight": "bold" if is_right else "normal",
            "size": size,
        }
        axes.text(column, label, str(count), ha="center", va="center", **look)
    axes.set_xticks(range(n_classes))
    axes.set_yticks(range(n_classes))
    axes.grid(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("label")
    return figure


def _mapped_confusion(labels, predicted, n_classes, most_cells):
    """Return a figure of the mistakes, ``labels`` (n,) taken for ``predicted`` (n,), as colours.

    A cell stands for one class in a row and one in a column, or for as many as at most
    ``most_cells`` cells a side ask for.
    """
    width = -(-n_classes // most_cells)  # classes of a cell
    n_cells = -(-n_classes // width)
    counts = confusion_matrix(labels // width, predicted // width, n_cells)
    figure, (axes, beside) = plt.subplots(
        1, 2, figsize=(MAP_SIDE + 3.2, MAP_SIDE + 1.5), width_ratios=(MAP_SIDE, 2.2)
    )
    edge = n_cells * width - 0.5
    image = axes.imshow(
        np.ma.masked_equal(counts, 0),  # white: one mistake is seen among none
        cmap=ListedColormap(mpl.colormaps["Oranges"](np.linspace(0.3, 1, 256))),
        norm=PowerNorm(0.5, 0, max(1, counts.max())),
        interpolation="nearest",
        extent=(-0.5, edge, edge, -0.5),
    )
    if width == 1:  # else the cells there hold mistakes
        axes.axline((0, 0), slope=1, color=GREY, linewidth=0.4)
    axes.grid(False)
    axes.set(xlim=(-0.5, n_classes - 0.5), ylim=(n_classes - 0.5, -0.5))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(whole_numbers(8))
        axis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.set_xlabel("predicted class")
    axes.set_ylabel("label")
    several = f", {width} by {width} classes a cell" if width > 1 else ""
    look = {"location": "bottom", "shrink": 0.4, "aspect": 30}
    bar = figure.colorbar(image, ax=axes, label=f"mistakes{several}", **look)
    bar.locator = whole_numbers(5)
    bar.formatter = StrMethodFormatter("{x:,.0f}")
    bar.update_ticks()
    _list_mistakes(beside, labels, predicted, n_classes)
    return figure


def most_frequent_mistakes(labels, predicted, n_classes, n):
    """Return the ``n`` most frequent pairs, [(label, predicted, count), ...], the first first.

    labels, predicted: (N,) integers, of mistakes only; pairs equally frequent are in rising order.
    """
    pairs, counts = np.unique(labels.astype(np.int64) * n_classes + predicted, return_counts=True)
    first = np.argsort(-counts, kind="stable")[:n]
    return [(*divmod(int(pairs[i]), n_classes), int(counts[i])) for i in first]


def _list_mistakes(axes, labels, predicted, n_classes):
    """Write the most frequent mistakes on ``axes``, in place of a drawing."""
    axes.set_axis_off()
    found = most_frequent_mistakes(labels, predicted, n_classes, LISTED)
    digits = len(str(n_classes - 1))
    rows = [f"{label:>{digits}} → {guess:>{digits}}  {n:,}" for label, guess, n in found]
    heading = "the most frequent mistakes:\nlabel → predicted, count" if rows else "no mistakes"
    look = {"transform": axes.transAxes, "va": "top"}
    axes.text(0, 1, heading, **look)
    axes.text(0, 0.93, "\n".join(rows), family="monospace", linespacing=1.35, **look)


def worst_mistakes(of_label, n):
    """Return the indices of the ``n`` smallest probabilities of the label, the smallest first."""
    return np.argsort(of_label, kind="stable")[:n]


class WorstMistakes(NamedTuple):
    """The test images whose label got the smallest probability, the smallest first.

    rows: (n,) places in the test set; images: (n, D) float64 pixels; labels, predicted: (n,)
    classes; of_label, of_predicted: (n,) the probabilities of these; n_wrong: how many mistakes
    there are in all.
    """

    rows: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    of_label: np.ndarray
    of_predicted: np.ndarray
    n_wrong: int


def find_worst_mistakes(run, n):
    """Return the ``n`` WorstMistakes (fewer if there are not so many) of an OpenedRun with data."""
    dataset, settings = run.dataset, run.settings
    check_images(dataset, ["test"])
    parameters, predicted = run.best_parameters(), run.predicted()
    wrong = np.flatnonzero(predicted != dataset.test_y)
    model = load_model(settings["model"])
    images = dataset.images("test", wrong)
    probabilities = model.probabilities(parameters, images, settings, dataset.image_shape)
    each = np.arange(len(wrong))
    of_label = probabilities[each, dataset.test_y[wrong]]
    worst = worst_mistakes(of_label, n)
    rows = wrong[worst]
    return WorstMistakes(
        rows=rows,
        images=images[worst],
        labels=dataset.test_y[rows],
        predicted=predicted[rows],
        of_label=of_label[worst],
        of_predicted=probabilities[worst, predicted[rows]],
        n_wrong=len(wrong),
    )


def plot_mistakes(data_folder, run_folder, path, dpi, n_mistakes):
    """Draw to the PNG ``path`` the test images whose label got the smallest probability."""
    run = open_run(run_folder, data_folder)
    worst = find_worst_mistakes(run, n_mistakes)

    n_columns = 5
    n_rows = max(1, -(-len(worst.rows) // n_columns))
    figure, grid = plt.subplots(
        n_rows, n_columns, figsize=(n_columns * 1.75, n_rows * 2.25 + 0.6), squeeze=False
    )
    n_wrong = worst.n_wrong
    those = f"the {len(worst.rows)} worst of {n_wrong:,} mistakes"
    few = {0: "no mistakes", 1: "the only mistake"}
    set_title(figure, f"{run_title(run_folder)}: {few.get(n_wrong, those)}")
    # One scale for all, with 0 in it: on its own, an image of equal pixels would be white.
    scale = {"vmin": worst.images.min(initial=0), "vmax": worst.images.max(initial=0) or 1}
    for axes in grid.flat:
        axes.set_axis_off()
    for index, (axes, image) in enumerate(zip(grid.flat, worst.images, strict=False)):
        picture(axes, image.reshape(run.dataset.image_shape), cmap="gray_r", **scale)
        axes.set_title(
            f"it says {worst.predicted[index]}: {percent_of(worst.of_predicted[index])}",
            color=ORANGE,
            fontsize=9,
            loc="center",
        )
        label = f"label {worst.labels[index]}: {percent_of(worst.of_label[index])}\n "
        axes.text(0.5, -0.04, label, transform=axes.transAxes, ha="center", va="top", fontsize=9)
        number = f"#{worst.rows[index]}"
        axes.text(0.02, 0.98, number, transform=axes.transAxes, va="top", fontsize=7, color=GREY)
    save_figure(figure, path, dpi)


def percent_of(probability):
    """Return ``probability`` in percent, with one significant digit where it is tiny."""
    percent = 100 * probability
    if percent > 0.05 or percent == 0 or np.isnan(percent):
        return f"{percent:.1f} %" if percent else "0 %"
    if percent < 1e-6:  # as many zeros would not fit below a picture
        return f"{percent:.0e} %"
    return f"{np.format_float_positional(percent, precision=1, fractional=False)} %"
