"""How far the runs in a folder of results are, from files alone.

A run that has ended left training.json; one under way has its log (msgd.training_log), and in
``states`` what was before it went on after a kill. Nothing asks for processes or for news of the
file system, so this works from any machine that sees the folder. The clocks of the machines that
train may differ from this one's: times of a log are compared with each other only, and dates of
files with those of files seen to change.
"""

import csv
import itertools
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from msgd.errors import UserError
from msgd.training_log import read_log

RECENT = 20  # validations by which the speed is judged
# A log that has been silent for so long may be of a training that was killed.
SILENT_SECONDS, SILENT_AT_THE_START, SILENT_VALIDATIONS = 60, 300, 5
# What a file that is being written, moved or removed may cause.
TORN = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError)


@dataclass
class Progress:
    """How far a run is; what is not known, or not yet, is None.

    name: experiment/run; state: "starting", "running", "finished", "failed" or "interrupted";
    detail: what it was stopped by, or its error; stage: the name of the one that is trained, where
    there are several, and the next ones are its; iteration, epoch: of the latest validation, of
    which errors are, or the latest epoch of a stage without any, of which cost is; cap: of epochs;
    examples: among which errors are counted; patience:
    minibatches trained at least; seconds: of training until then; seconds_per_iteration: lately;
    silent_after: seconds without news after which it may have been killed, None where it has ended.
    """

    name: str
    state: str
    detail: str = ""
    iteration: int | None = None
    epoch: int | None = None
    cap: int | None = None
    n_train_batches: int | None = None
    errors: int | None = None
    examples: int | None = None
    best_errors: int | None = None
    best_epoch: int | None = None
    patience: int | None = None
    seconds: float | None = None
    seconds_per_iteration: float | None = None
    silent_after: float | None = None
    stage: str | None = None
    cost: float | None = None

    @property
    def is_under_way(self):
        """Whether it has not ended, as far as it says."""
        return self.silent_after is not None

    @property
    def error_percent(self):
        """The latest validation error in percent, or None."""
        return self._percent(self.errors)

    @property
    def best_percent(self):
        """The lowest validation error in percent, or None."""
        return self._percent(self.best_errors)

    def _percent(self, errors):
        return None if errors is None or not self.examples else 100 * errors / self.examples

    @property
    def patience_left(self):
        """Minibatches until it ends unless an improvement extends the patience, or None."""
        if self.patience is None or self.iteration is None or not self.is_under_way:
            return None
        return max(0, self.patience + 1 - self.iteration)

    def seconds_left(self):
        """Return the (soonest, latest) end of the stage in seconds: by patience, by the cap.

        None if it is not known.
        """
        if self.seconds_per_iteration is None or not self.is_under_way or self.cap is None:
            return None
        at_most = max(0, self.cap * self.n_train_batches - self.iteration)
        soonest = at_most if self.patience_left is None else min(at_most, self.patience_left)
        return soonest * self.seconds_per_iteration, at_most * self.seconds_per_iteration


class History(NamedTuple):
    """The validations of a training so far, or its epochs where it has none.

    rows: a dict each with the columns of history.csv; seconds_before: of training before the log,
    in the trainings that it went on from; is_whole: whether what was before the log was found.
    """

    rows: list[dict]
    seconds_before: float
    is_whole: bool


def log_path(results, name):
    """Return where the workflow keeps the log of the training of the run ``name``."""
    return Path(results) / "logs" / "train" / f"{name}.log"


def read_run_log(results, name):
    """Return the TrainingLog of the run ``name``, None if there is none."""
    path = log_path(results, name)
    return read_log(path.read_text("utf-8", "replace")) if path.is_file() else None


def history_so_far(results, log, with_state=False):
    """Return the History that ``log`` tells, and the state that its training went on from.

    with_state: whether to look for a state of a training that began at the first minibatch, too: it
    has more digits of the costs, and McNemar's p.
    """
    rows, seconds = [], []
    if log.resumed_from is not None or with_state:
        rows, seconds = _state_of(Path(results) / "states", log)
    last = log.resumed_from or 0
    timed = zip(rows, seconds, strict=True)
    before = [second for row, second in timed if log.position(row) <= last]
    known = log.position(rows[-1]) if rows else -1
    is_whole = log.resumed_from is None or known >= log.resumed_from
    rows = [*rows]
    for validation in log.validations:
        if log.position(validation) > known:
            rows.append(_row(validation, log, rows[-1] if rows else None, is_whole))
    return History(rows, before[-1] if before else 0.0, is_whole)


