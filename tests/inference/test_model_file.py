"""Model files: what is read is what was written, and what is no model file is refused."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import toy
from conftest import make_dataset
from models import model_of

from msgd.errors import UserError
from msgd.inference.model_file import ground_and_ink, load_model_file, save_model
from msgd.models import CLASSIFIERS
from msgd.training.snapshots import load_arrays, save_parameters


def saved(path, name="mlp", float_x=np.float32, pixels="uint8"):
    """Write the model file of a toy; return (ModelFile expected, path)."""
    dataset = make_dataset(shape=(7, 7), pixels=pixels)
    settings = toy.settings_of(name, batch_size=10)
    model = model_of(dataset, settings, float_x)
    record = {"data": {"sha256": {}}, "code": {"commit": "c0ffee"}}
    run = SimpleNamespace(dataset=dataset, settings=settings, float_x=float_x, record=record)
    save_model(path, run, model.parameters, "toy/default")
    origin = {"run": "toy/default", **record}
    return dataclasses.replace(model, origin=origin)


@pytest.mark.parametrize(("float_x", "pixels"), [("float32", "uint8"), ("float64", "float64")])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_what_was_written_is_read(tmp_path, name, float_x, pixels):
    expected = saved(tmp_path / "a.npz", name, np.dtype(float_x).type, pixels)
    found = load_model_file(tmp_path / "a.npz")
    assert [*found.parameters] == [*expected.parameters]
    for key, array in expected.parameters.items():
        np.testing.assert_array_equal(found.parameters[key], array, strict=True)
    for field in dataclasses.fields(found)[1:]:
        assert getattr(found, field.name) == getattr(expected, field.name)
    saved(tmp_path / "b.npz", name, np.dtype(float_x).type, pixels)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_numpy_alone_reads_it(tmp_path, name):
    saved(tmp_path / "a.npz", name)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        about = json.loads(str(file["description"]))
    assert about["format"] == "msgd model"
    assert about["model"] == about["settings"]["model"] == name
    assert (about["image_shape"], about["n_classes"]) == ([7, 7], 3)
    assert about["pixels"]["scale"] == 1 / 256


def edited(path, **changes):
    arrays = load_arrays(path)
    about = json.loads(str(arrays["description"])) | changes
    save_parameters(path, arrays | {"description": np.array(json.dumps(about))})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "of version 2; this msgd reads 1"),
        ({"format": "other"}, "it is no model file of msgd"),
        ({"settings": {"model": "mlp", "n_hiden": 3}}, "n_hiden is not a known key"),
        ({"settings": {"model": "mlp", "n_hidden": 3}}, "does not fit its description"),
        ({"floatX": "float64"}, "does not fit its description"),
        ({"floatX": "int8"}, "is damaged: its description"),
        ({"image_shape": [7]}, "is damaged: its description"),
        ({"pixels": {}}, "is damaged: its description"),
    ],
)
def test_a_description_that_is_wrong_is_refused(tmp_path, changes, message):
    saved(tmp_path / "a.npz")
    edited(tmp_path / "a.npz", **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_model_file(tmp_path / "a.npz")
    assert "\n" not in str(caught.value)


def test_what_is_no_model_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.npz is missing; snakemake makes"):
        load_model_file(tmp_path / "a.npz")
    save_parameters(tmp_path / "a.npz", {"weights": np.zeros((49, 3), np.float32)})
    with pytest.raises(UserError, match="does not say what model it holds; msgd select writes"):
        load_model_file(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"is not a whole \.npz file"):
        load_model_file(tmp_path / "a.npz")


def test_the_ground_is_what_the_edges_show():
    x = np.zeros((5, 16), np.uint8)
    x[:, 5] = 200
    dataset = SimpleNamespace(train_x=x, image_shape=(4, 4))
    assert ground_and_ink(dataset) == {"background": 0, "ink": 200}
    dataset.train_x = 1 - x / 200
    assert ground_and_ink(dataset) == {"background": 1.0, "ink": 0.0}
