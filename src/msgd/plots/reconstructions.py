"""Test images, what is left of them after corruption, and what an auto-encoder makes of that."""

import matplotlib.pyplot as plt
import numpy as np

from msgd.data.content import check_images
from msgd.errors import UserError
from msgd.evaluation.opened_run import open_run
from msgd.models import AUTOENCODERS, load_model
from msgd.plots.style import picture, run_title, save_figure, set_title

MOST_IMAGES = 10


def plot_reconstructions(data_folder, run_folder, path, dpi):
    """Draw the first test images and their reconstructions to the PNG file ``path``.

    Where the run was trained on corrupted images, these are corrupted as much, and shown so too.
    Raises UserError for a run of a model that reconstructs nothing.
    """
    run = open_run(run_folder, data_folder)
    if run.settings["model"] not in AUTOENCODERS:
        raise UserError(
            f"{run.folder} is of the model {run.settings['model']}, which reconstructs no images; "
            f"those that do: {', '.join(AUTOENCODERS)}"
        )
    check_images(run.dataset, ["test"])
    images = run.dataset.images("test", slice(0, MOST_IMAGES))
    share = run.settings.get("corruption", 0)
    given = corrupted(images, share, run.settings["seed"])
    model = load_model(run.settings["model"])
    rows = {"images": images}
    if share:
        rows[f"{100 * share:g} % set to 0"] = given
    rows["reconstructions"] = model.reconstructions(run.best_parameters(), given)
    size = len(images) * 0.8 + 1.5, len(rows) * 0.8 + 0.6
    figure, grid = plt.subplots(len(rows), len(images), figsize=size, squeeze=False)
    set_title(figure, f"{run_title(run_folder)}: test images, reconstructed")
    scale = {"vmin": images.min(initial=0), "vmax": images.max(initial=0) or 1}
    for axes_of_row, (name, shown) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(axes_of_row, shown, strict=True):
            picture(axes, image.reshape(run.dataset.image_shape), cmap="gray_r", **scale)
        axes_of_row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    save_figure(figure, path, dpi)


def corrupted(images, share, seed):
    """Return ``images`` (n, D) with ``share`` of the pixels, chosen at random, set to 0.

    The choice is of NumPy's generator: not that of any minibatch of the training.
    """
    kept = np.random.RandomState(seed).uniform(size=images.shape) >= share
    return images * kept
