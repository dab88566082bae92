"""The score table of all runs, and its comparison with the published rows."""

import html
import re
from fractions import Fraction
from pathlib import Path

import pandas as pd
import yaml

from msgd.config import complete_experiment
from msgd.evaluation.opened_run import open_runs
from msgd.evaluation.selection import rows_of, score_rows, training_row
from msgd.files import write_text
from msgd.wording import times

PUBLISHED_FILE = Path(__file__).with_name("published.yaml")

# The columns of test_scores.csv, in order.
COLUMNS = (
    *("experiment", "model", "run", "backend", "floatX", "n_params"),
    *("epochs_run", "iterations_run", "best_epoch", "best_iteration"),
    *("validation_errors", "validation_examples", "validation_error_percent"),
    *("test_errors", "test_examples", "test_error_percent", "selected"),
)
# Shown to people beside them: the errors of the whole test set where a tail batch was dropped.
FULL_TEST_COLUMNS = ("all_test_errors", "all_test_examples")


def write_score_table(run_folders, folder):
    """Write test_scores.csv, .md and .html into ``folder``."""
    rows = score_rows(run_folders)
    frame = pd.DataFrame(rows)
    note = (
        "One row per run: the parameters of its lowest validation error, scored once on the test "
        "set. The row marked as selected has the lowest validation error of all, and its test "
        "error is the result. The other rows were not selected: their test errors had no part in "
        "the choice and stand there for comparison only. The errors of the whole test set, the "
        "tail batch included, stand beside them."
    )
    stem = Path(folder) / "test_scores"
    write_csv(stem, frame[[*COLUMNS]])
    write_markdown(stem, frame[[*COLUMNS, *FULL_TEST_COLUMNS]], note)
    marked = [index for index, row in enumerate(rows) if row["selected"]]
    write_html(stem, pd.DataFrame(map(_for_the_page, rows)), "Test scores", note, marked)


def _for_the_page(row):
    """Return the cells of one run in the HTML table: few enough to be seen at a glance."""
    return {
        "experiment": row["experiment"],
        "run": re.sub(r"\+(?=[a-z])", ", ", row["run"]),  # where a long name may be folded
        "selection": "selected" if row["selected"] else "not selected",
        "validation error": error_rate(row["validation_errors"], row["validation_examples"]),
        "test error": error_rate(row["test_errors"], row["test_examples"]),
        "whole test set": error_rate(row["all_test_errors"], row["all_test_examples"]),
        "epochs (best / run)": f"{row['best_epoch']} / {row['epochs_run']}",
        "parameters": f"{row['n_params']:,}",
        "backend": f"{row['backend']}, {row['floatX']}",
    }


def error_rate(errors, examples):
    """Return an error in words for people: percent, and the counts it comes from."""
    return f"{100 * errors / examples:.3f} % ({errors:,} of {examples:,})"


def published_rows():
    """Return the published results: what published.yaml lists (list of dicts)."""
    return yaml.safe_load(PUBLISHED_FILE.read_text(encoding="utf-8"))


def compare_with_published(run_folders):
    """Return a dict per published figure that a run is held against, with PUBLISHED_COLUMNS.

    A run is held against a published row if it trained that model on MNIST with the published value
    of every setting that shapes the result, the caps on epochs excepted. One that learns without
    labels needs no score.
    """
    comparisons = []
    runs = open_runs(run_folders)
    scored = iter(rows_of([run for run in runs if run.is_classifier]))
    for run in runs:
        row = next(scored) if run.is_classifier else training_row(run)
        for published in published_rows():
            if _is_same_recipe(run.record, published):
                comparisons += _compare(row, run.record["settings"], published)
    return comparisons


NOT_COMPARED = "not compared"  # a figure of a run that was cut; what stands in the column ``equal``
PUBLISHED_COLUMNS = (
    *("experiment", "run", "epochs", "quantity", "published", "reproduced", "equal", "source"),
)


def _is_same_recipe(record, published):
    settings = complete_experiment(record["settings"])  # keys younger than the record: defaults
    return (
        record["data"]["is_mnist"]
        and settings["model"] == published["model"]
        and all(settings[key] == value for key, value in published["settings"].items())
    )


