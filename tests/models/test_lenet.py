"""Both twins of LeNet against the oracle, at sizes around tile, chunk, vector and block edges."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import oracle_lenet
import pytest
from conftest import darkened, make_dataset

from msgd.config import complete_experiment
from msgd.errors import UserError
from msgd.models import DEVICES, load_backend
from msgd.models.lenet import cpu, model

# A gradient passes a handful of sums of up to some thousand terms, each rounded once per term.
FLOATS = {"float32": (np.float32, 1e-5), "float64": (np.float64, 1e-13)}
SMALL = {"nkerns": [2, 3], "filter_size": 3, "n_hidden": 4}  # on images of 10 x 10


def settings_of(**changes):
    return complete_experiment({"model": "lenet", **changes})


def random_parameters(dataset, settings, float_x, seed=5):
    """Initial parameters with noise on all of them, so that none is 0."""
    random = np.random.RandomState(seed)
    initial = model.initial_parameters(dataset, settings, np.float64)
    return {
        name: (array + 0.1 * random.normal(size=array.shape)).astype(float_x)
        for name, array in initial.items()
    }


def make_backend(device, dataset, settings, float_x, parameters):
    return load_backend("lenet", device)(dataset, parameters, settings, float_x)


def as_images(x, shape):
    return oracle.pixels(x).reshape(-1, *shape)


def as_list(parameters):
    return [array.astype(np.float64) for array in parameters.values()]


# The oracle itself, by hand and by finite differences.


def test_convolution_by_hand():
    image = np.array([[[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]]])
    filters = np.array([[[[1.0, 0], [0, -1]]], [[[0.0, 10], [0, 0]]]])
    # The filter is flipped: its first entry meets the patch's last pixel.
    # 5 - 1, 6 - 2, 8 - 4, 9 - 5; and ten times the pixel below left: 4, 5, 7, 8.
    expected = np.array([[[[4.0, 4], [4, 4]], [[40, 50], [70, 80]]]])
    np.testing.assert_array_equal(oracle_lenet.convolve(image, filters), expected)
    np.testing.assert_allclose(model._convolve(image, filters), expected, atol=1e-14)


def test_pooling_by_hand():
    a = np.array([[[[1.0, 5, 2, 2, 9], [5, 0, 2, 2, 9], [9, 9, 9, 9, 9]]]])
    # The third row and the fifth column do not fill a square.
    np.testing.assert_array_equal(oracle_lenet.max_pool(a, 2), [[[[5.0, 2]]]])
    np.testing.assert_array_equal(model._max_pool(a, 2), [[[[5.0, 2]]]])
    error = np.array([[[[0.5, -3.0]]]])
    to_all = [[0, 0.5, -3, -3, 0], [0.5, 0, -3, -3, 0], [0, 0, 0, 0, 0]]
    to_first = [[0, 0.5, -3, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    for ties, expected in (("all", to_all), ("first", to_first)):
        found = oracle_lenet.max_pool_gradient(a, 2, error, ties)
        np.testing.assert_array_equal(found, [[expected]])


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_oracle_gradients_agree_with_finite_differences(activation):
    settings = settings_of(
        **{**SMALL, "n_hidden": [4, 3]}, activation=activation, l1=0.03, l2=0.2, lp=0.1, p=3
    )
    dataset = make_dataset(5, 3, 3, (10, 10), 3, "float64")
    random = np.random.RandomState(1)
    images, y = random.uniform(size=(5, 10, 10)), random.randint(0, 3, 5)  # distinct: no ties
    parameters = as_list(random_parameters(dataset, settings, np.float64))
    analytic = oracle_lenet.gradients(parameters, images, y, settings)
    numeric = oracle.numerical_gradients(
        lambda p: oracle_lenet.cost(p, images, y, settings), parameters
    )
    for found, expected in zip(analytic, numeric, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-8)


# The recipe.


def test_initial_weights_are_the_published_ones():
    fingerprints = {  # of reference.md: conv 1, conv 2, hidden
        np.float32: (
            "a932a7f798ef5afdd1760995148abd98ab3d42cc4db7e101b392db06533bd81c",
            "a88f072f40cc1fc0c985d531842f94d24e4a2e42164c086f7e20fd832b9eb03f",
            "3d636d0e66bd6a2fe05039728cd6ab7433af3629ca57e4c7a1012c29ff6ddae5",
        ),
        np.float64: (
            "4eb9c8b0ec261eba6391a87f2eec1ee0475556cbd74cac28020622be7278ebe3",
            "b6b6672413c6fa1a10506356ba59dce23ef7e571f09acfdb617d2dece496556a",
            "3d8ab706ee1fc49052d6e5391e443dcb2b68619cc2865cb7b6927253b48396af",
        ),
    }
    dataset = make_dataset(10, 10, 10, (28, 28), 10)
    for float_x, expected in fingerprints.items():
        parameters = model.initial_parameters(dataset, settings_of(), float_x)
        shapes = [(20, 1, 5, 5), (20,), (50, 20, 5, 5), (50,), (800, 500), (500,), (500, 10), (10,)]
        names = [f"{name}_{layer}" for layer in range(1, 5) for name in ("weights", "bias")]
        assert list(parameters) == names
        assert [array.shape for array in parameters.values()] == shapes
        for layer, digest in enumerate(expected, start=1):
            weights = parameters[f"weights_{layer}"]
            assert hashlib.sha256(weights.tobytes()).hexdigest() == digest
        for name in ("bias_1", "bias_2", "bias_3", "weights_4", "bias_4"):
            assert parameters[name].dtype == float_x
            assert not parameters[name].any()
        sigmoid = model.initial_parameters(dataset, settings_of(activation="sigmoid"), float_x)
        for name in parameters:
            np.testing.assert_array_equal(sigmoid[name], 4 * parameters[name])


@pytest.mark.parametrize(
    ("shape", "changes", "key"),
    [
        ((4, 28), {}, "filter_size is 5; allowed: at most 4 in convolution layer 1"),
        ((28, 28), {"nkerns": [2, 3, 4]}, "filter_size is 5; allowed: at most 4"),
        ((28, 6), {"pool_size": 3}, "pool_size is 3; allowed: at most 2"),
    ],
)
def test_an_image_too_small_for_the_layers_is_an_error(shape, changes, key):
    dataset = make_dataset(shape=shape)
    with pytest.raises(UserError, match=key):
        model.initial_parameters(dataset, settings_of(**changes), np.float32)


# Both twins.

CPU_CASES = [
    # (batch_size, image shape, changes): tiles of 256, chunks of a tile's sixteenth, vectors of 16
    # units, panels of two or three vectors of 8 maps; gradients over lists and, where the layer has
    # many maps for its patches, over all pixels
    (1, (10, 10), SMALL),
    (7, (10, 13), {**SMALL, "l1": 0.01, "l2": 0.02, "lp": 0.01, "p": 3}),
    (16, (13, 10), {**SMALL, "maxpool_ties": "first"}),
    (17, (7, 9), {"nkerns": [17], "filter_size": 2, "pool_size": 3, "n_hidden": [16, 5]}),
    (33, (26, 28), {"nkerns": [16, 4, 3], "filter_size": 3, "n_hidden": 17}),
    (9, (11, 10), {"nkerns": [25, 41], "filter_size": 2, "maxpool_ties": "first", "n_hidden": 3}),
    (5, (12, 12), {"nkerns": [3, 33], "filter_size": 1, "pool_size": 1, "n_hidden": 3}),
    (cpu.TILE - 1, (10, 10), {**SMALL, "activation": "sigmoid"}),
    (cpu.TILE + 1, (10, 10), {**SMALL, "n_hidden": [4, 15, 3]}),
    (20, (28, 28), {}),
]
CUDA_CASES = [
    # a block of the simulator is 4 columns by 8 rows of threads
    (1, (10, 10), SMALL),
    (5, (10, 11), {**SMALL, "l1": 0.01, "l2": 0.02, "lp": 0.01, "p": 3}),
    (4, (11, 10), {**SMALL, "maxpool_ties": "first", "n_hidden": [5, 4]}),
    (3, (5, 6), {"nkerns": [5], "filter_size": 2, "pool_size": 2, "n_hidden": 3}),
    (3, (9, 8), {"nkerns": [2, 3, 2], "filter_size": 2, "pool_size": 1, "n_hidden": 3}),
    (9, (6, 6), {"nkerns": [2], "filter_size": 3, "n_hidden": 4, "activation": "sigmoid"}),
]


@pytest.mark.parametrize("pixels", ["uint8", "float"])
@pytest.mark.parametrize("float_name", FLOATS)
@pytest.mark.parametrize(
    ("device", "batch_size", "shape", "changes"),
    [("cpu", *case) for case in CPU_CASES] + [("cuda", *case) for case in CUDA_CASES],
)
def test_a_step_agrees_with_the_oracle(device, batch_size, shape, changes, float_name, pixels):
    float_x, tolerance = FLOATS[float_name]
    kind = "uint8" if pixels == "uint8" else float_name
    dataset = make_dataset(max(batch_size, 3), 3, 3, shape, 3, kind)
    settings = settings_of(batch_size=batch_size, learning_rate=0.5, **changes)
    parameters = random_parameters(dataset, settings, float_x)
    backend = make_backend(device, dataset, settings, float_x, parameters)
    for name, array in backend.get_parameters().items():
        assert array.tobytes() == parameters[name].tobytes()
    (cost,) = backend.train(0, 1)
    after = backend.get_parameters()

    before = as_list(parameters)
    rows = as_images(dataset.train_x[:batch_size], shape), dataset.train_y[:batch_size], settings
    expected_cost = oracle_lenet.cost(before, *rows)
    assert abs(cost - expected_cost) <= tolerance * expected_cost
    gradients = oracle_lenet.gradients(before, *rows)
    for array, old, gradient in zip(after.values(), before, gradients, strict=True):
        assert array.dtype == float_x
        assert array.shape == old.shape
        found = (old - array) / 0.5
        # The step was rounded when it was subtracted from parameters of size 1.
        rounding = 2 * np.finfo(float_x).eps * np.linalg.norm(old) / 0.5
        assert np.linalg.norm(gradient) > 0
        error = np.linalg.norm(found - gradient)
        assert error <= tolerance * np.linalg.norm(gradient) + rounding


def test_a_step_at_the_published_sizes_on_cuda():
    """Once only, for its price: CPU_CASES has the sizes for the other twin."""
    test_a_step_agrees_with_the_oracle("cuda", 2, (28, 28), {}, "float32", "uint8")


@pytest.mark.parametrize("float_name", FLOATS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_ten_steps_follow_the_oracle_over_an_epoch_edge(device, float_name):
    float_x, tolerance = FLOATS[float_name]
    dataset = make_dataset(n_train=13, shape=(10, 10))  # 4 minibatches of 3, a tail of 1
    settings = settings_of(batch_size=3, learning_rate=0.3, **SMALL)
    initial = model.initial_parameters(dataset, settings, float_x)
    backend = make_backend(device, dataset, settings, float_x, initial)
    costs = np.concatenate([backend.train(0, 3), backend.train(3, 10)])

    images, y = as_images(dataset.train_x, (10, 10)), dataset.train_y
    parameters = as_list(initial)
    for step, cost in enumerate(costs):
        rows = slice(step % 4 * 3, step % 4 * 3 + 3)
        expected = oracle_lenet.cost(parameters, images[rows], y[rows], settings)
        assert abs(cost - expected) <= 10 * tolerance * expected
        gradients = oracle_lenet.gradients(parameters, images[rows], y[rows], settings)
        for array, gradient in zip(parameters, gradients, strict=True):
            array -= 0.3 * gradient
    for found, expected in zip(backend.get_parameters().values(), parameters, strict=True):
        assert np.linalg.norm(found - expected) <= 10 * tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("ties", ["all", "first"])
@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_of_tied_maxima_goes_where_the_setting_says(device, ties):
    """Blank images: in layer 2 all pixels of a square are equal, and its input is not 0.

    Its weights' gradient is then as many times that of ``first`` as a square has pixels.
    """
    dataset = darkened(make_dataset(n_train=6, shape=(10, 10)), slice(None))
    settings = settings_of(batch_size=6, learning_rate=1.0, maxpool_ties=ties, **SMALL)
    parameters = random_parameters(dataset, settings, np.float64)
    backend = make_backend(device, dataset, settings, np.float64, parameters)
    backend.train(0, 1)
    found = {name: parameters[name] - array for name, array in backend.get_parameters().items()}

    first = {**settings, "maxpool_ties": "first"}
    images = np.zeros((6, 10, 10))
    gradients = oracle_lenet.gradients(as_list(parameters), images, dataset.train_y, first)
    expected = dict(zip(parameters, gradients, strict=True))
    factor = 4 if ties == "all" else 1
    assert np.abs(expected["weights_2"]).max() > 1e-6
    np.testing.assert_allclose(found["weights_2"], factor * expected["weights_2"], atol=1e-14)
    np.testing.assert_allclose(found["bias_2"], expected["bias_2"], atol=1e-14)
    np.testing.assert_allclose(found["bias_1"], factor * expected["bias_1"], atol=1e-14)
    np.testing.assert_array_equal(found["weights_1"], 0)


@pytest.mark.parametrize(
    ("device", "n_valid"), [("cpu", 9), ("cpu", cpu.TILE + 13), ("cuda", 9), ("cuda", 14)]
)
def test_predictions_and_error_counts(device, n_valid, monkeypatch):
    if device == "cuda":  # more images than pass through the layers at a time
        from msgd.models.lenet import cuda

        monkeypatch.setattr(cuda, "PREDICTED_TOGETHER", 5)
    shape = (10, 10)
    dataset = make_dataset(20, n_valid, 20, shape, 5)
    settings = settings_of(batch_size=5, **SMALL)
    parameters = random_parameters(dataset, settings, np.float64)
    backend = make_backend(device, dataset, settings, np.float64, parameters)
    expected = oracle_lenet.predict(
        as_list(parameters), as_images(dataset.valid_x, shape), settings
    )
    predicted = backend.predict("valid")
    assert predicted.dtype == np.int32
    np.testing.assert_array_equal(predicted, expected)
    n_counted = n_valid // 5 * 5
    wrong = (expected != dataset.valid_y)[:n_counted].sum()
    assert wrong > 0
    assert backend.count_errors("valid") == wrong


@pytest.mark.parametrize("more", [{}, {"n_hidden": [16, 16]}])  # the latter fill their vectors
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_backend_keeps_its_own_copy_of_the_parameters(device, more):
    dataset = make_dataset(shape=(10, 10))
    settings = settings_of(batch_size=10, **{**SMALL, **more})
    given = random_parameters(dataset, settings, np.float32)
    kept = {name: array.copy() for name, array in given.items()}
    backend = make_backend(device, dataset, settings, np.float32, given)
    taken = backend.get_parameters()
    backend.train(0, 2)
    changed = backend.get_parameters()
    for name, array in kept.items():
        np.testing.assert_array_equal(given[name], array)
        np.testing.assert_array_equal(taken[name], array)
        assert (changed[name] != array).any()
    backend.set_parameters(taken)
    backend.train(0, 2)  # nothing of the first time is left over
    for name, array in backend.get_parameters().items():
        np.testing.assert_array_equal(array, changed[name])


def test_bits_do_not_depend_on_the_number_of_threads():
    import numba

    available = numba.config.NUMBA_NUM_THREADS  # two at least, see conftest.py
    dataset = make_dataset(n_train=600, shape=(28, 28), n_classes=10)
    settings = settings_of(batch_size=290, l2=0.001)
    results = []
    for threads in (1, available):
        numba.set_num_threads(threads)
        parameters = random_parameters(dataset, settings, np.float32)
        backend = make_backend("cpu", dataset, settings, np.float32, parameters)
        costs = backend.train(0, 3)
        results.append([costs, *backend.get_parameters().values()])
    numba.set_num_threads(available)
    for one, many in zip(*results, strict=True):
        assert one.tobytes() == many.tobytes()


def test_the_cpu_backend_starts_the_threads_itself():
    """A function from the cache may not start them, see Backend.allocate."""
    program = """
from conftest import make_dataset
from numba.np.ufunc import parallel
from test_lenet import SMALL, make_backend, np, random_parameters, settings_of
dataset, settings = make_dataset(shape=(10, 10)), settings_of(batch_size=10, **SMALL)
parameters = random_parameters(dataset, settings, np.float32)
assert not parallel._is_initialized
make_backend("cpu", dataset, settings, np.float32, parameters)
assert parallel._is_initialized
"""
    folder = Path(__file__).parent
    path = os.pathsep.join([str(folder), str(folder.parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_model_probabilities_agree_with_the_oracle(activation):
    dataset = make_dataset(shape=(11, 10))
    settings = settings_of(activation=activation, **SMALL)
    parameters = random_parameters(dataset, settings, np.float32)
    images = dataset.images("test", [3, 5])
    found = model.probabilities(parameters, images, settings, dataset.image_shape)
    expected = oracle_lenet.forward(as_list(parameters), images.reshape(2, 11, 10), settings)[2]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert model.weight_images(parameters, dataset.image_shape).shape == (2, 3, 3)
