"""Products of matrices summed in registers: the work of dense layers and of convolutions.

``add_product`` computes ``out += left right``. GROUP rows of ``out`` are summed together, so that
each vector loaded from ``right`` serves all of them. A sum is taken in the order of its terms.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload

from msgd.kernels import options
from msgd.kernels.cpu import element
from msgd.kernels.vectors import HALF, add_outer, load_sums, store_sums

GROUP = 4  # rows of a product computed together
# The lengths of the vectors in a row of a Panel. The kernels are compiled for each tuple.
TWO_VECTORS = (HALF, HALF)
THREE_VECTORS = (HALF, HALF, HALF)


class Factor(NamedTuple):
    """The left matrix of a product: its number (q, t) is array[start + row(q) + column(t)].

    ``row`` and ``column`` are each either a stride, an integer, with row(q) = q row; or a list of
    offsets, (n,) int64, with row(q) = row[q].
    """

    array: np.ndarray  # flat, floatX
    start: int
    row: np.ndarray | int
    column: np.ndarray | int


class Panel(NamedTuple):
    """A matrix of a few vectors a row: row q starts at array[start + q stride]."""

    array: np.ndarray  # flat, floatX
    start: int
    stride: int


def _offset(offsets, k):
    """Return offset k of a list of offsets, or k times a stride."""
    return offsets[k] if np.ndim(offsets) else offsets * k


@overload(_offset)
def _offset_of(offsets, k):
    """Choose which of the two when a kernel is compiled."""
    if isinstance(offsets, types.Integer):
        return lambda offsets, k: offsets * k
    return lambda offsets, k: element(offsets, k)


@njit(**options.CPU)
def add_product(left, n_rows, n_terms, right, out, lengths):
    """Add left (n_rows, n_terms) times right (n_terms, U) to out (n_rows, U).

    left: Factor; right, out: Panel; out's rows are changed. n_rows is a multiple of GROUP.
    lengths: TWO_VECTORS or THREE_VECTORS; U is their sum.
    """
    for q in range(0, n_rows, GROUP):
        rows = (
            left.start + _offset(left.row, q),
            left.start + _offset(left.row, q + 1),
            left.start + _offset(left.row, q + 2),
            left.start + _offset(left.row, q + 3),
        )
        to = out.start + q * out.stride
        sums = load_sums(out.array, to, out.stride, rows, lengths)
        for t in range(n_terms):
            at = right.start + t * right.stride
            sums = add_outer(left.array, rows, _offset(left.column, t), right.array, at, sums)
        store_sums(out.array, to, out.stride, rows, sums)
