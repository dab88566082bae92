"""The dense layer of the CPU against plain matrix products, at sizes around vector edges."""

import numpy as np
import pytest
from numba import njit

from msgd.kernels import dense_layer
from msgd.kernels.arguments import Descent
from msgd.kernels.dense_layer import (
    BLOCK,
    LOGITS,
    get_dense_parameters,
    new_activations,
    new_dense_layer,
    padded,
    set_dense_parameters,
    with_copy,
    with_sums,
)
from msgd.kernels.formulas import SIGMOID, TANH

TOLERANCE = {"float32": 1e-5, "float64": 1e-13}  # of sums of up to 70 terms of size 1
SIZES = [(1, 1), (70, 10), (32, 16), (33, 17), (15, 35)]
PENALTIES = [(0, 0, 0), (0, 0.1, 0), (0.1, 0.2, 0), (0, 0.1, 0.2)]  # l1, l2, lp
TASK_PANELS = 3  # of inputs
PADDING = 7  # of the activations below: of no meaning, so anything


@njit
def panels_of(layer, task):
    n_panels = dense_layer.n_input_panels(layer)
    return task * TASK_PANELS, min((task + 1) * TASK_PANELS, n_panels)


@njit
def forward(layer, below, above, n):
    """The product by either way; images are cut where they are given in parts."""
    if layer.copy.size > 0:
        for panel in range(dense_layer.n_unit_panels(layer)):
            dense_layer.forward_panel(layer, below, above, n, panel)
        return
    for block in range(layer.sums.shape[0]):
        for images in ((0, n // 2), (n // 2, n)):
            dense_layer.sum_block(layer, below, images, block)
    dense_layer.add_sums(layer, above, (0, layer.bias.shape[0]), n)
    for i in range(n):
        row = above.h[i * above.stride : i * above.stride + layer.n_out]
        if above.kind != LOGITS:
            dense_layer.activate_all(row, above.kind)


@njit
def run(layer, below, above, n, descent, penalty):
    """Forward, backward, gradients and update; ``penalty`` (1,) is overwritten."""
    forward(layer, below, above, n)
    penalty[0] = 0
    n_panels = dense_layer.n_input_panels(layer)
    for task in range((n_panels + TASK_PANELS - 1) // TASK_PANELS):
        panels = panels_of(layer, task)
        dense_layer.backward_panels(layer, below, above, n, panels)
        dense_layer.add_gradient(layer, below, above, n, panels)
        penalty[0] += dense_layer.update_panels(layer, descent, panels)
    dense_layer.add_bias_gradient(layer, above, n)
    dense_layer.apply_bias_gradient(layer, descent)


def make_layer(n_in, n_out, float_x, way):
    layer = new_dense_layer(n_in, n_out, float_x)
    return with_copy(layer) if way == "copy" else with_sums(layer, 7)


@pytest.mark.parametrize("way", ["copy", "sums"])
@pytest.mark.parametrize("penalties", PENALTIES)
@pytest.mark.parametrize(("n_in", "n_out"), SIZES)
@pytest.mark.parametrize("float_name", TOLERANCE)
def test_a_step_of_a_layer_agrees_with_matrix_products(float_name, n_in, n_out, penalties, way):
    float_x, tolerance = np.dtype(float_name).type, TOLERANCE[float_name]
    random, n = np.random.RandomState(0), 7  # no whole groups
    weights, bias = random.normal(size=(n_in, n_out)), random.normal(size=n_out)
    h, error = random.uniform(-1, 1, (n, n_in)), random.normal(size=(n, n_out))
    layer = make_layer(n_in, n_out, float_x, way)
    set_dense_parameters(layer, weights, bias)
    below = new_activations(n, padded(n_in, BLOCK), SIGMOID, float_x)  # sum_block reads blocks
    above = new_activations(n, n_out, TANH, float_x)
    below.h[:] = PADDING
    below.h.reshape(8, -1)[:n, :n_in] = h
    above.error.reshape(8, -1)[:n, :n_out] = error
    l1, l2, lp = penalties
    descent = Descent(*map(float_x, (0.5, l1, l2, lp, 3)))
    penalty = np.zeros(1, float_x)
    run(layer, below, above, n, descent, penalty)

    def agree(found, expected):
        assert np.abs(found - expected).max() <= tolerance * max(1, np.abs(expected).max())

    agree(above.h.reshape(8, -1)[:n, :n_out], np.tanh(h @ weights + bias))
    agree(below.error.reshape(8, -1)[:n, :n_in], error @ weights.T * h * (1 - h))
    agree(penalty[0], (l1 * abs(weights) + l2 * weights**2 + lp * abs(weights) ** 3).sum())
    slope = l1 * np.sign(weights) + 2 * l2 * weights + 3 * lp * weights * abs(weights)
    new_weights, new_bias = get_dense_parameters(layer)
    assert new_weights.dtype == new_bias.dtype == float_x
    agree(new_weights, weights - 0.5 * (h.T @ error + slope))
    agree(new_bias, bias - 0.5 * error.sum(axis=0))
    assert not layer.gradient.any()
    assert not layer.bias_gradient.any()
    assert np.count_nonzero(layer.weights) == n_in * n_out  # the padding stays 0

    above = above._replace(kind=LOGITS)
    run(layer, below, above, n, descent, penalty)  # with the copy of the weights changed too
    agree(above.h.reshape(8, -1)[:n, :n_out], h @ new_weights + new_bias)
    agree(below.error.reshape(8, -1)[:n, :n_in], error @ new_weights.T * h * (1 - h))


@pytest.mark.parametrize("way", ["copy", "sums"])
@pytest.mark.parametrize(("n_in", "n_out"), SIZES)
def test_the_parameters_come_back_as_copies(n_in, n_out, way):
    random = np.random.RandomState(0)
    weights, bias = random.normal(size=(n_in, n_out)), random.normal(size=n_out)
    layer = make_layer(n_in, n_out, np.float64, way)
    set_dense_parameters(layer, weights, bias)
    for found, given in zip(get_dense_parameters(layer), (weights, bias), strict=True):
        np.testing.assert_array_equal(found, given)
        assert not any(np.shares_memory(found, array) for array in layer[3:])


@njit
def run_loss(above, n_classes, labels, share, first, last):
    return dense_layer.loss(above, n_classes, labels, share, first, last)


def test_the_loss_of_some_images_writes_their_errors_only():
    above = new_activations(3, 2, LOGITS, np.float64)
    above.h[:] = 0
    above.error[:] = 7
    found = run_loss(above, 2, np.array([0, 1, 0]), 0.1, 1, 3)
    assert found == pytest.approx(2 * np.log(2))
    error = above.error.reshape(4, -1)[:, :2]
    np.testing.assert_allclose(error, [[7, 7], [0.05, -0.05], [-0.05, 0.05], [7, 7]])
