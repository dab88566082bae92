"""The runs of a grid side by side: best validation error over one hyperparameter."""

import math
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from msgd.config import yaml_scalar
from msgd.errors import UserError
from msgd.evaluation.opened_run import open_runs
from msgd.evaluation.selection import select
from msgd.plots.style import GREY, LINES, ORANGE, plain, save_figure, set_title

MARKERS = "osD^vP"  # one per colour of LINES: the lines are told apart without colour too
DECADE = 10  # values that span it get a logarithmic axis
WIDTH = 8  # inches
LETTER = 0.1  # inches, about, of a tick label


@dataclass
class Comparison:
    """The runs of a grid, ordered for a figure over the hyperparameter ``key``.

    values: the values of ``key``, numbers in rising order, others as they come; others: the
    hyperparameters beside it that vary, seeds left out; lines: for each combination of the others'
    values, in words, a list of errors in percent, one per seed, for each index into ``values``;
    best: the row of the run that select chooses, with ``line``, ``index`` and ``percent``.
    """

    key: str
    values: list
    others: list[str]
    lines: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    best: dict = field(default_factory=dict)

    @property
    def is_ordered(self):
        """Whether the values are numbers with an order that means something: not seeds."""
        return self.key != "seed" and all(map(_is_number, self.values))

    @property
    def n_seeds(self):
        """The largest number of seeds of a point."""
        return max(len(errors) for line in self.lines.values() for errors in line.values())


def compare_runs(run_folders, key):
    """Return the Comparison of the runs in ``run_folders`` over the hyperparameter ``key``.

    Raises UserError if a run has no such hyperparameter, or was trained on other data.
    """
    rows = []
    for run in open_runs(run_folders):
        folder, settings = run.folder, run.record["settings"]
        if key not in settings:
            raise UserError(f"{folder} has no hyperparameter {key}; it has: {', '.join(settings)}")
        rows.append({**run.training, "settings": settings})
    varied = [name for name in rows[0]["settings"] if len(_distinct(rows, name)) > 1]
    values = _distinct(rows, key)
    if all(map(_is_number, values)):
        values.sort()
    comparison = Comparison(key, values, [name for name in varied if name not in (key, "seed")])
    for row in rows:
        row["index"] = values.index(row["settings"][key])
        row["line"] = _in_words(row["settings"], comparison.others)
        row["percent"] = 100 * row["validation_errors"] / row["validation_examples"]
        line = comparison.lines.setdefault(row["line"], {})
        line.setdefault(row["index"], []).append(row["percent"])
    comparison.best = rows[select(rows)]
    comparison.best["words"] = _in_words(comparison.best["settings"], varied)
    return comparison


def _distinct(rows, key):
    values = []
    for row in rows:
        if row["settings"].get(key) not in values:
            values.append(row["settings"].get(key))
    return values


def _is_number(value):
    return isinstance(value, int | float)


def _in_words(settings, keys):
    """Return ``key=value`` of ``keys``, no blank inside a value, so that it is not folded."""
    words = (f"{key}={yaml_scalar(settings.get(key))}" for key in keys)
    return ", ".join(word.replace(" ", "\N{NO-BREAK SPACE}") for word in words)


def plot_validation_error_over(run_folders, key, path, dpi):
    """Draw the best validation error of the runs over ``key`` to the PNG file ``path``.

    A line per combination of the other hyperparameters, grey where these are many; a point is the
    mean over seeds, its bar goes from the lowest to the highest; a star marks the best run of all.
    """
    comparison = compare_runs(run_folders, key)
    figure, axes = plt.subplots(figsize=(WIDTH, 4))
    positions = _place_values(axes, comparison)
    handles = _draw_lines(axes, comparison, positions)
    figure.set_figheight(4 + 0.2 * len(handles))
    _label_errors(axes, comparison)
    axes.margins(y=0.1)
    experiment = plain(Path(run_folders[0]).parent.name)
    set_title(figure, f"{experiment}: best validation error over {key}")
    legend = figure.legend(handles=handles, loc="outside lower left", fontsize=9)
    legend.get_texts()[-1].set_color(ORANGE)
    save_figure(figure, path, dpi)


