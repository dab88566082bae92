"""A matrix product on tensor cores by the threads of one block: a wide tile of A^T B at a time.

As in ``cuda_product.py``, but a tile has 128 x 64 sums, of all terms, in TF32::

             64 columns
          +------+------+
          | w 0  | w 1  |       Eight warps have 32 x 32 sums each: 2 x 4 tiles of tensor cores.
          +------+------+       Sixteen terms of A and B lie in shared memory while the next sixteen
    128   | w 2  | w 3  |       are on their way, in registers, and those after them too.
    rows  +------+------+
          | w 4  | w 5  |       A number that is read goes into 64 or 128 sums, not into 32 or 64:
          +------+------+       tensor cores multiply faster than the L2 cache would bring more.
          | w 6  | w 7  |
          +------+------+
"""

import numpy as np
from numba import cuda, float32

from msgd.kernels.cuda import INLINE
from msgd.kernels.cuda_product import (
    Words,
    fetch_words,
    next_words,
    put_words,
    rounded_words,
)
from msgd.kernels.cuda_tensor_cores import add_product

WIDE_ROWS, WIDE_COLUMNS = np.uint32(128), np.uint32(64)
WIDE_DEPTH = np.uint32(16)  # terms in shared memory; K is a multiple of it
THREADS = np.uint32(256)  # that compute; a block may have more
STEPS = np.uint32(2)  # of eight terms
# Numbers between two terms in shared memory: what a warp reads of four terms lies in other banks.
A_STRIDE, B_STRIDE = np.uint32(136), np.uint32(72)
B_FIRST = WIDE_DEPTH * A_STRIDE  # B lies behind A
BUFFER = np.uint64(WIDE_DEPTH * (A_STRIDE + B_STRIDE))  # the second buffer behind the first
WIDE_STRIDE = np.uint32(65)  # between rows of the tile of sums
SHARED_FLOATS = int(max(2 * BUFFER, WIDE_ROWS * WIDE_STRIDE))
ROW_TILES, COLUMN_TILES = np.uint32(2), np.uint32(4)  # of a warp
ONE, TWO, FOUR, EIGHT = (np.uint32(n) for n in (1, 2, 4, 8))
SIXTEEN, LANES = np.uint32(16), np.uint32(32)


@cuda.jit(device=True, **INLINE)
def multiply_wide_tile(factors, n_terms, t, shared):
    """Overwrite shared[: WIDE_ROWS WIDE_STRIDE] with the sums of a tile, row by row.

    factors: Factors of cuda_product.py; n_terms: K; t: number of the thread in its block, all of
    which call; shared: float32 of SHARED_FLOATS or more. The block waits before and after.
    """
    sums = cuda.local.array((8, 4), float32)
    for i in range(EIGHT):
        for k in range(FOUR):
            sums[i, k] = float32(0)
    cuda.syncthreads()  # until all have read what was in shared before
    _add_all_terms(factors, n_terms, t, shared, sums)
    if t < THREADS:
        _put_sums(shared, t, sums)
    cuda.syncthreads()


@cuda.jit(device=True, **INLINE)
def _add_all_terms(factors, n_terms, t, shared, sums):
    """Add all terms to a warp's sums; what is fetched in one round is put in the next."""
    nothing = float32(0), float32(0), float32(0), float32(0)
    words = nothing, nothing, nothing
    computes = t < THREADS
    source, target = _first_words(factors, t), _shared_words(t)
    rounds = n_terms // WIDE_DEPTH
    if computes:
        words = fetch_words(factors, source)
        put_words(shared, target, np.uint64(0), rounded_words(words))
        if rounds > ONE:
            source = next_words(factors, source, WIDE_DEPTH)
            words = fetch_words(factors, source)
    cuda.syncthreads()
    current, later = np.uint64(0), words
    for i in range(rounds):
        if i + TWO < rounds and computes:
            source = next_words(factors, source, WIDE_DEPTH)
            later = fetch_words(factors, source)
        if computes:
            for step in range(STEPS):
                _add_terms(shared, current, step, t, sums)
        current = BUFFER - current
        if i + ONE < rounds and computes:
            put_words(shared, target, current, rounded_words(words))
        words = later
        cuda.syncthreads()


@cuda.jit(device=True, **INLINE)
def _first_words(factors, t):
    """Return the Words that thread t reads of the first terms; the later one of A is 8 terms on.

    Of A 32 words a term, of B 16.
    """
    a = factors.a_first + t // LANES * factors.a_stride + t % LANES * FOUR
    b = factors.b_first + t // SIXTEEN * factors.b_stride + t % SIXTEEN * FOUR
    return Words(a, a + EIGHT * factors.a_stride, b)


@cuda.jit(device=True, **INLINE)
def _shared_words(t):
    """Return the Words that thread t writes in the first buffer of shared memory."""
    a = t // LANES * A_STRIDE + t % LANES * FOUR
    b = B_FIRST + t // SIXTEEN * B_STRIDE + t % SIXTEEN * FOUR
    return Words(a, a + EIGHT * A_STRIDE, b)


@cuda.jit(device=True, **INLINE)
def _place(t):
    """Return the first row and column of the sums of a thread's warp, and the lane's g and q."""
    warp, lane = t // LANES, t % LANES
    return warp // TWO * LANES, warp % TWO * LANES, lane // FOUR, lane % FOUR


@cuda.jit(device=True, **INLINE)
def _add_terms(shared, current, step, t, sums):
    """Add eight terms of the buffer at shared[current] to a warp's tiles of sums."""
    row, column, g, q = _place(t)
    term = EIGHT * step + q
    a = current + term * A_STRIDE + row + g
    b = current + B_FIRST + term * B_STRIDE + column + g
    for i in range(ROW_TILES):
        at, later = a + i * SIXTEEN, a + i * SIXTEEN + FOUR * A_STRIDE
        of_a = shared[at], shared[at + EIGHT], shared[later], shared[later + EIGHT]
        for j in range(COLUMN_TILES):
            at = b + j * EIGHT
            add_product(
                of_a, (shared[at], shared[at + FOUR * B_STRIDE]), sums, COLUMN_TILES * i + j
            )


@cuda.jit(device=True, **INLINE)
def _put_sums(shared, t, sums):
    """Write a warp's tiles of sums to shared memory."""
    row, column, g, q = _place(t)
    first = (row + g) * WIDE_STRIDE + column + TWO * q
    for i in range(ROW_TILES):
        for j in range(COLUMN_TILES):
            at = first + i * SIXTEEN * WIDE_STRIDE + j * EIGHT
            tile = COLUMN_TILES * i + j
            shared[at], shared[at + ONE] = sums[tile, 0], sums[tile, 1]
            at += EIGHT * WIDE_STRIDE
            shared[at], shared[at + ONE] = sums[tile, 2], sums[tile, 3]
