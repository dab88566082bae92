"""Theano's random numbers: its own figures, and any part of an array by itself.

The figures are those of Theano's implementation, of an independent computation, or follow from
the recurrences in Python's integers; every comparison is exact.
"""

import hashlib
import itertools

import numpy as np
import pytest
from numba import cuda, njit

from msgd.kernels import cuda_uniform, mrg31k3p, options
from msgd.kernels.mrg31k3p import (
    BETWEEN_BLOCKS,
    BETWEEN_STREAMS,
    M1,
    M2,
    MODULI,
    N_STREAMS,
    STEPS,
    Draws,
    integer_of,
    next_state,
    power,
)
from msgd.kernels.uniform import (
    FEW_STEPS,
    Position,
    draw_mask,
    draw_sample,
    draw_uniform,
    fill_mask,
    fill_sample,
    fill_uniform,
    new_position,
)

SEED = 843828734  # of the denoising auto-encoder, and of the restricted Boltzmann machine
FIRST = [
    *[(SEED, 1, 0.43100588070228696), (SEED, 2, 0.7831020029261708)],
    *[(SEED, 3, 0.38955732621252537), (SEED, 4, 0.18022345704957843)],
    *[(SEED, 5, 0.5563021637499332), (1054665268, 1, 0.8199810688383877)],
    *[(1054665268, 2, 0.5087168570607901), (1054665268, 3, 0.9651902462355793)],
]
BEGINNING = [0.43100588, 0.86717765, 0.07456986, 0.85474792, 0.80341726]
MASK_SHA256 = "a3f6d590d5bfa24f31f8db7d25a5e1392bd767c6d5fc25a7c8aad39d7e10eed8"
FLOATS = np.float32, np.float64
# Less than a stream has, whole ones, one more for some, and more than are taken one by one.
SIZES = [1, 784, N_STREAMS, 20 * 784, 3 * N_STREAMS + 5]
LONG = (FEW_STEPS + 2) * N_STREAMS + 21


def walked(state, n):
    """The state after n steps, one by one, in Python's integers."""
    state = tuple(map(int, state))
    for _ in range(n):
        state = next_state(state)
    return state


def uniform(state):
    """The number that the step from a state makes."""
    return integer_of(walked(state, 1)) / 2**31


@pytest.mark.parametrize(("seed", "stream", "first"), FIRST)
def test_the_first_number_of_a_block(seed, stream, first):
    assert uniform(Draws(seed, stream, 5).state(0, 0)) == first
    out = np.empty(5)
    fill_uniform(new_position(Draws(seed, stream, 5)), out)
    assert out[0] == first


def test_the_first_numbers_and_the_first_second_of_a_stream():
    out = np.empty((20, 784))
    fill_uniform(new_position(Draws(SEED, 1, out.size)), out)
    np.testing.assert_allclose(out.ravel()[:5], BEGINNING, atol=5e-9)
    np.testing.assert_allclose(out.ravel()[N_STREAMS], 0.53116725, atol=5e-9)


@pytest.mark.parametrize("float_x", FLOATS)
def test_the_first_mask_of_the_denoising_auto_encoder(float_x):
    mask = np.empty((20, 784), np.uint8)
    fill_mask(new_position(Draws(SEED, 1, mask.size)), float_x(0.7), mask)
    assert mask.sum() == 11045
    assert hashlib.sha256(mask).hexdigest() == MASK_SHA256


@pytest.mark.parametrize("n", [0, 1, 2, 7, 1000])
def test_a_jump_is_as_many_steps(n):
    state = (5, M1 - 1, 3, M2 - 1, 0, 77)
    expected = walked(state, n)
    assert mrg31k3p.jumped(state, mrg31k3p.jump(n)) == expected


def test_jumps_between_streams_and_blocks_are_squarings():
    """Of the matrix of one step: 72 of them, and 134."""
    for step, modulus in zip(STEPS, MODULI, strict=True):
        for n_squarings, steps in ((72, BETWEEN_STREAMS), (134, BETWEEN_BLOCKS)):
            matrix = np.array(step, object)
            for _ in range(n_squarings):
                matrix = matrix @ matrix % modulus
            assert power(step, steps, modulus) == tuple(map(tuple, matrix))


