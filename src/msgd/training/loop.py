"""The one training loop: minibatch SGD in stages, with validation, patience, snapshots and resume.

The loop asks the backend for all minibatches up to the next moment at which something has to be
decided, in one call. Iterations are minibatches; those shown to people count from 1, and in each
stage anew.
"""

import logging
import math
import time
from dataclasses import asdict, dataclass, field

import numpy as np

from msgd.data.dataset import Dataset
from msgd.errors import UserError
from msgd.models import load_stages
from msgd.models.interface import Backend, n_batches, n_evaluated
from msgd.training.checkpoint import Checkpoint, State
from msgd.training.early_stopping import EarlyStopping, default_validation_frequency
from msgd.training.progress import progress_bar
from msgd.training.snapshots import is_due

log = logging.getLogger(__name__)

ONLY_STAGE = "train"  # the name of the stage where there is no other: messages leave it out


@dataclass
class StageRun:
    """What has become of a stage so far: the minibatches of an epoch, and how many were trained."""

    name: str
    n_train_batches: int
    iterations_run: int = 0

    def epoch(self, iteration):
        """Return the epoch, from 1, in which ``iteration`` of the stage, from 1, falls."""
        return (iteration - 1) // self.n_train_batches + 1


@dataclass
class Training:
    """What a training leaves behind.

    stages: a StageRun of each that was begun; history: a dict per validation, or per epoch of a
    stage without any, with the columns of history.csv; seconds: the time of each since the start of
    training; best_parameters: those of the fewest validation errors, or, where no stage is
    validated, those after the last epoch; validation_examples: among which errors are counted, None
    without validation; has_p: whether the history has McNemar's p; stopped_by: "patience",
    "n_epochs", "divergence", or "convergence" (conjugate gradients).
    """

    stages: list[StageRun] = field(default_factory=list)
    history: list[dict] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_parameters: dict[str, np.ndarray] | None = None
    validation_examples: int | None = None
    has_p: bool = False
    stopped_by: str = "n_epochs"

    @property
    def stage(self):
        """The StageRun of the stage that was begun last."""
        return self.stages[-1]

    @property
    def iterations_run(self):
        """The minibatches trained in all stages together."""
        return sum(stage.iterations_run for stage in self.stages)

    def record(
        self,
        iteration,
        cost,
        seconds,
        *,
        errors=None,
        patience=None,
        improvement_p=None,
        best_errors=None,
        best_iteration=None,
    ):
        """Append to the history a validation, or an epoch without one: then the rest is None."""
        percent = None if errors is None else 100 * errors / self.validation_examples
        self.history.append(
            {
                "stage": self.stage.name,
                "iteration": iteration,
                "epoch": self.stage.epoch(iteration),
                "cost": cost,
                "validation_errors": errors,
                "validation_error_percent": percent,
                "patience": patience,
                **({"improvement_p": improvement_p} if self.has_p else {}),
                "best_validation_errors": best_errors,
                "best_iteration": best_iteration,
            }
        )
        self.seconds.append(seconds)

    def summary(self):
        """Return the outcome of the run: the part of the score table that training knows.

        Epochs and iterations are those of the last stage; ``stages`` has those of all.
        """
        last, stage = self.history[-1], self.stage
        best = last["best_iteration"] or last["iteration"]
        if last["validation_errors"] is None:
            reached = {"cost": last["cost"]}
        else:
            reached = {
                "validation_errors": last["best_validation_errors"],
                "validation_examples": self.validation_examples,
            }
        return {
            "epochs_run": stage.epoch(stage.iterations_run),
            "iterations_run": stage.iterations_run,
            "best_epoch": stage.epoch(best),
            "best_iteration": best,
            **reached,
            "stopped_by": self.stopped_by,
            "n_train_batches": stage.n_train_batches,
            "stages": [asdict(stage) for stage in self.stages],
        }

    def describe(self):
        """Return the outcome in a line for people."""
        outcome = self.summary()
        if "cost" in outcome:
            reached = f"cost {outcome['cost']:.6g}"
        else:
            errors, examples = outcome["validation_errors"], outcome["validation_examples"]
            reached = (
                f"validation error {100 * errors / examples:.2f} % ({errors:,} of {examples:,})"
            )
        return (
            f"{reached} in epoch {outcome['best_epoch']} of {outcome['epochs_run']}; "
            f"stopped by {self.stopped_by}"
        )


