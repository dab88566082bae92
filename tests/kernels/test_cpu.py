"""What only the CPU's kernels have, against the shared formulas in float64."""

import numpy as np
import pytest
from numba import njit

from msgd.kernels import formulas
from msgd.kernels.cpu import softmax_cross_entropy_row
from msgd.kernels.simd import LANES


@njit
def run(rows, at, width, label, inverse_batch_size):
    return softmax_cross_entropy_row(rows, at, width, label, inverse_batch_size)


@pytest.mark.parametrize(("float_x", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("n_classes", [2, 10, LANES - 1, LANES, LANES + 1, 3 * LANES])
@pytest.mark.parametrize("size", [1, 100])
def test_softmax_of_a_row_is_the_formula(float_x, tolerance, n_classes, size):
    """In the middle of other rows, which stay; large logits do not overflow."""
    logits = size * np.random.RandomState(0).normal(size=n_classes)
    width = -(-n_classes // LANES) * LANES
    for label in (0, n_classes // 2, n_classes - 1):
        rows = np.full(3 * width, 7, float_x)
        rows[width : 2 * width] = -np.inf
        rows[width : width + n_classes] = logits
        expected = np.empty(n_classes)
        stored = rows[width : width + n_classes].astype(np.float64)
        expected_nll = formulas.softmax_cross_entropy(stored, label, np.float64(0.25), expected)
        nll = run(rows, width, width, label, rows.dtype.type(0.25))
        assert nll == pytest.approx(expected_nll, rel=tolerance, abs=tolerance)
        found = rows[width : width + n_classes]
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance / 4)
        assert not rows[width + n_classes : 2 * width].any()
        assert (rows[:width] == 7).all()
        assert (rows[2 * width :] == 7).all()


def test_a_logit_that_is_no_number_shows_in_the_loss():
    rows = np.full(LANES, -np.inf, np.float32)
    rows[:3] = 1, np.nan, 2
    assert np.isnan(run(rows, 0, LANES, 0, np.float32(1)))
