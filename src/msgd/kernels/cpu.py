"""The shared formulas compiled for the CPU, and what only the CPU needs."""

from numba import njit
from numba.extending import overload

from msgd.kernels import formulas, options


@overload(formulas.like)
def _like(x, value):
    number_type = x
    return lambda x, value: number_type(value)


softmax_cross_entropy = njit(**options.CPU)(formulas.softmax_cross_entropy)
first_argmax = njit(**options.CPU)(formulas.first_argmax)
penalty = njit(**options.CPU)(formulas.penalty)
penalty_gradient = njit(**options.CPU)(formulas.penalty_gradient)


@njit(**options.CPU)
def gather_nonzero(x, row, scale, position, value):
    """List the pixels of image ``row`` that are not zero; return how many there are.

    x: (N, D); scale: floatX, what a stored pixel is multiplied by. position: (D,) int64 and
    value: (D,) floatX are overwritten from the start. Four fifths of MNIST's pixels are zero, and
    adding their products changes no sum.
    """
    count = 0
    for d in range(x.shape[1]):
        pixel = x[row, d]
        if pixel != 0:
            position[count] = d
            value[count] = pixel * scale
            count += 1
    return count
