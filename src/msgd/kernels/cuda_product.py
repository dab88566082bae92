"""A matrix product by the threads of one block on CUDA: a tile of A^T B at a time.

A is (K, at least 64) and B (K, at least 32), both with their terms as rows, so that a thread reads
16 bytes of a row at once. A tile has 64 x 32 sums. Eight warps share them::

    warps 0, 1    warps 2, 3    warps 4, 5    warps 6, 7       a quarter of the K terms each
    +---------+   +---------+   +---------+   +---------+
    | 64 x 32 | + | 64 x 32 | + | 64 x 32 | + | 64 x 32 |      added in this order by tile_sum
    +---------+   +---------+   +---------+   +---------+
       64 threads, each with 8 x 4 sums in registers: rows 4 r to 4 r + 3 and 32 + 4 r to ...

Eight terms of each quarter lie in shared memory while the next eight are on their way, in
registers. The order of every sum is fixed by these numbers alone.

In TF32 tensor cores multiply: of a quarter's two warps each has 32 x 32 sums, 2 x 4 tiles of theirs
(kernels/cuda_tensor_cores.py), and the eight terms in shared memory are what they add at once.
"""

from typing import NamedTuple

import numpy as np
from numba import cuda, float32

from msgd.kernels.cuda import INLINE
from msgd.kernels.cuda_tensor_cores import add_product, to_tf32_4
from msgd.kernels.cuda_vectors import load4, read4, store4

TILE_ROWS, TILE_COLUMNS = np.uint32(64), np.uint32(32)
QUARTERS = np.uint32(4)  # of the terms
DEPTH = np.uint32(8)  # terms of a quarter in shared memory; K is a multiple of QUARTERS x DEPTH
UNROLLED = np.uint32(4)  # of them by the compiler
THREADS = np.uint32(256)  # that compute; a block may have more
OWN_ROWS, OWN_COLUMNS = 8, 4  # sums of a thread
ROWS, COLUMNS = np.uint32(OWN_ROWS), np.uint32(OWN_COLUMNS)
HALF = np.uint32(4)  # of a thread's rows: four together, and four 32 rows below
BELOW = np.uint32(32)
WORD = np.uint32(4)  # floats of 16 bytes
# Numbers between two terms in shared memory: so that what a warp reads of four terms for tensor
# cores lies in other banks.
A_STRIDE, B_STRIDE = np.uint32(72), np.uint32(40)
A_SIZE = DEPTH * A_STRIDE  # floats of a quarter's part of A in shared memory
B_SIZE = DEPTH * B_STRIDE
B_FIRST = QUARTERS * A_SIZE  # B lies behind A
BUFFER = np.uint64(QUARTERS * (A_SIZE + B_SIZE))  # the second buffer lies behind the first
SUM_STRIDE = np.uint32(33)  # between rows of a tile of sums: another bank for each
SUMS_SIZE = TILE_ROWS * SUM_STRIDE
SHARED_FLOATS = int(max(2 * BUFFER, QUARTERS * SUMS_SIZE))
ONE, TWO = np.uint32(1), np.uint32(2)
A_NEXT = np.uint64(TWO * A_SIZE)  # a thread reads two words of A, two quarters apart
BITS_0_TO_3, BITS_0_TO_5 = np.uint32(15), np.uint32(63)
BITS_0_TO_2, BITS_0_TO_1 = np.uint32(7), np.uint32(3)
BITS_0_TO_4, BIT_0 = np.uint32(31), np.uint32(1)
SHIFT_2, SHIFT_3, SHIFT_4 = np.uint32(2), np.uint32(3), np.uint32(4)
SHIFT_5, SHIFT_6, SHIFT_7 = np.uint32(5), np.uint32(6), np.uint32(7)
# Of tensor cores: a warp's tiles of sums, and the rows and columns of one.
ROW_TILES, COLUMN_TILES = np.uint32(2), np.uint32(4)
TENSOR_ROWS, TENSOR_COLUMNS = np.uint32(16), np.uint32(8)
HALF_ROWS = np.uint32(8)
A_LATER, B_LATER = WORD * A_STRIDE, WORD * B_STRIDE  # four terms later


class Factors(NamedTuple):
    """Where the tile's columns of A and of B begin in flat float32 arrays."""

    a: object
    a_first: int  # a[a_first] is the tile's first number: of its first term and row
    a_stride: int  # numbers between two terms
    b: object
    b_first: int
    b_stride: int


class Words(NamedTuple):
    """The three words of 16 bytes that a thread brings to shared memory: where they begin."""

    a: int
    a_later: int  # of later terms: two quarters of them here, eight in a wide tile
    b: int


