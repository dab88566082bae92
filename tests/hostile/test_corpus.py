"""Every file and configuration of the corpus, met as a user would meet it.

None executes anything, hangs, or takes much memory; each gives one clear line and exit code 1. All
are met in one process, child.py, which takes them one after the other under limits, and some of
each kind by the command itself, in a process of its own.
"""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import configurations
import pytest
from cases import CANARY
from child import MEMORY
from conftest import command, environment, in_folder
from corpus import CASES

from msgd.cli import main
from msgd.data import safe_pickle

LONGEST = 800  # letters of a line
NUMBERS = range(len(CASES))
NAMES = [f"{case.kind}: {case.name}" for case in CASES]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder in which each case has one of its own."""
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def outcomes(folders):
    """What came of each case: dict of number -> dict; where it ended the process, of nothing."""
    found, first = {}, 0
    while first < len(CASES):
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("child.py"), folders, str(first)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        for line in done.stdout.splitlines():
            outcome = json.loads(line)
            found[outcome["number"]] = outcome
        assert max(found, default=-1) >= first, "the process ended before its first case"
        first = max(found) + 1
    return found


@pytest.mark.parametrize("number", NUMBERS, ids=NAMES)
def test_a_bad_file_gives_one_clear_line(outcomes, folders, number):
    case, outcome = CASES[number], outcomes[number]
    assert "code" in outcome, "it ended the process: it hung, or took too much"
    check_said(case, outcome["code"], outcome["said"], outcome["names"])
    assert outcome["length"] <= 40 * LONGEST
    assert outcome["bytes"] < MEMORY
    assert not (folders / str(number) / CANARY).exists(), "it was executed"
    assert not (folders / str(number) / "out").exists(), "something was written"


def check_said(case, code, said, names):
    """Check an exit code and what a command said of a case; names: what is bad, as it was given."""
    assert code == 1, said
    assert "Traceback" not in said
    assert "please report" not in said
    assert "allocate" not in said, "memory was asked for"
    assert "not enough memory" not in said
    first, *findings = said.strip().splitlines()
    if findings:  # of a configuration, a line each
        assert first.endswith("cannot be used:")  # and no other error has more
        assert all(line.startswith("- ") for line in findings)
    for line in (first, *findings):
        assert len(line) <= LONGEST
        assert line.isprintable()
    assert re.search(case.says, said), said
    assert str(names) in said


def limited(folder, words):
    """Run ``words`` in ``folder`` with little memory; return the finished process."""

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))

    return subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=120,
        preexec_fn=limit,
        env=environment(OPENBLAS_NUM_THREADS="1"),  # a machine of many cores has stacks for all
    )


def some(kinds, names=()):
    """Return the numbers of one in twelve cases of each kind in ``kinds``, and of those named."""
    of_kinds = [[n for n in NUMBERS if CASES[n].kind == kind] for kind in kinds]
    chosen = {n for numbers in of_kinds for n in numbers[::12]}
    return sorted(chosen | {n for n in NUMBERS if CASES[n].name in names})


OF_CONFIGURATIONS = {case.kind for case in configurations.CASES} - {"huge training"}
OTHERS = {case.kind for case in CASES} - OF_CONFIGURATIONS
# What Snakemake itself would execute, or never end to read.
OF_SNAKEMAKE = ("an expression of YTE", "os.system by a tag", "mappings that multiply")


def test_a_pickle_that_is_executed_leaves_its_canary(tmp_path, monkeypatch):
    """If the unpickler let it: without that, no canary would say anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(safe_pickle._ArrayUnpickler, "find_class")
    for name in ("os.mkdir", "os.system by protocol 4"):
        (case,) = (case for case in CASES if case.name == name)
        main(case.make(tmp_path))
        path = tmp_path / CANARY
        assert path.exists()
        path.rename(tmp_path / name)


def test_a_command_that_fills_the_memory_or_hangs_is_stopped(tmp_path):
    script = (
        "import child\n"
        "child.SECONDS, child.MEMORY, child.CASES[2:] = 0.5, 2**28, []\n"
        "does = iter(['bytearray(2**29)', 'while True: pass'])\n"
        "child.main = lambda words: exec(next(does))\n"
        f"child.take_all(child.Path({str(tmp_path)!r}), 0)"
    )
    words, here = [sys.executable, "-c", script], Path(__file__).parent
    done = subprocess.run(words, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    _, filled, hung = map(json.loads, done.stdout.splitlines())
    assert "MemoryError" in filled["said"]
    assert hung == {"number": 1}


@pytest.mark.trust
@pytest.mark.parametrize("number", some(OTHERS), ids=NAMES.__getitem__)
def test_the_program_says_the_same(tmp_path, number):
    case = CASES[number]
    words = case.make(tmp_path)
    done = limited(tmp_path, command("msgd.cli", *words))
    names = words[-1] if case.names is None else case.names
    check_said(case, done.returncode, done.stderr, names)
    assert done.stdout == ""
    assert not (tmp_path / CANARY).exists()


@pytest.mark.trust
@pytest.mark.parametrize("number", some(OF_CONFIGURATIONS, OF_SNAKEMAKE), ids=NAMES.__getitem__)
def test_snakemake_stops_before_any_job(tmp_path, number):
    case = CASES[number]
    case.make(tmp_path)
    done = limited(tmp_path, command("snakemake", *in_folder(tmp_path), "-n"))
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    assert re.search(case.says, done.stdout), done.stdout
    assert not (tmp_path / CANARY).exists()
    assert not (tmp_path / "results").exists()
