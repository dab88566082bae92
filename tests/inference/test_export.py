"""The ONNX graph of every model gives the classes of its CPU kernels, on ONNX Runtime."""

import dataclasses
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import toy
from conftest import ROOT, make_dataset
from models import model_of

from msgd.inference.export import build_onnx, write_onnx
from msgd.inference.predict import predict_classes
from msgd.models import CLASSIFIERS, STACKS, load_backend
from msgd.models.interface import n_batches

CASES = [(name, {}) for name in CLASSIFIERS if name not in STACKS] + [
    *((name, {"n_hidden": [20, 10]}) for name in STACKS),
    ("mlp", {"n_hidden": 6, "activation": "sigmoid"}),
    ("mlp", {"n_hidden": [5, 4, 3]}),
    ("lenet", {"activation": "sigmoid"}),
    ("lenet", {"nkerns": [3], "filter_size": 3, "pool_size": 1, "n_hidden": [4, 5]}),
    ("lenet", {"nkerns": [2], "filter_size": 2, "pool_size": 3}),  # 8 x 10: 2 x 1 pixels are left
]


def run_onnx(model, images):
    """Return (label, probabilities) of images (N, D) stored pixels, by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    graph = build_onnx(model).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    pixels = images.reshape(-1, *model.image_shape)
    assert [one.name for one in session.get_inputs()] == ["images"]
    assert [one.name for one in session.get_outputs()] == ["label", "probabilities"]
    return session.run(None, {"images": pixels})


def check_outputs(model, images):
    """Hold the graph against the formulas; return its labels."""
    label, probabilities = run_onnx(model, images)
    assert (label.dtype, probabilities.dtype) == (np.int64, np.float32)
    assert label.shape == (len(images),)
    assert probabilities.shape == (len(images), model.n_classes)
    expected = model.probabilities(images)
    # Rounding of sums of some hundred terms, in floatX and in another order.
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=2e-5)
    second, first = np.sort(expected, axis=1)[:, -2:].T
    is_clear = first - second > 1e-4
    assert is_clear.mean() > 0.9
    np.testing.assert_array_equal(label[is_clear], expected.argmax(axis=1)[is_clear])
    return label


@pytest.mark.parametrize("float_x", ["float32", "float64"])
@pytest.mark.parametrize("pixels", ["uint8", "floatX"])
@pytest.mark.parametrize(("name", "changes"), CASES)
def test_the_graph_is_the_models_formulas(name, changes, float_x, pixels):
    pixels = float_x if pixels == "floatX" else pixels
    dataset = make_dataset(40, 20, 200, (9, 11), 4, pixels)
    settings = toy.settings_of(name, **changes)
    model = model_of(dataset, settings, np.dtype(float_x).type, noise=1.0)
    labels = check_outputs(model, dataset.test_x)
    assert len(set(labels)) > 1, "all of one class: nothing was compared"


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_graph_gives_the_classes_of_the_kernels(name):
    dataset = make_dataset(40, 20, 200, (9, 11), 4)
    model = model_of(dataset, toy.settings_of(name), noise=1.0)
    labels = check_outputs(model, dataset.test_x)
    np.testing.assert_array_equal(labels, predict_classes(model, dataset.test_x))


def test_equal_models_give_equal_bytes(tmp_path):
    model = model_of(make_dataset(shape=(7, 7)), toy.settings_of("lenet"))
    write_onnx(model, tmp_path / "a.onnx")
    write_onnx(dataclasses.replace(model), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


WITHOUT_ONNX = """
import sys
sys.modules["onnx"] = None
from msgd.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_onnx_the_extra_is_named(tmp_path):
    from test_model_file import saved

    saved(tmp_path / "model.npz")
    words = ["export", "--model", tmp_path / "model.npz", "--onnx", tmp_path / "model.onnx"]
    program = [sys.executable, "-c", WITHOUT_ONNX, *map(str, words)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install -c constraints.txt -e '.[onnx]'" in done.stderr
    assert not (tmp_path / "model.onnx").exists()


# Minibatches of each; of the stacks, of fine-tuning.
STEPS = {
    "logistic_regression": 830,
    "logistic_cg": 0,
    "mlp": 2500,
    "lenet": 30,
    "sda": 20_000,
    "dbn": 5000,
}


@pytest.mark.slow
@pytest.mark.parametrize("float_x", [np.float32, np.float64])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_all_test_images_of_mnist_get_the_same_classes(mnist, name, float_x):
    """Of published sizes, after some training; conjugate gradients, which train whole, by chance.

    Several hundred thousand logits are compared; a tie within rounding would be bad luck.
    """
    settings = toy.published_settings(name)
    parameters = toy.random_parameters(mnist, settings, float_x, noise=0.01)
    backend = load_backend(name, "cpu")(mnist, parameters, settings, float_x)
    if STEPS[name]:
        assert STEPS[name] <= 10 * n_batches(len(mnist.train_x), settings["batch_size"])
        backend.train(0, STEPS[name])
    model = model_of(mnist, settings, float_x)
    model = dataclasses.replace(model, parameters=backend.get_parameters())
    labels = check_outputs(model, mnist.test_x)
    np.testing.assert_array_equal(labels, predict_classes(model, mnist.test_x))
    if STEPS[name]:
        assert (labels == mnist.test_y).mean() > 0.8
