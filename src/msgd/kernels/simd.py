"""Explicit vectors for CPU kernels: 16 numbers of floatX in registers, and seven things to do.

Numba leaves vectorising to LLVM, which declines where it cannot exclude that arrays overlap or that
an index wraps around. These vectors are LLVM's own, so their operations are vector instructions
whatever the machine's width is, and an accumulator stays in registers.

All functions work on flat arrays (one dimension, C order) inside ``njit`` functions. An index is
not checked and must not be negative.

- ``load(array, i)``: the vector array[i : i + LANES]
- ``store(array, i, v)``: array[i : i + LANES] = v
- ``splat(array, x)``: x in every lane, in the type of ``array``
- ``add(v, w)``: v + w
- ``fma(x, v, acc)``: acc + x v with one rounding; x is a scalar, v and acc are vectors
- ``multiply_add(v, w, acc)``: acc + v w, lane by lane, with one rounding
- ``lane_sum(v)``: the sum of the lanes, as the pairwise tree of halves
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16


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


@intrinsic
def fma(typing_context, x, vector, accumulator):
    """Return accumulator + x vector, rounded once."""

    def build(context, builder, signature, args):
        llvm = _llvm(vector.scalar)
        scalar = context.cast(builder, args[0], signature.args[0], vector.scalar)
        letter = "f32" if vector.scalar == types.float32 else "f64"
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(llvm, [llvm] * 3), f"llvm.fma.v{LANES}{letter}"
        )
        return builder.call(function, [_splat(builder, llvm, scalar), args[1], args[2]])

    return vector(x, vector, accumulator), build


@intrinsic
def multiply_add(typing_context, left, right, accumulator):
    """Return accumulator + left right, lane by lane, rounded once."""

    def build(context, builder, signature, args):
        llvm = _llvm(left.scalar)
        letter = "f32" if left.scalar == types.float32 else "f64"
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(llvm, [llvm] * 3), f"llvm.fma.v{LANES}{letter}"
        )
        return builder.call(function, args)

    return left(left, right, accumulator), build


@intrinsic
def lane_sum(typing_context, vector):
    """Return the sum of the lanes: halves are added until one number is left."""

    def build(context, builder, signature, args):
        value, width = args[0], LANES
        while width > 1:
            width //= 2
            undefined = ir.Constant(value.type, ir.Undefined)
            half = ir.VectorType(ir.IntType(32), width)
            low = builder.shuffle_vector(value, undefined, ir.Constant(half, list(range(width))))
            upper = ir.Constant(half, list(range(width, 2 * width)))
            high = builder.shuffle_vector(value, undefined, upper)
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return vector.scalar(vector), build
