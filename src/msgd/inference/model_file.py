"""One file that holds a trained model and says what it is: parameters, and a description as JSON.

A model file is an .npz archive of plain arrays. All but one are the parameters, in the order of the
layers; ``description`` is a text (an array without axes, NumPy's unicode), JSON with the keys

- ``format``, ``format_version``: FORMAT and VERSION
- ``model``, ``settings``: name and completed hyperparameters, by which the formulas are chosen
- ``floatX``: the type that the parameters have and the kernels compute in
- ``image_shape``, ``n_classes``: height and width; classes count from 0
- ``pixels``: ``dtype`` of a stored pixel; ``scale``, what it is multiplied by before the first
  layer; ``background`` and ``ink``, the stored values of an image's ground and of what stands on it
- ``is_mnist``: whether the data were MNIST as published, whose digits have a known size and place
- ``origin``: where it comes from: ``run``, the ``data``'s hashes, the ``code``

NumPy alone reads it, with allow_pickle=False.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msgd.config import complete_experiment
from msgd.data.dataset import PIXEL_TYPES
from msgd.data.readers import check_npz
from msgd.errors import UserError, shown
from msgd.evaluation.opened_run import FLOATS
from msgd.models.interface import check_parameters, expected_arrays
from msgd.network_size import check_held
from msgd.training.snapshots import load_arrays, save_parameters

FORMAT = "msgd model"
VERSION = 1
DESCRIPTION = "description"

LARGEST_PIXEL = 1e38  # of float32

SAMPLE = 10_000  # training images by which ground and ink are found


@dataclass(frozen=True)
class ModelFile:
    """What a model file holds, checked.

    parameters: dict of name -> floatX array, in the model's order; settings: completed
    hyperparameters; pixels, origin: as the module describes them.
    """

    parameters: dict[str, np.ndarray]
    settings: dict
    float_x: type
    image_shape: tuple[int, int]
    n_classes: int
    pixels: dict
    is_mnist: bool
    origin: dict

    @property
    def model(self):
        """The model's name."""
        return self.settings["model"]

    @property
    def n_features(self):
        """D, the number of pixels of an image."""
        return math.prod(self.image_shape)

    @property
    def pixel_type(self):
        """The dtype of a stored pixel: uint8 or floatX."""
        return np.dtype(self.pixels["dtype"])

    def probabilities(self, images):
        """Return P(Y | x) of every image, (N, C) float64; images: (N, D) stored pixels.

        By the formulas of the model's room, in float64.
        """
        from msgd.models import load_model

        pixels = images.astype(np.float64) * self.pixels["scale"]
        formulas = load_model(self.model).probabilities
        return formulas(self.parameters, pixels, self.settings, self.image_shape)


def save_model(path, run, parameters, name):
    """Write the model file ``path``: ``parameters`` of ``run`` (OpenedRun with its dataset).

    name: of the run, for the origin. Equal arguments give equal bytes.
    """
    dataset = run.dataset
    description = {
        "format": FORMAT,
        "format_version": VERSION,
        "model": run.settings["model"],
        "settings": run.settings,
        "floatX": np.dtype(run.float_x).name,
        "image_shape": [*dataset.image_shape],
        "n_classes": dataset.n_classes,
        "pixels": {
            "dtype": dataset.train_x.dtype.name,
            "scale": dataset.pixel_scale,
            **ground_and_ink(dataset),
        },
        "is_mnist": dataset.is_mnist,
        "origin": {"run": name, "data": run.record["data"], "code": run.record.get("code")},
    }
    text = np.array(json.dumps(description, indent=2))
    save_parameters(path, {**parameters, DESCRIPTION: text})


def ground_and_ink(dataset):
    """Return the stored values of ``background`` and ``ink`` (dict), by the training images.

    They are the smallest and the largest pixel, and the ground is the one to which the edges of the
    images are nearer.
    """
    images = dataset.train_x[:SAMPLE].reshape(-1, *dataset.image_shape)
    low, high = images.min().item(), images.max().item()
    edges = (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])
    edge = np.median(np.concatenate([pixels.ravel() for pixels in edges]))
    is_dark = edge <= (low + high) / 2
    return {"background": low, "ink": high} if is_dark else {"background": high, "ink": low}


def load_model_file(path):
    """Return the ModelFile at ``path``.

    Raises UserError if it is missing or damaged, if it holds no description, as a run's
    best_parameters.npz and files of earlier versions do, or if parameters and settings do not fit.
    """
    path = Path(path)
    if not path.is_file():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise UserError(
            f"{path} is missing{where}; snakemake makes results/best_model.npz where it runs, and "
            "--model names a model file that lies elsewhere"
        )
    check_npz(path)
    arrays = load_arrays(path)
    if DESCRIPTION not in arrays:
        raise UserError(
            f"{path} does not say what model it holds; msgd select writes a file that does"
        )
    text, fault = str(arrays.pop(DESCRIPTION)), "it does not fit its description"
    try:
        model = _described(json.loads(text), arrays)
        check_held(arrays, model.settings, model, fault)  # before any memory is taken by its word
        check_parameters(arrays, expected_arrays(model, model.settings, model.float_x), fault)
        _check_finite(arrays)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        what = shown(f"{type(error).__name__}: {error}")
        raise UserError(f"{path} is damaged: its description is not msgd's ({what})") from error
    except UserError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    return model


def _check_finite(parameters):
    for name, array in parameters.items():
        if not np.isfinite(array).all():
            raise UserError(f"{name} holds numbers that are not finite")


def _described(description, parameters):
    """Return the ModelFile of a description (dict) and ``parameters`` (dict of arrays)."""
    if description["format"] != FORMAT:
        raise UserError("it is no model file of msgd")
    version = description["format_version"]
    if version != VERSION:
        raise UserError(
            f"it is a model file of version {shown(version)}; this msgd reads {VERSION}"
        )
    height, width = description["image_shape"]
    if not isinstance(description["origin"]["run"], str):
        raise ValueError("its origin is no run")
    return ModelFile(
        parameters=parameters,
        settings=complete_experiment(description["settings"]),
        float_x=FLOATS[description["floatX"]],
        image_shape=(_count(height, 1), _count(width, 1)),
        n_classes=_count(description["n_classes"], 2),
        pixels=_pixels(description["pixels"]),
        is_mnist=bool(description["is_mnist"]),
        origin=description["origin"],
    )


def _count(value, smallest):
    if type(value) is not int or value < smallest:
        raise ValueError(f"{shown(value)} is no number of at least {smallest}")
    return value


def _pixels(found):
    """Return the description of pixels (dict), checked."""
    pixels = {key: found[key] for key in ("dtype", "scale", "background", "ink")}
    if pixels["dtype"] not in [dtype.name for dtype in PIXEL_TYPES]:
        raise ValueError(f"pixels of {shown(pixels['dtype'])}")
    for key in ("scale", "background", "ink"):
        if type(pixels[key]) not in (int, float) or not abs(pixels[key]) < LARGEST_PIXEL:
            raise ValueError(f"{key} is {shown(pixels[key])}")
    return pixels
