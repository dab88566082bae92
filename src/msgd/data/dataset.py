"""The six arrays that unpickle.py wrote, memory-mapped for training.

This module is among the source that shapes a training, unpickle.py and the readers are not: what
they do to a data set shows in its arrays. So nothing of theirs is imported here.
"""

import math
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msgd.errors import UserError, shown
from msgd.files import read_json, sha256_of_file

SPLITS = ("train", "valid", "test")
ARRAY_NAMES = tuple(f"{split}_{part}" for split in SPLITS for part in "xy")

# The one scale of the published data: pixel = byte / 256, so that white is 0.99609375, not 1.
BYTE_SCALE = 256

PIXEL_TYPES = (np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64))


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


ANEW = (
    "write the folder anew with msgd unpickle, in the workflow with "
    "snakemake --cores all --forcerun unpickle"
)


def _map_array(path):
    """Return the array of the .npy file ``path``, memory-mapped; UserError if it is damaged."""
    try:
        # A plain array over the map: Numba compiles for ndarray, not for its subclass memmap.
        with np.errstate(over="ignore"):  # of a header that lies
            return np.load(path, mmap_mode="r").view(np.ndarray)
    except OSError:
        raise
    except Exception as error:  # its header is Python's, and whatever parsing that may raise
        what = shown(" ".join(str(error).split()), 200)
        raise UserError(f"{path} is not a whole .npy file ({what})") from error


def _finding(dataset):
    """Return what of the arrays of a Dataset is not as it must be, or None."""
    if not (_is_count(dataset.n_classes, 2) and _is_image_shape(dataset.image_shape)):
        n_classes, shape = shown(dataset.n_classes), shown(repr(dataset.image_shape))
        return f"has n_classes {n_classes} and image_shape {shape}"
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
