"""The weight images of a run: a sheet of snapshots, and an animation of them growing.

A row of images is one array, with a gap between two images, and one picture on the figure's one
pair of axes: a hundred pairs take seconds to be laid out. Of what is learned without labels the
weights are all there is to see: of those the sheet has a square of the units at the end, each on a
scale of its own, as the tutorials show them, for a few large weights would leave all others pale.
"""

from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

from msgd.evaluation.opened_run import open_run
from msgd.files import atomic_path
from msgd.models import load_model
from msgd.plots.style import (
    height_over_width,
    letters_without_a_picture,
    run_title,
    save_figure,
    set_title,
    without_frame,
)
from msgd.wording import times

MAX_ROWS = 10  # snapshots shown on the sheet
MAX_COLUMNS = 10  # weight images shown of each
SQUARE = 10  # rows and columns of weight images without labels
SMALL_CELL = 0.6  # inches, of an image in the square and the gap after it
CELL = 0.87  # inches, of an image on the sheet and the gap after it
BAR = 0.12  # inches, the width of the colour bar at least
LOWEST_BAR = 1.2  # inches, its length if there is room
GAP = 0.07  # between two images, as a share of one
FINENESS = 40  # columns of an image at least, so that a gap of a share of it is a whole column


class WeightImages(NamedTuple):
    """What both figures show of a run.

    titles: the epoch of each snapshot, in words; images: (snapshots, n, height, width) floatX, of
    the first n units, filters or classes; n_all: how many there are of these; is_square: whether
    there are as many as a square has.
    """

    titles: list[str]
    images: np.ndarray
    n_all: int
    is_square: bool = False


def load_weight_images(data_folder, run_folder):
    """Return the WeightImages of a run's snapshots."""
    run = open_run(run_folder, data_folder)
    model = load_model(run.settings["model"])
    is_square = not run.is_classifier
    titles, images = [], []
    for iteration, parameters in run.snapshots():
        titles.append(_when(iteration, run.stages))
        found = model.weight_images(parameters, run.dataset.image_shape)
        images.append(found[: SQUARE * SQUARE if is_square else MAX_COLUMNS])
    return WeightImages(titles, np.stack(images), len(found), is_square)


def _when(iteration, stages):
    """Return where a snapshot was taken, in words; iteration: of all stages together."""
    for stage in stages[:-1]:
        if iteration <= stage["iterations_run"]:
            break
        iteration -= stage["iterations_run"]
    else:
        stage = stages[-1]
    epochs, minibatch = divmod(iteration, stage["n_train_batches"])
    words = f"epoch {epochs}"
    if minibatch:  # training or a validation ended within an epoch
        words = f"epoch {epochs + 1}, minibatch {minibatch}/{stage['n_train_batches']}"
    return words if len(stages) == 1 else f"{stage['name']}, {words}"


def plot_weights(data_folder, run_folder, path, dpi, colormap):
    """Draw a row of weight images per snapshot, all on one colour scale, to the PNG ``path``.

    Of a run without labels, a square of those of the last snapshot.
    """
    found = load_weight_images(data_folder, run_folder)
    titles, images, n_all, is_square = found
    if is_square:
        _plot_square(found, run_title(run_folder), path, dpi, colormap)
        return
    rows = np.unique(np.linspace(0, len(images) - 1, MAX_ROWS).round().astype(int))
    n_columns = images.shape[1]
    size = max(n_columns * CELL + 2.4, 4.2), len(rows) * CELL + 0.75
    figure, axes = plt.subplots(figsize=size, layout="compressed")
    selection = f", the first {n_columns} of {n_all:,}" if n_all > n_columns else ""
    set_title(figure, f"{run_title(run_folder)}: weights of the first layer{selection}")
    pictures = draw_rows(axes, images[rows], **_scale(images, colormap))
    middle = (1 - GAP) / 2
    axes.set_xticks(np.arange(n_columns) + middle, range(n_columns))
    in_lines = [titles[row].replace(", ", ",\n") for row in rows]
    axes.set_yticks(np.arange(len(rows)) + middle, in_lines)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    _add_colour_bar(figure, axes, pictures[0], "weight")
    save_figure(figure, path, dpi)


