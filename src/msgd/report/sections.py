"""What each section of the page says and shows, as values for the template; sentences with numbers.

A function returns a dict, or None where its section has nothing to show.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd

from msgd import wording
from msgd.config import (
    check_split_sizes,
    compared_of,
    complete_experiment,
    experiment_schema,
    yaml_scalar,
)
from msgd.errors import UserError
from msgd.evaluation.intervals import wilson_interval
from msgd.evaluation.selection import validation_rate
from msgd.evaluation.tables import NOT_COMPARED, compare_with_published, error_rate
from msgd.files import readable
from msgd.models import SAMPLERS
from msgd.models.interface import expected_arrays
from msgd.plots.comparison import compare_runs
from msgd.plots.learning_curve import cost_label
from msgd.plots.mistakes import (
    MOST_WRITTEN_CLASSES,
    confusion_matrix,
    find_worst_mistakes,
    most_frequent_mistakes,
    percent_of,
)
from msgd.plots.style import height_over_width
from msgd.plots.weights import SQUARE, load_weight_images, of_their_largest
from msgd.report import figures
from msgd.report.pictures import data_uri, ink_mosaic, ink_picture, weight_mosaic

SHOWN_CLASSES = 12  # with images of each
SHOWN_OF_A_CLASS = 4
SHOWN_MISTAKES = 12
SHOWN_PAIRS = 10  # of the most frequent mistakes
SHOWN_RUNS = 12
MIXED = 0.9  # of what two chains differ by: a chain that goes so far has left where it was
FRAMES = 10  # snapshots of the first layer
TILES_IN_A_ROW = 5
# What a picture of the first layer's weights belongs to.
UNITS = {
    "logistic_regression": ("class", "classes"),
    "logistic_cg": ("class", "classes"),
    "mlp": ("hidden unit", "hidden units"),
    "lenet": ("filter", "filters"),
    "sda": ("hidden unit", "hidden units"),
    "dbn": ("hidden unit", "hidden units"),
}
QUANTITIES = {
    "validation_error_percent": "validation error, %",
    "test_error_percent": "test error, %",
    "best_epoch": "best epoch",
    "epochs_run": "epochs run",
    "cost": "cost of the last epoch",
}


def percent(share, digits=2):
    """Return ``share`` (0..1) in percent, as text that is not broken before its sign."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def times(n, noun, plural=None):
    """Return ``n`` with ``noun``, in the plural unless ``n`` is 1, as text that is not broken."""
    return wording.unbroken(wording.times(n, noun, plural))


def name_of(row):
    """Return the name of a row's run, as people know it: the experiment, and what varies in it."""
    varied = "" if row["run"] == "default" else f" {row['run'].replace('+', ', ')}"
    return row["experiment"] + varied


def answer(row, rows, run_folders):
    """Return the result: the selected run's test error, its interval, and the published figures."""
    bounds = wilson_interval(row["test_errors"], row["test_examples"])
    comparisons = compare_with_published(run_folders)
    own = {
        found["quantity"]: float(found["published"])
        for found in comparisons
        if name_of(found) == name_of(row) and found["equal"] != NOT_COMPARED
    }
    low, high = (100 * bound for bound in bounds)
    return {
        "percent": percent(row["test_errors"] / row["test_examples"]),
        "counts": (row["test_errors"], row["test_examples"]),
        "low": f"{low:.2f}",
        "high": percent(bounds[1]),
        "interval": figures.interval(row, (low, high), own.get("test_error_percent")),
        "has_published": "test_error_percent" in own,
        "whole": error_rate(row["all_test_errors"], row["all_test_examples"]),
        "has_tail": row["all_test_examples"] != row["test_examples"],
        "n_equal": sum(validation_rate(other) == validation_rate(row) for other in rows),
        "published": _published(comparisons, name_of(row)),
    }


