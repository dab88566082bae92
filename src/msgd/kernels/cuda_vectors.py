"""Four numbers at once between memory and registers, and out of the bytes of a word, on CUDA.

A GPU reads and writes four float32, or four bytes, with one instruction where it is told to; Numba
alone makes four of them. On the simulator the functions run as they stand here; for a GPU their
bodies are replaced by that instruction.
"""

import numpy as np
from numba import cuda

from msgd.kernels.cuda import INLINE, IS_NUMBA_CUDA, IS_SIMULATOR

TWO_TO_23 = 0x4B000000  # as the bits of a float32
AS_ITS_LAST_BYTE = 0x7440  # which of eight bytes, a word's and then those of 2^23; plus which byte


def load4(array, i):
    """Return array[i], ..., array[i + 3]; i: a multiple of 4.

    array: float32 or uint8, contiguous; of two dimensions, i counts on from row to row. Of a slice,
    the first number must lie on a multiple of four numbers' bytes.
    """
    flat = array.reshape(-1)
    return flat[i], flat[i + 1], flat[i + 2], flat[i + 3]


def store4(array, i, values):
    """Overwrite array[i], ..., array[i + 3] with the four ``values``; array and i as in load4."""
    flat = array.reshape(-1)
    flat[i], flat[i + 1], flat[i + 2], flat[i + 3] = values


def bytes4(word):
    """Return the four bytes of ``word``, uint32, as float32; the lowest first.

    A GPU converts whole numbers slowly. There a byte becomes the last one of 2^23 + byte, of which
    2^23 is then taken: both are exact.
    """
    return tuple(np.float32(word >> np.uint32(8 * k) & np.uint32(255)) for k in range(4))


if IS_NUMBA_CUDA and not IS_SIMULATOR:
    from llvmlite import ir
    from numba import types
    from numba.cuda.extending import intrinsic, overload
    from numba.cuda.typing import signature

    PLACES = [ir.Constant(ir.IntType(32), place) for place in range(4)]

    def _address(context, builder, kinds, values):
        """Return the address of array[i] as that of four numbers, their LLVM type, their bytes."""
        array = context.make_array(kinds[0])(context, builder, value=values[0])
        i = context.cast(builder, values[1], kinds[1], types.int64)
        four = ir.VectorType(context.get_data_type(kinds[0].dtype), 4)
        address = builder.bitcast(builder.gep(array.data, [i]), four.as_pointer())
        return address, four, 4 * kinds[0].dtype.bitwidth // 8

    @intrinsic
    def _load4(typing, array, i):
        kinds = signature(types.UniTuple(array.dtype, 4), array, i)

        def generate(context, builder, kinds, values):
            address, _, n_bytes = _address(context, builder, kinds.args, values)
            four = builder.load(address, align=n_bytes)
            parts = [builder.extract_element(four, place) for place in PLACES]
            return context.make_tuple(builder, kinds.return_type, parts)

        return kinds, generate

    @intrinsic
    def _store4(typing, array, i, values):
        kinds = signature(types.void, array, i, values)

        def generate(context, builder, kinds, values):
            address, kind, n_bytes = _address(context, builder, kinds.args, values)
            four = ir.Constant(kind, ir.Undefined)
            for k, place in enumerate(PLACES):
                part = builder.extract_value(values[2], k)
                four = builder.insert_element(four, part, place)
            builder.store(four, address, align=n_bytes)
            return context.get_dummy_value()

        return kinds, generate

    @intrinsic
    def _bytes4(typing, word):
        kinds = signature(types.UniTuple(types.float32, 4), word)

        def generate(context, builder, kinds, values):
            integer = ir.IntType(32)
            chosen = ir.FunctionType(integer, [integer] * 3)
            choose = builder.module.declare_intrinsic("llvm.nvvm.prmt", (), chosen)
            parts = []
            for k in range(4):
                which = ir.Constant(integer, AS_ITS_LAST_BYTE + k)
                bits = builder.call(choose, [values[0], ir.Constant(integer, TWO_TO_23), which])
                number = builder.bitcast(bits, ir.FloatType())
                parts.append(builder.fsub(number, ir.Constant(ir.FloatType(), 2.0**23)))
            return context.make_tuple(builder, kinds.return_type, parts)

        return kinds, generate

    @overload(bytes4, target="cuda")
    def _(word):
        return lambda word: _bytes4(word)

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