@cuda.jit(device=True, **INLINE)
def multiply_tile(factors, quarter, t, tf32, shared):
    """Overwrite shared[: 4 SUMS_SIZE] with the sums of each quarter of the terms of a tile.

    factors: Factors; quarter: K / 4, a multiple of DEPTH; t: number of the thread in its block, all
    of which call; tf32: a constant, whether tensor cores multiply, for which A and B are rounded;
    shared: float32 of SHARED_FLOATS or more. The block waits before and after.
    """
    sums = cuda.local.array((OWN_ROWS, OWN_COLUMNS), float32)
    for i in range(ROWS):
        for j in range(COLUMNS):
            sums[i, j] = float32(0)
    cuda.syncthreads()  # until all have read what was in shared before
    if tf32:
        _add_all_terms_tf32(factors, quarter, t, shared, sums)
    else:
        _add_all_terms(factors, quarter, t, shared, sums)
    if t < THREADS and tf32:
        _put_sums_tf32(shared, t, sums)
    elif t < THREADS:
        _put_sums(shared, t, sums)
    cuda.syncthreads()


@cuda.jit(device=True, **INLINE)
def _add_all_terms(factors, quarter, t, shared, sums):
    """Add a quarter's terms to sums (8, 4): eight after the other, the next ones on their way."""
    nothing = float32(0), float32(0), float32(0), float32(0)
    words = nothing, nothing, nothing
    computes = t < THREADS
    source, target = _first_words(factors, quarter, t), _shared_words(t)
    if computes:
        words = fetch_words(factors, source)
        put_words(shared, target, np.uint64(0), words)
    cuda.syncthreads()
    current = np.uint64(0)
    rounds = quarter // DEPTH
    for i in range(rounds):
        has_next = i + ONE < rounds and computes
        if has_next:
            source = next_words(factors, source, DEPTH)
            words = fetch_words(factors, source)
        if computes:
            _add_terms(shared, current, t, sums)
        current = BUFFER - current
        if has_next:
            put_words(shared, target, current, words)
        cuda.syncthreads()


@cuda.jit(device=True, **INLINE)
def _add_all_terms_tf32(factors, quarter, t, shared, sums):
    """Do as _add_all_terms; tensor cores are done so soon that the next 16 terms are on their way.

    What is fetched in one round is put in the next.
    """
    nothing = float32(0), float32(0), float32(0), float32(0)
    words = nothing, nothing, nothing
    computes = t < THREADS
    source, target = _first_words(factors, quarter, t), _shared_words(t)
    rounds = quarter // DEPTH
    if computes:
        words = fetch_words(factors, source)
        put_words(shared, target, np.uint64(0), rounded_words(words))
        if rounds > ONE:
            source = next_words(factors, source, DEPTH)
            words = fetch_words(factors, source)
    cuda.syncthreads()
    current, later = np.uint64(0), words
    for i in range(rounds):
        if i + TWO < rounds and computes:
            source = next_words(factors, source, DEPTH)
            later = fetch_words(factors, source)
        if computes:
            _add_terms_tf32(shared, current, t, sums)
        current = BUFFER - current
        if i + ONE < rounds and computes:
            put_words(shared, target, current, rounded_words(words))
        words = later
        cuda.syncthreads()


@cuda.jit(device=True, **INLINE)
def tile_sum(shared, row, column):
    """Return the sum at (row, column) of the tile that multiply_tile left in ``shared``."""
    at = row * SUM_STRIDE + column
    total = shared[at] + shared[at + SUMS_SIZE]
    total += shared[at + TWO * SUMS_SIZE]
    return total + shared[at + (TWO + ONE) * SUMS_SIZE]


@cuda.jit(device=True, **INLINE)
def _first_words(factors, quarter, t):
    """Return the Words that thread t reads of the first terms.

    Of A, 16 words a term: bits 0 to 3 of t are the word, 4 to 6 the term, 7 the quarter. Of B, 8
    words a term: bits 0 to 2 are the word, 3 to 5 the term, 6 and 7 the quarter.
    """
    a_term = (t >> SHIFT_7 & BIT_0) * quarter + (t >> SHIFT_4 & BITS_0_TO_2)
    b_term = (t >> SHIFT_6 & BITS_0_TO_1) * quarter + (t >> SHIFT_3 & BITS_0_TO_2)
    a = factors.a_first + a_term * factors.a_stride + (t & BITS_0_TO_3) * WORD
    b = factors.b_first + b_term * factors.b_stride + (t & BITS_0_TO_2) * WORD
    return Words(a, a + TWO * quarter * factors.a_stride, b)


@cuda.jit(device=True, **INLINE)
def _shared_words(t):
    """Return the Words that thread t writes in the first buffer of shared memory."""
    a = (t >> SHIFT_7 & BIT_0) * A_SIZE + (t >> SHIFT_4 & BITS_0_TO_2) * A_STRIDE
    b = (t >> SHIFT_6 & BITS_0_TO_1) * B_SIZE + (t >> SHIFT_3 & BITS_0_TO_2) * B_STRIDE
    a += (t & BITS_0_TO_3) * WORD
    return Words(a, a + A_NEXT, B_FIRST + b + (t & BITS_0_TO_2) * WORD)


