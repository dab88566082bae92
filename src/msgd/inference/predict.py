"""The classes of pictures, by a model file: what ``msgd predict`` prints and draws."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from msgd.data.dataset import Dataset
from msgd.errors import UserError, shown
from msgd.files import readable
from msgd.inference.pictures import read_grey, stored_image


class Prediction(NamedTuple):
    """What a model says of a picture.

    file: its path as text; picture: its brightness, (height, width) from 0 to 1; seen: the stored
    pixels that the model was given, of its image shape; probabilities: (C,) float64.
    """

    file: str
    picture: np.ndarray
    seen: np.ndarray
    predicted: int
    probabilities: np.ndarray


def predict_pictures(model, paths):
    """Return (predictions, faults) of the pictures ``paths`` by ``model``, a ModelFile.

    predictions: a Prediction of each picture that can be used; faults: a line for each that cannot,
    which names it.
    """
    files, pictures, seen, faults = [], [], [], []
    for path in paths:
        try:
            picture = read_grey(path)
            image = stored_image(picture, model)
        except UserError as error:
            faults.append(f"{shown(readable(str(path)), 300)}: {error}")
            continue
        files.append(readable(str(path)))
        pictures.append(picture)
        seen.append(image)
    if not files:
        return [], faults
    images = np.stack(seen).reshape(len(seen), -1)
    predicted = predict_classes(model, images)
    probabilities = model.probabilities(images)
    rows = zip(files, pictures, seen, map(int, predicted), probabilities, strict=True)
    return [Prediction(*row) for row in rows], faults


def predict_classes(model, images):
    """Return the class of every image, (N,) int32, by the model's CPU kernels on one thread.

    images: (N, D) stored pixels, of the model's pixel type.
    """
    from msgd.kernels.options import use_threads  # before Numba, whose settings it checks
    from msgd.models import load_backend

    use_threads(1)
    backend = load_backend(model.model, "cpu")(
        as_dataset(model, images),
        model.parameters,
        {**model.settings, "batch_size": 1},
        model.float_x,
    )
    return backend.predict("test")


def as_dataset(model, images):
    """Return the Dataset, in memory, whose test images are ``images`` (N, D); it has no labels."""
    images = np.ascontiguousarray(images)
    images.flags.writeable = False  # as those of files are: the compiled kernels are the same
    labels = np.zeros(len(images), np.int32)
    labels.flags.writeable = False
    return Dataset(
        *(images, labels) * 3,
        n_classes=model.n_classes,
        image_shape=model.image_shape,
        is_mnist=model.is_mnist,
        sha256={},
        folder=None,
    )


def as_json(predictions):
    """Return ``predictions`` as JSON text: a list of objects with file, class, probabilities."""
    rows = [
        {"file": one.file, "class": one.predicted, "probabilities": one.probabilities.tolist()}
        for one in predictions
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


MOST_COLUMNS = 12  # classes with a column each; of more the likeliest are shown
LIKELIEST = 5


def as_table(predictions):
    """Return ``predictions`` as a table in text: file, class, probabilities in percent."""
    from tabulate import tabulate

    rows = []
    for one in predictions:
        row = {"file": one.file, "class": one.predicted}
        if len(one.probabilities) <= MOST_COLUMNS:
            percent = {f"P({c})": f"{100 * p:.1f} %" for c, p in enumerate(one.probabilities)}
        else:
            order = np.argsort(-one.probabilities, kind="stable")[:LIKELIEST]
            words = (f"P({c}) = {100 * one.probabilities[c]:.1f} %" for c in order)
            percent = {"likeliest": ", ".join(words)}
        rows.append(row | percent)
    return tabulate(rows, headers="keys", stralign="right", disable_numparse=True) + "\n"


SHOWN_COLUMNS = 4


def draw_seen(model, predictions, path, dpi=110):
    """Draw every picture, and beside it what the network saw of it, to the PNG file ``path``."""
    import matplotlib.pyplot as plt

    from msgd.plots.style import picture, plain, save_figure

    n_columns = min(SHOWN_COLUMNS, len(predictions))
    n_rows = -(-len(predictions) // n_columns)
    figure, grid = plt.subplots(
        n_rows, 2 * n_columns, figsize=(3.3 * n_columns, 1.95 * n_rows), squeeze=False
    )
    scale = sorted((model.pixels["background"], model.pixels["ink"]))
    for axes in grid.flat:
        axes.set_axis_off()
    for one, left, right in zip(predictions, grid.flat[::2], grid.flat[1::2], strict=False):
        picture(left, one.picture, cmap="gray", vmin=0, vmax=1)
        picture(right, one.seen, cmap="gray", vmin=scale[0], vmax=scale[1])
        name = Path(one.file).name
        left.set_title(plain(name if len(name) < 24 else f"…{name[-22:]}"), fontsize=8)
        share = one.probabilities[one.predicted]
        right.set_title(f"{one.predicted}: {100 * share:.1f} %", fontsize=9)
    save_figure(figure, path, dpi)