def _row(validation, log, last, is_whole):
    """Return a validation of a log as a row of history.csv; ``last``: the row before, or None."""
    iteration, errors = validation["iteration"], validation["errors"]
    is_best = validation["is_best"]
    best = last and last["best_validation_errors"], last and last["best_iteration"]
    if is_best is None and is_whole and errors is not None:  # conjugate gradients do not say
        is_best = best[0] is None or errors < best[0]
    if is_best:
        best = errors, iteration
    examples = log.validation_examples
    has_percent = examples and errors is not None
    return {
        "stage": validation["stage"],
        "iteration": iteration,
        "epoch": validation["epoch"],
        "cost": validation["cost"],
        "validation_errors": errors,
        "validation_error_percent": 100 * errors / examples if has_percent else None,
        "patience": validation["patience"],
        "best_validation_errors": best[0],
        "best_iteration": best[1],
    }


def _state_of(states, log):
    """Return (history, seconds) of the latest state that is of the training of ``log``.

    States are named by a hash; run.json beside them has the settings, which the log has too. Of
    several, as of other data or source, the one used last is taken whose validations are the log's.
    Both lists end where the log does, and are empty if there is none.
    """
    settings = log.settings and {k: v for k, v in log.settings.items() if k != "n_epochs"}
    folders = sorted(states.glob("*/run.json"), key=_date, reverse=True) if settings else []
    for record in folders:
        try:
            shapes_it = json.loads(record.read_text("utf-8"))
            if (shapes_it["settings"], shapes_it["floatX"]) != (settings, log.float_x):
                continue
        except TORN:
            continue
        for path in sorted(record.parent.glob("iteration_*.state"), reverse=True):
            if found := _history_of_state(path, log):
                return found
    return [], []


def _date(record):
    """Return when the folder of a state was last used."""
    try:
        return record.parent.stat().st_mtime
    except OSError:  # msgd clean-states has just removed it
        return 0.0


def _history_of_state(path, log):
    """Return (history, seconds) of a state until the end of ``log``, None if it is not its."""
    from msgd.training.checkpoint import State  # loads Numba

    try:
        state = State.from_bytes(path.read_bytes())
    except TORN:
        return None
    last = max([log.resumed_from or 0, *map(log.position, log.validations)])
    known = {log.position(validation): validation for validation in log.validations}
    if state is None or state.iteration < (log.resumed_from or 0):
        return None
    for row in state.history:
        told = known.get(log.position(row))
        if told and (
            told["errors"] != row["validation_errors"] or abs(told["cost"] - row["cost"]) > 1e-6
        ):
            return None
    n = sum(log.position(row) <= last for row in state.history)
    return state.history[:n], state.seconds[:n]


def progress_of_log(results, name):
    """Return the Progress of the run ``name`` by its log, or None if it has none."""
    log = read_run_log(results, name)
    if log is None:
        return None
    history = history_so_far(results, log)
    state = log.end or ("running" if history.rows else "starting")
    progress = Progress(name, state, log.message if log.end else "")
    if log.end is None:
        progress.silent_after = _silent_after(log)
    progress.examples = log.validation_examples
    if log.stages:
        progress.cap = log.stages[0][0].n_epochs
    if not history.rows:
        return progress
    last = history.rows[-1]
    progress.stage = last["stage"] if len(log.stages) > 1 else None
    progress.cap = log.cap(last["stage"])
    progress.iteration, progress.epoch = last["iteration"], last["epoch"]
    progress.n_train_batches, progress.cost = log.n_train_batches, last["cost"]
    progress.errors, progress.patience = last["validation_errors"], last["patience"]
    if last["best_iteration"] is not None:
        progress.best_errors = last["best_validation_errors"]
        progress.best_epoch = (last["best_iteration"] - 1) // progress.n_train_batches + 1
    progress.seconds = history.seconds_before
    if log.times:
        progress.seconds += max(0.0, log.times[-1] - log.began)
    progress.seconds_per_iteration = _seconds_per_iteration(log)
    return progress


def _gaps(log):
    """Return (seconds, iterations) between the latest validations of ``log``."""
    recent = list(zip(log.times, log.validations, strict=True))[-RECENT - 1 :]
    return [
        (max(0.0, then - before), row["iteration"] - last["iteration"])
        for (before, last), (then, row) in itertools.pairwise(recent)
        if row["stage"] == last["stage"]
    ]


