"""Whether results hold: hashes taken anew, and scores counted anew from saved parameters."""

import csv
import logging
import shlex
from functools import cache, partial
from pathlib import Path

import numpy as np

from msgd.backends import choose_device
from msgd.data.content import check_images
from msgd.data.dataset import ANEW, load_dataset
from msgd.errors import UserError, shown
from msgd.evaluation.opened_run import open_run
from msgd.inference.model_file import load_model_file
from msgd.models.interface import count_mistakes
from msgd.provenance import device_of
from msgd.training.run import build_backend, hashes_of_run, run_name
from msgd.training.snapshots import load_arrays

log = logging.getLogger(__name__)

# The share of the examples that another device than the run's may put into another class: it rounds
# sums otherwise, and what lies on a border falls to the other side.
BORDERLINE = 0.001


# Said once below all that was found. From its results a workflow's other options are not known.
HINT = (
    "to these commands add the -s and --configfile that you gave, if any; remove the folder of a "
    "run that the configuration no longer has"
)
# What a training has saved when it is finished, beside its record and its outcome.
SAVED = ("history.csv", "timings.csv", "best_parameters.npz", "snapshots")
SCORES, KEYS = "test_scores.csv", ("experiment", "run")


def verify(results, backend="auto", threads=1):
    """Check all finished runs in the folder ``results``; return what does not hold (list of str).

    Of the data every array's hash; of a run the hashes of what it saved, that its files are of one
    run, and its errors, which are counted anew on ``backend`` with ``threads`` threads; of
    best_model.npz that it is a run's; that all runs of the table of scores are there. Logs a line
    for each; what does not hold is said with the command that makes it anew. Changes nothing.
    Raises UserError if ``results`` is no folder, or if there is no finished run.
    """
    results = Path(results)
    if not results.is_dir():
        raise UserError(f"{results} is not a folder; give the folder of results of a workflow")
    folders = [path for path in sorted(results.glob("runs/*/*")) if _has_files(path)]
    if not folders and not (results / SCORES).exists():
        raise UserError(
            f"{results} holds no finished run; give the folder of results of a workflow, in which "
            "snakemake makes them"
        )
    datasets, findings = {}, []
    choose = cache(partial(choose_device, backend))  # which says what it takes: once a model

    def check(what, made_by, function, *arguments):
        try:
            log.info("%s holds: %s", what, function(*arguments))
        except (UserError, OSError) as error:
            anew = "" if ANEW in str(error) else f"; {_made_anew(results, made_by)}"
            findings.append(f"{what} does not hold: {error}{anew}")

    for path in sorted(results.glob("data/*/dataset.json")):
        check(path.parent, "unpickle", _check_data, path.parent, datasets)
    for folder in folders:
        check(folder, folder / "training.json", _check_run, folder, datasets, choose, threads)
    if (model := results / "best_model.npz").exists():
        check(model, "select", _check_model, model, folders)
    return findings + _missing(results, folders)


def _has_files(folder):
    """Return whether ``folder`` has any file of a run; snapshots alone are of one under way."""
    return folder.is_dir() and any(
        path.is_file() and not path.name.startswith(".") for path in folder.iterdir()
    )


def _missing(results, folders):
    """Return a finding (str) for each run in the table of scores without a folder or a score."""
    table = results / SCORES
    if not table.exists():
        return []
    try:
        with table.open(encoding="utf-8", newline="") as file:
            names = [[row[key] for key in KEYS] for row in csv.DictReader(file)]
    except (KeyError, ValueError, csv.Error):
        names = []
    if not names or not all(name and "/" not in name for row in names for name in row):
        anew = _made_anew(results, "tabulate")
        return [f"{table} does not hold: it is not one of msgd's, and lists no runs; {anew}"]
    findings = []
    for experiment, run in names:
        folder = results / "runs" / shown(experiment, 300) / shown(run, 300)
        score = folder / "score.json"
        if folder not in folders or not score.exists():
            missing = score if folder in folders else folder
            anew = _made_anew(results, score)
            findings.append(f"{missing} is missing, but {table.name} lists the run; {anew}")
    return findings


