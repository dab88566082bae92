"""Both twins of the multilayer perceptron: the contract, and what is its own."""

import dataclasses
import hashlib
import itertools

import numpy as np
import oracle
import pytest
import toy
from conftest import make_dataset
from contract import Adapter, SgdContract, Sizes
from numba.cuda import device_array

from msgd.models import DEVICES
from msgd.models.mlp import cuda, cuda_plain, deferred, model
from msgd.models.mlp.first_layer import BLOCK, PANEL, get_first_layer, new_first_layer

# (batch, image shape, classes, n_hidden): on the CPU around blocks of units, for the plain CUDA
# kernels around the simulator's blocks of 4 x 8 threads, for the fast ones around blocks of 4
# units, warps of words of 4 pixels, and tiles of 20 images.
CPU_SIZES = [
    (1, (1, 3), 2, 1),
    (20, (4, 4), 3, BLOCK - 1),
    (7, (3, 5), 10, BLOCK),
    (17, (4, 4), 4, BLOCK + 1),
    (6, (4, 4), 16, PANEL),
    (4, (4, 4), 17, PANEL + 1),
    (20, (28, 28), 10, 500),
    (5, (3, 3), 3, [7, 70, 3]),
    (33, (3, 3), BLOCK + 2, [130, 65]),
]
CUDA_SIZES = [
    (1, (1, 3), 2, 1),
    (8, (1, 6), 3, 4),
    (9, (3, 3), 5, 5),
    (3, (2, 2), 3, [3, 2, 4]),
]
FAST_CUDA_SIZES = [
    (1, (1, 4), 2, 1),
    (8, (2, 4), 3, 4),
    (5, (4, 4), 3, 6),
    (20, (4, 6), 10, 5),
    (21, (2, 2), 3, 3),
    (45, (2, 4), 33, 4),
    (4, (4, 33), 3, 4),
]
FAST_CHANGES = [
    {},
    {"activation": "sigmoid", "l2": 0.0},
    {"l1": 0.002, "l2": 0.01},
]
CHANGES = [
    {},
    {"activation": "sigmoid", "l2": 0.0},
    {"l1": 0.002, "l2": 0.01, "lp": 0.003, "p": 1.5},
]


def steps(sizes, all_changes=CHANGES):
    """Return each of the sizes with each of the changes."""
    return [
        Sizes(*size, {"n_hidden": n_hidden, **changes})
        for changes in all_changes
        for *size, n_hidden in sizes
    ]


def logits(parameters, images, settings):
    x = images.reshape(len(images), -1)
    return oracle.mlp_forward(parameters, x, settings["activation"])[0][-1]


def cost(parameters, images, y, settings):
    x, penalties = images.reshape(len(images), -1), oracle.penalties_of(settings)
    return oracle.mlp_cost(parameters, x, y, settings["activation"], **penalties)


def gradients(parameters, images, y, settings):
    x, penalties = images.reshape(len(images), -1), oracle.penalties_of(settings)
    return oracle.mlp_gradients(parameters, x, y, settings["activation"], **penalties)


class TestContract(SgdContract):
    adapter = Adapter(
        name="mlp",
        logits=logits,
        cost=cost,
        gradients=gradients,
        sizes={"cpu": steps(CPU_SIZES), "cuda": steps(CUDA_SIZES)},
        predictions={"cuda": [(33, 5, {"n_hidden": 5}), (33, 5, {"n_hidden": [6, 3]})]},
        tolerances={"float32": 5e-6, "float64": 1e-12},
        noise=0.3,
        smooth=({"n_hidden": [4, 6]}, {"n_hidden": [4, 6], "activation": "sigmoid"}),
        copied=((3, {"n_hidden": [4, 70]}), (3, {"n_hidden": [5, BLOCK]})),
        threads=tuple((100, {"n_hidden": [130, 70], "l1": l1}) for l1 in (0.0, 0.001)),
        published_batch={"cuda": 2},  # for its price
        slow_at_published=("cuda",),
    )

    def cut_groups(self, monkeypatch):
        monkeypatch.setattr(deferred, "GROUP_IMAGES", 8)  # groups of two minibatches, and one alone


needs_warps = pytest.mark.skipif(not cuda.HAS_WARPS, reason="the fast kernels need warps")


