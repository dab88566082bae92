"""The patience rule replayed on hand-made sequences."""

from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binomtest

from msgd.training.early_stopping import EarlyStopping, default_validation_frequency, mcnemar_p


def rule(patience=100, increase=2, threshold=0.995):
    return EarlyStopping(patience, increase, threshold)


def test_the_first_validation_is_a_significant_best():
    stopping = rule(patience=10)
    assert stopping.update(20, 9600)
    assert (stopping.best_errors, stopping.best_iteration, stopping.patience) == (9600, 21, 40)


def test_a_small_improvement_is_a_best_but_extends_nothing():
    stopping = rule()
    stopping.update(9, 1000)
    assert stopping.update(99, 995)  # 995 is not below 0.995 x 1000
    assert (stopping.best_errors, stopping.best_iteration, stopping.patience) == (995, 100, 100)


def test_significance_is_measured_against_the_latest_best_not_the_last_significant_one():
    stopping = rule()
    stopping.update(9, 1000)
    stopping.update(59, 996)
    assert stopping.update(99, 992)  # below 0.995 x 1000 but not below 0.995 x 996 = 991.02
    assert stopping.patience == 100
    assert stopping.update(119, 987)  # below 0.995 x 992 = 987.04
    assert stopping.patience == 238


def test_an_exact_tie_with_the_threshold_is_not_significant():
    """Floats get this wrong: 0.995 is not 0.995 in binary."""
    for best in (200, 400, 600, 2000):
        stopping = rule()
        stopping.update(0, best)
        stopping.update(90, best * 995 // 1000)
        assert stopping.patience == 100, best
        stopping.update(95, best * 995 // 1000 * 994 // 1000)
        assert stopping.patience == 190, best


def test_equal_errors_are_no_best():
    stopping = rule()
    stopping.update(9, 500)
    assert not stopping.update(19, 500)
    assert stopping.best_iteration == 10


def test_patience_never_shrinks():
    stopping = rule(patience=1000)
    stopping.update(10, 500)
    assert stopping.patience == 1000


def test_a_fractional_increase_rounds_to_the_iteration_that_reaches_it():
    stopping = rule(patience=1, increase=1.5)
    stopping.update(11, 500)  # 16.5: iteration 16 is below it, 17 is not
    assert not stopping.is_exhausted(16)
    assert stopping.is_exhausted(17)


def test_exhaustion_compares_with_the_iteration_from_zero():
    stopping = rule(patience=6140)
    assert not stopping.is_exhausted(6139)
    assert stopping.is_exhausted(6140)


def correct(right, n=100):
    """Return which of ``n`` examples are right, given their numbers."""
    return np.isin(np.arange(n), [*right])


@pytest.mark.parametrize("newly_right", [0, 1, 5, 40])
@pytest.mark.parametrize("newly_wrong", [0, 1, 2, 30])
def test_mcnemar_p_is_the_binomial_tail(newly_right, newly_wrong):
    reference = correct(range(40, 90))
    now = correct({*range(40 - newly_right, 40), *range(40 + newly_wrong, 90)})
    p = mcnemar_p(reference, now)
    n = newly_right + newly_wrong
    expected = binomtest(newly_wrong, n, 0.5, alternative="less").pvalue if n else 1
    assert float(p) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_p_by_hand():
    assert mcnemar_p(correct([]), correct([])) == 1
    assert mcnemar_p(correct([0]), correct([1, 2, 3])) == Fraction(5, 16)  # (C(4,0) + C(4,1)) / 16


def mcnemar_rule(alpha=0.01):
    return EarlyStopping(100, 2, 0.995, "mcnemar", alpha)


def test_under_mcnemar_improvements_add_up_until_they_are_significant():
    """Each step alone is chance; together they are not: the reference is the last significant."""
    stopping = mcnemar_rule()
    stopping.update(9, 90, correct(range(10)))
    for step, iteration in enumerate((59, 69, 79), start=1):
        assert stopping.update(iteration, 90 - 2 * step, correct(range(10 + 2 * step)))
        assert stopping.improvement_p == 0.5 ** (2 * step)
        assert stopping.patience == 100
    stopping.update(89, 83, correct(range(17)))  # 7 of 7: p = 1/128
    assert stopping.patience == 178
    stopping.update(99, 82, correct(range(18)))
    assert stopping.improvement_p == 0.5
    assert stopping.patience == 178


def test_a_p_at_the_level_is_not_significant():
    for alpha, patience in ((0.25, 100), (0.26, 120)):
        stopping = mcnemar_rule(alpha)
        stopping.update(0, 90, correct(range(10)))
        stopping.update(60, 88, correct(range(12)))
        assert stopping.patience == patience


def test_under_mcnemar_the_best_is_still_that_of_fewest_errors():
    stopping = mcnemar_rule()
    stopping.update(9, 90, correct(range(10)))
    assert stopping.update(19, 89, correct(range(11)))
    assert not stopping.update(29, 89, correct(range(11)))
    assert (stopping.best_errors, stopping.best_iteration) == (89, 20)


@pytest.mark.parametrize(
    ("n_train_batches", "patience", "expected"),
    [(83, 5000, 83), (2500, 10000, 2500), (50000, 5000, 2500), (1, 5000, 1), (83, 1, 1)],
)
def test_default_validation_frequency(n_train_batches, patience, expected):
    assert default_validation_frequency(n_train_batches, patience) == expected
