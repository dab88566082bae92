"""The table of all runs, training and finished, on a terminal: ``msgd watch``."""

import io
import math
import sys
import textwrap
import time

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from msgd.evaluation.progress import Watcher
from msgd.output import standard_output

WIDE = 1000  # columns of what is no terminal: nothing is cut
SHORTEST_NAME, LONG_NAME = 12, 40
# The columns, and which go first where the terminal is narrow.
COLUMNS = (
    *("run", "state", "epoch", "cost", "error", "best"),
    *("patience left", "elapsed", "time left", "stopped by"),
)
LEFT_OUT_FIRST = (
    *("elapsed", "stopped by", "patience left", "error"),
    *("epoch", "cost", "time left", "state"),
)
ORDER = ("running", "starting", "stalled?", "failed", "interrupted", "finished")
STYLES = {"running": "green", "stalled?": "yellow", "failed": "red", "interrupted": "yellow"}
BY_PATIENCE = "time left: by patience, and at most by n_epochs"


def watch(results, seconds_between, once=False):
    """Show the runs in the folder ``results`` on standard output until Ctrl-C.

    seconds_between: how often it is looked at; once: show the table once; so it is too where
    standard output is no terminal. Raises UserError if there is no such folder.
    """
    watcher = Watcher(results)
    sys.stdout.reconfigure(errors="replace")  # names that the locale has no letters for
    console = Console(highlight=False)
    if once or not console.is_terminal:
        if console.is_terminal:
            console.print(describe(watcher, console.width))
        else:
            with standard_output():
                print(as_text(watcher))
        return
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                live.update(describe(watcher, console.width, console.height), refresh=True)
                time.sleep(seconds_between)
    except KeyboardInterrupt:  # the way to leave
        return


def as_text(watcher):
    """Return the table of a Watcher's runs as plain text, however wide."""
    console = Console(highlight=False, width=WIDE, color_system=None, file=io.StringIO())
    console.print(describe(watcher, console.width))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def describe(watcher, width, height=None):
    """Return the table of a Watcher's runs, as rich shows it, with what it leaves out in words.

    width, height: of the terminal, in characters and lines; None: as many lines as there are runs.
    """
    runs = watcher.look()
    if not runs:
        return Text(f"no runs yet in {watcher.results}; they appear when their training starts")
    silent = {run.name: watcher.seconds_silent(run) for run in runs}
    rows = sorted((_row(run, silent[run.name]) for run in runs), key=lambda row: row["order"])
    columns = _columns(rows, width)
    notes = _notes(runs, rows, columns, width)
    shown = rows
    if height is not None and len(rows) > height - 3 - len(notes):
        longest = _notes(runs, rows, columns, width, len(rows))
        shown = rows[: max(1, height - 3 - len(longest))]
        notes = _notes(runs, rows, columns, width, len(rows) - len(shown))
    return Group(_table(shown, columns, width), *notes)


def _notes(runs, rows, columns, width, hidden=0):
    """Return the lines below the table, Texts of at most ``width`` characters each.

    They count the runs and those ``hidden``, name one that failed, and say what ``columns`` are.
    """
    states = [row["kind"] for row in rows]
    counts = ", ".join(f"{states.count(kind)} {kind}" for kind in ORDER if kind in states)
    counts += f"; {hidden} more are not shown" if hidden else ""
    failures = [Text(f"{r.name}: {r.detail}", style="red") for r in runs if r.state == "failed"]
    for failure in failures[:1]:
        failure.truncate(width, overflow="crop")
    errors = ", ".join(column for column in ("error", "best") if column in columns)
    caption = [f"{errors}: on the validation set"]
    caption += ["cost: mean of the latest epoch"] if "cost" in columns else []
    caption += [BY_PATIENCE] if "time left" in columns else []
    if len("; ".join(caption)) <= width:
        caption = ["; ".join(caption)]
    dim = [Text(line, style="dim") for part in caption for line in textwrap.wrap(part, width)]
    return [*map(Text, textwrap.wrap(counts, width)), *failures[:1], *dim]


