"""The selected model and its card: the right bytes, the right facts, a program that runs."""

import html
import re
import shutil

import numpy as np
import pytest
from conftest import as_triple, make_dataset, save_npz

from msgd.config import complete_experiment, yaml_scalar
from msgd.data.dataset import load_dataset
from msgd.data.unpickle import unpickle
from msgd.errors import UserError
from msgd.evaluation.model_card import write_best_model
from msgd.files import read_json, write_json
from msgd.inference.model_file import load_model_file
from msgd.models import CLASSIFIERS, load_model
from msgd.provenance import describe_run
from msgd.training.snapshots import load_parameters, save_parameters


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of six arrays, large enough for LeNet's two convolutions."""
    root = tmp_path_factory.mktemp("data")
    save_npz(root / "toy.npz", as_triple(make_dataset(40, 20, 24, (18, 18), 3)))
    unpickle(root / "toy.npz", root / "arrays", "float32")
    return root / "arrays"


def make_run(root, data, name, model="mlp", *, seed=1234, n_params=99, errors=169, **test):
    """Write the files of a scored run whose parameters come from ``seed``; return its folder."""
    folder = root / "runs" / "grid" / name
    dataset = load_dataset(data)
    settings = complete_experiment({"model": model, "seed": seed, "batch_size": 10})
    parameters = load_model(model).initial_parameters(dataset, settings, np.float32)
    last = list(parameters)[-2]  # zeros at first: filled, so that images differ in class
    parameters[last] += np.random.RandomState(seed).normal(size=parameters[last].shape)
    save_parameters(folder / "best_parameters.npz", parameters)
    record = describe_run(settings, "auto", "cpu", "float32", 3, dataset)
    write_json(folder / "provenance.json", record)
    training = {
        "model": model,
        "backend": "cpu",
        "floatX": "float32",
        "n_params": n_params,
        "epochs_run": 74,
        "iterations_run": 6141,
        "best_epoch": 73,
        "best_iteration": 6059,
        "validation_errors": errors,
        "validation_examples": 9600,
        "stopped_by": "patience",
        "n_train_batches": 83,
    }
    score = {"test_errors": 165, "test_examples": 9600}
    score |= {"all_test_errors": 171, "all_test_examples": 10000, **test}
    write_json(folder / "training.json", training)
    write_json(folder / "score.json", score)
    return folder


def card(root, data, *runs):
    """Write the card of ``runs`` into ``root``; return its Markdown and its page without tags."""
    write_best_model(runs, data, root)
    markdown = (root / "model_card.md").read_text()
    page = (root / "model_card.html").read_text()
    return markdown, html.unescape(re.sub("<[^>]*>", " ", page))


def test_the_winners_parameters_are_kept(tmp_path, data):
    runs = [
        make_run(tmp_path, data, f"seed={seed}", seed=seed, errors=errors)
        for seed, errors in ((1, 180), (2, 170), (3, 171))
    ]
    card(tmp_path, data, *runs)
    kept = load_model_file(tmp_path / "best_model.npz")
    assert kept.origin["run"] == "grid/seed=2"
    winners = load_parameters(runs[1] / "best_parameters.npz")
    assert [*kept.parameters] == [*winners]
    for name, array in winners.items():
        np.testing.assert_array_equal(kept.parameters[name], array, strict=True)


def test_the_card_has_the_winners_scores_and_no_others(tmp_path, data):
    worse = {"test_errors": 7777, "all_test_errors": 8888}
    lucky = {"test_errors": 1, "test_examples": 9601, "all_test_errors": 2}
    runs = [
        make_run(tmp_path, data, "worse", errors=500, **worse),
        make_run(tmp_path, data, "lucky", errors=170, **lucky),
        make_run(tmp_path, data, "winner"),
    ]
    for text in card(tmp_path, data, *runs):
        assert "Model card: grid/winner" in text
        assert "among 3 runs" in text
        assert "1.760 % (169 of 9,600)" in text
        assert "1.719 % (165 of 9,600)" in text
        assert "1.710 % (171 of 10,000)" in text
        for other in ("7,777", "8,888", "9,601", "(2 of", "worse", "lucky"):
            assert other not in text


