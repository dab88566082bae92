"""What a run gets wrong on the test set: the confusion matrix, and the worst mistakes."""

import matplotlib.pyplot as plt
import numpy as np

from msgd.evaluation.opened_run import open_run
from msgd.models import load_model
from msgd.plots.style import BLUE, GREY, INK, ORANGE, picture, run_title, save_figure


def confusion_matrix(labels, predicted, n_classes):
    """Return the (C, C) counts of label (row) against predicted class (column)."""
    matrix = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def plot_confusion(data_folder, run_folder, path, dpi):
    """Draw the confusion matrix over the whole test set to the PNG file ``path``.

    Colour counts the mistakes only: the correct ones would drown them.
    """
    run = open_run(run_folder, data_folder)
    dataset = run.dataset
    matrix = confusion_matrix(dataset.test_y, run.predicted(), dataset.n_classes)
    mistakes = matrix - np.diag(np.diag(matrix))
    n_classes = dataset.n_classes
    side = 2.2 + 0.52 * n_classes
    figure, axes = plt.subplots(figsize=(side, side * 0.95))
    axes.imshow(mistakes, cmap="Oranges", vmax=max(1, mistakes.max() * 1.3))
    for label, column in np.ndindex(matrix.shape):
        count = matrix[label, column]
        is_right = label == column
        color = BLUE if is_right else INK if count else "#cccccc"
        weight = "bold" if is_right else "normal"
        axes.text(column, label, str(count), ha="center", va="center", color=color, weight=weight)
    axes.set_xticks(range(n_classes))
    axes.set_yticks(range(n_classes))
    axes.grid(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("label")
    axes.set_title(
        f"{run_title(run_folder)}: {mistakes.sum()} mistakes among {matrix.sum():,} test images"
    )
    save_figure(figure, path, dpi)


def worst_mistakes(of_label, n):
    """Return the indices of the ``n`` smallest probabilities of the label, the smallest first."""
    return np.argsort(of_label, kind="stable")[:n]


def plot_mistakes(data_folder, run_folder, path, dpi, n_mistakes):
    """Draw to the PNG ``path`` the test images whose label got the smallest probability."""
    run = open_run(run_folder, data_folder)
    dataset, settings = run.dataset, run.settings
    parameters, predicted = run.best_parameters(), run.predicted()
    wrong = np.flatnonzero(predicted != dataset.test_y)
    model = load_model(settings["model"])
    images = dataset.images("test", wrong)
    probabilities = model.probabilities(parameters, images, settings, dataset.image_shape)
    labels = dataset.test_y[wrong]
    of_label = probabilities[np.arange(len(wrong)), labels]
    worst = worst_mistakes(of_label, n_mistakes)

    n_columns = 5
    n_rows = max(1, -(-len(worst) // n_columns))
    figure, grid = plt.subplots(
        n_rows, n_columns, figsize=(n_columns * 1.75, n_rows * 2.25 + 0.6), squeeze=False
    )
    figure.suptitle(
        f"{run_title(run_folder)}: the {len(worst)} worst of {len(wrong)} mistakes",
        x=0.01,
        ha="left",
        fontsize=12,
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, index in zip(grid.flat, worst, strict=False):
        row = wrong[index]
        image = dataset.images("test", [row]).reshape(dataset.image_shape)
        picture(axes, image, cmap="gray_r")
        guess = predicted[row]
        axes.set_title(
            f"it says {guess}: {_percent(probabilities[index, guess])}",
            color=ORANGE,
            fontsize=9,
            loc="center",
        )
        label = f"label {labels[index]}: {_percent(of_label[index])}\n "
        axes.text(0.5, -0.04, label, transform=axes.transAxes, ha="center", va="top", fontsize=9)
        number = f"#{row}"
        axes.text(0.02, 0.98, number, transform=axes.transAxes, va="top", fontsize=7, color=GREY)
    save_figure(figure, path, dpi)


def _percent(probability):
    """Return ``probability`` in percent, with one significant digit where it is tiny."""
    if probability > 0.0005:
        return f"{100 * probability:.1f} %"
    return f"{np.format_float_positional(100 * probability, precision=1, fractional=False)} %"
