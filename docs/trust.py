"""Count what runs of the tests proved, for docs/trust.md: ``python docs/trust.py FILE.xml ...``.

A FILE is what ``pytest --junitxml=FILE`` wrote; several are of runs that together are the whole. A
test that failed in one of them has failed, whatever another one says.
The cases that passed are counted by the promises of docs/trust.yaml and written to docs/trust.json,
from which docs/refresh.py makes the page's tables. A test that stands for many cases (moments of a
kill, files of a fuzzer) says how many, by pytest's record_property("cases", n); any other is one.
Nothing is written, and the exit code is 1, where a test of a promise failed, or none of it ran.
"""

import argparse
import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
from common import write_report  # noqa: E402

PROMISES = ROOT / "docs" / "trust.yaml"
OUTPUT = ROOT / "docs" / "trust.json"
PACKAGES = ("numpy", "numba", "llvmlite", "scipy", "snakemake", "pytest")


class Outcome(NamedTuple):
    """What became of a test: "passed", "skipped" or "failed", and of how many cases it is."""

    verdict: str
    cases: int


def outcomes(path):
    """Return {(module or class, name): Outcome} of the tests in a JUnit XML file, and its date."""
    suite = ElementTree.parse(path).getroot().find("testsuite")
    found = {}
    for test in suite.iter("testcase"):
        if test.find("failure") is not None or test.find("error") is not None:
            verdict = "failed"
        else:
            verdict = "passed" if test.find("skipped") is None else "skipped"
        told = [one.get("value") for one in test.iter("property") if one.get("name") == "cases"]
        found[test.get("classname"), test.get("name")] = Outcome(verdict, int(*told or [1]))
    return found, suite.get("timestamp").partition("T")[0]


def is_of(pattern, module, name):
    """Whether a test is one of those that a promise's ``pattern`` stands for."""
    path, _, beginning = pattern.partition("::")
    dotted = path.removesuffix(".py").replace("/", ".")
    return f"{module}.".startswith(f"{dotted}.") and name.startswith(beginning)


def count(promise, found):
    """Return (row of the table, lines that say what is wrong) of an entry of trust.yaml."""
    words, wrong, verdicts = promise["promise"], [], []
    cases = 0
    for pattern in promise["tests"]:
        of_it = {test: outcome for test, outcome in found.items() if is_of(pattern, *test)}
        if not any(outcome.verdict == "passed" for outcome in of_it.values()):
            wrong.append(f"no test of {pattern} passed; it stands for: {words}")
        for (module, name), outcome in of_it.items():
            verdicts.append(outcome.verdict)
            cases += outcome.cases if outcome.verdict == "passed" else 0
            if outcome.verdict == "failed":
                wrong.append(f"{module}::{name} failed; it stands for: {words}")
    tests, skipped = verdicts.count("passed"), verdicts.count("skipped")
    return {"promise": words, "cases": cases, "tests": tests, "skipped": skipped}, wrong


def count_all(paths, promises):
    """Return (what is to be written, lines that say what is wrong) of runs of the tests."""
    found, dates = {}, []
    for path in paths:
        more, date = outcomes(path)
        found |= {test: one for test, one in more.items() if not _has_failed(found, test)}
        dates.append(date)
    counted, wrong = {}, []
    for mark, entries in promises.items():
        pairs = [count(entry, found) for entry in entries]
        counted[mark] = [row for row, _ in pairs]
        wrong += [line for _, lines in pairs for line in lines]
    return {"date": max(dates), "promises": counted}, wrong


def _has_failed(found, test):
    return test in found and found[test].verdict == "failed"


def versions():
    """Return the versions of Python and of what the numbers and the runs hang on (dict)."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages}


def main(words=None):
    """Count; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", metavar="FILE.xml", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args(words)
    promises = yaml.safe_load(PROMISES.read_text(encoding="utf-8"))
    counted, wrong = count_all(arguments.files, promises)
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        write_report({**counted, "versions": versions()}, arguments.output)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
