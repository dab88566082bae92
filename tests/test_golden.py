"""Golden trajectories and committed runs: the published recipes, first epochs and full length.

The float64 counts in tests/golden were made by tests/golden/make.py; the runs in docs/published by
``msgd train`` and ``msgd score``.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from msgd.evaluation.tables import compare_with_published, write_published_table

GOLDEN = Path(__file__).with_name("golden")
PUBLISHED = ROOT / "docs" / "published"
sys.path.insert(0, str(GOLDEN))
from make import trajectory  # noqa: E402

# How many of 10,000 validation examples float32 may differ by from float64, epoch by epoch.
FLOAT32_EXAMPLES = 5


def golden_errors(name):
    record = json.loads((GOLDEN / f"{name}.json").read_text())
    return [row["validation_errors"] for row in record["epochs"]]


# The reference's own float32 recomputation of the MLP, with unrelated code.
# fmt: off
REFERENCE_MLP = {
    1: 962, 2: 861, 3: 800, 4: 760, 5: 730, 6: 702, 7: 668, 8: 626, 9: 597, 10: 574, 11: 540,
    12: 508, 13: 482, 14: 469, 15: 447, 16: 435, 17: 413, 18: 404, 19: 391, 20: 378,
    450: 181, 467: 180, 540: 179, 547: 178, 554: 177, 602: 176, 664: 175, 693: 174, 694: 173,
    696: 172, 732: 171, 734: 170, 762: 169, 820: 168,
}
# fmt: on


def test_the_golden_mlp_is_the_references():
    errors = golden_errors("mlp")
    assert len(errors) >= 5
    reference = [REFERENCE_MLP[epoch] for epoch in range(1, len(errors) + 1)]
    assert np.abs(np.subtract(errors, reference)).max() <= FLOAT32_EXAMPLES


@pytest.mark.parametrize(("name", "n_epochs"), [("mlp", 2), ("lenet", 1)])
def test_float32_follows_the_golden_trajectory(mnist, name, n_epochs):
    """And the committed run, which the tests below know in full, but not who trained it."""
    found = [errors for _, errors in trajectory(mnist, name, "cpu", n_epochs, np.float32)]
    committed = pd.read_csv(PUBLISHED / name / "default" / "history.csv")["validation_errors"]
    for expected in (golden_errors(name), committed):
        assert np.abs(np.subtract(found, expected[:n_epochs])).max() <= FLOAT32_EXAMPLES


def test_the_committed_mlp_run_in_full():
    run = PUBLISHED / "mlp" / "default"
    history = pd.read_csv(run / "history.csv").set_index("epoch")
    training = json.loads((run / "training.json").read_text())
    score = json.loads((run / "score.json").read_text())
    assert (training["epochs_run"], training["stopped_by"]) == (1000, "n_epochs")
    assert abs(training["validation_errors"] - 168) <= 5
    assert abs(score["test_errors"] - 165) <= 5
    best = history["best_validation_errors"]
    for epoch, errors in REFERENCE_MLP.items():
        assert abs(best[epoch] - errors) <= FLOAT32_EXAMPLES, epoch


def test_the_committed_lenet_run_in_full():
    run = PUBLISHED / "lenet" / "default"
    history = pd.read_csv(run / "history.csv").set_index("epoch")
    training = json.loads((run / "training.json").read_text())
    score = json.loads((run / "score.json").read_text())
    assert (training["epochs_run"], training["stopped_by"]) == (200, "n_epochs")
    assert abs(training["validation_errors"] - 91) <= 6
    assert abs(score["test_errors"] - 92) <= 8
    golden = golden_errors("lenet")
    found = [history["validation_errors"][epoch] for epoch in range(1, len(golden) + 1)]
    assert np.abs(np.subtract(found, golden)).max() <= FLOAT32_EXAMPLES


def test_the_table_of_committed_runs_is_up_to_date(tmp_path):
    runs = sorted(PUBLISHED.glob("*/default"))
    assert compare_with_published(runs)
    write_published_table(runs, tmp_path)
    command = "msgd compare-published --output docs/published docs/published/*/default"
    for kind in ("csv", "md"):
        committed = (PUBLISHED / f"published.{kind}").read_text()
        assert (tmp_path / f"published.{kind}").read_text() == committed, f"run {command}"
