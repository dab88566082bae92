"""The explicit vectors, operation by operation."""

import numpy as np
import pytest
from numba import njit

from msgd.kernels.simd import LANES, fma, lane_sum, load, multiply_add, splat, store


@njit
def run(a, b, x, out):
    v, w = load(a, 3), load(b, 1)
    store(out, 0, v)
    store(out, LANES, fma(x, v, w))
    store(out, 2 * LANES, splat(out, x))
    store(out, 3 * LANES, multiply_add(v, w, v))
    return lane_sum(v)


@pytest.mark.parametrize("float_x", [np.float32, np.float64])
def test_every_operation(float_x):
    random = np.random.RandomState(0)
    a, b = random.normal(size=(2, 40)).astype(float_x)
    out = np.full(5 * LANES, np.nan, float_x)
    x = float_x(1.5)
    total = run(a, b, x, out)
    v, w = a[3 : 3 + LANES].astype(np.float64), b[1 : 1 + LANES].astype(np.float64)
    expected = np.concatenate([v, 1.5 * v + w, np.full(LANES, 1.5), v * w + v])
    np.testing.assert_allclose(out[: 4 * LANES], expected, rtol=2 * np.finfo(float_x).eps)
    assert np.isnan(out[4 * LANES :]).all()
    halves = a[3 : 3 + LANES]
    while len(halves) > 1:
        halves = halves[: len(halves) // 2] + halves[len(halves) // 2 :]
    assert total == halves[0]
