"""Uniform random numbers and masks as CUDA device functions, a thread for each element.

See ``uniform``, whose Position of device arrays they take and whose bits they give.
"""

import numpy as np
from numba import cuda

from msgd.kernels import mrg31k3p, options
from msgd.kernels.cuda import (
    IS_NUMBA_CUDA,
    IS_SIMULATOR,
    launch_shape_of_tasks,
    thread_of_grid,
)
from msgd.kernels.formulas import like
from msgd.kernels.mrg31k3p import N_STREAMS, SCALE_32, SCALE_64
from msgd.kernels.uniform import Position

if IS_NUMBA_CUDA and not IS_SIMULATOR:
    from numba import types
    from numba.cuda.extending import overload

    @overload(mrg31k3p.scale, target="cuda")
    def _scale(x):
        value = SCALE_32 if x == types.float32 else SCALE_64
        return lambda x: value


next_state = cuda.jit(device=True, **options.CUDA)(mrg31k3p.next_state)
jumped = cuda.jit(device=True, **options.CUDA)(mrg31k3p.jumped)
integer_of = cuda.jit(device=True, **options.CUDA)(mrg31k3p.integer_of)
as_uniform = cuda.jit(device=True, **options.CUDA)(mrg31k3p.as_uniform)


def to_device(position):
    """Return a Position whose arrays are copies on the device."""
    arrays = {
        name: cuda.to_device(getattr(position, name)) for name in ("states", "n_more", "more")
    }
    return position._replace(**arrays)


@cuda.jit(device=True, **options.CUDA)
def draw_uniform(position, element, x):
    """Return the uniform number of an element in the type of ``x``; take it to the next draw.

    position: uniform.Position, of device arrays. No two threads may take the same element.
    """
    states, size = position.states, position.size
    state = next_state(
        (
            np.int64(states[element]),
            np.int64(states[size + element]),
            np.int64(states[2 * size + element]),
            np.int64(states[3 * size + element]),
            np.int64(states[4 * size + element]),
            np.int64(states[5 * size + element]),
        )
    )
    d = integer_of(state)
    longer = 1 if element % N_STREAMS < position.n_longer else 0
    if position.n_more[longer] > 0:
        state = jumped(state, position.more[longer])
    states[element] = state[0]
    states[size + element] = state[1]
    states[2 * size + element] = state[2]
    states[3 * size + element] = state[3]
    states[4 * size + element] = state[4]
    states[5 * size + element] = state[5]
    return as_uniform(x, d)


@cuda.jit(device=True, **options.CUDA)
def sample(u, p):
    """Return 1 where the uniform number u is below p, else 0, in the type of p."""
    return like(p, 1) if u < p else like(p, 0)


@cuda.jit(device=True, **options.CUDA)
def draw_sample(position, element, p):
    """Return a sample of p, 1 or 0 in its type; take the element to the next draw."""
    return sample(draw_uniform(position, element, p), p)


@cuda.jit(**options.CUDA_ENTRY)
def draw_uniforms(
    states,  # these five: uniform.Position, of device arrays, taken on by a draw for each row
    size,
    n_longer,
    n_more,
    more,
    uniforms,  # (draws, size) floatX, overwritten
):
    """Draw uniform numbers for the minibatches of a later launch: one thread per element."""
    thread, n_threads = thread_of_grid()
    position = Position(states, size, n_longer, n_more, more)
    for element in range(thread, size, n_threads):
        for draw in range(uniforms.shape[0]):
            uniforms[draw, element] = draw_uniform(position, element, uniforms[draw, element])


def launch_draw(position, uniforms, stream):
    """Overwrite ``uniforms``, a device array (draws, ...) floatX; see draw_uniforms."""
    rows = uniforms.reshape(len(uniforms), position.size)
    blocks, threads = launch_shape_of_tasks(position.size)
    draw_uniforms[blocks, threads, stream](*position, rows)


AHEAD = 2**22  # so many numbers at most are drawn before the minibatches that take them


def drawn_together(numbers_each, n_batches):
    """Return for how many minibatches numbers are drawn together; numbers_each: a minibatch's."""
    return min(max(1, AHEAD // numbers_each), n_batches)
