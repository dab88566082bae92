"""One run of one experiment: from the six arrays to the files training leaves behind.

In the run's folder:

- ``history.csv``: a row per validation, or per epoch of a stage without any; no clock in it, so
  that runs compare byte for byte
- ``timings.csv``: the seconds of each row since the start of training
- ``best_parameters.npz``: of the fewest validation errors, or, without any, of the last epoch
- ``snapshots/iteration_*.npz``: the parameters on their way, from before the first minibatch
- ``training.json``: the outcome, with hashes of the files above but the timings
- ``provenance.json``: where it comes from
"""

import csv
import logging
import shutil
from pathlib import Path

import numpy as np

from msgd.backends import choose_device
from msgd.config import check_split_sizes, resolve_batch_size
from msgd.data.dataset import load_dataset
from msgd.errors import RESULT
from msgd.files import (
    atomic_path,
    empty_folder,
    remove_partial,
    sha256_of_file,
    sha256_of_hashes,
    write_json,
)
from msgd.models import load_backend, load_model, load_trainer
from msgd.provenance import describe_run
from msgd.training.checkpoint import Checkpoint, state_folder
from msgd.training.snapshots import list_snapshots, save_parameters

log = logging.getLogger(__name__)


def build_backend(dataset, parameters, settings, device, float_x, threads, chunk_batches):
    """Return the Backend of settings["model"] on ``device``, its CPU threads set to ``threads``."""
    if device == "cpu":
        from msgd.kernels.options import use_threads

        use_threads(threads)
    return load_backend(settings["model"], device)(
        dataset, parameters, settings, np.dtype(float_x).type, chunk_batches
    )


def run_training(
    data_folder,
    run_folder,
    settings,
    backend,
    float_x,
    threads,
    chunk_batches=None,
    states=None,
    seconds_between_states=0.0,
):
    """Train one run, or go on with one that was killed, and write its files into ``run_folder``.

    data_folder: what unpickle wrote; settings: completed hyperparameters; backend: as in the
    configuration; float_x: "float32" or "float64"; threads: of the CPU backend; results do not
    depend on it; chunk_batches: see msgd.models.interface.Backend; states: folder of the states of
    all runs, None to keep none; seconds_between_states: see msgd.training.checkpoint. Raises
    UserError; what it had written into ``run_folder`` is then removed.
    """
    run_folder = Path(run_folder)
    dataset = load_dataset(data_folder)
    check_split_sizes({"": settings}, len(dataset.train_x))
    resolved = resolve_batch_size(settings, len(dataset.train_x))
    device = choose_device(backend, settings["model"])
    model = load_model(settings["model"])
    parameters = model.initial_parameters(dataset, settings, np.dtype(float_x).type)
    kernels = build_backend(dataset, parameters, resolved, device, float_x, threads, chunk_batches)

    remove_partial(run_folder)
    snapshots = empty_folder(run_folder / "snapshots")
    states_of_run = states and state_folder(states, settings, device, float_x, dataset)
    title = run_name(run_folder)
    checkpoint = Checkpoint(snapshots, states_of_run, seconds_between_states, title)
    try:
        result = load_trainer(settings["model"])(kernels, dataset, resolved, checkpoint)
    except BaseException:
        shutil.rmtree(snapshots)
        raise

    provenance = describe_run(settings, backend, describe_device(device), float_x, threads, dataset)
    write_json(run_folder / "provenance.json", provenance)
    _write_result(run_folder, result)
    summary = {
        "model": settings["model"],
        "backend": device,
        "floatX": float_x,
        "n_params": sum(array.size for array in parameters.values()),
        **result.summary(),
        "sha256": hashes_of_run(run_folder),
    }
    write_json(run_folder / "training.json", summary)
    log.log(RESULT, "%s: %s", title, result.describe())


def _write_result(run_folder, result):
    """Write what a Training holds: history, timings and best parameters."""
    _write_csv(run_folder / "history.csv", result.history)
    timings = [
        {"stage": row["stage"], "iteration": row["iteration"], "seconds": round(seconds, 6)}
        for row, seconds in zip(result.history, result.seconds, strict=True)
    ]
    _write_csv(run_folder / "timings.csv", timings)
    save_parameters(run_folder / "best_parameters.npz", result.best_parameters)


def hashes_of_run(run_folder):
    """Return what tells by content, not by date, whether what was saved changed (dict)."""
    snapshots = [path for _, path in list_snapshots(run_folder / "snapshots")]
    return {
        "best_parameters": sha256_of_file(run_folder / "best_parameters.npz"),
        "snapshots": sha256_of_hashes({path.name: sha256_of_file(path) for path in snapshots}),
        "history": sha256_of_file(run_folder / "history.csv"),
    }


def run_name(run_folder):
    """Return the name of a run, experiment/run, from its folder (``.../experiment/run``)."""
    return "/".join(Path(run_folder).resolve().parts[-2:])


def describe_device(device):
    """Return the name of ``device``, one of msgd.models.DEVICES, for people."""
    if device != "cuda":
        return device
    from msgd.kernels import cuda

    return f"cuda: {cuda.describe_device()}"


def _write_csv(path, rows):
    """Write dicts of the same keys; None becomes an empty cell."""
    # pandas would take a third of a second to import, as long as many a short training.
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
