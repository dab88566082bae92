"""A matrix product in float32 by the threads of one block on CUDA: a tile of A^T B at a time.

A is (K, at least 64) and B (K, at least 32), both with their terms as rows, so that a thread reads
16 bytes of a row at once. A tile has 64 x 32 sums. Eight warps share them::

    warps 0, 1    warps 2, 3    warps 4, 5    warps 6, 7       a quarter of the K terms each
    +---------+   +---------+   +---------+   +---------+
    | 64 x 32 | + | 64 x 32 | + | 64 x 32 | + | 64 x 32 |      added in this order by tile_sum
    +---------+   +---------+   +---------+   +---------+
       64 threads, each with 8 x 4 sums in registers: rows 4 r to 4 r + 3 and 32 + 4 r to ...

Eight terms of each quarter lie in shared memory while the next eight are on their way, in
registers. The order of every sum is fixed by these numbers alone.
"""

from typing import NamedTuple

import numpy as np
from numba import cuda, float32

from msgd.kernels.cuda import INLINE
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
A_SIZE = DEPTH * TILE_ROWS  # floats of a quarter's part of A in shared memory
B_SIZE = DEPTH * TILE_COLUMNS
B_FIRST = QUARTERS * A_SIZE  # B lies behind A
BUFFER = np.uint64(QUARTERS * (A_SIZE + B_SIZE))  # the second buffer lies behind the first
SUM_STRIDE = np.uint32(33)  # between rows of a tile of sums: another bank for each
SUMS_SIZE = TILE_ROWS * SUM_STRIDE
SHARED_FLOATS = int(max(2 * BUFFER, QUARTERS * SUMS_SIZE))
ONE, TWO = np.uint32(1), np.uint32(2)
A_NEXT = np.uint64(TWO * A_SIZE)  # a thread reads two words of A, two quarters apart
BITS_0_TO_3, BITS_0_TO_5 = np.uint32(15), np.uint32(63)
BITS_0_TO_2, BITS_0_TO_1 = np.uint32(7), np.uint32(3)
BIT_0 = np.uint32(1)
SHIFT_2, SHIFT_3, SHIFT_4 = np.uint32(2), np.uint32(3), np.uint32(4)
SHIFT_6, SHIFT_7 = np.uint32(6), np.uint32(7)


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
    a_later: int  # two quarters of the terms later
    b: int


@cuda.jit(device=True, **INLINE)
def multiply_tile(factors, quarter, t, shared):
    """Overwrite shared[: 4 SUMS_SIZE] with the sums of each quarter of the terms of a tile.

    factors: Factors; quarter: K / 4, a multiple of DEPTH; t: number of the thread in its block, all
    of which call; shared: float32 of SHARED_FLOATS or more. The block waits before and after.
    """
    sums = cuda.local.array((OWN_ROWS, OWN_COLUMNS), float32)
    for i in range(ROWS):
        for j in range(COLUMNS):
            sums[i, j] = float32(0)
    nothing = float32(0), float32(0), float32(0), float32(0)
    a, a_later, b = nothing, nothing, nothing
    computes = t < THREADS
    source, target = _first_words(factors, quarter, t), _shared_words(t)
    cuda.syncthreads()  # until all have read what was in shared before
    if computes:
        a, a_later, b = _fetch(factors, source)
        _put(shared, target, np.uint64(0), a, a_later, b)
    cuda.syncthreads()
    current = np.uint64(0)
    rounds = quarter // DEPTH
    for i in range(rounds):
        has_next = i + ONE < rounds and computes
        if has_next:
            source = _next_words(factors, source)
            a, a_later, b = _fetch(factors, source)
        if computes:
            _add_terms(shared, current, t, sums)
        current = BUFFER - current
        if has_next:
            _put(shared, target, current, a, a_later, b)
        cuda.syncthreads()
    if computes:
        _put_sums(shared, t, sums)
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
    a = (t >> SHIFT_7 & BIT_0) * A_SIZE + (t >> SHIFT_4 & BITS_0_TO_2) * TILE_ROWS
    b = (t >> SHIFT_6 & BITS_0_TO_1) * B_SIZE + (t >> SHIFT_3 & BITS_0_TO_2) * TILE_COLUMNS
    a += (t & BITS_0_TO_3) * WORD
    return Words(a, a + A_NEXT, B_FIRST + b + (t & BITS_0_TO_2) * WORD)


@cuda.jit(device=True, **INLINE)
def _next_words(factors, words):
    """Return the Words of the next DEPTH terms."""
    a_step, b_step = DEPTH * factors.a_stride, DEPTH * factors.b_stride
    return Words(words.a + a_step, words.a_later + a_step, words.b + b_step)


@cuda.jit(device=True, **INLINE)
def _fetch(factors, words):
    """Return the three words of 16 bytes: two of A and one of B."""
    a, a_later = load4(factors.a, words.a), load4(factors.a, words.a_later)
    return a, a_later, load4(factors.b, words.b)


@cuda.jit(device=True, **INLINE)
def _put(shared, words, current, a, a_later, b):
    """Write the three words of 16 bytes to the buffer that begins at shared[current]."""
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
            read4(shared, a + term * TILE_ROWS, x, 0)
            read4(shared, a + term * TILE_ROWS + BELOW, x, 4)
            read4(shared, b + term * TILE_COLUMNS, y, 0)
            for i in range(ROWS):
                for j in range(COLUMNS):
                    sums[i, j] += x[i] * y[j]
        a += UNROLLED * TILE_ROWS
        b += UNROLLED * TILE_COLUMNS


@cuda.jit(device=True, **INLINE)
def _put_sums(shared, t, sums):
    """Write the (8, 4) sums of thread t to its quarter's tile in shared memory."""
    quarter, r = t >> SHIFT_6 & BITS_0_TO_1, t & BITS_0_TO_5
    for i in range(ROWS):
        row = (r >> SHIFT_3) * WORD + i % HALF + i // HALF * BELOW
        at = quarter * SUMS_SIZE + row * SUM_STRIDE + (r & BITS_0_TO_2) * WORD
        for j in range(COLUMNS):
            shared[at + j] = sums[i, j]