@needs_warps
class TestFastCuda(SgdContract):
    """The same of the kernels that keep parameters in registers."""

    adapter = dataclasses.replace(
        TestContract.adapter,
        sizes={"cuda": steps(FAST_CUDA_SIZES, FAST_CHANGES)},
        predictions={"cuda": [(33, 5, {"n_hidden": 5}), (9, 3, {"n_hidden": 4})]},
        kinds=(("float32", "uint8"),),
        tolerances={"float32": 5e-6},
        copied=((3, {}), (4, {"n_hidden": 8})),
        devices=("cuda",),
        toy_shape=(6, 6),
        layers={"n_hidden": 6},
    )
    # What has no CUDA in it, or nothing of these kernels.
    test_oracle_gradients_agree_with_finite_differences = None
    test_model_probabilities_agree_with_the_oracle = None
    test_bits_do_not_depend_on_the_number_of_threads = None
    test_long_spans_in_pieces_give_the_same_bits = None
    test_a_step_at_the_published_sizes = None  # TestContract takes these kernels for it

    def check_a_step(self, device, sizes, *arguments):
        """As the contract, and see that the fast kernels were taken."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda_plain.Backend, "launch_train", None)
            return super().check_a_step(device, sizes, *arguments)


@needs_warps
def test_the_fast_cuda_kernels_follow_the_plain_ones():
    """Over an epoch's edge, with a unit of a block and places of a tile that stay empty."""
    settings = toy.settings_of("mlp", batch_size=21, n_hidden=7, activation="sigmoid", l2=0.01)
    dataset = make_dataset(70, 45, 10, (4, 6), 5)
    parameters = toy.random_parameters(dataset, settings, np.float32, noise=0.5)
    results = []
    for backend_class in (cuda.Backend, cuda_plain.Backend):
        backend = backend_class(dataset, parameters, settings, np.float32)
        costs = np.concatenate([backend.train(0, 2), backend.train(2, 5)])
        logits = device_array((45, 5), np.float32)
        backend.launch_logits(*backend.shared.splits["valid"][:1], logits)
        results.append([costs, logits.copy_to_host(), *backend.get_parameters().values()])
    for fast, plain in zip(*results, strict=True):
        assert np.linalg.norm(fast - plain) <= 2e-6 * np.linalg.norm(plain)


PLAIN = {
    "more than one hidden layer": ({"n_hidden": [4, 4]}, np.float32, "uint8", (4, 4), 3),
    "floatX is not float32": ({}, np.float64, "uint8", (4, 4), 3),
    "pixels are not stored as bytes": ({}, np.float32, "float32", (4, 4), 3),
    "images have 9 pixels; allowed: multiples of 4": ({}, np.float32, "uint8", (3, 3), 3),
    "images have 1028 pixels; allowed": (
        {},
        np.float32,
        "uint8",
        (4, 257),
        3,
    ),
    "lp is not 0": ({"lp": 0.1}, np.float32, "uint8", (4, 4), 3),
    "there are 65 classes; allowed: up to 64": ({}, np.float32, "uint8", (4, 4), 65),
    "minibatches of 1500 images take": ({"batch_size": 1500}, np.float32, "uint8", (1, 4), 3),
}


@needs_warps
@pytest.mark.parametrize("why", PLAIN)
def test_what_the_fast_cuda_kernels_cannot_do_the_plain_ones_do(why, caplog):
    caplog.set_level("INFO", "msgd")
    changes, float_x, pixels, shape, n_classes = PLAIN[why]
    settings = toy.settings_of("mlp", **{"batch_size": 4, "n_hidden": 4, **changes})
    n_train = max(settings["batch_size"], n_classes)
    dataset = make_dataset(n_train, n_classes, n_classes, shape, n_classes, pixels)
    parameters = toy.random_parameters(dataset, settings, float_x)
    toy.make_backend("cuda", dataset, settings, parameters)
    assert why in caplog.text


FINGERPRINTS = {
    "float32": "5df4c7b682dcbde23aa85498d8ca81cc7c865118cbbbeaea42863436f554275a",
    "float64": "c8e0d9f36e4ed0d24230f392106c2c477788b252180030cb59628bc00c02ef7a",
}


@pytest.mark.parametrize("float_name", FINGERPRINTS)
def test_the_published_initial_weights(float_name):
    dataset = make_dataset(20, 10, 10, (28, 28), 10)
    parameters = model.initial_parameters(
        dataset, toy.published_settings("mlp"), np.dtype(float_name).type
    )
    assert [(name, array.shape) for name, array in parameters.items()] == [
        ("weights_1", (784, 500)),
        ("bias_1", (500,)),
        ("weights_2", (500, 10)),
        ("bias_2", (10,)),
    ]
    digest = hashlib.sha256(parameters["weights_1"]).hexdigest()
    assert digest == FINGERPRINTS[float_name]
    assert not any(parameters[name].any() for name in ("bias_1", "weights_2", "bias_2"))
    sigmoid = toy.published_settings("mlp", activation="sigmoid")
    larger = model.initial_parameters(dataset, sigmoid, np.dtype(float_name).type)
    np.testing.assert_array_equal(larger["weights_1"], 4 * parameters["weights_1"])


