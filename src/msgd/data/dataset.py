"""The six arrays: checked, stored as .npy files, memory-mapped by training.

x is stored as uint8 (the byte k stands for the pixel k/256) when every pixel is k/256, which is so
for MNIST, and as floatX otherwise; y is stored as int32.
"""

import hashlib
import json
import logging
import math
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msgd.data.download import load_sources
from msgd.data.readers import SPLITS, read_triple
from msgd.errors import UserError
from msgd.files import atomic_path, read_json, sha256_of_file, write_json

log = logging.getLogger(__name__)

# The one scale of the published data: pixel = byte / 256, so that white is 0.99609375, not 1.
BYTE_SCALE = 256

PIXEL_TYPES = (np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64))

ARRAY_NAMES = tuple(f"{split}_{part}" for split in SPLITS for part in "xy")


@dataclass(frozen=True)
class Dataset:
    """Six arrays as they lie on disk, the tutorials' shared variables before their upload.

    train_x, valid_x, test_x: (N, D) uint8 or floatX; train_y, valid_y, test_y: (N,) int32, counted
    from 0 to n_classes - 1. folder: where they lie. All in C order: kernels trust what stands here.
    Raises UserError if an array is anything else.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    valid_x: np.ndarray
    valid_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    n_classes: int
    image_shape: tuple[int, int]
    is_mnist: bool
    sha256: dict[str, str]
    folder: Path

    def __post_init__(self):
        if finding := _finding(self):
            raise UserError(f"{self.folder or 'the data set'} {finding}")

    @property
    def n_features(self):
        """D, the number of pixels of an image."""
        return self.train_x.shape[1]

    @property
    def pixel_scale(self):
        """What a stored pixel is multiplied by: 1/256 for bytes, 1 for floats."""
        return 1 / BYTE_SCALE if self.train_x.dtype == np.uint8 else 1.0

    def split(self, name):
        """Return (x, y) of the split "train", "valid" or "test"."""
        return getattr(self, f"{name}_x"), getattr(self, f"{name}_y")

    def release_pages(self, split):
        """Give the memory of a split's images back; they stay on disk and are read again."""
        x, _ = self.split(split)
        if isinstance(x.base, np.memmap):
            x.base._mmap.madvise(mmap.MADV_DONTNEED)

    def images(self, split, rows):
        """Return images ``rows`` of a split as float64 pixels, shape (len(rows), D)."""
        x, _ = self.split(split)
        return x[rows].astype(np.float64) * self.pixel_scale


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


def load_dataset(folder):
    """Return the Dataset that unpickle wrote to ``folder``, memory-mapped and read-only.

    Raises UserError, naming the folder and what differs, if an array cannot be read or is not what
    dataset.json says. Of the images the sizes and the type are compared, of the labels the hash.
    """
    folder = Path(folder)
    summary = read_json(folder / "dataset.json")
    try:
        dataset = Dataset(
            **{name: _map_array(folder / f"{name}.npy") for name in ARRAY_NAMES},
            n_classes=summary["n_classes"],
            image_shape=tuple(summary["image_shape"]),
            is_mnist=summary["is_mnist"],
            sha256=summary["sha256"],
            folder=folder,
        )
        finding = _finding_beside(dataset, summary)
    except UserError as error:
        raise UserError(f"{error}; {ANEW}") from error
    except (KeyError, TypeError, AttributeError) as error:
        finding = f"dataset.json is not one of msgd's ({type(error).__name__}: {error})"
    if finding:
        raise UserError(f"{folder}: {finding}; {ANEW}")
    return dataset


ANEW = "write the folder anew with msgd unpickle"


def _map_array(path):
    """Return the array of the .npy file ``path``, memory-mapped; UserError if it is damaged."""
    try:
        # A plain array over the map: Numba compiles for ndarray, not for its subclass memmap.
        return np.load(path, mmap_mode="r").view(np.ndarray)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is not a whole .npy file ({error})") from error


def _finding(dataset):
    """Return what of the arrays of a Dataset is not as it must be, or None."""
    if not (_is_count(dataset.n_classes, 2) and _is_image_shape(dataset.image_shape)):
        return f"has n_classes {dataset.n_classes} and image_shape {dataset.image_shape}"
    n_features = math.prod(dataset.image_shape)
    pixels = dataset.train_x.dtype
    if pixels not in PIXEL_TYPES:
        return f"has images of type {pixels}; allowed: {', '.join(map(str, PIXEL_TYPES))}"
    for split in SPLITS:
        x, y = dataset.split(split)
        n = len(y) if y.ndim else 0
        for name, array, shape, dtype in (
            (f"{split}_x", x, (n, n_features), pixels),
            (f"{split}_y", y, (n,), np.dtype(np.int32)),
        ):
            if array.shape != shape or array.dtype != dtype or n == 0:
                return f"has a {name} of {array.shape} {array.dtype}; expected: {shape} {dtype}"
            if not array.flags.c_contiguous:
                return f"has a {name} that is not in C order"
        if y.min() < 0 or y.max() >= dataset.n_classes:
            labels = f"labels {y.min()} to {y.max()}"
            return f"has {labels} in {split}_y, and {dataset.n_classes} classes"
    return None


def _finding_beside(dataset, summary):
    """Return what of a Dataset read from a folder is not as its dataset.json says, or None."""
    n_classes = int(dataset.train_y.max()) + 1
    if dataset.n_classes != n_classes:
        return f"dataset.json says {dataset.n_classes} classes, train_y has {n_classes}"
    for split in SPLITS:
        x, y = dataset.split(split)
        if summary["examples"][split] != len(y):
            return f"dataset.json says {summary['examples'][split]} {split} examples, not {len(y)}"
        if not summary["pixels"].startswith(x.dtype.name):
            return f"dataset.json says pixels of {summary['pixels']}, {split}_x has {x.dtype}"
        if summary["sha256"][f"{split}_y"] != sha256_of_file(dataset.folder / f"{split}_y.npy"):
            return f"{split}_y.npy is not the file that dataset.json is of: its SHA-256 differs"
    return None


def _is_count(value, smallest):
    return isinstance(value, int) and value >= smallest


def _is_image_shape(shape):
    return len(shape) == 2 and all(_is_count(size, 1) for size in shape)


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
