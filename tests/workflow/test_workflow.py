"""The whole workflow on a toy data set, through real snakemake processes in a temporary folder."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import (
    ROOT,
    as_triple,
    command,
    environment,
    in_folder,
    make_dataset,
    save_idx_folder,
    save_npz,
    snakemake,
)

from msgd.backends import gpu_name
from msgd.models import AUTOENCODERS, MODELS, SAMPLERS, UNSUPERVISED
from msgd.training.snapshots import load_arrays

TOY = {
    "dataset": "toy.npz",
    "backend": "cpu",
    "experiments": {
        "slow": {"model": "logistic_regression", "batch_size": 32, "n_epochs": 3},
        "fast": {
            "model": "logistic_regression",
            "batch_size": 32,
            "n_epochs": 3,
            "learning_rate": 0.5,
        },
    },
}
PER_RUN = {"train", "score", "animate_weights", "plot_confusion", "plot_learning_curve"} | {
    "plot_mistakes",
    "plot_weights",
}
FIGURES = ["weights", "mistakes"]
AFTER = {"tabulate", "compare_published", "select", "write_report"}  # once, of all runs
FILES = [
    *("history.csv", "timings.csv", "training.json", "provenance.json", "score.json"),
    *("best_parameters.npz", "test_predictions.npz"),
]


def write_config(folder, config):
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def make_folder(path):
    path.mkdir(exist_ok=True)
    save_npz(path / "toy.npz", as_triple(make_dataset(80, 40, 44, (4, 4), 3)))
    write_config(path, TOY)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which the toy workflow has run."""
    folder = make_folder(tmp_path_factory.mktemp("toy"))
    done = snakemake(folder, "--cores", "2")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of that folder, to edit."""
    return shutil.copytree(finished, tmp_path / "copy", symlinks=True)


def would_run(folder, *arguments):
    """Return {rule: number of jobs} that snakemake would run now."""
    done = snakemake(folder, "-n", *arguments)
    assert done.returncode == 0, done.stderr + done.stdout
    output = done.stdout + done.stderr
    if "Nothing to be done" in output:
        return {}
    table = output.rsplit("Job stats:", 1)[1]
    counts = dict(re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE))
    return {rule: int(n) for rule, n in counts.items() if rule not in ("total", "all")}


def the_selected_is_kept(folder):
    """Check that best_model.npz and the card are of the one selected run; return its row."""
    results = folder / "results"
    frame = pd.read_csv(results / "test_scores.csv")
    (row,) = frame[frame["selected"]].to_dict("records")
    lowest = frame["validation_errors"] / frame["validation_examples"]
    assert row["validation_errors"] / row["validation_examples"] == lowest.min()
    best = results / "runs" / row["experiment"] / row["run"] / "best_parameters.npz"
    kept = load_arrays(results / "best_model.npz")
    for parameter, array in load_arrays(best).items():
        np.testing.assert_array_equal(kept[parameter], array, strict=True)
    name = f"Model card: {row['experiment']}/{row['run']}"
    assert name in (results / "model_card.html").read_text()
    assert f"# {name}\n" in (results / "model_card.md").read_text()
    return row


def test_everything_is_made_and_nothing_else_is_left(finished):
    for name in TOY["experiments"]:
        run = finished / "results" / "runs" / name / "default"
        assert {p.name for p in run.iterdir()} == {*FILES, "snapshots"}
        plots = finished / "results" / "plots" / name / "default"
        assert len(list(plots.iterdir())) == 5
    frame = pd.read_csv(finished / "results" / "test_scores.csv")
    assert list(frame["experiment"]) == ["slow", "fast"]
    assert (frame["validation_examples"] == 32).all()
    assert {p.name for p in (finished / "results").iterdir() if p.is_file()} == {
        *(f"test_scores.{kind}" for kind in ("csv", "md", "html")),
        *(f"published.{kind}" for kind in ("csv", "md", "html")),
        *("best_model.npz", "model_card.md", "model_card.html", "report.html"),
    }
    assert the_selected_is_kept(finished)
    page = (finished / "results" / "report.html").read_text(encoding="utf-8")
    assert f"snakemake --cores all -s {ROOT / 'Snakefile'}</pre>" in page
    assert "Put the lines into <code>config.yaml</code>" in page
    assert not list(finished.rglob(".partial-*"))
    assert {p.name for p in finished.iterdir()} == {
        "toy.npz",
        "config.yaml",
        "results",
        ".snakemake",
    }


def test_every_rule_is_explained_in_the_list(folder):
    rules = snakemake(folder, "--list").stdout.splitlines()
    assert {line.split()[0] for line in rules} >= {"all", "train", *PER_RUN, *AFTER}
    for line in rules:
        assert re.fullmatch(r"\w+ \([A-Z].+\.\)", line), line


def test_all_but_reading_and_what_asks_a_model_runs_where_snakemake_runs():
    """On a cluster. Snakemake passes ``localrule`` on by no ``use rule``, so it stands in each."""
    local = {}
    for file in [ROOT / "workflow" / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")]:
        _, *rules = re.split(r"^(?:use )?rule ", file.read_text(), flags=re.MULTILINE)
        for rule in rules:
            name = re.match(r"(?:\w+ as )?(\w+)", rule)[1]
            local[name] = "\n    localrule: True\n" in rule
    elsewhere = {"unpickle", "train", "score", "sample"}
    assert {name for name in local if not local[name]} == elsewhere
    assert {name for name in local if local[name]} >= {
        "all",
        "download",
        *PER_RUN - {"train", "score"},
    }


def test_reading_the_workflow_loads_nothing_that_draws_downloads_or_trains(folder):
    """Every job of a cluster reads it, too."""
    words = [sys.executable, "-X", "importtime", "-m", "snakemake", *in_folder(folder), "-n"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment())
    loaded = set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "msgd.data.unpickle" in loaded
    assert not loaded & {"matplotlib", "pooch", "numba", "msgd.data.download"}


def test_a_second_run_has_nothing_to_do(folder):
    assert would_run(folder) == {}


@pytest.mark.parametrize("name", ["training.json", "provenance.json", "score.json"])
def test_a_removed_file_of_a_run_is_made_anew(folder, name):
    """Though what comes of it is there; its other files may be looked for as well."""
    (folder / "results" / "runs" / "slow" / "default" / name).unlink()
    would = would_run(folder)
    assert would.get("train", 0) == (name != "score.json")
    assert would["score"] == 1


def test_removed_runs_are_made_anew_from_their_states(folder):
    runs = folder / "results" / "runs"
    before = {path: path.read_bytes() for path in sorted(runs.rglob("*.*")) if path.is_file()}
    shutil.rmtree(runs)
    done = snakemake(folder, "--cores", "2")
    assert done.returncode == 0, done.stderr
    log = folder / "results" / "logs" / "train" / "slow" / "default.log"
    assert "going on from the state after iteration" in log.read_text()
    for path, content in before.items():
        if path.name not in ("provenance.json", "timings.csv"):  # in which there are dates
            assert path.read_bytes() == content, path
    assert would_run(folder) == {}


def replace_by_other_data(path, modified=None):
    """Put another toy data set at ``path``, of the date ``modified`` (seconds) if given."""
    save_npz(path, as_triple(make_dataset(80, 40, 48, (4, 4), 3)))
    if modified is not None:
        os.utime(path, (modified, modified))


@pytest.mark.slow
def test_a_data_set_only_touched_reruns_nothing(folder):
    for date in (None, (0, 0), (2e9, 2e9)):
        os.utime(folder / "toy.npz", date)
        assert would_run(folder) == {}


@pytest.mark.parametrize("modified", [0, None, 2e9])
def test_a_data_set_replaced_reruns_all_it_shapes_whatever_its_date(folder, modified):
    replace_by_other_data(folder / "toy.npz", modified)
    per_run = dict.fromkeys(PER_RUN, 2)
    assert would_run(folder) == {"unpickle": 1, **per_run, **dict.fromkeys(AFTER, 1)}


@pytest.mark.slow
def test_results_only_touched_rerun_nothing(folder):
    for date in (None, (0, 0), (2e9, 2e9)):
        for path in [*folder.glob("results/data/**/*"), *folder.glob("results/runs/**/*")]:
            os.utime(path, date)
        assert would_run(folder) == {}


@pytest.mark.slow
def test_the_downloaded_pickle_is_compared_by_content(tmp_path, mnist_file):
    settings = {"model": "logistic_regression"}
    write_config(tmp_path, {"experiments": {"a": settings}})
    pickle = tmp_path / "results" / "downloads" / "mnist.pkl.gz"
    pickle.parent.mkdir(parents=True)
    shutil.copyfile(mnist_file, pickle)
    arrays = "results/data/mnist/dataset.json"
    done = snakemake(tmp_path, "--cores", "1", arrays)
    assert done.returncode == 0, done.stderr
    for date in (None, (0, 0), (2e9, 2e9)):
        os.utime(pickle, date)
        assert would_run(tmp_path, arrays) == {}
    with pickle.open("ab") as stream:
        stream.write(b"more")
    os.utime(pickle, (0, 0))
    assert would_run(tmp_path, arrays) == {"unpickle": 1}


def test_a_comment_reruns_nothing(folder):
    path = folder / "config.yaml"
    path.write_text("# a remark\n" + path.read_text())
    assert would_run(folder) == {}


def test_a_rate_reruns_its_experiment_and_what_follows(folder):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["experiments"]["fast"]["learning_rate"] = 0.4
    write_config(folder, config)
    assert would_run(folder) == dict.fromkeys(PER_RUN | AFTER, 1)


def test_a_default_written_out_reruns_nothing(folder):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["experiments"]["slow"]["learning_rate"] = 0.13
    config["experiments"]["slow"] |= {"l1": 0, "p": 2.0}  # equal numbers, written otherwise
    write_config(folder, config)
    assert would_run(folder) == {}


def test_a_plot_setting_reruns_plots_only(folder):
    write_config(folder, {**TOY, "plots": {"n_mistakes": 3}})
    assert would_run(folder) == {"plot_mistakes": 2}
    write_config(folder, {**TOY, "plots": {"dpi": 60}})
    assert would_run(folder) == dict.fromkeys(
        (r for r in PER_RUN if "weights" in r or "plot" in r), 2
    )


@pytest.mark.slow
def test_event_files_are_written_on_request_and_nothing_else(folder):
    pytest.importorskip("tensorboard", reason="extra tensorboard is not installed: no event files")
    write_config(folder, {**TOY, "tensorboard": True})
    assert would_run(folder) == {"tensorboard": 2}
    done = snakemake(folder, "--cores", "2")
    assert done.returncode == 0, done.stderr
    files = [path for path in folder.glob("results/tensorboard/**/*") if path.is_file()]
    assert {path.parent.parent.name for path in files} == {*TOY["experiments"]}
    assert would_run(folder) == {}


def test_a_new_experiment_runs_alone(folder):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["experiments"]["third"] = {**config["experiments"]["slow"], "l2": 0.1}
    write_config(folder, config)
    assert would_run(folder) == dict.fromkeys(PER_RUN | AFTER, 1)


def test_a_grid_computes_what_is_new_and_deletes_nothing(folder):
    def ask_for(rates):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["experiments"]["fast"]["learning_rate"] = rates
        write_config(folder, config)

    once = {*AFTER, "plot_validation_error_over", "score_fast_1"}
    once |= PER_RUN - {"train", "score"}  # of the better run only
    ask_for([0.5, 0.25])
    assert would_run(folder) == {"train": 2, **dict.fromkeys(once, 1)}
    done = snakemake(folder, "--cores", "2", "results/test_scores.csv")
    assert done.returncode == 0, done.stderr
    # The run of before has another name now; its state was there, so nothing was trained again.
    log = folder / "results" / "logs" / "train" / "fast" / "learning_rate=0.5.log"
    assert "going on from the state after iteration 6" in log.read_text()
    for name in ("history.csv", "best_parameters.npz"):
        renamed, before = (
            folder / "results" / "runs" / "fast" / run / name
            for run in ("learning_rate=0.5", "default")
        )
        assert renamed.read_bytes() == before.read_bytes()

    ask_for([0.5, 0.25, 0.1])
    assert would_run(folder, "results/test_scores.csv") == {
        **dict.fromkeys(["train", "score_fast_1", "tabulate"], 1)
    }
    ask_for([0.25])
    assert would_run(folder, "results/test_scores.csv") == {"score": 1, "tabulate": 1}
    done = snakemake(folder, "--cores", "2", "results/test_scores.csv")
    assert done.returncode == 0, done.stderr
    frame = pd.read_csv(folder / "results" / "test_scores.csv")
    assert list(frame["run"]) == ["default", "learning_rate=0.25"]
    assert (folder / "results" / "runs" / "fast" / "learning_rate=0.5" / "history.csv").exists()


def test_threads_are_given_to_the_job_and_rerun_nothing(folder):
    write_config(folder, {**TOY, "threads": 1})
    assert would_run(folder) == {}
    done = snakemake(folder, "-n", "-p", "--forceall", "--cores", "2")
    assert done.stdout.count(" --threads 1 ") == 4  # two trainings, two scorings
    done = snakemake(folder, "-n", "-p", "--forceall", "--cores", "2", "--config", "threads=8")
    assert done.stdout.count(" --threads 2 ") == 4
    changes = "threads=8", "backend=reference"  # which has no use for a second thread
    done = snakemake(folder, "-n", "-p", "--forceall", "--cores", "2", "--config", *changes)
    assert done.stdout.count(" --threads 1 ") == 4
    assert done.stdout.count(" --backend reference ") == 4


@pytest.mark.slow
def test_runs_of_one_thread_train_side_by_side(tmp_path):
    """Four runs on two cores, with the default backend: two trainings at a time."""
    folder = make_folder(tmp_path / "grid")
    # A validation after each minibatch, so that a training takes longer than to start the next.
    long = {"model": "logistic_regression", "batch_size": 4, "n_epochs": 40, "patience": 10**6}
    grid = {**long, "validation_frequency": 1, "seed": [1, 2, 3, 4]}
    config = {key: value for key, value in TOY.items() if key != "backend"}
    write_config(folder, {**config, "threads": 1, "experiments": {"grid": grid}})
    done = snakemake(folder, "--cores", "2", "results/test_scores.csv")
    assert done.returncode == 0, done.stderr
    running, most = 0, 0
    for line in done.stderr.splitlines():
        running += line.startswith("  train grid/")
        running -= bool(re.match(r"\[ *\d+ of \d+\] train grid/", line))
        most = max(most, running)
    assert running == 0
    assert most == 2


def test_the_selected_model_follows_the_grid(tmp_path):
    folder = make_folder(tmp_path / "grid")
    grid = {"model": "logistic_regression", "batch_size": 20, "n_epochs": 2}
    figure = "results/plots/grid/validation_error_over_learning_rate.png"
    targets = ["results/best_model.npz", "results/test_scores.csv", figure]
    after = dict.fromkeys(["score_grid_1", "select", "tabulate", "plot_validation_error_over"], 1)

    def ask_for(rates):
        write_config(folder, {**TOY, "experiments": {"grid": {**grid, "learning_rate": rates}}})

    def run():
        done = snakemake(folder, "--cores", "2", *targets)
        assert done.returncode == 0, done.stderr
        return the_selected_is_kept(folder)

    rates = [1e-9, 0.1, 1.5]
    ask_for(rates)
    first = run()
    drawn_first = (folder / figure).read_bytes()
    assert would_run(folder, *targets) == {}
    done = snakemake(folder, "--report", "report.html", *targets)
    assert done.returncode == 0, done.stderr
    page = (folder / "report.html").read_text()
    for part in ("model card", "error_over_learning_rate", "The star is the experiment"):
        assert part in page

    # Without the winning value another run is the best; nothing is trained and nothing deleted.
    rates = [rate for rate in rates if first["run"] != f"learning_rate={rate}"]
    assert len(rates) == 2
    ask_for(rates)
    assert would_run(folder, *targets) == after
    assert run()["run"] != first["run"]
    assert (folder / "results" / "runs" / "grid" / first["run"] / "history.csv").exists()
    assert (folder / figure).read_bytes() != drawn_first

    # A value on top: its run alone is trained.
    ask_for([*rates, 0.7])
    assert would_run(folder, *targets) == {"train": 1, **after}


@pytest.mark.slow
def test_figures_of_a_grid_are_of_its_best_run_and_of_others_on_request(tmp_path):
    folder = make_folder(tmp_path / "grid")
    grid = {"model": "logistic_regression", "batch_size": 20, "n_epochs": 2}
    plots = folder / "results" / "plots" / "grid"

    def ask_for(rates, **plots):
        experiments = {"grid": {**grid, "learning_rate": rates}}
        write_config(folder, {**TOY, "experiments": experiments, "plots": plots})

    def run(*targets):
        done = snakemake(folder, "--cores", "2", *targets)
        assert done.returncode == 0, done.stderr

    ask_for([1e-9, 0.1, 1.5])
    drawn = PER_RUN - {"train", "score"}
    run("results/test_scores.csv", "results/best_model.npz")
    best = the_selected_is_kept(folder)["run"]
    others = {"plot_validation_error_over": 1, "compare_published": 1, "write_report": 1}
    assert would_run(folder) == {**dict.fromkeys(drawn, 1), **others}
    run()
    assert {path.name for path in plots.iterdir()} == {
        "best",
        "validation_error_over_learning_rate.png",
    }
    assert len(list((plots / "best").iterdir())) == 5
    assert would_run(folder) == {}
    for rule in ("plot_weights", "plot_mistakes"):
        log = (folder / "results" / "logs" / rule / "grid" / "best.log").read_text()
        assert f"the best of 3 runs: results/runs/grid/{best}\n" in log

    names = [f"learning_rate={rate:g}" for rate in (1e-9, 0.1, 1.5)]
    other = next(name for name in names if name != best)
    asked = [f"{name}/{figure}.png" for name in (best, other) for figure in FIGURES]
    run(*(f"results/plots/grid/{path}" for path in asked))
    of_the_best = {f: (plots / "best" / f"{f}.png").read_bytes() for f in FIGURES}
    for figure, content in of_the_best.items():
        assert (plots / best / f"{figure}.png").read_bytes() == content
        assert (plots / other / f"{figure}.png").read_bytes() != content
    assert would_run(folder) == {}

    (plots / "best" / "weights.png").unlink()
    assert would_run(folder) == {"plot_weights": 1}
    run()
    ask_for([1e-9, 0.1, 1.5], all_runs=True)
    # Of three runs two have the figures that were asked for.
    assert would_run(folder) == {
        rule: 1 if rule in ("plot_weights", "plot_mistakes") else 3 for rule in drawn
    }
    # Without the best run another one is drawn in its place.
    ask_for([rate for rate in (1e-9, 0.1, 1.5) if f"learning_rate={rate:g}" != best])
    assert drawn <= would_run(folder).keys()
    run("results/plots/grid/best/weights.png")
    assert (plots / "best" / "weights.png").read_bytes() != of_the_best["weights"]


def test_a_large_grid_is_scored_in_batches(tmp_path):
    folder = make_folder(tmp_path / "large")
    grid = {"model": "logistic_regression", "batch_size": 20, "n_epochs": 1, "seed": [*range(60)]}
    write_config(folder, {**TOY, "experiments": {"a-b.c": grid}})
    output = snakemake(folder, "-n", "-p", "results/test_scores.csv").stdout
    # In the experiment's folder, for another experiment may have any name beside it.
    assert "--log results/logs/score/a-b.c/batch_3.log " in output
    output = snakemake(folder, "-n", "results/test_scores.csv").stdout
    scored = re.findall(r"^score_a-b\.c_(\d) +1$", output, re.MULTILINE)
    assert scored == ["1", "2", "3"]
    assert "score 10 runs of a-b.c on the test set\n" in output
    done = snakemake(folder, "-n", "-p", "results/runs/a-b.c/seed=59/score.json")
    assert re.search(r"^train +10$", done.stdout, re.MULTILINE)
    assert max(map(len, output.splitlines())) < 1000


def test_the_best_of_an_experiment_without_a_grid_is_its_run(folder):
    done = snakemake(folder, "-n", "results/plots/fast/best/weights.png")
    assert done.returncode != 0
    assert (
        "the configuration has no run fast/best; it has: slow/default" in done.stdout + done.stderr
    )


def test_figures_of_a_grid_that_is_not_there_are_reported(folder):
    done = snakemake(folder, "-n", "results/plots/fast/validation_error_over_learning_rate.png")
    assert done.returncode != 0
    message = "the configuration has no experiment fast with a grid over learning_rate"
    assert message in done.stdout + done.stderr


def test_a_run_that_is_not_asked_for_is_reported(folder):
    done = snakemake(folder, "-n", "results/runs/fast/seed=7/history.csv")
    assert done.returncode != 0
    message = "the configuration has no run fast/seed=7; it has: slow/default"
    assert message in done.stdout + done.stderr


def working_in(folder):
    """Return the numbers of the processes that work in ``folder``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):  # one that has just ended
            if path.readlink() == folder:
                found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_a_killed_snakemake_goes_on(tmp_path):
    """SIGKILL to it alone while a run trains, which ends too; then unlocked and started again."""
    # A validation after each minibatch takes its time however fast the kernels are.
    long = {"model": "logistic_regression", "batch_size": 1, "n_epochs": 800, "patience": 10**6}
    long["validation_frequency"] = 1
    folders = [make_folder(tmp_path / name) for name in ("killed", "whole")]
    for folder in folders:
        write_config(folder, {**TOY, "experiments": {"long": long}})
    killed, whole = folders
    history = "results/runs/long/default/history.csv"
    process = subprocess.Popen(
        command("snakemake", *in_folder(killed), "--cores", "1", history),
        env=environment(),
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not [*killed.glob("results/states/*/iteration_*.state")]:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    while working_in(killed):
        assert time.monotonic() < deadline, "the training goes on"
        time.sleep(0.05)
    assert not (killed / history).exists()
    assert snakemake(killed, "--unlock").returncode == 0
    for folder in folders:
        done = snakemake(folder, "--cores", "1", history)
        assert done.returncode == 0, done.stderr
    log = killed / "results" / "logs" / "train" / "long" / "default.log"
    assert "going on from the state after iteration" in log.read_text()
    for path in sorted(whole.glob("results/runs/**/*")):
        if path.suffix in (".npz", ".csv") and path.name != "timings.csv":
            assert path.read_bytes() == (killed / path.relative_to(whole)).read_bytes(), path.name


@pytest.mark.slow
def test_edited_source_reruns_what_it_shapes(tmp_path):
    """On a copy of the clone, whose package the workflow then imports."""
    clone = tmp_path / "clone"
    ignored = shutil.ignore_patterns("results", ".git", ".snakemake", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, clone, symlinks=True, ignore=ignored)
    folder = make_folder(tmp_path / "toy")

    def in_clone(*arguments):
        return snakemake(
            folder, *arguments, "-s", clone / "Snakefile", PYTHONPATH=str(clone / "src")
        )

    def would_run_in_clone():
        output = "".join([(done := in_clone("-n")).stdout, done.stderr])
        assert done.returncode == 0, output
        if "Nothing to be done" in output:
            return set()
        table = output.rsplit("Job stats:", 1)[1]
        return set(re.findall(r"^(\w+)\s+\d+$", table, re.MULTILINE)) - {"total", "all"}

    done = in_clone("--cores", "2")
    assert done.returncode == 0, done.stderr
    assert would_run_in_clone() == set()
    everything_after = {
        "src/msgd/kernels/formulas.py": PER_RUN | AFTER,
        "src/msgd/training/early_stopping.py": PER_RUN | AFTER,
        "src/msgd/data/readers.py": {"unpickle"} | PER_RUN | AFTER,
        "src/msgd/evaluation/score.py": {
            *("score", "plot_confusion", "plot_mistakes"),
            *AFTER,
        },
        "src/msgd/evaluation/selection.py": AFTER,
        "src/msgd/evaluation/tables.py": AFTER,
        "src/msgd/evaluation/model_card.py": {"select", "write_report"},
        "src/msgd/plots/mistakes.py": {"plot_confusion", "plot_mistakes", "write_report"},
        "src/msgd/evaluation/published.yaml": {"compare_published", "write_report"},
        "src/msgd/report/page.html.j2": {"write_report"},
        "src/msgd/cli.py": set(),
    }
    for file in everything_after:
        (clone / file).touch()
    assert would_run_in_clone() == set(), "files were only touched"
    for file, rules in everything_after.items():
        path = clone / file
        source = path.read_text()
        path.write_text(source + "\n# edited\n")
        assert would_run_in_clone() == rules, file
        path.write_text(source)


@pytest.mark.slow
def test_an_edited_file_of_an_idx_folder_is_read_again(tmp_path):
    folder = make_folder(tmp_path / "idx")
    save_idx_folder(folder / "digits", make_dataset(80, 40, 44, (4, 4), 3))
    write_config(folder, {**TOY, "dataset": "digits"})
    arrays = "results/data/digits/dataset.json"
    done = snakemake(folder, "--cores", "1", arrays)
    assert done.returncode == 0, done.stderr
    assert would_run(folder, arrays) == {}
    labels = folder / "digits" / "t10k-labels-idx1-ubyte"
    content = labels.read_bytes()
    for date in (None, (0, 0), (2e9, 2e9)):
        os.utime(labels, date)
        assert would_run(folder, arrays) == {}
    labels.write_bytes(content[:-1] + b"\x00")
    os.utime(labels, (0, 0))
    assert would_run(folder, arrays) == {"unpickle": 1}
    labels.write_bytes(content)
    assert would_run(folder, arrays) == {}

    more = folder / "digits" / "notes.txt"
    more.write_text("a file more")
    os.utime(more, (0, 0))
    assert would_run(folder, arrays) == {"unpickle": 1}
    more.unlink()
    assert would_run(folder, arrays) == {}
    (folder / "digits" / "valid-labels-idx1-ubyte").unlink()
    done = snakemake(folder, "-n", arrays)
    assert done.returncode != 0, "the folder is not whole any more"


@pytest.mark.slow
def test_the_number_of_cores_does_not_change_a_byte(finished, tmp_path):
    folder = make_folder(tmp_path / "one")
    done = snakemake(folder, "--cores", "1")
    assert done.returncode == 0, done.stderr
    for path in sorted(finished.glob("results/runs/**/*")):
        if path.suffix in (".npz", ".csv") and path.name != "timings.csv":
            other = folder / path.relative_to(finished)
            assert path.read_bytes() == other.read_bytes(), path.name


def test_the_cuda_kernels_on_the_simulator_give_the_cpu_counts(finished, tmp_path):
    folder = make_folder(tmp_path / "cuda")
    write_config(folder, {**TOY, "backend": "cuda"})
    done = snakemake(folder, "--cores", "2", "results/test_scores.csv", NUMBA_ENABLE_CUDASIM="1")
    assert done.returncode == 0, done.stderr
    on_cpu, on_cuda = (
        pd.read_csv(path / "results" / "test_scores.csv") for path in (finished, folder)
    )
    assert (on_cuda.pop("backend") == "cuda").all()
    assert (on_cpu.pop("backend") == "cpu").all()
    pd.testing.assert_frame_equal(on_cpu, on_cuda)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"backnd": "cpu"}, "backnd is not a known key (did you mean backend?)"),
        ({"dataset": "absent.npz"}, "the data set absent.npz does not exist"),
        ({"experiments": {"a": {"model": "svm"}}}, "experiments.a.model is 'svm'"),
        (
            {"experiments": {"a": {"model": "logistic_regression", "batch_size": 81}}},
            "experiments.a.batch_size is 81; allowed: at most 80",
        ),
        (
            {"experiments": {"a": {"model": "lenet", "arithmetic": "tf32"}}, "backend": "auto"},
            "experiments.a.arithmetic is tf32, which only a GPU computes",
        ),
    ],
)
def test_a_bad_configuration_stops_before_any_job(tmp_path, edit, message):
    folder = make_folder(tmp_path / "bad")
    write_config(folder, {**TOY, **edit})
    done = snakemake(folder, "--cores", "2")
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "results").exists()


