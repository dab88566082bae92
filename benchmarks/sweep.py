"""What a grid of many short runs costs: CPU seconds per run, everything included.

    python benchmarks/sweep.py [--runs 100] [--output FILE]

Runs the workflow once on a grid of the published logistic regression with many seeds, which change
nothing in it: so every training has the same 74 epochs. From mnist.pkl.gz, which lies there, to the
last figure and table, in an empty folder; compiled kernels and Python's bytecode are on disk, from
a small sweep before. CPU seconds (user and system) are those of `snakemake` and all its children;
what is not of the commands is Snakemake's own and its shells'. Prints JSON with hardware and
versions.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from common import ROOT, write_report

MNIST_FILE = ROOT / "results" / "downloads" / "mnist.pkl.gz"
# In the place of the msgd program: runs it and takes down its CPU seconds.
TIMED_PROGRAM = """#!/bin/bash
TIMEFORMAT="$1 $2 %3U %3S"  # the command; of a figure, its name
exec 3>&2
{{ time {msgd} "$@" 2>&3; }} 2>> {times}
"""


def grid(n_runs):
    """Return the experiment of ``n_runs`` runs."""
    return {"model": "logistic_regression", "seed": [*range(n_runs)]}


def sweep(folder, experiment, environment):
    """Run the workflow on ``experiment`` in ``folder``; return the CPU seconds of all processes."""
    downloads = folder / "results" / "downloads"
    downloads.mkdir(parents=True)
    shutil.copyfile(MNIST_FILE, downloads / "mnist.pkl.gz")
    config = {"backend": "cpu", "threads": 1, "experiments": {"grid": experiment}}
    (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")  # YAML, too
    words = ["snakemake", "-s", ROOT / "Snakefile", "--directory", folder, "--cores", "2"]
    before = children_seconds()
    subprocess.run([sys.executable, "-m", *words], check=True, env=environment)
    return children_seconds() - before


def children_seconds():
    """Return the CPU seconds of all children that ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def timed_environment(folder):
    """Return the environment in which rules find the timed program, and the file of its times."""
    programs, times = folder / "bin", folder / "times.txt"
    programs.mkdir()
    msgd = Path(sys.executable).with_name("msgd")
    timed = programs / "msgd"
    timed.write_text(TIMED_PROGRAM.format(msgd=msgd, times=times), encoding="utf-8")
    timed.chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as users have it
    return environment, times


def seconds_by_command(times):
    """Return {command: its number of jobs and their CPU seconds} from the file ``times``."""
    found = defaultdict(lambda: {"jobs": 0, "cpu_seconds": 0.0})
    for line in times.read_text(encoding="utf-8").splitlines():
        command, figure, user, system = line.split()
        entry = found[f"plot {figure}" if command == "plot" else command]
        entry["jobs"] += 1
        entry["cpu_seconds"] = round(entry["cpu_seconds"] + float(user) + float(system), 3)
    return dict(found)


def n_epochs(folder):
    """Return how many epochs all runs together took."""
    paths = folder.glob("results/runs/grid/*/training.json")
    return sum(json.loads(path.read_text(encoding="utf-8"))["epochs_run"] for path in paths)


def measure(n_runs):
    """Return what the module describes."""
    if not MNIST_FILE.exists():
        raise SystemExit(f"{MNIST_FILE} is missing; run snakemake once")
    with tempfile.TemporaryDirectory(prefix="msgd-sweep-") as name:
        folder = Path(name)
        environment, times = timed_environment(folder)
        sweep(folder / "warm", {**grid(2), "n_epochs": 1}, environment)
        times.unlink()
        total = sweep(folder / "cold", grid(n_runs), environment)
        commands = seconds_by_command(times)
        own = total - sum(entry["cpu_seconds"] for entry in commands.values())
        return {
            "runs": n_runs,
            "state": "empty results but for mnist.pkl.gz; compiled kernels and bytecode on disk",
            "cpu_seconds": round(total, 2),
            "cpu_seconds_per_run": round(total / n_runs, 3),
            "by_command": commands,
            "snakemake_and_shells": round(own, 2),
            "epochs": n_epochs(folder / "cold"),
        }


def main():
    """Measure and print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    write_report(measure(options.runs), options.output)


if __name__ == "__main__":
    main()
