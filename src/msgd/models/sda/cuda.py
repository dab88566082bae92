"""Stacked denoising auto-encoders on CUDA, made of the twins of their parts; see stack.py."""

from msgd.models.da import cuda as layer
from msgd.models.mlp import cuda as classifier
from msgd.models.represent import represent
from msgd.models.stack import Stack


class Backend(Stack):
    """The CUDA twin; see msgd.models.interface.Classifier."""

    layer_backend = layer.Backend
    classifier_backend = classifier.Backend
    represent = staticmethod(represent)
