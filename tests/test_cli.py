"""The msgd program as a person runs it: steps by hand, errors, exit codes, devices."""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import as_triple, command, make_dataset, msgd, msgd_unread, save_npz

from msgd.cli import _parser, _path, main

WORDS = ["model=logistic_regression", "batch_size=10", "n_epochs=3", "learning_rate=0.5"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_npz(folder / "toy.npz", as_triple(make_dataset(60, 30, 30, (4, 4), 3)))
    done = msgd("unpickle", folder / "toy.npz", "--output", folder / "arrays")
    assert done.returncode == 0, done.stderr
    return folder / "arrays"


def train(data, run, *words, backend="cpu", **environment):
    return msgd(
        "train", "--data", data, "--run", run, "--backend", backend, *WORDS, *words, **environment
    )


def test_the_steps_by_hand(data, tmp_path):
    run = tmp_path / "runs" / "toy" / "default"
    done = train(data, run)
    assert done.returncode == 0, done.stderr
    assert "epoch 3, minibatch 6/6, iteration 18" in done.stderr
    assert msgd("score", "--data", data, "--run", run).returncode == 0
    assert msgd("tabulate", "--output", tmp_path, run).returncode == 0
    assert "toy,logistic_regression,default,cpu" in (tmp_path / "test_scores.csv").read_text()
    assert msgd("select", "--data", data, "--output", tmp_path, run).returncode == 0
    assert (tmp_path / "best_model.npz").exists()
    assert "# Model card: toy/default" in (tmp_path / "model_card.md").read_text()
    figure = tmp_path / "over.png"
    over = ("--over", "seed", "--runs", run, "--output", figure)
    assert msgd("plot", "validation_error_over", *over).returncode == 0
    assert figure.exists()
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["settings"]["learning_rate"] == 0.5
    assert provenance["device"] == "cpu"
    assert len(provenance["code"]["sha256"]) == 64
    assert provenance["packages"]["numba"]
    assert provenance["data"]["sha256"]["train_x"]
    history = (run / "history.csv").read_text()
    assert history.splitlines()[0] == (
        "stage,iteration,epoch,cost,validation_errors,validation_error_percent,patience,"
        "best_validation_errors,best_iteration"
    )


def test_nobody_needs_to_read_to_its_end():
    done = msgd_unread("describe-config")
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_standard_output_that_cannot_be_written_is_an_error():
    with Path("/dev/full").open("w") as full:  # of Linux: a disk without room
        done = subprocess.run(
            command("msgd.cli", "describe-config"), stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert line == "msgd describe-config: error: standard output: No space left on device"


def test_two_runs_give_the_same_bytes(data, tmp_path):
    for name in ("a", "b"):
        assert train(data, tmp_path / name).returncode == 0
    for file in ("best_parameters.npz", "history.csv", "training.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_cuda_on_the_simulator_gives_the_cpu_error_counts(data, tmp_path):
    results = {}
    for backend in ("cpu", "cuda"):
        done = train(data, tmp_path / backend, backend=backend, NUMBA_ENABLE_CUDASIM="1")
        assert done.returncode == 0, done.stderr
        results[backend] = json.loads((tmp_path / backend / "training.json").read_text())
    assert results["cuda"].pop("backend") == "cuda"
    assert results["cpu"].pop("backend") == "cpu"
    hashes = [result.pop("sha256") for result in results.values()]
    assert [*hashes[0]] == [*hashes[1]] == ["best_parameters", "snapshots", "history"]
    assert results["cuda"] == results["cpu"]
    provenance = json.loads((tmp_path / "cuda" / "provenance.json").read_text())
    assert provenance["device"] == "cuda: Numba's CUDA simulator"


def test_auto_says_which_backend_it_takes_and_why(data, tmp_path):
    done = train(data, tmp_path / "run", backend="auto", NUMBA_ENABLE_CUDASIM="1")
    assert done.returncode == 0
    assert "backend auto takes cpu: the CUDA simulator runs only where" in done.stderr


def test_cuda_without_a_device_is_an_error_that_says_so(data, tmp_path):
    done = train(
        data,
        tmp_path / "run",
        backend="cuda",
        NUMBA_ENABLE_CUDASIM="0",
        CUDA_VISIBLE_DEVICES="-1",
    )
    assert done.returncode == 1
    assert "neither a CUDA device with its driver nor the simulator" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["patience=0"], "patience is 0; allowed: a whole number >= 1"),
        (["l3=1"], "l3 is not a known key"),
        (["l1"], "write key=value"),
        (["seed=-1"], "seed is -1"),
    ],
)
def test_bad_hyperparameters_are_reported(data, tmp_path, words, message):
    done = train(data, tmp_path / "run", *words)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "where",
    [["--backend", "auto"], ["--backend", "cpu"], ["--backend", "cuda", "--floatX", "float64"]],
)
def test_tf32_is_refused_where_nothing_computes_it(data, tmp_path, where):
    words = ["model=lenet", "batch_size=10", "arithmetic=tf32"]
    done = msgd("train", "--data", data, "--run", tmp_path / "run", *where, *words)
    assert done.returncode == 1
    assert "\n- arithmetic is tf32, which only a GPU computes, and in float32" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_layers_too_large_for_any_memory_are_reported(data, tmp_path):
    words = ("model=mlp", "n_hidden=[1000000, 1000000, 1000000]")  # 30 TiB of weights, four times
    options = ("--data", data, "--run", tmp_path / "run", "--backend", "cpu")
    done = msgd("train", *options, *words)
    assert done.returncode == 1
    assert "parameters, whose training takes 29," in done.stderr
    assert "GiB of memory" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").rglob("*.npz"))