def test_an_experiment_that_is_given_twice_stops_before_any_job(tmp_path):
    experiment = "  a: {model: logistic_regression}\n"
    (tmp_path / "config.yaml").write_text(f"experiments:\n{experiment}{experiment}")
    done = snakemake(tmp_path, "--cores", "1")
    assert done.returncode != 0
    assert "experiments.a is given in line 2 and in line 3; keep one" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_mnist_batches_are_checked_before_the_download(tmp_path):
    config = {"experiments": {"a": {"model": "logistic_regression", "batch_size": 50_001}}}
    write_config(tmp_path, config)
    done = snakemake(tmp_path, "--cores", "1")
    assert done.returncode != 0
    assert "experiments.a.batch_size is 50001; allowed: at most 50000" in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_failing_job_leaves_no_half_written_file(tmp_path):
    folder = make_folder(tmp_path / "diverges")
    settings = {"model": "logistic_regression", "batch_size": 32, "l2": 1e30}
    write_config(folder, {**TOY, "experiments": {"a": {**settings, "validation_frequency": 50}}})
    done = snakemake(folder, "--cores", "2")
    assert done.returncode != 0
    assert "diverged before its first validation" in done.stderr
    assert not [p for p in folder.glob("results/runs/**/*") if p.is_file()]


@pytest.mark.skipif(bool(gpu_name()), reason="there is a GPU")
def test_without_a_gpu_nothing_is_removed_for_cuda(folder):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    write_config(folder, {**config, "backend": "cuda", "floatX": "float64"})
    before = {path for path in folder.rglob("results/runs/**/*") if path.is_file()}
    assert would_run(folder)["train"] == 2
    done = snakemake(folder, "--cores", "1", NUMBA_ENABLE_CUDASIM="0")
    assert done.returncode != 0
    assert "backend is cuda, but there is no CUDA driver with a GPU" in done.stderr
    assert before == {path for path in folder.rglob("results/runs/**/*") if path.is_file()}


