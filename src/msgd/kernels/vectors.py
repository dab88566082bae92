"""Explicit vectors for CPU kernels: numbers of floatX in registers, and what one does with them.

Numba leaves vectorising to LLVM, which declines where it cannot exclude that arrays overlap or that
an index wraps around. These vectors are LLVM's own, so their operations are vector instructions
whatever the machine's width is, and an accumulator stays in registers.

The functions work on flat arrays (one dimension, C order) inside ``njit`` functions. An index is
not checked and must not be negative. Arrays from ``aligned_empty`` begin at the start of a line of
the cache, so that their vectors at multiples of LANES fill whole lines.

The operations come to the same bits on every processor. Where it has no instruction for fma, as x86
before 2013, the C library's function is called for each lane: a hundred times slower if not more.

A vector has LANES numbers, or HALF as many; ``store``, ``add``, ``multiply``, ``multiply_add``,
``fma``, ``maximum``, ``store_equal`` and ``lane_sum`` take both. ``Sums`` are several vectors of
one length, their number known when compiling: a processor multiplies and adds two vectors in a
cycle, and loads two, and each result is some cycles away. So eight sums or more have to run beside
each other, and what is loaded has to serve several of them.

- ``load(array, i)``: the vector array[i : i + LANES]
- ``load_as(like, array, i)``: the same of an array of integers too, in the type of ``like``
- ``store(array, i, v)``: array[i : + lanes] = v
- ``splat(array, x)``: x in every lane, in the type of ``array``
- ``add(v, w)``: v + w
- ``multiply(v, w)``: v w, lane by lane
- ``divide(v, w)``: v / w, lane by lane
- ``where_negative(x, v, w)``: the lanes of v where x < 0, elsewhere those of w
- ``fma(x, v, acc)``: acc + x v with one rounding; x is a scalar, v and acc are vectors
- ``multiply_add(v, w, acc)``: acc + v w, lane by lane, with one rounding
- ``maximum(v, w)``: the larger of v and w, lane by lane
- ``store_equal(marks, i, v, w)``: marks[i : + lanes] = 1 where v = w and 0 elsewhere
- ``exp(v)``: e^v, for v <= 0
- ``lane_sum(v)``: the sum of the lanes, as the pairwise tree of halves
- ``lane_max(v)``: the largest lane
- ``append_marked(marks, ...)``: list which of eight marks are set
- ``transpose(array, i, stride, out, j, to_stride)``: write a square of HALF rows the other way
- ``load_half(like, array, i)``: the vector array[i : i + HALF] in the type of the array ``like``

A vector may be longer, its length a constant: LLVM cuts it into the processor's vectors. What takes
a vector of HALF takes these too:

- ``load_wide(array, i, lanes)``: the vector array[i : i + lanes]
- ``splat_wide(array, x, lanes)``: x in every one of so many lanes, in the type of ``array``
- ``low_half(v)``, ``high_half(v)``: the first and the second half of the lanes

For ``Sums`` in rows of vectors of HALF, rows is a tuple of whole numbers, one for each row:

- ``load_sums(array, i, stride, rows, lengths)``: row r is array[i + r stride : + U], and U, the sum
  of the tuple ``lengths``, is HALF for each vector of a row
- ``store_sums(array, i, stride, rows, sums)``: the reverse
- ``add_outer(x, rows, d, array, i, sums)``: row r + x[rows[r] + d] array[i : + its length]

For ``Sums`` of vectors of LANES, offsets is a tuple of whole numbers, one for each vector:

- ``load_at(array, i, offsets)``: vector k is array[i + offsets[k] : + LANES]
- ``store_at(array, i, offsets, sums)``: the reverse
- ``fma_at(x, array, i, offsets, sums)``: vector k + x array[i + offsets[k] : + LANES]
- ``add_at(array, i, offsets, sums)``: vector k + array[i + offsets[k] : + LANES]
- ``in_a_row(offsets)``: (0, LANES, 2 LANES, ...), as long as ``offsets``
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_jitable, register_model

LANES = 16
HALF = LANES // 2
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
    """The Numba type of ``lanes`` numbers of type ``scalar``."""

    def __init__(self, scalar, lanes=LANES):
        self.scalar = scalar
        self.lanes = lanes
        super().__init__(name=f"Vector({scalar}, {lanes})")


def llvm_vector(vector):
    """Return LLVM's type of a Vector."""
    element = ir.FloatType() if vector.scalar == types.float32 else ir.DoubleType()
    return ir.VectorType(element, vector.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, llvm_vector(vector))