@pytest.mark.parametrize("stream", [1, 3])
@pytest.mark.parametrize("size", [*SIZES[1:], LONG])
def test_the_state_of_any_element_of_any_draw(size, stream):
    """Computed directly, for all at once, and by walking from where its stream begins."""
    draws, streams = Draws(SEED, stream, size), Draws(SEED, stream, N_STREAMS).states(0)
    for draw in (0, 1, 5):
        states = draws.states(draw)
        assert states.shape == (6, size)
        assert states.dtype == np.int32
        for element in {0, 1, (size - 1) % N_STREAMS, size // 2, N_STREAMS % size, size - 1}:
            of_stream = element % N_STREAMS
            n_elements = len(range(of_stream, size, N_STREAMS))
            n_steps = draw * n_elements + element // N_STREAMS
            expected = walked(streams[:, of_stream], n_steps)
            assert tuple(draws.state(draw, element)) == expected
            assert tuple(states[:, element]) == expected


@pytest.mark.parametrize("size", [(20, 784), (1, 784), (20, 500)])
def test_which_element_has_which_stream(size):
    """The last 320 numbers of (20, 784) are second steps of streams 0 to 319."""
    size = size[0] * size[1]
    states = Draws(SEED, 2, size).states(0)
    streams = Draws(SEED, 2, N_STREAMS).states(0)
    np.testing.assert_array_equal(states[:, :N_STREAMS], streams[:, :size])
    if size > N_STREAMS:
        assert size - N_STREAMS == 320
        for k in (0, 1, 319):
            assert tuple(states[:, N_STREAMS + k]) == walked(streams[:, k], 1)
    later = Draws(SEED, 2, size).states(1)
    assert tuple(later[:, 0]) == walked(streams[:, 0], 2 if size > N_STREAMS else 1)
    assert tuple(later[:, 320]) == walked(streams[:, 320], 1)


@pytest.mark.parametrize("arguments", [(0, 1, 1), (M2, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_what_no_random_numbers_are_of(arguments):
    with pytest.raises(ValueError, match="no random numbers"):
        Draws(*arguments)


@pytest.mark.parametrize("float_x", FLOATS)
@pytest.mark.parametrize("size", [*SIZES, LONG])
def test_a_draw_takes_every_element_to_the_next(size, float_x):
    draws = Draws(SEED, 1, size)
    position = new_position(draws, 3)
    out = np.empty(size, float_x)
    fill_uniform(position, out)
    np.testing.assert_array_equal(position.states.reshape(6, size), draws.states(4))
    integers = np.array([integer_of(next_state(s)) for s in draws.states(3)[:, :9].T.tolist()])
    scale = float_x(4.6566126e-10) if float_x == np.float32 else 2.0**-31
    np.testing.assert_array_equal(out[:9], integers.astype(float_x) * scale)


def test_numbers_of_float32_are_below_one():
    """The largest integer too, which float32 rounds up to 2^31."""
    assert np.float32(M1) == 2**31
    largest = mrg31k3p.as_uniform(np.float32(0), M1)
    assert isinstance(largest, np.float32)
    assert largest < 1


@njit
def draw_bytes(position, p, mask, sample):
    draw_mask(position, (0, 5), p[0], mask, 0)
    draw_mask(position, (5, len(mask)), p[0], mask, 5)
    draw_sample(position, (0, len(mask)), p, sample, 0)


@njit
def draw(kind, position, spans, p, out):
    """Draw elements by spans; kind: 0 uniform, 1 mask, 2 sample; p: flat floatX."""
    for k in range(len(spans)):
        span = spans[k, 0], spans[k, 1]
        if kind == 0:
            draw_uniform(position, span, out, span[0])
        elif kind == 1:
            draw_mask(position, span, p[0], out, span[0])
        else:
            draw_sample(position, span, p, out, span[0])


def spans_of(size, cuts):
    ends = sorted({0, size, *(cut for cut in cuts if 0 < cut < size)})
    return np.array(list(itertools.pairwise(ends)))


@pytest.mark.parametrize("float_x", FLOATS)
@pytest.mark.parametrize("size", [*SIZES, LONG])
def test_vectors_draw_what_plain_loops_do_however_cut(size, float_x):
    """In order and backwards, cut at and beside ends of vectors and of streams."""
    draws = Draws(SEED, 2, size)
    p = np.linspace(-0.1, 1.1, size).astype(float_x)
    cuts = [], [3, 11, 12, 784, 1000, 15359, 15360, 15363, size - 1], range(100, size, 500)
    for kind, fill in enumerate((fill_uniform, fill_mask, fill_sample)):
        given = ((), (p[size // 2],), (p,))[kind]
        plain, expected = new_position(draws), np.empty((2, size), float_x)
        for out in expected:
            fill(plain, *given, out)
        for spans in (spans_of(size, cut)[::order] for cut in cuts for order in (1, -1)):
            position, out = new_position(draws), np.full((2, size + 8), 7, float_x)
            for row in out:
                draw(kind, position, spans, p if kind == 2 else p[size // 2 :], row)
            np.testing.assert_array_equal(out[:, :size], expected)
            assert (out[:, size:] == 7).all(), "it wrote beyond the end"
            np.testing.assert_array_equal(position.states, plain.states)


def test_vectors_step_as_plain_loops_do_at_the_ends_of_the_ranges():
    """All states of these numbers: where a sum reaches a modulus, 2^31 or the next bit."""
    ends = [(0, 1, 2**24 - 1, 2**30, m - 2**22, m - 2, m - 1) for m in MODULI]
    states = np.array(list(itertools.product(*3 * ends[:1], *3 * ends[1:])), np.int32).T
    size = states.shape[1]
    position = new_position(Draws(SEED, 1, 1))._replace(
        states=states.ravel(), size=size, n_longer=0, n_more=np.zeros(2, np.int64)
    )
    plain = position._replace(states=states.ravel().copy())
    found, expected = np.empty((2, size))
    draw(0, position, spans_of(size, []), found, found)
    fill_uniform(plain, expected)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(position.states, plain.states)


@pytest.mark.parametrize("float_x", FLOATS)
def test_a_mask_is_below_p_and_not_at_it(float_x):
    """p is each number that is drawn, and the next one above."""
    size = 20
    u = np.empty(size, float_x)
    fill_uniform(new_position(Draws(SEED, 1, size)), u)
    above = np.nextafter(u, float_x(1))
    for p, expected in ((u, 0), (above, 1)):
        out = np.full(size, 7, float_x)
        fill_sample(new_position(Draws(SEED, 1, size)), p, out)
        assert (out == expected).all()
        out[:] = p  # in place
        draw(2, new_position(Draws(SEED, 1, size)), spans_of(size, []), out, out)
        assert (out == expected).all()
        for k in (0, size - 1):  # in a vector, and in what is left
            fill_mask(new_position(Draws(SEED, 1, size)), p[k], out)
            assert out[k] == expected
            draw(1, new_position(Draws(SEED, 1, size)), spans_of(size, []), p[k:], out)
            assert out[k] == expected


@pytest.mark.parametrize("float_x", FLOATS)
def test_masks_of_bytes(float_x):
    size = 20 * 784
    p, found = np.full(size, 0.7, float_x), np.full((2, size), 7, np.uint8)
    draw_bytes(new_position(Draws(SEED, 1, size)), p, *found)
    expected = np.empty((2, size), np.uint8)
    position = new_position(Draws(SEED, 1, size))
    for row in expected:
        fill_mask(position, p[0], row)
    np.testing.assert_array_equal(found, expected)
    assert hashlib.sha256(found[0]).hexdigest() == MASK_SHA256


@cuda.jit(**options.CUDA_ENTRY)
def launched(states, size, n_longer, n_more, more, chosen, u):
    position = Position(states, size, n_longer, n_more, more)
    i = cuda.grid(1)
    if i < chosen.shape[0]:
        for draw in range(u.shape[0]):
            u[draw, i] = cuda_uniform.draw_uniform(position, chosen[i], u[draw, i])


@pytest.mark.parametrize("float_x", FLOATS)
@pytest.mark.parametrize("size", [7, 20 * 784, LONG])
def test_cuda_draws_the_same(size, float_x):
    """Elements at both ends and around where streams have one element less, of three draws."""
    n_longer = size % N_STREAMS
    chosen = np.array([0, 1, 2, n_longer - 1, n_longer, N_STREAMS - 1, size - 2, size - 1])
    chosen = np.unique(chosen[chosen < size])
    draws, n = Draws(SEED, 1, size), len(chosen)
    plain, expected = new_position(draws), np.empty((3, size), float_x)
    for row in expected:
        fill_uniform(plain, row)
    position = cuda_uniform.to_device(new_position(draws))
    u = cuda.to_device(np.zeros((3, n), float_x))
    launched[1, n](*position, cuda.to_device(chosen), u)
    np.testing.assert_array_equal(u.copy_to_host(), expected[:, chosen])
    states = position.states.copy_to_host().reshape(6, size)
    np.testing.assert_array_equal(states[:, chosen], draws.states(3)[:, chosen])
