"""The counts on docs/trust.md: of tests that there are and that passed, and of no others."""

import json
import re

import pytest
import yaml
from conftest import ROOT

DOCS = ROOT / "docs"
PROMISES = yaml.safe_load((DOCS / "trust.yaml").read_text(encoding="utf-8"))
PATTERNS = [
    pattern for entries in PROMISES.values() for entry in entries for pattern in entry["tests"]
]


@pytest.fixture(scope="module")
def trust():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        import trust

        yield trust


def case(module, name, inside=""):
    return f'<testcase classname="{module}" name="{name}">{inside}</testcase>'


TWELVE = '<properties><property name="cases" value="12"/></properties>'
PASSED = [
    case("tests.faults.test_kills", "test_a_kill[train]", TWELVE),
    case("tests.faults.test_kills.TestMore", "test_a_kill[score]"),
    case("tests.faults.test_kills", "test_another", "<skipped/>"),
    case("tests.faults.test_kills_more", "test_a_kill", TWELVE),
]
FAILED = [
    case("tests.faults.test_kills", "test_a_kill[x]", f"<{what}/>") for what in ("failure", "error")
]
ENTRY = {"promise": "it goes on", "tests": ["tests/faults/test_kills.py::test_a"]}


def write(path, cases):
    suite = f'<testsuite timestamp="2026-01-02T03:04:05">{"".join(cases)}</testsuite>'
    path.write_text(f"<testsuites>{suite}</testsuites>")
    return path


def test_cases_that_passed_are_counted(trust, tmp_path):
    counted, wrong = trust.count_all([write(tmp_path / "a.xml", PASSED)], {"faults": [ENTRY]})
    assert wrong == []
    row = {"promise": "it goes on", "cases": 13, "tests": 2, "skipped": 1}
    assert counted == {"date": "2026-01-02", "promises": {"faults": [row]}}


def test_several_runs_are_counted_together(trust, tmp_path):
    paths = [write(tmp_path / f"{n}.xml", PASSED[n : n + 1]) for n in (0, 1, 1)]
    counted, wrong = trust.count_all(paths, {"faults": [ENTRY]})
    assert wrong == []
    assert counted["promises"]["faults"][0]["cases"] == 13


@pytest.mark.parametrize("failed", FAILED, ids=["failure", "error"])
def test_nothing_is_written_where_a_test_failed(trust, tmp_path, monkeypatch, capsys, failed):
    path = write(tmp_path / "a.xml", [*PASSED, failed])
    monkeypatch.setattr(trust, "PROMISES", tmp_path / "promises.yaml")
    trust.PROMISES.write_text(yaml.safe_dump({"faults": [ENTRY]}))
    output = tmp_path / "trust.json"
    assert trust.main([str(path), "--output", str(output)]) == 1
    assert "test_a_kill[x] failed; it stands for: it goes on" in capsys.readouterr().err
    assert not output.exists()
    write(path, PASSED)
    assert trust.main([str(path), "--output", str(output)]) == 0
    assert json.loads(output.read_text())["promises"]["faults"][0]["cases"] == 13


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_failed_once_has_failed(trust, tmp_path, order):
    """Whichever of the runs is read last."""
    runs = [case("tests.faults.test_kills", "test_a_kill", what) for what in ("<failure/>", "")]
    paths = [write(tmp_path / f"{n}.xml", [runs[n], PASSED[0]]) for n in order]
    _, wrong = trust.count_all(paths, {"faults": [ENTRY]})
    assert wrong == ["tests.faults.test_kills::test_a_kill failed; it stands for: it goes on"]


@pytest.mark.parametrize("cases", [[], PASSED[2:]])
def test_a_promise_without_a_test_that_passed_is_none(trust, tmp_path, cases):
    _, wrong = trust.count_all([write(tmp_path / "a.xml", cases)], {"faults": [ENTRY]})
    assert wrong == [
        "no test of tests/faults/test_kills.py::test_a passed; it stands for: it goes on"
    ]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_promise_names_tests_that_there_are(pattern):
    path, _, beginning = pattern.partition("::")
    files = [ROOT / path] if path.endswith(".py") else [*(ROOT / path).glob("*.py")]
    assert any(re.search(rf"def {beginning or 'test_'}", file.read_text()) for file in files)


def test_the_page_has_a_table_of_every_chapter():
    counted = json.loads((DOCS / "trust.json").read_text())["promises"]
    assert {mark: [row["promise"] for row in rows] for mark, rows in counted.items()} == {
        mark: [entry["promise"] for entry in entries] for mark, entries in PROMISES.items()
    }
    page = (DOCS / "trust.md").read_text(encoding="utf-8")
    for mark, rows in counted.items():
        table = page.partition(f"<!-- {mark}: begin -->")[2].partition(f"<!-- {mark}: end -->")[0]
        for row in rows:
            assert f"| {row['promise']}" in table
            assert row["cases"] >= row["tests"] > 0
