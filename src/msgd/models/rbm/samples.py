"""Samples of a trained machine as in the published picture: Gibbs chains from test images."""

import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.uniform import new_position
from msgd.models.logistic_regression.reference import logits as weighted_sums
from msgd.models.rbm.chains import (
    draw_units,
    new_units,
    sample_given,
    set_weights,
    take_sigmoids,
)
from msgd.models.rbm.model import sampling

# Of the published picture: chains, rows of them, and steps from one row to the next.
N_CHAINS, N_ROWS, N_STEPS = 20, 10, 1000


def sample_chains(parameters, dataset, settings, n_chains=N_CHAINS, n_rows=N_ROWS, n_steps=N_STEPS):
    """Return P(v = 1 | h) of every chain after every ``n_steps`` steps, (n_rows, n_chains, D).

    parameters: dict of name -> floatX array, as a Backend returns them; dataset:
    msgd.data.dataset.Dataset, whose test images the chains begin with, at most as many as there
    are; settings: n_hidden, seed. A step draws h and then v. Runs on the CPU, on the threads that
    options.use_threads has allowed, and gives the same bits for any number of them.
    """
    weights, hidden_bias, visible_bias = parameters.values()
    float_x, n_chains = weights.dtype.type, min(n_chains, len(dataset.test_x))
    first, *draws = sampling(dataset, settings, n_chains)
    hidden = new_units(n_chains, weights.shape[1], weights.shape[0], float_x)
    visible = new_units(n_chains, weights.shape[0], weights.shape[1], float_x)
    for units, matrix, bias in ((hidden, weights, hidden_bias), (visible, weights.T, visible_bias)):
        set_weights(units, matrix)
        units.bias[: units.n] = bias
    images = dataset.images("test", slice(first, first + n_chains)).astype(float_x)
    means = weighted_sums(images, weights, hidden_bias)  # grey images: no samples yet
    hidden.means.reshape(n_chains, -1)[:, : hidden.n] = means
    rows = np.empty((n_rows, n_chains, visible.n), float_x)
    _run(visible, hidden, *map(new_position, draws), n_steps, rows)
    return rows


@njit(**options.CPU_PARALLEL)
def _run(visible, hidden, of_hidden, of_visible, n_steps, rows):
    """Overwrite rows (n_rows, chains, D); hidden.means: what goes into the first h's sigmoids."""
    for index in prange(rows.shape[1]):
        i = np.int64(index)
        _run_chain(visible, hidden, of_hidden, of_visible, n_steps, i, rows)


@njit(**options.CPU)
def _run_chain(visible, hidden, of_hidden, of_visible, n_steps, i, rows):
    """Overwrite rows[:, i] with the means of chain i."""
    images = i, i + 1
    for row in range(rows.shape[0]):
        for step in range(n_steps):
            if row == 0 and step == 0:
                take_sigmoids(hidden.means, i * hidden.stride, (i + 1) * hidden.stride)
                draw_units(hidden, of_hidden, hidden.means, i)
            else:
                sample_given(hidden, visible, of_hidden, images)
            sample_given(visible, hidden, of_visible, images)
        start = i * visible.stride
        rows[row, i] = visible.means[start : start + visible.n]
