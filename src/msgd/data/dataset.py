"""The six arrays that unpickle.py wrote, memory-mapped for training.

This module is among the source that shapes a training, unpickle.py and the readers are not: what
they do to a data set shows in its arrays. So nothing of theirs is imported here.
"""

import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msgd.files import read_json

SPLITS = ("train", "valid", "test")
ARRAY_NAMES = tuple(f"{split}_{part}" for split in SPLITS for part in "xy")

# The one scale of the published data: pixel = byte / 256, so that white is 0.99609375, not 1.
BYTE_SCALE = 256


@dataclass(frozen=True)
class Dataset:
    """Six arrays as they lie on disk, the tutorials' shared variables before their upload.

    train_x, valid_x, test_x: (N, D) uint8 or floatX; train_y, valid_y, test_y: (N,) int32. folder:
    where they lie.
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
    """Return the Dataset that unpickle wrote to ``folder``, memory-mapped and read-only."""
    folder = Path(folder)
    summary = read_json(folder / "dataset.json")
    arrays = {}
    for name in ARRAY_NAMES:
        # A plain array over the map: Numba compiles for ndarray, not for its subclass memmap.
        arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray)
    return Dataset(
        **arrays,
        n_classes=summary["n_classes"],
        image_shape=tuple(summary["image_shape"]),
        is_mnist=summary["is_mnist"],
        sha256=summary["sha256"],
        folder=folder,
    )
