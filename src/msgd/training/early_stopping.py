"""The patience rule, and nothing else.

Geometric patience as the lisa-lab tutorials publish it: training may stop once ``patience``
minibatches have passed, and each significant improvement of the validation error extends patience
to the present iteration times ``patience_increase``.

Significant means one of two things (``improvement_test``):

- "threshold", as published: the errors fall below ``improvement_threshold`` times the best so far.
  Errors are compared as integer counts and the rule's factors as exact fractions. (The published
  code compares means of per-batch means in float64, where 720 errors of 9,600 come out as
  7.500000000000001 % and equal counts can differ in the last place.)
- "mcnemar": the model is better than the last one that was found significantly better, by McNemar's
  exact one-sided test on the examples of which the two disagree, at level ``improvement_alpha``.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass
class EarlyStopping:
    """State of the patience rule.

    patience: minibatches; patience_increase: >= 1; improvement_threshold: in (0, 1];
    improvement_alpha: in (0, 1). Iterations handed in count from 0, as the published rule does;
    ``best_iteration`` counts from 1, as its output does. Under "mcnemar", ``improvement_p`` is the
    p-value of the latest update (None for the first) and ``reference_correct`` (N,) bool says which
    examples the last significantly better model had right.
    """

    patience: int
    patience_increase: float
    improvement_threshold: float
    improvement_test: str = "threshold"
    improvement_alpha: float = 0.01
    best_errors: int | None = None
    best_iteration: int | None = None
    improvement_p: float | None = None
    reference_correct: np.ndarray | None = None

    def update(self, iteration, errors, correct=None):
        """Take in the validation errors after ``iteration``; return whether they are a new best.

        errors: int, misclassified validation examples; correct: (N,) bool, which of them are right,
        needed for "mcnemar" alone. Extends the patience if the improvement is significant; the
        first validation always is.
        """
        if self._is_significant(errors, correct):
            extended = math.ceil(iteration * self._exact("patience_increase"))
            self.patience = max(self.patience, extended)
            self.reference_correct = correct
        is_best = self.is_best(errors)
        if is_best:
            self.best_errors = errors
            self.best_iteration = iteration + 1
        return is_best

    def is_best(self, errors):
        """Return whether ``errors`` are fewer than ever."""
        return self.best_errors is None or errors < self.best_errors

    def is_exhausted(self, iteration):
        """Return whether training stops after ``iteration``."""
        return self.patience <= iteration

    def _is_significant(self, errors, correct):
        if self.best_errors is None:
            return True
        if self.improvement_test == "threshold":
            return errors < self._exact("improvement_threshold") * self.best_errors
        p = mcnemar_p(self.reference_correct, correct)
        self.improvement_p = float(p)
        return p < self._exact("improvement_alpha")

    def _exact(self, name):
        """Return the decimal number of the configuration as a fraction: 0.995 as 199/200."""
        return Fraction(str(getattr(self, name)))


def mcnemar_p(reference_correct, correct):
    """Return the p-value of McNemar's exact one-sided test, a Fraction in (0, 1].

    reference_correct, correct: (N,) bool, which examples each of two models has right. With b
    examples newly right and c newly wrong, p = sum_{i<=c} C(b+c, i) / 2^(b+c): the probability of
    so few losses if each disagreement went either way with equal chance (McNemar 1947, exact form).
    """
    newly_right = int(np.count_nonzero(correct & ~reference_correct))
    newly_wrong = int(np.count_nonzero(reference_correct & ~correct))
    disagreements = newly_right + newly_wrong
    ways = term = 1
    for i in range(newly_wrong):
        term = term * (disagreements - i) // (i + 1)
        ways += term
    return Fraction(ways, 2**disagreements)


def default_validation_frequency(n_train_batches, patience):
    """Return the published choice, min(n_train_batches, patience // 2), at least 1 minibatch."""
    return max(1, min(n_train_batches, patience // 2))
