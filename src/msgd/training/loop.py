"""The one training loop: minibatch SGD with validation, patience, snapshots and resume.

The loop asks the backend for all minibatches up to the next moment at which something has to be
decided, in one call. Iterations are minibatches; those shown to people count from 1.
"""

import logging
import math
import time
from dataclasses import dataclass, field

import numpy as np

from msgd.errors import UserError
from msgd.models.interface import n_evaluated
from msgd.training.checkpoint import State
from msgd.training.early_stopping import EarlyStopping, default_validation_frequency
from msgd.training.progress import progress_bar
from msgd.training.snapshots import is_due

log = logging.getLogger(__name__)


@dataclass
class Training:
    """What a training leaves behind.

    history: a dict per validation with the columns of history.csv; seconds: the time of each since
    the start of training; best_parameters: those of the fewest validation errors; stopped_by:
    "patience", "n_epochs", "divergence", or "convergence" (conjugate gradients).
    """

    n_train_batches: int
    validation_examples: int
    history: list[dict] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_parameters: dict[str, np.ndarray] | None = None
    iterations_run: int = 0
    stopped_by: str = "n_epochs"

    def epoch(self, iteration):
        """Return the epoch, from 1, in which ``iteration``, from 1, falls."""
        return (iteration - 1) // self.n_train_batches + 1

    def record(self, iteration, cost, errors, *, best_errors, best_iteration, seconds, **rule):
        """Append a validation to the history; the keys are the columns of history.csv.

        rule: what the patience rule says, ``patience`` and, under "mcnemar", ``improvement_p``.
        """
        self.history.append(
            {
                "iteration": iteration,
                "epoch": self.epoch(iteration),
                "cost": cost,
                "validation_errors": errors,
                "validation_error_percent": 100 * errors / self.validation_examples,
                **rule,
                "best_validation_errors": best_errors,
                "best_iteration": best_iteration,
            }
        )
        self.seconds.append(seconds)

    def summary(self):
        """Return the outcome of the run: the part of the score table that training knows."""
        last = self.history[-1]
        return {
            "epochs_run": self.epoch(self.iterations_run),
            "iterations_run": self.iterations_run,
            "best_epoch": self.epoch(last["best_iteration"]),
            "best_iteration": last["best_iteration"],
            "validation_errors": last["best_validation_errors"],
            "validation_examples": self.validation_examples,
            "stopped_by": self.stopped_by,
            "n_train_batches": self.n_train_batches,
        }

    def describe(self):
        """Return the outcome in a line for people."""
        outcome = self.summary()
        errors, examples = outcome["validation_errors"], outcome["validation_examples"]
        return (
            f"validation error {100 * errors / examples:.2f} % ({errors:,} of {examples:,}) "
            f"in epoch {outcome['best_epoch']} of {outcome['epochs_run']}; "
            f"stopped by {self.stopped_by}"
        )


