"""Score table, selection, comparison with the published rows."""

import re

import pandas as pd
import pytest

from msgd.config import complete_experiment
from msgd.evaluation import tables
from msgd.evaluation.selection import best_run
from msgd.files import write_json
from msgd.models import MODELS

PUBLISHED_SETTINGS = {
    "model": "logistic_regression",
    "n_epochs": 1000,
    **tables.published_rows()[0]["settings"],
}


def make_run(root, experiment, settings=PUBLISHED_SETTINGS, *, is_mnist=True, **changes):
    """Write the JSON files of a scored run; return its folder."""
    folder = root / experiment / "default"
    training = {
        "model": settings["model"],
        "backend": "cpu",
        "floatX": "float32",
        "n_params": 7850,
        "epochs_run": 74,
        "iterations_run": 6141,
        "best_epoch": 73,
        "best_iteration": 6059,
        "validation_errors": 720,
        "validation_examples": 9600,
        "stopped_by": "patience",
        "n_train_batches": 83,
        **({"cost": 0.0} if "cost" in changes else {}),  # of what learns without labels
    }
    score = {
        "test_errors": 719,
        "test_examples": 9600,
        "all_test_errors": 775,
        "all_test_examples": 10000,
    }
    write_json(folder / "training.json", {k: changes.get(k, v) for k, v in training.items()})
    write_json(folder / "score.json", {k: changes.get(k, v) for k, v in score.items()})
    data = {"is_mnist": is_mnist, "sha256": {}}
    write_json(folder / "provenance.json", {"settings": settings, "data": data})
    return folder


def test_the_table_has_its_columns_in_order(tmp_path):
    tables.write_score_table([make_run(tmp_path, "lr")], tmp_path)
    frame = pd.read_csv(tmp_path / "test_scores.csv")
    assert list(frame.columns) == [
        "experiment",
        "model",
        "run",
        "backend",
        "floatX",
        "n_params",
        "epochs_run",
        "iterations_run",
        "best_epoch",
        "best_iteration",
        "validation_errors",
        "validation_examples",
        "validation_error_percent",
        "test_errors",
        "test_examples",
        "test_error_percent",
        "selected",
    ]
    row = frame.iloc[0]
    assert (row["experiment"], row["run"], row["selected"]) == ("lr", "default", True)
    assert row["validation_error_percent"] == 7.5
    assert row["test_error_percent"] == pytest.approx(7.489583, abs=1e-6)
    markdown = (tmp_path / "test_scores.md").read_text()
    assert "all_test_errors" in markdown
    assert "775" in markdown
    assert "<table" in (tmp_path / "test_scores.html").read_text()


def test_the_page_says_of_every_run_whether_it_was_selected(tmp_path):
    folders = [make_run(tmp_path, "lr"), make_run(tmp_path, "better", validation_errors=700)]
    tables.write_score_table(folders, tmp_path)
    page = (tmp_path / "test_scores.html").read_text()
    rows = re.findall(r"<tr( class=\"marked\")?><td>(.*?)</td>(.*)</tr>", page)
    assert [(bool(mark), name) for mark, name, _ in rows] == [(False, "lr"), (True, "better")]
    assert ["<td>not selected</td>" in cells for *_, cells in rows] == [True, False]
    assert "<td>selected</td>" in rows[1][2]
    lines = (tmp_path / "test_scores.md").read_text().splitlines()
    assert "| no " in lines[-2]
    assert "| yes " in lines[-1]
    for file in ("test_scores.md", "test_scores.html"):
        assert "The other rows were not selected" in (tmp_path / file).read_text()


def test_the_page_can_fold_a_long_name_between_its_values(tmp_path):
    folder = make_run(tmp_path, "lr")
    named = folder.rename(folder.with_name("learning_rate=0.1+l2=1e+20+seed=1"))
    tables.write_score_table([named], tmp_path)
    page = (tmp_path / "test_scores.html").read_text()
    assert "<td>learning_rate=0.1, l2=1e+20, seed=1</td>" in page


def test_the_best_run_is_the_one_that_is_selected(tmp_path):
    errors = {"a": 720, "b": 700, "c": 700, "d": 800}
    folders = [make_run(tmp_path, name, validation_errors=n) for name, n in errors.items()]
    for folder in folders:
        (folder / "score.json").unlink()  # which has no part in it
    assert best_run(folders) == folders[1]
    assert best_run(folders[2:]) == folders[2]
    assert best_run(folders[3:]) == folders[3]


def selected(tmp_path, *runs):
    folders = [make_run(tmp_path, f"run{i}", **changes) for i, changes in enumerate(runs)]
    rows = tables.score_rows(folders)
    (index,) = [i for i, row in enumerate(rows) if row["selected"]]
    return index


def test_the_lowest_validation_error_is_selected_whatever_the_test_error(tmp_path):
    better = {"validation_errors": 719, "test_errors": 9000}
    assert selected(tmp_path, {}, better, {"test_errors": 1}) == 1


def test_rates_are_compared_not_counts(tmp_path):
    wider = {"validation_errors": 749, "validation_examples": 10000}
    assert selected(tmp_path, {}, wider) == 1


def test_ties_go_to_fewer_parameters_then_to_the_first(tmp_path):
    equal = {"validation_errors": 750, "validation_examples": 10000}
    assert selected(tmp_path, {}, equal | {"n_params": 10}, equal | {"n_params": 10}) == 1
    assert selected(tmp_path, {}, {}) == 0


