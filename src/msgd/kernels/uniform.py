"""Uniform random numbers and masks on the CPU, any part of an array by itself.

For every element of an operation's array a ``Position`` holds the state right before it. Making the
number of an element takes its state to where the operation's next draw has that element, so
elements depend on no others: they can be cut up between threads in any way.

- ``fill_uniform``, ``fill_mask``, ``fill_sample``: the numbers of a whole array, in plain loops
- ``draw_uniform``, ``draw_mask``, ``draw_sample``: those of some elements, in vectors

Both give the same bits, and so does ``cuda_uniform``. A mask is 1 where u < p, for one p; a sample
has a p for each element.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from msgd.kernels import cpu, mrg31k3p, options
from msgd.kernels.mrg31k3p import M1, M2, N_STREAMS, SCALE_32, SCALE_64
from msgd.kernels.vectors import (
    HALF,
    Vector,
    build_address,
    build_load,
    build_splat,
    build_store,
    llvm_vector,
    load_wide,
    splat_wide,
    store,
)

FEW_STEPS = 20  # that are taken one by one: more take longer than a product with their matrices


@overload(mrg31k3p.scale)
def _scale(x):
    """Choose the constant when a kernel is compiled."""
    value = SCALE_32 if x == types.float32 else SCALE_64
    return lambda x: value


next_state = njit(**options.CPU)(mrg31k3p.next_state)
jumped = njit(**options.CPU)(mrg31k3p.jumped)
integer_of = njit(**options.CPU)(mrg31k3p.integer_of)
as_uniform = njit(**options.CPU)(mrg31k3p.as_uniform)


class Position(NamedTuple):
    """Where an operation's random numbers stand: the states of all elements of its next draw.

    An element of a stream that has one more element than others takes one more step to its place
    in the next draw. Those steps, but for the first, are ``more``.
    """

    states: np.ndarray  # flat (6, size) int32
    size: int  # elements of a draw
    n_longer: int  # how many streams, the first ones, have one more element than the others
    n_more: np.ndarray  # (2,) int64: how many steps are ``more``, of the others and of the longer
    more: np.ndarray  # (2, 2, 3, 3) int64: the matrices of as many steps


def new_position(draws, n=0):
    """Return the Position of draw number ``n`` of ``draws``, mrg31k3p.Draws."""
    whole, n_longer = divmod(draws.size, N_STREAMS)
    # Without a whole element for each stream the others have none, and their steps do not matter.
    n_more = np.array([max(whole - 1, 0), whole], np.int64)
    more = np.stack([mrg31k3p.jump(int(steps)) for steps in n_more])
    return Position(draws.states(n).ravel(), draws.size, n_longer, n_more, more)


@njit(**options.CPU)
def is_longer(position, element):
    """Return 1 if the stream of ``element`` has one more element than others, else 0."""
    return np.int64(element % N_STREAMS < position.n_longer)


@njit(**options.CPU)
def get_state(position, element):
    """Return the state right before an element, a tuple of six int64."""
    states, size = position.states, position.size
    return (
        np.int64(cpu.element(states, element)),
        np.int64(cpu.element(states, size + element)),
        np.int64(cpu.element(states, 2 * size + element)),
        np.int64(cpu.element(states, 3 * size + element)),
        np.int64(cpu.element(states, 4 * size + element)),
        np.int64(cpu.element(states, 5 * size + element)),
    )


@njit(**options.CPU)
def set_state(position, element, state):
    """Overwrite the state right before an element."""
    for k in range(6):
        at = k * position.size + element
        cpu.set_element(position.states, at, np.int32(state[k]))


@njit(**options.CPU)
def next_integer(position, element):
    """Return d of an element, and take the element to the next draw."""
    state = next_state(get_state(position, element))
    longer = is_longer(position, element)
    further = state if position.n_more[longer] == 0 else jumped(state, position.more[longer])
    set_state(position, element, further)
    return integer_of(state)


@njit(**options.CPU_ENTRY)
def fill_uniform(position, out):
    """Overwrite ``out``, floatX of ``size`` elements, with a draw of uniform numbers.

    position: Position, taken to the next draw.
    """
    flat = out.reshape(-1)
    for element in range(position.size):
        flat[element] = as_uniform(flat[element], next_integer(position, element))


@njit(**options.CPU_ENTRY)
def fill_mask(position, p, out):
    """Overwrite ``out`` with 1 where a draw of uniform numbers is below ``p``, elsewhere with 0.

    position: Position, taken to the next draw; p: floatX, a number; out: ``size`` elements of any
    type.
    """
    flat = out.reshape(-1)
    for element in range(position.size):
        flat[element] = as_uniform(p, next_integer(position, element)) < p


@njit(**options.CPU_ENTRY)
def fill_sample(position, p, out):
    """Overwrite ``out`` as fill_mask does, with a ``p`` for each element.

    p: floatX array of the shape of ``out``, and may be ``out``.
    """
    flat, shares = out.reshape(-1), p.reshape(-1)
    for element in range(position.size):
        share = shares[element]
        flat[element] = as_uniform(share, next_integer(position, element)) < share


# The same in vectors of HALF, and of 1 for what is left.


def _reduced(builder, x, modulus):
    """Return x or, if that is not negative, x - modulus: unsigned, and the smaller of the two."""
    less = builder.sub(x, modulus)
    return builder.select(builder.icmp_unsigned("<", less, x), less, x)


def _step(builder, state):
    """Build the next state of vectors of six 32-bit integers, without remainders.

    2^31 is 1 modulo M1 and 21069 modulo M2: what is shifted out on the left comes back on the
    right, times that. Every sum is below 2^32 and, but for one subtraction, below its modulus.
    """
    x1, x2, x3, y1, y2, y3 = state
    kind = x1.type

    def whole(value):
        return ir.Constant(kind, [value] * kind.count)

    def rotated(x, shift):
        low = builder.and_(x, whole(2 ** (31 - shift) - 1))
        return builder.add(builder.shl(low, whole(shift)), builder.lshr(x, whole(31 - shift)))

    def times_two_to_15(y):
        low = builder.shl(builder.and_(y, whole(2**16 - 1)), whole(15))
        high = builder.mul(builder.lshr(y, whole(16)), whole(2**31 - M2))
        return _reduced(builder, builder.add(low, high), whole(M2))

    def total(first, *others, modulus):
        for other in others:
            first = _reduced(builder, builder.add(first, other), whole(modulus))
        return first

    x = total(rotated(x2, 22), rotated(x3, 7), x3, modulus=M1)
    y = total(times_two_to_15(y1), times_two_to_15(y3), y3, modulus=M2)
    return x, x1, x2, y, y1, y2


def _state_places(context, builder, signature, args, lanes):
    """Return the addresses of the vectors of a state, for (states, size, element)."""
    kinds = signature.args
    size = context.cast(builder, args[1], kinds[1], types.intp)
    element = context.cast(builder, args[2], kinds[2], types.intp)
    llvm = ir.VectorType(ir.IntType(32), lanes)
    return [
        build_address(
            context,
            builder,
            (kinds[0], types.intp),
            (args[0], builder.add(element, builder.mul(size, ir.Constant(size.type, k)))),
            llvm,
        )
        for k in range(6)
    ]


def _constant_scale(vector):
    value = SCALE_32 if vector.scalar == types.float32 else SCALE_64
    return ir.Constant(llvm_vector(vector), [float(value)] * vector.lanes)


@intrinsic(prefer_literal=True)
def _next_uniform(typing_context, like, states, size, element, lanes):
    """Return the numbers of ``lanes`` elements in the type of ``like``; take them a step on."""
    vector = Vector(like.dtype, lanes.literal_value)

    def build(context, builder, signature, args):
        inner = types.void(*signature.args[1:4])
        places = _state_places(context, builder, inner, args[1:4], vector.lanes)
        state = _step(builder, [build_load(builder, place) for place in places])
        for number, place in zip(state, places, strict=True):
            build_store(builder, number, place)
        x, y = state[0], state[3]
        d = builder.sub(x, y)
        with_m1 = builder.add(d, ir.Constant(d.type, [M1] * vector.lanes))
        d = builder.select(builder.icmp_unsigned("<=", x, y), with_m1, d)
        number = builder.sitofp(d, llvm_vector(vector))  # d is below 2^31: signed is the same
        scale = _constant_scale(vector)
        return builder.fmul(number, scale)

    signature = vector(like, states, types.unliteral(size), types.unliteral(element), lanes)
    return signature, build


@intrinsic
def _store_below(typing_context, out, i, u, p):
    """Set out[i : + lanes] to 1 where u < p, lane by lane, and to 0 elsewhere."""

    def build(context, builder, signature, args):
        number = context.get_value_type(out.dtype)
        llvm = ir.VectorType(number, u.lanes)
        address = build_address(context, builder, signature.args[:2], args[:2], llvm)
        is_below = builder.fcmp_ordered("<", args[2], args[3])
        is_integer = isinstance(out.dtype, types.Integer)
        one, zero = (ir.Constant(number, int(v) if is_integer else float(v)) for v in (1, 0))
        ones, zeros = build_splat(builder, llvm, one), build_splat(builder, llvm, zero)
        build_store(builder, builder.select(is_below, ones, zeros), address)
        return context.get_dummy_value()

    return types.void(out, i, u, p), build


# span: (start, stop), elements of the draw; at: the place of the first of them in flat arrays.


@njit(**options.CPU)
def draw_uniform(position, span, out, at):
    """Overwrite out[at : + stop - start], floatX, with the uniform numbers of some elements.

    position: Position, whose elements ``span`` are taken to the next draw.
    """
    states, size = position.states, position.size
    start, stop = span
    first_single = stop - (stop - start) % HALF
    for element in range(start, first_single, HALF):
        store(out, at + element - start, _next_uniform(out, states, size, element, HALF))
    for element in range(first_single, stop):
        store(out, at + element - start, _next_uniform(out, states, size, element, 1))
    _take_more(position, span)


@njit(**options.CPU)
def draw_mask(position, span, p, out, at):
    """Overwrite out[at : + stop - start] with 1 where u < ``p``, a number of floatX, else with 0.

    position: Position, whose elements ``span`` are taken to the next draw; out: of any type.
    """
    states, size = position.states, position.size
    start, stop = span
    first_single = stop - (stop - start) % HALF
    like_p = np.empty(0, type(p))
    for element in range(start, first_single, HALF):
        u = _next_uniform(like_p, states, size, element, HALF)
        _store_below(out, at + element - start, u, splat_wide(like_p, p, HALF))
    for element in range(first_single, stop):
        u = _next_uniform(like_p, states, size, element, 1)
        _store_below(out, at + element - start, u, splat_wide(like_p, p, 1))
    _take_more(position, span)


@njit(**options.CPU)
def draw_sample(position, span, p, out, at):
    """Overwrite out[at : + stop - start] with 1 where u < p[at : + stop - start], else with 0.

    position: Position, whose elements ``span`` are taken to the next draw; p: floatX; out: of any
    type, and may be ``p``.
    """
    states, size = position.states, position.size
    start, stop = span
    first_single = stop - (stop - start) % HALF
    for element in range(start, first_single, HALF):
        u = _next_uniform(p, states, size, element, HALF)
        i = at + element - start
        _store_below(out, i, u, load_wide(p, i, HALF))
    for element in range(first_single, stop):
        u = _next_uniform(p, states, size, element, 1)
        i = at + element - start
        _store_below(out, i, u, load_wide(p, i, 1))
    _take_more(position, span)


@njit(**options.CPU)
def _take_more(position, span):
    """Take elements that were taken one step the rest of the way to the next draw."""
    element, stop = span
    while element < stop:  # from where the number of steps changes to where it does next
        longer = is_longer(position, element)
        stream = element % N_STREAMS
        change = element - stream + (position.n_longer if longer else N_STREAMS)
        if position.n_more[longer] > 0:
            _take_steps(position, (element, min(change, stop)), longer)
        element = change


@njit(**options.CPU)
def _take_steps(position, span, longer):
    """Take elements, whose streams all are longer or none, the steps that are ``more``."""
    states, size = position.states, position.size
    start, stop = span
    if position.n_more[longer] > FEW_STEPS:
        for element in range(start, stop):
            state = jumped(get_state(position, element), position.more[longer])
            set_state(position, element, state)
        return
    like_u = np.empty(0, np.float32)
    for _ in range(position.n_more[longer]):
        first_single = stop - (stop - start) % HALF
        for element in range(start, first_single, HALF):
            _next_uniform(like_u, states, size, element, HALF)
        for element in range(first_single, stop):
            _next_uniform(like_u, states, size, element, 1)
