r"""Stacked denoising auto-encoders: parameters, initialisation, stages.

The parameters are those of the multilayer perceptron (``mlp/model.py``) with sigmoid units, in
their order: layer l = 1..L has n_l units; n_0 = D pixels, n_L = C classes::

    weights_l  (n_{l-1}, n_l)  floatX
    bias_l     (n_l,)          floatX, zeros

The hidden weights, l < L, are drawn layer by layer from ``numpy.random.RandomState(seed)``, whose
first draw, randint(2^30), is the seed of the generator of the masks. They are uniform between -r
and r with r = 4 sqrt(6 / (n_{l-1} + n_l)), in float64 and then rounded to floatX. The weights of
the last layer are zeros.

Training has L stages::

    pretrain_l   for l = 1..L-1: W_l and b_l, as a denoising auto-encoder (da/model.py) of inputs
                 h_{l-1} and n_l units, with visible biases b' that begin with zeros
    fine_tune    all W_l and b_l, as a multilayer perceptron, under the patience rule

Pre-training looks at no label and is not validated. h_0 are the images, and h_l = s(h_{l-1} W_l +
b_l), uncorrupted, is what the finished layer l makes of them, all of them at once. The masks of
layer l are those of block l of the generator, and minibatch i of its stage takes draw i.

Source: the "Stacked Denoising Autoencoders (SdA)" chapter and ``SdA.py`` of the lisa-lab
deep-learning tutorials.

Deviations from the published code:

- The published code takes every minibatch through the finished layers anew. h_l of all images is
  computed once, which the chapter itself advises; sums may be rounded otherwise.
- What deviates in the layers and in fine-tuning is in ``da/model.py`` and ``mlp/model.py``.
"""

import numpy as np

from msgd.models import Stage
from msgd.models.mlp import model as mlp
from msgd.models.mlp.model import dense_parameters, layer_sizes, weight_images  # noqa: F401


def initial_parameters(dataset, settings, float_x):
    """Return the parameters training starts from: dict of name -> array.

    dataset: msgd.data.dataset.Dataset, for D and C; settings: n_hidden, seed; float_x: np.float32
    or np.float64.
    """
    random = np.random.RandomState(settings["seed"])
    random.randint(2**30)  # the generator's seed
    sizes = layer_sizes(dataset.n_features, settings, dataset.n_classes)
    return dense_parameters(random, sizes, classifier_settings(settings), float_x)


def stages(settings):
    """Return the Stages (list): one for each pre-trained layer, and fine-tuning."""
    n_epochs, size = settings["pretraining_epochs"], settings["pretraining_batch_size"]
    n_layers = np.size(settings["n_hidden"]) if n_epochs > 0 else 0
    return [
        *(Stage(f"pretrain_{n + 1}", n_epochs, size, is_validated=False) for n in range(n_layers)),
        Stage("fine_tune", settings["n_epochs"], settings["batch_size"], is_validated=True),
    ]


def layer_settings(settings, number):
    """Return the settings (dict) by which layer ``number``, from 1, is trained on its own."""
    corruption = settings["corruption"]
    share = corruption[number - 1] if isinstance(corruption, list) else corruption
    return {"model": "da", "corruption": share, **pretraining_settings(settings, number, 1)}


def pretraining_settings(settings, number, n_streams):
    """Return what layer ``number`` is given in all stacks; n_streams: blocks that a layer takes."""
    return {
        "n_hidden": int(np.ravel(settings["n_hidden"])[number - 1]),
        "learning_rate": settings["pretraining_learning_rate"],
        "batch_size": settings["pretraining_batch_size"],
        "seed": settings["seed"],
        "streams_before": (number - 1) * n_streams,
    }


def classifier_settings(settings):
    """Return the settings (dict) by which the multilayer perceptron is fine-tuned."""
    return {**settings, "model": "mlp", "activation": "sigmoid"}


def probabilities(parameters, images, settings, image_shape):
    """Return P(Y | x) of every image, (len(images), C) float64; images: (n, D) pixels.

    For plots of a few images, in plain NumPy; training and scores use the kernels.
    """
    return mlp.probabilities(parameters, images, classifier_settings(settings), image_shape)
