r"""Contractive auto-encoder with tied weights: parameters, initialisation, formulas.

Parameters, in this order::

    weights       W   (D, H)  floatX, from the pixels to the n_hidden = H units
    hidden_bias   b   (H,)    floatX, zeros
    visible_bias  b'  (D,)    floatX, zeros

The weights are drawn uniform between -r and r with r = 4 sqrt(6 / (D + H)) from
``numpy.random.RandomState(seed)``, in float64 and then rounded to floatX. Nothing is drawn before
them, so they are others than those of ``da``.

For a minibatch of B images x (B, D), with the sigmoid s, * multiplying number by number, images i,
pixels k, units h and c = contraction::

    y            = s(x W + b)                                (B, H)
    a            = y W^T + b'
    z            = s(a)                                      (B, D), the reconstructions
    J_i          = (W_kh y'_ih)_hk  with  y' = y * (1 - y)   the derivatives of y by x of image i
    |J|^2        = sum_i sum_hk J_ihk^2  =  sum_ih y'_ih^2 C_h    with  C_h = sum_k W_kh^2
    cost         = -(1/B) sum_ik (x log z + (1 - x) log(1 - z))  +  (c/B) |J|^2
    d            = (z - x) / B
    e            = (d W) * y'  +  (2 c/B) y'^2 * (1 - 2 y) * C
    dcost/dW     = x^T e  +  d^T y  +  (2 c/B) W_kh sum_i y'_ih^2
    dcost/db     = sum_i e of image i
    dcost/db'    = sum_i d of image i

d and e are the derivatives of the cost by what goes into the sigmoids; the two last terms with c
are the gradient of the contraction, through y' and through W itself. The cost of a pixel is
computed as in ``da``. A step of SGD sets W to W - learning_rate dcost/dW, and the biases likewise;
all gradients are taken at the old parameters, and so is the cost.
Beside the cost the published code prints the mean over minibatches of sqrt(|J|^2 / B); so does the
log of a training, from the ``jacobian_norms`` of a Backend.

Source: ``cA.py`` of the lisa-lab deep-learning tutorials, which have no chapter about it. S. Rifai,
P. Vincent, X. Muller, X. Glorot, Y. Bengio, "Contractive Auto-Encoders: Explicit Invariance During
Feature Extraction", ICML 2011.

Deviations from the published code:

- The published code divides |J|^2 by B as whole numbers, rounding down, and the derivative of that
  is 0 by definition: the gradient of the contraction was lost, and what it trains is a plain
  auto-encoder. Here the contraction is trained, as its formulas mean it.
- The published code prints the two terms of the first two minibatches of an epoch in place of the
  means over all.
- The sigmoid and log(1 + exp(a)) have no cut-offs; see ``da``.
"""

import numpy as np

from msgd.models.da.model import (  # noqa: F401 (a room's model.py has them)
    hidden_units,
    reconstructions,
    tied_parameters,
    weight_images,
)


def initial_parameters(dataset, settings, float_x):
    """Return the parameters training starts from: dict of name -> array.

    dataset: msgd.data.dataset.Dataset, for D; settings: n_hidden, seed; float_x: np.float32 or
    np.float64.
    """
    random = np.random.RandomState(settings["seed"])
    return tied_parameters(random, dataset.n_features, settings["n_hidden"], float_x)
