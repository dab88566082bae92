"""Both twins of logistic regression against the oracle, at the edges of tasks, vectors, blocks."""

import numpy as np
import oracle
import pytest
from conftest import darkened, make_dataset

from msgd.config import complete_experiment
from msgd.kernels.patches import CLASSES, PATCH
from msgd.models import load_backend
from msgd.models.logistic_regression import model
from msgd.models.logistic_regression.cpu import TASKS

FLOATS = {"float32": (np.float32, 3e-6), "float64": (np.float64, 1e-13)}


def settings_of(**changes):
    return complete_experiment({"model": "logistic_regression", **changes})


def random_parameters(dataset, float_x):
    random = np.random.RandomState(5)
    return {
        "weights": random.normal(size=(dataset.n_features, dataset.n_classes)).astype(float_x),
        "bias": random.normal(size=dataset.n_classes).astype(float_x),
    }


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def one_step(device, dataset, settings, float_x, parameters):
    """Train the first minibatch; return (cost, parameters after it)."""
    backend = load_backend("logistic_regression", device)(dataset, parameters, settings, float_x)
    (cost,) = backend.train(0, 1)
    return cost, backend.get_parameters()


@pytest.mark.parametrize("seed", [0, 1])
def test_oracle_gradients_agree_with_finite_differences(seed):
    random = np.random.RandomState(seed)
    x, y = random.uniform(size=(7, 5)), random.randint(0, 3, 7)
    parameters = [random.normal(size=(5, 3)), random.normal(size=3)]
    penalties = {"l1": 0.03, "l2": 0.2}
    analytic = oracle.logistic_regression_gradients(parameters, x, y, **penalties)
    numeric = oracle.numerical_gradients(
        lambda p: oracle.logistic_regression_cost(p, x, y, **penalties), parameters
    )
    for found, expected in zip(analytic, numeric, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-8)


# On the CPU: images and patches around the number of tasks, pixels around the size of a patch, in
# rows and in images that do not fill their last patches, classes around the size of a block. On the
# simulator a block is 4 classes by 8 rows of threads: sizes below, at and above its edges.
CPU_SIZES = [
    *((batch, (3, 3), 3) for batch in (1, 2, TASKS - 1, TASKS, TASKS + 1, 3 * TASKS + 1)),
    *((5, (1, pixels), 2) for pixels in (1, PATCH - 1, PATCH, PATCH + 1)),
    *((5, (1, patches * PATCH), 2) for patches in (TASKS - 1, TASKS, TASKS + 1)),
    *((6, shape, 4) for shape in ((2, 4), (2, 5), (3, 4), (6, 3), (7, 1))),
    *((7, (4, 5), classes) for classes in (CLASSES - 1, CLASSES, CLASSES + 1, 3 * CLASSES + 1)),
    (600, (28, 28), 10),
]
CUDA_SIZES = [
    (1, (1, 1), 2),
    (7, (1, 7), 3),
    (8, (2, 4), 4),
    (9, (3, 3), 5),
    (17, (4, 4), 8),
    (16, (1, 17), 9),
]


@pytest.mark.parametrize("pixels", ["uint8", "float"])
@pytest.mark.parametrize("float_name", FLOATS)
@pytest.mark.parametrize(
    ("device", "batch_size", "shape", "n_classes"),
    [("cpu", *size) for size in CPU_SIZES] + [("cuda", *size) for size in CUDA_SIZES],
)
def test_a_step_agrees_with_the_oracle(device, batch_size, shape, n_classes, float_name, pixels):
    float_x, tolerance = FLOATS[float_name]
    kind = "uint8" if pixels == "uint8" else float_name
    dataset = make_dataset(max(batch_size, n_classes), n_classes, n_classes, shape, n_classes, kind)
    settings = settings_of(batch_size=batch_size, learning_rate=0.5, l1=0.01, l2=0.02)
    parameters = random_parameters(dataset, float_x)
    cost, after = one_step(device, dataset, settings, float_x, parameters)

    x, y = oracle.pixels(dataset.train_x[:batch_size]), dataset.train_y[:batch_size]
    before = [array.astype(np.float64) for array in parameters.values()]
    penalties = {"l1": settings["l1"], "l2": settings["l2"]}
    expected_cost = oracle.logistic_regression_cost(before, x, y, **penalties)
    assert abs(cost - expected_cost) <= tolerance * expected_cost
    gradients = oracle.logistic_regression_gradients(before, x, y, **penalties)
    for array, old, gradient in zip(after.values(), before, gradients, strict=True):
        assert array.dtype == float_x
        found = (old - array) / settings["learning_rate"]
        # The step was rounded when it was subtracted from parameters of size 1.
        rounding = 2 * np.finfo(float_x).eps * np.linalg.norm(old) / settings["learning_rate"]
        error = np.linalg.norm(found - gradient)
        assert error <= tolerance * np.linalg.norm(gradient) + rounding


