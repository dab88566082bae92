"""Tiles of products in registers, operation by operation, in whole numbers: exactly."""

import numpy as np
import pytest
from numba import njit

from msgd.kernels.tiles import add_dots, move_rows, no_dots, no_rows, store_dots
from msgd.kernels.vectors import LANES, add_outer, lane_sum, load, multiply_add, splat, store_sums

N_TERMS = 3 * LANES


@njit
def run_dots(x, rows, w, columns, out):
    tile = no_dots(x, rows, columns)
    for t in range(0, N_TERMS, LANES):
        tile = add_dots(x, rows, t, w, columns, t + 2, tile)
    store_dots(out, 1, 7, rows, tile)


@njit
def run_dot(x, w, i, j):
    total = splat(x, 0)
    for t in range(0, N_TERMS, LANES):
        total = multiply_add(load(x, i + t), load(w, j + t + 2), total)
    return lane_sum(total)


ROWS = ((0, 70, 140), (0, 50, 100, 150, 200))
COLUMNS = ((0,), (0, 60), (0, 90, 60))


@pytest.mark.parametrize("float_x", ["float32", "float64"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_dots(float_x, rows, columns):
    """Each has the bits of a dot product by itself, and nothing beside them is written."""
    random = np.random.RandomState(0)
    x, w = random.normal(size=(2, 300)).astype(float_x)
    out = np.full(60, 7, float_x)
    run_dots(x, rows, w, columns, out)
    expected = np.full(60, 7, float_x)
    for r, row in enumerate(rows):
        for c, column in enumerate(columns):
            expected[1 + 7 * r + c] = run_dot(x, w, row, column)
    assert out.tobytes() == expected.tobytes()


@njit
def run_rows(x, rows, width, w, given, factors):
    tile = no_rows(x, rows, width)
    for t in range(5):
        tile = add_outer(x, rows, 3 * t, w, 1 + 50 * t, tile)
    store_sums(given[0], 2, 70, rows, tile)
    move_rows(given[1], 2, 70, rows, factors, 3, x.dtype.type(-2), tile)


@pytest.mark.parametrize("float_x", ["float32", "float64"])
@pytest.mark.parametrize("width", [(1,), (1, 1), (1, 1, 1)])
def test_rows(float_x, width):
    random = np.random.RandomState(0)
    x, w, factors = (random.randint(-9, 9, n).astype(float_x) for n in (60, 300, 60))
    given = random.randint(-9, 9, (2, 300)).astype(float_x)
    stored, moved = given.copy()
    rows, length = (0, 20, 40), LANES * len(width)
    run_rows(x, rows, width, w, given, factors)
    for r, row in enumerate(rows):
        place = slice(2 + 70 * r, 2 + 70 * r + length)
        total = sum(x[row + 3 * t] * w[1 + 50 * t : 1 + 50 * t + length] for t in range(5))
        stored[place] = total
        moved[place] = factors[3 : 3 + length] * moved[place] - 2 * total
    np.testing.assert_array_equal(given, [stored, moved])
