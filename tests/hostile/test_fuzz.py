"""Fuzzing: seconds of it each time, the same cases; more under a marker; and a million once."""

import datetime
import json
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest

HERE = Path(__file__).parent
# Of every reader: what takes half a second on a core.
CASES = {"unpickler": 500, "IDX reader": 500, ".npz reader": 300, "configuration": 50}


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_mutated_files_are_read_or_refused(tmp_path, record_property, name):
    n_cases, n_read = fuzz.fuzz(name, CASES[name], 0, tmp_path, derandomize=True)
    record_property("cases", n_cases)
    assert n_cases >= CASES[name]
    assert 0 < n_read < n_cases, "the cases are all bad, or none is"


@pytest.mark.trust
def test_more_mutated_files_are_read_or_refused(tmp_path, record_property):
    """In processes of their own, which may not take more than some memory."""
    output = tmp_path / "fuzzed.json"
    words = ["--cases", "300000", "--seed", "20100114", "--processes", "2", "--output", output]
    done = subprocess.run(
        [sys.executable, HERE / "fuzz.py", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    record_property("cases", json.loads(output.read_text())["cases"])


def test_a_million_cases_are_on_record(record_property):
    record = json.loads((HERE / "fuzzed.json").read_text())
    by_reader = record["by_reader"]
    assert set(by_reader) == set(fuzz.TARGETS)
    assert record["cases"] == sum(one["cases"] for one in by_reader.values()) >= 1_000_000
    record_property("cases", record["cases"])
    assert datetime.date.fromisoformat(record["date"])


READERS_THAT_FAIL = {
    "raises": (ZeroDivisionError(), "ZeroDivisionError"),
    "says too much": (fuzz.UserError("a" * 1000), "too long"),
    "says two lines": (fuzz.UserError("a\nb"), "cannot be printed"),
    "takes too much": (fuzz.UserError("it is damaged: MemoryError()"), "of memory"),
}


@pytest.mark.parametrize("fault", READERS_THAT_FAIL)
def test_fuzzing_sees_a_reader_that(tmp_path, fault):
    error, words = READERS_THAT_FAIL[fault]

    def read(data, folder):
        raise error

    target = fuzz.TARGETS["unpickler"]._replace(read=read)
    with pytest.raises(AssertionError, match=words):
        fuzz.check(target, b"", tmp_path)
