"""Samples of a run in rows: a column is a chain, and from row to row it has gone on for long."""

import matplotlib.pyplot as plt

from msgd.evaluation.opened_run import open_run
from msgd.plots.style import run_title, save_figure, set_title
from msgd.plots.weights import draw_rows

CELL = 0.45  # inches, of a sample and the gap after it


def plot_samples(data_folder, run_folder, path, dpi):
    """Draw the means of the pixels of every sample of the run to the PNG file ``path``.

    Raises UserError for a run of a model that draws no samples, and without samples.npz.
    """
    run = open_run(run_folder, data_folder)
    means, steps = run.samples()
    n_rows, n_chains, _ = means.shape
    figure, axes = plt.subplots(figsize=(max(n_chains * CELL, 4) + 1, n_rows * CELL + 0.75))
    set_title(figure, f"{run_title(run_folder)}: samples of {n_chains} chains from test images")
    rows = means.reshape(n_rows, n_chains, *run.dataset.image_shape)
    draw_rows(axes, rows, cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.set_ylabel(f"down: {steps:,} steps a row")
    save_figure(figure, path, dpi)
