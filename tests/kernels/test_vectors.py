"""Explicit vectors and sums in registers, operation by operation."""

import mpmath
import numpy as np
import pytest
from exact import fractions, rounded, worst_error
from numba import njit

from msgd.kernels.vectors import (
    CACHE_LINE,
    HALF,
    LANES,
    add_at,
    aligned,
    aligned_empty,
    aligned_zeros,
    append_marked,
    divide,
    exp,
    fma,
    high_half,
    lane_max,
    lane_sum,
    load,
    load_as,
    load_at,
    load_wide,
    low_half,
    maximum,
    multiply,
    multiply_add,
    splat,
    splat_wide,
    store,
    store_at,
    store_equal,
    transpose,
    where_negative,
)


@njit
def run(a, b, x, out):
    v, w = load(a, 3), load(b, 1)
    store(out, 0, v)
    store(out, LANES, fma(x, v, w))
    store(out, 2 * LANES, splat(out, x))
    store(out, 3 * LANES, multiply_add(v, w, v))
    return lane_sum(v)


@pytest.mark.parametrize("float_x", [np.float32, np.float64])
def test_every_operation(float_x):
    random = np.random.RandomState(0)
    a, b = random.normal(size=(2, 40)).astype(float_x)
    out = np.full(5 * LANES, np.nan, float_x)
    x = float_x(1.5)
    total = run(a, b, x, out)
    v, w, factor = fractions(a[3 : 3 + LANES]), fractions(b[1 : 1 + LANES]), fractions([x])[0]
    # One rounding, so the float nearest to the exact value and no other.
    expected = [
        *a[3 : 3 + LANES],
        *(rounded(factor * one + other, float_x) for one, other in zip(v, w, strict=True)),
        *[x] * LANES,
        *(rounded(one * other + one, float_x) for one, other in zip(v, w, strict=True)),
    ]
    np.testing.assert_array_equal(out[: 4 * LANES], expected)
    assert np.isnan(out[4 * LANES :]).all()
    halves = a[3 : 3 + LANES]
    while len(halves) > 1:
        halves = halves[: len(halves) // 2] + halves[len(halves) // 2 :]
    assert total == halves[0]


@njit
def run_choice(a, b, x, out):
    store(out, 0, divide(load(a, 0), load(b, 0)))
    store(out, LANES, where_negative(load(x, 0), load(a, 0), load(b, 0)))


@pytest.mark.parametrize("float_x", [np.float32, np.float64])
def test_quotients_and_choices(float_x):
    random = np.random.RandomState(0)
    a, b, x = random.normal(size=(3, LANES)).astype(float_x)
    x[:3] = 0, -0.0, np.nan
    out = np.empty(2 * LANES, float_x)
    run_choice(a, b, x, out)
    pairs = zip(fractions(a), fractions(b), strict=True)
    np.testing.assert_array_equal(out[:LANES], [rounded(v / w, float_x) for v, w in pairs])
    assert (x < 0).any()
    np.testing.assert_array_equal(
        out[LANES:], [v if c < 0 else w for v, w, c in zip(a, b, x, strict=True)]
    )


@njit
def run_fma(x, v, w, u, out):
    store(out, 0, fma(x[0], load(v, 0), load(w, 0)))
    store(out, LANES, multiply_add(load(v, 0), load(u, 0), load(w, 0)))


@pytest.mark.parametrize(("float_x", "bits"), [(np.float32, 24), (np.float64, 53)])
def test_fma_rounds_once_where_it_shows(float_x, bits):
    """Also on a processor without such an instruction, where the C library's function stands in.

    With two roundings all but the second would come out as 0. The second is a bit less than half a
    unit above an odd number; rounded before, in numbers of twice the length too, it is half a unit
    and goes to the even neighbour.
    """
    tiny = 2.0 ** (1 - bits)
    cases = [  # x v + w
        (1 + tiny, 1 + tiny, -(1 + 2 * tiny)),
        (1 + tiny, (1 - tiny) * tiny / 2, 1 + tiny),
        (1 - tiny / 2, 1 + tiny, -1),
        (3, 1 / 3, -1),
    ]
    for case in cases:
        x, v, w = (np.full(LANES, number, float_x) for number in case)
        out = np.empty(2 * LANES, float_x)
        run_fma(x, v, w, x, out)
        (factor, *_), (one, *_), (other, *_) = map(fractions, (x, v, w))
        expected = rounded(factor * one + other, float_x)
        assert (out == expected).all(), case
        assert expected != x[0] * v[0] + w[0], "two roundings give this too"


@njit
def copy(a, out):
    store(out, 0, load(a, 0))


def test_a_vector_is_not_stored_in_an_array_of_another_type():
    """It would be written past the end."""
    with pytest.raises(Exception, match="array\\(float32"):
        copy(np.zeros(LANES), np.zeros(LANES, np.float32))


@njit
def run_exp(x, out):
    for i in range(0, len(x), LANES):
        store(out, i, exp(load(x, i)))


# Where exp is of a normal number: from here to 0.
LOWEST = {"float32": -87.3, "float64": -708.3}
# In units in the last place. float32, see _exp_float32: 1 + r and the last fma are off by half a
# unit each; r is off by half a unit of 1/4, the series and its last product together by a tenth; a
# unit of a result below 1 is half as large. float64 is the C library's: those in use promise one.
EXP_UNITS = {"float32": 1.5, "float64": 1.0}


@pytest.mark.parametrize("float_x", ["float32", "float64"])
def test_exp(float_x):
    """Over the whole range, near 0, and in the middle between two powers of two, where r jumps."""
    lowest, random = LOWEST[float_x], np.random.RandomState(0)
    jumps = np.log(2) * (np.arange(LANES) + 0.5)
    x = np.concatenate(
        [
            np.linspace(lowest, 0, 200 * LANES),
            -np.exp(random.uniform(-20, np.log(-lowest), 100 * LANES)),
            np.linspace(-0.4, 0, 50 * LANES),
            *(-jumps + move for move in (-1e-6, 0, 1e-6)),
        ]
    ).astype(float_x)
    out = np.empty_like(x)
    run_exp(x, out)
    assert worst_error(out, mpmath.exp, x) <= EXP_UNITS[float_x]


@pytest.mark.parametrize("float_x", ["float32", "float64"])
def test_exp_at_the_edges(float_x):
    x = np.zeros(LANES, float_x)
    x[:5] = 0, -np.inf, np.nan, -1e30, -87.7 if float_x == "float32" else -746
    out = np.empty_like(x)
    run_exp(x, out)
    np.testing.assert_array_equal(out[:5], [1, 0, np.nan, 0, 0])


@njit
def run_lanes(a, bytes_, out):
    store(out, 0, load_as(a, bytes_, 3))
    return lane_max(load(a, 1))


@pytest.mark.parametrize("float_x", ["float32", "float64"])
@pytest.mark.parametrize("stored", ["uint8", "same"])
@pytest.mark.parametrize("where", [1, 8, LANES])
def test_conversion_and_maximum(float_x, stored, where):
    random = np.random.RandomState(0)
    a = random.normal(size=2 * LANES).astype(float_x)
    a[where] = 9
    pixels = random.randint(0, 256, 40).astype(float_x if stored == "same" else stored)
    out = np.empty(LANES, float_x)
    assert run_lanes(a, pixels, out) == 9
    np.testing.assert_array_equal(out, pixels[3 : 3 + LANES])


@njit
def run_pairs(a, b, out, marks):
    v, w = load(a, 0), load(b, 0)
    store(out, 0, multiply(v, w))
    store(out, LANES, maximum(v, w))
    store_equal(marks, 1, v, w)


@pytest.mark.parametrize("float_x", ["float32", "float64"])
def test_products_maxima_and_marks(float_x):
    random = np.random.RandomState(0)
    a, b = random.randint(-2, 3, (2, LANES)).astype(float_x)
    out, marks = np.empty(2 * LANES, float_x), np.full(LANES + 2, 7, np.uint8)
    run_pairs(a, b, out, marks)
    np.testing.assert_array_equal(out, [*(a * b), *np.maximum(a, b)])
    assert 0 < (a == b).sum() < LANES
    np.testing.assert_array_equal(marks, [7, *(a == b), 7])


@njit
def make_aligned(n, x):
    return aligned_empty(n, x.dtype), aligned_zeros(n, x.dtype)


@pytest.mark.parametrize("float_x", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 7, 1000])
def test_aligned_arrays_begin_with_a_cache_line(float_x, n):
    x = np.arange(3, dtype=float_x)
    joined = aligned([x, x])
    np.testing.assert_array_equal(joined, [0, 1, 2, 0, 1, 2])
    arrays = [joined, *make_aligned(n, x), aligned_empty(n, x.dtype), aligned_zeros(n, x.dtype)]
    for array in arrays:
        assert array.dtype == float_x
        assert array.ctypes.data % CACHE_LINE == 0
    assert [len(array) for array in arrays] == [6, n, n, n, n]
    assert not arrays[2].any()
    assert not arrays[4].any()


