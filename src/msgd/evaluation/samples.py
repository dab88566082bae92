"""What a trained run draws when it is left to itself: samples, from its last parameters."""

import importlib
import logging
from pathlib import Path

import numpy as np

from msgd.data.content import check_images
from msgd.evaluation.opened_run import open_run
from msgd.files import atomic_path
from msgd.kernels.options import use_threads
from msgd.training.run import run_name

log = logging.getLogger(__name__)


def sample_run(data_folder, run_folder, threads):
    """Write samples.npz into ``run_folder``, the same bytes for any number of ``threads``.

    It holds ``means`` (rows, chains, D) floatX, the means of the pixels of every chain at the
    samples that are kept, and ``steps``, the number of steps from one row to the next. Raises
    UserError if the run was trained on other data, or is of a model that draws no samples.
    """
    run_folder = Path(run_folder)
    run = open_run(run_folder, data_folder)
    run.require_samples()
    check_images(run.dataset, ["test"])
    use_threads(threads)
    room = importlib.import_module(f"msgd.models.{run.settings['model']}.samples")
    steps = room.N_STEPS
    means = room.sample_chains(run.best_parameters(), run.dataset, run.settings, n_steps=steps)
    with atomic_path(run_folder / "samples.npz") as temporary:
        np.savez(temporary, means=means, steps=np.int64(steps))
    n_rows, n_chains, _ = means.shape
    log.info("%s: %d samples of each of %d chains", run_name(run_folder), n_rows, n_chains)