def test_a_batch_larger_than_the_training_set_is_reported(data, tmp_path):
    words = ["model=logistic_regression", "batch_size=61"]
    done = msgd("train", "--data", data, "--run", tmp_path / "run", *words)
    assert done.returncode == 1
    assert "batch_size is 61; allowed: at most 60" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_bad_data_set_is_reported_in_the_log_too(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    log = tmp_path / "logs" / "unpickle.log"
    done = msgd("unpickle", "--log", log, tmp_path / "bad.npz", "--output", tmp_path / "arrays")
    assert done.returncode == 1
    assert "bad.npz is not a whole .npz file" in done.stderr
    assert "bad.npz is not a whole .npz file" in log.read_text()
    assert not (tmp_path / "arrays").exists()


def test_a_diverging_run_leaves_no_snapshots(data, tmp_path):
    run = tmp_path / "run"
    done = train(data, run, "l2=1.0e+30", "validation_frequency=18")
    assert done.returncode == 1
    assert "diverged before its first validation" in done.stderr
    assert not list(run.rglob("*.npz"))


def train_with(process, data, run):
    """Train a run that is to end with ``process``, a number."""
    return msgd("train", "--end-with", process, "--data", data, "--run", run, *WORDS)


def test_a_training_that_is_to_end_with_one_that_has_ended_does_not_begin(data, tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    done = train_with(ended.pid, data, tmp_path / "run")
    assert done.returncode == 1
    assert f"process {ended.pid}, with which this one is to end, has ended" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_program_may_stand_between_a_training_and_the_one_it_ends_with(data, tmp_path):
    done = train_with(os.getppid(), data, tmp_path / "run")
    assert done.returncode == 0, done.stderr


def test_steps_without_kernels_do_not_load_numba(tmp_path):
    probe = (
        "import sys; from msgd.cli import main; "
        "import msgd.plots.weights, msgd.plots.mistakes, msgd.plots.learning_curve, "
        "msgd.plots.comparison, msgd.evaluation.model_card, msgd.evaluation.tables, "
        "msgd.data.unpickle, msgd.data.download; "
        "sys.exit('numba' in sys.modules)"
    )
    script = tmp_path / "probe.py"
    script.write_text(probe)
    assert subprocess.run([sys.executable, script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["unpickle", "{toy}", "--output", "{file}/x"], "{file}"),
        (["unpickle", "{toy}", "--output", "x", "--log", "{file}/log"], "{file}"),
        (["train", "--data", "{absent}", "--run", "x", "model=mlp"], "{absent}/dataset.json"),
        (["download", "{file}/mnist.pkl.gz"], "{file}"),
        (["plot", "learning_curve", "--run", "{absent}", "--output", "x.png"], "{absent}"),
    ],
)
def test_paths_that_cannot_be_used_are_named(data, tmp_path, words, message):
    (tmp_path / "file").write_text("not a folder")
    names = {"toy": data.parent / "toy.npz", "file": tmp_path / "file", "absent": tmp_path / "no"}
    done = msgd(*(word.format(**names) for word in words))
    assert done.returncode == 1
    assert f"error: {message.format(**names)}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("figure", "needs"),
    [("weights", "--run and --data"), ("validation_error_over", "--runs and --over")],
)
def test_a_figure_names_the_options_it_needs(tmp_path, figure, needs):
    done = msgd("plot", figure, "--output", tmp_path / "x.png")
    assert done.returncode == 1
    assert f"the figure {figure} needs {needs}" in done.stderr
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("threads", ["0", "two"])
def test_threads_are_checked(data, tmp_path, threads):
    done = train(data, tmp_path / "run", "--threads", threads)
    assert done.returncode == 2
    assert "--threads" in done.stderr


