"""Both twins of the multilayer perceptron against the oracle, at sizes around block edges."""

import hashlib
import itertools

import numpy as np
import oracle
import pytest
from conftest import make_dataset

from msgd.config import complete_experiment
from msgd.kernels.vectors import LANES
from msgd.models import load_backend
from msgd.models.mlp import deferred, model
from msgd.models.mlp.first_layer import BLOCK, PANEL, get_first_layer, new_first_layer
from msgd.models.mlp.later_layers import get_dense_layer, new_dense_layer

FLOATS = {"float32": (np.float32, 5e-6), "float64": (np.float64, 1e-12)}


def settings_of(**changes):
    return complete_experiment({"model": "mlp", **changes})


def random_parameters(dataset, settings, float_x):
    """The initial parameters, but with nothing at zero."""
    random = np.random.RandomState(5)
    parameters = model.initial_parameters(dataset, settings, np.float64)
    return {
        name: (array + 0.3 * random.normal(size=array.shape)).astype(float_x)
        for name, array in parameters.items()
    }


def make_backend(device, dataset, parameters, settings, float_x, **more):
    return load_backend("mlp", device)(dataset, parameters, settings, float_x, **more)


def penalties_of(settings):
    return {name: settings[name] for name in ("l1", "l2", "lp", "p")}


FINGERPRINTS = {
    "float32": "5df4c7b682dcbde23aa85498d8ca81cc7c865118cbbbeaea42863436f554275a",
    "float64": "c8e0d9f36e4ed0d24230f392106c2c477788b252180030cb59628bc00c02ef7a",
}


@pytest.mark.parametrize("float_name", FLOATS)
def test_the_published_initial_weights(float_name):
    dataset = make_dataset(20, 10, 10, (28, 28), 10)
    parameters = model.initial_parameters(dataset, settings_of(), np.dtype(float_name).type)
    assert [(name, array.shape) for name, array in parameters.items()] == [
        ("weights_1", (784, 500)),
        ("bias_1", (500,)),
        ("weights_2", (500, 10)),
        ("bias_2", (10,)),
    ]
    digest = hashlib.sha256(parameters["weights_1"]).hexdigest()
    assert digest == FINGERPRINTS[float_name]
    assert not any(parameters[name].any() for name in ("bias_1", "weights_2", "bias_2"))
    sigmoid = settings_of(activation="sigmoid")
    larger = model.initial_parameters(dataset, sigmoid, np.dtype(float_name).type)
    np.testing.assert_array_equal(larger["weights_1"], 4 * parameters["weights_1"])


@pytest.mark.parametrize("kind", ["tanh", "sigmoid"])
def test_oracle_gradients_agree_with_finite_differences(kind):
    random = np.random.RandomState(1)
    x, y = random.uniform(size=(6, 5)), random.randint(0, 3, 6)
    shapes = [(5, 4), (4,), (4, 6), (6,), (6, 3), (3,)]
    parameters = [random.normal(size=shape) for shape in shapes]
    more = {"kind": kind, "l1": 0.03, "l2": 0.02, "lp": 0.05, "p": 2.7}
    analytic = oracle.mlp_gradients(parameters, x, y, **more)
    numeric = oracle.numerical_gradients(lambda p: oracle.mlp_cost(p, x, y, **more), parameters)
    for found, expected in zip(analytic, numeric, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-8)


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


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("n_in", [1, BLOCK, BLOCK + 1])
def test_a_later_layer_comes_back(n_in, is_last):
    random = np.random.RandomState(0)
    weights, bias = random.normal(size=(n_in, 3)), random.normal(size=3)
    layer = new_dense_layer(weights, bias, 8, is_last)
    padding = layer.bias[3:]
    assert len(layer.bias) == (LANES if is_last else BLOCK)
    np.testing.assert_array_equal(padding, np.full_like(padding, -np.inf if is_last else 0))
    for found, given in zip(get_dense_layer(layer, n_in), (weights, bias), strict=True):
        np.testing.assert_array_equal(found, given)
        assert not any(np.shares_memory(found, array) for array in layer[1:])


# (batch, image shape, n_hidden, classes): on the CPU around blocks of units, on the simulator
# around blocks of 4 x 8 threads.
SIZES = {
    "cpu": [
        (1, (1, 3), 1, 2),
        (20, (4, 4), BLOCK - 1, 3),
        (7, (3, 5), BLOCK, 10),
        (17, (4, 4), BLOCK + 1, 4),
        (6, (4, 4), PANEL, 16),
        (4, (4, 4), PANEL + 1, 17),
        (20, (28, 28), 500, 10),
        (5, (3, 3), [7, 70, 3], 3),
        (33, (3, 3), [130, 65], BLOCK + 2),
    ],
    "cuda": [
        (1, (1, 3), 1, 2),
        (8, (2, 4), 4, 3),
        (9, (3, 3), 5, 5),
        (3, (2, 2), [3, 2, 4], 3),
    ],
}


