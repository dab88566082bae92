"""Validation error, cost, and what the patience rule saw, over the iterations of one run.

A stage without validation has the cost of its epochs alone.
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from msgd.errors import UserError
from msgd.evaluation.opened_run import open_run, validations_of
from msgd.evaluation.progress import history_so_far, read_run_log
from msgd.plots.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    run_title,
    save_figure,
    set_title,
    whole_numbers,
)

SMALLEST_P = 1e-6  # smaller ones are drawn there

STOPPED_BY = {
    "patience": "ended by patience",
    "n_epochs": "ended by the cap on epochs",
    "divergence": "ended by divergence",
    "convergence": "ended by convergence",
}


def plot_learning_curve(run_folder, path, dpi):
    """Draw history.csv of the run in ``run_folder`` to the PNG file ``path``."""
    run = open_run(run_folder)
    training = run.training
    title = f"{STOPPED_BY[training['stopped_by']]} in epoch {training['epochs_run']}"
    figure = _figure(run.history(), training, run.settings)
    set_title(figure, f"{run_title(run_folder)}: {title}")
    save_figure(figure, path, dpi)


def plot_learning_curve_so_far(run_folder, path, dpi):
    """Draw what the log of the run in ``run_folder`` tells so far, and say that it is unfinished.

    run_folder: ``<results>/runs/<experiment>/<run>``, whose log is in ``<results>/logs``. A run
    that has finished is drawn as by plot_learning_curve. Raises UserError if there is no validation
    yet, or no log.
    """
    results, name = _results_and_name(run_folder)
    log = read_run_log(results, name)
    if (Path(run_folder) / "training.json").is_file() and (log is None or log.end == "finished"):
        plot_learning_curve(run_folder, path, dpi)
        return
    if log is None:
        raise UserError(f"{results / 'logs'} has no log of a training of {name}")
    so_far = history_so_far(results, log, with_state=True)
    if not so_far.rows:
        raise UserError(f"{name} has had no validation yet")
    if not so_far.is_whole:
        raise UserError(
            f"{name} went on from a state after iteration {log.resumed_from} that is no longer in "
            f"{results / 'states'}: what was before it is not known until the training ends"
        )
    history = pd.DataFrame(so_far.rows)
    if log.validation_examples is None and history["validation_errors"].notna().any():
        raise UserError(f"the log of {name} does not say among how many examples it counts errors")
    training = _training_so_far(so_far.rows[-1], log)
    figure = _figure(history, training, log.settings or {})
    cap = f" of at most {log.cap(so_far.rows[-1]['stage'])}" if log.settings else ""
    title = f"unfinished, drawn in epoch {training['epochs_run']}{cap}"
    set_title(figure, f"{run_title(run_folder)}: {title}")
    save_figure(figure, path, dpi)


def _results_and_name(run_folder):
    """Return the folder of results and the name experiment/run of the run in ``run_folder``."""
    folder = Path(os.path.abspath(run_folder))  # noqa: PTH100  # links stay
    if len(folder.parts) < 4 or folder.parts[-3] != "runs":
        raise UserError(f"{run_folder} is not the folder of a run, <results>/runs/EXPERIMENT/RUN")
    return folder.parents[2], "/".join(folder.parts[-2:])


def _training_so_far(last, log):
    """Return of training.json what a figure needs, from the latest row of the history (dict)."""
    n_train_batches = log.n_train_batches
    training = {
        "n_train_batches": n_train_batches,
        "epochs_run": last["epoch"],
        "iterations_run": last["iteration"],
        "stopped_by": None,
    }
    if last["validation_errors"] is None:
        return training
    return {
        **training,
        "validation_errors": last["best_validation_errors"],
        "validation_examples": log.validation_examples,
        "best_iteration": last["best_iteration"],
        "best_epoch": (last["best_iteration"] - 1) // n_train_batches + 1,
    }


def _figure(history, training, settings):
    """Return the figure of a ``history`` (DataFrame), without its title.

    training: training.json, or what is known of it so far; settings: completed hyperparameters.
    """
    is_validated = history["validation_errors"].notna()
    validated = validations_of(history)
    epochs = dict([*history[~is_validated].groupby("stage", sort=False)])
    panels = dict.fromkeys(epochs, 2 if len(epochs) > 1 else 4)  # name: relative height
    if len(validated):
        panels |= {"errors": 3, "cost": 2}
        if validated["patience"].notna().any():  # conjugate gradients have none
            panels["patience"] = 2.4
        if "improvement_p" in validated:
            panels["improvement_p"] = 2
    size = 8, round(1.1 * sum(panels.values()))
    figure, axes = plt.subplots(
        len(panels), 1, figsize=size, squeeze=False, height_ratios=[*panels.values()]
    )
    axes = dict(zip(panels, axes[:, 0], strict=True))
    for stage, rows in epochs.items():
        _draw_epochs(axes[stage], rows, "" if stage == "train" else stage, settings)
    if len(validated):
        of_iterations = [axes[name] for name in panels if name not in epochs]
        _draw_validated(axes, of_iterations, validated, training, settings)
    return figure


def _draw_epochs(axes, rows, stage, settings):
    """Draw the cost of each epoch of a stage without validation, of the name ``stage``."""
    axes.plot(rows["epoch"], rows["cost"], color=BLUE, **_markers(rows))
    axes.xaxis.set_major_locator(whole_numbers())
    label = cost_label(settings)
    axes.set_ylabel(f"{stage}\n{label}" if stage else label)
    axes.set_xlabel("epoch")


def cost_label(settings):
    """Return what the cost of an epoch without validation is, in words."""
    if "persistent" not in settings:
        return "mean cost of the epoch"
    return "log pseudo-likelihood" if settings["persistent"] else "minus the cross-entropy"


def _draw_validated(axes, of_iterations, history, training, settings):
    """Draw what a stage with validation has, over its iterations.

    axes: dict of panel -> axes; of_iterations: those (list) that share the iterations.
    """
    *upper, lowest = of_iterations
    for one in upper:
        one.sharex(lowest)
        one.tick_params(labelbottom=False)
    _draw_errors(axes["errors"], history, training)
    axes["cost"].plot(history["iteration"], history["cost"], color=BLUE, **_markers(history))
    axes["cost"].set_ylabel("mean training cost\nsince the last validation")
    if "patience" in axes:
        _draw_patience(axes["patience"], history, training)
    if "improvement_p" in axes:
        _draw_improvement_p(axes["improvement_p"], history, settings["improvement_alpha"])
    lowest.set_xlabel("iteration (minibatches trained)")
    lowest.xaxis.set_major_locator(whole_numbers())


def _markers(history):
    """Return line options: dots where there are few validations, so that one alone is seen."""
    return {"marker": "."} if len(history) < 30 else {}


def _draw_errors(axes, history, training):
    percent = history["validation_error_percent"]
    axes.plot(history["iteration"], percent, color=BLUE, **_markers(history))
    best = 100 * training["validation_errors"] / training["validation_examples"]
    axes.plot(training["best_iteration"], best, "*", color=ORANGE, markersize=13)
    words = (
        f"best: {best:.2f} % ({training['validation_errors']} of "
        f"{training['validation_examples']:,}), epoch {training['best_epoch']}"
    )
    # Errors fall: the corner above them is free.
    axes.text(0.99, 0.94, words, transform=axes.transAxes, ha="right", va="top", color=ORANGE)
    axes.set_ylabel("validation error (%)")
    n_train_batches = training["n_train_batches"]
    epochs = axes.secondary_xaxis(
        "top", functions=(lambda i: i / n_train_batches, lambda e: e * n_train_batches)
    )
    epochs.set_xlabel("epoch")
    if not (history["iteration"] % n_train_batches).any():  # no validation lies within an epoch
        epochs.xaxis.set_major_locator(whole_numbers())


def _draw_patience(axes, history, training):
    end = training["iterations_run"]
    axes.plot([0, end], [0, end], color=GREY, linewidth=1)
    iterations = [0, *history["iteration"], end]
    patience = [history["patience"].iloc[0], *history["patience"], history["patience"].iloc[-1]]
    axes.step(iterations, patience, where="post", color=ORANGE)
    axes.fill_between(iterations, iterations, patience, step="post", color=ORANGE, alpha=0.12)
    axes.annotate(
        "patience horizon",
        (0, max(patience[0], 0.45 * max(patience))),  # clear of the first steps of a steep one
        xytext=(6, 5),
        textcoords="offset points",
        color=ORANGE,
    )
    axes.text(
        end,
        0.06 * axes.get_ylim()[1],
        "grey: the iteration; the run ends where it meets the horizon",
        ha="right",
        color=GREY,
    )
    if training["stopped_by"] == "patience":
        axes.plot(end, end, "o", color=INK, markersize=5)
    axes.set_ylim(0, None)
    axes.set_ylabel("patience (minibatches)")


def _draw_improvement_p(axes, history, alpha):
    """Draw McNemar's p at every validation, and the level below which patience was extended."""
    p = history["improvement_p"].clip(lower=SMALLEST_P)
    is_significant = history["improvement_p"] < alpha
    axes.plot(history["iteration"], p, ".", color=GREY, markersize=4)
    axes.plot(history["iteration"][is_significant], p[is_significant], ".", color=ORANGE)
    axes.axhline(alpha, color=ORANGE, linewidth=1)
    axes.text(
        0.99,
        0.06,
        f"below {alpha}: better than the last such model",
        transform=axes.transAxes,
        ha="right",
        color=ORANGE,
    )
    axes.set_yscale("log")
    axes.set_ylim(SMALLEST_P / 2, 2)
    axes.set_ylabel("McNemar's p")
