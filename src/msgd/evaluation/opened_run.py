"""A trained run opened from its folder: what it holds is checked before anything is made of it.

Scores, tables, figures and the selection read a run here and nowhere else. What does not belong
together (files of two runs, a run and other data than it was trained on) is a UserError that names
the run, the data and what differs.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msgd.config import check_split_sizes, complete_experiment, resolve_batch_size
from msgd.data.dataset import Dataset, load_dataset
from msgd.data.readers import check_npz
from msgd.errors import UserError, shown
from msgd.files import read_json
from msgd.models import SAMPLERS, UNSUPERVISED
from msgd.models.interface import check_parameters, expected_arrays
from msgd.network_size import check_held
from msgd.training.snapshots import list_snapshots, load_arrays

RECORD = "provenance.json"
# Of training.json and score.json: pairs of errors and the examples they were counted among, and
# what else must be whole numbers.
TRAINING_PAIRS = (("validation_errors", "validation_examples"),)  # where a stage is validated
TRAINING_NUMBERS = (
    *("n_params", "epochs_run", "iterations_run", "best_epoch", "best_iteration"),
    "n_train_batches",
)
SCORE_PAIRS = (("test_errors", "test_examples"), ("all_test_errors", "all_test_examples"))
# Of history.csv, whatever the rule.
HISTORY_COLUMNS = (
    *("stage", "iteration", "epoch", "cost"),
    *("validation_errors", "validation_error_percent", "patience"),
    *("best_validation_errors", "best_iteration"),
)
FLOATS = {"float32": np.float32, "float64": np.float64}


@dataclass(frozen=True)
class OpenedRun:
    """A run's folder with its checked records.

    record: provenance.json; training: training.json; settings: the record's, completed, the batch
    size a number where there is a dataset; dataset: what the run was trained on, or None.
    """

    folder: Path
    record: dict
    training: dict
    settings: dict
    dataset: Dataset | None = None

    @property
    def is_classifier(self):
        """Whether the model predicts classes, and has errors to be counted."""
        return self.settings["model"] not in UNSUPERVISED

    @property
    def stages(self):
        """The stages of the training (list of dict): name, n_train_batches, iterations_run."""
        if "stages" in self.training:
            return self.training["stages"]
        keys = "n_train_batches", "iterations_run"  # of an earlier version, which had one stage
        return [{"name": "train", **{key: self.training[key] for key in keys}}]

    def require_classes(self):
        """Raise UserError unless the model predicts classes."""
        if not self.is_classifier:
            raise UserError(
                f"{self.folder} is of the model {self.settings['model']}, which learns without "
                "labels and predicts no classes: it has no errors"
            )

    def require_samples(self):
        """Raise UserError unless the model draws samples."""
        if self.settings["model"] not in SAMPLERS:
            raise UserError(
                f"{self.folder} is of the model {self.settings['model']}, which draws no samples; "
                f"those that do: {', '.join(SAMPLERS)}"
            )

    @property
    def sha256(self):
        """The SHA-256 of each array that the run was trained on (dict)."""
        return self.record["data"]["sha256"]

    @property
    def float_x(self):
        """The type of the parameters, np.float32 or np.float64."""
        return FLOATS[self.record["floatX"]]

    def parameters(self, path):
        """Return the parameters in the .npz file ``path`` of the run, as the dataset needs them."""
        parameters, data = _arrays(path), f"the data in {self.dataset.folder}"
        fault = f"{path} does not fit the run's settings and {data}"
        try:
            check_held(parameters, self.settings, self.dataset, path)
            expected = expected_arrays(self.dataset, self.settings, self.float_x)
        except UserError as error:
            raise UserError(f"{self.folder / RECORD} does not fit {data}: {error}") from error
        check_parameters(parameters, expected, fault)
        return parameters

    def best_parameters(self):
        """Return the parameters of the fewest validation errors, or last epoch: finite ones."""
        path = self.folder / "best_parameters.npz"
        parameters = self.parameters(path)
        for name, array in parameters.items():
            if not np.isfinite(array).all():
                raise UserError(f"{path}: {name} holds numbers that are not finite")
        return parameters

    def snapshots(self):
        """Return (iteration, parameters) of every snapshot, in order; there is one at least."""
        folder = self.folder / "snapshots"
        found = [(iteration, self.parameters(path)) for iteration, path in list_snapshots(folder)]
        if not found:
            raise UserError(f"{folder}: there are no snapshots; msgd train makes them")
        return found

    def predicted(self):
        """Return the predicted class of every test image, (N,) integers."""
        path = self.folder / "test_predictions.npz"
        _require(path, "msgd score")
        predicted = _arrays(path).get("predicted")
        n, n_classes = len(self.dataset.test_y), self.dataset.n_classes
        data = f"the data in {self.dataset.folder}"
        if predicted is None or predicted.dtype.kind not in "iu" or predicted.ndim != 1:
            raise UserError(f"{path} holds no predicted classes; msgd score makes it")
        if len(predicted) != n:
            raise UserError(f"{path} is of {len(predicted)} test images; {data} has {n}")
        if predicted.min() < 0 or predicted.max() >= n_classes:
            raise UserError(
                f"{path} holds the classes {predicted.min()} to {predicted.max()}; "
                f"{data} has {n_classes} classes, counted from 0"
            )
        return predicted

    def samples(self):
        """Return (means, steps) of samples.npz: (rows, chains, D) floatX, steps between rows."""
        self.require_samples()
        path, n_features = self.folder / "samples.npz", self.dataset.n_features
        _require(path, "msgd sample")
        arrays = _arrays(path)
        means, steps = arrays.get("means"), arrays.get("steps")
        if means is None or means.dtype != self.float_x or steps is None or steps.ndim:
            raise UserError(f"{path} holds no samples; msgd sample makes it")
        if means.ndim != 3 or means.shape[2] != n_features or not means.size:
            raise UserError(
                f"{path} holds means of {means.shape}; the data in {self.dataset.folder} has "
                f"{n_features} pixels"
            )
        if not ((means >= 0) & (means <= 1)).all():
            raise UserError(f"{path} holds means that are not between 0 and 1")
        return means, int(steps)

    def score(self):
        """Return what score.json holds (dict)."""
        self.require_classes()
        return _counts(self.folder / "score.json", "msgd score", SCORE_PAIRS)

    def history(self):
        """Return history.csv as a DataFrame with a row at least; it ends as training.json says."""
        import pandas as pd  # which other figures do without

        path, training = self.folder / "history.csv", self.training
        _require(path, "msgd train")
        try:
            history = pd.read_csv(path)
        except ValueError as error:
            raise UserError(f"{path} is not one of msgd's ({error})") from error
        missing = [name for name in HISTORY_COLUMNS if name not in history]
        if missing or not len(history):
            raise UserError(f"{path} is not one of msgd's: it lacks {', '.join(missing) or 'rows'}")
        last = history.iloc[-1]
        if not self.is_classifier:
            if (last["cost"], last["iteration"]) != (training["cost"], training["best_iteration"]):
                raise UserError(
                    f"{self.folder} holds files of two runs: history.csv ends with a cost of "
                    f"{last['cost']} after iteration {last['iteration']}, training.json says "
                    f"{training['cost']} after {training['best_iteration']}"
                )
            return history
        best = last["best_validation_errors"], last["best_iteration"]
        if best != (training["validation_errors"], training["best_iteration"]):
            raise UserError(
                f"{self.folder} holds files of two runs: history.csv ends with the best of "
                f"{best[0]:.0f} errors after iteration {best[1]:.0f}, training.json says "
                f"{training['validation_errors']} after {training['best_iteration']}"
            )
        return history

    def validations(self):
        """Return the rows of the history that are validations (DataFrame)."""
        return validations_of(self.history())

    def seconds(self):
        """Return the seconds of training at which each row of the history was written (Series)."""
        import pandas as pd

        path = self.folder / "timings.csv"
        _require(path, "msgd train")
        try:
            timings = pd.read_csv(path)
        except ValueError as error:
            raise UserError(f"{path} is not one of msgd's ({error})") from error
        keys, history = ["stage", "iteration"], self.history()
        is_whole = {*keys, "seconds"} <= {*timings}
        if not is_whole or timings[keys].values.tolist() != history[keys].values.tolist():
            raise UserError(f"{path} is not of the rows in history.csv: are they of one run?")
        return timings["seconds"]


def validations_of(history):
    """Return the rows of ``history`` (DataFrame) that are validations, their counts as integers.

    Beside rows of a stage without validation, whose places are empty, pandas reads them as floats.
    """
    rows = history[history["validation_errors"].notna()].reset_index(drop=True)
    counts = ["validation_errors", "patience", "best_validation_errors", "best_iteration"]
    return rows.astype({name: "int64" for name in counts if rows[name].notna().all()})


def open_run(run_folder, data_folder=None):
    """Return the OpenedRun in ``run_folder``; with ``data_folder``, that of its data, too.

    Raises UserError if a file is missing or damaged, if its files are not of one run, or if it was
    trained on other data than that in ``data_folder``.
    """
    folder = Path(run_folder)
    path = folder / RECORD
    record = _read(path, "msgd train")
    try:
        sha256, given = dict(record["data"]["sha256"]), dict(record["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not one of msgd's: it lacks settings or data") from error
    try:
        settings = complete_experiment(given)  # keys younger than the record: defaults
    except UserError as error:
        raise UserError(f"{path}: {_one_line(error)}") from error
    training = _read_training(folder / "training.json", settings)
    for key, own in (("model", settings["model"]), ("floatX", record.get("floatX"))):
        if own is not None and training.get(key, own) != own:
            raise UserError(
                f"{folder} holds files of two runs: {key} is {training[key]} in training.json and "
                f"{own} in provenance.json"
            )
    run = OpenedRun(folder, record, training, settings)
    if data_folder is None:
        return run
    dataset = load_dataset(data_folder)
    if record.get("floatX") not in FLOATS:
        raise UserError(f"{path}: floatX is {record.get('floatX')!r}; allowed: float32 or float64")
    fault = f"{folder} was not trained on the data in {data_folder}"
    _check_same_data(sha256, dataset.sha256, fault)
    try:
        check_split_sizes({"": settings}, len(dataset.train_x))
    except UserError as error:
        raise UserError(f"{path}: {_one_line(error)}") from error
    settings = resolve_batch_size(settings, len(dataset.train_x))
    return OpenedRun(folder, record, training, settings, dataset)


def open_runs(run_folders, data_folder=None):
    """Return the OpenedRuns in ``run_folders``, as open_run does, all trained on the same data.

    Raises UserError for runs of different data, and for one given twice, which would count twice.
    """
    run_folders, seen = [*run_folders], set()
    for folder in run_folders:
        place = Path(folder).resolve()
        if place in seen:
            raise UserError(f"{folder} is given twice; give each run once")
        seen.add(place)
    runs = [open_run(folder, data_folder) for folder in run_folders]
    for run in runs[1:]:
        fault = (
            f"{run.folder} was trained on other data than {runs[0].folder}, and does not compare"
        )
        _check_same_data(run.sha256, runs[0].sha256, fault)
    return runs


def _read_training(path, settings):
    """Return what training.json holds (dict): a cost in the place of errors without labels."""
    if settings["model"] not in UNSUPERVISED:
        return _counts(path, "msgd train", TRAINING_PAIRS, TRAINING_NUMBERS)
    training = _counts(path, "msgd train", (), TRAINING_NUMBERS)
    if not isinstance(training.get("cost"), float):
        raise UserError(f"{path} is not one of msgd's: cost is {training.get('cost')}")
    return training


def _one_line(error):
    """Return what the configuration's check found, a line each after the first, on one line."""
    first, *findings = str(error).splitlines()
    return "; ".join(finding.removeprefix("- ") for finding in findings) or first