@njit
def list_marked(marks, at, n, first, numbers, count):
    return append_marked(marks, at, n, first, numbers, count)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_marks_are_listed_in_order(n):
    """Every pattern of eight, of which the first n count; what is listed already stays."""
    for pattern in range(256):
        marks = np.array([1, *[pattern >> b & 1 for b in range(8)]], np.uint8)
        numbers = np.full(12, -1)
        numbers[0] = 5
        count = list_marked(marks, 1, n, 40, numbers, 1)
        assert [*numbers[:count]] == [5, *[40 + b for b in range(n) if pattern >> b & 1]]
        assert (numbers[9:] == -1).all()


WIDE = 4 * LANES  # a constant: the length of a vector is part of its type


@njit
def run_wide(a, x, out):
    v = load_wide(a, 3, WIDE)
    store(out, 0, fma(x, v, splat_wide(out, 2, WIDE)))
    store(out, 4 * LANES, high_half(v))
    store(out, 6 * LANES, low_half(v))
    return lane_sum(v)


@pytest.mark.parametrize("float_x", [np.float32, np.float64])
def test_vectors_longer_than_lanes(float_x):
    a = np.random.RandomState(0).normal(size=3 + 4 * LANES).astype(float_x)
    out = np.full(9 * LANES, np.nan, float_x)
    x = float_x(1.5)
    total = run_wide(a, x, out)
    v = a[3:]
    products = [fractions([x])[0] * one + 2 for one in fractions(v)]  # one rounding
    expected = [
        *(rounded(product, float_x) for product in products),
        *v[2 * LANES :],
        *v[: 2 * LANES],
    ]
    np.testing.assert_array_equal(out[: 8 * LANES], expected)
    assert np.isnan(out[8 * LANES :]).all()
    halves = v
    while len(halves) > 1:
        halves = halves[: len(halves) // 2] + halves[len(halves) // 2 :]
    assert total == halves[0]


@njit
def run_transpose(a, stride, out, to_stride):
    transpose(a, 5, stride, out, 3, to_stride)
    transpose(a, 5 + HALF, stride, a, 5, stride)  # into what was read


@pytest.mark.parametrize("float_x", [np.float32, np.float64])
def test_a_square_is_transposed(float_x):
    a = np.arange(5 + HALF * 20.0).astype(float_x)
    square, beside = (
        np.array([a[at + 20 * r : at + 20 * r + HALF] for r in range(HALF)]) for at in (5, 5 + HALF)
    )
    out = np.full(3 + HALF * 11, -1, float_x)
    run_transpose(a, 20, out, 11)
    found = out[3:].reshape(HALF, 11)
    np.testing.assert_array_equal(found[:, :HALF], square.T)
    assert (found[:, HALF:] == -1).all()
    assert (out[:3] == -1).all()
    np.testing.assert_array_equal(a[5:].reshape(HALF, 20)[:, :HALF], beside.T)


@njit
def run_add_at(a, out):
    sums = load_at(a, 1, (0, 20))
    store_at(out, 0, (0, LANES), add_at(a, 2, (40, 3), sums))


@pytest.mark.parametrize("float_x", [np.float32, np.float64])
def test_vectors_are_added_to_sums(float_x):
    a = np.random.RandomState(3).normal(size=80).astype(float_x)
    out = np.zeros(2 * LANES, float_x)
    run_add_at(a, out)
    np.testing.assert_array_equal(out[:LANES], a[1 : 1 + LANES] + a[42 : 42 + LANES])
    np.testing.assert_array_equal(out[LANES:], a[21 : 21 + LANES] + a[5 : 5 + LANES])