@pytest.mark.parametrize("n_out", [1, PANEL - 1, PANEL, PANEL + 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_the_panels_of_the_first_layer_come_back(n_out):
    random = np.random.RandomState(0)
    weights, bias = random.normal(size=(5, n_out)), random.normal(size=n_out)
    layer = new_first_layer(weights, bias)
    assert layer.panels.shape == (2 * -(-n_out // BLOCK), 5 * PANEL)
    assert layer.panels[0, 2 * PANEL + min(n_out, PANEL) - 1] == weights[2, min(n_out, PANEL) - 1]
    for found, given, stored in zip(
        get_first_layer(layer, n_out), (weights, bias), layer, strict=True
    ):
        np.testing.assert_array_equal(found, given)
        assert not np.shares_memory(found, stored)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_hidden", [5, [5, BLOCK + 1, 3]], ids=str)
def test_units_that_fill_up_a_block_learn_nothing(device, n_hidden):
    """The sigmoid of 0 is 1/2, so their weights would have a gradient, seen in later steps only."""
    dataset = make_dataset(n_train=30, n_classes=3)
    changes = {"batch_size": 3, "n_hidden": n_hidden, "activation": "sigmoid"}
    settings = toy.settings_of("mlp", **changes, learning_rate=0.5)
    parameters = TestContract.adapter.random_parameters(dataset, settings, np.float64)
    backend = toy.make_backend(device, dataset, settings, parameters)
    backend.train(0, 10)
    x, y = oracle.pixels(dataset.train_x).reshape(30, -1), dataset.train_y
    expected, penalties = list(parameters.values()), oracle.penalties_of(settings)
    for k in range(0, 30, 3):
        found = oracle.mlp_gradients(expected, x[k : k + 3], y[k : k + 3], "sigmoid", **penalties)
        expected = [w - 0.5 * gradient for w, gradient in zip(expected, found, strict=True)]
    for found, right in zip(backend.get_parameters().values(), expected, strict=True):
        assert np.abs(found - right).max() <= 1e-12


@pytest.mark.parametrize("group_images", [1, 3, 6, 12, 80])
@pytest.mark.parametrize(("l1", "l2"), [(0, 0), (0, 0.002), (0, 0.6), (0.001, 0.002)])
@pytest.mark.parametrize(("float_name", "pixels"), [("float32", "uint8"), ("float64", "float64")])
def test_groups_of_minibatches_follow_the_oracle(
    monkeypatch, group_images, l1, l2, float_name, pixels
):
    """Seven minibatches of 3 an epoch: whole groups and smaller ones, and calls that cut them."""
    tolerance = 10 * TestContract.adapter.tolerances[float_name]
    monkeypatch.setattr(deferred, "GROUP_IMAGES", group_images)
    dataset = make_dataset(n_train=22, n_classes=3, pixels=pixels)
    changes = {"batch_size": 3, "n_hidden": BLOCK + 1, "learning_rate": 0.2, "l1": l1, "l2": l2}
    settings = toy.settings_of("mlp", **changes)
    parameters = TestContract.adapter.random_parameters(
        dataset, settings, np.dtype(float_name).type
    )
    backend = toy.make_backend("cpu", dataset, settings, parameters)
    costs = np.concatenate([backend.train(0, 2), backend.train(2, 3), backend.train(3, 17)])

    x, y = oracle.pixels(dataset.train_x), dataset.train_y
    expected = [array.astype(np.float64) for array in parameters.values()]
    for step, cost in enumerate(costs):
        rows = slice(step % 7 * 3, step % 7 * 3 + 3)
        expected_cost = oracle.mlp_cost(expected, x[rows], y[rows], l1=l1, l2=l2)
        assert abs(cost - expected_cost) <= tolerance * max(1, expected_cost)
        gradients = oracle.mlp_gradients(expected, x[rows], y[rows], l1=l1, l2=l2)
        for array, gradient in zip(expected, gradients, strict=True):
            array -= 0.2 * gradient
    for found, array in zip(backend.get_parameters().values(), expected, strict=True):
        assert np.linalg.norm(found - array) <= tolerance * np.linalg.norm(array)


def test_calls_that_end_with_groups_do_not_change_a_bit():
    dataset = make_dataset(n_train=130, n_classes=3)  # 13 minibatches in groups of 8 and 5
    settings = toy.settings_of("mlp", batch_size=10, n_hidden=5)
    parameters = toy.random_parameters(dataset, settings, np.float32)
    results = []
    for ends in ([26], [8, 13, 21, 26]):
        backend = toy.make_backend("cpu", dataset, settings, parameters)
        costs = [backend.train(*span) for span in itertools.pairwise([0, *ends])]
        results.append([np.concatenate(costs), *backend.get_parameters().values()])
    for one, many in zip(*results, strict=True):
        assert one.tobytes() == many.tobytes()