@cuda.jit(device=True, **INLINE)
def next_words(factors, words, depth):
    """Return the Words of the next ``depth`` terms of each part."""
    a_step, b_step = depth * factors.a_stride, depth * factors.b_stride
    return Words(words.a + a_step, words.a_later + a_step, words.b + b_step)


@cuda.jit(device=True, **INLINE)
def fetch_words(factors, words):
    """Return the three words of 16 bytes: two of A and one of B."""
    a, a_later = load4(factors.a, words.a), load4(factors.a, words.a_later)
    return a, a_later, load4(factors.b, words.b)


@cuda.jit(device=True, **INLINE)
def rounded_words(fetched):
    """Return the three words of 16 bytes in TF32."""
    return to_tf32_4(fetched[0]), to_tf32_4(fetched[1]), to_tf32_4(fetched[2])


@cuda.jit(device=True, **INLINE)
def put_words(shared, words, current, fetched):
    """Write the three words of 16 bytes to the buffer that begins at shared[current]."""
    a, a_later, b = fetched
    store4(shared, current + words.a, a)
    store4(shared, current + words.a_later, a_later)
    store4(shared, current + words.b, b)


@cuda.jit(device=True, **INLINE)
def _add_terms(shared, current, t, sums):
    """Add the DEPTH terms of the buffer at shared[current] to the sums of thread t.

    sums: (8, 4) float32 registers, changed.
    """
    x = cuda.local.array(OWN_ROWS, float32)
    y = cuda.local.array(OWN_COLUMNS, float32)
    quarter, r = t >> SHIFT_6 & BITS_0_TO_1, t & BITS_0_TO_5
    a = current + quarter * A_SIZE + (r >> SHIFT_3) * WORD
    b = current + B_FIRST + quarter * B_SIZE + (r & BITS_0_TO_2) * WORD
    for _ in range(DEPTH // UNROLLED):  # a loop; what is within it is written out
        for term in range(UNROLLED):
            read4(shared, a + term * A_STRIDE, x, 0)
            read4(shared, a + term * A_STRIDE + BELOW, x, 4)
            read4(shared, b + term * B_STRIDE, y, 0)
            for i in range(ROWS):
                for j in range(COLUMNS):
                    sums[i, j] += x[i] * y[j]
        a += UNROLLED * A_STRIDE
        b += UNROLLED * B_STRIDE


@cuda.jit(device=True, **INLINE)
def _put_sums(shared, t, sums):
    """Write the (8, 4) sums of thread t to its quarter's tile in shared memory."""
    quarter, r = t >> SHIFT_6 & BITS_0_TO_1, t & BITS_0_TO_5
    for i in range(ROWS):
        row = (r >> SHIFT_3) * WORD + i % HALF + i // HALF * BELOW
        at = quarter * SUMS_SIZE + row * SUM_STRIDE + (r & BITS_0_TO_2) * WORD
        for j in range(COLUMNS):
            shared[at + j] = sums[i, j]


@cuda.jit(device=True, **INLINE)
def _add_terms_tf32(shared, current, t, sums):
    """Add the DEPTH terms of the buffer at shared[current] to a warp's tiles of sums.

    sums: (8, 4) float32 registers, changed: a row for each of 2 x 4 tiles.
    """
    quarter, half = t >> SHIFT_6 & BITS_0_TO_1, t >> SHIFT_5 & BIT_0
    g, q = (t & BITS_0_TO_4) >> SHIFT_2, t & BITS_0_TO_1
    a = current + quarter * A_SIZE + q * A_STRIDE + half * BELOW + g
    b = current + B_FIRST + quarter * B_SIZE + q * B_STRIDE + g
    for i in range(ROW_TILES):
        at = a + i * TENSOR_ROWS
        of_a_now = shared[at], shared[at + HALF_ROWS]
        at += A_LATER
        of_a = of_a_now[0], of_a_now[1], shared[at], shared[at + HALF_ROWS]
        for j in range(COLUMN_TILES):
            at = b + j * TENSOR_COLUMNS
            add_product(of_a, (shared[at], shared[at + B_LATER]), sums, COLUMN_TILES * i + j)


@cuda.jit(device=True, **INLINE)
def _put_sums_tf32(shared, t, sums):
    """Write a warp's 2 x 4 tiles of sums to its quarter's tile in shared memory."""
    quarter, half = t >> SHIFT_6 & BITS_0_TO_1, t >> SHIFT_5 & BIT_0
    g, q = (t & BITS_0_TO_4) >> SHIFT_2, t & BITS_0_TO_1
    first = quarter * SUMS_SIZE + (half * BELOW + g) * SUM_STRIDE + TWO * q
    for i in range(ROW_TILES):
        for j in range(COLUMN_TILES):
            at = first + i * TENSOR_ROWS * SUM_STRIDE + j * TENSOR_COLUMNS
            tile = COLUMN_TILES * i + j
            shared[at], shared[at + ONE] = sums[tile, 0], sums[tile, 1]
            at += HALF_ROWS * SUM_STRIDE
            shared[at], shared[at + ONE] = sums[tile, 2], sums[tile, 3]
