"""Both twins of LeNet: the contract, and what is its own."""

import dataclasses
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
from contract import (
    ALL_KINDS,
    Adapter,
    SgdContract,
    Sizes,
    as_images,
    as_list,
    bits,
    relative_error,
)
from numba import cuda as numba_cuda

from msgd.errors import UserError
from msgd.kernels import cuda as kernels
from msgd.kernels import cuda_tensor_cores, options
from msgd.models import DEVICES
from msgd.models.lenet import cpu, cuda, cuda_backward, cuda_forward, cuda_layout, cuda_plain, model

needs_warps = pytest.mark.skipif(not kernels.HAS_WARPS, reason="the plain simulator has no warps")

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
        slow_at_published=("cuda",),
    )


def test_predictions_in_parts_on_cuda(monkeypatch):
    """More images than pass through the layers at a time."""
    monkeypatch.setattr(cuda_plain, "PREDICTED_TOGETHER", 5)
    TestContract().test_predictions_and_error_counts("cuda", (14, 5, SMALL))


# The fast CUDA kernels: at the edges of their groups, bundles and tiles, and of their limits.

FAST = toy.FAST_LAYERS["lenet"]  # on the smallest images: 16 x 20
FAST_PREDICTIONS = [
    # (images, their shape, classes, changes): groups of 4, bundles of 5 maps, tiles of 64 x 32
    (5, (16, 20), 3, FAST),
    (1, (16, 20), 10, {**FAST, "nkerns": [1, 1], "activation": "sigmoid"}),
    (4, (20, 20), 3, {**FAST, "nkerns": [6, 11], "n_hidden": [65]}),
    (66, (16, 20), 2, {**FAST, "nkerns": [2, 4], "n_hidden": 1}),
    (2, (28, 28), 4, {**FAST, "nkerns": [3, 7], "n_hidden": 33}),
]
FAST_STEPS = [
    # (images of a minibatch, their shape, classes, changes), likewise
    (4, (16, 20), 3, FAST),
    (
        6,
        (16, 20),
        3,
        {
            **FAST,
            "nkerns": [3, 6],
            "n_hidden": 7,
            "activation": "sigmoid",
            "maxpool_ties": "first",
            "l1": 0.01,
            "l2": 0.02,
            "lp": 0.01,
            "p": 3,
        },
    ),
    (1, (16, 20), 10, {**FAST, "nkerns": [1, 1], "n_hidden": 65}),
    (65, (16, 20), 2, {**FAST, "nkerns": [1, 2], "n_hidden": 1}),
    (2, (28, 28), 4, {**FAST, "nkerns": [2, 5], "n_hidden": 3, "l2": 0.01}),
    # Many maps, so that a thread has many squares of one, and reads some of them ahead.
    (3, (16, 20), 3, {**FAST, "nkerns": [20, 3], "n_hidden": 3}),
]
NOT_FAST = [
    # (shape, classes, changes): each past one of the limits
    ((16, 20), 11, FAST),
    ((16, 20), 3, {**FAST, "n_hidden": [3, 3]}),
    ((16, 20), 3, {**FAST, "filter_size": 3}),
    ((17, 18), 3, {**FAST, "pool_size": 1}),
    ((28, 28), 3, {**FAST, "nkerns": [5]}),
    ((16, 22), 3, FAST),
    ((16, 24), 3, FAST),
    ((16, 36), 3, FAST),
    ((44, 20), 3, FAST),
    ((16, 20), 3, {**FAST, "nkerns": [33, 10]}),
    ((28, 28), 3, {**FAST, "nkerns": [20, 51]}),
    ((36, 28), 3, {**FAST, "nkerns": [25, 5]}),
]


def fast_backend(n_images, shape, n_classes, changes):
    """Return (Backend, settings, parameters, dataset) with n_images to validate."""
    dataset = make_dataset(n_classes, n_images, n_classes, shape, n_classes)
    settings = toy.settings_of("lenet", batch_size=1, **changes)
    parameters = toy.random_parameters(dataset, settings, np.float32, noise=0.3)
    return cuda.Backend(dataset, parameters, settings, np.float32), settings, parameters, dataset