def test_the_card_says_what_how_on_what_and_where_from(tmp_path, data):
    run = make_run(tmp_path, data, "default", n_params=1234567)
    record = read_json(run / "provenance.json")
    dataset = read_json(data / "dataset.json")
    facts = [
        *("the only run", "Multilayer perceptron", "1,234,567 numbers", "float32"),
        *("74 run of at most 1000", "patience", "6,141 run, the best after 6,059"),
        *("18 x 18 pixels, 3 classes", "40 train, 20 valid, 24 test", "not MNIST"),
        *(record["code"]["sha256"], record["code"]["version"], str(record["code"]["commit"])),
        *(record["hardware"]["processor"], record["python"], f"numpy {np.__version__}"),
        *("auto", "on cpu", "3 threads", "324 x 500"),
        *dataset["sha256"].values(),
    ]
    markdown, page = card(tmp_path, data, run)
    for text in (markdown, page):
        assert [fact for fact in facts if fact not in text] == []
    for key, value in record["settings"].items():
        assert f"- {key}: `{yaml_scalar(value)}`\n" in markdown


def test_what_there_is_one_of_is_not_in_the_plural(tmp_path, data, caplog):
    run = make_run(tmp_path, data, "default", "sda")
    record = read_json(run / "provenance.json")
    one = {"threads": 1, "hardware": {**record["hardware"], "cores": 1}}
    once = {"settings": {**record["settings"], "pretraining_epochs": 1}}
    write_json(run / "provenance.json", {**record, **one, **once})
    with caplog.at_level("INFO"):
        for text in card(tmp_path, data, run):
            assert re.search(r"on cpu; 1 thread\s", text)
            assert ", 1 core, " in text
            assert "each hidden layer, 1 epoch without labels" in text
    assert "selected grid/default of 1 run: 1.760 %" in caplog.text


@pytest.mark.parametrize("model", CLASSIFIERS)
def test_the_program_on_the_card_runs(tmp_path, data, model, monkeypatch, capsys):
    run = make_run(tmp_path, data, "default", model)
    markdown, page = card(tmp_path, data, run)
    (program,) = re.findall("```python\n(.*?)```", markdown, re.DOTALL)
    assert program in page
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(program, names)
    printed = capsys.readouterr().out
    with np.load(run / "best_parameters.npz") as arrays:
        table = re.findall(r"^\| (\w+) +\| ([\dx ]+?) +\| (\w+) +\|$", markdown, re.MULTILINE)
        assert table == [
            (name, " x ".join(map(str, arrays[name].shape)), str(arrays[name].dtype))
            for name in arrays.files
        ]
        settings = read_json(run / "provenance.json")["settings"]
        expected = load_model(model).probabilities(
            dict(arrays), np.zeros((1, 324)), settings, (18, 18)
        )
    np.testing.assert_array_equal(names["probabilities"], expected)
    assert printed == f"[{expected.argmax()}]\n"


def test_a_tie_is_reported(tmp_path, data):
    runs = [make_run(tmp_path, data, name, n_params=n) for name, n in (("big", 9), ("small", 8))]
    markdown, _ = card(tmp_path, data, *runs)
    assert "# Model card: grid/small" in markdown
    assert "2 runs have this validation error" in markdown


def test_a_run_of_other_data_is_refused(tmp_path, data):
    runs = [make_run(tmp_path, data, name) for name in ("a", "b")]
    record = read_json(runs[1] / "provenance.json")
    record["data"]["sha256"]["valid_y"] = "0" * 64
    write_json(runs[1] / "provenance.json", record)
    with pytest.raises(UserError, match=r"grid/b was not trained on the data in"):
        write_best_model(runs, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_cannot_break_the_page(tmp_path, data):
    folder = shutil.copytree(data, tmp_path / "data")
    summary = read_json(data / "dataset.json")
    write_json(folder / "dataset.json", {**summary, "source": "<b>my</b> & yours.npz"})
    run = make_run(tmp_path, data, "default")
    write_best_model([run], folder, tmp_path)
    page = (tmp_path / "model_card.html").read_text()
    assert "&lt;b&gt;my&lt;/b&gt; &amp; yours.npz" in page
