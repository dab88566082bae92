"""Sums over the 32 lanes of a warp on CUDA, by shuffles, in an order that is always the same."""

import numpy as np
from numba import cuda

from msgd.kernels.cuda import INLINE

LANES = np.uint32(32)  # of a warp
EVERY_LANE = 0xFFFFFFFF
SIXTEEN, EIGHT, FOUR, TWO, ONE = (np.uint32(n) for n in (16, 8, 4, 2, 1))


@cuda.jit(device=True, **INLINE)
def sum_each_over_lanes(values, lane):
    """Return to lane j of a warp the sum of all lanes' values[j].

    values: 32 float32, registers of each lane, spoilt. All lanes call it together.

    At each level a lane gives half of its values to a partner, for the other half of the partner's,
    and adds them to what it keeps. In a warp of 4 lanes, whose values are a, b, c and d::

        lane 0            lane 1            lane 2            lane 3
        a0 b0 c0 d0       a1 b1 c1 d1       a2 b2 c2 d2       a3 b3 c3 d3
              partners two apart: lanes 0 and 1 keep a and b, lanes 2 and 3 c and d
        a02 b02           a13 b13           c02 d02           c13 d13
              partners one apart: even lanes keep the first
        a0123             b0123             c0123             d0123

    Of 32 values that takes 16 + 8 + 4 + 2 + 1 = 31 shuffles; of each by itself it would take 160.
    """
    _halve(values, SIXTEEN, lane)
    _halve(values, EIGHT, lane)
    _halve(values, FOUR, lane)
    _halve(values, TWO, lane)
    _halve(values, ONE, lane)
    return values[0]


@cuda.jit(device=True, **INLINE)
def _halve(values, half, lane):
    """Keep ``half`` of 2 half values, those of the lane's side, and add the partner's to them."""
    is_upper = lane & half
    for i in range(half):
        # Both are loaded before one is chosen: a chosen address would move them to memory.
        low, high = values[i], values[i + half]
        kept = high if is_upper else low
        given = low if is_upper else high
        values[i] = kept + cuda.shfl_xor_sync(EVERY_LANE, given, half)


@cuda.jit(device=True, **INLINE)
def sum_over_lanes(value):
    """Return to every lane of a warp the sum of all lanes' float32 ``value``."""
    value += cuda.shfl_xor_sync(EVERY_LANE, value, SIXTEEN)
    value += cuda.shfl_xor_sync(EVERY_LANE, value, EIGHT)
    value += cuda.shfl_xor_sync(EVERY_LANE, value, FOUR)
    value += cuda.shfl_xor_sync(EVERY_LANE, value, TWO)
    return value + cuda.shfl_xor_sync(EVERY_LANE, value, ONE)
