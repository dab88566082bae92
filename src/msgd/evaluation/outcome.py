"""What a workflow came to, as text for the terminal it ran in."""

from pathlib import Path

import pandas as pd

from msgd.evaluation.tables import error_rate

MAX_ROWS = 12  # of a larger sweep the best ones are shown


def describe_outcome(folder, has_scores=True):
    """Return the table of scores in ``folder`` (test_scores.csv) and where to look for more.

    has_scores: whether any experiment has a score; without, there are figures alone.
    """
    folder = Path(folder)
    if not has_scores:
        text = "Nothing here predicts classes, so there are no scores, no best model and no page."
        return "\n".join(["", text, "", *_where_figures_are(folder)])
    # An experiment may be called 007 or null.
    names = {"experiment": str, "run": str}
    frame = pd.read_csv(folder / "test_scores.csv", dtype=names, keep_default_na=False)
    shown = frame
    if len(frame) > MAX_ROWS:
        order = {"selected": False, "validation_error_percent": True}  # column: rising
        shown = frame.sort_values([*order], ascending=[*order.values()], kind="stable")
        shown = shown.head(MAX_ROWS)
    rows = [
        {
            "": "*" if row["selected"] else "",
            "run": f"{row['experiment']}/{row['run']}",
            "validation error": error_rate(row["validation_errors"], row["validation_examples"]),
            "test error": error_rate(row["test_errors"], row["test_examples"]),
        }
        for row in shown.to_dict("records")
    ]
    table = pd.DataFrame(rows).to_markdown(index=False, tablefmt="simple", disable_numparse=True)
    hidden = len(frame) - len(shown)
    note = "* selected: of the lowest validation error"
    if hidden:
        more = "1 more run is" if hidden == 1 else f"{hidden} more runs are"
        note += f"; {more} in {folder / 'test_scores.md'}"
    return "\n".join(["", table, note, "", *_where_to_look(folder)])


def _where_to_look(folder):
    """Return lines on what lies where in ``folder``."""
    figures, everything = _where_figures_are(folder)
    return [
        f"the story on one page        {folder / 'report.html'}",
        figures,
        f"the selected model, its card {folder / 'best_model.npz'}, {folder / 'model_card.html'}",
        f"beside the published figures {folder / 'published.html'}",
        everything,
    ]


def _where_figures_are(folder):
    return [
        f"figures                      {folder / 'plots'}",
        f"every figure and table       snakemake --report {folder / 'everything.html'}",
    ]