def fast_logits(backend, images):
    """Return the logits of images (n, D) by the fast kernels, (n, C)."""
    assert backend.why_plain == ""
    logits = numba_cuda.device_array((len(images), backend.n_classes), np.float32)
    backend.launch_logits(numba_cuda.to_device(images), logits)
    return logits.copy_to_host()


@needs_warps
@pytest.mark.parametrize("prediction", FAST_PREDICTIONS, ids=str)
def test_fast_logits_agree_with_the_oracle(prediction):
    backend, settings, parameters, dataset = fast_backend(*prediction)
    found = fast_logits(backend, dataset.valid_x)
    images = as_images(dataset.valid_x, dataset.image_shape)
    expected = oracle_lenet.forward(as_list(parameters), images, settings)[2]
    assert relative_error(found, expected) < 2e-6


@needs_warps
def test_fast_logits_have_the_same_bits_in_any_order_and_on_any_grid(monkeypatch):
    backend, _, _, dataset = fast_backend(*FAST_PREDICTIONS[0])
    found = []
    for order, blocks in (("forward", 1), ("reverse", 3), ("5", 2)):
        monkeypatch.setenv("MSGD_SIMULATOR_ORDER", order)
        monkeypatch.setattr(kernels, "SIMULATOR_BLOCKS", blocks)
        found.append(bits(fast_logits(backend, dataset.valid_x)))
    assert found[0] == found[1] == found[2]


@needs_warps
def test_fast_predictions_in_parts(monkeypatch):
    """More images than pass through the layers at a time, the last part not full."""
    monkeypatch.setattr(cuda, "PREDICTED_TOGETHER", 4)
    backend, settings, parameters, dataset = fast_backend(10, (16, 20), 3, FAST)
    images = as_images(dataset.valid_x, dataset.image_shape)
    expected = oracle_lenet.forward(as_list(parameters), images, settings)[2].argmax(axis=1)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(backend.predict("valid"), expected)


@needs_warps
@pytest.mark.parametrize("sizes", FAST_STEPS, ids=str)
def test_a_fast_step_agrees_with_the_oracle(sizes):
    TestContract().check_a_step("cuda", Sizes(*sizes), "float32", "uint8")


@needs_warps
def test_a_fast_step_on_pixels_of_float32():
    TestContract().check_a_step("cuda", Sizes(*FAST_STEPS[0]), "float32", "float")


@needs_warps
@pytest.mark.parametrize("sizes", [*FAST_STEPS, (4, (10, 10), 3, SMALL)], ids=str)
def test_which_kernels_train(sizes):
    batch_size, shape, n_classes, changes = sizes
    dataset = make_dataset(max(batch_size, n_classes), 10, 10, shape, n_classes)
    settings = toy.settings_of("lenet", batch_size=batch_size, **changes)
    parameters = toy.random_parameters(dataset, settings, np.float32)
    backend = toy.make_backend("cuda", dataset, settings, parameters)
    assert (backend.why_plain == "") == (changes is not SMALL)


@needs_warps
@pytest.mark.parametrize("n", [4, 3 * 4 * 320, 3 * 4 * 320 + 4, 8000])
def test_numbers_are_copied_whatever_rounds_they_take(n):
    """A round of a block is 3 words of 4 numbers for each of its 320 threads."""

    @numba_cuda.jit(**options.CUDA_ENTRY)
    def copy(source, first, n, target, at):
        t = np.uint32(numba_cuda.threadIdx.x)
        here = cuda_forward.Here(t, np.uint32(0), np.uint32(1))
        cuda_forward.copy_words(source, first, n, here, target, at)

    source = np.arange(8100, dtype=np.float32)
    target = numba_cuda.to_device(np.zeros(8100, np.float32))
    arguments = np.uint32(8), np.uint32(n), target, np.uint32(12)
    copy[1, cuda_layout.THREADS](numba_cuda.to_device(source), *arguments)
    expected = np.zeros(8100, np.float32)
    expected[12 : 12 + n] = source[8 : 8 + n]
    np.testing.assert_array_equal(target.copy_to_host(), expected)