# What is no number of days or seconds; float reads all but the last.
NO_DAYS = ["-1", "nan", "inf", "1e999", "a"]


@pytest.mark.parametrize("number", NO_DAYS)
def test_states_are_kept_unless_the_days_are_a_number_from_0(tmp_path, number):
    state = tmp_path / "states" / "a"
    state.mkdir(parents=True)
    (state / "run.json").touch()
    done = msgd("clean-states", tmp_path / "states", "--unused-days", number)
    assert done.returncode == 2
    assert f"--unused-days: {number} is not a number of days >= 0" in done.stderr
    assert state.exists()


@pytest.mark.parametrize("number", NO_DAYS)
def test_seconds_between_states_are_checked(data, tmp_path, number):
    done = train(data, tmp_path / "run", "--seconds-between-states", number)
    assert done.returncode == 2
    assert f"{number} is not a number of seconds >= 0" in done.stderr


def test_states_are_cleaned_in_a_folder_that_is_there(tmp_path):
    (tmp_path / "file").touch()
    for name in ("nosuch", "file"):
        done = msgd("clean-states", tmp_path / name)
        assert done.returncode == 1
        assert f"{name} is not a folder; give the one that holds the states" in done.stderr
        assert "removed" not in done.stderr


def path_options():
    """Return (subcommand, option) of each option of msgd that takes a path; arguments by name."""
    (commands,) = (one.choices for one in _parser()._actions if one.dest == "command")
    return [
        (command, option.option_strings[0] if option.option_strings else option.dest)
        for command, parser in commands.items()
        for option in parser._actions
        if option.type in (Path, _path)
    ]


@pytest.mark.parametrize(("command", "option"), path_options())
def test_no_path_is_empty(command, option, capsys, monkeypatch, tmp_path):
    """As is a variable of the shell that is not set: it would be the current folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main([command, *([option] if option.startswith("--") else []), ""])
    assert "the path is empty; is a variable of the shell not set?" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "NUMBA_CACHE_DIR"])
def test_kernels_are_cached_by_source_or_not_at_all(tmp_path, variable):
    show = "from msgd.kernels import options; import numba; print(numba.config.CACHE_DIR)"
    program = tmp_path / "show.py"
    program.write_text(show)

    def folder(value):
        done = subprocess.run(
            [sys.executable, program],
            env={**os.environ, "XDG_CACHE_HOME": "", "NUMBA_CACHE_DIR": "", variable: value},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    assert re.fullmatch(rf"{tmp_path}(/msgd)?/kernels-[0-9a-f]{{16}}", folder(str(tmp_path)))
    assert "msgd-kernels-" in folder("/proc/nowhere")


@pytest.mark.slow
def test_eight_trainings_fill_one_cold_cache(data, tmp_path):
    """At once: all come to the same history, and a ninth compiles nothing."""
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(8) as pool:
        runs = [
            pool.submit(train, data, tmp_path / str(k), NUMBA_CACHE_DIR=str(cache))
            for k in range(8)
        ]
    for run in runs:
        assert run.result().returncode == 0, run.result().stderr
    kernels = {file: file.stat().st_mtime_ns for file in cache.rglob("*.nb?")}
    assert len(kernels) > 10
    assert train(data, tmp_path / "8", NUMBA_CACHE_DIR=str(cache)).returncode == 0
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.nb?")} == kernels
    assert len({(tmp_path / str(k) / "history.csv").read_bytes() for k in range(9)}) == 1


def test_scores_need_the_whole_run(data, tmp_path):
    done = msgd("score", "--data", data, "--run", tmp_path / "absent")
    assert done.returncode == 1
    assert "absent/provenance.json" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["weights", "--colormap", "nope"], "plots.colormap is 'nope'"),
        (["weights", "--dpi", "-3"], "dpi is -3"),
        (["weights", "--output", "w.xyz"], "the figure weights is a .png"),
        (["weights_animation", "--output", "w.png"], "the figure weights_animation is a .gif"),
    ],
)
def test_a_figure_with_nonsense_options_is_refused(tmp_path, words, message):
    figure, *options = words
    output = ["--output", tmp_path / ("w.gif" if "animation" in figure else "w.png")]
    done = msgd("plot", figure, "--run", tmp_path, "--data", tmp_path, *output, *options)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not [*tmp_path.iterdir()]