def build_address(context, builder, array_and_index_types, array_and_index, llvm):
    """Return the address of array[i] as a pointer to ``llvm``, the array's numbers or vectors."""
    array_type, index_type = array_and_index_types
    assert getattr(llvm, "element", llvm) == context.get_value_type(array_type.dtype), array_type
    array, index = array_and_index
    data = context.make_array(array_type)(context, builder, value=array).data
    index = context.cast(builder, index, index_type, types.intp)
    return builder.bitcast(builder.gep(data, [index]), llvm.as_pointer())


def build_load(builder, address):
    """Return the vector at ``address``, which need be a multiple of its numbers' size only."""
    vector = builder.load(address)
    vector.align = _element_bytes(vector.type)
    return vector


def build_store(builder, vector, address):
    """Store ``vector`` at ``address``, which need be a multiple of its numbers' size only."""
    builder.store(vector, address).align = _element_bytes(vector.type)


def _element_bytes(llvm):
    if isinstance(llvm.element, ir.IntType):
        return llvm.element.width // 8
    return 4 if llvm.element == ir.FloatType() else 8


def build_load_as(context, builder, vector, array_and_index_types, array_and_index):
    """Return array[i] and what follows, floats or unsigned, as a Vector of the type ``vector``."""
    stored = array_and_index_types[0].dtype
    llvm = ir.VectorType(context.get_value_type(stored), vector.lanes)
    address = build_address(context, builder, array_and_index_types, array_and_index, llvm)
    loaded = build_load(builder, address)
    is_integer = isinstance(stored, types.Integer)
    return builder.uitofp(loaded, llvm_vector(vector)) if is_integer else loaded


@intrinsic
def load(typing_context, array, i):
    """Return the vector array[i : i + LANES]."""
    vector = Vector(array.dtype)

    def build(context, builder, signature, args):
        return build_load_as(context, builder, vector, signature.args, args)

    return vector(array, i), build


@intrinsic
def load_as(typing_context, like, array, i):
    """Return the vector array[i : i + LANES] in the type of the array ``like``."""
    vector = Vector(like.dtype)

    def build(context, builder, signature, args):
        return build_load_as(context, builder, vector, signature.args[1:], args[1:])

    return vector(like, array, i), build


@intrinsic
def store(typing_context, array, i, vector):
    """Set array[i : + lanes] to ``vector``, of the same type."""

    def build(context, builder, signature, args):
        address = build_address(context, builder, signature.args[:2], args[:2], args[2].type)
        build_store(builder, args[2], address)
        return context.get_dummy_value()

    return types.void(array, i, vector), build


def build_splat(builder, llvm, scalar):
    """Return ``scalar`` in every lane of a vector of type ``llvm``."""
    undefined = ir.Constant(llvm, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return build_shuffle(builder, first, undefined, [0] * llvm.count)


def build_shuffle(builder, left, right, lanes):
    """Return the vector of ``lanes`` of two vectors; the right one's come after the left one's."""
    numbers = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))
    return builder.shuffle_vector(left, right, numbers)


@intrinsic
def splat(typing_context, array, x):
    """Return ``x`` in every lane, in the type of ``array``."""
    vector = Vector(array.dtype)

    def build(context, builder, signature, args):
        scalar = context.cast(builder, args[1], signature.args[1], vector.scalar)
        return build_splat(builder, llvm_vector(vector), scalar)

    return vector(array, x), build


@intrinsic(prefer_literal=True)
def load_wide(typing_context, array, i, lanes):
    """Return the vector array[i : i + lanes]; ``lanes``: a constant."""
    vector = Vector(array.dtype, lanes.literal_value)

    def build(context, builder, signature, args):
        return build_load_as(context, builder, vector, signature.args[:2], args[:2])

    return vector(array, types.unliteral(i), lanes), build


@intrinsic(prefer_literal=True)
def splat_wide(typing_context, array, x, lanes):
    """Return ``x`` in every one of ``lanes`` lanes, a constant, in the type of ``array``."""
    vector = Vector(array.dtype, lanes.literal_value)

    def build(context, builder, signature, args):
        scalar = context.cast(builder, args[1], signature.args[1], vector.scalar)
        return build_splat(builder, llvm_vector(vector), scalar)

    return vector(array, types.unliteral(x), lanes), build