@pytest.mark.parametrize("n_groups", [1, 24, 25, 53])
def test_the_groups_gradients_are_summed_in_order(n_groups):
    """Whole rounds of 25 groups are read at once, the rest one by one."""

    @numba_cuda.jit(**options.CUDA_ENTRY)
    def total(partial, n_groups, n, sums):
        for i in range(n):
            sums[i] = cuda_backward._sum_groups(np.uint32(i), n_groups, np.uint32(n), partial)

    partial = np.random.RandomState(8).normal(size=(n_groups, 3)).astype(np.float32)
    expected = np.zeros(3, np.float32)
    for row in partial:
        expected += row
    sums = numba_cuda.to_device(np.zeros(3, np.float32))
    total[1, 1](numba_cuda.to_device(partial.ravel()), np.uint32(n_groups), 3, sums)
    np.testing.assert_array_equal(sums.copy_to_host(), expected)


def assert_same_bits_however_cut(monkeypatch, dataset, settings):
    """Cut two minibatches into calls and chunks, over blocks, with whichever thread first."""
    parameters = toy.random_parameters(dataset, settings, np.float32)
    found = []
    for order, blocks, chunk, spans in (
        ("forward", 1, None, [(0, 1), (1, 2)]),
        ("reverse", 2, None, [(0, 2)]),
        ("5", 3, 1, [(0, 2)]),
    ):
        monkeypatch.setenv("MSGD_SIMULATOR_ORDER", order)
        monkeypatch.setattr(kernels, "SIMULATOR_BLOCKS", blocks)
        backend = toy.make_backend("cuda", dataset, settings, parameters, chunk)
        assert backend.why_plain == ""
        costs = np.concatenate([backend.train(*span) for span in spans])
        found.append(bits(costs, backend.get_parameters()))
    assert found[0] == found[1] == found[2]


@needs_warps
def test_fast_training_has_the_same_bits_however_it_is_cut(monkeypatch):
    dataset = make_dataset(10, 4, 4, (16, 20), 3)  # two minibatches of five
    layers = {**FAST, "nkerns": [2, 6]}
    settings = toy.settings_of("lenet", batch_size=5, l1=0.001, l2=0.01, **layers)
    assert_same_bits_however_cut(monkeypatch, dataset, settings)


@needs_warps
def test_fast_steps_follow_the_reference():
    """What is padding stays 0, and old and new weights take turns."""
    dataset = make_dataset(6, 3, 3, (16, 20), 3)  # two minibatches
    layers = {**FAST, "nkerns": [2, 3], "n_hidden": 5, "activation": "sigmoid"}
    settings = toy.settings_of("lenet", batch_size=3, learning_rate=0.5, l2=0.01, **layers)
    parameters = toy.random_parameters(dataset, settings, np.float32)
    costs, changes = [], []
    for device, float_x in (("cuda", np.float32), ("reference", np.float64)):
        given = {name: array.astype(float_x) for name, array in parameters.items()}
        backend = toy.make_backend(device, dataset, settings, given)
        costs.append(backend.train(0, 3))
        changes.append({n: array - given[n] for n, array in backend.get_parameters().items()})
    np.testing.assert_allclose(*costs, rtol=1e-5)
    for name, expected in changes[1].items():
        rounding = 4 * np.finfo(np.float32).eps * np.linalg.norm(parameters[name])
        error = np.linalg.norm(changes[0][name] - expected)
        assert error <= 1e-5 * np.linalg.norm(expected) + rounding, name


@needs_warps
@pytest.mark.parametrize("ties", ["all", "first"])
def test_tied_maxima_by_the_fast_kernels(ties):
    """Images of one grey: in both layers all pixels of every square are equal."""
    dataset = make_dataset(3, 3, 3, (16, 20), 3)
    dataset = dataclasses.replace(dataset, train_x=np.full_like(dataset.train_x, 100))
    layers = {**FAST, "nkerns": [2, 3]}
    settings = toy.settings_of("lenet", batch_size=3, maxpool_ties=ties, **layers)
    parameters = toy.random_parameters(dataset, settings, np.float32)
    changes = []
    for device, float_x in (("cuda", np.float32), ("reference", np.float64)):
        given = {name: array.astype(float_x) for name, array in parameters.items()}
        backend = toy.make_backend(device, dataset, settings, given)
        backend.train(0, 1)
        changes.append({n: array - given[n] for n, array in backend.get_parameters().items()})
    for name, expected in changes[1].items():
        assert np.abs(expected).max() > 0
        assert relative_error(changes[0][name], expected) < 1e-4, name