def _published(comparisons, selected):
    """Return the published figures beside ours, by run, the selected one first; and a finding."""
    groups, kinds = {}, Counter()
    for found in comparisons:
        equal = found["equal"]
        kind = equal if equal == NOT_COMPARED else equal.partition(":")[0].partition(" ")[0]
        kinds[kind] += 1
        entry = {
            **found,
            "quantity": QUANTITIES.get(found["quantity"], found["quantity"]),
            "verdict": "equal" if equal == "yes" else equal,
        }
        groups.setdefault((name_of(found), found["epochs"]), []).append(entry)
    in_order = sorted(
        groups.items(), key=lambda item: (item[0][0] != selected, "cut" in item[0][1])
    )
    return {
        "groups": [
            {"name": name, "is_cut": "cut" in epochs, "epochs": epochs, "rows": rows}
            for (name, epochs), rows in in_order
        ],
        "finding": _published_finding(kinds),
    }


def _published_finding(kinds):
    """Return in words how many figures came out equal.

    kinds: Counter of "yes", "within", "no" and NOT_COMPARED.
    """
    n_cut, sentences = kinds[NOT_COMPARED], []
    compared = kinds.total() - n_cut
    if compared:
        text = f"Of {times(compared, 'published figure')} that can be compared, "
        text += f"{kinds['yes']} came out equal to the last published digit"
        text += f", {kinds['within']} within the expected tolerance" if kinds["within"] else ""
        text += f", and {kinds['no']} did not" if kinds["no"] else ""
        sentences.append(text + ".")
    if n_cut:
        belong = "belongs to a run" if n_cut == 1 else "belong to runs"
        sentences.append(
            f"{times(n_cut, 'figure')} {belong} cut short of the published number of epochs."
        )
    return " ".join(sentences)


def data(run):
    """Return some test images of each class, and how frequent the classes are."""
    dataset = run.dataset
    labels = dataset.test_y
    classes = []
    present = np.unique(labels)
    shown = [np.flatnonzero(labels == label)[:SHOWN_OF_A_CLASS] for label in present]
    shown = shown[:SHOWN_CLASSES]
    ink = _ink(dataset.images("test", np.concatenate(shown)))
    parts = np.split(ink, np.cumsum([len(rows) for rows in shown])[:-1])
    for label, images in zip(present, parts, strict=False):
        picture = ink_picture(images.reshape(-1, *dataset.image_shape))
        classes.append({"label": int(label), "n": len(images), "picture": data_uri(picture)})
    tile = height_over_width(*dataset.image_shape)
    return {
        "classes": classes,
        "n_hidden_classes": len(present) - len(classes),
        "height": tile,
        "finding": f"{_how_frequent(dataset.train_y, dataset.n_classes)} {_by_guessing(dataset)}",
    }


def _how_frequent(train_y, n_classes):
    counts = np.bincount(train_y, minlength=n_classes)
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] == counts[least]:
        return "All classes are equally frequent in the training images."
    return (
        f"Class {most} is the most frequent in the training images "
        f"({percent(counts[most] / len(train_y), 1)}), class {least} the least "
        f"({percent(counts[least] / len(train_y), 1)})."
    )


def _by_guessing(dataset):
    most = int(np.bincount(dataset.train_y).argmax())
    wrong = np.count_nonzero(dataset.test_y != most) / len(dataset.test_y)
    return (
        f"A program that always answered {most} would be wrong on {percent(wrong, 1)} of the test "
        "images: that is the error to beat."
    )


def _ink(images):
    """Return ``images`` (n, D) scaled to 0..1 together, a pixel of 0 staying among them."""
    low, high = images.min(initial=0), images.max(initial=0)
    return (images - low) / ((high - low) or 1)


def training(run):
    """Return the learning curve, what it shows, and its milestones."""
    history, record, settings = run.validations(), run.training, run.settings
    has_patience = bool(history["patience"].notna().any())  # conjugate gradients have none
    parts = [_fall(history, record)]
    if has_patience:
        parts.append(_extensions(history, settings))
    parts.append(_how_it_ended(record, settings, has_patience))
    return {
        "finding": " ".join(parts),
        "every": int(history["iteration"].iloc[0]),
        "batch_size": settings.get("batch_size"),
        "has_patience": has_patience,
        "curve": figures.learning_curve(run),
        "milestones": _milestones(history, record),
    }


