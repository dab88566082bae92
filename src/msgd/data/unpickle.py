"""From a file to six arrays: checked, and stored as .npy files for training.

x is stored as uint8 (the byte k stands for the pixel k/256) when every pixel is k/256, which is so
for MNIST, and as floatX otherwise; y is stored as int32.
"""

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy_format

from msgd.data.content import file_state
from msgd.data.dataset import ARRAY_NAMES, BYTE_SCALE, SPLITS
from msgd.data.images import check_finite, progress, read_images
from msgd.data.pieces import StoredArray, whole
from msgd.data.pixels import (
    common_image_shape,
    picture_shape,
    shape_without_channels,
    storage_of_pixels,
)
from msgd.data.readers import read_splits
from msgd.data.sources import load_sources
from msgd.errors import UserError
from msgd.files import atomic_path, expand_home, sha256_of_file, write_json

log = logging.getLogger(__name__)

# The share of the training images that the tutorials validate on, the last ones, and that is split
# off where a data set has no validation part: a sixth, 10,000 of 60,000.
VALID_SHARE = 6

MNIST_EXAMPLES = {"train": 50_000, "valid": 10_000, "test": 10_000}
MNIST_SHAPE = (28, 28)


def unpickle(path, folder, float_x, expect_mnist=False):
    """Read the data set at ``path``, check it, and write six .npy files and dataset.json.

    ``float_x``: "float32" or "float64", the dtype of pixels that are no bytes. With
    ``expect_mnist`` the arrays must be the published ones, bit for bit. Images in a .npz or in IDX
    files are read in pieces, first to be checked, then to be written. Logs a warning where the
    scale of the pixels is ambiguous. Raises UserError, naming the file and the finding, before
    anything is written.
    """
    before = _states(path)
    splits = read_splits(path)
    pairs = {split: _check_pair(path, split, x, y) for split, (x, y) in splits.items()}
    is_split_off = "valid" not in pairs
    if is_split_off:
        pairs = _split_off_validation(path, pairs)
    images = {split: pairs[split][0] for split in SPLITS}
    labels = {split: pairs[split][1] for split in SPLITS}
    n_classes = _check_classes(path, labels, is_split_off)
    image_shape = common_image_shape(path, images)
    storage = storage_of_pixels(path, images, float_x)
    foreign = _arrays_other_than_mnist(images, labels, storage)
    if expect_mnist and foreign:
        raise UserError(
            f"{path}: {', '.join(foreign)} differ from MNIST as published; delete the file and run "
            "again to fetch it anew, or name it as `dataset` if it is data of your own"
        )

    folder = Path(folder)
    for split in SPLITS:
        _write_images(folder / f"{split}_x.npy", f"writing {split} images", images[split], storage)
        with atomic_path(folder / f"{split}_y.npy") as temporary:
            np.save(temporary, labels[split])
    if _states(path) != before:
        raise UserError(f"{path} was changed while it was read; run again")
    summary = {
        "source": str(path),
        "is_mnist": not foreign,
        "image_shape": list(image_shape),
        "n_classes": n_classes,
        "examples": {split: len(labels[split]) for split in SPLITS},
        "pixels": storage.meaning,
        "sha256": {name: sha256_of_file(folder / f"{name}.npy") for name in ARRAY_NAMES},
    }
    write_json(folder / "dataset.json", summary)
    logged = ("examples", "n_classes", "image_shape", "pixels")
    log.info("%s: %s", path, json.dumps({k: summary[k] for k in logged}))


def _states(path):
    """Return what tells whether the file ``path``, or a file in the folder, changed: a dict."""
    path = Path(expand_home(path))
    files = [path] if path.is_file() else path.glob("*")
    return {file: file_state(file) for file in files if file.is_file()}


def _write_images(path, title, images, storage):
    """Write ``images`` (Images) to the .npy file ``path`` as ``storage`` says, piece by piece."""
    header = {
        "descr": npy_format.dtype_to_descr(storage.dtype),
        "fortran_order": False,
        "shape": (len(images), images.n_features),
    }
    with (
        progress(title, len(images)) as bar,
        atomic_path(path) as temporary,
        temporary.open("wb") as stream,
    ):
        npy_format.write_array_header_1_0(stream, header)
        for rows in images.rows():
            storage.stored(rows).tofile(stream)
            bar.update(len(rows))


class Sizes(NamedTuple):
    """What is known of a data set before any job has run.

    n_train: training examples; image_shape: (height, width).
    """

    n_train: int
    image_shape: tuple[int, int]


def known_sizes(dataset):
    """Return the Sizes of config key ``dataset``, before any job has run.

    MNIST's are known; of your own data the headers are read, and no more. None for a pickle, which
    has no header: its sizes are known once it has been unpickled. Raises UserError if the data set
    cannot be read, as far as its headers tell.
    """
    if dataset == "mnist":
        return Sizes(MNIST_EXAMPLES["train"], MNIST_SHAPE)
    if set(dataset) & set("{}"):
        raise UserError(f"dataset is {dataset!r}; allowed: a path without the characters {{ and }}")
    splits = read_splits(dataset, headers_only=True)
    if splits is None:
        return None
    x, y = splits["train"]
    shape = picture_shape(_check_shapes(dataset, "train", x, y))
    n_split_off = 0 if "valid" in splits else len(x) // VALID_SHARE
    return Sizes(len(x) - n_split_off, shape)