def train(backend, dataset, settings, checkpoint):
    """Train the model in ``backend`` until patience or epochs are exhausted; return a Training.

    dataset: msgd.data.dataset.Dataset, for its sizes and labels; settings: one run's completed
    hyperparameters; checkpoint: msgd.training.checkpoint.Checkpoint, which takes snapshots on the
    schedule of is_due, before the first minibatch (iteration 0) and after the last, and states to
    go on from. The backend is left with the last parameters; the best ones are in the result.
    Raises UserError if the run ends or diverges before its first validation.
    """
    batch_size = settings["batch_size"]
    n_train_batches = len(dataset.train_x) // batch_size
    frequency = settings["validation_frequency"] or default_validation_frequency(
        n_train_batches, settings["patience"]
    )
    early_stopping = EarlyStopping(**{key: settings[key] for key in RULE_SETTINGS})
    result = Training(n_train_batches, n_evaluated(len(dataset.valid_x), batch_size))
    cap = settings["n_epochs"] * n_train_batches
    done = _resume(checkpoint.load(cap), backend, result, early_stopping)
    if not done:
        checkpoint.save_snapshot(0, backend.get_parameters())
    started = time.perf_counter() - (result.seconds[-1] if done else 0)
    with progress_bar(checkpoint.title, total=cap, initial=done, unit="minibatch") as bar:
        while done < cap and not early_stopping.is_exhausted(done - 1):
            next_validation = (done // frequency + 1) * frequency
            last = min(next_validation, early_stopping.patience + 1, cap)
            bar.total = min(early_stopping.patience + 1, cap)
            cost = float(np.mean(backend.train(done, last), dtype=np.float64))
            bar.update(last - done)
            done = last
            if not math.isfinite(cost):
                result.stopped_by = "divergence"
                log.warning("the cost is %s by iteration %d: training diverged", cost, done)
                break
            if done < next_validation:
                continue
            if not _validate(backend, dataset, early_stopping, result, done, cost, started):
                result.stopped_by = "divergence"
                log.warning("parameters are not finite after %d: training diverged", done)
                break
            _show(result, bar, early_stopping, done)
            if is_due(len(result.history)):
                checkpoint.save_snapshot(done, backend.get_parameters())
            is_last = done + frequency > min(early_stopping.patience + 1, cap)
            if is_last or checkpoint.is_state_due():
                checkpoint.save(_state(backend, result, early_stopping))
    result.iterations_run = done
    if result.stopped_by != "divergence" and early_stopping.is_exhausted(done - 1):
        result.stopped_by = "patience"
    if not result.history:
        raise UserError(_no_validation(result, settings, frequency, cap))
    checkpoint.save_snapshot(done, backend.get_parameters())
    log.info("stopped by %s after %d iterations", result.stopped_by, done)
    return result


RULE_SETTINGS = (
    *("patience", "patience_increase"),
    *("improvement_threshold", "improvement_test", "improvement_alpha"),
)
# What of the patience rule changes during training.
RULE_STATE = ("patience", "best_errors", "best_iteration", "improvement_p")


def _validate(backend, dataset, early_stopping, result, done, cost, started):
    """Count the validation errors, apply the patience rule, and record both in ``result``.

    Return False, and do neither, if they are a new best by parameters that are not finite: the last
    step before the validation may make them so, which no cost has shown yet.
    """
    rule = {}
    if early_stopping.improvement_test == "mcnemar":
        n = result.validation_examples
        correct = backend.predict("valid")[:n] == dataset.valid_y[:n]
        errors = n - int(np.count_nonzero(correct))
    else:
        errors, correct = backend.count_errors("valid"), None
    if early_stopping.is_best(errors):
        best = backend.get_parameters()
        if not all(np.isfinite(array).all() for array in best.values()):
            return False
        result.best_parameters = best
    early_stopping.update(done - 1, errors, correct)
    if early_stopping.improvement_test == "mcnemar":
        rule["improvement_p"] = early_stopping.improvement_p
    result.record(
        done,
        cost,
        errors,
        patience=early_stopping.patience,
        **rule,
        best_errors=early_stopping.best_errors,
        best_iteration=early_stopping.best_iteration,
        seconds=time.perf_counter() - started,
    )
    return True


def _state(backend, result, early_stopping):
    """Return the State after the latest validation."""
    correct = early_stopping.reference_correct
    return State(
        result.history,
        result.seconds,
        backend.get_parameters(),
        result.best_parameters,
        record={name: getattr(early_stopping, name) for name in RULE_STATE},
        arrays={} if correct is None else {"reference_correct": correct},
    )


def _resume(state, backend, result, early_stopping):
    """Go back to ``state``, a State or None; return how many iterations are done then."""
    if state is None:
        return 0
    backend.set_parameters(state.parameters)
    result.history, result.seconds = state.history, state.seconds
    result.best_parameters = state.best_parameters
    for name in RULE_STATE:
        setattr(early_stopping, name, state.record[name])
    early_stopping.reference_correct = state.arrays.get("reference_correct")
    return state.iteration


def _show(result, bar, early_stopping, done):
    """Report the latest validation on the progress bar and in the log."""
    row = result.history[-1]
    bar.set_postfix_str(
        f"epoch {row['epoch']}, validation {row['validation_error_percent']:.2f} %, "
        f"patience left {max(0, early_stopping.patience + 1 - done)}"
    )
    log.info(
        "epoch %(epoch)d, minibatch %(minibatch)d/%(n_train_batches)d, iteration %(iteration)d: "
        "cost %(cost).6f, validation error %(validation_error_percent).4f %% "
        "(%(validation_errors)d/%(validation_examples)d), patience %(patience)d%(best)s",
        {
            **row,
            "minibatch": (row["iteration"] - 1) % result.n_train_batches + 1,
            "n_train_batches": result.n_train_batches,
            "validation_examples": result.validation_examples,
            "best": ", best so far" if row["best_iteration"] == row["iteration"] else "",
        },
    )


def _no_validation(result, settings, frequency, cap):
    if result.stopped_by == "divergence":
        return (
            "training diverged before its first validation: the cost is not finite; "
            f"lower learning_rate (it is {settings['learning_rate']})"
        )
    return (
        f"the run ended before its first validation: validation_frequency is {frequency}, but only "
        f"{min(cap, settings['patience'] + 1)} minibatches are trained"
    )
