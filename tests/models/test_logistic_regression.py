"""Both twins of logistic regression against the oracle, at the edges of tasks, vectors, blocks."""

from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import toy
from conftest import darkened, make_dataset
from contract import ALL_KINDS, Adapter, SgdContract, Sizes
from numba import cuda as numba_cuda

from msgd.kernels.patches import CLASSES, PATCH
from msgd.models import DEVICES
from msgd.models.logistic_regression import cuda, model
from msgd.models.logistic_regression.cpu import TASKS

FEW = 4  # blocks of the fast CUDA kernels that have images
PENALISED = {"l1": 0.01, "l2": 0.02, "lp": 0.03, "p": 1.5}
# On the CPU: images and patches around the number of tasks, pixels around the size of a patch, in
# rows and in images that do not fill their last patches, classes around the size of a block. On the
# simulator a block of the plain CUDA kernels is 4 classes by 8 rows of threads: sizes below, at and
# above its edges.
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
# Of the fast CUDA kernels, on few blocks (see few_blocks): images of which a block takes one,
# several, the most at once, and more in rounds, with a last block that lacks some or does not;
# pixels that some of a warp's threads have, all, and one thread more; classes of which a warp sums
# several images at once, three, and two.
FAST_SIZES = [
    *((batch, (2, 4), 3) for batch in (1, FEW, FEW + 1, FEW * cuda.MOST_IMAGES)),
    *((FEW * cuda.MOST_IMAGES + extra, (1, 4), 2) for extra in (1, 17)),
    *((7, (1, pixels), 2) for pixels in (4, 124, 128, 132)),
    *((FEW * 3, (4, 5), classes) for classes in (10, 11, 15, cuda.MOST_CLASSES)),
]
# What they leave to the plain ones.
PLAIN_SIZES = [
    (5, (3, 3), 2),
    (5, (1, cuda.MOST_PIXELS + 4), 2),
    (5, (4, 5), cuda.MOST_CLASSES + 1),
]
PREDICTIONS = [(n, classes, {}) for n in (9, 10, 33) for classes in (5, 2 * CLASSES + 1)]


def logits(parameters, images, settings):
    weights, bias = parameters
    return images.reshape(len(images), -1) @ weights + bias


def cost(parameters, images, y, settings):
    x, penalties = images.reshape(len(images), -1), oracle.penalties_of(settings)
    return oracle.logistic_regression_cost(parameters, x, y, **penalties)


def gradients(parameters, images, y, settings):
    x, penalties = images.reshape(len(images), -1), oracle.penalties_of(settings)
    return oracle.logistic_regression_gradients(parameters, x, y, **penalties)


ADAPTER = Adapter(
    name="logistic_regression",
    logits=logits,
    cost=cost,
    gradients=gradients,
    sizes={
        "cpu": [Sizes(*size, PENALISED) for size in CPU_SIZES],
        "cuda": [Sizes(*size, PENALISED) for size in [*CUDA_SIZES, *FAST_SIZES, *PLAIN_SIZES]],
    },
    predictions={"cuda": PREDICTIONS},
    tolerances={"float32": 3e-6, "float64": 1e-13},
    noise=1.0,
    toy_shape=(6, 6),
    kinds=ALL_KINDS,
    copied=((3, {}), (CLASSES, {})),
    threads=((400, {"batch_size": 130, "l2": 0.001}),),
    published_batch={"cuda": 2},
)


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch):
    """The fast CUDA kernels take several images a block, and rounds of them, if toys are larger."""
    monkeypatch.setattr(cuda, "MOST_BLOCKS", FEW)


class TestContract(SgdContract):
    adapter = ADAPTER


@pytest.mark.parametrize("device", DEVICES)
def test_gradient_of_l1_is_zero_at_zero(device):
    every_image_first_pixel = np.s_[:, 0]  # a pixel that is always zero gets no other gradient
    dataset = darkened(make_dataset(n_train=8), every_image_first_pixel)
    settings = toy.settings_of("logistic_regression", batch_size=8, l1=0.7)
    zeros = model.initial_parameters(dataset, settings, np.float32)
    backend = toy.make_backend(device, dataset, settings, zeros)
    backend.train(0, 1)
    weights = backend.get_parameters()["weights"]
    assert (weights[0] == 0).all()
    assert (weights[1] != 0).any()


# The fast CUDA kernels.


def cuda_backend(size, float_x=np.float32, pixels="uint8", **changes):
    """Return the CUDA backend of two minibatches of ``size``: (batch_size, shape, n_classes)."""
    batch_size, shape, n_classes = size
    dataset = make_dataset(2 * batch_size + n_classes, 20, n_classes, shape, n_classes, pixels)
    settings = toy.settings_of("logistic_regression", batch_size=batch_size, **changes)
    parameters = toy.random_parameters(dataset, settings, float_x)
    return toy.make_backend("cuda", dataset, settings, parameters)


@pytest.mark.skipif(not cuda.HAS_WARPS, reason="the fast kernels need warps")
@pytest.mark.parametrize("pixels", ["uint8", "float32"])
@pytest.mark.parametrize("size", FAST_SIZES, ids=str)
def test_the_fast_kernels_serve(size, pixels):
    assert cuda_backend(size, pixels=pixels).why_plain == ""


