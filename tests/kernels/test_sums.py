"""Sums in registers, operation by operation."""

import numpy as np
import pytest
from exact import dot, fractions, rounded, rounding_of_sum
from numba import njit

from msgd.kernels.vectors import (
    HALF,
    LANES,
    add_outer,
    fma_at,
    in_a_row,
    load_at,
    load_half,
    load_sums,
    store,
    store_at,
    store_sums,
)


@njit
def run(x, array, out, stride, rows, lengths):
    sums = load_sums(out, 1, stride, rows, lengths)
    for d in range(3):
        sums = add_outer(x, rows, d, array, 2 + d * 30, sums)
    store_sums(out, 1, stride, rows, sums)


@pytest.mark.parametrize("float_x", [np.float32, np.float64])
@pytest.mark.parametrize("n_vectors", [1, 2, 3])
@pytest.mark.parametrize("rows", [(4,), (7, 0, 2), (1, 2, 3, 5)])
def test_outer_products_are_added_row_by_row(float_x, n_vectors, rows):
    random = np.random.RandomState(0)
    x, array = random.normal(size=(2, 100)).astype(float_x)
    length, stride = n_vectors * HALF, 30
    before = random.normal(size=4 * stride + 1).astype(float_x)
    out = before.copy()
    run(x, array, out, stride, rows, (HALF,) * n_vectors)
    untouched = np.ones(before.size, bool)
    for r, row in enumerate(rows):
        for k in range(length):
            place = 1 + r * stride + k
            untouched[place] = False
            left = [before[place], *x[row : row + 3]]
            expected, size = dot(left, [1, *(array[2 + d * 30 + k] for d in range(3))])
            error = abs(fractions(out[[place]])[0] - expected)
            assert error <= rounding_of_sum(3, size, float_x)
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


@njit
def run_at(x, array, offsets, start, out):
    sums = load_at(array, start, offsets)
    sums = fma_at(x[0], array, start + 1, offsets, sums)
    store_at(out, start, offsets, sums)
    store_at(out, 0, in_a_row(offsets), sums)


@pytest.mark.parametrize("float_x", ["float32", "float64"])
@pytest.mark.parametrize("offsets", [(3,), (90, 0), (8, 0, 70, 33, 16)])
def test_vectors_at_offsets_are_stored_one_after_the_other(float_x, offsets):
    """So of two that overlap the later one stays whole."""
    random, start = np.random.RandomState(0), 5 * LANES
    array = random.normal(size=200).astype(float_x)
    x = np.array([1.7], float_x)
    out = np.full(200, np.nan, float_x)
    run_at(x, array, offsets, start, out)
    exact = [
        one + fractions(x)[0] * two
        for one, two in zip(fractions(array[:-1]), fractions(array[1:]), strict=True)
    ]
    expected = np.full(200, np.nan, float_x)
    for k, offset in enumerate(offsets):
        vector = [rounded(number, float_x) for number in exact[start + offset :][:LANES]]
        expected[start + offset :][:LANES] = expected[k * LANES :][:LANES] = vector
    np.testing.assert_array_equal(out, expected)
