"""Arguments of kernels that travel together, as NamedTuples of numbers and arrays."""

from typing import NamedTuple

import numpy as np


class Minibatches(NamedTuple):
    """How the training images are cut into minibatches."""

    y: np.ndarray  # (N,) int32, the labels of all training images
    size: int  # B, images of a minibatch
    per_epoch: int  # whole minibatches of the training set; minibatch i of a run is i mod this
    pixel_scale: np.floating  # what a stored pixel is multiplied by to become floatX
    inverse_size: np.floating  # 1/B, floatX


class Descent(NamedTuple):
    """How parameters go down their gradient: the settings of SGD, all floatX.

    The penalties are l1 sum |w| + l2 sum w^2 + lp sum |w|^p over the weights, not the biases.
    """

    rate: np.floating  # the learning rate
    l1: np.floating
    l2: np.floating
    lp: np.floating
    p: np.floating


def descent_of(settings, float_x):
    """Return the Descent of an experiment's settings; what they do not have is 0."""
    keys = "learning_rate", "l1", "l2", "lp", "p"
    return Descent(*(float_x(settings.get(key, 0)) for key in keys))
