"""The figures of the page: each drawn twice, for a wide window and for a telephone's.

Letters in a figure shrink with it, so one drawn for a wide window cannot be read on a narrow one.
"""

import matplotlib.pyplot as plt
import numpy as np
from markupsafe import Markup
from matplotlib.patches import Rectangle
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullLocator,
    ScalarFormatter,
    StrMethodFormatter,
)
from matplotlib.transforms import blended_transform_factory

from msgd.config import yaml_scalar
from msgd.plots.style import BLUE, GREY, INK, LINES, ORANGE, plain, whole_numbers
from msgd.report.svg import to_svg
from msgd.wording import times

# Width in points, and how many columns of the curve can be pointed at.
SIZES = {"wide": (560, 140), "narrow": (290, 60)}
POINT = 1 / 72  # inches
MOST_POINTS = 500  # of a curve; more than a figure has room for
MOST_CURVES = 60
DECADE = 10


def in_both_sizes(draw, name, title):
    """Return the figure in both sizes (Markup): the page shows the one that fits its window.

    draw(width, is_wide, n_columns) returns the figure, ``width`` points wide, and its tips.
    """
    parts = []
    for size, (width, n_columns) in SIZES.items():
        figure, tips = draw(width, size == "wide", n_columns)
        svg = to_svg(figure, f"{name}-{size}", title, tips)
        parts.append(Markup('<div class="{}">{}</div>').format(size, svg))
    return Markup("\n").join(parts)


def learning_curve(run):
    """Return validation error, cost and patience over the iterations of ``run`` (Markup)."""
    history, training = run.validations(), run.training

    def draw(width, is_wide, n_columns):
        has_patience = history["patience"].notna().any()  # conjugate gradients have none
        heights = {"errors": 150, "cost": 75} | ({"patience": 105} if has_patience else {})
        figure, axes = plt.subplots(
            len(heights),
            1,
            figsize=(width * POINT, (sum(heights.values()) + 60) * POINT),
            sharex=True,
            height_ratios=[*heights.values()],
        )
        axes = dict(zip(heights, axes, strict=True))
        _draw_errors(axes["errors"], history, training)
        shown = thinned(history["cost"].to_numpy(), MOST_POINTS)
        _draw_line(axes["cost"], history["iteration"].iloc[shown], history["cost"].iloc[shown])
        _label(axes["cost"], "Training cost", "mean since the last validation" * is_wide)
        if has_patience:
            _draw_patience(axes["patience"], history, training, is_wide)
        lowest = axes["patience" if has_patience else "cost"]
        lowest.set_xlabel("iteration: minibatches trained")
        lowest.xaxis.set_major_locator(whole_numbers(7 if is_wide else 4))
        lowest.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        return figure, _add_columns(figure, lowest, history, training, n_columns)

    return in_both_sizes(draw, "curve", "Validation error, training cost and patience")


def cost_curve(rows, label, name, title):
    """Return the cost over the epochs of a stage without validation (Markup).

    rows: those of the stage (DataFrame); label: what its cost is; name: of the figure on the page.
    """

    def draw(width, is_wide, _):
        figure, axes = plt.subplots(figsize=(width * POINT, 150 * POINT))
        shown = thinned(rows["cost"].to_numpy(), MOST_POINTS)
        _draw_line(axes, rows["epoch"].iloc[shown], rows["cost"].iloc[shown])
        _label(axes, label)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(whole_numbers(7 if is_wide else 4))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        return figure, {}

    return in_both_sizes(draw, name, title)


def _draw_line(axes, x, y):
    few = {"marker": "o", "markersize": 3} if len(x) < 30 else {}
    axes.plot(x, y, color=BLUE, linewidth=1.3, **few)
    axes.grid(False, axis="x")


def _label(axes, title, subtitle=""):
    """Write what a panel shows above its axis, where it takes no width."""
    axes.set_title(title + (f": {subtitle}" if subtitle else ""), loc="left", fontsize=10)


