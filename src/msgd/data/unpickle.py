"""From a file to six arrays: checked, and stored as .npy files for training.

x is stored as uint8 (the byte k stands for the pixel k/256) when every pixel is k/256, which is so
for MNIST, and as floatX otherwise; y is stored as int32.
"""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np

from msgd.data.dataset import ARRAY_NAMES, BYTE_SCALE, SPLITS
from msgd.data.pixels import check_finite, common_image_shape, drop_channel_axis, pixels_to_store
from msgd.data.readers import read_splits
from msgd.data.sources import load_sources
from msgd.errors import UserError
from msgd.files import atomic_path, sha256_of_file, write_json

log = logging.getLogger(__name__)

# The share of the training images that the tutorials validate on, the last ones, and that is split
# off where a data set has no validation part: a sixth, 10,000 of 60,000.
VALID_SHARE = 6


def unpickle(path, folder, float_x, expect_mnist=False):
    """Read the data set at ``path``, check it, and write six .npy files and dataset.json.

    ``float_x``: "float32" or "float64", the dtype of pixels that are no bytes. With
    ``expect_mnist`` the arrays must be the published ones, bit for bit. Logs a warning where the
    scale of the pixels is ambiguous. Raises UserError, naming the file and the finding, before
    anything is written.
    """
    splits = read_splits(path)
    pairs = {split: _check_pair(path, split, x, y) for split, (x, y) in splits.items()}
    is_split_off = "valid" not in pairs
    if is_split_off:
        pairs = _split_off_validation(path, pairs)
    n_classes = _check_classes(path, {s: pairs[s][1] for s in SPLITS}, is_split_off)
    image_shape = common_image_shape(path, {s: pairs[s][0] for s in SPLITS})
    rows = {s: _rows(pairs[s][0]) for s in SPLITS}
    stored, meaning = pixels_to_store(path, rows, float_x)
    arrays = {}
    for split in SPLITS:
        arrays[f"{split}_x"] = stored[split]
        arrays[f"{split}_y"] = pairs[split][1]
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
        "pixels": meaning,
        "sha256": {name: sha256_of_file(folder / f"{name}.npy") for name in ARRAY_NAMES},
    }
    write_json(folder / "dataset.json", summary)
    told = ("examples", "n_classes", "image_shape", "pixels")
    log.info("%s: %s", path, json.dumps({k: summary[k] for k in told}))


def count_training_examples(dataset):
    """Return the number of training examples of config key ``dataset``, before any job has run.

    MNIST's is known; your own file is read. Raises UserError if it cannot be.
    """
    if dataset == "mnist":
        return 50_000
    if set(dataset) & set("{}"):
        raise UserError(f"dataset is {dataset!r}; allowed: a path without the characters {{ and }}")
    splits = read_splits(dataset)
    n = len(_check_pair(dataset, "train", *splits["train"])[0])
    return n if "valid" in splits else n - n // VALID_SHARE


def _check_pair(path, split, x, y):
    """Return x as an (N, D) or (N, height, width) array of numbers and y as an (N,) int32 array."""
    for array, name in ((x, "images"), (y, "labels")):
        if isinstance(array, (list, tuple)):
            what = "arrays of one shape" if name == "images" else "numbers"
            function = "stack" if name == "images" else "array"
            raise UserError(
                f"{path}: the {split} {name} are a list of {len(array):,}, not one array; "
                f"numpy.{function}({name}) makes one array of a list of {what}"
            )
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            raise UserError(f"{path}: the {split} {name} are not an array of numbers")
    if x.ndim < 2 or len(x) == 0 or x[0].size == 0:
        raise UserError(
            f"{path}: the {split} images have shape {x.shape}; "
            "expected (N, D) or (N, height, width), with N and the others at least 1"
        )
    x = drop_channel_axis(path, split, x)
    y = _flat_labels(path, split, y)
    if y.shape != (len(x),):
        raise UserError(
            f"{path}: {split} has {len(x)} images but labels of shape {y.shape}; "
            f"expected ({len(x)},)"
        )
    if x.dtype.kind in "iu" and (x.min() < 0 or x.max() >= BYTE_SCALE):
        raise UserError(
            f"{path}: the {split} images are whole numbers from {x.min()} to {x.max()}; "
            "whole numbers are bytes, 0 to 255, and k stands for the pixel k/256; "
            "store others as floats from 0 to 1, divided by their greatest possible value"
        )
    check_finite(path, f"{split} images", x)
    check_finite(path, f"{split} labels", y)
    with np.errstate(invalid="ignore"):  # floats beyond 64 bits
        labels = y.astype(np.int64)
    if (labels != y).any() or labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
        row = int(np.flatnonzero((labels != y) | (labels < 0) | (labels >= 2**31))[0])
        raise UserError(
            f"{path}: {split} label {y[row]} at index {row} is out of range; "
            "labels count from 0 in whole numbers"
        )
    return x, labels.astype(np.int32)


def _flat_labels(path, split, y):
    """Return labels (N, 1) as (N,), others as they are; refuse rows of several, with a hint."""
    if y.ndim != 2:
        return y
    if y.shape[1] == 1:
        return y[:, 0]
    is_one_hot = np.isin(y, (0, 1)).all() and (np.count_nonzero(y, axis=1) == 1).all()
    hint = (
        "they are one-hot, and numpy.argmax(labels, axis=1) makes class numbers of them"
        if is_one_hot
        else "one class number for each image is read, not several"
    )
    raise UserError(f"{path}: the {split} labels have shape {y.shape}; {hint}")


def _split_off_validation(path, pairs):
    """Return ``pairs`` with the last sixth of the training examples taken away as "valid"."""
    x, y = pairs["train"]
    n_valid = len(x) // VALID_SHARE
    if n_valid == 0:
        raise UserError(
            f"{path} has no validation part, and {len(x)} training images are too few to split off "
            f"one in {VALID_SHARE}"
        )
    n_train = len(x) - n_valid
    log.info(
        "%s has no validation part: the last %d of %d training images are split off for it",
        *(path, n_valid, len(x)),
    )
    train, valid = (x[:n_train], y[:n_train]), (x[n_train:], y[n_train:])
    return {**pairs, "train": train, "valid": valid}


def _rows(x):
    """Return images (N, D) or (N, height, width) as (N, D), each in one row in C order."""
    return np.ascontiguousarray(x.reshape(len(x), -1))


SORTED_HINT = (
    "; the file has no validation part, so the last sixth of its training images became it: "
    "if they are sorted by class, shuffle them first"
)


def _check_classes(path, labels, is_split_off):
    """Return C; every class 0..C-1 must occur in training, every other label be one of them.

    is_split_off: whether the validation set is the last sixth of the training images.
    """
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
                + (SORTED_HINT if split == "valid" and is_split_off else "")
            )
    return n_classes


def _arrays_other_than_mnist(arrays):
    """Return the names of the arrays that are not, bit for bit, those the tutorials train on."""
    foreign = []
    for name, expected in load_sources()["arrays"].items():
        array = arrays[name]
        if array.dtype == np.uint8:
            published = array.astype("<f4") / np.float32(BYTE_SCALE)
        elif array.dtype.kind == "i":
            published = array.astype("<i8")
        else:  # pixels that are no bytes
            foreign.append(name)
            continue
        if hashlib.sha256(np.ascontiguousarray(published)).hexdigest() != expected:
            foreign.append(name)
    return foreign
