"""From a file to six arrays: checked, and stored as .npy files for training.

x is stored as uint8 (the byte k stands for the pixel k/256) when every pixel is k/256, which is so
for MNIST, and as floatX otherwise; y is stored as int32.
"""

import hashlib
import json
import logging
import math
from pathlib import Path

import numpy as np

from msgd.data.dataset import ARRAY_NAMES, BYTE_SCALE, SPLITS
from msgd.data.download import load_sources
from msgd.data.readers import read_triple
from msgd.errors import UserError
from msgd.files import atomic_path, sha256_of_file, write_json

log = logging.getLogger(__name__)


def unpickle(path, folder, float_x, expect_mnist=False):
    """Read the data set at ``path``, check it, and write six .npy files and dataset.json.

    ``float_x``: "float32" or "float64", the dtype of pixels that are no bytes. With
    ``expect_mnist`` the arrays must be the published ones, bit for bit. Raises UserError, naming
    the file and the finding, before anything is written.
    """
    triple = read_triple(path)
    pairs = {split: _check_pair(path, split, *triple[split]) for split in SPLITS}
    n_classes = _check_classes(path, {split: y for split, (_, y) in pairs.items()})
    image_shape = _check_image_shape(path, {split: triple[split][0] for split in SPLITS})
    as_bytes = {split: _bytes_of_pixels(x) for split, (x, _) in pairs.items()}
    all_bytes = all(x is not None for x in as_bytes.values())
    arrays = {}
    for split, (x, y) in pairs.items():
        arrays[f"{split}_x"] = (
            as_bytes[split] if all_bytes else _float_pixels(path, split, x, float_x)
        )
        arrays[f"{split}_y"] = y
    foreign = _arrays_other_than_mnist(arrays)
    if expect_mnist and foreign:
        raise UserError(
            f"{path}: {', '.join(foreign)} differ from MNIST as published; delete the file and run "
            "again to fetch it anew, or name it as `dataset` if it is data of your own"
        )

    folder = Path(folder)
    for name, array in arrays.items():
        with atomic_path(folder / f"{name}.npy") as temporary:
            np.save(temporary, array)
    summary = {
        "source": str(path),
        "is_mnist": not foreign,
        "image_shape": list(image_shape),
        "n_classes": n_classes,
        "examples": {split: len(arrays[f"{split}_y"]) for split in SPLITS},
        "pixels": "uint8, k stands for k/256" if all_bytes else float_x,
        "sha256": {name: sha256_of_file(folder / f"{name}.npy") for name in ARRAY_NAMES},
    }
    write_json(folder / "dataset.json", summary)
    log.info("%s: %s", path, json.dumps({k: summary[k] for k in ("examples", "n_classes")}))


def count_training_examples(dataset):
    """Return the number of training examples of config key ``dataset``, before any job has run.

    MNIST's is known; your own file is read. Raises UserError if it cannot be.
    """
    if dataset == "mnist":
        return 50_000
    if set(dataset) & set("{}"):
        raise UserError(f"dataset is {dataset!r}; allowed: a path without the characters {{ and }}")
    x, _ = _check_pair(dataset, "train", *read_triple(dataset)["train"])
    return len(x)


def _check_pair(path, split, x, y):
    """Return (x, y) as an (N, D) array of numbers and an (N,) int32 array."""
    for array, name in ((x, "images"), (y, "labels")):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            raise UserError(f"{path}: the {split} {name} are not an array of numbers")
    if x.ndim < 2 or len(x) == 0 or x[0].size == 0:
        raise UserError(f"{path}: the {split} images have shape {x.shape}; expected (N, D)")
    if y.shape != (len(x),):
        raise UserError(
            f"{path}: {split} has {len(x)} images but labels of shape {y.shape}; "
            f"expected ({len(x)},)"
        )
    if x.dtype.kind != "f" and (x.min() < 0 or x.max() >= BYTE_SCALE):
        raise UserError(
            f"{path}: the {split} images are whole numbers from {x.min()} to {x.max()}; "
            "whole numbers are bytes, 0 to 255, and k stands for the pixel k/256"
        )
    _check_finite(path, f"{split} images", x)
    _check_finite(path, f"{split} labels", y)
    labels = y.astype(np.int64)
    if (labels != y).any() or labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
        row = int(np.flatnonzero((labels != y) | (labels < 0) | (labels >= 2**31))[0])
        raise UserError(
            f"{path}: {split} label {y[row]} at index {row} is out of range; "
            "labels count from 0 in whole numbers"
        )
    return np.ascontiguousarray(x.reshape(len(x), -1)), labels.astype(np.int32)


def _check_finite(path, name, array):
    finite = np.isfinite(array)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise UserError(f"{path}: the {name} hold {array[where]} at index {where}")


def _check_classes(path, labels):
    """Return C; every class 0..C-1 must occur in training, every other label be one of them."""
    n_classes = int(labels["train"].max()) + 1
    present = np.unique(labels["train"])
    if len(present) != n_classes:
        before = np.concatenate([[-1], present])
        absent = before[np.flatnonzero(np.diff(before) > 1)[0]] + 1
        raise UserError(
            f"{path}: label {n_classes - 1} in train is out of range: labels count the classes "
            f"0, 1, 2, ... without gaps, and no training example has label {absent}"
        )
    if n_classes < 2:
        raise UserError(f"{path}: every training label is 0; a classifier needs two classes")
    for split, y in labels.items():
        if y.max() >= n_classes:
            row = int(np.flatnonzero(y >= n_classes)[0])
            raise UserError(
                f"{path}: {split} label {y[row]} at index {row} is out of range; "
                f"the training labels are 0 to {n_classes - 1}"
            )
    return n_classes


def _check_image_shape(path, images):
    """Return (height, width); every split must hold images of the same shape."""
    shapes = {x.shape[1:] for x in images.values()}
    if len(shapes) != 1:
        raise UserError(f"{path}: images of different shapes: {sorted(shapes)}")
    (shape,) = shapes
    if len(shape) == 2:
        return shape
    n_features = math.prod(shape)
    side = math.isqrt(n_features)
    return (side, side) if side * side == n_features else (1, n_features)


def _bytes_of_pixels(x):
    """Return x as uint8 if every pixel is k/256 (or x holds whole numbers, bytes), else None."""
    if x.dtype.kind != "f":
        return x.astype(np.uint8)
    scaled = x * x.dtype.type(BYTE_SCALE)
    if scaled.min() < 0 or scaled.max() > BYTE_SCALE - 1:
        return None
    as_bytes = scaled.astype(np.uint8)
    return as_bytes if np.array_equal(as_bytes, scaled) else None


def _float_pixels(path, split, x, float_x):
    """Return the pixels as floats, bytes k as k/256; UserError if floatX cannot hold them."""
    with np.errstate(over="ignore"):
        pixels = x.astype(float_x)
    if x.dtype.kind != "f":
        pixels /= BYTE_SCALE
    _check_finite(path, f"{split} images, as {float_x},", pixels)
    return pixels


def _arrays_other_than_mnist(arrays):
    """Return the names of the arrays that are not, bit for bit, those the tutorials train on."""
    foreign = []
    for name, expected in load_sources()["arrays"].items():
        array = arrays[name]
        if array.dtype == np.uint8:
            published = array.astype("<f4") / np.float32(BYTE_SCALE)
        else:
            published = array.astype("<i8")
        if hashlib.sha256(np.ascontiguousarray(published)).hexdigest() != expected:
            foreign.append(name)
    return foreign