def train(backend, dataset, settings, checkpoint):
    """Train the model in ``backend`` through all its stages; return a Training.

    A stage that is validated lasts until patience or epochs are exhausted, any other to its last
    epoch. dataset: msgd.data.dataset.Dataset, for its sizes and labels; settings: one run's
    completed hyperparameters; checkpoint: msgd.training.checkpoint.Checkpoint, which takes
    snapshots on the schedule of is_due, before the first minibatch (iteration 0) and after the last
    of each stage, and states to go on from. The backend is left with the last parameters; the best
    ones are in the result. Raises UserError if the run ends or diverges before its first
    validation, or, without any, in its first epoch.
    """
    stages, n_train = load_stages(settings), len(dataset.train_x)
    result = Training()
    for stage in stages:
        if stage.is_validated:
            result.validation_examples = n_evaluated(len(dataset.valid_x), stage.batch_size)
            result.has_p = settings["improvement_test"] == "mcnemar"
    cap = sum(stage.n_epochs * n_batches(n_train, stage.batch_size) for stage in stages)
    state = checkpoint.load(cap)
    if state is None:
        checkpoint.save_snapshot(0, backend.get_parameters())
    else:
        _restore(state, backend, result)
    started = time.perf_counter() - (result.seconds[-1] if state else 0)
    loop = _Loop(backend, dataset, settings, checkpoint, result, started)
    for stage in stages[max(0, len(result.stages) - 1) :]:
        if state is None:
            result.stages.append(StageRun(stage.name, n_batches(n_train, stage.batch_size)))
        result.stopped_by = "n_epochs"
        backend.begin(stage)
        if state is not None:
            backend.set_state(state.backend)
        train_stage = loop.train_validated if stage.is_validated else loop.train_unvalidated
        train_stage(stage, state)
        if result.best_parameters is None and result.stopped_by == "divergence":
            raise UserError(_divergence(stage, settings))
        checkpoint.save_snapshot(result.iterations_run, backend.get_parameters())
        if result.stopped_by == "divergence":
            break
        state = None
    log.info("stopped by %s after %d iterations", result.stopped_by, result.iterations_run)
    return result


RULE_SETTINGS = (
    *("patience", "patience_increase"),
    *("improvement_threshold", "improvement_test", "improvement_alpha"),
)
# What of the patience rule changes during training.
RULE_STATE = ("patience", "best_errors", "best_iteration", "improvement_p")


def _restore(state, backend, result):
    """Let ``backend`` and ``result`` be as they were at ``state``, a State."""
    backend.set_parameters(state.parameters)
    result.stages = [StageRun(**stage) for stage in state.record["stages"]]
    result.history, result.seconds = state.history, state.seconds
    result.best_parameters = state.best_parameters or None