def test_a_configuration_file_with_experiments_stands_alone(tmp_path):
    folder = make_folder(tmp_path / "two")
    alone = {**TOY, "experiments": {"only": TOY["experiments"]["slow"]}}
    (folder / "alone.yaml").write_text(yaml.safe_dump(alone))
    jobs = would_run(folder, "--configfile", folder / "alone.yaml")
    assert jobs["train"] == 1
    (folder / "overlay.yaml").write_text("floatX: float64\n")
    assert would_run(folder, "--configfile", folder / "overlay.yaml")["train"] == 2


def test_the_report_holds_tables_and_figures(folder):
    done = snakemake(folder, "--report", "report.html")
    assert done.returncode == 0, done.stderr
    page = (folder / "report.html").read_text()
    parts = ("learning curve", "worst mistakes", "test scores", "patience horizon", "model card")
    parts += ("the story on one page",)
    for part in parts:
        assert part in page


# What learns without labels: nothing that tells errors is asked of it.

WITHOUT_LABELS = [name for name in UNSUPERVISED if name in MODELS]
SMALL = {"n_hidden": 6, "batch_size": 20, "n_epochs": 3}
needs_one = pytest.mark.skipif(not WITHOUT_LABELS, reason="no such model is registered")


def jobs_of(folder, experiments):
    """Return {rule: number of jobs} of a configuration with these experiments."""
    write_config(folder, {**TOY, "experiments": experiments})
    return would_run(folder)