# Each pair costs a compilation of 20 s: the kinds of pixels are shared out over the float types.
@pytest.mark.parametrize(("float_name", "pixels"), [("float32", "uint8"), ("float64", "float64")])
@pytest.mark.parametrize(
    ("device", "size"), [(device, size) for device in SIZES for size in SIZES[device]]
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "sigmoid", "l2": 0.0},
        {"l1": 0.002, "l2": 0.01, "lp": 0.003, "p": 1.5},
    ],
    ids=["tanh", "sigmoid", "penalties"],
)
def test_a_step_agrees_with_the_oracle(device, size, float_name, pixels, changes):
    float_x, tolerance = FLOATS[float_name]
    batch_size, shape, n_hidden, n_classes = size
    dataset = make_dataset(
        max(batch_size, n_classes), n_classes, n_classes, shape, n_classes, pixels
    )
    settings = settings_of(batch_size=batch_size, n_hidden=n_hidden, learning_rate=0.5, **changes)
    parameters = random_parameters(dataset, settings, float_x)
    backend = make_backend(device, dataset, parameters, settings, float_x)
    (cost,) = backend.train(0, 1)

    x, y = oracle.pixels(dataset.train_x[:batch_size]), dataset.train_y[:batch_size]
    before = [array.astype(np.float64) for array in parameters.values()]
    more = {"kind": settings["activation"], **penalties_of(settings)}
    expected_cost = oracle.mlp_cost(before, x, y, **more)
    assert abs(cost - expected_cost) <= 4 * tolerance * expected_cost
    gradients = oracle.mlp_gradients(before, x, y, **more)
    after = backend.get_parameters()
    assert list(after) == list(parameters)
    for array, old, gradient in zip(after.values(), before, gradients, strict=True):
        assert array.dtype == float_x
        assert array.shape == old.shape
        found = (old - array) / settings["learning_rate"]
        # The step was rounded when it was subtracted from parameters of size 1.
        rounding = 2 * np.finfo(float_x).eps * np.linalg.norm(old) / settings["learning_rate"]
        error = np.linalg.norm(found - gradient)
        assert error <= 4 * tolerance * np.linalg.norm(gradient) + rounding


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_step_at_the_published_width(device):
    """784-500-10 and minibatches of 20."""
    dataset = make_dataset(20, 10, 10, (28, 28), 10)
    settings = settings_of()
    parameters = random_parameters(dataset, settings, np.float32)
    backend = make_backend(device, dataset, parameters, settings, np.float32)
    (cost,) = backend.train(0, 1)
    x, y = oracle.pixels(dataset.train_x), dataset.train_y
    before = [array.astype(np.float64) for array in parameters.values()]
    expected_cost = oracle.mlp_cost(before, x, y, l2=settings["l2"])
    assert abs(cost - expected_cost) <= 1e-5 * expected_cost
    gradients = oracle.mlp_gradients(before, x, y, l2=settings["l2"])
    for array, old, gradient in zip(
        backend.get_parameters().values(), before, gradients, strict=True
    ):
        step = np.linalg.norm(array - (old - settings["learning_rate"] * gradient))
        assert step <= 2 * np.finfo(np.float32).eps * np.linalg.norm(old)
        assert step < 1e-2 * settings["learning_rate"] * np.linalg.norm(gradient)


