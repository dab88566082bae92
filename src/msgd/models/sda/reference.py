"""Stacked denoising auto-encoders in plain loops, those of their parts; see stack.py.

``represent`` computes what the twins' of msgd.models.represent does, up to rounding.
"""

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.models.da import reference as layer
from msgd.models.mlp import reference as classifier
from msgd.models.stack import Stack

TOGETHER = 500  # images, for they may be larger than the memory


@njit(**options.CPU_ENTRY)
def hidden_units(x, weights, bias):
    """Return s(x W + b), (n, n_units)."""
    return layer.hidden_units(x, layer.TiedLayer(weights, bias, bias))


def represent(dataset, layers, float_x):
    """Return h of the last of ``layers``, [(W, b), ...], for all training images, (N, n_units)."""
    parts = []
    for start in range(0, len(dataset.train_x), TOGETHER):
        pixels = dataset.train_x[start : start + TOGETHER].astype(float_x)
        h = pixels * float_x(dataset.pixel_scale)
        for weights, bias in layers:
            h = hidden_units(h, weights, bias)
        parts.append(h)
    dataset.release_pages("train")
    return np.concatenate(parts)


class Backend(Stack):
    """The stack as the pipeline asks for it; see msgd.models.interface.Classifier."""

    layer_backend = layer.Backend
    classifier_backend = classifier.Backend
    represent = staticmethod(represent)
