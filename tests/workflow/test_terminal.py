"""What people see in the terminal while the workflow runs, and what it tells them at the end."""

import re
import shutil

import pandas as pd
import pytest
from conftest import as_triple, make_dataset, save_npz, snakemake
from test_workflow import TOY, make_folder, write_config

from msgd.evaluation.outcome import MAX_ROWS, describe_outcome
from snakemake_logger_plugin_msgd import _what_changed

TARGET = "results/test_scores.csv"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("terminal"))


@pytest.fixture(scope="module")
def finished(folder):
    """The first run of all, and what it wrote."""
    return snakemake(folder, "--cores", "2")


def test_a_job_takes_two_lines(finished, folder):
    assert finished.returncode == 0, finished.stderr
    lines = finished.stderr.splitlines()
    ended = [line for line in lines if re.match(r"\[ ?\d+ of 20\] ", line)]
    assert [int(line[1:3]) for line in ended] == [*range(1, 21)]
    assert any(re.fullmatch(r"\[ ?\d+ of 20\] train fast/default, \d+ s", line) for line in ended)
    for name in TOY["experiments"]:
        assert f"  train {name}/default" in lines
        (result,) = [line for line in lines if line.startswith(f"{name}/default: ")]
        assert re.search(r"validation error [\d.]+ % \(\d+ of 32\) in epoch \d of 3", result)
    # Two lines a job, the result of each training, and a few about the whole run.
    assert len(lines) <= 2 * 20 + 2 + 5
    assert not [line for line in lines if ".py" in line], "paths of source files"


def test_the_end_tells_what_came_of_it(finished):
    output = finished.stdout
    (selected,) = [line for line in output.splitlines() if line.startswith("*   ")]
    assert re.search(r"fast/default|slow/default", selected)
    for place in ("results/report.html", "results/plots", "model_card.html", "snakemake --report"):
        assert place in output


def test_the_log_file_says_why_each_job_ran(finished, folder):
    (log, *_) = sorted(folder.glob(".snakemake/log/*.log"))
    text = log.read_text()
    assert re.search(r"Job \d+: train fast/default\nReason: Missing output files", text)
    assert "Provided cores: 2" in text


@pytest.mark.parametrize(
    ("switch", "output"),
    [
        ("-p", "msgd tabulate --log"),
        ("--verbose", "wildcards: experiment=fast, run=default"),
        ("--verbose", "command: msgd score --log"),
        ("-n", "train fast/default\n    Forced execution"),
    ],
)
def test_more_is_reported_on_request(finished, folder, switch, output):
    target = "results/runs/fast/default/score.json" if switch == "--verbose" else TARGET
    force = ("--forceall",) if switch == "-n" else ("--force",)
    done = snakemake(folder, "--cores", "1", switch, *force, target)
    assert done.returncode == 0, done.stderr
    assert output in done.stderr + done.stdout
    if switch == "-n":
        assert "Job stats:" in done.stdout


def test_a_plan_says_what_differs_and_nothing_else(finished, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    config = {**TOY, "experiments": {**TOY["experiments"]}}
    config["experiments"]["fast"] = {**TOY["experiments"]["fast"], "l2": 0.5}
    write_config(copy, config)
    output = snakemake(copy, "-n").stdout
    assert "train fast/default\n    settings have changed: l2=0.0 -> l2=0.5\n" in output
    assert "--cleanup-metadata" not in output
    assert "--rerun-triggers" not in output
    save_npz(copy / "toy.npz", as_triple(make_dataset(80, 40, 48, (4, 4), 3)))
    output = snakemake(copy, "-n").stdout
    assert "the source or the data set behind it has changed" in output
    assert output.count("Job stats:") == 1
    assert max(map(len, output.splitlines())) < 1000


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("Missing output files: b/x.csv, a/y.csv", "Missing output files: a/y.csv, b/x.csv"),
        (
            "Missing output files: a; Input files updated by another job: e, d, c, b",
            "Missing output files: a; Input files updated by another job: b, c, d and 1 more",
        ),
    ],
)
def test_of_many_files_that_are_a_reason_the_first_are_named(reason, said):
    assert _what_changed(reason) == said


def test_a_single_target_ends_without_the_table_of_all(finished, folder):
    done = snakemake(folder, "--cores", "1", "--force", TARGET)
    assert "selected" not in done.stdout
    assert "[1 of 1] table of scores" in done.stderr
    assert "1 job: tabulate" in done.stderr


def test_a_failure_tells_which_job_and_where_its_words_are(tmp_path):
    folder = make_folder(tmp_path / "diverges")
    settings = {"model": "logistic_regression", "batch_size": 32, "l2": 1e30}
    write_config(folder, {**TOY, "experiments": {"a": {**settings, "validation_frequency": 50}}})
    done = snakemake(folder, "--cores", "1")
    assert done.returncode != 0
    output = done.stderr
    assert "diverged before its first validation" in output
    assert "FAILED: train a/default" in output
    assert "what it said: results/logs/train/a/default.log" in output
    assert "The same command goes on from there." in output
    assert "CalledProcessError" not in output
    assert "set -euo pipefail" not in output


def table_of_scores(names):
    """Return what test_scores.csv holds for runs of these ``names``, the last one selected."""
    frame = pd.DataFrame(names)
    frame["selected"] = frame.index == len(frame) - 1
    frame["validation_errors"], frame["validation_examples"] = 100 - frame.index, 1000
    frame["validation_error_percent"] = frame["validation_errors"] / 10
    frame["test_errors"], frame["test_examples"] = 90, 1000
    frame["best_epoch"], frame["epochs_run"] = 1, 2
    return frame


def test_a_large_sweep_shows_the_best_runs(tmp_path):
    n = 3 * MAX_ROWS
    frame = table_of_scores({"run": [f"seed={i}" for i in range(n)], "experiment": "wide"})
    frame.to_csv(tmp_path / "test_scores.csv", index=False)
    text = describe_outcome(tmp_path)
    assert text.count("wide/seed=") == MAX_ROWS
    assert f"*   wide/seed={n - 1}" in text
    assert f"{n - MAX_ROWS} more runs" in text
    frame.tail(MAX_ROWS + 1).to_csv(tmp_path / "test_scores.csv", index=False)
    assert "; 1 more run is in" in describe_outcome(tmp_path)
    frame["validation_error_percent"] = 10.0  # a tie, which fewer parameters decided
    frame.to_csv(tmp_path / "test_scores.csv", index=False)
    assert f"*   wide/seed={n - 1}" in describe_outcome(tmp_path)


@pytest.mark.parametrize("names", [["007"], ["1e3"], ["null"], ["NA", "nan"], ["07", "mlp"]])
def test_experiments_whose_names_look_like_numbers_keep_them(tmp_path, names):
    frame = table_of_scores({"run": "default", "experiment": names})
    frame.to_csv(tmp_path / "test_scores.csv", index=False)
    text = describe_outcome(tmp_path)
    assert re.findall(r"(\S+)/default", text) == names