@pytest.mark.parametrize("float_name", FLOATS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_ten_steps_follow_the_oracle_over_an_epoch_edge(device, float_name):
    float_x, tolerance = FLOATS[float_name]
    dataset = make_dataset(n_train=43, n_classes=4)  # 4 minibatches of 10, a tail of 3
    settings = settings_of(batch_size=10, learning_rate=0.3)
    backend = load_backend("logistic_regression", device)(
        dataset, model.initial_parameters(dataset, settings, float_x), settings, float_x
    )
    costs = np.concatenate([backend.train(0, 3), backend.train(3, 10)])

    x, y = oracle.pixels(dataset.train_x), dataset.train_y
    parameters = [np.zeros((dataset.n_features, 4)), np.zeros(4)]
    for step, cost in enumerate(costs):
        rows = slice(step % 4 * 10, step % 4 * 10 + 10)
        expected = oracle.logistic_regression_cost(parameters, x[rows], y[rows])
        assert abs(cost - expected) <= 10 * tolerance * expected
        gradients = oracle.logistic_regression_gradients(parameters, x[rows], y[rows])
        for array, gradient in zip(parameters, gradients, strict=True):
            array -= 0.3 * gradient
    for found, expected in zip(backend.get_parameters().values(), parameters, strict=True):
        assert relative_error(found, expected) <= 10 * tolerance


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_gradient_of_l1_is_zero_at_zero(device):
    every_image_first_pixel = np.s_[:, 0]  # one that is never lit gets no other gradient
    dataset = darkened(make_dataset(n_train=8), every_image_first_pixel)
    settings = settings_of(batch_size=8, l1=0.7)
    zeros = model.initial_parameters(dataset, settings, np.float32)
    _, after = one_step(device, dataset, settings, np.float32, zeros)
    assert (after["weights"][0] == 0).all()
    assert (after["weights"][1] != 0).any()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_large_logits_do_not_overflow(device):
    dataset = make_dataset(n_train=8)
    settings = settings_of(batch_size=8)
    parameters = random_parameters(dataset, np.float32)
    parameters["bias"][:] = [1e4, -1e4, 0]
    cost, after = one_step(device, dataset, settings, np.float32, parameters)
    assert np.isfinite(cost)
    assert all(np.isfinite(array).all() for array in after.values())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("n_valid", [9, 10, 33])
@pytest.mark.parametrize("n_classes", [5, 2 * CLASSES + 1])
def test_predictions_and_error_counts(device, n_valid, n_classes):
    dataset = make_dataset(n_train=30, n_valid=n_valid, n_classes=n_classes)
    settings = settings_of(batch_size=10)
    parameters = random_parameters(dataset, np.float64)
    backend = load_backend("logistic_regression", device)(dataset, parameters, settings, np.float64)
    expected = oracle.logistic_regression_predict(
        list(parameters.values()), oracle.pixels(dataset.valid_x)
    )
    predicted = backend.predict("valid")
    assert predicted.dtype == np.int32
    np.testing.assert_array_equal(predicted, expected)
    n_counted = {9: 9, 10: 10, 33: 30}[n_valid]  # whole minibatches; all if there is none
    wrong = (expected != dataset.valid_y)[:n_counted].sum()
    assert wrong > 0
    assert wrong < n_counted or n_classes > 5  # of many classes all may be wrong
    assert backend.count_errors("valid") == wrong


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_first_of_equal_maxima_is_predicted(device):
    dataset = make_dataset(n_classes=4)
    settings = settings_of(batch_size=10)
    parameters = model.initial_parameters(dataset, settings, np.float32)
    parameters["bias"][:] = [0, 2, 1, 2]
    backend = load_backend("logistic_regression", device)(dataset, parameters, settings, np.float32)
    assert (backend.predict("test") == 1).all()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_backend_keeps_its_own_copy_of_the_parameters(device):
    dataset = make_dataset()
    settings = settings_of(batch_size=10)
    given = model.initial_parameters(dataset, settings, np.float32)
    backend = load_backend("logistic_regression", device)(dataset, given, settings, np.float32)
    taken = backend.get_parameters()
    backend.train(0, 2)
    assert all((array == 0).all() for array in (*given.values(), *taken.values()))
    assert (backend.get_parameters()["weights"] != 0).any()
    backend.set_parameters(taken)
    assert (backend.get_parameters()["weights"] == 0).all()


def test_bits_do_not_depend_on_the_number_of_threads():
    import numba

    dataset = make_dataset(n_train=400, shape=(28, 28), n_classes=10)
    settings = settings_of(batch_size=130, l2=0.001)
    results = []
    available = numba.config.NUMBA_NUM_THREADS  # two at least, see conftest.py
    for threads in (1, available):
        numba.set_num_threads(threads)
        parameters = random_parameters(dataset, np.float32)
        backend = load_backend("logistic_regression", "cpu")(
            dataset, parameters, settings, np.float32
        )
        costs = backend.train(0, 9)
        results.append([costs, *backend.get_parameters().values()])
    numba.set_num_threads(available)
    for one, many in zip(*results, strict=True):
        assert one.tobytes() == many.tobytes()


def test_model_probabilities_agree_with_the_oracle():
    dataset = make_dataset()
    parameters = random_parameters(dataset, np.float32)
    images = dataset.images("test", [3, 5])
    expected = oracle.softmax(
        images @ parameters["weights"].astype(np.float64) + parameters["bias"]
    )
    np.testing.assert_allclose(
        model.probabilities(parameters, images, {}, dataset.image_shape), expected, rtol=1e-12
    )