def _row(run, silent):
    """Return what a run shows: a dict of column -> text, its kind and its place in the order."""
    kind = run.state
    if run.is_under_way and silent > run.silent_after:
        kind = "stalled?"
    best = math.inf if run.best_percent is None else run.best_percent
    left = run.seconds_left() if kind != "stalled?" else None
    return {
        "kind": kind,
        "order": (ORDER.index(kind), best, run.name),
        "run": run.name,
        "state": f"{kind} {duration(silent)}" if kind == "stalled?" else kind,
        "epoch": _epoch(run),
        # Beside errors it would say little more.
        "cost": "" if run.cost is None or run.errors is not None else f"{run.cost:.6g}",
        "error": _percent(run.error_percent, run.errors),
        "best": _best(run),
        "patience left": _patience(run),
        "elapsed": "" if run.seconds is None else duration(run.seconds),
        "time left": "" if left is None else _span(*left),
        "stopped by": run.detail if kind == "finished" else "",
    }


def _epoch(run):
    if run.epoch is None:
        return f"0 of {run.cap:,}" if run.cap and run.state == "starting" else ""
    stage = f"{run.stage}: " if run.stage else ""
    return f"{stage}{run.epoch:,}" + (f" of {run.cap:,}" if run.cap is not None else "")


def _percent(percent, errors):
    if percent is None:
        return "" if errors is None else f"{errors} wrong"
    return f"{percent:.2f} %"


def _best(run):
    if run.best_errors is None:
        return ""
    return f"{_percent(run.best_percent, run.best_errors)} in {run.best_epoch:,}"


def _patience(run):
    left = run.patience_left
    return "" if left is None else f"{left:,} = {left / run.n_train_batches:.1f} epochs"


def _span(soonest, latest):
    if duration(soonest) == duration(latest):
        return duration(latest)
    return f"{duration(soonest)} to {duration(latest)}"


def duration(seconds):
    """Return ``seconds`` as text: 45 s, 3:05 min, 2:03 h or 4 d 3 h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    hours = seconds // 3600
    if hours < 24:
        return f"{hours}:{seconds % 3600 // 60:02d} h"
    return f"{hours // 24} d {hours % 24} h"


def _columns(rows, width):
    """Return the columns of the table of ``rows``, as many as ``width`` allows."""
    columns = [c for c in COLUMNS if c != "cost" or any(row["cost"] for row in rows)]
    is_mixed = any(row["error"] for row in rows)  # then few runs have a cost to show
    for column in [*(["cost"] if is_mixed else []), *LEFT_OUT_FIRST]:
        if _width(rows, columns) <= width:
            break
        columns = [c for c in columns if c != column]
    return columns


def _table(rows, columns, width):
    """Return the table of ``rows``, with as many letters of their names as ``width`` allows."""
    longest = max(cell_len(row["run"]) for row in rows)
    for_names = min(longest, LONG_NAME) + width - _width(rows, columns)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="crop")
    for row in rows:
        cells = [Text(row[column], style=_style(column, row["kind"])) for column in columns[1:]]
        table.add_row(Text(_end_of(row["run"], max(SHORTEST_NAME, for_names))), *cells)
    return table


def _width(rows, columns):
    """Return the characters of ``columns`` side by side, the longest names cut to LONG_NAME."""
    longest = {c: max(len(c), *(cell_len(row[c]) for row in rows)) for c in columns}
    longest["run"] = min(longest["run"], LONG_NAME)
    return sum(longest.values()) + 2 * (len(columns) - 1)


def _style(column, kind):
    return STYLES.get(kind, "") if column == "state" else ""


def _end_of(name, most):
    """Return ``name`` in at most ``most`` characters, without its beginning: its end tells runs."""
    return name if len(name) <= most else "..." + name[len(name) - most + 3 :]
