"""The shared formulas compiled for the CPU, and what only the CPU needs."""

import math

import numpy as np
from numba import njit, types
from numba.extending import intrinsic, overload

from msgd.kernels import formulas, options


@overload(formulas.like)
def _like(x, value):
    number_type = x
    return lambda x, value: number_type(value)


# tanh(x) = x N(x^2) / D(x^2) for |x| <= TANH_LIMIT, a rational fit (relative error 1.2e-8 in exact
# arithmetic, below 4e-7 in float32); beyond the limit tanh is 1 in float32. Unlike the C library's,
# it is plain arithmetic, which LLVM vectorises.
TANH_LIMIT = np.float32(8.5)
N0, N1, N2, N3, N4 = map(np.float32, (1.0, 0.13413236, 3.5340127e-3, 2.125079e-5, 1.4268831e-8))
D0, D1, D2, D3, D4 = map(np.float32, (1.0, 0.46746558, 0.026022699, 3.3488407e-4, 8.144971e-7))


def _rational_tanh(x):
    z = min(max(x, -TANH_LIMIT), TANH_LIMIT)
    u = z * z
    numerator = (((N4 * u + N3) * u + N2) * u + N1) * u + N0
    denominator = (((D4 * u + D3) * u + D2) * u + D1) * u + D0
    ratio = z * numerator / denominator
    return min(max(ratio, np.float32(-1)), np.float32(1))


@overload(formulas.tanh)
def _tanh(x):
    if x == types.float32:
        return _rational_tanh
    return lambda x: math.tanh(x)


sigmoid = njit(**options.CPU)(formulas.sigmoid)


@overload(formulas.sigmoid)
def _sigmoid(x):
    return lambda x: sigmoid(x)


sigmoid_cross_entropy = njit(**options.CPU)(formulas.sigmoid_cross_entropy)


@overload(formulas.sigmoid_cross_entropy)
def _sigmoid_cross_entropy(x, target):
    return lambda x, target: sigmoid_cross_entropy(x, target)


softplus = njit(**options.CPU)(formulas.softplus)
activate = njit(**options.CPU)(formulas.activate)
activation_slope = njit(**options.CPU)(formulas.activation_slope)
softmax_cross_entropy = njit(**options.CPU)(formulas.softmax_cross_entropy)
first_argmax = njit(**options.CPU)(formulas.first_argmax)
penalty = njit(**options.CPU)(formulas.penalty)
penalty_gradient = njit(**options.CPU)(formulas.penalty_gradient)
has_penalty = njit(**options.CPU)(formulas.has_penalty)
sgd_step = njit(**options.CPU)(formulas.sgd_step)
is_l2_alone = njit(**options.CPU)(formulas.is_l2_alone)
l2_factor = njit(**options.CPU)(formulas.l2_factor)


@njit(**options.CPU)
def _sum_of_run(values, first):
    """Return the sum of ``values[first:]``, (n,) floatX, of the first SUMMED_AT_ONCE at most."""
    total = values[first]
    for i in range(first + 1, min(first + options.SUMMED_AT_ONCE, values.shape[0])):
        total += values[i]
    return total


@njit(**options.CPU)
def ordered_sum(values):
    """Return the sum of ``values`` (n,) floatX: of SUMMED_AT_ONCE at a time, then of these sums.

    Each is taken in order. Inside a parallel function ``values.sum()`` would be cut up by the
    number of threads.
    """
    total = _sum_of_run(values, np.int64(0))
    for first in range(options.SUMMED_AT_ONCE, values.shape[0], options.SUMMED_AT_ONCE):
        total += _sum_of_run(values, first)
    return total


@intrinsic
def element(typing_context, array, i):
    """Return array[i] of a flat array; ``i`` is not checked and must not be negative.

    Numba's own indexing adds a test for negative numbers, which costs in an inner loop.
    """

    def build(context, builder, signature, args):
        array_type, index_type = signature.args
        data = context.make_array(array_type)(context, builder, value=args[0]).data
        index = context.cast(builder, args[1], index_type, types.intp)
        return builder.load(builder.gep(data, [index]))

    return array.dtype(array, i), build


@intrinsic
def set_element(typing_context, array, i, value):
    """Set array[i] of a flat array to ``value``, of its type; ``i`` must not be negative."""

    def build(context, builder, signature, args):
        array_type, index_type, _ = signature.args
        data = context.make_array(array_type)(context, builder, value=args[0]).data
        index = context.cast(builder, args[1], index_type, types.intp)
        builder.store(args[2], builder.gep(data, [index]))
        return context.get_dummy_value()

    return types.void(array, i, array.dtype), build
