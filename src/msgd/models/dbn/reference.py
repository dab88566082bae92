"""The deep belief network in plain loops, those of its parts; see stack.py."""

from msgd.models.mlp import reference as classifier
from msgd.models.rbm import reference as layer
from msgd.models.sda.reference import represent
from msgd.models.stack import Stack


class Backend(Stack):
    """The stack as the pipeline asks for it; see msgd.models.interface.Classifier."""

    layer_backend = layer.Backend
    classifier_backend = classifier.Backend
    represent = staticmethod(represent)
