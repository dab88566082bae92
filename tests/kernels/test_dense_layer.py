"""The dense layer of the CPU against plain matrix products, at sizes around vector edges."""

import numpy as np
import pytest
from numba import njit

from msgd.kernels import dense_layer
from msgd.kernels.arguments import Descent
from msgd.kernels.dense_layer import (
    LOGITS,
    get_dense_parameters,
    new_activations,
    new_dense_layer,
    set_dense_parameters,
)
from msgd.kernels.formulas import SIGMOID, TANH

TOLERANCE = {"float32": 1e-5, "float64": 1e-13}  # of sums of up to 70 terms of size 1
SIZES = [(1, 1), (70, 10), (32, 16), (33, 17), (15, 35)]
PENALTIES = [(0, 0, 0), (0, 0.1, 0), (0.1, 0.2, 0), (0, 0.1, 0.2)]  # l1, l2, lp


@njit
def run(layer, below, above, n, descent, penalty):
    """Forward, backward, gradients and update; ``penalty`` (1,) is overwritten."""
    for panel in range(dense_layer.n_unit_panels(layer)):
        dense_layer.forward_panel(layer, below, above, n, panel)
    for panel in range(dense_layer.n_input_panels(layer)):
        dense_layer.backward_panel(layer, below, above, n, panel)
    for block in range(dense_layer.n_input_blocks(layer)):
        dense_layer.block_gradient(layer, below, above, n, block)
    penalty[0] = 0
    for block in range(dense_layer.n_input_blocks(layer)):
        penalty[0] += dense_layer.update_block(layer, descent, block)


@pytest.mark.parametrize("penalties", PENALTIES)
@pytest.mark.parametrize(("n_in", "n_out"), SIZES)
@pytest.mark.parametrize("float_name", TOLERANCE)
def test_a_step_of_a_layer_agrees_with_matrix_products(float_name, n_in, n_out, penalties):
    float_x, tolerance = np.dtype(float_name).type, TOLERANCE[float_name]
    random, n = np.random.RandomState(0), 7  # no whole groups
    weights, bias = random.normal(size=(n_in, n_out)), random.normal(size=n_out)
    h, error = random.uniform(-1, 1, (n, n_in)), random.normal(size=(n, n_out))
    layer = new_dense_layer(n_in, n_out, float_x)
    set_dense_parameters(layer, weights, bias)
    below = new_activations(n, n_in, SIGMOID, float_x)
    above = new_activations(n, n_out, TANH, float_x)
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
    assert not layer.weights_gradient.any()
    assert not layer.bias_gradient.any()

    above = above._replace(kind=LOGITS)
    run(layer, below, above, n, descent, penalty)  # with both copies of the weights changed
    agree(above.h.reshape(8, -1)[:n, :n_out], h @ new_weights + new_bias)
    agree(below.error.reshape(8, -1)[:n, :n_in], error @ new_weights.T * h * (1 - h))


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
