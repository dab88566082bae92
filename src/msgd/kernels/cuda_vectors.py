"""Four float32 at once between memory and registers, on CUDA.

A GPU reads and writes 16 bytes with one instruction where it is told to; Numba alone makes four of
them. On the simulator the functions run as they stand here; for a GPU their bodies are replaced by
that instruction.
"""

from numba import cuda

from msgd.kernels.cuda import INLINE, IS_NUMBA_CUDA, IS_SIMULATOR


def load4(array, i):
    """Return array[i], ..., array[i + 3]. array: one-dimensional float32; i: a multiple of 4.

    Of a slice, the first number must lie on a multiple of 16 bytes.
    """
    return array[i], array[i + 1], array[i + 2], array[i + 3]


def store4(array, i, values):
    """Overwrite array[i], ..., array[i + 3] with the four ``values``; array and i as in load4."""
    array[i], array[i + 1], array[i + 2], array[i + 3] = values


if IS_NUMBA_CUDA and not IS_SIMULATOR:
    from llvmlite import ir
    from numba import types
    from numba.cuda.extending import intrinsic, overload
    from numba.cuda.typing import signature

    FOUR_FLOATS = ir.VectorType(ir.FloatType(), 4)
    PLACES = [ir.Constant(ir.IntType(32), place) for place in range(4)]

    def _address(context, builder, kinds, values):
        """Return the address of array[i] as that of four floats."""
        array = context.make_array(kinds[0])(context, builder, value=values[0])
        i = context.cast(builder, values[1], kinds[1], types.int64)
        return builder.bitcast(builder.gep(array.data, [i]), FOUR_FLOATS.as_pointer())

    @intrinsic
    def _load4(typing, array, i):
        kinds = signature(types.UniTuple(types.float32, 4), array, i)

        def generate(context, builder, kinds, values):
            four = builder.load(_address(context, builder, kinds.args, values), align=16)
            parts = [builder.extract_element(four, place) for place in PLACES]
            return context.make_tuple(builder, kinds.return_type, parts)

        return kinds, generate

    @intrinsic
    def _store4(typing, array, i, values):
        kinds = signature(types.void, array, i, values)

        def generate(context, builder, kinds, values):
            four = ir.Constant(FOUR_FLOATS, ir.Undefined)
            for k, place in enumerate(PLACES):
                part = builder.extract_value(values[2], k)
                four = builder.insert_element(four, part, place)
            builder.store(four, _address(context, builder, kinds.args, values), align=16)
            return context.get_dummy_value()

        return kinds, generate

    @overload(load4, target="cuda")
    def _(array, i):
        return lambda array, i: _load4(array, i)

    @overload(store4, target="cuda")
    def _(array, i, values):
        return lambda array, i, values: _store4(array, i, values)


@cuda.jit(device=True, **INLINE)
def read4(array, i, registers, j):
    """Overwrite registers[j], ..., registers[j + 3] with four numbers of ``array``, as load4.

    registers: one-dimensional float32; j: a constant, and i: a multiple of 4.
    """
    registers[j], registers[j + 1], registers[j + 2], registers[j + 3] = load4(array, i)
