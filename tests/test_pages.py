"""What the pages in docs/ say of configuration, commands and files is what the program does.

Commands in their code blocks are run by CI (.ci/commands.yaml); code in the tutorial is kept up to
date by docs/refresh.py.
"""

import argparse
import re
import shlex
import subprocess

import pandas as pd
import pytest
import toy
import yaml
from conftest import ROOT, as_triple, command, environment, make_dataset, save_npz

from msgd.cli import _parser, main
from msgd.config import complete_config, expand_grid, hyperparameter_words
from msgd.evaluation.tables import COLUMNS, PUBLISHED_COLUMNS
from msgd.files import read_json

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def blocks(path, language):
    """Return the code blocks of a page in ``language``."""
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def tables(path):
    """Return a page's tables below each heading: dict of heading -> list of rows of cells."""
    found, heading = {}, None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ").replace("`", "")
        elif line.startswith("|") and not line.startswith("| ---"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            found.setdefault(heading, []).append(cells)
    return {heading: rows[1:] for heading, rows in found.items()}


def names(rows):
    """Return what stands between backquotes in the first column, in order."""
    return [name for row in rows for name in re.findall("`([^`]+)`", row[0])]


def configurations():
    for page in PAGES:
        for block in blocks(page, "yaml"):
            found = yaml.safe_load(block)
            if "experiments" in found:
                yield pytest.param(found, id=page.stem)


@pytest.mark.parametrize("configuration", [*configurations()])
def test_a_configuration_on_a_page_is_allowed(configuration):
    assert complete_config(configuration)


def test_pages_show_configurations():
    assert len([*configurations()]) > 2


def test_every_command_is_in_the_table_of_commands():
    (action,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    helps = [[f"`{choice.dest}`", choice.help] for choice in action._choices_actions]
    assert tables(DOCS / "commands.md")["Commands and exit codes"] == helps


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a toy run that was trained and scored."""
    folder = tmp_path_factory.mktemp("trained")
    save_npz(folder / "toy.npz", as_triple(make_dataset(100, 60, 40, (4, 4), 4)))
    data, run = folder / "data", folder / "runs" / "toy" / "default"
    assert main(["unpickle", str(folder / "toy.npz"), "--output", str(data)]) == 0
    words = toy.words_of("logistic_regression", batch_size=20, improvement_test="mcnemar")
    where = ["--data", str(data), "--run", str(run), "--backend", "cpu"]
    assert main(["train", *where, *words]) == 0
    assert main(["score", *where]) == 0
    return data, run


def test_the_columns_of_tables_are_on_the_page_of_formats(trained):
    told, (_, run) = tables(DOCS / "file-formats.md"), trained
    for file in ("history.csv", "timings.csv"):
        assert names(told[file]) == [*pd.read_csv(run / file)]
    assert names(told["test_scores.csv"]) == [*COLUMNS]
    assert names(told["published.csv"]) == [*PUBLISHED_COLUMNS]


@pytest.mark.parametrize("file", ["training.json", "provenance.json", "score.json"])
def test_the_keys_of_a_run_are_on_the_page_of_formats(trained, file):
    assert sorted(names(tables(DOCS / "file-formats.md")[file])) == sorted(
        read_json(trained[1] / file)
    )


def test_the_keys_of_a_data_set_are_on_the_page_of_formats(trained):
    told = names(tables(DOCS / "file-formats.md")["dataset.json"])
    assert sorted(told) == sorted(read_json(trained[0] / "dataset.json"))


@pytest.mark.slow
def test_the_errors_of_the_tutorials_grid_are_what_comes_out(mnist_folder, tmp_path):
    page = DOCS / "tutorial.md"
    (configuration,) = (yaml.safe_load(block) for block in blocks(page, "yaml"))
    (grid,) = configuration["experiments"].values()
    told = re.search(r"here from ([^.]*\..*?)\.\n", page.read_text(encoding="utf-8"), re.DOTALL)[1]
    found = []
    for run in expand_grid(complete_config(configuration)["experiments"]["batches"]).values():
        folder = tmp_path / str(run["batch_size"])
        where = ["--data", str(mnist_folder), "--run", str(folder), "--backend", "cpu"]
        assert main(["train", *where, *hyperparameter_words(run)]) == 0
        outcome = read_json(folder / "training.json")
        share = outcome["validation_errors"] / outcome["validation_examples"]
        found.append(f"{100 * share:.1f}")
    assert re.findall(r"([\d.]+) %", told) == found
    assert len(found) == len(grid["batch_size"])


@pytest.mark.slow
def test_the_workflow_on_the_page_runs_with_ours_as_its_module(tmp_path):
    page = DOCS / "module.md"
    (snakefile,), (configuration,) = blocks(page, "python"), blocks(page, "yaml")
    (line,) = re.findall(r"^    (snakemake .*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    (tmp_path / "Snakefile").write_text(snakefile.replace("CLONE", str(ROOT)))
    (tmp_path / "config.yaml").write_text(configuration)
    save_npz(tmp_path / "data.npz", as_triple(make_dataset(100, 60, 40, (4, 4), 4)))
    words = shlex.split(line.replace("CLONE", str(ROOT)))
    done = subprocess.run(
        command(*words),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    scores = pd.read_csv(tmp_path / "results" / "test_scores.csv")
    (expected,) = scores[scores["selected"]]["test_error_percent"]
    assert float((tmp_path / "conclusion.txt").read_text()) == expected


@pytest.fixture(scope="module")
def rule_graph():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        import rule_graph

        yield rule_graph


def test_the_picture_of_the_rules_is_todays(rule_graph):
    """It has the rules that a run of three models needs, and those of grids and keys not."""
    needs = rule_graph.rules_and_needs()
    assert needs["plot_samples"] >= {"sample"}
    assert needs["train"] == {"unpickle"}
    told = (DOCS / "images" / "rules.svg").read_text(encoding="utf-8")
    assert told == rule_graph.draw(needs)


def test_arrows_of_the_picture_lead_to_the_right_and_only_where_no_others_do(rule_graph):
    needs = {"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": {"a", "c", "b"}, "e": {"a"}}
    found = rule_graph.without_detours(needs)
    assert found == {"a": set(), "b": {"a"}, "c": {"b"}, "d": {"c"}, "e": {"a"}}
    assert rule_graph.in_columns(found) == [["a"], ["b", "e"], ["c"], ["d"]]
    picture = rule_graph.draw(needs)
    assert picture.count("<rect") == picture.count("<text") == len(needs)
    ends = re.findall(r'd="M(\d+) \S+C.* (\d+) \S+" marker-end', picture)
    assert len(ends) == 4
    assert all(int(start) < int(end) for start, end in ends)
