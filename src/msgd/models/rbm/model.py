r"""Restricted Boltzmann machine: parameters, initialisation, formulas.

Parameters, in this order::

    weights       W   (D, H)  floatX, between the pixels and the n_hidden = H units
    hidden_bias   b   (H,)    floatX, zeros
    visible_bias  c   (D,)    floatX, zeros

The weights are drawn as those of the denoising auto-encoder (``da/model.py``), from
``numpy.random.RandomState(seed)``, whose first draw, randint(2^30), is the seed of the generator of
the samples (``gibbs_draws``).

Of images v and units h, zeros and ones, the machine has the energy E(v, h) = -v c - h b - v W h.
With s the sigmoid and softplus(a) = log(1 + exp(a))::

    P(h = 1 | v)  = s(v W + b)
    P(v = 1 | h)  = s(h W^T + c)
    F(v)          = -v c - sum softplus(v W + b)       the free energy: -log sum_h exp(-E(v, h))

A minibatch of B images x (B, D) has as many chains. A step of Gibbs sampling draws v from P(v | h)
and then h from P(h | v); gibbs_steps = k of them lead from the chains' first h to v_k and h_k. The
first h is h_k of the minibatch before, zeros for the first one, where the chains are persistent
(PCD); else it is drawn from P(h | x) (CD). The parameters go down the gradient of mean F(x) -
mean F(v_k), in which v_k counts as fixed::

    dW  = -(1/B) (x^T s(x W + b) - v_k^T s(v_k W + b))
    db  = -(1/B) sum_i (s(x W + b) - s(v_k W + b)) of image i
    dc  = -(1/B) sum_i (x - v_k) of image i

The images here are grey, not zeros and ones. A step of SGD sets W to W - learning_rate dW, and the
biases likewise. What is printed as the cost of a minibatch belongs to the parameters before it, and
is not what goes down:

- PCD: a proxy of the log pseudo-likelihood. r is x rounded to zeros and ones (a half to 0), r' is r
  with pixel j flipped, and the cost is D times the mean of log s(F(r') - F(r)), which estimates
  log P(r) by one of the D factors P(r_j | all other pixels). j is the number of the minibatch,
  counted over all epochs, modulo D. In F(r) - F(r') = (r'_j - r_j) c_j + sum (softplus(r' W + b) -
  softplus(r W + b)) the two sums over units are taken as one, of differences: in float32 either is
  so large that little would be left of what they differ by.
- CD: minus the cross-entropy of x and the last step's P(v = 1 | h), with a = h_{k-1} W^T + c:
  the mean over the images of sum_d (x log s(a) + (1 - x) log(1 - s(a))).

Source: the "Restricted Boltzmann Machines (RBM)" chapter and ``rbm.py`` of the lisa-lab
deep-learning tutorials.

Deviations from the published code:

- The published code cuts the sigmoid and the softplus off where floatX has no more digits of
  them; the formulas here need no cut-offs. The difference is rounding.
- A pixel of exactly one half (128 of 256) is rounded to 0, as the published code does with Theano
  0.9 and later; before, it was rounded to 1.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import expit

from msgd.kernels.mrg31k3p import Draws
from msgd.models.da.model import tied_parameters

# Blocks of the generator: of a training, and of the samples that are drawn after it.
POSITIVE_STREAM, VISIBLE_STREAM, HIDDEN_STREAM = 1, 2, 3
SAMPLED_HIDDEN_STREAM, SAMPLED_VISIBLE_STREAM = 4, 5


def initial_parameters(dataset, settings, float_x):
    """Return the parameters training starts from: dict of name -> array.

    dataset: msgd.data.dataset.Dataset, for D; settings: n_hidden, seed; float_x: np.float32 or
    np.float64.
    """
    random = np.random.RandomState(settings["seed"])
    _generator_seed(random)
    return tied_parameters(random, dataset.n_features, settings["n_hidden"], float_x)


class GibbsDraws(NamedTuple):
    """The msgd.kernels.mrg31k3p.Draws of a training: numbers u, of which samples are u < P.

    Step t of the k steps of minibatch i, both from 0, takes draw i k + t of ``visible``, in the
    order of v (B, D), and of ``hidden``, in that of h (B, H). The chains of CD begin with draw i of
    ``positive``. As in the published code each has its block of the generator, though PCD never
    draws the first, nor CD with one step the last.
    """

    positive: Draws
    visible: Draws
    hidden: Draws


def gibbs_draws(n_features, settings):
    """Return the GibbsDraws of a training of images of ``n_features`` pixels.

    Of a layer of a stack settings has streams_before: how many blocks of the generator belong to
    the layers below it.
    """
    seed = _generator_seed(np.random.RandomState(settings["seed"]))
    before = settings.get("streams_before", 0)
    n_visible, n_hidden = (settings["batch_size"] * n for n in (n_features, settings["n_hidden"]))
    return GibbsDraws(
        Draws(seed, before + POSITIVE_STREAM, n_hidden),
        Draws(seed, before + VISIBLE_STREAM, n_visible),
        Draws(seed, before + HIDDEN_STREAM, n_hidden),
    )


def sampling(dataset, settings, n_chains):
    """Return (first, hidden, visible): which test images samples begin with, and their Draws.

    Chain i begins with test image first + i, and first is drawn where the initial weights' draws
    end. Step t, from 0, takes draw t of h (n_chains, H) and then of v (n_chains, D).
    """
    random = np.random.RandomState(settings["seed"])
    seed, n_hidden = _generator_seed(random), settings["n_hidden"]
    tied_parameters(random, dataset.n_features, n_hidden, np.float64)  # for what it draws
    n_first = len(dataset.test_x) - n_chains
    first = int(random.randint(n_first)) if n_first > 0 else 0
    return (
        first,
        Draws(seed, SAMPLED_HIDDEN_STREAM, n_chains * n_hidden),
        Draws(seed, SAMPLED_VISIBLE_STREAM, n_chains * dataset.n_features),
    )


def _generator_seed(random):
    return int(random.randint(2**30))


def free_energies(parameters, images):
    """Return F of every image, (len(images),) float64; images: (n, D) pixels.

    For a few images, in plain NumPy; training uses the kernels.
    """
    weights, hidden_bias, visible_bias = (p.astype(np.float64) for p in parameters.values())
    softplus = np.logaddexp(0, images @ weights + hidden_bias)
    return -images @ visible_bias - softplus.sum(axis=1)


def hidden_means(parameters, images):
    """Return P(h = 1 | v) of every image, (len(images), H) float64; images: (n, D) pixels."""
    return expit(images @ parameters["weights"].astype(np.float64) + parameters["hidden_bias"])


def visible_means(parameters, hidden):
    """Return P(v = 1 | h) of every row of ``hidden`` (n, H), (n, D) float64."""
    weights = parameters["weights"].astype(np.float64)
    return expit(hidden @ weights.T + parameters["visible_bias"])


def weight_images(parameters, image_shape):
    """Return one picture per hidden unit, the weights of its pixels: (H, h, w)."""
    return parameters["weights"].T.reshape(-1, *image_shape)