def _draw_errors(axes, history, training):
    percent = history["validation_error_percent"]
    shown = thinned(percent.to_numpy(), MOST_POINTS)
    _draw_line(axes, history["iteration"].iloc[shown], percent.iloc[shown])
    best = 100 * training["validation_errors"] / training["validation_examples"]
    axes.plot(training["best_iteration"], best, "*", color=ORANGE, markersize=13, zorder=4)
    text = f"best: {best:.2f} % in epoch {training['best_epoch']}"
    axes.set_title(text, loc="right", fontsize=10, color=ORANGE)
    _scale_errors(axes, percent)
    _label(axes, "Validation error, %")


def _scale_errors(axes, percents):
    """Take a logarithmic axis where errors span a decade, so that small ones can be told apart."""
    low, high = min(percents), max(percents)
    if low > 0 and high >= DECADE * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.margins(y=0.12)
    if high == 0:  # an axis from -0.05 to 0.05 would be of errors that cannot be
        axes.set_ylim(-0.12, 1)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _draw_patience(axes, history, training, is_wide):
    end = training["iterations_run"]
    changed = np.flatnonzero(history["patience"].diff().fillna(0) != 0)
    if len(changed) > MOST_POINTS:
        changed = changed[thinned(changed, MOST_POINTS)]
    first, last = history["patience"].iloc[0], history["patience"].iloc[-1]
    iterations = [0, *history["iteration"].iloc[changed], end]
    patience = [first, *history["patience"].iloc[changed], last]
    axes.step(iterations, patience, where="post", color=ORANGE, linewidth=1.5)
    axes.plot([0, end], [0, end], color=GREY, linewidth=1)
    if training["stopped_by"] == "patience":
        axes.plot(end, end, "o", color=INK, markersize=5)
    axes.set_ylim(0, None)
    axes.grid(False, axis="x")
    axes.yaxis.set_major_locator(whole_numbers(4))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _label(axes, "Patience", "training ends where the iteration (grey) meets it" * is_wide)


def _add_columns(figure, axes, history, training, n_columns):
    """Lay columns over ``figure`` that can be pointed at, one per validation; return their tips."""
    rows = thinned(history["validation_error_percent"].to_numpy(), n_columns)
    rows = np.union1d(rows, np.flatnonzero(history["iteration"] == training["best_iteration"]))
    x = history["iteration"].to_numpy()[rows].astype(float)
    between = (x[1:] + x[:-1]) / 2
    edges = [min(0.0, x[0]), *between, max(float(training["iterations_run"]), x[-1])]
    across = blended_transform_factory(axes.transData, figure.transFigure)
    tips = {}
    for number, row in enumerate(rows):
        left, right = edges[number], edges[number + 1]
        gid = f"column-{number}"
        column = Rectangle((left, 0), max(right - left, 1e-9), 1, transform=across, gid=gid)
        figure.add_artist(column)
        tips[gid] = _tip(history.iloc[row], history["validation_error_percent"].iloc[row])
    return tips


def _tip(entry, percent):
    words = [
        f"epoch {entry['epoch']:g}, iteration {entry['iteration']:,.0f}",
        f"validation error {percent:.2f} % ({times(int(entry['validation_errors']), 'error')})",
        f"training cost {entry['cost']:.4g}",
    ]
    if np.isfinite(entry["patience"]):
        words.append(f"patience {entry['patience']:,.0f}")
    return "\n".join(words)


