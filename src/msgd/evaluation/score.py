"""The test score of a run: its best-on-validation parameters, applied once to the test set."""

import logging
from pathlib import Path

import numpy as np

from msgd.backends import choose_device
from msgd.config import resolve_batch_size
from msgd.data.dataset import load_dataset
from msgd.files import atomic_path, read_json, write_json
from msgd.models.interface import count_mistakes, n_evaluated
from msgd.training.run import build_backend
from msgd.training.snapshots import load_parameters

log = logging.getLogger(__name__)


def score_run(data_folder, run_folder, backend, threads, chunk_batches=None):
    """Write score.json and test_predictions.npz into ``run_folder``.

    score.json holds the zero-one errors of the examples that count, the test set without its tail
    batch, and of all of them; test_predictions.npz holds ``predicted``, (N,) int32. The
    other arguments are as in run_training.
    """
    run_folder = Path(run_folder)
    dataset = load_dataset(data_folder)
    record = read_json(run_folder / "provenance.json")
    settings = resolve_batch_size(record["settings"], len(dataset.train_x))
    parameters = load_parameters(run_folder / "best_parameters.npz")
    machine = build_backend(
        dataset,
        parameters,
        settings,
        choose_device(backend, settings["model"]),
        record["floatX"],
        threads,
        chunk_batches,
    )
    predicted = machine.predict("test")
    labels, batch_size = dataset.test_y, settings["batch_size"]
    score = {
        "test_errors": count_mistakes(predicted, labels, batch_size),
        "test_examples": n_evaluated(len(labels), batch_size),
        "all_test_errors": int(np.count_nonzero(predicted != labels)),
        "all_test_examples": len(labels),
    }
    with atomic_path(run_folder / "test_predictions.npz") as temporary:
        np.savez(temporary, predicted=predicted)
    write_json(run_folder / "score.json", score)
    log.info("test errors: %(test_errors)d of %(test_examples)d", score)
