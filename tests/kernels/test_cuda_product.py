"""A tile of a matrix product by one block, with and without tensor cores, against NumPy."""

import numpy as np
import pytest
from numba import cuda, float32

from msgd.kernels import cuda as kernels
from msgd.kernels import options
from msgd.kernels.cuda_product import (
    SHARED_FLOATS,
    TILE_COLUMNS,
    TILE_ROWS,
    Factors,
    multiply_tile,
    tile_sum,
)
from msgd.kernels.cuda_tensor_cores import to_tf32
from msgd.kernels.cuda_wide_product import SHARED_FLOATS as WIDE_SHARED_FLOATS
from msgd.kernels.cuda_wide_product import (
    WIDE_COLUMNS,
    WIDE_ROWS,
    WIDE_STRIDE,
    multiply_wide_tile,
)

THREADS = 320  # more than compute
pytestmark = pytest.mark.skipif(not kernels.HAS_WARPS, reason="the plain simulator has no warps")


def launch(a, b, tf32):
    """Return the second tile of A^T B by a block; a: (K, 128), b: (K, 64) float32."""

    @cuda.jit(**options.CUDA_ENTRY)
    def multiply(a, b, product):
        shared = cuda.shared.array(SHARED_FLOATS, float32, alignment=16)
        t = np.uint32(cuda.threadIdx.x)
        strides = np.uint32(2 * TILE_ROWS), np.uint32(2 * TILE_COLUMNS)
        factors = Factors(
            a, np.uint64(TILE_ROWS), strides[0], b, np.uint64(TILE_COLUMNS), strides[1]
        )
        multiply_tile(factors, np.uint32(a.size // strides[0] // 4), t, tf32, shared)
        i = t
        while i < TILE_ROWS * TILE_COLUMNS:
            product[i] = tile_sum(shared, i // TILE_COLUMNS, i % TILE_COLUMNS)
            i += np.uint32(THREADS)

    product = cuda.to_device(np.zeros(TILE_ROWS * TILE_COLUMNS, np.float32))
    multiply[1, THREADS](cuda.to_device(a.ravel()), cuda.to_device(b.ravel()), product)
    return product.copy_to_host().reshape(TILE_ROWS, TILE_COLUMNS)


@pytest.mark.skipif(not kernels.IS_SIMULATOR, reason="its arithmetic is no constant here")
@pytest.mark.parametrize("n_terms", [32, 64, 160])
@pytest.mark.parametrize("tf32", [0, 1])
def test_a_tile_of_a_product(n_terms, tf32):
    """One, two and five rounds: what is fetched one or two rounds ahead comes in its turn."""
    random = np.random.RandomState(6)
    a, b = (random.normal(size=(n_terms, n)).astype(np.float32) for n in (128, 64))
    found = launch(a, b, tf32)
    if tf32:
        a, b = to_tf32(a), to_tf32(b)
    expected = a[:, TILE_ROWS:].T.astype(float) @ b[:, TILE_COLUMNS:]
    np.testing.assert_allclose(found, expected, atol=2e-7 * n_terms)


def launch_wide(a, b):
    """Return the second wide tile of A^T B by a block; a: (K, 256), b: (K, 128) float32."""

    @cuda.jit(**options.CUDA_ENTRY)
    def multiply(a, b, product):
        shared = cuda.shared.array(WIDE_SHARED_FLOATS, float32, alignment=16)
        t = np.uint32(cuda.threadIdx.x)
        strides = np.uint32(2 * WIDE_ROWS), np.uint32(2 * WIDE_COLUMNS)
        factors = Factors(
            a, np.uint64(WIDE_ROWS), strides[0], b, np.uint64(WIDE_COLUMNS), strides[1]
        )
        multiply_wide_tile(factors, np.uint32(a.size // strides[0]), t, shared)
        i = t
        while i < WIDE_ROWS * WIDE_COLUMNS:
            product[i] = shared[i // WIDE_COLUMNS * WIDE_STRIDE + i % WIDE_COLUMNS]
            i += np.uint32(THREADS)

    product = cuda.to_device(np.zeros(WIDE_ROWS * WIDE_COLUMNS, np.float32))
    multiply[1, THREADS](cuda.to_device(a.ravel()), cuda.to_device(b.ravel()), product)
    return product.copy_to_host().reshape(WIDE_ROWS, WIDE_COLUMNS)


@pytest.mark.skipif(not kernels.IS_SIMULATOR, reason="its arithmetic is no constant here")
@pytest.mark.parametrize("n_terms", [16, 32, 80])
def test_a_wide_tile_of_a_product(n_terms):
    """One, two and five rounds: what is fetched one or two rounds ahead comes in its turn."""
    random = np.random.RandomState(7)
    a, b = (random.normal(size=(n_terms, n)).astype(np.float32) for n in (256, 128))
    expected = to_tf32(a)[:, WIDE_ROWS:].T.astype(float) @ to_tf32(b)[:, WIDE_COLUMNS:]
    np.testing.assert_allclose(launch_wide(a, b), expected, atol=2e-7 * n_terms)
