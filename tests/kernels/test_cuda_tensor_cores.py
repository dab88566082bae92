"""TF32, and the product of a warp, as the simulator has them: judged by their definitions."""

import numpy as np
import pytest
from numba import cuda

from msgd.kernels import cuda as kernels
from msgd.kernels import options
from msgd.kernels.cuda_tensor_cores import add_product, to_tf32


def nearest_tf32(x):
    """Return float32 x with the last 13 bits of its fraction rounded away, halves to even."""
    bits = int(np.float32(x).view(np.uint32))
    kept, dropped = divmod(bits, 2**13)
    kept += dropped > 2**12 or (dropped == 2**12 and kept % 2 == 1)
    return np.uint32(kept * 2**13).view(np.float32)


def test_rounding_to_tf32_is_to_the_nearest():
    random = np.random.RandomState(3)
    numbers = random.normal(size=500) * 10.0 ** random.randint(-30, 30, 500)
    halves = [1 + 2**-11, 1 + 3 * 2**-11, -(1 + 2**-11), 1 + 2**-11 + 2**-23, 2 - 2**-23]
    for x in np.array([*numbers, *halves, 0, -0.0, 1], np.float32):
        assert to_tf32(x).tobytes() == nearest_tf32(x).tobytes(), x


def test_what_is_not_finite_stays_so():
    with np.errstate(invalid="ignore"):
        for x in (np.nan, np.inf, -np.inf):
            assert not np.isfinite(to_tf32(np.float32(x)))


@pytest.mark.skipif(not kernels.HAS_WARPS, reason="the plain simulator has no warps")
def test_a_warp_multiplies_what_its_lanes_hold():
    random = np.random.RandomState(4)
    a, b, c = (random.normal(size=shape) for shape in ((16, 8), (8, 8), (16, 8)))
    a, b = (np.vectorize(nearest_tf32)(array.astype(np.float32)) for array in (a, b))

    @cuda.jit(**options.CUDA_ENTRY)
    def multiply(a, b, c):
        lane = cuda.threadIdx.x
        g, q = lane // 4, lane % 4
        sums = cuda.local.array((1, 4), np.float32)
        for k in range(4):
            sums[0, k] = c[g + 8 * (k // 2), 2 * q + k % 2]
        of_a = a[g, q], a[g + 8, q], a[g, q + 4], a[g + 8, q + 4]
        add_product(of_a, (b[q, g], b[q + 4, g]), sums, 0)
        for k in range(4):
            c[g + 8 * (k // 2), 2 * q + k % 2] = sums[0, k]

    found = cuda.to_device(c.astype(np.float32))
    multiply[1, 32](cuda.to_device(a), cuda.to_device(b), found)
    expected = a.astype(float) @ b + c.astype(np.float32)
    np.testing.assert_allclose(found.copy_to_host(), expected, atol=2e-6)
