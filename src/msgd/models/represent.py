"""What finished layers of a stack make of the training images, on the CPU: ``represent``.

The sums of a unit are taken in the order of its inputs, whatever the number of threads. Layers of
sigmoids make few zeros, so the products are those of dense matrices. CUDA devices are given the
same numbers: they take seconds, once for each layer, and the training that follows minutes.
"""

import numpy as np
from numba import njit, prange
from tqdm import tqdm

from msgd.kernels import options
from msgd.kernels.dense_layer import (
    LOGITS,
    forward_panel,
    n_unit_panels,
    new_activations,
    new_dense_layer,
    set_dense_parameters,
    with_copy,
)
from msgd.kernels.sigmoid import sigmoid
from msgd.kernels.vectors import LANES, load, store

TOGETHER = 500  # images, which a panel of weights serves


def represent(dataset, layers, float_x):
    """Return the units of the last of ``layers`` for all training images, (N, n_units) floatX.

    dataset: msgd.data.dataset.Dataset; layers: list of (weights (n_in, n_out), bias (n_out,)), each
    a layer of sigmoids over the one before; float_x: np.float32 or np.float64. Runs on the threads
    that options.use_threads has allowed, and gives the same bits for any number of them.
    """
    x, n_last = dataset.train_x, len(layers[-1][1])
    images = np.empty((len(x), n_last), float_x)
    units = [new_activations(TOGETHER, x.shape[1], LOGITS, float_x, has_error=False)]
    dense = []
    for weights, bias in layers:
        layer = with_copy(new_dense_layer(*weights.shape, float_x))
        set_dense_parameters(layer, weights, bias)
        dense.append(layer)
        units.append(new_activations(TOGETHER, len(bias), LOGITS, float_x, has_error=False))
    for start in tqdm(range(0, len(x), TOGETHER), "images of the next layer", disable=None):
        rows = slice(start, min(start + TOGETHER, len(x)))
        n = rows.stop - start
        pixels = units[0].h.reshape(-1, units[0].stride)[:n, : x.shape[1]]
        pixels[:] = x[rows].astype(float_x) * float_x(dataset.pixel_scale)
        for number, layer in enumerate(dense):
            _take_forward(layer, units[number], units[number + 1], n)
        images[rows] = units[-1].h.reshape(-1, units[-1].stride)[:n, :n_last]
    dataset.release_pages("train")
    return images


@njit(**options.CPU_PARALLEL)
def _take_forward(layer, below, above, n):
    """Overwrite the units of n images; layer: DenseLayer; below, above: Activations."""
    for index in prange(n_unit_panels(layer)):
        panel = np.int64(index)
        forward_panel(layer, below, above, n, panel)
        _take_sigmoids(above, n, panel)


@njit(**options.CPU)
def _take_sigmoids(above, n, panel):
    """Overwrite a panel of the units of n images, inputs of the sigmoid, with its values."""
    for at in range(panel * LANES, panel * LANES + n * above.stride, above.stride):
        store(above.h, at, sigmoid(load(above.h, at), above.h))
