"""Logistic regression on MNIST as published, to the last example."""

import numpy as np
import pytest
from conftest import MemoryCheckpoint

from msgd.config import complete_experiment
from msgd.models import load_backend
from msgd.models.interface import count_mistakes
from msgd.models.logistic_regression import model
from msgd.training.loop import train

# Validation errors of 9,600 after epochs 1 to 73, recomputed with independent code in float32 and
# float64; the tutorial prints the last two as 7.510417 % and 7.500000 %.
# fmt: off
VALIDATION_ERRORS = [
    1196, 1057, 990, 948, 918, 895, 882, 863, 858, 840, 832, 824, 815, 809, 802, 797, 792, 790, 793,
    793, 788, 786, 783, 779, 777, 778, 778, 773, 773, 771, 769, 766, 763, 756, 757, 753, 749, 750,
    750, 751, 748, 746, 744, 743, 743, 743, 743, 740, 737, 737, 737, 735, 735, 733, 733, 733, 730,
    728, 727, 727, 728, 727, 726, 727, 726, 725, 725, 723, 723, 721, 722, 721, 720,
]
# fmt: on


def run(mnist, float_x, **changes):
    settings = complete_experiment({"model": "logistic_regression", **changes})
    parameters = model.initial_parameters(mnist, settings, float_x)
    backend = load_backend("logistic_regression", "cpu")(mnist, parameters, settings, float_x)
    result = train(backend, mnist, settings, MemoryCheckpoint())
    backend.set_parameters(result.best_parameters)
    errors = count_mistakes(backend.predict("test"), mnist.test_y, settings["batch_size"])
    return result, errors


@pytest.mark.parametrize("float_x", [np.float32, np.float64])
def test_the_published_run(mnist, float_x):
    result, test_errors = run(mnist, float_x)
    assert [row["validation_errors"] for row in result.history] == VALIDATION_ERRORS
    summary = result.summary()
    assert summary["stopped_by"] == "patience"
    assert (summary["epochs_run"], summary["iterations_run"]) == (74, 6141)
    assert (summary["best_epoch"], summary["best_iteration"]) == (73, 6059)
    assert (summary["validation_errors"], summary["validation_examples"]) == (720, 9600)
    assert test_errors == 719
    patience = {row["epoch"]: row["patience"] for row in result.history}
    assert (patience[33], patience[34], patience[37], patience[73]) == (5000, 5642, 6140, 6140)


def test_mcnemar_goes_on_past_the_threshold_rule(mnist):
    """Figures recomputed by replaying the rule on the correctness of every validation."""
    changes = {"improvement_test": "mcnemar", "improvement_alpha": 0.01}
    result, _ = run(mnist, np.float32, **changes)
    summary = result.summary()
    assert summary["stopped_by"] == "patience"
    assert (summary["epochs_run"], summary["iterations_run"]) == (174, 14441)
    assert (summary["best_epoch"], summary["validation_errors"]) == (169, 688)
    p = [row["improvement_p"] for row in result.history]
    assert p[0] is None
    assert all(0 < value <= 1 for value in p[1:])
    assert any(value < 0.01 for value in p[1:])


def test_half_the_batch_size_stops_in_epoch_74_too(mnist):
    result, _ = run(mnist, np.float32, batch_size=300)
    assert result.summary()["epochs_run"] == 74
    assert result.summary()["iterations_run"] == 12283