@pytest.mark.parametrize("size", PLAIN_SIZES, ids=str)
def test_the_plain_kernels_serve_what_the_fast_ones_do_not(size):
    assert cuda_backend(size).why_plain
    assert cuda_backend(FAST_SIZES[0], np.float64).why_plain


@pytest.mark.parametrize(("multiprocessors", "reason"), [(99, "99 multiprocessors"), (100, "")])
def test_the_plain_kernels_serve_a_small_device(monkeypatch, multiprocessors, reason):
    device = SimpleNamespace(MULTIPROCESSOR_COUNT=multiprocessors)
    monkeypatch.setattr(cuda, "MOST_BLOCKS", 100)
    monkeypatch.setattr(cuda, "IS_SIMULATOR", False)
    monkeypatch.setattr(numba_cuda, "get_current_device", lambda: device)
    assert reason in cuda.why_plain(784, 10, 600, np.float32)
    assert bool(reason) == bool(cuda.why_plain(784, 10, 600, np.float32))


def test_why_the_plain_kernels_serve_is_said_once(caplog):
    with caplog.at_level("INFO"):
        backend = cuda_backend(PLAIN_SIZES[0])
        backend.train(0, 2)
        backend.predict("test")
    (record,) = caplog.records
    assert "images have 9 pixels; allowed: multiples of 4 up to 1024" in record.message


@pytest.mark.skipif(not cuda.HAS_WARPS, reason="the fast kernels need warps")
@pytest.mark.parametrize("size", [(FEW * 3 - 1, (1, 132), 3), (FEW * 6 + 1, (1, 4), 7)], ids=str)
def test_the_fast_kernels_have_the_same_bits_in_any_order(monkeypatch, size):
    """Of threads; else they race."""
    results = set()
    for order in ("forward", "reverse", "1"):
        monkeypatch.setenv("MSGD_SIMULATOR_ORDER", order)
        backend = cuda_backend(size, **PENALISED)
        found = [backend.train(0, 2), *backend.get_parameters().values(), backend.predict("test")]
        assert all(np.isfinite(array).all() for array in found)
        results.add(b"".join(array.tobytes() for array in found))
    assert len(results) == 1


@pytest.mark.skipif(not cuda.HAS_WARPS, reason="the fast kernels need warps")
@pytest.mark.parametrize("n_classes", [10, cuda.MOST_CLASSES])
@pytest.mark.parametrize("pixels", ["uint8", "float32"])
def test_fast_logits_agree_with_the_oracle(pixels, n_classes):
    """Of groups of images that are full or lack some, for each block none, one and several."""
    backend = cuda_backend((5, (2, 66), n_classes), pixels=pixels)
    assert backend.why_plain == ""
    parameters = [array.astype(np.float64) for array in backend.get_parameters().values()]
    images = make_dataset(40, shape=(2, 66), n_classes=n_classes, pixels=pixels).train_x
    for n in (1, cuda.MOST_IMAGES, 3 * cuda.MOST_IMAGES + 1):
        found = numba_cuda.device_array((n, n_classes), np.float32)
        backend.launch_logits(numba_cuda.to_device(images[:n]), found)
        expected = logits(parameters, oracle.pixels(images[:n]), {})
        error = np.linalg.norm(found.copy_to_host() - expected)
        assert error <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("n_classes", [2, 10, cuda.MOST_CLASSES])
@pytest.mark.parametrize("n_pixels", [4, 784, cuda.MOST_PIXELS])
def test_every_image_column_and_row_has_its_place(monkeypatch, n_pixels, n_classes):
    monkeypatch.setattr(cuda, "MOST_BLOCKS", 100)
    for batch_size in (*range(1, 1300), 5000, 50000):
        sizes = cuda.Sizes(*map(int, cuda.sizes_of(n_pixels, n_classes, batch_size)))
        taken = sizes.images * sizes.rounds
        assert (sizes.image_blocks - 1) * taken < batch_size <= sizes.image_blocks * taken
        assert sizes.images <= min(batch_size, cuda.MOST_IMAGES)
        assert sizes.image_blocks <= sizes.blocks <= 100
        assert sizes.blocks * sizes.share >= sizes.columns == (n_pixels + 1) * n_classes + 1
        assert sizes.image_blocks % sizes.teams == 0
        assert sizes.teams * sizes.share <= sizes.threads <= 256
        assert max(n_pixels // 4, sizes.images * (n_classes + 1)) <= sizes.threads
        assert sizes.together * n_classes <= 32
        assert sizes.groups * sizes.together >= sizes.images


def test_the_published_minibatch_is_six_images_for_each_of_a_hundred_blocks(monkeypatch):
    monkeypatch.setattr(cuda, "MOST_BLOCKS", 100)
    sizes = cuda.sizes_of(784, 10, 600)
    assert (sizes.images, sizes.rounds, sizes.image_blocks, sizes.blocks) == (6, 1, 100, 100)
    assert (sizes.share, sizes.teams, sizes.threads) == (79, 2, 224)
