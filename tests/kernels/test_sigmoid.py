"""The sigmoid and its cross-entropy in vectors, against exact values."""

import mpmath
import numpy as np
import pytest
from exact import worst_error
from numba import njit

from msgd.kernels.sigmoid import sigmoid, sigmoid_cross_entropy
from msgd.kernels.vectors import LANES, load, store


@njit
def run(x, target, out):
    for i in range(0, len(x), LANES):
        store(out[0], i, sigmoid(load(x, i), x))
        share, cost = sigmoid_cross_entropy(load(x, i), load(target, i), x)
        store(out[1], i, share)
        store(out[2], i, cost)


def exact_sigmoid(x):
    return 1 / (1 + mpmath.exp(-x))


def exact_log(x):
    return mpmath.log1p(mpmath.exp(x))


def many(float_x):
    """Numbers of all sizes, both signs, close to 0 and where halves of the formula meet."""
    random = np.random.RandomState(0)
    small = np.exp(random.uniform(-30, 1, 100 * LANES))
    largest = 87 if float_x == "float32" else 700
    far = np.linspace(-largest, largest, 100 * LANES)
    return np.concatenate([np.linspace(-12, 12, 100 * LANES), small, -small, far]).astype(float_x)


# In units in the last place. exp: 1.5 in float32 (test_vectors.py), one of the C library's in
# float64; then a sum and a quotient, a half each, of which one may count double where the result is
# half as large.
SIGMOID_UNITS = 3.5
# log(1 + e): exp, the sum and the quotient of q, half a unit each for the series and the last sum.
LOG_UNITS = 4


@pytest.mark.parametrize("float_x", ["float32", "float64"])
def test_values(float_x):
    x = many(float_x)
    out = np.empty((3, len(x)), float_x)
    run(x, np.zeros_like(x), out)
    np.testing.assert_array_equal(out[0], out[1])
    assert worst_error(out[0], exact_sigmoid, x) <= SIGMOID_UNITS
    assert worst_error(out[2], exact_log, x) <= LOG_UNITS


@pytest.mark.parametrize("float_x", ["float32", "float64"])
def test_the_cross_entropy_has_a_target(float_x):
    """It may cancel, so it is measured by the size of its terms."""
    x, random = many(float_x), np.random.RandomState(1)
    target = random.uniform(size=len(x)).astype(float_x)
    out = np.empty((3, len(x)), float_x)
    run(x, target, out)
    for value, given, share in zip(out[2], x, target, strict=True):
        exact = exact_log(mpmath.mpf(float(given))) - mpmath.mpf(float(share)) * float(given)
        assert abs(value - exact) <= 4 * np.finfo(float_x).eps * (1 + abs(float(given)))


@pytest.mark.parametrize("float_x", ["float32", "float64"])
def test_edges(float_x):
    """Of what is far below 0 both are exactly 0: so is a unit or a pixel that is only padding."""
    x = np.zeros(LANES, float_x)
    x[:6] = -1000, 1000, np.nan, -1e30, 0, 0
    target = np.zeros(LANES, float_x)
    target[1], target[5] = 1, 0.5
    out = np.empty((3, LANES), float_x)
    run(x, target, out)
    np.testing.assert_array_equal(out[1, :6], [0, 1, np.nan, 0, 0.5, 0.5])
    np.testing.assert_array_equal(out[2, :4], [0, 0, np.nan, 0])
    np.testing.assert_array_equal(out[2, 4], out[2, 5])
    assert abs(out[2, 4] - np.log(2)) < 4 * np.finfo(float_x).eps