def _check_same_data(one, other, fault):
    differing = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    if differing:
        raise UserError(f"{fault}: {', '.join(differing)} differ (by their SHA-256)")


def _read(path, maker):
    """Return the mapping in the JSON file ``path``, which the command ``maker`` writes."""
    _require(path, maker)
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} is not one of msgd's: it holds no mapping")
    return found


def _arrays(path):
    """Return the arrays of the .npz file ``path`` by name; it may be a stranger's."""
    if path.is_file():
        check_npz(path)
    return load_arrays(path)


def _require(path, maker):
    if not path.is_file():
        raise UserError(f"{path} is missing; is {path.parent} a run's folder? {maker} writes it")


def _counts(path, maker, pairs, more=()):
    """Return what ``path`` holds: whole numbers in ``pairs`` (errors, examples), and ``more``."""
    found = _read(path, maker)
    for key in [*(key for pair in pairs for key in pair), *more]:
        if not isinstance(found.get(key), int) or found[key] < 0:
            raise UserError(f"{path} is not one of msgd's: {key} is {shown(found.get(key))}")
    for errors, examples in pairs:
        if found[errors] > found[examples] or found[examples] == 0:
            raise UserError(
                f"{path} is not one of msgd's: {errors} is {found[errors]}, {examples} is "
                f"{found[examples]}"
            )
    return found
