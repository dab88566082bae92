"""Model files of toys, for the tests of this folder."""

import numpy as np
import toy

from msgd.inference.model_file import ModelFile, ground_and_ink


def model_of(dataset, settings, float_x=np.float32, noise=0.1):
    """Return a ModelFile of ``dataset`` with random parameters."""
    return ModelFile(
        parameters=toy.random_parameters(dataset, settings, float_x, noise),
        settings=settings,
        float_x=float_x,
        image_shape=dataset.image_shape,
        n_classes=dataset.n_classes,
        pixels={
            "dtype": dataset.train_x.dtype.name,
            "scale": dataset.pixel_scale,
            **ground_and_ink(dataset),
        },
        is_mnist=dataset.is_mnist,
        origin={"run": "toy/default"},
    )