@needs_one
def test_without_labels_there_are_figures_and_nothing_of_errors(tmp_path):
    """Of a grid those of every run, for none is the best."""
    folder = make_folder(tmp_path / "toy")
    grid = {"model": WITHOUT_LABELS[0], **SMALL, "learning_rate": [0.1, 0.2]}
    figures = dict.fromkeys(["animate_weights", "plot_learning_curve", "plot_weights"], 2)
    figures |= {"plot_reconstructions": 2} if WITHOUT_LABELS[0] in AUTOENCODERS else {}
    assert jobs_of(folder, {"alone": grid}) == {"unpickle": 1, "train": 2, **figures}


@needs_one
def test_beside_classifiers_these_alone_are_scored(tmp_path):
    folder = make_folder(tmp_path / "toy")
    one = {"model": WITHOUT_LABELS[0], **SMALL}
    found = jobs_of(folder, {**TOY["experiments"], "alone": one})
    drawn = {"animate_weights", "plot_learning_curve", "plot_weights"}
    assert found == {
        "unpickle": 1,
        "train": 3,
        **dict.fromkeys(drawn, 3),
        **dict.fromkeys(PER_RUN - drawn - {"train"}, 2),
        **dict.fromkeys(AFTER, 1),
        **({"plot_reconstructions": 1} if WITHOUT_LABELS[0] in AUTOENCODERS else {}),
    }


