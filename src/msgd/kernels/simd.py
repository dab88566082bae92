"""Explicit vectors for CPU kernels: 16 numbers of floatX in registers, and what one does with them.

Numba leaves vectorising to LLVM, which declines where it cannot exclude that arrays overlap or that
an index wraps around. These vectors are LLVM's own, so their operations are vector instructions
whatever the machine's width is, and an accumulator stays in registers.

The functions work on flat arrays (one dimension, C order) inside ``njit`` functions. An index is
not checked and must not be negative. Arrays from ``aligned_empty`` begin at the start of a line of
the cache, so that their vectors at multiples of LANES fill whole lines.

- ``load(array, i)``: the vector array[i : i + LANES]
- ``load_as(like, array, i)``: the same of an array of integers too, in the type of ``like``
- ``store(array, i, v)``: array[i : i + LANES] = v
- ``splat(array, x)``: x in every lane, in the type of ``array``
- ``add(v, w)``: v + w
- ``fma(x, v, acc)``: acc + x v with one rounding; x is a scalar, v and acc are vectors
- ``multiply_add(v, w, acc)``: acc + v w, lane by lane, with one rounding
- ``exp(v)``: e^v, for v <= 0
- ``lane_sum(v)``: the sum of the lanes, as the pairwise tree of halves
- ``lane_max(v)``: the largest lane
- ``append_marked(marks, ...)``: list which of eight marks are set
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_jitable, register_model

LANES = 16
CACHE_LINE = 64  # bytes


@register_jitable
def aligned_empty(n, dtype):
    """Return n numbers of ``dtype``, of no meaning, that begin at the start of a cache line."""
    array = np.empty(n + CACHE_LINE, dtype)
    skipped = -array.ctypes.data % CACHE_LINE // array.itemsize
    return array[skipped : skipped + n]


@register_jitable
def aligned_zeros(n, dtype):
    """Return n zeros of ``dtype`` that begin at the start of a cache line."""
    array = aligned_empty(n, dtype)
    array[:] = 0
    return array


def aligned(arrays):
    """Return flat ``arrays`` of one dtype end to end, beginning at the start of a cache line."""
    joined = aligned_empty(sum(map(len, arrays)), arrays[0].dtype)
    np.concatenate(arrays, out=joined)
    return joined


class Vector(types.Type):
    """The Numba type of LANES numbers of type ``scalar``."""

    def __init__(self, scalar):
        self.scalar = scalar
        super().__init__(name=f"Vector({scalar}, {LANES})")


def _llvm(scalar):
    element = ir.FloatType() if scalar == types.float32 else ir.DoubleType()
    return ir.VectorType(element, LANES)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, _llvm(vector.scalar))


def _pointer(context, builder, signature, args):
    """Return the address of array[i] as a pointer to a vector."""
    array_type, index_type = signature.args[:2]
    array = context.make_array(array_type)(context, builder, value=args[0])
    index = context.cast(builder, args[1], index_type, types.intp)
    vector = _llvm(array_type.dtype)
    return builder.bitcast(builder.gep(array.data, [index]), vector.as_pointer())


@intrinsic
def load(typing_context, array, i):
    """Return the vector array[i : i + LANES]."""

    def build(context, builder, signature, args):
        vector = builder.load(_pointer(context, builder, signature, args))
        vector.align = signature.args[0].dtype.bitwidth // 8
        return vector

    return Vector(array.dtype)(array, i), build


@intrinsic
def load_as(typing_context, like, array, i):
    """Return the vector array[i : i + LANES] in the type of the array ``like``."""

    def build(context, builder, signature, args):
        stored = signature.args[1].dtype
        array_value = context.make_array(signature.args[1])(context, builder, value=args[1])
        index = context.cast(builder, args[2], signature.args[2], types.intp)
        lanes = ir.VectorType(context.get_value_type(stored), LANES)
        address = builder.bitcast(builder.gep(array_value.data, [index]), lanes.as_pointer())
        vector = builder.load(address)
        vector.align = stored.bitwidth // 8
        wanted = _llvm(signature.args[0].dtype)
        return builder.uitofp(vector, wanted) if isinstance(stored, types.Integer) else vector

    return Vector(like.dtype)(like, array, i), build


@intrinsic
def store(typing_context, array, i, vector):
    """Set array[i : i + LANES] to ``vector``."""

    def build(context, builder, signature, args):
        instruction = builder.store(args[2], _pointer(context, builder, signature, args))
        instruction.align = signature.args[0].dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, i, vector), build


def _splat(builder, vector_type, scalar):
    undefined = ir.Constant(vector_type, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, undefined, zeros)


@intrinsic
def splat(typing_context, array, x):
    """Return ``x`` in every lane, in the type of ``array``."""

    def build(context, builder, signature, args):
        dtype = signature.args[0].dtype
        scalar = context.cast(builder, args[1], signature.args[1], dtype)
        return _splat(builder, _llvm(dtype), scalar)

    return Vector(array.dtype)(array, x), build


@intrinsic
def add(typing_context, left, right):
    """Return left + right."""

    def build(context, builder, signature, args):
        return builder.fadd(*args)

    return left(left, right), build


def _fma(builder, llvm, scalar):
    """Return the function that builds a b + c, rounded once, of vectors of type ``llvm``."""
    letter = "f32" if scalar == types.float32 else "f64"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(llvm, [llvm] * 3), f"llvm.fma.v{LANES}{letter}"
    )
    return lambda a, b, c: builder.call(function, [a, b, c])


@intrinsic
def fma(typing_context, x, vector, accumulator):
    """Return accumulator + x vector, rounded once."""

    def build(context, builder, signature, args):
        llvm = _llvm(vector.scalar)
        scalar = context.cast(builder, args[0], signature.args[0], vector.scalar)
        return _fma(builder, llvm, vector.scalar)(_splat(builder, llvm, scalar), *args[1:])

    return vector(x, vector, accumulator), build


@intrinsic
def multiply_add(typing_context, left, right, accumulator):
    """Return accumulator + left right, lane by lane, rounded once."""

    def build(context, builder, signature, args):
        return _fma(builder, _llvm(left.scalar), left.scalar)(*args)

    return left(left, right, accumulator), build


# exp(r) = 1 + r + r^2 (E0 + E1 r + ...) for |r| <= ln(2) / 2: a least-squares fit in relative error
# (3e-9 in exact arithmetic). ln(2) is taken in two parts, the first of which has so few bits that
# its products with whole numbers below 2^9 are exact.
EXP = (0.49999994, 0.16666521, 0.041668388, 0.0083687166, 0.0013814598)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
ROUNDER = 1.5 * 2**23  # x + ROUNDER is x rounded to a whole number, which its last bits hold


def _exp_float32(builder, x):
    """Build e^x for x <= 0, as 2^n e^r: n whole, r = x - n ln(2). Below -87.7 the result is 0."""
    bits = ir.VectorType(ir.IntType(32), LANES)
    multiply_then_add = _fma(builder, x.type, types.float32)

    def constant(value):
        return ir.Constant(x.type, [float(np.float32(value))] * LANES)

    def whole(value):
        return ir.Constant(bits, [value] * LANES)

    lowest = constant(-88)  # here n = -127, whose power of two the bits below make 0
    x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
    shifted = multiply_then_add(x, constant(1 / np.log(2)), constant(ROUNDER))
    n = builder.fsub(shifted, constant(ROUNDER))
    r = multiply_then_add(n, constant(-LN2_HIGH), x)
    r = multiply_then_add(n, constant(-LN2_LOW), r)
    series = constant(EXP[-1])
    for coefficient in EXP[-2::-1]:
        series = multiply_then_add(series, r, constant(coefficient))
    series = multiply_then_add(builder.fmul(series, r), r, builder.fadd(r, constant(1)))
    exponent = builder.add(builder.bitcast(shifted, bits), whole(127))
    return builder.fmul(series, builder.bitcast(builder.shl(exponent, whole(23)), x.type))


def _exp_float64(builder, x):
    """Build e^x lane by lane through the C library."""
    number = ir.DoubleType()
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(number, [number]), "exp"
    )
    result = ir.Constant(x.type, ir.Undefined)
    for lane in range(LANES):
        at = ir.Constant(ir.IntType(32), lane)
        power = builder.call(function, [builder.extract_element(x, at)])
        result = builder.insert_element(result, power, at)
    return result


@intrinsic
def exp(typing_context, vector):
    """Return e to the power of ``vector``, whose lanes are not positive (or are NaN).

    float32: within 1.2e-7 of it, relatively, and 0 below -87.7; float64: the C library's.
    """

    def build(context, builder, signature, args):
        build_exp = _exp_float32 if vector.scalar == types.float32 else _exp_float64
        return build_exp(builder, args[0])

    return vector(vector), build


def _fold(builder, value, combine):
    """Combine the halves of a vector until one number is left."""
    width = LANES
    while width > 1:
        width //= 2
        undefined = ir.Constant(value.type, ir.Undefined)
        half = ir.VectorType(ir.IntType(32), width)
        low = builder.shuffle_vector(value, undefined, ir.Constant(half, list(range(width))))
        upper = ir.Constant(half, list(range(width, 2 * width)))
        value = combine(low, builder.shuffle_vector(value, undefined, upper))
    return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))


@intrinsic
def lane_sum(typing_context, vector):
    """Return the sum of the lanes: halves are added until one number is left."""

    def build(context, builder, signature, args):
        return _fold(builder, args[0], builder.fadd)

    return vector.scalar(vector), build


@intrinsic
def lane_max(typing_context, vector):
    """Return the largest of the lanes, which are not NaN."""

    def build(context, builder, signature, args):
        def larger(left, right):
            return builder.select(builder.fcmp_ordered(">", left, right), left, right)

        return _fold(builder, args[0], larger)

    return vector.scalar(vector), build


# For each byte, the numbers of its bits that are 1, ascending, a byte each; and how many they are.
_BITS = [[b for b in range(8) if byte >> b & 1] for byte in range(256)]
SET_BITS = np.array([sum(b << (8 * k) for k, b in enumerate(bits)) for bits in _BITS], np.int64)
N_SET_BITS = np.array([len(bits) for bits in _BITS], np.int64)


@intrinsic
def _byte_of_marks(typing_context, marks, i):
    """Return the byte whose bit b says whether marks[i + b] is not 0."""

    def build(context, builder, signature, args):
        eight = ir.VectorType(ir.IntType(8), 8)
        data = context.make_array(signature.args[0])(context, builder, value=args[0]).data
        index = context.cast(builder, args[1], signature.args[1], types.intp)
        loaded = builder.load(builder.bitcast(builder.gep(data, [index]), eight.as_pointer()))
        loaded.align = 1
        is_set = builder.icmp_unsigned("!=", loaded, ir.Constant(eight, [0] * 8))
        return builder.zext(builder.bitcast(is_set, ir.IntType(8)), ir.IntType(64))

    return types.int64(marks, i), build


@intrinsic
def _store_bytes(typing_context, numbers, i, packed, base):
    """Set numbers[i : i + 8], int64, to the eight bytes of ``packed`` plus ``base``."""

    def build(context, builder, signature, args):
        eight = ir.VectorType(ir.IntType(64), 8)
        data = context.make_array(signature.args[0])(context, builder, value=args[0]).data
        index = context.cast(builder, args[1], signature.args[1], types.intp)
        bytes_ = builder.bitcast(args[2], ir.VectorType(ir.IntType(8), 8))
        undefined = ir.Constant(eight, ir.Undefined)
        zero = ir.Constant(ir.IntType(32), 0)
        first = builder.insert_element(undefined, args[3], zero)
        bases = builder.shuffle_vector(
            first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8)
        )
        address = builder.bitcast(builder.gep(data, [index]), eight.as_pointer())
        stored = builder.store(builder.add(builder.zext(bytes_, eight), bases), address)
        stored.align = 8
        return context.get_dummy_value()

    return types.void(numbers, i, packed, base), build


@register_jitable
def append_marked(marks, at, n, first, numbers, count):
    """Append first + b for each b < n <= 8 with marks[at + b] not 0; return the new count.

    marks: uint8, read up to eight places from ``at``; numbers: int64, overwritten from ``count``
    on, up to eight places, of which those beyond the new count mean nothing.
    """
    byte = _byte_of_marks(marks, at) & ((np.int64(1) << n) - 1)
    _store_bytes(numbers, count, SET_BITS[byte], np.int64(first))
    return count + N_SET_BITS[byte]
