"""Products of small matrices on the tensor cores of a GPU, in TF32, by the 32 lanes of a warp.

TF32 is a float32 whose fraction has 10 bits, not 23. A product of two such numbers is exact in
float32, and sums are kept in float32. Tensor cores have it from compute capability 8.0 on.

A warp adds A B to C at once. A is 16 x 8, B 8 x 8 and C 16 x 8; each lane holds some numbers of
each. With g = lane // 4 and q = lane % 4::

    A, 4 numbers            B, 2 numbers          C, 4 numbers
    (g, q)     (g, q + 4)   (q, g)                (g, 2 q)      (g, 2 q + 1)
    (g + 8, q) (g + 8, q + 4)  (q + 4, g)         (g + 8, 2 q)  (g + 8, 2 q + 1)
    in the order            in this order         in the order of rows
    0 2
    1 3

On the simulator the functions run as they stand here, with the layer of tests/simulator.py alone;
for a GPU their bodies are replaced by one instruction each. In which order a GPU adds the eight
products is its own affair: the same GPU always gives the same bits, another may give others.
"""

import numpy as np
from numba import cuda

from msgd.kernels.cuda import INLINE, IS_NUMBA_CUDA, IS_SIMULATOR
from msgd.kernels.cuda_sums import EVERY_LANE, LANES

COMPUTE_CAPABILITY = (8, 0)  # from which on tensor cores have TF32
SPLIT = np.float32(2**13 + 1)  # TF32 does without the last 13 bits of a float32's fraction


def to_tf32(x):
    """Return x, float32, rounded to TF32; NaN where x is not finite, or above 4e34.

    Of SPLIT x, which is x in its upper and once more in its lower bits, the lower ones are taken.
    """
    split = np.float32(x * SPLIT)
    return np.float32(split - np.float32(split - x))


def multiply_add(a, b, c):
    """Return C + A B of the warp; all its lanes call.

    a, b, c: tuples of 4, 2 and 4 float32, the lane's numbers of A, B and C (see above), those of A
    and B as to_tf32 returns them: of others a GPU drops bits. What is returned is as c.
    """
    lane = int(cuda.threadIdx.x % LANES)
    parts = cuda.shfl_sync(EVERY_LANE, {}, 0)  # one dict for the warp
    parts[lane] = a, b
    cuda.syncwarp()
    if "product" not in parts:
        parts["product"] = _product([parts[lane] for lane in range(LANES)])
    g, q = divmod(lane, 4)
    places = (g, 2 * q), (g, 2 * q + 1), (g + 8, 2 * q), (g + 8, 2 * q + 1)
    product = parts["product"]
    return tuple(np.float32(one + product[place]) for one, place in zip(c, places, strict=True))


def _product(parts):
    """Return A B, float64, of what the lanes hold."""
    a, b = np.zeros((16, 8)), np.zeros((8, 8))
    for lane, (of_a, of_b) in enumerate(parts):
        g, q = divmod(lane, 4)
        a[g, q], a[g + 8, q], a[g, q + 4], a[g + 8, q + 4] = of_a
        b[q, g], b[q + 4, g] = of_b
    return a @ b


if IS_NUMBA_CUDA and not IS_SIMULATOR:
    from llvmlite import ir
    from numba import types
    from numba.cuda.extending import intrinsic, overload
    from numba.cuda.typing import signature

    FLOAT = ir.FloatType()
    # Not by cvt.rna.tf32: that is three or four instructions of a slower pipe.
    ROUND = (
        "{ .reg .f32 t, u; mul.rn.f32 t, $1, 0f46000400; "
        "sub.rn.f32 u, t, $1; sub.rn.f32 $0, t, u; }"
    )
    # Operands 0 to 3 are what comes out, 4 to 7 A, 8 and 9 B, 10 to 13 C.
    MULTIPLY = (
        "{ .reg .b32 a, b, c, d, e, f; "
        + " ".join(f"mov.b32 {name}, ${k};" for k, name in enumerate("abcdef", 4))
        + " mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{$0, $1, $2, $3}, {a, b, c, d}, {e, f}, {$10, $11, $12, $13}; }"
    )

    @intrinsic
    def _to_tf32(typing, x):
        kinds = signature(types.float32, types.float32)

        def generate(context, builder, kinds, values):
            kind = ir.FunctionType(FLOAT, [FLOAT])
            return builder.call(ir.InlineAsm(kind, ROUND, "=f,f", side_effect=False), values)

        return kinds, generate

    @intrinsic
    def _multiply_add(typing, a, b, c):
        kinds = signature(types.UniTuple(types.float32, 4), a, b, c)

        def generate(context, builder, kinds, values):
            numbers = [
                builder.extract_value(value, k)
                for value, kind in zip(values, kinds.args, strict=True)
                for k in range(kind.count)
            ]
            four = ir.LiteralStructType([FLOAT] * 4)
            kind = ir.FunctionType(four, [FLOAT] * len(numbers))
            constraints = ",".join(["=f"] * 4 + ["f"] * len(numbers))
            assembly = ir.InlineAsm(kind, MULTIPLY, constraints, side_effect=True)
            result = builder.call(assembly, numbers)
            parts = [builder.extract_value(result, k) for k in range(4)]
            return context.make_tuple(builder, kinds.return_type, parts)

        return kinds, generate

    @overload(to_tf32, target="cuda")
    def _(x):
        return lambda x: _to_tf32(x)

    @overload(multiply_add, target="cuda")
    def _(a, b, c):
        return lambda a, b, c: _multiply_add(a, b, c)


@cuda.jit(device=True, **INLINE)
def add_product(a, b, sums, i):
    """Add A B to the warp's sums[i], (..., 4) float32 registers; a and b as in multiply_add.

    i: a constant.
    """
    c = sums[i, 0], sums[i, 1], sums[i, 2], sums[i, 3]
    sums[i, 0], sums[i, 1], sums[i, 2], sums[i, 3] = multiply_add(a, b, c)


@cuda.jit(device=True, **INLINE)
def to_tf32_4(values):
    """Return four float32 rounded to TF32."""
    return to_tf32(values[0]), to_tf32(values[1]), to_tf32(values[2]), to_tf32(values[3])