@pytest.mark.slow
def test_samples_are_drawn_once_for_figure_and_page(tmp_path):
    folder = make_folder(tmp_path / "toy")
    found = jobs_of(folder, {**TOY["experiments"], "machine": {"model": SAMPLERS[0], **SMALL}})
    assert (found["sample"], found["plot_samples"], found["train"]) == (1, 1, 3)
    assert "msgd sample" in snakemake(folder, "-n", "-p", "results/report.html").stdout
    done = snakemake(folder, "-n", "results/runs/slow/default/samples.npz")
    assert done.returncode != 0
    assert "which draws no samples" in done.stderr + done.stdout


@needs_one
@pytest.mark.parametrize("figure", ["confusion.png", "mistakes.png"])
def test_a_figure_of_mistakes_is_not_made_without_labels(tmp_path, figure):
    folder = make_folder(tmp_path / "toy")
    write_config(folder, {**TOY, "experiments": {"a": {"model": WITHOUT_LABELS[0], **SMALL}}})
    done = snakemake(folder, "-n", f"results/plots/a/default/{figure}")
    assert done.returncode != 0
    assert "predicts no classes" in done.stderr + done.stdout


@needs_one
def test_what_learns_without_labels_runs_to_its_end(tmp_path):
    folder = make_folder(tmp_path / "toy")
    experiments = {name: {"model": name, **SMALL} for name in WITHOUT_LABELS}
    write_config(folder, {**TOY, "experiments": experiments})
    done = snakemake(folder, "--cores", "2")
    assert done.returncode == 0, done.stderr
    assert "there are no scores" in done.stdout
    assert {path.name for path in (folder / "results").iterdir() if path.is_file()} == set()
    for name in WITHOUT_LABELS:
        history = pd.read_csv(folder / "results" / "runs" / name / "default" / "history.csv")
        assert [*history["epoch"]] == [1, 2, 3]
        assert history["validation_errors"].isna().all()
        plots = folder / "results" / "plots" / name / "default"
        more = {"reconstructions.png"} if name in AUTOENCODERS else set()
        more |= {"samples.png"} if name in SAMPLERS else set()
        expected = {"learning_curve.png", "weights.png", "weights.gif"} | more
        assert {path.name for path in plots.iterdir()} == expected
    assert would_run(folder) == {}