def _half_builder(first):
    """Return what builds half of a vector's lanes, from the first or the middle on."""

    def build(context, builder, signature, args):
        half = args[0].type.count // 2
        undefined = ir.Constant(args[0].type, ir.Undefined)
        return build_shuffle(builder, args[0], undefined, range(first * half, (first + 1) * half))

    return build


@intrinsic
def low_half(typing_context, vector):
    """Return the first half of the lanes."""
    return Vector(vector.scalar, vector.lanes // 2)(vector), _half_builder(0)


@intrinsic
def high_half(typing_context, vector):
    """Return the second half of the lanes."""
    return Vector(vector.scalar, vector.lanes // 2)(vector), _half_builder(1)


@intrinsic
def add(typing_context, left, right):
    """Return left + right."""

    def build(context, builder, signature, args):
        return builder.fadd(*args)

    return left(left, right), build


@intrinsic
def multiply(typing_context, left, right):
    """Return left right, lane by lane."""

    def build(context, builder, signature, args):
        return builder.fmul(*args)

    return left(left, right), build


@intrinsic
def divide(typing_context, left, right):
    """Return left / right, lane by lane."""

    def build(context, builder, signature, args):
        return builder.fdiv(*args)

    return left(left, right), build


@intrinsic
def where_negative(typing_context, x, left, right):
    """Return the lanes of ``left`` where those of ``x`` are below 0, elsewhere those of right."""

    def build(context, builder, signature, args):
        x, left, right = args
        return builder.select(builder.fcmp_ordered("<", x, ir.Constant(x.type, None)), left, right)

    return left(x, left, right), build


def build_fma(builder, x, y, z):
    """Return x y + z of vectors, rounded once."""
    name = f"llvm.fma.v{x.type.count}{'f32' if x.type.element == ir.FloatType() else 'f64'}"
    function_type = ir.FunctionType(x.type, [x.type] * 3)
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, [x, y, z])


@intrinsic
def fma(typing_context, x, vector, accumulator):
    """Return accumulator + x vector, rounded once."""

    def build(context, builder, signature, args):
        scalar = context.cast(builder, args[0], signature.args[0], vector.scalar)
        return build_fma(builder, build_splat(builder, args[1].type, scalar), args[1], args[2])

    return vector(x, vector, accumulator), build


@intrinsic
def multiply_add(typing_context, left, right, accumulator):
    """Return accumulator + left right, lane by lane, rounded once."""

    def build(context, builder, signature, args):
        return build_fma(builder, *args)

    return left(left, right, accumulator), build


def _build_maximum(builder, left, right):
    return builder.select(builder.fcmp_ordered(">", left, right), left, right)


@intrinsic
def maximum(typing_context, left, right):
    """Return the larger of ``left`` and ``right``, lane by lane."""

    def build(context, builder, signature, args):
        return _build_maximum(builder, *args)

    return left(left, right), build


@intrinsic
def store_equal(typing_context, marks, i, left, right):
    """Set the uint8 marks[i : + lanes] to 1 where ``left`` and ``right`` are equal, else to 0."""

    def build(context, builder, signature, args):
        marked = ir.VectorType(ir.IntType(8), left.lanes)
        address = build_address(context, builder, signature.args[:2], args[:2], marked)
        is_equal = builder.fcmp_ordered("==", *args[2:])
        build_store(builder, builder.zext(is_equal, marked), address)
        return context.get_dummy_value()

    return types.void(marks, i, left, right), build


# exp(r) = 1 + r + r^2 (E0 + E1 r + ...) for |r| <= ln(2) / 2: a least-squares fit in relative error
# (3e-9 in exact arithmetic). ln(2) is taken in two parts, the first of which has so few bits that
# its products with whole numbers below 2^9 are exact.
EXP = (0.49999994, 0.16666521, 0.041668388, 0.0083687166, 0.0013814598)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
ROUNDER = 1.5 * 2**23  # x + ROUNDER is x rounded to a whole number, which its last bits hold


def _exp_float32(builder, x):
    """Build e^x for x <= 0, as 2^n e^r: n whole, r = x - n ln(2). Below -87.7 the result is 0."""
    bits = ir.VectorType(ir.IntType(32), LANES)

    def constant(value):
        return ir.Constant(x.type, [float(np.float32(value))] * LANES)

    def whole(value):
        return ir.Constant(bits, [value] * LANES)

    lowest = constant(-88)  # here n = -127, whose power of two the bits below make 0
    x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
    shifted = build_fma(builder, x, constant(1 / np.log(2)), constant(ROUNDER))
    n = builder.fsub(shifted, constant(ROUNDER))
    r = build_fma(builder, n, constant(-LN2_HIGH), x)
    r = build_fma(builder, n, constant(-LN2_LOW), r)
    series = constant(EXP[-1])
    for coefficient in EXP[-2::-1]:
        series = build_fma(builder, series, r, constant(coefficient))
    series = build_fma(builder, builder.fmul(series, r), r, builder.fadd(r, constant(1)))
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
    """Return e to the power of ``vector``, LANES long, whose lanes are not positive (or are NaN).

    float32: within 1.5 units in the last place, and 0 below -87.7; float64: the C library's.
    """

    def build(context, builder, signature, args):
        build_exp = _exp_float32 if vector.scalar == types.float32 else _exp_float64
        return build_exp(builder, args[0])

    return vector(vector), build


def _fold(builder, value, combine):
    """Combine the halves of a vector until one number is left."""
    while value.type.count > 1:
        width = value.type.count // 2
        undefined = ir.Constant(value.type, ir.Undefined)
        low = build_shuffle(builder, value, undefined, range(width))
        high = build_shuffle(builder, value, undefined, range(width, 2 * width))
        value = combine(low, high)
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
        return _fold(builder, args[0], lambda left, right: _build_maximum(builder, left, right))

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
        loaded = build_load(builder, build_address(context, builder, signature.args, args, eight))
        is_set = builder.icmp_unsigned("!=", loaded, ir.Constant(eight, [0] * 8))
        return builder.zext(builder.bitcast(is_set, ir.IntType(8)), ir.IntType(64))

    return types.int64(marks, i), build


@intrinsic
def _store_bytes(typing_context, numbers, i, packed, base):
    """Set numbers[i : i + 8], int64, to the eight bytes of ``packed`` plus ``base``."""

    def build(context, builder, signature, args):
        eight = ir.VectorType(ir.IntType(64), 8)
        bytes_ = builder.bitcast(args[2], ir.VectorType(ir.IntType(8), 8))
        sums = builder.add(builder.zext(bytes_, eight), build_splat(builder, eight, args[3]))
        address = build_address(context, builder, signature.args[:2], args[:2], eight)
        build_store(builder, sums, address)
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


@intrinsic
def transpose(typing_context, array, i, stride, out, j, to_stride):
    """Set out[j + c to_stride + r] to array[i + r stride + c] for r and c below HALF.

    All are read before any is written.
    """
    vector = Vector(array.dtype, HALF)

    def build(context, builder, signature, args):
        def places(start):
            kinds, values = signature.args[start : start + 3], args[start : start + 3]
            first = build_address(context, builder, kinds[:2], values[:2], number)
            step = context.cast(builder, values[2], kinds[2], types.intp)
            for row in range(HALF):
                at = builder.gep(first, [builder.mul(step, ir.Constant(step.type, row))])
                yield builder.bitcast(at, llvm_vector(vector).as_pointer())

        number = llvm_vector(vector).element
        rows = [build_load(builder, at) for at in places(0)]
        size = 1
        while (
            size < HALF
        ):  # swap the squares of ``size`` beside the diagonal in those twice as large
            lanes = range(HALF)
            above = [k if k & size == 0 else HALF + k - size for k in lanes]
            below = [k + size if k & size == 0 else HALF + k for k in lanes]
            for row in range(HALF):
                if row & size == 0:
                    pair = rows[row], rows[row + size]
                    rows[row] = build_shuffle(builder, *pair, above)
                    rows[row + size] = build_shuffle(builder, *pair, below)
            size *= 2
        for row, at in zip(rows, places(3), strict=True):
            build_store(builder, row, at)
        return context.get_dummy_value()

    return types.void(array, i, stride, out, j, to_stride), build


class Sums(types.Type):
    """The Numba type of ``count`` vectors of ``lanes`` numbers of type ``scalar``."""

    def __init__(self, scalar, count, lanes=HALF):
        self.vector = Vector(scalar, lanes)
        self.count = count
        super().__init__(name=f"Sums({scalar}, {count}, {lanes})")


@register_model(Sums)
class _SumsModel(models.PrimitiveModel):
    def __init__(self, manager, sums):
        super().__init__(manager, sums, ir.ArrayType(llvm_vector(sums.vector), sums.count))


def build_places(builder, address, count):
    """Return the addresses of ``count`` things that follow each other from ``address`` on."""
    return [builder.gep(address, [ir.Constant(ir.IntType(64), k)]) for k in range(count)]


def build_rows(context, builder, signature, args, sums):
    """Return the addresses of the vectors of ``sums`` for (array, i, stride, rows), row by row."""
    n_rows = signature.args[3].count
    stride = context.cast(builder, args[2], signature.args[2], types.intp)
    number = llvm_vector(sums.vector).element
    first = build_address(context, builder, signature.args[:2], args[:2], number)
    places = []
    for row in range(n_rows):
        at = builder.gep(first, [builder.mul(stride, ir.Constant(stride.type, row))])
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
def load_sums(typing_context, array, i, stride, rows, lengths):
    """Return the sums whose row r is array[i + r stride : + HALF len(lengths)]."""
    sums = Sums(array.dtype, rows.count * lengths.count)

    def build(context, builder, signature, args):
        result = ir.Constant(context.get_value_type(sums), ir.Undefined)
        for k, place in enumerate(build_rows(context, builder, signature, args, sums)):
            result = builder.insert_value(result, build_load(builder, place), k)
        return result

    return sums(array, i, stride, rows, lengths), build


@intrinsic
def store_sums(typing_context, array, i, stride, rows, sums):
    """Set array[i + r stride : + its length] to row r of the sums."""

    def build(context, builder, signature, args):
        for k, place in enumerate(build_rows(context, builder, signature, args, sums)):
            build_store(builder, builder.extract_value(args[4], k), place)
        return context.get_dummy_value()

    return types.void(array, i, stride, rows, sums), build


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


def build_at(context, builder, signature, args, vector):
    """Return the addresses of the vectors at (array, i, offsets)."""
    llvm = llvm_vector(vector)
    first = build_address(context, builder, signature.args[:2], args[:2], llvm.element)
    offsets = [builder.extract_value(args[2], k) for k in range(signature.args[2].count)]
    return [builder.bitcast(builder.gep(first, [k]), llvm.as_pointer()) for k in offsets]


@intrinsic
def load_at(typing_context, array, i, offsets):
    """Return the sums whose vector k is array[i + offsets[k] : + LANES]."""
    sums = Sums(array.dtype, offsets.count, LANES)

    def build(context, builder, signature, args):
        addresses = build_at(context, builder, signature, args, sums.vector)
        return cgutils.pack_array(builder, [build_load(builder, at) for at in addresses])

    return sums(array, i, offsets), build


@intrinsic
def store_at(typing_context, array, i, offsets, sums):
    """Set array[i + offsets[k] : + LANES] to vector k of the sums, one after the other."""

    def build(context, builder, signature, args):
        for k, at in enumerate(build_at(context, builder, signature, args, sums.vector)):
            build_store(builder, builder.extract_value(args[3], k), at)
        return context.get_dummy_value()

    return types.void(array, i, offsets, sums), build


@intrinsic
def fma_at(typing_context, x, array, i, offsets, sums):
    """Return the sums with x array[i + offsets[k] : + LANES] added to vector k, rounded once."""

    def build(context, builder, signature, args):
        vector = sums.vector
        scalar = context.cast(builder, args[0], signature.args[0], vector.scalar)
        factor = build_splat(builder, llvm_vector(vector), scalar)
        without_x = signature.return_type(*signature.args[1:])
        result = args[4]
        for k, at in enumerate(build_at(context, builder, without_x, args[1:], vector)):
            old = builder.extract_value(result, k)
            new = build_fma(builder, factor, build_load(builder, at), old)
            result = builder.insert_value(result, new, k)
        return result

    return sums(x, array, i, offsets, sums), build


@intrinsic
def add_at(typing_context, array, i, offsets, sums):
    """Return the sums with array[i + offsets[k] : + LANES] added to vector k."""

    def build(context, builder, signature, args):
        result = args[3]
        for k, at in enumerate(build_at(context, builder, signature, args, sums.vector)):
            total = builder.fadd(builder.extract_value(result, k), build_load(builder, at))
            result = builder.insert_value(result, total, k)
        return result

    return sums(array, i, offsets, sums), build


@intrinsic
def in_a_row(typing_context, offsets):
    """Return (0, LANES, 2 LANES, ...), as long as the tuple ``offsets``: constants to LLVM."""

    def build(context, builder, signature, args):
        numbers = [ir.Constant(ir.IntType(64), k * LANES) for k in range(offsets.count)]
        return cgutils.pack_array(builder, numbers)

    return types.UniTuple(types.int64, offsets.count)(offsets), build
