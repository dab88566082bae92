r"""Deep belief network: stacked restricted Boltzmann machines; parameters, initialisation, stages.

The parameters, their initialisation and the stages are those of the stacked denoising auto-encoders
(``sda/model.py``, whose letters these are), but for what a layer is while it is pre-trained::

    pretrain_l   for l = 1..L-1: W_l and b_l, as a restricted Boltzmann machine (rbm/model.py) of
                 visible units h_{l-1} and n_l hidden ones, with visible biases c that begin with
                 zeros

As published it takes one step of Gibbs sampling from the data (CD-1). h_{l-1} are the means of what
the finished layers below make of the images, h_l = s(h_{l-1} W_l + b_l), not samples of them. Layer
l has the blocks 3 l - 2, 3 l - 1 and 3 l of the generator, for the positive samples of its hidden
units, its visible and its hidden ones.

Source: the "Deep Belief Networks" chapter and ``DBN.py`` of the lisa-lab deep-learning tutorials.

Deviations from the published code:

- h_l of all images is computed once; see ``sda/model.py``.
- What deviates in the layers and in fine-tuning is in ``rbm/model.py`` and ``mlp/model.py``.
"""

from msgd.models.sda.model import (  # noqa: F401 (a room's model.py has them)
    classifier_settings,
    initial_parameters,
    pretraining_settings,
    probabilities,
    stages,
    weight_images,
)


def layer_settings(settings, number):
    """Return the settings (dict) by which layer ``number``, from 1, is trained on its own."""
    chains = {key: settings[key] for key in ("persistent", "gibbs_steps")}
    return {"model": "rbm", **chains, **pretraining_settings(settings, number, 3)}