def _fall(history, record):
    """Return in words from where to where the validation error went."""
    first = history.iloc[0]
    best = percent(record["validation_errors"] / record["validation_examples"])
    if len(history) == 1:
        return f"There was one validation, in epoch {first['epoch']:g}: an error of {best}."
    if first["iteration"] == record["best_iteration"]:
        return (
            f"The lowest validation error, {best} (the star), came at the first of "
            f"{len(history):,} validations."
        )
    return (
        f"The validation error went from {percent(first['validation_error_percent'] / 100)} at the "
        f"first of {len(history):,} validations to {best} in epoch {record['best_epoch']} (the "
        "star)."
    )


def _extensions(history, settings):
    """Return in words how often the patience was extended."""
    extended = (history["patience"].diff() > 0).to_numpy(copy=True)
    extended[0] = history["patience"].iloc[0] > settings["patience"]
    rows = np.flatnonzero(extended)
    if not len(rows):
        return "No improvement extended the patience."
    often = {1: "once", 2: "twice"}.get(len(rows), f"{len(rows):,} times")
    last = f", the last time in epoch {history['epoch'].iloc[rows[-1]]:g}" if len(rows) > 1 else ""
    return f"Significant improvements extended the patience {often}{last}."


def _how_it_ended(record, settings, has_patience):
    end = f"after {times(record['iterations_run'], 'iteration')}, in epoch {record['epochs_run']}"
    cap = f"Training ended at its cap of {times(settings['n_epochs'], 'epoch')} (`n_epochs`)"
    return {
        "patience": f"Patience ran out {end}.",
        "n_epochs": f"{cap}{', with patience left' if has_patience else ''}.",
        "divergence": f"Training ended {end}: its cost or a parameter was no longer finite.",
        "convergence": f"Training ended {end}: no step improved the cost any further.",
    }[record["stopped_by"]]


def _milestones(history, record):
    """Return some validations, [dict]: the first, the best, the last and some between."""
    n = len(history)
    best = np.flatnonzero(history["iteration"] == record["best_iteration"])
    rows = {0, *best, n - 1, *(np.geomspace(1, n, 6).astype(int) - 1)}
    chosen = history.iloc[sorted(rows)]
    return [
        {
            "is_best": entry["iteration"] == record["best_iteration"],
            "epoch": f"{entry['epoch']:g}",
            "iteration": f"{entry['iteration']:,.0f}",
            "error": f"{entry['validation_error_percent']:.2f} %",
            "cost": f"{entry['cost']:.4g}",
            "patience": "–" if pd.isna(entry["patience"]) else f"{entry['patience']:,.0f}",
        }
        for entry in chosen.to_dict("records")
    ]


