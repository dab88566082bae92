"""The log of a training, ``results/logs/train/<experiment>/<run>.log``: its first lines, and read.

It is all that ties a training under way to the name of its run, and grows with each validation. A
training that went on from a state says from which one; what was before it stands in that state.
"""

import re
import shlex
from dataclasses import dataclass, field
from datetime import datetime

from msgd.config import (
    complete_experiment,
    hyperparameter_words,
    parse_hyperparameter_words,
    resolve_batch_size,
)
from msgd.errors import UserError
from msgd.models import MODELS, Stage, load_stages
from msgd.models.interface import n_batches

LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) ([A-Z]+) (.*)")
HYPERPARAMETERS = "hyperparameters: "
FINDING = "- "  # how the further lines of an error of the user's begin
SIZES = re.compile(
    r"floatX (\S+), (\d+) training examples, (\d+) of \d+ validation examples are counted"
)
GOES_ON = re.compile(r"going on from the state after iteration (\d+)")
# As msgd.training.loop and msgd.training.conjugate_gradient write them; tests read both back.
EPOCH = (
    r"((?P<stage>\w+), )?epoch \d+, minibatch \d+/(?P<n_train_batches>\d+), "
    r"iteration (?P<iteration>\d+): cost (?P<cost>\S+)"
)
WITHOUT_VALIDATION = re.compile(EPOCH + r"(, jacobian norm \S+)?")
VALIDATION = re.compile(
    EPOCH + r", validation error \S+ % \((?P<errors>\d+)/(?P<examples>\d+)\), "
    r"patience (?P<patience>\d+)(?P<best>, best so far)?"
)
FULL_ITERATION = re.compile(
    r"iteration (?P<iteration>\d+): cost (?P<cost>\S+), validation errors (?P<errors>\d+)"
)


@dataclass
class TrainingLog:
    """What a log says.

    settings: completed hyperparameters, None in a log that does not name them; float_x: "float32"
    or "float64"; validation_examples: how many are counted, None: none, or not said; stages: a
    (Stage, iterations of an epoch) each, as far as the settings say; n_train_batches: iterations of
    an epoch of the latest stage; resumed_from: how many iterations of all stages together the state
    had that it went on from, or None; validations: of validations, and of epochs of stages without
    any, a dict each, of stage, iteration, epoch, cost, errors, patience (None: there are none) and
    is_best (None: not said); times: when each was written, in seconds by the clock of the machine
    that trained; began: the same of the first line; end: None (under way, or killed), "finished",
    "failed" or "interrupted"; message: what it was stopped by, or the error.
    """

    settings: dict | None = None
    float_x: str | None = None
    validation_examples: int | None = None
    stages: list[tuple[Stage, int]] = field(default_factory=list)
    n_train_batches: int | None = None
    resumed_from: int | None = None
    validations: list[dict] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    began: float | None = None
    end: str | None = None
    message: str = ""

    def position(self, row):
        """Return how many iterations of all stages were done at ``row``, a dict with a stage.

        Of several stages only the last may end before its cap.
        """
        names = [stage.name for stage, _ in self.stages]
        place = names.index(row["stage"]) if row["stage"] in names else 0
        before = sum(stage.n_epochs * n_batches for stage, n_batches in self.stages[:place])
        return before + row["iteration"]

    def cap(self, name):
        """Return the cap on the epochs of the stage of that name, None if it is not known."""
        return next((stage.n_epochs for stage, _ in self.stages if stage.name == name), None)


def describe_start(settings, float_x, n_train, n_valid, n_counted):
    """Return the lines (list) with which a log begins, for people and for read_log.

    settings: completed hyperparameters; n_train, n_valid: examples; n_counted: those of n_valid
    among which errors are counted.
    """
    return [
        HYPERPARAMETERS + shlex.join(hyperparameter_words(settings)),
        f"floatX {float_x}, {n_train} training examples, "
        f"{n_counted} of {n_valid} validation examples are counted",
    ]


def read_log(text):
    """Return the TrainingLog of the ``text`` of a log, which may end anywhere; None if it is none.

    A last line without its end is left for the next time.
    """
    log = TrainingLog()
    whole, _, _ = text.rpartition("\n")
    for line in whole.split("\n"):
        if parts := LINE.fullmatch(line):  # else the rest of a message, or of a traceback
            written, level, message = parts.groups()
            moment = datetime.fromisoformat(written).timestamp()
            log.began = moment if log.began is None else log.began
            _take(log, moment, level, message)
        elif line.startswith(FINDING) and log.end == "failed":
            log.message += f" {line}"
    return None if log.began is None else log


def _take(log, moment, level, message):
    """Take one message into ``log``."""
    if message.startswith(HYPERPARAMETERS):
        log.settings = _settings(message.removeprefix(HYPERPARAMETERS))
    elif sizes := SIZES.fullmatch(message):
        log.float_x, log.validation_examples = sizes[1], int(sizes[3]) or None
        if log.settings:
            log.stages = _stages(log.settings, int(sizes[2]))
            _, log.n_train_batches = log.stages[0]
    elif goes_on := GOES_ON.fullmatch(message):
        log.resumed_from = int(goes_on[1])
    elif validation := VALIDATION.fullmatch(message):
        log.n_train_batches = int(validation["n_train_batches"])
        log.validation_examples = int(validation["examples"])
        _append(log, moment, validation, is_best=validation["best"] is not None)
    elif epoch := WITHOUT_VALIDATION.fullmatch(message):
        log.n_train_batches = int(epoch["n_train_batches"])
        _append(log, moment, epoch)
    elif iteration := FULL_ITERATION.fullmatch(message):
        log.n_train_batches = 1  # an iteration sees all minibatches
        _append(log, moment, iteration)
    elif level == "RESULT":
        log.end, log.message = "finished", message.rpartition("stopped by ")[2]
    elif level == "ERROR":
        is_interrupted = message.endswith(": interrupted")
        log.end = "interrupted" if is_interrupted else "failed"
        log.message = message.removeprefix("msgd train: ")


def _append(log, moment, found, is_best=None):
    """Append what a line says, a match of one of the patterns, to ``log``."""
    words = found.groupdict()
    whole = {key: int(words[key]) for key in ("errors", "patience") if key in words}
    iteration = int(words["iteration"])
    log.validations.append(
        {
            "stage": words.get("stage") or "train",
            "iteration": iteration,
            "epoch": (iteration - 1) // log.n_train_batches + 1,
            "cost": float(words["cost"]),
            "errors": None,
            "patience": None,
            **whole,
            "is_best": is_best,
        }
    )
    log.times.append(moment)


def _stages(settings, n_train):
    """Return the stages of a training with ``settings``, each with the iterations of an epoch."""
    stages = load_stages(resolve_batch_size(settings, n_train))
    if MODELS[settings["model"]] != "loop":  # an iteration sees all minibatches
        return [(stage, 1) for stage in stages]
    return [(stage, n_batches(n_train, stage.batch_size)) for stage in stages]


def _settings(text):
    """Return the hyperparameters in ``text``, None if they are not those of a model."""
    try:
        return complete_experiment(parse_hyperparameter_words(shlex.split(text)))
    except (ValueError, UserError):  # cut, or edited by hand
        return None
