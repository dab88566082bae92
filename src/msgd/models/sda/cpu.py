"""Stacked denoising auto-encoders on the CPU, made of the twins of their parts; see stack.py."""

from msgd.models.da import cpu as layer
from msgd.models.mlp import cpu as classifier
from msgd.models.represent import represent
from msgd.models.stack import Stack


class Backend(Stack):
    """The CPU twin; see msgd.models.interface.Classifier."""

    layer_backend = layer.Backend
    classifier_backend = classifier.Backend
    represent = staticmethod(represent)
