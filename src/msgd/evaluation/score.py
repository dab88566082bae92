"""The test score of a run: its best-on-validation parameters, applied once to the test set."""

import logging
from pathlib import Path

import numpy as np

from msgd.backends import choose_device
from msgd.data.content import check_images
from msgd.evaluation.opened_run import open_run
from msgd.files import atomic_path, write_json
from msgd.models.interface import count_mistakes, n_evaluated
from msgd.training.run import build_backend, run_name

log = logging.getLogger(__name__)


def score_run(data_folder, run_folder, backend, threads, chunk_batches=None):
    """Write score.json and test_predictions.npz into ``run_folder``.

    score.json holds the zero-one errors of the examples that count, the test set without its tail
    batch, and of all of them; test_predictions.npz holds ``predicted``, (N,) int32. The
    other arguments are as in run_training. Raises UserError if the run was trained on other data,
    or predicts no classes.
    """
    run_folder = Path(run_folder)
    run = open_run(run_folder, data_folder)
    run.require_classes()
    check_images(run.dataset, ["test"])
    kernels = build_backend(
        run.dataset,
        run.best_parameters(),
        run.settings,
        choose_device(backend, run.settings["model"]),
        run.float_x,
        threads,
        chunk_batches,
    )
    predicted = kernels.predict("test")
    labels, batch_size = run.dataset.test_y, run.settings["batch_size"]
    score = {
        "test_errors": count_mistakes(predicted, labels, batch_size),
        "test_examples": n_evaluated(len(labels), batch_size),
        "all_test_errors": int(np.count_nonzero(predicted != labels)),
        "all_test_examples": len(labels),
    }
    with atomic_path(run_folder / "test_predictions.npz") as temporary:
        np.savez(temporary, predicted=predicted)
    write_json(run_folder / "score.json", score)
    log.info(
        "%s: %d test errors of %d",
        run_name(run_folder),
        score["test_errors"],
        score["test_examples"],
    )
