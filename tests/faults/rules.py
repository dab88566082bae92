"""A toy workflow that has every rule, and its rules one by one, as processes that faults befall."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time

import yaml
from conftest import as_triple, environment, make_dataset, save_npz, snakemake

from msgd.files import PARTIAL

SMALL = {"model": "logistic_regression", "batch_size": 20}
# Of many validations, for a kill to come between two.
LONG = {**SMALL, "n_epochs": 400, "patience": 10**6}
CONFIG = {
    "dataset": "toy.npz",
    "backend": "cpu",
    "tensorboard": importlib.util.find_spec("tensorboard") is not None,
    "experiments": {
        "grid": {**LONG, "learning_rate": [0.1, 0.5]},
        "coder": {"model": "da", "n_hidden": 6, "batch_size": 20, "n_epochs": 2},
        "machine": {"model": "rbm", "n_hidden": 6, "batch_size": 20, "n_epochs": 2},
    },
}
SHORT = {**CONFIG, "tensorboard": False, "experiments": {"a": {**SMALL, "n_epochs": 3}}}

# In an order in which they can run: the first words of their commands.
RULES = ["unpickle", "train", "score", "tabulate", "compare-published", "select"]
FIGURES = ["learning_curve", "weights", "weights_animation", "confusion", "mistakes"]
FIGURES += ["reconstructions", "validation_error_over", "samples"]
RULES += ["sample", *(f"plot {figure}" for figure in FIGURES), "tensorboard", "report"]

# What tells of the clock, the machine, or a moment at which something was saved.
OF_THE_MOMENT = "logs", "benchmarks", "states"


def make_folder(path, config=SHORT):
    """Make a folder with a toy data set and a configuration; return it."""
    path.mkdir(parents=True)
    save_npz(path / "toy.npz", as_triple(make_dataset(80, 40, 44, (4, 4), 3)))
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def results_of(folder):
    """Return {path: bytes} of all results in ``folder`` but for clock and hardware."""
    paths = [path.relative_to(folder) for path in folder.glob("results/**/*")]
    return {
        path.as_posix(): (folder / path).read_bytes()
        for path in paths
        if path.parts[1] not in OF_THE_MOMENT
        and path.name not in ("timings.csv", "provenance.json")
        and (folder / path).is_file()
    }


def partial_files(folder):
    """Return the files in ``folder`` that are not whole yet, or were left so."""
    return [*folder.glob(f"**/{PARTIAL}*")]


# msgd download, whose sources are ours: the first word, JSON.
DOWNLOAD = """\
import json, sys
from msgd.cli import main
from msgd.data import download
download.load_sources = lambda: json.loads(sys.argv[1])
sys.exit(main(sys.argv[2:]))
"""


def download_from(url, content, path):
    """Return the words of a command that downloads ``content`` from ``url`` to ``path``."""
    sha256 = hashlib.sha256(content).hexdigest()
    sources = {"file": "mnist.pkl.gz", "size": len(content), "sha256": sha256}
    sources["sources"] = [{"url": url}]
    return [sys.executable, "-c", DOWNLOAD, json.dumps(sources), "download", path, "--log", "log"]


class Rules:
    """The rules of a workflow, each undisturbed, as far as they are asked for.

    seconds and made: of each rule that has run, how long it took, and what it made.
    """

    def __init__(self, folder, config):
        self.folder = make_folder(folder, config)
        listed = snakemake(self.folder, "-n", "-p", "--cores", "2").stdout
        commands = re.findall(r"^Shell command: (?:exec )?(msgd .+)$", listed, re.MULTILINE)
        assert commands, listed
        # Here it is a test that starts them, at times without a shell to say what PPID is.
        commands = [command.replace(" --end-with $PPID", "") for command in commands]
        order = [rule for rule in RULES if any(is_of(rule, command) for command in commands)]
        self.commands = {rule: [c for c in commands if is_of(rule, c)] for rule in order}
        # A state at each validation, for a kill to come after one.
        trainings = self.commands["train"]
        trainings.sort(key=lambda command: "model=logistic_regression" not in command)
        self.commands["train"] = [f"{c} --seconds-between-states 0" for c in trainings]
        self.seconds, self.made = {}, {}

    def command(self, rule):
        """Return the command of one job of ``rule``."""
        return self.commands[rule][0]

    def run_until(self, rule):
        """Run all rules until ``rule``, in order."""
        for name, commands in self.commands.items():
            if name not in self.made:
                self._run(name, commands)
            if name == rule:
                return

    def _run(self, rule, commands):
        for command in reversed(commands):  # the one that is asked for last
            before, began = results_of(self.folder), time.monotonic()
            done = finish(command, self.folder)
            self.seconds[rule] = time.monotonic() - began
            assert done.returncode == 0, done.stderr
        now = results_of(self.folder)
        self.made[rule] = {path: now[path] for path in now.keys() - before.keys()}

    def without(self, rule, folder, keep_states=False):
        """Copy the workflow to ``folder`` as it was before one job of ``rule``; return it.

        keep_states: whether a training finds what it may go on from.
        """
        self.run_until(rule)
        shutil.copytree(self.folder, folder)
        for path in self.made[rule]:
            (folder / path).unlink()
        if rule == "train" and not keep_states:
            shutil.rmtree(folder / "results" / "states")
        return folder


def is_of(rule, command):
    """Whether ``command`` is one of ``rule``."""
    return f"{command} ".startswith(f"msgd {rule} ")


def start(command, folder, **changes):
    """Start a rule's command as Snakemake does, in a process group of its own.

    changes: of the environment.
    """
    return subprocess.Popen(
        ["bash", "-c", f"set -euo pipefail; exec {command}"],
        cwd=folder,
        env=environment(**changes),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(command, folder, **changes):
    """Run a rule's command to its end, the environment changed; return the finished process."""
    process = start(command, folder, **changes)
    _, stderr = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, None, stderr)


def kill_after(process, seconds, number):
    """Send the signal ``number`` to a process and its children after ``seconds``.

    Return whether that ended it; it may have come to its own end before.
    """
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, number)
        process.communicate()
    return process.returncode != 0


def kill_when_it_writes(process, folder, number):
    """Send the signal ``number`` as soon as there is a file more in the results of ``folder``.

    Return whether that ended the process.
    """
    before = files_below(folder / "results")
    while process.poll() is None and files_below(folder / "results") <= before:
        time.sleep(0.0002)
    return kill_after(process, 0, number)


def files_below(folder):
    """Return the paths of all files in ``folder`` but logs and benchmarks."""
    found = set()
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in ("logs", "benchmarks")]
        found |= {f"{place}/{name}" for name in names}
    return found
