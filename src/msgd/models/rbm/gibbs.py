"""What all twins need for Gibbs sampling: random numbers and chains, draw by draw."""

from typing import NamedTuple

import numpy as np

from msgd.errors import UserError
from msgd.kernels.uniform import Position
from msgd.models.rbm.model import gibbs_draws
from msgd.models.unsupervised_backend import RandomNumbers


class Sampling(NamedTuple):
    """How the chains of a minibatch run, and where their random numbers stand."""

    is_persistent: bool  # PCD, not CD
    n_steps: int  # k
    positive: Position  # see model.GibbsDraws
    visible: Position
    hidden: Position


class GibbsNumbers:
    """The random numbers of a training of ``settings``, minibatch by minibatch.

    more: arguments of RandomNumbers beside the draws.
    """

    def __init__(self, n_features, settings, *more):
        self.is_persistent, self.n_steps = settings["persistent"], settings["gibbs_steps"]
        self.numbers = [RandomNumbers(d, *more) for d in gibbs_draws(n_features, settings)]

    def span(self, first, last):
        """Return the Sampling of minibatches first..last-1, which the caller is to train."""
        per_minibatch = 1, self.n_steps, self.n_steps
        positions = [
            numbers.span(n * first, n * last)
            for numbers, n in zip(self.numbers, per_minibatch, strict=True)
        ]
        return Sampling(self.is_persistent, self.n_steps, *positions)


class PersistentChain:
    """The part of a Backend that knows the chains of PCD as its state.

    A backend adds ``fetch_chain()``, which returns a copy of h, (B, H) uint8, and
    ``keep_chain(chain)``, which replaces it by zeros and ones of that shape and type.
    """

    def begin(self, stage):
        """See msgd.models.interface.Backend.begin: the chains begin with zeros."""
        self.keep_chain(np.zeros_like(self.fetch_chain()))

    def get_state(self):
        """See msgd.models.interface.Backend.get_state: {"chain": (B, H) uint8}, {} of CD."""
        return {"chain": self.fetch_chain()} if self.settings["persistent"] else {}

    def set_state(self, state):
        """See msgd.models.interface.Backend.set_state."""
        expected = self.get_state()
        if list(state) != list(expected):
            raise UserError(f"the state holds {list(state)}, not {list(expected)}")
        for name, array in expected.items():
            given = state[name]
            if given.shape != array.shape or given.dtype != array.dtype or given.max() > 1:
                raise UserError(
                    f"the state's {name} is not {array.shape} {array.dtype} of zeros and ones"
                )
            self.keep_chain(given)
