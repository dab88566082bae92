"""Both twins of LeNet: the contract, and what is its own."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle_lenet
import pytest
import toy
from conftest import darkened, make_dataset
from contract import ALL_KINDS, Adapter, SgdContract, Sizes, as_list

from msgd.errors import UserError
from msgd.models import DEVICES
from msgd.models.lenet import cpu, cuda_plain, model

SMALL = {"nkerns": [2, 3], "filter_size": 3, "n_hidden": 4}  # on images of 10 x 10
CPU_SIZES = [
    # (batch_size, image shape, classes, changes): tiles of 256, chunks of a tile's sixteenth,
    # vectors of 16 units, panels of two or three vectors of 8 maps; gradients over lists and, where
    # the layer has many maps for its patches, over all pixels
    (1, (10, 10), 3, SMALL),
    (7, (10, 13), 3, {**SMALL, "l1": 0.01, "l2": 0.02, "lp": 0.01, "p": 3}),
    (16, (13, 10), 3, {**SMALL, "maxpool_ties": "first"}),
    (17, (7, 9), 3, {"nkerns": [17], "filter_size": 2, "pool_size": 3, "n_hidden": [16, 5]}),
    (33, (26, 28), 3, {"nkerns": [16, 4, 3], "filter_size": 3, "n_hidden": 17}),
    (
        9,
        (11, 10),
        3,
        {"nkerns": [25, 41], "filter_size": 2, "maxpool_ties": "first", "n_hidden": 3},
    ),
    (5, (12, 12), 3, {"nkerns": [3, 33], "filter_size": 1, "pool_size": 1, "n_hidden": 3}),
    (cpu.TILE - 1, (10, 10), 3, {**SMALL, "activation": "sigmoid"}),
    (cpu.TILE + 1, (10, 10), 3, {**SMALL, "n_hidden": [4, 15, 3]}),
    (20, (28, 28), 3, {}),
]
CUDA_SIZES = [
    # a block of the simulator is 4 columns by 8 rows of threads
    (1, (10, 10), 3, SMALL),
    (5, (10, 11), 3, {**SMALL, "l1": 0.01, "l2": 0.02, "lp": 0.01, "p": 3}),
    (4, (11, 10), 3, {**SMALL, "maxpool_ties": "first", "n_hidden": [5, 4]}),
    (3, (5, 6), 3, {"nkerns": [5], "filter_size": 2, "pool_size": 2, "n_hidden": 3}),
    (3, (9, 8), 3, {"nkerns": [2, 3, 2], "filter_size": 2, "pool_size": 1, "n_hidden": 3}),
    (9, (6, 6), 3, {"nkerns": [2], "filter_size": 3, "n_hidden": 4, "activation": "sigmoid"}),
]
PREDICTIONS = [(9, 5, SMALL), (14, 5, SMALL)]


def logits(parameters, images, settings):
    return oracle_lenet.forward(parameters, images, settings)[2]


class TestContract(SgdContract):
    adapter = Adapter(
        name="lenet",
        logits=logits,
        cost=oracle_lenet.cost,
        gradients=oracle_lenet.gradients,
        sizes={
            "cpu": [Sizes(*size) for size in CPU_SIZES],
            "cuda": [Sizes(*size) for size in CUDA_SIZES],
        },
        predictions={"cpu": [(9, 5, SMALL), (cpu.TILE + 13, 5, SMALL)], "cuda": PREDICTIONS},
        # A gradient passes a handful of sums of up to some thousand terms, each rounded once.
        tolerances={"float32": 1e-5, "float64": 1e-13},
        kinds=ALL_KINDS,
        smooth=({"n_hidden": [4, 3]}, {"n_hidden": [4, 3], "activation": "sigmoid"}),
        copied=((3, {}), (3, {"n_hidden": [16, 16]})),  # the latter fill their vectors
        threads=((600, {"batch_size": 290, "l2": 0.001}),),
        published_batch={"cuda": 2},  # for its price
    )


def test_predictions_in_parts_on_cuda(monkeypatch):
    """More images than pass through the layers at a time."""
    monkeypatch.setattr(cuda_plain, "PREDICTED_TOGETHER", 5)
    TestContract().test_predictions_and_error_counts("cuda", (14, 5, SMALL))


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
        parameters = model.initial_parameters(dataset, toy.published_settings("lenet"), float_x)
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
        sigmoid = model.initial_parameters(
            dataset, toy.published_settings("lenet", activation="sigmoid"), float_x
        )
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
        model.initial_parameters(dataset, toy.published_settings("lenet", **changes), np.float32)


@pytest.mark.parametrize("ties", ["all", "first"])
@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_of_tied_maxima_goes_where_the_setting_says(device, ties):
    """Blank images: in layer 2 all pixels of a square are equal, and its input is not 0.

    Its weights' gradient is then as many times that of ``first`` as a square has pixels.
    """
    dataset = darkened(make_dataset(n_train=6, shape=(10, 10)), slice(None))
    settings = toy.settings_of("lenet", batch_size=6, learning_rate=1.0, maxpool_ties=ties, **SMALL)
    parameters = toy.random_parameters(dataset, settings, np.float64)
    backend = toy.make_backend(device, dataset, settings, parameters)
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


def test_the_cpu_backend_starts_the_threads_itself():
    """A function from the cache may not start them, see Backend.allocate."""
    program = """
from conftest import make_dataset
from numba.np.ufunc import parallel
import numpy as np
import toy
dataset, settings = make_dataset(shape=toy.SHAPE), toy.settings_of("lenet", batch_size=10)
parameters = toy.random_parameters(dataset, settings, np.float32)
assert not parallel._is_initialized
toy.make_backend("cpu", dataset, settings, parameters)
assert parallel._is_initialized
"""
    folder = Path(__file__).parent
    path = os.pathsep.join([str(folder), str(folder.parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
