"""Both twins of logistic regression against the oracle, at the edges of tasks, vectors, blocks."""

import numpy as np
import oracle
import pytest
import toy
from conftest import darkened, make_dataset
from contract import ALL_KINDS, Adapter, SgdContract, Sizes

from msgd.kernels.patches import CLASSES, PATCH
from msgd.models import DEVICES
from msgd.models.logistic_regression import model
from msgd.models.logistic_regression.cpu import TASKS

PENALISED = {"l1": 0.01, "l2": 0.02, "lp": 0.03, "p": 1.5}
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
        "cuda": [Sizes(*size, PENALISED) for size in CUDA_SIZES],
    },
    predictions={"cuda": PREDICTIONS},
    tolerances={"float32": 3e-6, "float64": 1e-13},
    noise=1.0,
    kinds=ALL_KINDS,
    copied=((3, {}), (CLASSES, {})),
    threads=((400, {"batch_size": 130, "l2": 0.001}),),
    published_batch={"cuda": 2},
)


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
