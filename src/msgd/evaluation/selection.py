"""Selection: what the runs came to, and the one of the lowest validation error."""

from fractions import Fraction

from msgd.evaluation.opened_run import open_runs
from msgd.files import readable


def score_rows(run_folders):
    """Return a dict per run folder (``.../experiment/run``), in that order.

    It holds the names of experiment and run, all of training.json and score.json, the two error
    rates in percent, and ``selected``, which is True of one. Raises UserError for runs of different
    data, whose errors do not compare, and of models that predict no classes.
    """
    return rows_of(open_runs(run_folders))


def rows_of(runs):
    """Return the rows of score_rows of a list of OpenedRuns."""
    rows = []
    for run in runs:
        row = training_row(run) | run.score()
        for split in ("validation", "test"):
            errors, examples = row[f"{split}_errors"], row[f"{split}_examples"]
            row[f"{split}_error_percent"] = 100 * errors / examples
        rows.append(row)
    selected = select(rows) if rows else None
    for index, row in enumerate(rows):
        row["selected"] = index == selected
    return rows


def training_row(run):
    """Return the names of experiment and run of an OpenedRun, and all of training.json (dict)."""
    names = {"experiment": readable(run.folder.parent.name), "run": readable(run.folder.name)}
    return names | run.training


def best_run(run_folders):
    """Return the folder (Path) of the run of lowest validation error, as ``select`` chooses it.

    Raises UserError as score_rows does.
    """
    runs = open_runs(run_folders)
    for run in runs:
        run.require_classes()
    return runs[select([run.training for run in runs])].folder


def select(rows):
    """Return the index of the row of lowest validation error.

    Ties go to fewer parameters, then to the earlier row. Test errors are not looked at.
    """
    return min(
        range(len(rows)),
        key=lambda i: (validation_rate(rows[i]), rows[i]["n_params"], i),
    )


def validation_rate(row):
    """Return the validation error of a row as an exact share (Fraction).

    Runs of different batch sizes count different numbers of examples, so counts do not compare.
    """
    return Fraction(row["validation_errors"], row["validation_examples"])