def weights(run):
    """Return the first layer's weights as pictures, a frame per snapshot, all on one scale."""
    titles, images, n_all, _ = load_weight_images(run.dataset.folder, run.folder)
    chosen = np.unique(np.linspace(0, len(images) - 1, FRAMES).round().astype(int))
    sizes = np.abs(np.where(np.isfinite(images), images, 0))
    limit = float(sizes.max()) or 1.0
    n = images.shape[1]
    n_columns = min(TILES_IN_A_ROW, n)
    one, many = UNITS.get(run.settings["model"], ("unit", "units"))
    frames = [
        {
            "title": titles[i],
            "picture": data_uri(weight_mosaic(images[i], limit, n_columns)),
            "largest": f"{sizes[i].max():.2g}",
        }
        for i in chosen
    ]
    return {
        "frames": frames,
        "n_columns": n_columns,
        "n_rows": -(-n // n_columns),
        "tile": (100.0, round(100 * height_over_width(*images.shape[2:]), 2)),
        "unit": one,
        "n": n,
        "finding": (
            f"{_shown_weights((n, n_all), one, many)}: warm pixels speak for it, cool ones "
            f"against. From {titles[0]} to {titles[-1]} the largest weight went from "
            f"{frames[0]['largest']} to {frames[-1]['largest']}.{_how_changed(images)}"
        ),
    }


def _shown_weights(counts, one, many, when=""):
    """Return in words what the pictures of weights are of.

    counts: (how many are shown, how many there are); one, many: the noun of what has weights.
    """
    n, n_all = counts
    if n_all == 1:
        return f"The weights of the only {one}{when}, as a picture"
    which = f"each of the {n_all}" if n == n_all else f"the first {n} of {n_all:,}"
    return f"The weights of {which} {many}{when}, as a picture each"


def _how_changed(images):
    """Return in words how much weights changed in training, if they began at random.

    images: (snapshots, n, height, width) float, the weights in the pictures.
    """
    images = images.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # where training diverged
        first, change = np.linalg.norm(images[0]), np.linalg.norm(images[-1] - images[0])
    if not (first > 0 and np.isfinite(change)):
        return ""
    text = f" Together they changed by {percent(change / first, 0)} of their size at the start"
    mostly = ", so the pictures still show mostly the random numbers that training began with"
    return f"{text}{mostly if change < first / 2 else ''}."


def unlabelled(runs):
    """Return what was learned without labels, [dict]: a curve of cost for each stage without any.

    Of a run that is nothing else its weights and samples, too. None if there are no such stages.
    """
    entries = []
    for run in runs:
        history = run.history()
        epochs = history[history["validation_errors"].isna()]
        for stage, rows in epochs.groupby("stage", sort=False):
            name = name_of({"experiment": run.folder.parent.name, "run": run.folder.name})
            title = readable(name) if stage == "train" else f"{readable(name)}, {stage}"
            label = cost_label(run.settings)
            figure = f"cost-{len(entries)}"
            entries.append(
                {
                    "title": title,
                    "curve": figures.cost_curve(rows, label, figure, f"{title}: {label}"),
                    "finding": _cost_finding(rows, label),
                    "square": None if run.is_classifier else _square(run),
                    "samples": _samples(run) if run.settings["model"] in SAMPLERS else None,
                }
            )
    return entries or None


def _cost_finding(rows, label):
    first, last = rows.iloc[0], rows.iloc[-1]
    what = label[0].upper() + label[1:]
    if len(rows) == 1:
        return f"{what}: {first['cost']:.4g} in the only epoch."
    return (
        f"{what}: from {first['cost']:.4g} in the first epoch to {last['cost']:.4g} in epoch "
        f"{last['epoch']:g}. That of each minibatch was taken before it changed the parameters."
    )


def _square(run):
    """Return the weights of the last snapshot as one picture, and how wide and high it is."""
    titles, images, n_all, _ = load_weight_images(run.dataset.folder, run.folder)
    n, height, width = images[-1].shape
    n_columns = min(SQUARE, n)
    tile = height_over_width(height, width)
    return {
        "picture": data_uri(weight_mosaic(of_their_largest(images[-1]), 1.0, n_columns)),
        "n_columns": n_columns,
        "n_rows": -(-n // n_columns),
        "tile": (100.0, round(100 * tile, 2)),
        "finding": (
            f"{_shown_weights((n, n_all), 'unit', 'units', f' after {titles[-1]}')}, on a scale of "
            "its own."
        ),
    }


def _samples(run):
    """Return the samples of ``run`` as one picture, a row of chains below the other."""
    means, steps = run.samples()
    n_rows, n_chains, _ = means.shape
    height, width = run.dataset.image_shape
    images = means.reshape(-1, height, width)
    return {
        "picture": data_uri(ink_mosaic(images, n_chains)),
        "aspect": n_chains / (n_rows * height_over_width(height, width)),
        "finding": (
            "Samples. Each column is a chain of Gibbs sampling that began with a test image, each "
            f"row is {times(steps, 'step')} further."
            + (f" {_how_far(means)}" if min(n_rows, n_chains) > 1 else "")
        ),
    }


def _how_far(means):
    """Return in words how far a chain goes from row to row, beside how far two chains differ."""
    others = [np.roll(means, shift, axis=1) for shift in range(1, means.shape[1])]
    gone = float(np.abs(np.diff(means, axis=0)).mean())
    apart = float(np.mean([np.abs(means - other).mean() for other in others]))
    verdict = "keeps for long to what it shows" if gone < MIXED * apart else "soon shows another"
    return (
        f"From row to row a pixel of a chain changes by {gone:.3f} on average, and those of two "
        f"chains differ by {apart:.3f}: a chain {verdict}."
    )


def mistakes(run):
    """Return the worst mistakes, the confusion matrix and the most frequent confusions."""
    dataset, predicted = run.dataset, run.predicted()
    labels = dataset.test_y
    wrong = labels != predicted
    n_wrong, n = int(np.count_nonzero(wrong)), len(labels)
    pairs = most_frequent_mistakes(labels[wrong], predicted[wrong], dataset.n_classes, SHOWN_PAIRS)
    found = {"n": n_wrong, "n_test": n, "pairs": pairs, "gallery": [], "matrix": None}
    if n_wrong:
        found["gallery"] = _gallery(run)
        found["finding"] = _worst_classes(labels, wrong, pairs)
    if dataset.n_classes <= MOST_WRITTEN_CLASSES:
        matrix = confusion_matrix(labels, predicted, dataset.n_classes)
        most = max(1, int((matrix - np.diag(np.diag(matrix))).max()))
        found |= {"matrix": matrix.tolist(), "most": most}
    return found


def _gallery(run):
    worst = find_worst_mistakes(run, SHOWN_MISTAKES)
    ink = _ink(worst.images).reshape(-1, 1, *run.dataset.image_shape)
    return [
        {
            "picture": data_uri(ink_picture(ink[i])),
            "row": int(worst.rows[i]),
            "label": int(worst.labels[i]),
            "predicted": int(worst.predicted[i]),
            "of_label": wording.unbroken(percent_of(worst.of_label[i])),
            "of_predicted": wording.unbroken(percent_of(worst.of_predicted[i])),
        }
        for i in range(len(worst.rows))
    ]


def _worst_classes(labels, wrong, pairs):
    present, of_class = np.unique(labels, return_counts=True)
    of_wrong = np.bincount(labels[wrong], minlength=present.max() + 1)[present]
    rates = of_wrong / of_class
    worst, best = int(rates.argmax()), int(rates.argmin())
    text = _most_frequent(pairs)
    if rates[worst] > rates[best]:
        text += (
            f" Images of class {present[worst]} are misread most often "
            f"({percent(rates[worst], 1)} of them), those of class {present[best]} least "
            f"({percent(rates[best], 1)})."
        )
    return text


def _most_frequent(pairs):
    """Return the most frequent confusion in words; pairs: [(label, guess, count)], most first."""
    count = pairs[0][2]
    named = [f"{label} taken for {guess}" for label, guess, n in pairs if n == count]
    if len(named) == 1:
        return f"The most frequent confusion is {named[0]}, {times(count, 'time')}."
    if len(named) == len(pairs) > 2:
        return f"No confusion is more frequent than others: {named[0]}, {times(count, 'time')}."
    listed = f"{', '.join(named[:-1])} and {named[-1]}"
    return f"The most frequent confusions are {listed}, {times(count, 'time')} each."


def comparison(runs, rows):
    """Return the runs side by side, and the grids of each experiment; None for a single run."""
    if len(rows) == 1:
        return None
    order = sorted(range(len(rows)), key=lambda i: (validation_rate(rows[i]), rows[i]["n_params"]))
    table = [{**rows[i], "name": name_of(rows[i])} for i in order[:SHOWN_RUNS]]
    best, worst = rows[order[0]], rows[order[-1]]
    return {
        "rows": table,
        "n": len(rows),
        "n_hidden": len(rows) - len(table),
        "curves": figures.all_curves(runs, rows, [*map(name_of, rows)]),
        "n_curves": min(len(rows), figures.MOST_CURVES),
        "finding": (
            f"The lowest validation errors of the {len(rows)} runs lie between "
            f"{best['validation_error_percent']:.2f} and {worst['validation_error_percent']:.2f}"
            f"\N{NO-BREAK SPACE}%. The marked curve is that of the selected run."
            + (" Point at a curve for its run." if len(rows) > figures.MOST_NAMED else "")
        ),
        "grids": _grids(runs),
    }


def _grids(runs):
    """Return a figure over each hyperparameter that varies within an experiment."""
    experiments = {}
    for run in runs:
        experiments.setdefault(run.folder.parent, []).append(run)
    grids = []
    for folder, members in experiments.items():
        for key in _varied(members):
            found = compare_runs([run.folder for run in members], key)
            name = f"grid-{len(grids)}"
            grids.append(
                {
                    "experiment": readable(folder.name),
                    "key": key,
                    "figure": figures.over_hyperparameter(found, name),
                    "finding": _grid_finding(found),
                }
            )
    return grids


def _varied(members):
    """Return the hyperparameters in which the runs differ and over which they are compared."""
    settings = [run.record["settings"] for run in members]
    first = settings[0]
    return compared_of([k for k in first if any(other.get(k) != first[k] for other in settings)])


def _grid_finding(found):
    of_value = {}
    for line in found.lines.values():
        for index, errors in line.items():
            of_value.setdefault(index, []).extend(errors)
    lowest = {index: min(errors) for index, errors in of_value.items()}
    best, worst = found.best["index"], max(lowest, key=lowest.get)
    seeds = " Points are means over seeds; bars go from the lowest to the highest."
    return (
        f"The lowest error, {found.best['percent']:.2f}\N{NO-BREAK SPACE}%, came with "
        f"{found.key} {yaml_scalar(found.values[best])} (the star); the best run with "
        f"{yaml_scalar(found.values[worst])} reached {lowest[worst]:.2f}\N{NO-BREAK SPACE}%."
        f"{seeds if found.n_seeds > 1 else ''}"
    )


class HowToRun(NamedTuple):
    """The configuration file that made the runs, and the command."""

    configuration: str
    command: str


HOW = HowToRun("config.yaml", "snakemake --cores all")
BEST_FIRST = ("lenet", "mlp", "logistic_regression")  # models to try, as they did on MNIST


def next_steps(row, run, rows):
    """Return what to change next, [dict of title, why, lines of YAML]."""
    settings, steps = run.record["settings"], []
    experiment, model = row["experiment"], settings["model"]
    if row["stopped_by"] == "n_epochs" and row["validation_errors"]:
        steps.append(
            {
                "title": "Let it train longer",
                "why": "The selected run ended at its cap of "
                f"{times(settings['n_epochs'], 'epoch')}, not by its patience. With a higher cap "
                "it goes on where it stopped.",
                "yaml": _experiment(experiment, model, n_epochs=10 * settings["n_epochs"]),
            }
        )
    present = {other["model"] for other in rows}
    others = [name for name in BEST_FIRST if name not in present and _can_train(name, run)]
    if others:
        steps.append(
            {
                "title": "Try another model",
                "why": f"None of these runs is of the model {others[0]}. It trains beside the "
                "others, which stay as they are.",
                "yaml": _experiment(others[0], others[0]),
            }
        )
    if "learning_rate" in experiment_schema(model)["properties"]:
        rate = settings["learning_rate"]
        rates = [float(f"{factor * rate:.3g}") for factor in (0.5, 1, 2)]
        steps.append(
            {
                "title": "Vary a hyperparameter",
                "why": "A hyperparameter is a setting that training does not learn. A list of its "
                "values makes a grid, a run for each; this page then compares them.",
                "yaml": _experiment(experiment, model, learning_rate=rates),
            }
        )
    if run.dataset.is_mnist:
        steps.append(
            {
                "title": "Bring your own images",
                "why": "An .npz file, a pickle or a folder of IDX files, of any image size and "
                "number of classes.",
                "yaml": "dataset: path/to/data.npz",
            }
        )
    return steps


def _can_train(model, run):
    """Return whether ``model`` with its defaults can be trained on the data of ``run``."""
    settings = complete_experiment({"model": model})
    try:
        check_split_sizes({"": settings}, len(run.dataset.train_x))
        expected_arrays(run.dataset, settings, run.float_x)
    except UserError:
        return False
    return True


def _experiment(name, model, **changes):
    lines = ["experiments:", f"  {yaml_scalar(name)}:", f"    model: {model}"]
    return "\n".join([*lines, *(f"    {key}: {yaml_scalar(v)}" for key, v in changes.items())])
