"""What is judged exactly: errors in units in the last place, and sums of products as fractions.

NumPy's functions, BLAS's sums and the C library's functions round as the processor at hand has
them do, so a test that compares with them passes on one machine and fails on the next. mpmath and
Fraction give the same everywhere.
"""

from fractions import Fraction

import mpmath
import numpy as np

PRECISION = 200  # bits of mpmath's numbers, several times those of a float64
# Of each type: the bits of its numbers, and the exponent of its smallest one.
FLOATS = {np.dtype(np.float32): (24, -149), np.dtype(np.float64): (53, -1074)}


def worst_error(found, function, *arguments):
    """Return the largest error of ``found`` in units in the last place of the exact value.

    found: (n,) floats; function: of mpmath numbers, applied to each of ``arguments``, (n,) floats.
    """
    worst = 0.0
    with mpmath.workprec(PRECISION):
        for value, *given in zip(found, *arguments, strict=True):
            exact = function(*(mpmath.mpf(float(number)) for number in given))
            error = abs(mpmath.mpf(float(value)) - exact) / _unit(exact, found.dtype)
            worst = max(worst, float(error))
    return worst


def _unit(exact, dtype):
    """Return the distance of the floats around the mpmath number ``exact``."""
    bits, smallest = FLOATS[dtype]
    _, exponent = mpmath.frexp(exact)
    return mpmath.ldexp(1, max(exponent - bits, smallest))


def rounded(exact, dtype):
    """Return the float nearest to the Fraction ``exact``, of two equally near the even one."""
    bits, smallest = FLOATS[np.dtype(dtype)]
    if exact == 0:
        return np.dtype(dtype).type(0)
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent += 1 if size >= Fraction(2) ** exponent else 0  # now 2^(exponent - 1) <= size
    unit = Fraction(2) ** max(exponent - bits, smallest)
    return np.dtype(dtype).type(round(exact / unit) * unit)  # Python's round takes the even one


def fractions(array):
    """Return the numbers of a flat ``array`` as Fractions."""
    return [Fraction(float(number)) for number in array]


def dot(left, right):
    """Return (sum, size) of the products of two rows: Fractions of sum x y and sum |x y|."""
    products = [x * y for x, y in zip(fractions(left), fractions(right), strict=True)]
    return sum(products), sum(map(abs, products))


def rounding_of_sum(n_roundings, size, dtype):
    """Return what ``n_roundings`` one after the other can add up to, of numbers of ``size`` in all.

    The classic bound of a sum of products in any order: n u / (1 - n u) times the sum of their
    sizes, u half a unit in the last place of 1.
    """
    u = Fraction(1, 2 ** FLOATS[np.dtype(dtype)][0])
    return n_roundings * u / (1 - n_roundings * u) * size