def _check_pair(path, split, x, y):
    """Return x as Images, checked, and y as an (N,) int32 array."""
    shape = _check_shapes(path, split, x, y)
    y = whole(y).reshape(-1)
    images = read_images(path, split, x, shape)
    check_finite(path, f"{split} labels", y)
    with np.errstate(invalid="ignore"):  # floats beyond 64 bits
        labels = y.astype(np.int64)
    if (labels != y).any() or labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
        row = int(np.flatnonzero((labels != y) | (labels < 0) | (labels >= 2**31))[0])
        raise UserError(
            f"{path}: {split} label {y[row]} at index {row} is out of range; "
            "labels count from 0 in whole numbers"
        )
    return images, labels.astype(np.int32)


def _check_shapes(path, split, x, y):
    """Return the shape of an image of x, (D,) or (height, width); x must hold N, y N labels.

    What can be said of arrays before their numbers are read.
    """
    for array, name in ((x, "images"), (y, "labels")):
        if isinstance(array, (list, tuple)):
            what = "arrays of one shape" if name == "images" else "numbers"
            function = "stack" if name == "images" else "array"
            raise UserError(
                f"{path}: the {split} {name} are a list of {len(array):,}, not one array; "
                f"numpy.{function}({name}) makes one array of a list of {what}"
            )
        if not isinstance(array, (np.ndarray, StoredArray)) or array.dtype.kind not in "fiub":
            raise UserError(f"{path}: the {split} {name} are not an array of numbers")
    if x.ndim < 2 or 0 in x.shape:
        raise UserError(
            f"{path}: the {split} images have shape {x.shape}; "
            "expected (N, D) or (N, height, width), with N and the others at least 1"
        )
    shape = shape_without_channels(path, split, x)
    is_column = y.ndim == 2 and y.shape[1] == 1
    if y.ndim == 2 and not is_column and 0 not in y.shape:  # of which there may be any number
        _refuse_rows_of_labels(path, split, whole(y))
    labels_shape = y.shape[:1] if is_column else y.shape
    if labels_shape != (len(x),):
        raise UserError(
            f"{path}: {split} has {len(x)} images but labels of shape {labels_shape}; "
            f"expected ({len(x)},)"
        )
    return shape


def _refuse_rows_of_labels(path, split, y):
    """Raise UserError for labels (N, n), with a hint if they are one-hot."""
    is_one_hot = np.isin(y, (0, 1)).all() and (np.count_nonzero(y, axis=1) == 1).all()
    hint = (
        "they are one-hot, and numpy.argmax(labels, axis=1) makes class numbers of them"
        if is_one_hot
        else "one class number for each image is read, not several"
    )
    raise UserError(f"{path}: the {split} labels have shape {y.shape}; {hint}")


def _split_off_validation(path, pairs):
    """Return ``pairs`` with the last sixth of the training examples taken away as "valid"."""
    images, labels = pairs["train"]
    n_valid = len(images) // VALID_SHARE
    if n_valid == 0:
        raise UserError(
            f"{path} has no validation part, and {len(images)} training images are too few to "
            f"split off one in {VALID_SHARE}"
        )
    n_train = len(images) - n_valid
    log.info(
        "%s has no validation part: the last %d of %d training images are split off for it",
        *(path, n_valid, len(images)),
    )
    parts = {"train": (0, n_train), "valid": (n_train, len(images))}
    split_off = {
        split: (images.part(start, stop), labels[start:stop])
        for split, (start, stop) in parts.items()
    }
    return {**pairs, **split_off}


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


def _arrays_other_than_mnist(images, labels, storage):
    """Return the names of the arrays that are not, bit for bit, those the tutorials train on."""
    foreign = []
    for name, sha256 in load_sources()["arrays"].items():
        split, part = name.split("_")
        if part == "x":
            is_published = _are_mnist(images[split], split, storage, sha256)
        else:
            is_published = hashlib.sha256(labels[split].astype("<i8")).hexdigest() == sha256
        if not is_published:
            foreign.append(name)
    return foreign


def _are_mnist(images, split, storage, sha256):
    """Return whether ``images`` are MNIST's ``split``, whose published floats have ``sha256``."""
    is_size = (len(images), images.n_features) == (MNIST_EXAMPLES[split], math.prod(MNIST_SHAPE))
    if not is_size or storage.dtype != np.uint8:
        return False
    digest = hashlib.sha256()
    for rows in images.rows():
        digest.update(storage.stored(rows).astype("<f4") / np.float32(BYTE_SCALE))
    return digest.hexdigest() == sha256
