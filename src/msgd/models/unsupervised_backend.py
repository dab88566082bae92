"""What the backends of models that learn from images alone share; see interface.Backend."""

from msgd.kernels.mrg31k3p import Draws
from msgd.kernels.uniform import new_position

NO_DRAWS = Draws(1, 1, 1)  # for kernels that take random numbers, where none are drawn


class RandomNumbers:
    """The random numbers of one operation, draw by draw.

    draws: msgd.kernels.mrg31k3p.Draws. Which numbers a draw has depends on nothing but its number,
    so nothing of this is a part of a training's state. That a position is kept from one call of
    ``span`` to the next saves the time to compute it anew. place: what every new position passes
    through, such as to_device of msgd.kernels.cuda_uniform.
    """

    def __init__(self, draws, place=lambda position: position):
        self.draws = draws
        self.place = place
        self.next_draw = None

    def span(self, first, last):
        """Return the msgd.kernels.uniform.Position of draw ``first``.

        The caller takes it on to draw ``last``, which is what the next call reckons with.
        """
        if first != self.next_draw:
            self.position = self.place(new_position(self.draws, first))
        self.next_draw = last
        return self.position