def _plot_square(found, name, path, dpi, colormap):
    """Draw the WeightImages ``found`` of the last snapshot of the run ``name``."""
    images = of_their_largest(found.images[-1])
    rows = in_rows(images, SQUARE)
    figure, axes = plt.subplots(
        figsize=(SQUARE * SMALL_CELL + 1, max(len(rows) * SMALL_CELL + 0.75, 2))
    )
    n = f"the first {len(images)} of " if found.n_all > len(images) else ""
    units = n + times(found.n_all, "unit")
    set_title(figure, f"{name}: weights of the first layer in {found.titles[-1]}, {units}")
    pictures = draw_rows(axes, rows, **_scale(images, colormap))
    axes.set(xticks=[], yticks=[])
    label = "weight, as a share\nof the unit's largest"
    _add_colour_bar(figure, axes, pictures[0], label)
    save_figure(figure, path, dpi)


def _add_colour_bar(figure, axes, image, label):
    """Draw beside ``axes`` what the colours of ``image`` mean, as wide where the figure is low."""
    room = figure.get_figheight() - 0.75  # inches below the title
    length = max(room / 2, min(room, LOWEST_BAR))
    aspect = min(30, length / BAR)
    figure.colorbar(image, ax=axes, shrink=length / room, aspect=aspect, label=label)


def of_their_largest(images):
    """Return ``images`` (..., height, width), each as shares of its largest finite size."""
    sizes = np.where(np.isfinite(images), np.abs(images), 0)
    largest = sizes.max(axis=(-2, -1), keepdims=True)
    return images / np.where(largest > 0, largest, 1).astype(images.dtype)


def in_rows(images, n_columns):
    """Return ``images`` (n, height, width) in rows: (rows, n_columns, height, width).

    The places left over in the last row hold NaN.
    """
    n_rows = -(-len(images) // n_columns)
    room = np.full((n_rows * n_columns, *images.shape[1:]), np.nan, images.dtype)
    room[: len(images)] = images
    return room.reshape(n_rows, n_columns, *images.shape[1:])


def animate_weights(data_folder, run_folder, path, dpi, colormap, frames_per_second):
    """Animate the snapshots' weight images, one frame each, to the GIF file ``path``."""
    titles, images, _, is_square = load_weight_images(data_folder, run_folder)
    n_columns = SQUARE if is_square else min(5, images.shape[1])
    images = of_their_largest(images) if is_square else images
    frames = np.stack([in_rows(frame, n_columns) for frame in images])
    cell = SMALL_CELL if is_square else 1.2
    figure, axes = plt.subplots(figsize=(n_columns * cell, frames.shape[1] * cell + 0.45))
    pictures = draw_rows(axes, frames[0], **_scale(images, colormap))
    axes.set(xticks=[], yticks=[])

    def draw(frame):
        figure.suptitle(titles[frame])
        for picture, row in zip(pictures, frames[frame], strict=True):
            picture.set_data(side_by_side(row))

    animation = FuncAnimation(figure, draw, frames=len(images))
    with atomic_path(path) as temporary, letters_without_a_picture():
        animation.save(temporary, writer=PillowWriter(fps=frames_per_second), dpi=dpi)
    plt.close(figure)


def draw_rows(axes, rows, **options):
    """Draw ``rows`` (rows, n, height, width) of images on ``axes``; return a picture of each row.

    On the axes an image and the gap after it are 1 wide and 1 high, the first at (0, 0).
    """
    n_rows, n, height, width = rows.shape
    look = {"interpolation": "nearest", "aspect": height_over_width(height, width), **options}
    pictures = [
        axes.imshow(side_by_side(row), extent=(0, n - GAP, top + 1 - GAP, top), **look)
        for top, row in enumerate(rows)
    ]
    axes.set(xlim=(0, n - GAP), ylim=(n_rows - GAP, 0))
    without_frame(axes)
    return pictures


def side_by_side(images):
    """Return ``images`` (n, height, width) in a row, NaN in the gaps: (height, columns).

    Every column of an image is repeated, and a gap is GAP of an image and its gap together.
    """
    n, height, width = images.shape
    times = -(-FINENESS // width)
    gap = max(1, round(GAP / (1 - GAP) * times * width))
    row = np.full((height, n, times * width + gap), np.nan, images.dtype)
    row[:, :, : times * width] = np.repeat(images, times, axis=2).transpose(1, 0, 2)
    return row.reshape(height, -1)[:, :-gap]


def _scale(images, colormap):
    """Return imshow options that centre ``colormap`` on 0 and hold all ``images``."""
    sizes = np.abs(images[np.isfinite(images)])  # not all are, where training diverged
    limit = float(sizes.max(initial=0)) or 1.0
    return {"cmap": colormap, "vmin": -limit, "vmax": limit}