@pytest.mark.parametrize(("shape", "n_classes", "changes"), NOT_FAST)
def test_past_the_limits_the_plain_kernels_serve(shape, n_classes, changes):
    settings = toy.settings_of("lenet", **changes)
    assert cuda_layout.why_plain(shape, settings, n_classes)


def test_float64_is_for_the_plain_kernels():
    dataset = make_dataset(4, 3, 3, (16, 20), 3)
    settings = toy.settings_of("lenet", batch_size=1, **FAST)
    parameters = toy.random_parameters(dataset, settings, np.float64)
    assert cuda.Backend(dataset, parameters, settings, np.float64).why_plain
    assert cuda_layout.why_plain((16, 20), settings, 3) == ""


# TF32: tensor cores in training, config key ``arithmetic``.

# So many maps and units that no 0 of padding is left in the shared memory that phases use in turns.
TENSOR = {"filter_size": 5, "nkerns": [2, 8], "n_hidden": 20, "arithmetic": "tf32"}
TENSOR_STEPS = [
    # (images of a minibatch, their shape, classes, changes): pairs of images, 8 maps below, 8 or 32
    # above, one to four rows of squares, an odd row left over
    (3, (16, 28), 3, TENSOR),
    (
        5,
        (18, 28),
        3,
        {
            **TENSOR,
            "nkerns": [3, 6],
            "n_hidden": 7,
            "activation": "sigmoid",
            "maxpool_ties": "first",
            "l1": 0.01,
            "l2": 0.02,
            "lp": 0.01,
            "p": 3,
        },
    ),
    pytest.param(
        (2, (31, 28), 4, {**TENSOR, "nkerns": [9, 17], "n_hidden": 3}), marks=pytest.mark.slow
    ),
]
NOT_TENSOR = [
    # (shape, changes): each past one of the limits of tensor cores alone
    ((16, 20), TENSOR),
    ((32, 28), TENSOR),
    ((28, 28), {**TENSOR, "nkerns": [21, 5]}),
    ((16, 28), {**TENSOR, "nkerns": [5, 57]}),
]
needs_simulator = pytest.mark.skipif(
    not kernels.IS_SIMULATOR, reason="tensor cores do not multiply in float32"
)


@needs_warps
@needs_simulator
@pytest.mark.parametrize("sizes", TENSOR_STEPS, ids=str)
def test_a_step_on_tensor_cores_agrees_with_the_oracle_but_for_rounding(monkeypatch, sizes):
    """Where to_tf32 rounds nothing, only the order of sums is another."""
    monkeypatch.setattr(cuda_tensor_cores, "SPLIT", np.float32(1))
    TestContract().check_a_step("cuda", Sizes(*sizes), "float32", "uint8")


def after_a_step(sizes, arithmetic):
    """Return the parameters (dict) before a CUDA step, its cost, and the Backend after it."""
    batch_size, shape, n_classes, changes = sizes
    dataset = make_dataset(max(batch_size, n_classes), 3, 3, shape, n_classes)
    changes = {**changes, "arithmetic": arithmetic}
    settings = toy.settings_of("lenet", batch_size=batch_size, **changes)
    parameters = toy.random_parameters(dataset, settings, np.float32)
    backend = toy.make_backend("cuda", dataset, settings, parameters)
    (cost,) = backend.train(0, 1)
    return parameters, cost, backend


def changes_of_a_step(sizes, arithmetic):
    """Return what a CUDA step changes of the parameters, one array each, and its cost."""
    before, cost, backend = after_a_step(sizes, arithmetic)
    after = backend.get_parameters()
    return [after[name] - before[name] for name in before], cost


