r"""Denoising auto-encoder with tied weights: parameters, initialisation, formulas.

Parameters, in this order::

    weights       W   (D, H)  floatX, from the pixels to the n_hidden = H units
    hidden_bias   b   (H,)    floatX, zeros
    visible_bias  b'  (D,)    floatX, zeros

The weights are drawn uniform between -r and r with r = 4 sqrt(6 / (D + H)), in float64 and then
rounded to floatX, from ``numpy.random.RandomState(seed)``, whose first draw, randint(2^30), is the
seed of the generator of the masks (``mask_draws``).

For a minibatch of B images x (B, D) and a mask m (B, D) of zeros and ones, each of which is 1 with
probability 1 - corruption, independently of all others; s is the sigmoid, * multiplies number by
number, and i counts the images, k the pixels::

    x~           = m * x                                     the corrupted images
    y            = s(x~ W + b)                               (B, H)
    a            = y W^T + b'
    z            = s(a)                                      (B, D), the reconstructions
    cost         = -(1/B) sum_ik (x log z + (1 - x) log(1 - z))
    d            = (z - x) / B
    e            = (d W) * y * (1 - y)
    dcost/dW     = x~^T e  +  d^T y
    dcost/db     = sum_i e of image i
    dcost/db'    = sum_i d of image i

The reconstructions are compared with the images before the corruption, whose pixels are grey, not
only black and white. d and e are the derivatives of the cost by what goes into the sigmoids. The
cost of a pixel is log(1 + exp(a)) - x a, which is computed as max(a, 0) - x a + log(1 +
exp(-|a|)): it has no logarithm of a z that was rounded to 0 or 1.
A step of SGD sets W to W - learning_rate dcost/dW, and the biases likewise; all gradients are taken
at the old parameters, and so is the cost.

Source: the "Denoising Autoencoders (dA)" chapter and ``dA.py`` of the lisa-lab deep-learning
tutorials.

Deviations from the published code:

- The published code cuts the sigmoid and log(1 + exp(a)) off where floatX has no more digits of
  them; the formula above needs no cut-offs. The difference is rounding.
"""

import numpy as np
from scipy.special import expit

from msgd.kernels.mrg31k3p import Draws

MASK_STREAM = 1  # the block of the generator; the only one in use


def initial_parameters(dataset, settings, float_x):
    """Return the parameters training starts from: dict of name -> array.

    dataset: msgd.data.dataset.Dataset, for D; settings: n_hidden, seed; float_x: np.float32 or
    np.float64.
    """
    random = np.random.RandomState(settings["seed"])
    _mask_seed(random)
    return tied_parameters(random, dataset.n_features, settings["n_hidden"], float_x)


def tied_parameters(random, n_visible, n_hidden, float_x):
    """Return the initial weights (n_visible, n_hidden) and both biases of a tied layer.

    random: numpy.random.RandomState, from which the weights are drawn.
    """
    bound = 4 * np.sqrt(6.0 / (n_visible + n_hidden))
    weights = random.uniform(-bound, bound, (n_visible, n_hidden)).astype(float_x)
    return {
        "weights": weights,
        "hidden_bias": np.zeros(n_hidden, float_x),
        "visible_bias": np.zeros(n_visible, float_x),
    }


def mask_draws(n_features, settings):
    """Return the msgd.kernels.mrg31k3p.Draws of the masks: a draw for each minibatch.

    A draw has B D numbers u in the order of the mask (B, D), which is 1 where u < 1 - corruption;
    minibatch i of a training, counted over all epochs, takes draw i. Of a layer of a stack settings
    has streams_before: how many blocks of the generator belong to the layers below it.
    """
    seed = _mask_seed(np.random.RandomState(settings["seed"]))
    stream = MASK_STREAM + settings.get("streams_before", 0)
    return Draws(seed, stream, settings["batch_size"] * n_features)


def _mask_seed(random):
    return int(random.randint(2**30))


def hidden_units(parameters, images):
    """Return y of every image, (len(images), H) float64; images: (n, D) pixels, as they are.

    For plots of a few images, in plain NumPy; training uses the kernels.
    """
    return expit(images @ parameters["weights"].astype(np.float64) + parameters["hidden_bias"])


def reconstructions(parameters, images):
    """Return z of every image, (len(images), D) float64; images: (n, D) pixels, as they are.

    For plots of a few images, in plain NumPy; corrupted images are to be given as such.
    """
    y = hidden_units(parameters, images)
    return expit(y @ parameters["weights"].T.astype(np.float64) + parameters["visible_bias"])


def weight_images(parameters, image_shape):
    """Return one picture per hidden unit, the weights of its pixels: (H, h, w)."""
    return parameters["weights"].T.reshape(-1, *image_shape)
