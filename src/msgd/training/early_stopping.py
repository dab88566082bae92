"""The patience rule, and nothing else.

Geometric patience as the lisa-lab tutorials publish it: training may stop once ``patience``
minibatches have passed, and each significant improvement of the validation error extends patience
to the present iteration times ``patience_increase``.

Errors are compared as integer counts and the rule's factors as exact fractions. (The published code
compares means of per-batch means in float64, where 720 errors of 9,600 come out as
7.500000000000001 % and equal counts can differ in the last place.)
"""

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass
class EarlyStopping:
    """State of the patience rule.

    patience: minibatches; patience_increase: >= 1; improvement_threshold: in (0, 1]. Iterations
    handed in count from 0, as the published rule does; ``best_iteration`` counts from 1, as its
    output does.
    """

    patience: int
    patience_increase: float
    improvement_threshold: float
    best_errors: int | None = None
    best_iteration: int | None = None

    def update(self, iteration, errors):
        """Take in the validation errors after ``iteration``; return whether they are a new best.

        errors: int, misclassified validation examples. Extends the patience if the improvement is
        significant: errors < best x improvement_threshold; the first validation always is.
        """
        if self.best_errors is not None and errors >= self.best_errors:
            return False
        if self.best_errors is None or self._is_significant(errors):
            extended = math.ceil(iteration * self._exact("patience_increase"))
            self.patience = max(self.patience, extended)
        self.best_errors = errors
        self.best_iteration = iteration + 1
        return True

    def is_exhausted(self, iteration):
        """Return whether training stops after ``iteration``."""
        return self.patience <= iteration

    def _is_significant(self, errors):
        return errors < self._exact("improvement_threshold") * self.best_errors

    def _exact(self, name):
        """Return the decimal number of the configuration as a fraction: 0.995 as 199/200."""
        return Fraction(str(getattr(self, name)))


def default_validation_frequency(n_train_batches, patience):
    """Return the published choice, min(n_train_batches, patience // 2), at least 1 minibatch."""
    return max(1, min(n_train_batches, patience // 2))
