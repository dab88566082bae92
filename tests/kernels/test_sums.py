"""Sums in registers, operation by operation."""

import numpy as np
import pytest
from numba import njit

from msgd.kernels.simd import store
from msgd.kernels.sums import HALF, add_outer, load_half, load_sums, store_sums


@njit
def run(x, array, out, step, rows, vectors):
    sums = load_sums(out, 1, step, rows, vectors)
    for d in range(3):
        sums = add_outer(x, rows, d, array, 2 + d * 30, sums)
    store_sums(out, 1, step, rows, sums)


@pytest.mark.parametrize("float_x", [np.float32, np.float64])
@pytest.mark.parametrize("n_vectors", [1, 2, 3])
@pytest.mark.parametrize("rows", [(4,), (7, 0, 2), (1, 2, 3, 5)])
def test_outer_products_are_added_row_by_row(float_x, n_vectors, rows):
    random = np.random.RandomState(0)
    x, array = random.normal(size=(2, 100)).astype(float_x)
    length, step = n_vectors * HALF, 30
    before = random.normal(size=4 * step + 1).astype(float_x)
    out = before.copy()
    run(x, array, out, step, rows, (0,) * n_vectors)
    expected = before.astype(np.float64)
    for r, row in enumerate(rows):
        for d in range(3):
            terms = float(x[row + d]) * array[2 + d * 30 :][:length].astype(np.float64)
            expected[1 + r * step :][:length] += terms
    np.testing.assert_allclose(out, expected, rtol=0, atol=30 * np.finfo(float_x).eps)
    untouched = expected == before
    assert untouched.sum() == before.size - len(rows) * length
    np.testing.assert_array_equal(out[untouched], before[untouched])


@njit
def run_half(array, stored, out):
    store(out, 1, load_half(array, stored, 2))


@pytest.mark.parametrize("float_x", ["float32", "float64"])
@pytest.mark.parametrize("stored", ["uint8", "same"])
def test_half_vectors_are_converted(float_x, stored):
    numbers = np.arange(250, 270) % 256
    numbers = numbers.astype(float_x if stored == "same" else stored)
    out = np.zeros(HALF + 2, float_x)
    run_half(out, numbers, out)
    np.testing.assert_array_equal(out, [0, *numbers[2 : 2 + HALF], 0])
