"""The contractive auto-encoder on the CPU, fast: that of ``da`` without masks, and contracted.

``da/tied_layer.py`` says where the contraction comes in; ``reference.py`` computes the same in
plain loops.
"""

import numpy as np

from msgd.models.ca.jacobian import JacobianNorms
from msgd.models.da import cpu


class Backend(JacobianNorms, cpu.Backend):
    """The CPU twin; see msgd.models.interface.Backend.

    jacobian_norms: of the minibatches of the last call of train, sqrt(|J|^2 / B) each.
    """

    def train(self, first, last):
        """See msgd.models.interface.Backend.train."""
        self.jacobian_norms = np.empty(0, self.float_x)
        return super().train(first, last)

    def train_span(self, first, last, costs):
        """Train minibatches first..last-1 and write their costs, (last - first,) floatX."""
        jacobians = np.empty_like(costs)
        self._train_tied(first, last, costs, jacobians)
        self.jacobian_norms = np.append(self.jacobian_norms, np.sqrt(jacobians))
