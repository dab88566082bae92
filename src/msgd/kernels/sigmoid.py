"""The sigmoid and its cross-entropy on the CPU, in vectors of LANES.

Beside e = exp(-|x|), which does not overflow, they are plain arithmetic::

    s(x)             = 1 / (1 + e)   for x >= 0,   e / (1 + e)   for x < 0
    log(1 + exp(x))  = max(x, 0) + log(1 + e)
    log(1 + e)       = 2 artanh(q) = 2 q (1 + q^2 / 3 + q^4 / 5 + ...)   with   q = e / (2 + e)

q is at most 1/3. So the series is cut off where what follows is below a quarter of a unit in the
last place, after LOG_TERMS.
"""

import numpy as np
from numba import njit, types
from numba.extending import overload

from msgd.kernels import options
from msgd.kernels.vectors import (
    add,
    divide,
    exp,
    fma,
    maximum,
    multiply,
    multiply_add,
    splat,
    where_negative,
)

LOG_TERMS = {types.float32: 7, types.float64: 15}


def _coefficients(array):
    """Return 2/3, 2/5, ... of the series, as many as numbers of the type of ``array`` need."""


@overload(_coefficients)
def _coefficients_of(array):
    """Choose them when a kernel is compiled."""
    as_number = np.float32 if array.dtype == types.float32 else np.float64
    chosen = tuple(as_number(2 / (2 * k + 3)) for k in range(LOG_TERMS[array.dtype]))
    return lambda array: chosen


@njit(**options.CPU_INLINE)
def sigmoid(x, like):
    """Return the sigmoid of the vector ``x``; like: an array of its type."""
    e, one = _exp_of_size(x, like), splat(like, 1)
    return divide(where_negative(x, e, one), add(one, e))


@njit(**options.CPU_INLINE)
def sigmoid_cross_entropy(x, target, like):
    """Return the vectors s(x) and log(1 + exp(x)) - target x; see formulas.sigmoid_cross_entropy.

    x, target: vectors; like: an array of their type.
    """
    e, one, zero = _exp_of_size(x, like), splat(like, 1), splat(like, 0)
    share = divide(where_negative(x, e, one), add(one, e))
    quotient = divide(e, add(splat(like, 2), e))
    square, series = multiply(quotient, quotient), zero
    for coefficient in _coefficients(like)[::-1]:
        series = multiply_add(series, square, splat(like, coefficient))
    log = multiply_add(multiply(series, square), quotient, add(quotient, quotient))
    rest = multiply_add(fma(-1, target, zero), x, maximum(x, zero))
    return share, add(rest, log)


@njit(**options.CPU_INLINE)
def _exp_of_size(x, like):
    """Return exp(-|x|)."""
    return exp(where_negative(x, x, fma(-1, x, splat(like, 0))))
