"""msgd predict, as a person calls it: table, JSON, picture, error lines, exit codes."""

import dataclasses
import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import toy
from conftest import make_dataset, msgd, msgd_unread
from PIL import Image
from test_pictures import PICTURES

from msgd.inference.model_file import load_model_file, save_model
from msgd.inference.predict import as_table, predict_pictures
from msgd.models import CLASSIFIERS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Model files of toys of 28 x 28 pixels and three classes, and pictures, good and bad."""
    root = tmp_path_factory.mktemp("predict")
    dataset = dataclasses.replace(make_dataset(shape=(28, 28)), is_mnist=True)
    for name in CLASSIFIERS:
        settings = toy.settings_of(name, batch_size=10)
        parameters = toy.random_parameters(dataset, settings, np.float32)
        record = {"data": {}, "code": {}}
        run = SimpleNamespace(dataset=dataset, settings=settings, float_x=np.float32, record=record)
        save_model(root / f"{name}.npz", run, parameters, f"{name}/default")
    for name, picture in (("a.png", "a page"), ("ü b.jpg", "uneven light and noise")):
        pixels = np.rint(np.clip(PICTURES[picture], 0, 1) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / name)
    Image.new("L", (60, 60), 128).save(root / "blank.png")
    (root / "text.png").write_text("no picture")
    return root


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_kernels_class_has_the_largest_probability(folder, name):
    model = load_model_file(folder / f"{name}.npz")
    predictions, faults = predict_pictures(model, [folder / "a.png", folder / "ü b.jpg"])
    assert faults == []
    for one in predictions:
        assert one.predicted == one.probabilities.argmax()
        assert one.probabilities.sum() == pytest.approx(1)
        pixels = one.seen.reshape(1, -1)
        np.testing.assert_array_equal(model.probabilities(pixels)[0], one.probabilities)


def test_json_goes_to_standard_output_alone(folder):
    files = [str(folder / "a.png"), str(folder / "ü b.jpg")]
    done = msgd("predict", "--json", "--model", folder / "mlp.npz", *files, PYTHONUTF8="1")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)
    assert [row["file"] for row in rows] == files
    assert [set(row) for row in rows] == [{"file", "class", "probabilities"}] * 2
    assert [len(row["probabilities"]) for row in rows] == [3, 3]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_nobody_needs_to_read_to_its_end(folder, options):
    """As `| head` does not: what is said is the status alone."""
    words = ["predict", *options, "--model", folder / "logistic_regression.npz"]
    done = msgd_unread(*words, folder / "a.png", folder / "blank.png")
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_bad_pictures_are_named_and_the_others_classified(folder, tmp_path):
    names = ("blank.png", "a.png", "text.png", "absent.png")
    seen = tmp_path / "new" / "seen.png"
    words = ("--model", folder / "lenet.npz", "--show", seen)
    done = msgd("predict", *words, *(folder / name for name in names))
    assert done.returncode == 1
    assert [line.split(": ")[2:3] for line in done.stderr.splitlines()] == [
        [str(folder / name)] for name in ("blank.png", "text.png", "absent.png")
    ]
    header, _, row = done.stdout.splitlines()
    assert header.split() == ["file", "class", "P(0)", "P(1)", "P(2)"]
    assert row.split()[0] == str(folder / "a.png")
    with Image.open(seen) as image:
        assert len(image.convert("L").getcolors()) > 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "absent.npz", "a.png"], "absent.npz is missing; snakemake makes"),
        (["--model", "a.png", "a.png"], "a.png is not a whole .npz file"),
        (["--model", "mlp.npz", "--show", "seen.jpg", "a.png"], "--show is"),
        (["--model", "mlp.npz", "blank.png"], "blank.png: it is blank"),
    ],
)
def test_errors_are_one_line(folder, words, message):
    done = msgd("predict", *(w if w.startswith("--") else folder / w for w in words))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("msgd predict: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "seen.jpg").exists()


def test_of_many_classes_the_likeliest_are_shown(folder):
    model = load_model_file(folder / "logistic_regression.npz")
    (one,), _ = predict_pictures(model, [folder / "a.png"])
    many = one._replace(predicted=19, probabilities=np.arange(20) / 190)
    table = as_table([many])
    assert "P(19) = 10.0 %, P(18) = 9.5 %" in table
    assert "P(14)" not in table