@needs_warps
def test_what_tensor_cores_read_is_rounded_and_the_parameters_are_not():
    """Of numbers that are not rounded a GPU drops bits, which is no rounding."""
    _, _, backend = after_a_step(TENSOR_STEPS[0], "tf32")
    kept, parameters = backend.network.kept, backend.arranged.parts
    for array in (kept.h1, parameters.filters2, parameters.filters2_by_map):
        numbers = array.copy_to_host()
        assert np.abs(numbers).max() > 0
        np.testing.assert_array_equal(cuda_tensor_cores.to_tf32(numbers), numbers)
    exact = parameters.filters2_exact.copy_to_host()
    assert (cuda_tensor_cores.to_tf32(exact) != exact).any()


@needs_warps
def test_tf32_differs_from_float32_by_its_rounding():
    """Each factor is off by up to 2^-11 of itself, and each gradient by some such factors."""
    exact, exact_cost = changes_of_a_step(TENSOR_STEPS[0], "float32")
    found, cost = changes_of_a_step(TENSOR_STEPS[0], "tf32")
    assert 0 < abs(cost - exact_cost) < 2e-4 * exact_cost
    for one, other in zip(found, exact, strict=True):
        assert 0 < relative_error(one, other) < 10 * 2**-11


@needs_warps
def test_predictions_are_in_float32_whatever_trains():
    found = []
    for arithmetic in ("float32", "tf32"):
        backend, _, _, dataset = fast_backend(5, (16, 28), 3, {**TENSOR, "arithmetic": arithmetic})
        found.append(bits(fast_logits(backend, dataset.valid_x)))
    assert found[0] == found[1]


@pytest.mark.slow
@needs_warps
def test_training_on_tensor_cores_has_the_same_bits_however_it_is_cut(monkeypatch):
    dataset = make_dataset(6, 3, 3, (20, 28), 3)  # two minibatches of three
    layers = {**TENSOR, "nkerns": [2, 11], "n_hidden": 3}  # several warps write a pair's places
    settings = toy.settings_of("lenet", batch_size=3, l2=0.01, **layers)
    assert_same_bits_however_cut(monkeypatch, dataset, settings)


@pytest.mark.parametrize(("shape", "changes"), NOT_TENSOR, ids=str)
def test_past_the_limits_of_tensor_cores_the_fast_kernels_serve(shape, changes):
    settings = toy.settings_of("lenet", **changes)
    assert cuda_layout.why_plain(shape, settings, 3) == ""
    assert "allowed" in cuda_layout.why_not_tf32(shape, settings, 3)


def test_tensor_cores_ask_for_their_own_shared_memory():
    """They need more than the kernels in float32, so fewer hidden units fit."""
    why = {}
    for n_hidden in (2816, 2944):
        settings = toy.published_settings("lenet", n_hidden=n_hidden)
        assert cuda_layout.why_plain((28, 28), settings, 10) == ""
        why[n_hidden] = cuda_layout.why_not_tf32((28, 28), settings, 10)
    assert why[2816] == ""
    assert "shared memory; allowed: 49152" in why[2944]


@pytest.mark.parametrize(
    ("shape", "changes", "why"),
    [
        ((16, 20), TENSOR, "allowed: up to 31 rows of 28"),
        ((10, 10), {**SMALL, "arithmetic": "tf32"}, "not two layers of 5 x 5 filters"),
    ],
)
def test_nothing_stands_in_for_tf32(shape, changes, why):
    dataset = make_dataset(4, 3, 3, shape, 3)
    settings = toy.settings_of("lenet", batch_size=2, **changes)
    parameters = toy.random_parameters(dataset, settings, np.float32)
    backend = toy.make_backend("cuda", dataset, settings, parameters)
    expected = why if kernels.HAS_WARPS else "no warps"
    with pytest.raises(UserError, match=f"arithmetic is tf32, but .*{expected}.* float32"):
        backend.train(0, 1)
    assert len(backend.predict("valid")) == 3  # to score needs no tensor cores


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
