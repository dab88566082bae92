"""Tiles: products of a few rows by a few columns, all sums of which stay in registers.

Inside ``njit`` functions, on flat arrays, as in ``kernels/vectors.py``; rows and columns are tuples
of whole numbers, offsets into an array, and a tile has a vector of LANES for each pair of them. Of
dot products, a vector holds the sums of every LANES-th term:

- ``no_dots(like, rows, columns)``: all 0, in the type of the array ``like``
- ``add_dots(x, rows, s, w, columns, t, tile)``: tile (r, c) + x[rows[r] + s : + LANES]
  w[columns[c] + t : + LANES], lane by lane
- ``store_dots(out, i, stride, rows, tile)``: out[i + r stride + c] = the sum of the lanes of (r, c)

Of a product whose rows are vectors, they are neighbours, ``width`` of them, a tuple of any numbers:

- ``no_rows(like, rows, width)``: all 0
- ``add_outer`` of ``kernels/vectors.py``: row r + x[rows[r] + d] array[i : + its length]
- ``store_sums`` of ``kernels/vectors.py``: array[i + r stride : + its length] = row r
- ``move_rows(array, i, stride, rows, factors, j, rate, tile)``: array[i + r stride : + its length]
  becomes itself times factors[j : + its length] plus rate row r
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from msgd.kernels.vectors import (
    LANES,
    Sums,
    build_address,
    build_at,
    build_fma,
    build_load,
    build_places,
    build_rows,
    build_shuffle,
    build_splat,
    build_store,
    llvm_vector,
)


def _zeros(tile):
    """Return what builds a tile of zeros."""

    def build(context, builder, signature, args):
        return ir.Constant(context.get_value_type(tile), None)

    return build


@intrinsic
def no_dots(typing_context, like, rows, columns):
    """Return a tile of dot products of no terms, in the type of the array ``like``."""
    tile = Sums(like.dtype, rows.count * columns.count, LANES)
    return tile(like, rows, columns), _zeros(tile)


@intrinsic
def no_rows(typing_context, like, rows, width):
    """Return a tile whose rows, as long as ``width`` vectors, are 0, in the type of ``like``."""
    tile = Sums(like.dtype, rows.count * width.count, LANES)
    return tile(like, rows, width), _zeros(tile)


def _build_loads(context, builder, signature, args, vector):
    """Return the vectors array[offsets[k] + start : + LANES], for (array, offsets, start)."""
    start = context.cast(builder, args[2], signature.args[2], types.intp)
    kinds = types.void(signature.args[0], types.intp, signature.args[1])
    places = build_at(context, builder, kinds, (args[0], start, args[1]), vector)
    return [build_load(builder, place) for place in places]


@intrinsic
def add_dots(typing_context, x, rows, s, w, columns, t, tile):
    """Return the tile with the products of LANES terms of all rows of x and of w added."""

    def build(context, builder, signature, args):
        kinds = signature.args
        left = _build_loads(context, builder, types.void(*kinds[:3]), args[:3], tile.vector)
        right = _build_loads(context, builder, types.void(*kinds[3:6]), args[3:6], tile.vector)
        result = args[6]
        for k, (row, column) in enumerate((row, column) for row in left for column in right):
            term = build_fma(builder, row, column, builder.extract_value(result, k))
            result = builder.insert_value(result, term, k)
        return result

    return tile(x, rows, s, w, columns, t, tile), build


def _build_totals(builder, vectors):
    """Return a vector of the sums of the lanes of up to LANES vectors, one after the other.

    Halves are added until one number is left, as lane_sum does it, but of two vectors at a time:
    so half as many vectors are left each time.
    """
    size = LANES  # lanes of a vector that belong to one sum
    while size > 1:
        if len(vectors) % 2 == 1:
            vectors = [*vectors, ir.Constant(vectors[0].type, None)]
        parts = [
            [k for k in range(2 * LANES) if (k % size < size // 2) == is_low]
            for is_low in (True, False)
        ]
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [
            builder.fadd(*(build_shuffle(builder, left, right, lanes) for lanes in parts))
            for left, right in pairs
        ]
        size //= 2
    return vectors[0]


@intrinsic
def store_dots(typing_context, out, i, stride, rows, tile):
    """Set out[i + r stride + c] to the sum of the lanes of (r, c) of the tile."""

    def build(context, builder, signature, args):
        n_rows = signature.args[3].count
        n_columns = tile.count // n_rows
        llvm = ir.VectorType(llvm_vector(tile.vector).element, n_columns)
        first = build_address(context, builder, signature.args[:2], args[:2], llvm.element)
        stride = context.cast(builder, args[2], signature.args[2], types.intp)
        vectors = [builder.extract_value(args[4], k) for k in range(tile.count)]
        totals = _build_totals(builder, vectors)
        for row in range(n_rows):
            at = builder.gep(first, [builder.mul(stride, ir.Constant(stride.type, row))])
            lanes = range(row * n_columns, (row + 1) * n_columns)
            sums = build_shuffle(builder, totals, totals, lanes)
            build_store(builder, sums, builder.bitcast(at, llvm.as_pointer()))
        return context.get_dummy_value()

    return types.void(out, i, stride, rows, tile), build


@intrinsic
def move_rows(typing_context, array, i, stride, rows, factors, j, rate, tile):
    """Set array[i + r stride : + its length] to factors times itself plus rate row r."""

    def build(context, builder, signature, args):
        kinds, llvm = signature.args, llvm_vector(tile.vector)
        width = tile.count // kinds[3].count
        first = build_address(context, builder, kinds[4:6], args[4:6], llvm)
        shrink = [build_load(builder, at) for at in build_places(builder, first, width)]
        rate = build_splat(builder, llvm, args[6])
        places = build_rows(context, builder, types.void(*kinds[:4]), args[:4], tile)
        for k, place in enumerate(places):
            old = builder.fmul(shrink[k % width], build_load(builder, place))
            step = builder.extract_value(args[7], k)
            build_store(builder, build_fma(builder, rate, step, old), place)
        return context.get_dummy_value()

    return types.void(array, i, stride, rows, factors, j, tile.vector.scalar, tile), build
