"""Small trained and scored runs for the tests of the page."""

from conftest import as_triple, make_dataset, save_npz

from msgd.config import complete_experiment
from msgd.data.unpickle import unpickle
from msgd.evaluation.score import score_run
from msgd.training.run import run_training


def make_data(folder, float_x="float32", **changes):
    """Return a folder of six arrays of a small data set; ``changes``: of make_dataset."""
    sizes = {"n_train": 60, "n_valid": 30, "n_test": 33, "shape": (4, 5), "n_classes": 3}
    folder.mkdir(parents=True, exist_ok=True)
    triple = as_triple(make_dataset(**{**sizes, **changes}))
    # Images of two dimensions keep their shape.
    shape = changes.get("shape", sizes["shape"])
    save_npz(folder / "toy.npz", [(x.reshape(-1, *shape), y) for x, y in triple])
    unpickle(folder / "toy.npz", folder / "data", float_x)
    return folder / "data"


def make_run(data, name, float_x="float32", **settings):
    """Train and score a run ``experiment/run`` beside ``data``; return its folder."""
    folder = data.parent / "runs" / name
    defaults = {"model": "logistic_regression", "batch_size": 10, "n_epochs": 5}
    complete = complete_experiment({**defaults, **settings})
    run_training(data, folder, complete, "cpu", float_x, 1)
    score_run(data, folder, "cpu", 1)
    return folder