@dataclass
class _Loop:
    """A training under way; started: when it began, by the clock of time.perf_counter."""

    backend: Backend
    dataset: Dataset
    settings: dict
    checkpoint: Checkpoint
    result: Training
    started: float

    def train_validated(self, stage, state):
        """Train ``stage`` until patience or epochs are exhausted, from its beginning or ``state``.

        Raises UserError if it ends before its first validation.
        """
        run = self.result.stage
        early_stopping = EarlyStopping(**{key: self.settings[key] for key in RULE_SETTINGS})
        if state is not None:
            for name in RULE_STATE:
                setattr(early_stopping, name, state.record[name])
            early_stopping.reference_correct = state.arrays.get("reference_correct")
        frequency = self.settings["validation_frequency"] or default_validation_frequency(
            run.n_train_batches, self.settings["patience"]
        )
        done, cap = run.iterations_run, stage.n_epochs * run.n_train_batches
        with self.bar(cap) as bar:
            while done < cap and not early_stopping.is_exhausted(done - 1):
                next_validation = (done // frequency + 1) * frequency
                last = min(next_validation, early_stopping.patience + 1, cap)
                bar.total = min(early_stopping.patience + 1, cap)
                cost = self.train_span(done, last, bar)
                done = last
                if not math.isfinite(cost):
                    self.diverge("the cost is %s by iteration %d", cost, done)
                    return
                if done < next_validation:
                    break  # the patience or the cap came first
                if not self.validate(early_stopping, done, cost):
                    self.diverge("parameters are not finite after %d", done)
                    return
                self.show_validation(bar, early_stopping)
                is_last = done + frequency > min(early_stopping.patience + 1, cap)
                self.keep(is_last, early_stopping)
        if early_stopping.best_errors is None:
            raise UserError(_no_validation(self.settings, frequency, cap))
        if early_stopping.is_exhausted(done - 1):
            self.result.stopped_by = "patience"

    def train_unvalidated(self, stage, _state):
        """Train ``stage`` to its last epoch, from where it stands."""
        run, result = self.result.stage, self.result
        done, cap = run.iterations_run, stage.n_epochs * run.n_train_batches
        with self.bar(cap) as bar:
            while done < cap:
                cost = self.train_span(done, done + run.n_train_batches, bar)
                done = run.iterations_run
                parameters = self.backend.get_parameters()
                if not math.isfinite(cost):
                    self.diverge("the cost is %s by iteration %d", cost, done)
                    return
                if not _are_finite(parameters):
                    self.diverge("parameters are not finite after %d", done)
                    return
                if result.validation_examples is None:  # no stage will tell better ones
                    result.best_parameters = parameters
                result.record(done, cost, time.perf_counter() - self.started)
                self.show_epoch(bar)
                self.keep(done == cap)

    def bar(self, cap):
        """Return the progress bar of the stage, which has ``cap`` minibatches at most."""
        run, title = self.result.stage, self.checkpoint.title
        title = title if run.name == ONLY_STAGE else f"{title} {run.name}"
        return progress_bar(title, total=cap, initial=run.iterations_run, unit="minibatch")

    def train_span(self, done, last, bar):
        """Train minibatches done..last-1 of the stage; return their mean cost."""
        cost = float(np.mean(self.backend.train(done, last), dtype=np.float64))
        self.result.stage.iterations_run = last
        bar.update(last - done)
        return cost

    def diverge(self, what, *numbers):
        """Take note that training diverged."""
        self.result.stopped_by = "divergence"
        log.warning(what + ": training diverged", *numbers)

    def validate(self, early_stopping, done, cost):
        """Count the validation errors, apply the patience rule, and record both.

        Return False, and do neither, if they are a new best by parameters that are not finite: the
        last step before the validation may make them so, which no cost has shown yet.
        """
        backend, result = self.backend, self.result
        if result.has_p:
            n = result.validation_examples
            correct = backend.predict("valid")[:n] == self.dataset.valid_y[:n]
            errors = n - int(np.count_nonzero(correct))
        else:
            errors, correct = backend.count_errors("valid"), None
        if early_stopping.is_best(errors):
            best = backend.get_parameters()
            if not _are_finite(best):
                return False
            result.best_parameters = best
        early_stopping.update(done - 1, errors, correct)
        result.record(
            *(done, cost, time.perf_counter() - self.started),
            errors=errors,
            patience=early_stopping.patience,
            improvement_p=early_stopping.improvement_p,
            best_errors=early_stopping.best_errors,
            best_iteration=early_stopping.best_iteration,
        )
        return True

    def keep(self, is_last, early_stopping=None):
        """Save a snapshot and a state if they are due; the state of the last row always."""
        result, checkpoint, arrays, rule = self.result, self.checkpoint, {}, {}
        if is_due(len(result.history)):
            checkpoint.save_snapshot(result.iterations_run, self.backend.get_parameters())
        if not (is_last or checkpoint.is_state_due()):
            return
        if early_stopping:
            rule = {name: getattr(early_stopping, name) for name in RULE_STATE}
            if early_stopping.reference_correct is not None:
                arrays = {"reference_correct": early_stopping.reference_correct}
        state = State(
            *(result.iterations_run, result.history, result.seconds),
            *(self.backend.get_parameters(), result.best_parameters or {}),
            *(self.backend.get_state(), {"stages": [*map(asdict, result.stages)], **rule}, arrays),
        )
        checkpoint.save(state)

    def show_validation(self, bar, early_stopping):
        """Report the latest validation on the progress bar and in the log."""
        row, run = self.result.history[-1], self.result.stage
        bar.set_postfix_str(
            f"epoch {row['epoch']}, validation {row['validation_error_percent']:.2f} %, "
            f"patience left {max(0, early_stopping.patience + 1 - run.iterations_run)}"
        )
        log.info(
            "%(where)s: cost %(cost).6f, validation error %(validation_error_percent).4f %% "
            "(%(validation_errors)d/%(validation_examples)d), patience %(patience)d%(best)s",
            {
                **row,
                "where": _where(row, run),
                "validation_examples": self.result.validation_examples,
                "best": ", best so far" if row["best_iteration"] == row["iteration"] else "",
            },
        )

    def show_epoch(self, bar):
        """Report the latest epoch of an unvalidated stage on the progress bar and in the log."""
        row = self.result.history[-1]
        bar.set_postfix_str(f"epoch {row['epoch']}, cost {row['cost']:.6g}")
        describe = getattr(self.backend, "describe_epoch", None)
        more = f", {describe()}" if describe else ""
        log.info("%s: cost %.6f%s", _where(row, self.result.stage), row["cost"], more)


def _are_finite(parameters):
    return all(np.isfinite(array).all() for array in parameters.values())


def _where(row, run):
    """Return in words where a row of the history stands; run: the StageRun of its stage."""
    stage = "" if run.name == ONLY_STAGE else f"{run.name}, "
    minibatch = (row["iteration"] - 1) % run.n_train_batches + 1
    return (
        f"{stage}epoch {row['epoch']}, minibatch {minibatch}/{run.n_train_batches}, "
        f"iteration {row['iteration']}"
    )


def _divergence(stage, settings):
    key = "learning_rate"
    if not stage.is_validated and f"pretraining_{key}" in settings:
        key = f"pretraining_{key}"
    when = "its first validation" if stage.is_validated else "the end of an epoch"
    return (
        f"training diverged before {when}: the cost or a parameter is not finite; "
        f"lower {key} (it is {settings[key]})"
    )


def _no_validation(settings, frequency, cap):
    return (
        f"the run ended before its first validation: validation_frequency is {frequency}, but only "
        f"{min(cap, settings['patience'] + 1)} minibatches are trained"
    )
