r"""The generator MRG31k3p, as Theano used it: where the random numbers of every operation begin.

A state is six whole numbers, those of two recurrences of three numbers each::

    x_n = 2^22 x_(n-2) + (2^7 + 1) x_(n-3)     modulo M1 = 2^31 - 1
    y_n = 2^15 y_(n-1) + (2^15 + 1) y_(n-3)    modulo M2 = 2^31 - 21069

(x_n, x_(n-1), x_(n-2), y_n, y_(n-1), y_(n-2)). A step makes the next x and y, and of them the
integer d = x - y, or x - y + M1 where x <= y. The uniform number is d / 2^31, in float32 a bit
less. A seed z stands for the state z z z z z z. A step is a product with one matrix for each
recurrence, so n steps are one with its n-th power, however many they are.

An operation that draws random numbers has a block of its own: block b (from 1) begins
(b - 1) 2^134 steps after the seed, and its stream j another j 2^72 steps later. Of an array of
``size`` numbers, element i in C order comes from stream i mod N_STREAMS, each stream going one step
for each of its elements; the next array goes on from there.

P. L'Ecuyer and R. Touzin, "Fast combined multiple recursive generators with multipliers of the
form a = +-2^q +-2^r", Winter Simulation Conference, 2000.
"""

from dataclasses import dataclass

import numpy as np

from msgd.kernels.formulas import like

M1 = 2**31 - 1
M2 = 2**31 - 21069
MODULI = M1, M2
STEPS = (
    ((0, 2**22, 2**7 + 1), (1, 0, 0), (0, 1, 0)),
    ((2**15, 0, 2**15 + 1), (1, 0, 0), (0, 1, 0)),
)
# As Theano had them. The first is 2^-31 (1 - 2^-24): the largest integers become 2^31 in float32,
# but their numbers are below 1.
SCALE_32, SCALE_64 = np.float32(4.6566126e-10), np.float64(2.0**-31)
N_STREAMS = 60 * 256
BETWEEN_STREAMS = 2**72  # steps
BETWEEN_BLOCKS = 2**134


# Integers of 64 bits; compiled in uniform.py for the CPU and in cuda_uniform.py for CUDA.


def next_state(state):
    """Return the state after one step, a tuple of six integers as ``state``."""
    x1, x2, x3, y1, y2, y3 = state
    x = (2**22 * x2 + (2**7 + 1) * x3) % M1
    y = (2**15 * y1 + (2**15 + 1) * y3) % M2
    return x, x1, x2, y, y1, y2


def jumped(state, matrices):
    """Return the state after the steps of ``matrices``, (2, 3, 3) int64 as jump returns them."""
    x1, x2, x3, y1, y2, y3 = state
    a, b = matrices[0], matrices[1]
    return (  # a product is below 2^62, a sum of remainders below 2^33
        (a[0, 0] * x1 % M1 + a[0, 1] * x2 % M1 + a[0, 2] * x3 % M1) % M1,
        (a[1, 0] * x1 % M1 + a[1, 1] * x2 % M1 + a[1, 2] * x3 % M1) % M1,
        (a[2, 0] * x1 % M1 + a[2, 1] * x2 % M1 + a[2, 2] * x3 % M1) % M1,
        (b[0, 0] * y1 % M2 + b[0, 1] * y2 % M2 + b[0, 2] * y3 % M2) % M2,
        (b[1, 0] * y1 % M2 + b[1, 1] * y2 % M2 + b[1, 2] * y3 % M2) % M2,
        (b[2, 0] * y1 % M2 + b[2, 1] * y2 % M2 + b[2, 2] * y3 % M2) % M2,
    )


def integer_of(state):
    """Return d of a state, 1 <= d <= M1, of which a uniform number is made."""
    x, y = state[0], state[3]
    return x - y + M1 if x <= y else x - y


def as_uniform(x, d):
    """Return the uniform number of the integer ``d`` in the type of ``x``, 0 < u < 1."""
    return like(x, d) * scale(x)


def scale(x):
    """Return what an integer d is multiplied by to become a number of the type of ``x``."""
    return SCALE_32 if type(x) is np.float32 else SCALE_64


# On the host.


def power(matrix, n, modulus):
    """Return the n-th power of a 3 x 3 matrix, tuples of integers, by squarings."""
    result = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    while n > 0:
        if n % 2 == 1:
            result = _product(matrix, result, modulus)
        matrix = _product(matrix, matrix, modulus)
        n //= 2
    return result


def _product(left, right, modulus):
    columns = list(zip(*right, strict=True))
    return tuple(
        tuple(sum(a * b for a, b in zip(row, column, strict=True)) % modulus for column in columns)
        for row in left
    )


def jump(n):
    """Return the matrices of n steps of both recurrences, (2, 3, 3) int64."""
    pairs = zip(STEPS, MODULI, strict=True)
    return np.array([power(step, n, modulus) for step, modulus in pairs], np.int64)


def _advanced(states, n):
    """Return ``states`` (6, ...) int64 after n steps each."""
    return np.stack(jumped(states, jump(n)))


@dataclass(frozen=True)
class Draws:
    """The random numbers of one operation, which draws ``size`` of them at a time.

    seed: 1 to M2 - 1; stream: the operation's block, counted from 1; size: 1 or more. Raises
    ValueError if they are others.
    """

    seed: int
    stream: int
    size: int

    def __post_init__(self):
        if not (1 <= self.seed < M2 and self.stream >= 1 and self.size >= 1):
            raise ValueError(f"no random numbers are those of {self}")

    def steps(self, element):
        """Return how many steps one draw takes the stream of ``element``."""
        whole, rest = divmod(self.size, N_STREAMS)
        return whole + (element % N_STREAMS < rest)

    def state(self, draw, element):
        """Return the state right before an element of draw number ``draw`` (from 0): (6,) int32."""
        n_before, stream = divmod(element, N_STREAMS)
        n_before += draw * self.steps(element)
        n_before += (self.stream - 1) * BETWEEN_BLOCKS + stream * BETWEEN_STREAMS
        seeds = np.full(6, self.seed, np.int64)
        return _advanced(seeds, n_before).astype(np.int32)

    def states(self, n):
        """Return the states right before every element of draw number ``n``: (6, size) int32.

        Column i is state(n, i).
        """
        streams = self._first_states(min(self.size, N_STREAMS))
        whole, rest = divmod(self.size, N_STREAMS)
        parts = []
        for part, steps in ((streams[:, :rest], whole + 1), (streams[:, rest:], whole)):
            parts.append(_advanced(part, n * steps))
        states = np.concatenate(parts, axis=1)
        result = np.empty((6, self.size), np.int32)
        for start in range(0, self.size, N_STREAMS):
            n_here = min(N_STREAMS, self.size - start)
            result[:, start : start + n_here] = states[:, :n_here]
            states = _advanced(states, 1)
        return result

    def _first_states(self, n_streams):
        """Return where the first streams of the block begin, (6, n_streams) int64."""
        states = _advanced(np.full((6, 1), self.seed, np.int64), (self.stream - 1) * BETWEEN_BLOCKS)
        while states.shape[1] < n_streams:  # twice as many streams each time
            further = _advanced(states, states.shape[1] * BETWEEN_STREAMS)
            states = np.concatenate([states, further], axis=1)
        return states[:, :n_streams]
