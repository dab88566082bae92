"""The mean cost and gradient of all minibatches, by the plain loops of logistic regression."""

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.reference import loss, penalties
from msgd.models.logistic_regression import reference
from msgd.models.logistic_regression.reference import gradients, logits


@njit(**options.CPU_ENTRY)
def cost_and_gradients(x, y, weights, bias, descent):
    """Return the cost of a minibatch, dcost/dW (D, C) and dcost/db (C,); x (B, D), y (B,)."""
    nll, error = loss(logits(x, weights, bias), y)
    weights_gradient, bias_gradient = gradients(x, error, weights, descent)
    return nll + penalties(weights, descent), weights_gradient, bias_gradient


class Backend(reference.Backend):
    """The reference; see msgd.models.interface.Backend and FullGradient."""

    def cost_and_gradient(self):
        """See msgd.models.interface.FullGradient.cost_and_gradient."""
        costs = np.empty(self.n_train_batches, self.float_x)
        total = {name: np.zeros_like(array) for name, array in self.parameters.items()}
        for minibatch in range(self.n_train_batches):
            x, y = self.minibatch(minibatch)
            costs[minibatch], *gradient = cost_and_gradients(x, y, *self.network, self.descent)
            for name, array in zip(total, gradient, strict=True):
                total[name] += array
        mean = {name: array / self.float_x(len(costs)) for name, array in total.items()}
        return float(np.mean(costs, dtype=np.float64)), mean
