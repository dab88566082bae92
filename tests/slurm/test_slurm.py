"""Sweeps through a real one-node Slurm on the loopback interface.

They take minutes, need root and start daemons, so they run where MSGD_REQUIRE_SLURM=1 asks for
them; there, what they lack is a failure.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import slurm_loopback
import yaml
from conftest import (
    ROOT,
    as_triple,
    command,
    environment,
    in_folder,
    make_dataset,
    save_npz,
    snakemake,
)

from msgd.config import expand_grid

MLP = {"model": "mlp", "n_hidden": 64, "patience": 1_000_000}  # minibatches: trains to the end
EXPERIMENTS = {
    "short": {**MLP, "n_epochs": 30, "learning_rate": [0.01, 0.02], "seed": [1, 2]},
    # Long enough to leave a state, one every five seconds, and to be caught after it: a validation
    # after each minibatch takes its time however fast the kernels are.
    "long": {**MLP, "n_epochs": 1200, "validation_frequency": 1, "seed": [1, 2]},
}
RUNS = {
    f"{experiment}/{run}": settings
    for experiment, grid in EXPERIMENTS.items()
    for run, settings in expand_grid(grid).items()
}
CANCELLED, REQUEUED = "long/seed=1", "long/seed=2"  # what happens to them midway
TARGETS = [
    f"results/{table}.{kind}"
    for table in ("test_scores", "published")
    for kind in ("csv", "md", "html")
] + ["results/best_model.npz"]
NOT_COMPARED = {"timings.csv"}  # a clock's

# What the profile leaves to the cluster: this one keeps no accounts. And a test does not wait.
ON_LOOPBACK = ["--profile", ROOT / "workflow" / "profiles" / "slurm"]
ON_LOOPBACK += ["--slurm-status-command", "squeue"]
ON_LOOPBACK += ["--slurm-init-seconds-before-status-checks", "3"]


@pytest.fixture(scope="module", autouse=True)
def slurm():
    if os.environ.get("MSGD_REQUIRE_SLURM") != "1":
        pytest.skip("minutes on a Slurm of its own; asked for by MSGD_REQUIRE_SLURM=1")
    missing = slurm_loopback.missing()
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        missing = missing or "the plugin (pip install -c constraints.txt -e '.[slurm]')"
    if missing:
        pytest.fail(f"the tests on Slurm need {missing}")
    folder = Path(tempfile.mkdtemp(prefix="msgd-slurm-"))
    slurm_loopback.up(folder)
    yield
    slurm_loopback.down(folder)
    shutil.rmtree(folder)


def make_folder(path, dataset, **config):
    path.mkdir()
    save_npz(path / "toy.npz", as_triple(dataset))
    config = {"dataset": "toy.npz", "threads": 1, **config}  # two jobs at a time on two cores
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def slurm_jobs(run, rule="train"):
    """Return what Slurm knows of the jobs of ``run``, in their order, as {key: value} each."""
    comment = f"rule_{rule}_wildcards_{run.replace('/', '_')}"
    lines = subprocess.check_output(["scontrol", "show", "job", "-o", "-d"], text=True)
    jobs = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines.splitlines()]
    jobs = [job for job in jobs if job.get("Comment") == comment]
    return sorted(jobs, key=lambda job: int(job["JobId"]))


def is_midway(folder, run):
    """Whether ``run`` is in training on Slurm, with a state to go on from but not at its end."""
    settings = {key: value for key, value in RUNS[run].items() if key != "n_epochs"}
    descriptions = (folder / "results" / "states").glob("*/run.json")
    states = [p.parent for p in descriptions if json.loads(p.read_text())["settings"] == settings]
    if not any(list(folder.glob("iteration_*.state")) for folder in states):
        return False
    return slurm_jobs(run)[-1]["JobState"] == "RUNNING" and "stopped" not in log_of(folder, run)


def log_of(folder, run):
    """Return what the latest training of ``run`` has to say."""
    return (folder / "results" / "logs" / "train" / f"{run}.log").read_text()


@contextmanager
def running_sweep(folder):
    """A sweep on Slurm that is waited for at the end, but not for ever."""
    log = folder / "snakemake.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command("snakemake", *in_folder(folder), *ON_LOOPBACK, *TARGETS),
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment(),
        )
    try:
        yield process
        assert process.wait(timeout=900) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.terminate()
            print(log.read_text())


def contents(folder):
    """Return {relative path: bytes} of what must not depend on where a sweep ran."""
    paths = [*(folder / "results" / "runs").rglob("*"), *(folder / path for path in TARGETS)]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if path.is_file() and path.name not in NOT_COMPARED
    }


def test_a_sweep_with_a_cancelled_and_a_requeued_job_ends_as_a_local_one(tmp_path):
    dataset = make_dataset(2000, 400, 400, (6, 6), 10)
    local, cluster = (
        make_folder(tmp_path / name, dataset, backend="cpu", experiments=EXPERIMENTS)
        for name in ("local", "cluster")
    )
    done = snakemake(local, "--cores", "2", *TARGETS)
    assert done.returncode == 0, done.stderr

    todo = {CANCELLED: ["scancel"], REQUEUED: ["scontrol", "requeue"]}
    with running_sweep(cluster) as process:
        while todo:
            assert process.poll() is None, f"ended before {list(todo)} were caught midway"
            for run in [run for run in todo if is_midway(cluster, run)]:
                subprocess.run([*todo.pop(run), slurm_jobs(run)[-1]["JobId"]], check=True)
                assert not (cluster / "results" / "runs" / run / "training.json").exists()
            time.sleep(0.1)

    for run in (CANCELLED, REQUEUED):
        assert "going on from the state after iteration" in log_of(cluster, run)
    states = {run: [job["JobState"] for job in slurm_jobs(run)] for run in RUNS}
    once = ["COMPLETED"]
    assert states == {run: ["CANCELLED", *once] if run == CANCELLED else once for run in RUNS}
    restarts = {run: slurm_jobs(run)[-1]["Restarts"] for run in RUNS}
    assert restarts == {run: "1" if run == REQUEUED else "0" for run in RUNS}
    assert not any("TresPerJob" in job for run in RUNS for job in slurm_jobs(run)), "asked for GPUs"

    expected, found = contents(local), contents(cluster)
    assert len([path for path in found if path.endswith("best_parameters.npz")]) == len(RUNS)
    assert len([path for path in found if "/snapshots/" in path]) > 10 * len(RUNS)
    assert found.keys() == expected.keys()
    assert [path for path in found if found[path] != expected[path]] == []


def test_trainings_on_gpus_run_beside_each_other_with_one_each(tmp_path):
    """The two GPUs are pretended: Slurm lends them, and the kernels run on the simulator."""
    settings = {"model": "logistic_regression", "batch_size": 40, "n_epochs": 2}
    experiments = {"slow": settings, "fast": {**settings, "learning_rate": 0.5}}
    dataset = make_dataset(80, 40, 44, (4, 4), 3)
    folder = make_folder(tmp_path / "cuda", dataset, backend="cuda", experiments=experiments)
    resources = ["--default-resources", "mem_mb=1500", "runtime=7"]
    resources += ["--set-resources", "train:slurm_partition=accelerated"]
    targets = [f"results/runs/{name}/default/training.json" for name in experiments]
    done = snakemake(folder, *targets, *ON_LOOPBACK, *resources, NUMBA_ENABLE_CUDASIM="1")
    assert done.returncode == 0, done.stderr

    jobs = [job for name in experiments for job in slurm_jobs(f"{name}/default")]
    asked = ["TresPerJob", "JOB_GRES", "Partition", "MinMemoryNode", "TimeLimit"]
    for job in jobs:
        assert [job.get(key) for key in asked] == [
            *("gres:gpu:1", "gpu:1", "accelerated", "1500M", "00:07:00")
        ]
    assert len(jobs) == 2
    assert max(job["StartTime"] for job in jobs) < min(job["EndTime"] for job in jobs)


def test_the_daemons_listen_on_loopback_only():
    listening = "0A"
    ports = {f"{slurm_loopback.CONTROLLER_PORT:04X}", f"{slurm_loopback.NODE_PORT:04X}"}
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, port = local.split(":")
            if state == listening and port in ports:
                found[port] = address
    assert found == dict.fromkeys(ports, "0100007F")
