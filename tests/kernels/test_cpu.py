"""What only the CPU's kernels have, against the formulas in exact numbers."""

import mpmath
import numpy as np
import pytest
from exact import PRECISION, worst_error
from numba import njit

from msgd.kernels.cpu import activate, ordered_sum
from msgd.kernels.formulas import ACTIVATIONS
from msgd.kernels.options import SUMMED_AT_ONCE as RUN
from msgd.kernels.softmax import softmax_cross_entropy_row
from msgd.kernels.vectors import LANES


@njit
def run(rows, at, width, label, inverse_batch_size):
    return softmax_cross_entropy_row(rows, at, width, label, inverse_batch_size)


def exact_softmax_cross_entropy(logits, label, inverse_batch_size):
    """Return (negative log-likelihood, its gradient) as mpmath numbers, of float ``logits``."""
    exponentials = [mpmath.exp(float(logit)) for logit in logits]
    total = mpmath.fsum(exponentials)
    gradient = [inverse_batch_size * exponential / total for exponential in exponentials]
    gradient[label] -= inverse_batch_size
    return mpmath.log(total) - mpmath.mpf(float(logits[label])), gradient


# Roundings of half a unit that add up at most: the difference to the highest logit (which counts as
# often as its share weighs, 4 in all for 48 classes), exp (3), the sum of vectors and lanes (7) of
# such, log (2), a division, a product, a subtraction.
ROUNDINGS = 20


@pytest.mark.parametrize("float_x", ["float32", "float64"])
@pytest.mark.parametrize("n_classes", [2, 10, LANES - 1, LANES, LANES + 1, 3 * LANES])
@pytest.mark.parametrize("size", [1, 100])
def test_softmax_of_a_row_is_the_formula(float_x, n_classes, size):
    """In the middle of other rows, which stay; large logits do not overflow."""
    logits = size * np.random.RandomState(0).normal(size=n_classes)
    width = -(-n_classes // LANES) * LANES
    tolerance = ROUNDINGS * np.finfo(float_x).eps / 2
    for label in (0, n_classes // 2, n_classes - 1):
        rows = np.full(3 * width, 7, float_x)
        rows[width : 2 * width] = -np.inf
        rows[width : width + n_classes] = logits
        stored = rows[width : width + n_classes].copy()
        nll = run(rows, width, width, label, rows.dtype.type(0.25))
        with mpmath.workprec(PRECISION):
            expected_nll, expected = exact_softmax_cross_entropy(stored, label, mpmath.mpf(0.25))
            assert abs(float(nll) - expected_nll) <= tolerance * max(1, expected_nll)
            for found, exact in zip(rows[width : width + n_classes], expected, strict=True):
                assert abs(float(found) - exact) <= tolerance * 0.25
        assert not rows[width + n_classes : 2 * width].any()
        assert (rows[:width] == 7).all()
        assert (rows[2 * width :] == 7).all()


@njit
def run_activate(x, kind, out):
    for i in range(len(x)):
        out[i] = activate(x[i], kind)


def exact_sigmoid(x):
    return 1 / (1 + mpmath.exp(-x))


# In units in the last place. tanh in float32 is plain arithmetic, which comes to the same bits on
# every processor: what kernels/cpu.py says of it, 4e-7, is 6.7 units. In float64 it is the C
# library's, of which glibc's is known to be off by up to 2. The sigmoid: the C library's exp (1), a
# sum and a quotient (a half each), each of which may be a whole unit of a result half as large.
@pytest.mark.parametrize(
    ("kind", "exact", "float_x", "units"),
    [
        ("tanh", mpmath.tanh, "float32", 6.7),
        ("tanh", mpmath.tanh, "float64", 3),
        ("sigmoid", exact_sigmoid, "float32", 5),
        ("sigmoid", exact_sigmoid, "float64", 5),
    ],
)
def test_activations(kind, exact, float_x, units):
    random = np.random.RandomState(0)
    small = np.exp(random.uniform(-30, 1, 1000))
    x = np.concatenate([np.linspace(-12, 12, 3001), small, -small, [0, 80, -80]]).astype(float_x)
    out = np.empty_like(x)
    run_activate(x, ACTIVATIONS[kind], out)
    assert worst_error(out, exact, x) <= units


def test_a_logit_that_is_no_number_shows_in_the_loss():
    rows = np.full(LANES, -np.inf, np.float32)
    rows[:3] = 1, np.nan, 2
    assert np.isnan(run(rows, 0, LANES, 0, np.float32(1)))


@njit
def call_ordered_sum(values):
    return ordered_sum(values)


@pytest.mark.parametrize("float_x", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, RUN - 1, RUN, RUN + 1, 2 * RUN, 2 * RUN + 1, 3 * RUN - 1])
def test_a_sum_is_taken_in_runs_each_in_order(float_x, n):
    values = np.random.RandomState(n).uniform(-1, 2, n).astype(float_x)
    runs = [values[first : first + RUN] for first in range(0, n, RUN)]
    sums = [np.add.accumulate(run)[-1] for run in runs]  # in order, as NumPy's sum is not
    assert call_ordered_sum(values) == np.add.accumulate(sums)[-1]


def test_the_cost_of_all_images_as_one_minibatch_keeps_its_digits():
    # Parameters of zeros give every image the same cost, and all roundings have one sign.
    values = np.full(70_001, np.log(3), np.float32)
    assert call_ordered_sum(values) == pytest.approx(70_001 * float(values[0]), rel=2e-5)
    one_after_another = np.add.accumulate(values)[-1]
    assert one_after_another != pytest.approx(70_001 * float(values[0]), rel=1e-4)
