"""The contractive auto-encoder on CUDA, by the kernel of ``da/cuda.py``: no masks, contracted."""

import numpy as np

from msgd.models.ca.jacobian import JacobianNorms
from msgd.models.da import cuda


class Backend(JacobianNorms, cuda.Backend):
    """The CUDA twin; see msgd.models.interface.Backend.

    jacobian_norms: of the minibatches of the last call of train, sqrt(|J|^2 / B) each.
    """

    def train(self, first, last):
        """See msgd.models.interface.Backend.train."""
        costs = super().train(first, last)
        self.jacobian_norms = np.sqrt(self.jacobians.copy_to_host())
        return costs
