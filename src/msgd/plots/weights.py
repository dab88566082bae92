"""The weight images of a run: a sheet of snapshots, and an animation of them growing."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

from msgd.evaluation.opened_run import open_run
from msgd.files import atomic_path
from msgd.models import load_model
from msgd.plots.style import letters_without_a_picture, picture, save_figure

MAX_ROWS = 10  # snapshots shown on the sheet
MAX_COLUMNS = 10  # weight images shown of each


def load_weight_images(data_folder, run_folder):
    """Return (titles, images) of a run's snapshots; images: (snapshots, n, height, width)."""
    run = open_run(run_folder, data_folder)
    model = load_model(run.settings["model"])
    titles, images = [], []
    for iteration, parameters in run.snapshots():
        epoch = iteration / run.training["n_train_batches"]
        titles.append(f"epoch {epoch:.0f}" if epoch.is_integer() else f"epoch {epoch:.2f}")
        images.append(model.weight_images(parameters, run.dataset.image_shape)[:MAX_COLUMNS])
    return titles, np.stack(images)


def plot_weights(data_folder, run_folder, path, dpi, colormap):
    """Draw a row of weight images per snapshot, all on one colour scale, to the PNG ``path``."""
    titles, images = load_weight_images(data_folder, run_folder)
    rows = np.unique(np.linspace(0, len(images) - 1, MAX_ROWS).round().astype(int))
    n_columns = images.shape[1]
    figure, grid = plt.subplots(
        len(rows),
        n_columns,
        figsize=(max(n_columns * 0.95 + 1.3, 4.2), len(rows) * 0.95 + 0.3),
        squeeze=False,
    )
    scale = _scale(images, colormap)
    for row, snapshot in zip(grid, rows, strict=True):
        for column, (axes, image) in enumerate(zip(row, images[snapshot], strict=True)):
            picture(axes, image, **scale)
            if snapshot == rows[0]:
                axes.set_title(str(column), loc="center")
        row[0].set_ylabel(titles[snapshot], rotation=0, ha="right", va="center")
    figure.colorbar(grid[0, 0].images[0], ax=grid, shrink=0.5, aspect=30, label="weight")
    save_figure(figure, path, dpi)


def animate_weights(data_folder, run_folder, path, dpi, colormap, frames_per_second):
    """Animate the snapshots' weight images, one frame each, to the GIF file ``path``."""
    titles, images = load_weight_images(data_folder, run_folder)
    n_columns = min(5, images.shape[1])
    n_rows = -(-images.shape[1] // n_columns)
    figure, grid = plt.subplots(
        n_rows, n_columns, figsize=(n_columns * 1.2, n_rows * 1.2 + 0.45), squeeze=False
    )
    scale = _scale(images, colormap)
    cells = list(grid.flat)
    for axes, image in zip(cells, images[0], strict=False):
        picture(axes, image, **scale)
    for axes in cells[images.shape[1] :]:
        axes.set_visible(False)

    def draw(frame):
        figure.suptitle(titles[frame])
        for axes, image in zip(cells, images[frame], strict=False):
            axes.images[0].set_data(image)

    animation = FuncAnimation(figure, draw, frames=len(images))
    with atomic_path(path) as temporary, letters_without_a_picture():
        animation.save(temporary, writer=PillowWriter(fps=frames_per_second), dpi=dpi)
    plt.close(figure)


def _scale(images, colormap):
    """Return imshow options that centre ``colormap`` on 0 and hold all ``images``."""
    sizes = np.abs(images[np.isfinite(images)])  # not all are, where training diverged
    limit = float(sizes.max(initial=0)) or 1.0
    return {"cmap": colormap, "vmin": -limit, "vmax": limit}