def test_the_published_row_is_compared_to_its_decimals(tmp_path):
    rows = tables.compare_with_published([make_run(tmp_path, "lr")])
    assert [row["equal"] for row in rows] == ["yes"] * 4
    assert rows[0]["published"] == rows[0]["reproduced"] == "7.500000"
    rows = tables.compare_with_published([make_run(tmp_path, "lr", validation_errors=721)])
    assert [row["equal"] for row in rows] == ["no: 1 example more", "yes", "yes", "yes"]
    assert rows[0]["reproduced"] == "7.510417"


def published_mlp(tmp_path, n_epochs=1000, **changes):
    (row,) = (row for row in tables.published_rows() if row["model"] == "mlp")
    settings = {"model": "mlp", "n_epochs": n_epochs, **row["settings"]}
    values = {"validation_examples": 10000, "test_examples": 10000, "test_errors": 165}
    values |= {"best_epoch": 820, "stopped_by": "n_epochs", "epochs_run": n_epochs}
    folder = make_run(tmp_path, "mlp", settings, **{**values, **changes})
    return tables.compare_with_published([folder])


def test_a_tolerance_is_named_where_it_is_used(tmp_path):
    rows = published_mlp(tmp_path, validation_errors=168)
    message = ["within 0.05: 1 example less", "within 20: 8 epochs less", "yes"]
    assert [row["equal"] for row in rows] == message
    assert {row["epochs"] for row in rows} == {"in full"}
    rows = published_mlp(tmp_path, validation_errors=174, best_epoch=849)
    message = ["within 0.05: 5 examples more", "no: 21 epochs more", "yes"]
    assert [row["equal"] for row in rows] == message
    rows = published_mlp(tmp_path, validation_errors=175)
    assert rows[0]["equal"] == "no: 6 examples more"


def test_a_run_of_fewer_epochs_is_said_to_be_cut(tmp_path):
    rows = published_mlp(tmp_path, n_epochs=12)
    assert [row["equal"] for row in rows] == ["not compared"] * 3
    assert rows[0]["epochs"] == "12, cut from 1000"
    # A cap that the run did not reach cuts nothing.
    rows = published_mlp(tmp_path, n_epochs=900, stopped_by="patience", validation_errors=169)
    assert rows[0]["equal"] == "yes"


def published_sda(tmp_path, n_pretraining, **changes):
    (row,) = (row for row in tables.published_rows() if row["model"] == "sda")
    settings = {"model": "sda", "pretraining_epochs": n_pretraining, **row["settings"]}
    values = {"validation_examples": 10000, "test_examples": 10000, "validation_errors": 139}
    values |= {"test_errors": 131, "stopped_by": "patience", "epochs_run": 36}
    settings["n_epochs"] = changes.pop("n_epochs", 1000)
    folder = make_run(tmp_path, "sda", settings, **{**values, **changes})
    return tables.compare_with_published([folder])


def test_a_stack_with_less_pretraining_is_said_to_be_cut(tmp_path):
    rows = published_sda(tmp_path, 15)
    assert [row["equal"] for row in rows] == ["yes", "yes"]
    assert rows[0]["epochs"] == "in full"
    rows = published_sda(tmp_path, 2)
    assert [row["equal"] for row in rows] == ["not compared"] * 2
    assert rows[0]["epochs"] == "in full; pre-training 2, cut from 15"
    rows = published_sda(tmp_path, 0, n_epochs=5, stopped_by="n_epochs", epochs_run=5)
    assert rows[0]["epochs"] == "5, cut from 1000; pre-training 0, cut from 15"


def test_what_learns_without_labels_is_compared_by_its_cost(tmp_path):
    """Beside runs that are scored, in the order in which they are given."""
    (row,) = (row for row in tables.published_rows() if row["model"] == "rbm")
    settings = {"model": "rbm", "n_epochs": 15, **row["settings"]}
    folder = make_run(tmp_path, "rbm", settings, cost=-62.512, stopped_by="n_epochs")
    (folder / "score.json").unlink()
    rows = tables.compare_with_published([folder, make_run(tmp_path, "lr")])
    assert [row["experiment"] for row in rows] == ["rbm", *["lr"] * 4]
    assert (rows[0]["quantity"], rows[0]["reproduced"]) == ("cost", "-62.51")
    assert rows[0]["equal"] == "within 2.5: 0.25 more"
    folder = make_run(tmp_path, "far", settings, cost=-70.0, stopped_by="n_epochs")
    assert tables.compare_with_published([folder])[0]["equal"] == "no: 7.24 less"


def test_published_settings_are_the_models_defaults():
    for row in tables.published_rows():
        if row["model"] not in MODELS:
            continue
        defaults = complete_experiment({"model": row["model"]})
        caps = {key: row[key] for key in ("n_epochs", "pretraining_epochs") if key in row}
        published = {**row["settings"], **caps}
        assert {key: defaults[key] for key in published} == published


@pytest.mark.parametrize(
    "changes",
    [{"is_mnist": False}, {"settings": {**PUBLISHED_SETTINGS, "learning_rate": 0.1}}],
)
def test_other_data_or_settings_have_no_published_row(tmp_path, changes):
    folder = make_run(tmp_path, "lr", **changes)
    assert tables.compare_with_published([folder]) == []
    tables.write_published_table([folder], tmp_path)
    assert "nothing to compare" in (tmp_path / "published.md").read_text()
    assert (tmp_path / "published.csv").read_text().startswith("experiment,run,epochs,quantity")
