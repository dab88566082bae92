"""A finished run as an event file for TensorBoard: ``msgd tensorboard``, extra ``tensorboard``.

The file follows from the run's files alone: equal runs with equal timings give equal bytes. So its
name is always the same, and its times are seconds since the run began to train, not dates.
"""

import itertools
import math
from pathlib import Path

from msgd.config import yaml_scalar
from msgd.errors import UserError
from msgd.evaluation.opened_run import open_run
from msgd.files import atomic_path, readable

# TensorBoard reads files with "tfevents" in their names.
FILE_NAME = "events.out.tfevents.0.msgd"
VERSION = "brain.Event:2"  # of the format, which a file names in its first record
INSTALL = (
    "TensorBoard is not installed: pip install -c constraints.txt -e '.[tensorboard]', or set "
    "tensorboard: false in the configuration"
)
# Columns of history.csv, and what TensorBoard shows them as.
SCALARS = {
    "cost": ("training/cost", "mean over the minibatches since the last one shown"),
    "epoch": ("training/epoch", "the epoch in which the validation falls"),
    "patience": ("training/patience", "minibatches trained at least"),
    "validation_error_percent": ("validation/error_percent", "zero-one errors"),
    "best_error_percent": ("validation/best_error_percent", "the lowest so far"),
    "improvement_p": ("validation/improvement_p", "of McNemar's exact one-sided test"),
}
TEST_ERROR = ("test/error_percent", "of the parameters of the fewest validation errors")


def write_event_file(run_folder, output):
    """Write the run in ``run_folder`` to a file in the folder ``output``; return its path.

    A step of TensorBoard's is a minibatch, counted through all stages. The test error, if the run
    is scored, stands at the iteration of the best parameters. Raises UserError if TensorBoard is
    not installed, or the run is not whole.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ModuleNotFoundError as error:
        raise UserError(INSTALL) from error

    folder = Path(run_folder).absolute()
    run = open_run(folder)
    history = _timed_history(run)
    name = readable(f"{folder.parent.name}/{folder.name}")
    summary = _summary_of_hyperparameters(run.settings, name)
    events = [Event(wall_time=0.0, file_version=VERSION), Event(wall_time=0.0, summary=summary)]
    for row in history.to_dict("records"):
        events += _events_of(row)
    if (folder / "score.json").is_file():
        score = run.score()
        percent = 100 * score["test_errors"] / score["test_examples"]
        step = _before(run)[run.stages[-1]["name"]] + run.training["best_iteration"]
        events.append(_event(history["seconds"].iloc[-1], step, TEST_ERROR, percent))
    path = Path(output) / FILE_NAME
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        writer = RecordWriter(stream)
        for event in events:
            writer.write(event.SerializeToString(deterministic=True))
    return path


def _timed_history(run):
    """Return history.csv of an OpenedRun with the seconds of timings.csv and steps (DataFrame)."""
    history = run.history()
    steps = history["stage"].map(_before(run)) + history["iteration"]
    history = history.assign(seconds=run.seconds(), step=steps)
    if not run.is_classifier:
        return history
    best = history["best_validation_errors"] / run.training["validation_examples"]
    return history.assign(best_error_percent=100 * best)


def _before(run):
    """Return how many iterations came before each stage of an OpenedRun: dict by its name."""
    names = [stage["name"] for stage in run.stages]
    ends = itertools.accumulate(stage["iterations_run"] for stage in run.stages)
    return dict(zip(names, [0, *ends], strict=False))


def _summary_of_hyperparameters(settings, name):
    """Return the summary for the HParams page, which takes numbers, truth values and text."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    shown = {
        key: value if isinstance(value, bool | int | float | str) else yaml_scalar(value)
        for key, value in settings.items()
    }
    summary = hparams_pb(shown, trial_id=name, start_time_secs=0.0)
    data = summary.value[0].metadata.plugin_data  # serialised in another order by every process
    message = HParamsPluginData.FromString(data.content)
    data.content = message.SerializeToString(deterministic=True)
    return summary


def _events_of(row):
    """Return the events of a row of the timed history; NaN: there is no value."""
    return [
        _event(row["seconds"], row["step"], scalar, row[column])
        for column, scalar in SCALARS.items()
        if not math.isnan(row.get(column, math.nan))
    ]


def _event(seconds, step, scalar, value):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb

    tag, description = scalar
    return Event(wall_time=seconds, step=int(step), summary=scalar_pb(tag, value, description))
