"""Many sums at once in registers, a vector of HALF numbers each: what products are made of.

A processor multiplies and adds two vectors in a cycle, and it loads two; each result is some cycles
away. So eight sums or more have to run beside each other, and what is loaded has to serve several
of them. ``Sums`` are a number of such vectors, known when compiling.

Inside ``njit`` functions, with flat arrays and unchecked indices as in ``kernels/simd.py``; rows is
a tuple of whole numbers, one for each row of the sums:

- ``load_half(like, array, i)``: the vector array[i : i + HALF] in the type of the array ``like``
- ``load_sums(array, i, step, rows, vectors)``: row r is array[i + r step : + HALF len(vectors)]
- ``store_sums(array, i, step, rows, sums)``: the reverse
- ``add_outer(x, rows, d, array, i, sums)``: row r + x[rows[r] + d] array[i : + its length]
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from msgd.kernels.simd import (
    LANES,
    Vector,
    build_address,
    build_fma,
    build_load,
    build_load_as,
    build_splat,
    build_store,
    llvm_vector,
)

HALF = LANES // 2


class Sums(types.Type):
    """The Numba type of ``count`` vectors of HALF numbers of type ``scalar``."""

    def __init__(self, scalar, count):
        self.vector = Vector(scalar, HALF)
        self.count = count
        super().__init__(name=f"Sums({scalar}, {count})")


@register_model(Sums)
class _SumsModel(models.PrimitiveModel):
    def __init__(self, manager, sums):
        super().__init__(manager, sums, ir.ArrayType(llvm_vector(sums.vector), sums.count))


def build_places(builder, address, count):
    """Return the addresses of ``count`` things that follow each other from ``address`` on."""
    return [builder.gep(address, [ir.Constant(ir.IntType(64), k)]) for k in range(count)]


def _build_rows(context, builder, signature, args, sums):
    """Return the addresses of the vectors of ``sums`` for (array, i, step, rows), row by row."""
    n_rows = signature.args[3].count
    step = context.cast(builder, args[2], signature.args[2], types.intp)
    number = llvm_vector(sums.vector).element
    first = build_address(context, builder, signature.args[:2], args[:2], number)
    places = []
    for row in range(n_rows):
        at = builder.gep(first, [builder.mul(step, ir.Constant(step.type, row))])
        at = builder.bitcast(at, llvm_vector(sums.vector).as_pointer())
        places += build_places(builder, at, sums.count // n_rows)
    return places


@intrinsic
def load_half(typing_context, like, array, i):
    """Return the vector array[i : i + HALF] in the type of the array ``like``."""
    vector = Vector(like.dtype, HALF)

    def build(context, builder, signature, args):
        return build_load_as(context, builder, vector, signature.args[1:], args[1:])

    return vector(like, array, i), build


@intrinsic
def load_sums(typing_context, array, i, step, rows, vectors):
    """Return the sums whose row r is array[i + r step : + HALF len(vectors)]."""
    sums = Sums(array.dtype, rows.count * vectors.count)

    def build(context, builder, signature, args):
        result = ir.Constant(context.get_value_type(sums), ir.Undefined)
        for k, place in enumerate(_build_rows(context, builder, signature, args, sums)):
            result = builder.insert_value(result, build_load(builder, place), k)
        return result

    return sums(array, i, step, rows, vectors), build


@intrinsic
def store_sums(typing_context, array, i, step, rows, sums):
    """Set array[i + r step : + its length] to row r of the sums."""

    def build(context, builder, signature, args):
        for k, place in enumerate(_build_rows(context, builder, signature, args, sums)):
            build_store(builder, builder.extract_value(args[4], k), place)
        return context.get_dummy_value()

    return types.void(array, i, step, rows, sums), build


@intrinsic
def add_outer(typing_context, x, rows, d, array, i, sums):
    """Return the sums with x[rows[r] + d] array[i : + its length] added to row r."""

    def build(context, builder, signature, args):
        n_rows = signature.args[1].count
        n_vectors = sums.count // n_rows
        llvm = llvm_vector(sums.vector)
        data = context.make_array(signature.args[0])(context, builder, value=args[0]).data
        d = context.cast(builder, args[2], signature.args[2], types.intp)
        address = build_address(context, builder, signature.args[3:5], args[3:5], llvm)
        vectors = [build_load(builder, at) for at in build_places(builder, address, n_vectors)]
        result = args[5]
        for row in range(n_rows):
            start = builder.extract_value(args[1], row)
            number = builder.load(builder.gep(builder.gep(data, [start]), [d]))
            factor = build_splat(builder, llvm, number)
            for v, vector in enumerate(vectors):
                k = row * n_vectors + v
                term = build_fma(builder, factor, vector, builder.extract_value(result, k))
                result = builder.insert_value(result, term, k)
        return result

    return sums(x, rows, d, array, i, sums), build
