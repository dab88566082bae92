"""Whole workflows that are killed, started twice, or run by a clock that was set back."""

import os
import random
import re
import shutil
import signal
import subprocess
import time

import pytest
from conftest import command, environment, in_folder, msgd, snakemake
from rules import kill_after, make_folder, partial_files, results_of

from msgd.files import PARTIAL

pytestmark = pytest.mark.trust  # a Snakemake takes seconds to start; the single rules are in others

TARGETS = ["results/test_scores.csv", "results/best_model.npz"]
LOCKED = "It can be removed with the --unlock argument"
N_KILLS = {signal.SIGKILL: 3, signal.SIGTERM: 2, signal.SIGINT: 2}


def run(folder, *words):
    """Make the targets in ``folder``; return the finished process."""
    return snakemake(folder, "--cores", "2", *words, "--", *TARGETS)


def start(folder):
    """Start to make the targets in ``folder``, in a process group of its own."""
    return subprocess.Popen(
        command("snakemake", *in_folder(folder), "--cores", "2", *TARGETS),
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which the targets were made, undisturbed; run once before, for the kernels."""
    for name in ("first", "second"):
        folder = make_folder(tmp_path_factory.mktemp("finished") / name)
        began = time.monotonic()
        done = run(folder)
        assert done.returncode == 0, done.stderr
    return folder, time.monotonic() - began


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of that folder, to be damaged."""
    return shutil.copytree(finished[0], tmp_path / "copy")


@pytest.mark.parametrize("number", N_KILLS)
def test_a_killed_workflow_ends_with_the_same_bytes(finished, tmp_path, number, record_property):
    """After SIGKILL Snakemake's lock is left; what it says is enough to go on."""
    whole, seconds = finished
    moments, n_killed, n_locked = random.Random(int(number)), 0, 0
    for attempt in range(20):
        folder = make_folder(tmp_path / str(attempt))
        began = time.monotonic()
        if not kill_after(process := start(folder), moments.uniform(0.3, 1) * seconds, number):
            seconds = time.monotonic() - began
            continue
        assert process.returncode != 0
        if not all((folder / target).exists() for target in TARGETS):  # there is work to start with
            (folder / "results").mkdir(exist_ok=True)
            (folder / "results" / f"{PARTIAL}table.csv").write_text("half of")
        done = run(folder)
        if done.returncode != 0:
            assert number == signal.SIGKILL
            assert LOCKED in done.stderr
            n_locked += 1
            assert snakemake(folder, "--unlock").returncode == 0
            done = run(folder)
        assert done.returncode == 0, done.stderr
        assert results_of(folder) == results_of(whole)
        assert not partial_files(folder)
        n_killed += 1
        if n_killed == N_KILLS[number]:
            break
    record_property("cases", n_killed)
    assert n_killed == N_KILLS[number]
    assert n_locked or number != signal.SIGKILL


def test_a_second_workflow_in_the_same_folder_waits_for_nobody(finished, tmp_path):
    """It gives up at once and says why; the first one ends as if alone."""
    whole, _ = finished
    folder = make_folder(tmp_path / "toy")
    first = start(folder)
    while not (folder / ".snakemake" / "locks").exists() or not [
        *(folder / ".snakemake" / "locks").iterdir()
    ]:
        assert first.poll() is None
        time.sleep(0.05)
    second = run(folder)
    assert second.returncode != 0
    assert "Directory cannot be locked" in second.stderr
    assert LOCKED in second.stderr
    assert "Traceback" not in second.stderr
    _, stderr = first.communicate()
    assert first.returncode == 0, stderr
    assert results_of(folder) == results_of(whole)


def in_two_days():
    return time.time() + 2 * 86400


def nothing_to_do(folder):
    return "Nothing to be done" in run(folder, "-n").stdout


def test_a_clock_set_back_makes_nothing_anew(copy):
    """All that was made lies in the future."""
    for path in [*copy.rglob("*")]:
        os.utime(path, (in_two_days(), in_two_days()))
    assert nothing_to_do(copy)


@pytest.mark.parametrize("rule", ["train", "score"])
def test_a_clock_set_back_half_way_changes_no_byte(finished, copy, rule):
    """What has been made lies in the future, what is still to be made does not."""
    for path in [copy / "toy.npz", *(copy / "results").rglob("*")]:
        os.utime(path, (in_two_days(), in_two_days()))
    run_folder = copy / "results" / "runs" / "a" / "default"
    if rule == "train":
        shutil.rmtree(run_folder)
    else:
        (run_folder / "score.json").unlink()
    for target in TARGETS:
        (copy / target).unlink()
    done = run(copy)
    assert done.returncode == 0, done.stderr
    assert results_of(copy) == results_of(finished[0])
    assert nothing_to_do(copy)


def test_a_clock_set_back_lets_figures_of_snapshots_be_drawn(copy):
    """Of a folder Snakemake asks a hidden file for its date."""
    for path in [copy / "toy.npz", *(copy / "results").rglob("*")]:
        os.utime(path, (in_two_days(), in_two_days()))
    figure = "results/plots/a/default/weights.png"
    done = snakemake(copy, "--cores", "2", "--", figure)
    assert done.returncode == 0, done.stderr
    assert (copy / figure).exists()


def test_data_of_a_clock_that_is_ahead_are_told_of(finished, tmp_path):
    folder = make_folder(tmp_path / "toy")
    os.utime(folder / "toy.npz", (in_two_days(), in_two_days()))
    done = run(folder)
    assert done.returncode != 0
    assert "toy.npz is dated in the future" in done.stderr
    assert "touch toy.npz" in done.stderr
    assert "Traceback" not in done.stderr
    (folder / "toy.npz").touch()
    done = run(folder)
    assert done.returncode == 0, done.stderr
    assert results_of(folder) == results_of(finished[0])


DAMAGED = {
    "pixels": "results/data/toy/train_x.npy",
    "snapshot": "results/runs/a/default/snapshots/iteration_000000004.npz",
    "history": "results/runs/a/default/history.csv",
    "best parameters": "results/runs/a/default/best_parameters.npz",
    "model": "results/best_model.npz",
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_verify_finds_is_mended_by_the_command_it_names(finished, copy, what):
    path = copy / DAMAGED[what]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    done = msgd("verify", "results", "--backend", "cpu", cwd=copy)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    finding = next(line for line in done.stderr.splitlines() if "does not hold" in line)
    made_by = re.search(r"snakemake --cores all (--forcerun \S+)$", finding)[1]
    done = run(copy, *made_by.split())
    assert done.returncode == 0, done.stderr
    assert results_of(copy) == results_of(finished[0])
    done = msgd("verify", "results", "--backend", "cpu", cwd=copy)
    assert done.returncode == 0, done.stderr