@pytest.mark.parametrize("float_name", FLOATS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_ten_steps_follow_the_oracle_over_an_epoch_edge(device, float_name):
    float_x, tolerance = FLOATS[float_name]
    pixels = "uint8" if float_name == "float32" else "float64"
    dataset = make_dataset(n_train=26, n_classes=3, pixels=pixels)  # 4 batches of 6, a tail of 2
    settings = settings_of(batch_size=6, n_hidden=[5, 4], learning_rate=0.3, l2=0.001)
    parameters = random_parameters(dataset, settings, float_x)
    backend = make_backend(device, dataset, parameters, settings, float_x)
    costs = np.concatenate([backend.train(0, 3), backend.train(3, 10)])

    x, y = oracle.pixels(dataset.train_x), dataset.train_y
    expected = [array.astype(np.float64) for array in parameters.values()]
    for step, cost in enumerate(costs):
        rows = slice(step % 4 * 6, step % 4 * 6 + 6)
        expected_cost = oracle.mlp_cost(expected, x[rows], y[rows], l2=0.001)
        assert abs(cost - expected_cost) <= 10 * tolerance * expected_cost
        gradients = oracle.mlp_gradients(expected, x[rows], y[rows], l2=0.001)
        for array, gradient in zip(expected, gradients, strict=True):
            array -= 0.3 * gradient
    for found, array in zip(backend.get_parameters().values(), expected, strict=True):
        assert np.linalg.norm(found - array) <= 10 * tolerance * np.linalg.norm(array)


@pytest.mark.parametrize("group_images", [1, 3, 6, 12, 80])
@pytest.mark.parametrize(("l1", "l2"), [(0, 0), (0, 0.002), (0, 0.6), (0.001, 0.002)])
@pytest.mark.parametrize(("float_name", "pixels"), [("float32", "uint8"), ("float64", "float64")])
def test_groups_of_minibatches_follow_the_oracle(
    monkeypatch, group_images, l1, l2, float_name, pixels
):
    """Seven minibatches of 3 an epoch: whole groups and smaller ones, and calls that cut them."""
    float_x, tolerance = FLOATS[float_name]
    monkeypatch.setattr(deferred, "GROUP_IMAGES", group_images)
    dataset = make_dataset(n_train=22, n_classes=3, pixels=pixels)
    settings = settings_of(batch_size=3, n_hidden=BLOCK + 1, learning_rate=0.2, l1=l1, l2=l2)
    parameters = random_parameters(dataset, settings, float_x)
    backend = make_backend("cpu", dataset, parameters, settings, float_x)
    costs = np.concatenate([backend.train(0, 2), backend.train(2, 3), backend.train(3, 17)])

    x, y = oracle.pixels(dataset.train_x), dataset.train_y
    expected = [array.astype(np.float64) for array in parameters.values()]
    for step, cost in enumerate(costs):
        rows = slice(step % 7 * 3, step % 7 * 3 + 3)
        expected_cost = oracle.mlp_cost(expected, x[rows], y[rows], l1=l1, l2=l2)
        assert abs(cost - expected_cost) <= 10 * tolerance * max(1, expected_cost)
        gradients = oracle.mlp_gradients(expected, x[rows], y[rows], l1=l1, l2=l2)
        for array, gradient in zip(expected, gradients, strict=True):
            array -= 0.2 * gradient
    for found, array in zip(backend.get_parameters().values(), expected, strict=True):
        assert np.linalg.norm(found - array) <= 10 * tolerance * np.linalg.norm(array)


def test_calls_that_end_with_groups_do_not_change_a_bit():
    dataset = make_dataset(n_train=130, n_classes=3)  # 13 minibatches in groups of 8 and 5
    settings = settings_of(batch_size=10, n_hidden=5)
    parameters = random_parameters(dataset, settings, np.float32)
    results = []
    for ends in ([26], [8, 13, 21, 26]):
        backend = make_backend("cpu", dataset, parameters, settings, np.float32)
        costs = [backend.train(*span) for span in itertools.pairwise([0, *ends])]
        results.append([np.concatenate(costs), *backend.get_parameters().values()])
    for one, many in zip(*results, strict=True):
        assert one.tobytes() == many.tobytes()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("n_hidden", [5, [6, 3]])
def test_predictions_and_error_counts(device, n_hidden):
    dataset = make_dataset(n_train=20, n_valid=33, n_classes=5)
    settings = settings_of(batch_size=10, n_hidden=n_hidden)
    parameters = random_parameters(dataset, settings, np.float64)
    backend = make_backend(device, dataset, parameters, settings, np.float64)
    expected = oracle.mlp_predict(list(parameters.values()), oracle.pixels(dataset.valid_x))
    np.testing.assert_array_equal(backend.predict("valid"), expected)
    wrong = (expected != dataset.valid_y)[:30].sum()
    assert 0 < wrong < 30
    assert backend.count_errors("valid") == wrong
    images = dataset.images("valid", [1, 2, 3])
    found = model.probabilities(parameters, images, settings, dataset.image_shape)
    np.testing.assert_array_equal(found.argmax(axis=1), expected[1:4])
    np.testing.assert_allclose(found.sum(axis=1), 1)


@pytest.mark.parametrize("n_hidden", [[4, 70], [5, BLOCK]])  # the latter fills a block to its edge
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_parameters_are_copied_in_and_out(device, n_hidden):
    dataset = make_dataset()
    settings = settings_of(batch_size=10, n_hidden=n_hidden)
    given = random_parameters(dataset, settings, np.float32)
    backend = make_backend(device, dataset, given, settings, np.float32)
    taken = backend.get_parameters()
    kept = {name: array.copy() for name, array in taken.items()}
    backend.train(0, 1)
    for name, array in given.items():
        assert array.tobytes() == taken[name].tobytes() == kept[name].tobytes()
    assert (backend.get_parameters()["weights_2"] != kept["weights_2"]).any()
    backend.set_parameters(kept)
    assert backend.get_parameters()["weights_2"].tobytes() == kept["weights_2"].tobytes()


@pytest.mark.parametrize("l1", [0.0, 0.001])
def test_bits_do_not_depend_on_the_number_of_threads(l1):
    import numba

    available = numba.config.NUMBA_NUM_THREADS  # two at least, see conftest.py
    dataset = make_dataset(100, 10, 10, (28, 28), 10)
    settings = settings_of(n_hidden=[130, 70], l1=l1)
    results = []
    for threads in (1, available):
        numba.set_num_threads(threads)
        parameters = random_parameters(dataset, settings, np.float32)
        backend = make_backend("cpu", dataset, parameters, settings, np.float32)
        results.append([backend.train(0, 9), *backend.get_parameters().values()])
    numba.set_num_threads(available)
    for one, many in zip(*results, strict=True):
        assert one.tobytes() == many.tobytes()