def _seconds_per_iteration(log):
    """Return the median of late; after a single validation it holds the start, too."""
    gaps = _gaps(log)
    if not gaps and log.times:
        done = log.position(log.validations[0]) - (log.resumed_from or 0)
        gaps = [(max(0.0, log.times[0] - log.began), done)]
    per_iteration = [seconds / n for seconds, n in gaps if n > 0]
    return statistics.median(per_iteration) if per_iteration else None


def _silent_after(log):
    if not log.times:
        return SILENT_AT_THE_START
    longest = max([log.times[0] - log.began, *(seconds for seconds, _ in _gaps(log))])
    return max(SILENT_SECONDS, SILENT_VALIDATIONS * longest)


def progress_of_finished(results, name):
    """Return the Progress of the run ``name`` by the files it ended with.

    Raises one of TORN if they are not whole yet.
    """
    folder = Path(results) / "runs" / name
    training = json.loads((folder / "training.json").read_text("utf-8"))
    settings = json.loads((folder / "provenance.json").read_text("utf-8"))["settings"]
    last, timed = _last_row(folder / "history.csv"), _last_row(folder / "timings.csv")
    return Progress(
        name,
        "finished",
        training["stopped_by"],
        iteration=training["iterations_run"],
        epoch=training["epochs_run"],
        cap=settings["n_epochs"],
        n_train_batches=training["n_train_batches"],
        stage=last["stage"] if len(training.get("stages", ())) > 1 else None,
        cost=float(last["cost"]),
        **_errors_of_finished(training, last),
        seconds=float(timed["seconds"]),
    )


def _errors_of_finished(training, last):
    """Return what a Progress says of errors; training: training.json; last: of history.csv."""
    if "cost" in training:
        return {}
    return {
        "errors": int(last["validation_errors"]),
        "examples": training["validation_examples"],
        "best_errors": training["validation_errors"],
        "best_epoch": training["best_epoch"],
    }


def _last_row(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))[-1]


class Watcher:
    """Looks at a folder of results again and again, and reads only what has changed.

    Raises UserError if there is no such folder.
    """

    def __init__(self, results):
        self.results = Path(results)
        if not self.results.is_dir():
            raise UserError(f"{results} is not a folder; give the folder of results of a workflow")
        self.read = {}  # name: (stamps of its files, Progress)
        self.changed = {}  # name: when it was seen to change, by time.monotonic
        self.ahead = None  # seconds by which dates of files are ahead of this machine's clock

    def look(self):
        """Return the Progress of every run, in the order of their names.

        What is torn stays as it was when it was last whole.
        """
        for name in self._names():
            stamps = self._stamps(name)
            before = self.read.get(name)
            if not any(stamps) or (before and before[0] == stamps):  # just removed, or as it was
                continue
            if before:
                self._note_change(name, stamps)
            progress = self._read(name)
            if progress:
                self.read[name] = stamps, progress
        return [progress for _, (_, progress) in sorted(self.read.items())]

    def seconds_silent(self, progress):
        """Return for how long there has been no news of a run, in seconds."""
        if progress.name in self.changed:
            return time.monotonic() - self.changed[progress.name]
        dates = [stamp[0] for stamp in self.read[progress.name][0] if stamp]
        return max(0.0, time.time() + (self.ahead or 0.0) - max(dates) / 1e9)

    def _names(self):
        """Return the names of all runs that have a log or have ended; forget those removed."""
        logs = self.results.glob("logs/train/*/*.log")
        found = {f"{path.parent.name}/{path.stem}" for path in logs}
        ended = self.results.glob("runs/*/*/training.json")
        found |= {"/".join(path.parts[-3:-1]) for path in ended}
        self.read = {name: known for name, known in self.read.items() if name in found}
        return found

    def _stamps(self, name):
        """Return (date in ns, size) of the run's log and of its training.json, None: missing."""
        ended = self.results / "runs" / name / "training.json"
        return tuple(_stamp(path) for path in (log_path(self.results, name), ended))

    def _note_change(self, name, stamps):
        self.changed[name] = time.monotonic()
        dates = [stamp[0] for stamp in stamps if stamp]
        if dates:
            self.ahead = max(dates) / 1e9 - time.time()

    def _read(self, name):
        """Return the Progress of the run ``name``, or None while its files are torn."""
        try:
            progress = progress_of_log(self.results, name)
            if progress and progress.state != "finished":
                return progress
            ended = self.results / "runs" / name / "training.json"
            # The files of a run that has just ended are seen later on other machines.
            return progress_of_finished(self.results, name) if ended.is_file() else progress
        except TORN:
            return None


def _stamp(path):
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
