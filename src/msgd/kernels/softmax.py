"""The softmax of one image's logits on the CPU, in vectors."""

import math

from numba import njit

from msgd.kernels import options
from msgd.kernels.cpu import element, set_element
from msgd.kernels.vectors import LANES, add, exp, fma, lane_max, lane_sum, load, splat, store


@njit(**options.CPU_INLINE)
def softmax_cross_entropy_row(rows, at, width, label, inverse_batch_size):
    """Return what formulas.softmax_cross_entropy does, in vectors and in place.

    rows: flat; rows[at : at + width] are the logits, in whole vectors filled up with -inf, whose
    softmax is 0; overwritten with their gradient.
    """
    highest = lane_max(load(rows, at))
    for column in range(at + LANES, at + width, LANES):
        highest = max(highest, lane_max(load(rows, column)))
    logit = element(rows, at + label) - highest
    total = rows.dtype.type(0)
    for column in range(at, at + width, LANES):
        exponential = exp(add(load(rows, column), splat(rows, -highest)))
        store(rows, column, exponential)
        total += lane_sum(exponential)
    for column in range(at, at + width, LANES):
        share = fma(inverse_batch_size / total, load(rows, column), splat(rows, 0))
        store(rows, column, share)
    set_element(rows, at + label, element(rows, at + label) - inverse_batch_size)
    return rows.dtype.type(math.log(total)) - logit