def _place_values(axes, comparison):
    """Scale and label the axis of values; return the position of each."""
    values = comparison.values
    axes.set_xlabel(comparison.key)
    labels = [f"{v:g}" if isinstance(v, float) else yaml_scalar(v) for v in values]
    spans_decades = comparison.is_ordered and _spans_decades(values)
    # A zero has no place on a logarithmic axis; equal steps show it beside values of all sizes.
    if not comparison.is_ordered or (spans_decades and min(values) == 0):
        is_crowded = max(map(len, labels)) * LETTER > (WIDTH - 1) / len(labels)
        slant = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if is_crowded else {}
        axes.set_xticks(range(len(values)), labels, **slant)
        axes.set_xlim(-0.5, len(values) - 0.5)
        axes.grid(False, axis="x")
        return [*range(len(values))]
    if spans_decades:
        axes.set_xscale("log")
    axes.set_xticks(values, _thinned(labels, values, spans_decades))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.06)
    return values


def _spans_decades(values):
    """Return whether the numbers that are not zero differ tenfold or more."""
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) >= DECADE * min(positive)


def _thinned(labels, values, is_log):
    """Return ``labels``, empty where one would touch its neighbour on an axis of the full width."""
    places = [math.log(value) for value in values] if is_log else values
    inches = (WIDTH - 1.5) / ((places[-1] - places[0]) or 1)
    kept, end = [], -math.inf
    for label, place in zip(labels, places, strict=True):
        middle, half = (place - places[0]) * inches, len(label) * LETTER / 2
        has_room = middle - half > end
        kept.append(label if has_room else "")
        end = middle + half if has_room else end
    return kept


def _draw_lines(axes, comparison, positions):
    """Draw every combination and the best run; return the handles of the legend."""
    lines, best = comparison.lines, comparison.best
    are_few = len(lines) <= len(LINES)
    has_bars = comparison.n_seeds > 1
    handles = []
    for number, (label, line) in enumerate(lines.items()):
        is_shown = are_few or label == best["line"]  # the others are the grey background
        step = number - (len(lines) - 1) / 2 if are_few and has_bars else 0
        places = _beside(positions, 0.012 * step, axes.get_xscale())  # no bar hides another
        x = [places[index] for index in sorted(line)]
        seeds = [line[index] for index in sorted(line)]
        mean = [sum(errors) / len(errors) for errors in seeds]
        look = _look(comparison, number if are_few else 0) if is_shown else BACKGROUND
        (handle,) = axes.plot(x, mean, label=_folded(label), **look)
        if is_shown and has_bars:
            axes.vlines(x, [*map(min, seeds)], [*map(max, seeds)], color=look["color"])
        if is_shown and label:
            handles.append(handle)
        if label == best["line"]:
            star_place = places[best["index"]]
    if not are_few:
        handles.append(_background_handle(comparison))
    return [*handles, _draw_best(axes, best, star_place)]


BACKGROUND = {"color": GREY, "alpha": 0.5, "linewidth": 0.8}


def _look(comparison, number):
    """Return the options of the ``number``-th line, joined as far as the values have an order."""
    joined = "-" if comparison.is_ordered else "none" if comparison.key == "seed" else ":"
    marker = {"marker": MARKERS[number], "markersize": 5}
    return {"color": LINES[number], "linestyle": joined, "zorder": 3, **marker}


def _background_handle(comparison):
    names, n_others = comparison.others, len(comparison.lines) - 1
    kind = f"combinations of {', '.join(names)}" if len(names) > 1 else f"values of {names[0]}"
    return Line2D([], [], **BACKGROUND, label=_folded(f"the other {n_others} {kind}"))


def _beside(positions, share, scale):
    """Return ``positions`` moved by ``share`` of the span of the axis."""
    low, high = min(positions), max(positions)
    if scale == "log":
        return [position * (high / low) ** share for position in positions]
    return [position + share * ((high - low) or 1) for position in positions]


def _draw_best(axes, best, place):
    label = (
        f"lowest: {best['percent']:.2f} % ({best['validation_errors']:,} of "
        f"{best['validation_examples']:,}), {best['words']}"
    )
    star = {"color": ORANGE, "markersize": 14, "markeredgewidth": 0, "zorder": 4}
    (handle,) = axes.plot(place, best["percent"], "*", label=_folded(label), **star)
    return handle


def _folded(text):
    """Return ``text`` in lines that fit the figure's width."""
    return textwrap.fill(text, 105, break_on_hyphens=False)


def _label_errors(axes, comparison):
    seeds = f"\nmean and range of {comparison.n_seeds} seeds" if comparison.n_seeds > 1 else ""
    axes.set_ylabel(f"validation error (%){seeds}")
    errors = [e for line in comparison.lines.values() for seeds in line.values() for e in seeds]
    if min(errors) > 0 and _spans_decades(errors):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