def thinned(values, most):
    """Return rising indices into ``values`` (N,), about ``most``, that keep its extremes."""
    n = len(values)
    if n <= most:
        return np.arange(n)
    kept = {0, n - 1}
    for part in np.array_split(np.arange(n), most // 2):
        inside = np.nan_to_num(np.asarray(values, float)[part], nan=np.inf)
        kept |= {int(part[inside.argmin()]), int(part[inside.argmax()])}
    return np.array(sorted(kept))


def interval(row, bounds, published):
    """Return the test error of ``row`` with its confidence interval on a scale (Markup).

    bounds: (lowest, highest) in percent; published: percent or None.
    """
    percent = row["test_error_percent"]

    def draw(width, is_wide, _):
        figure, axes = plt.subplots(figsize=(width * POINT, 90 * POINT))
        axes.plot(bounds, [0, 0], color=ORANGE, linewidth=8, alpha=0.35, solid_capstyle="butt")
        axes.plot(percent, 0, "o", color=ORANGE, markersize=9, clip_on=False)
        places = [*bounds, percent]
        if published is not None:
            axes.plot(published, 0, "D", color=INK, markersize=6, fillstyle="none")
            places.append(published)
            label = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center"}
            axes.annotate("published", (published, 0), color=INK, fontsize=9.5, **label)
        span = (max(places) - min(places)) or 1
        axes.set_xlim(max(0, min(places) - 0.35 * span), min(100, max(places) + 0.35 * span))
        axes.set_ylim(-0.7, 1)
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.grid(False)
        axes.xaxis.set_major_locator(MaxNLocator(8 if is_wide else 5))
        axes.xaxis.set_major_formatter(ScalarFormatter(useOffset=False))  # all as precise
        axes.set_xlabel("test error, %")
        return figure, {}

    low, high = bounds
    title = f"Test error {percent:.2f} %, confidence interval {low:.2f} to {high:.2f} %"
    return in_both_sizes(draw, "interval", title)


def all_curves(runs, rows, names):
    """Return the validation errors of ``runs`` over their epochs, the selected one's marked.

    rows: what score_rows returned of them; names: as people know them.
    """
    order = sorted(range(len(runs)), key=lambda i: rows[i]["validation_error_percent"])
    shown = [*reversed(order[:MOST_CURVES])]  # the best ones lie on top
    histories = {}
    for i in shown:
        history = runs[i].validations()
        kept = thinned(history["validation_error_percent"].to_numpy(), POINTS_OF_A_RUN)
        histories[i] = history.iloc[kept]
    colours = _colours_of_runs(shown, rows)

    def draw(width, is_wide, _):
        figure, axes = plt.subplots(figsize=(width * POINT, (220 if is_wide else 210) * POINT))
        ends = {}
        for i, history in histories.items():
            epochs = history["iteration"] / rows[i]["n_train_batches"]
            percents = history["validation_error_percent"]
            look = {**(CHOSEN if rows[i]["selected"] else OTHERS), "color": colours[i]}
            dots = {"marker": "o", "markersize": 3} if len(history) < 30 else {}
            axes.plot(epochs, percents, **look, **dots)
            axes.plot(epochs, percents, gid=f"run-{i}")  # to be pointed at
            ends[i] = epochs.iloc[-1], percents.iloc[-1]
        _scale_errors(
            axes, np.concatenate([h["validation_error_percent"] for h in histories.values()])
        )
        _scale_epochs(axes, [line.get_xdata() for line in axes.lines])
        if len(ends) <= MOST_NAMED:
            _name_ends(axes, [(names[i], end, colours[i]) for i, end in ends.items()])
        axes.grid(False, axis="x")
        _label(axes, "Validation error, %")
        return figure, {f"run-{i}": _run_tip(names[i], rows[i]) for i in histories}

    return in_both_sizes(draw, "runs", "Validation error of every run over its epochs")


def _colours_of_runs(shown, rows):
    """Return a colour for each of the ``shown`` runs (list of indices into ``rows``), a dict.

    Runs that are named have one each, the selected one that of what is best; of more it alone.
    """
    others = [i for i in shown if not rows[i]["selected"]]
    own = LINES[1:-1] if len(shown) <= MOST_NAMED else [GREY] * len(others)
    return dict.fromkeys(shown, ORANGE) | dict(zip(others, own, strict=False))


POINTS_OF_A_RUN = 120
MOST_NAMED = 5  # curves; of more the names would fill the figure
LINE_HEIGHT = 12  # points, of a name
LETTER = 6  # points, its width in a name
NAME_SHARE = 0.45  # of a figure's width that a name may take
FEW_EPOCHS = 5  # have a tick each
CHOSEN = {"linewidth": 2, "zorder": 3}
OTHERS = {"linewidth": 1, "alpha": 0.8}


def _scale_epochs(axes, epochs):
    """Take a logarithmic axis: the first epochs bring most, and runs differ in length.

    epochs: a list of those of each run's validations; 0 has no place on the axis, and is one where
    conjugate gradients begin at the end.
    """
    epochs = np.concatenate(epochs)
    axes.set_xlabel("epoch")
    if 0 < epochs.min() < epochs.max():
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    # Of few epochs LogLocator may choose one, or none.
    if epochs.max() < FEW_EPOCHS and not (epochs % 1).any():
        axes.xaxis.set_major_locator(whole_numbers())


def _name_ends(axes, named):
    """Write each name beside the end of its line, and no name on another; the layout makes room.

    named: [(name, (x, y), colour), ...]; the scales of ``axes`` are those it is drawn with.
    """
    letters = int(axes.figure.get_figwidth() / POINT * NAME_SHARE / LETTER)
    below = {}  # x: how high the name below stands, in points
    for name, end, colour in sorted(named, key=lambda one: one[1]):
        height = axes.transData.transform(end)[1] * 72 / axes.figure.dpi
        place = max(height, below.get(end[0], -np.inf) + LINE_HEIGHT)
        below[end[0]] = place
        look = {"textcoords": "offset points", "va": "center", "fontsize": 9.5}
        axes.annotate(
            plain(_cut(name, letters)), end, xytext=(9, place - height), color=colour, **look
        )


def _cut(name, most):
    """Return ``name`` with a gap in its middle if it has more than ``most`` letters."""
    half = most // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def _run_tip(name, row):
    percent, epoch = row["validation_error_percent"], row["best_epoch"]
    return f"{name}\nvalidation error {percent:.2f} %, best epoch {epoch}"


def over_hyperparameter(comparison, name):
    """Return the errors of a grid's Comparison over its hyperparameter, a point a run (Markup).

    Of many combinations of the other hyperparameters only that of the best run stands out.
    """
    labels = [f"{v:g}" if isinstance(v, float) else yaml_scalar(v) for v in comparison.values]

    def draw(width, _, __):
        figure, axes = plt.subplots(figsize=(width * POINT, 200 * POINT))
        tips, named = {}, []
        for number, (words, line) in enumerate(comparison.lines.items()):
            is_best = words == comparison.best["line"]
            colour = _colour_of(comparison, number, is_best)
            _draw_combination(axes, comparison, line, colour)
            if words and (is_best or len(comparison.lines) <= MOST_NAMED):
                end = max(line), np.mean(line[max(line)])
                named.append((words, end, colour))
            for index, errors in line.items():
                gid = f"point-{number}-{index}"
                mean = sum(errors) / len(errors)
                axes.plot(index, mean, "o", markersize=14, gid=gid)  # to be pointed at
                tips[gid] = _point_tip(comparison, words, labels[index], errors)
        best = comparison.best
        axes.plot(best["index"], best["percent"], "*", color=ORANGE, markersize=14, zorder=4)
        _scale_errors(
            axes, [e for line in comparison.lines.values() for es in line.values() for e in es]
        )
        is_crowded = max(map(len, labels)) * len(labels) * 7 > width
        axes.set_xticks(range(len(labels)), labels, rotation=35 if is_crowded else 0)
        axes.set_xlim(-0.3, len(labels) - 0.7)
        _name_ends(axes, named)
        axes.grid(False, axis="x")
        axes.set_xlabel(plain(comparison.key))
        _label(axes, "Lowest validation error, %")
        return figure, tips

    return in_both_sizes(draw, name, f"Validation error over {comparison.key}")


def _colour_of(comparison, number, is_best):
    """Return the colour of the ``number``-th combination: of its line and of its name."""
    if len(comparison.lines) <= MOST_NAMED:
        return (INK, *LINES[1:-1])[number]
    return INK if is_best else GREY


def _draw_combination(axes, comparison, line, colour):
    """Draw the mean error over each value's seeds, with a bar from the lowest to the highest."""
    look = {"color": colour, "alpha": 0.5 if colour == GREY else 1}
    joined = "-" if comparison.is_ordered else ":"
    indices = sorted(line)
    means = [sum(line[i]) / len(line[i]) for i in indices]
    axes.plot(indices, means, joined, marker="o", markersize=5, linewidth=1.3, **look)
    for index in indices:
        if len(line[index]) > 1:
            axes.vlines(index, min(line[index]), max(line[index]), **look)


def _point_tip(comparison, words, value, errors):
    mean = sum(errors) / len(errors)
    seeds = f", {min(errors):.2f} to {max(errors):.2f} % over {len(errors)} seeds"
    text = f"{comparison.key} {value}: {mean:.2f} %{seeds if len(errors) > 1 else ''}"
    return f"{text}\n{words}" if words else text