def _made_anew(results, made_by):
    """Return which command makes anew what the rule of that name makes, or that makes the file.

    A workflow knows its files by their paths from the folder in which it has results/.
    """
    words = ["snakemake", "--cores", "all"]
    if results.resolve().name == "results":
        if isinstance(made_by, Path):
            made_by = "results" / made_by.relative_to(results)
        if (home := results.resolve().parent) != Path.cwd():
            words += ["--directory", str(home)]
    return f"make it anew with {shlex.join([*words, '--forcerun', str(made_by)])}"


def _check_data(folder, datasets):
    """Return what was checked of the data in ``folder``; put it into ``datasets`` by its hashes."""
    dataset = load_dataset(folder)
    check_images(dataset, ("train", "valid", "test"))
    datasets[_key(dataset.sha256)] = folder
    return f"the hashes of {len(dataset.sha256)} arrays"


def _key(sha256):
    return tuple(sorted(sha256.items()))


def _check_run(folder, datasets, choose, threads):
    """Return what was checked of the run in ``folder``, as text; UserError if it does not hold.

    choose: function of a model's name that returns the device.
    """
    data_folder = datasets.get(_key(open_run(folder).sha256))
    if data_folder is None:
        raise UserError("it was trained on other data than are there, or those do not hold")
    run = open_run(folder, data_folder)
    for name in SAVED:
        if not (folder / name).exists():
            raise UserError(f"{folder / name} is missing; msgd train writes it")
    saved = hashes_of_run(folder)
    for name, sha256 in run.training.get("sha256", {}).items():
        if saved.get(name) != sha256:
            raise UserError(f"the SHA-256 of the {name} is not that in training.json")
    checked = [f"the hashes of {len(run.snapshots())} snapshots and the best parameters"]
    run.seconds()  # reads the history, and that both are of one run
    if run.is_classifier:
        checked += _check_errors(run, choose(run.settings["model"]), threads)
    return ", ".join(checked)


def _check_errors(run, device, threads):
    """Return what the errors of a run came to when they were counted anew (list of str)."""
    is_same_device = device == device_of(run.record.get("device", device))
    kernels = build_backend(
        run.dataset, run.best_parameters(), run.settings, device, run.float_x, threads, None
    )
    allowed = 0 if is_same_device else BORDERLINE * len(run.dataset.test_y)
    validation = kernels.count_errors("valid")
    pairs = [("validation", run.training["validation_errors"], validation)]
    if (run.folder / "score.json").exists():
        labels, score, predicted = run.dataset.test_y, run.score(), kernels.predict("test")
        for kind, batch_size in (("", run.settings["batch_size"]), ("all_", len(labels))):
            counted = count_mistakes(predicted, labels, batch_size)
            pairs.append((f"{kind}test".replace("_", " "), score[f"{kind}test_errors"], counted))
        n_other = int(np.count_nonzero(predicted != run.predicted()))
        if n_other > allowed:
            raise UserError(f"of {n_other} test images the saved predictions are others")
    for name, saved, counted in pairs:
        if abs(counted - saved) > allowed:
            raise UserError(f"{name} errors are {saved} there, and {counted} when counted anew")
    return [f"{counted} {name} errors" for name, _, counted in pairs if not name.startswith("all")]


def _check_model(path, folders):
    """Return of which run the model file ``path`` is; UserError if it is of none in ``folders``."""
    model = load_model_file(path)
    for folder in folders:
        if run_name(folder) == model.origin["run"]:
            best = open_run(folder).folder / "best_parameters.npz"
            break
    else:
        raise UserError(f"it is of the run {model.origin['run']}, which is not there")
    arrays = load_arrays(best)
    for name, array in model.parameters.items():
        if name not in arrays or arrays[name].tobytes() != array.tobytes():
            raise UserError(f"{name} are not those of {best}")
    return f"the parameters of {model.origin['run']}"