def _compare(row, settings, published):
    """Return the comparison of every figure, to the decimals it was published with."""
    is_cut = settings["n_epochs"] < published["n_epochs"] and row["stopped_by"] == "n_epochs"
    epochs = f"{row['epochs_run']}, cut from {published['n_epochs']}" if is_cut else "in full"
    if settings.get("pretraining_epochs", 0) < published.get("pretraining_epochs", 0):
        is_cut = True
        epochs += f"; pre-training {settings['pretraining_epochs']}, cut from "
        epochs += f"{published['pretraining_epochs']}"
    comparisons = []
    for quantity, text in published["figures"].items():
        reproduced = f"{row[quantity]:.{len(text.partition('.')[2])}f}"
        tolerance = published.get("tolerances", {}).get(quantity, 0)
        distance = abs(Fraction(reproduced) - Fraction(text))
        if is_cut:
            equal = NOT_COMPARED
        elif distance == 0:
            equal = "yes"
        else:
            is_close = distance <= Fraction(str(tolerance))
            equal = f"within {tolerance}" if is_close else "no"
            equal += f": {_difference(row, quantity, text)}"
        figures = (quantity, text, reproduced, equal, published["source"])
        values = (row["experiment"], row["run"], epochs, *figures)
        comparisons.append(dict(zip(PUBLISHED_COLUMNS, values, strict=True)))
    return comparisons


def _difference(row, quantity, published):
    """Return by how many examples or epochs a run's figure differs from the ``published`` text."""
    if quantity == "cost":
        difference = row[quantity] - float(published)
        return f"{abs(difference):.2f} {'more' if difference > 0 else 'less'}"
    if quantity.endswith("_error_percent"):
        split = quantity.removesuffix("_error_percent")
        unit, ours = "example", row[f"{split}_errors"]
        theirs = round(Fraction(published) * row[f"{split}_examples"] / 100)
    else:
        unit, ours, theirs = "epoch", row[quantity], int(published)
    return f"{times(abs(ours - theirs), unit)} {'more' if ours > theirs else 'less'}"


def write_published_table(run_folders, folder):
    """Write published.csv, .md and .html into ``folder``."""
    frame = pd.DataFrame(compare_with_published(run_folders), columns=PUBLISHED_COLUMNS)
    note = (
        "The tutorials' figures beside those of these runs. A run cut from the published number of "
        "epochs is not compared."
        if len(frame)
        else "No run has the data and settings of a published row, so there is nothing to compare."
    )
    stem = Path(folder) / "published"
    write_csv(stem, frame)
    write_markdown(stem, frame, note)
    write_html(stem, frame, "Published and reproduced", note)


def write_csv(stem, frame):
    """Write ``frame`` as ``stem``.csv."""
    write_text(f"{stem}.csv", frame.to_csv(index=False, lineterminator="\n"))


def write_markdown(stem, frame, note):
    """Write ``note`` and ``frame`` as ``stem``.md."""
    table = frame.map(_show).to_markdown(index=False, disable_numparse=True)
    write_text(f"{stem}.md", f"{note}\n\n{table}\n")


def write_html(stem, frame, title, note, marked=()):
    """Write ``frame`` as the page ``stem``.html, with a title, a note, and rows ``marked``."""
    body = f"<p>{html.escape(note)}</p>{html_table(frame, marked)}"
    write_text(f"{stem}.html", PAGE.format(title=html.escape(title), body=body))


def html_table(frame, marked=()):
    """Return ``frame`` as an HTML table in which the rows of the numbers ``marked`` stand out."""

    def row(cells, tag):
        return "".join(f"<{tag}>{html.escape(_show(cell))}</{tag}>" for cell in cells)

    lines = [f"<tr>{row(frame.columns, 'th')}</tr>"]
    for index, cells in enumerate(frame.itertuples(index=False)):
        opening = '<tr class="marked">' if index in marked else "<tr>"
        lines.append(f"{opening}{row(cells, 'td')}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _show(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6f}" if isinstance(value, float) else str(value)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><style>
:root {{ --ink: #222; --line: #ddd; --marked: #fdf0e4; --raised: #f6f6f6; }}
@media (prefers-color-scheme: dark) {{
:root {{ --ink: #e8e6e1; --line: #444; --marked: #4a3322; --raised: #26282c; }}
body {{ background: #15171a; }}
}}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: clamp(1em, 4vw, 2em); }}
p {{ max-width: 46em; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
th, td {{ padding: .35em .9em; text-align: left; white-space: nowrap; vertical-align: top; }}
td {{ border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }}
th {{ border-bottom: 2px solid var(--ink); }}
table.facts th {{ border-bottom: 1px solid var(--line); font-weight: 600; }}
td:nth-child(2) {{ white-space: normal; min-width: 9em; }}
tr.marked td {{ background: var(--marked); font-weight: 600; }}
pre {{ background: var(--raised); padding: 1em; max-width: 60em; overflow-x: auto; }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""
