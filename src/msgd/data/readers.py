"""Readers of the three file formats: pickle, npz, IDX. Each returns a raw, unchecked triple.

A triple is a dict ``{"train": (x, y), "valid": (x, y), "test": (x, y)}`` of arrays as the file
holds them: x of shape (N, D), (N, height, width) or with further axes, y of shape (N,).
"""

import gzip
import math
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from msgd.data.dataset import SPLITS
from msgd.data.safe_pickle import LimitedReader, load_arrays
from msgd.errors import UserError

# Real data of the kind read here unpacks to some 13 times its size (MNIST), deflate's worst case
# is 1032: what lies far beyond data is taken for a bomb, unless it is too small to do harm.
MAX_EXPANSION = 200
HARMLESS_BYTES = 256 * 2**20

DAMAGE = (EOFError, OSError, ValueError, zlib.error)  # what a damaged file raises when read

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# The official MNIST names and the share of the training images that the tutorials validate on.
IDX_NAMES = {"train": "train", "valid": "valid", "test": "t10k"}
VALID_SHARE = 6  # the last sixth: 10,000 of 60,000


def read_triple(path):
    """Read the data set at ``path``: ``.pkl``, ``.pkl.gz``, ``.npz``, or a folder of IDX files.

    Raises UserError, naming the file and the finding, if it is not what it should be.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"the data set {path} does not exist")
    if path.is_dir():
        return _read_idx_folder(path)
    if path.name.endswith((".pkl", ".pkl.gz", ".pickle", ".pickle.gz")):
        return _read_pickle(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    raise UserError(f"{path}: not a known kind of data set; allowed: {KINDS}")


KINDS = "a .pkl or .pkl.gz file, a .npz file, or a folder of IDX files"


def expansion_limit(path):
    """Return how many bytes ``path`` may unpack to before it is taken for a bomb."""
    return max(HARMLESS_BYTES, MAX_EXPANSION * Path(path).stat().st_size)


def _open_limited(path, files):
    """Open ``path``, unpacking .gz, as a LimitedReader that the ExitStack ``files`` closes."""
    opener = gzip.open if path.suffix == ".gz" else open
    stream = files.enter_context(opener(path, "rb"))
    return LimitedReader(stream, expansion_limit(path), str(path))


def _read_pickle(path):
    with ExitStack() as files:
        content = load_arrays(lambda: _open_limited(path, files), str(path))
    is_triple = isinstance(content, tuple) and len(content) == len(SPLITS)
    if not is_triple or not all(isinstance(p, tuple) and len(p) == 2 for p in content):
        raise UserError(
            f"{path} does not hold three pairs: (train, valid, test) of (images, labels)"
        )
    return dict(zip(SPLITS, content, strict=True))


def _read_npz(path):
    names = [f"{split}_{part}" for split in SPLITS for part in "xy"]
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > expansion_limit(path):
                raise UserError(
                    f"{path} unpacks to {unpacked:,} bytes, far beyond what its size suggests "
                    "(a decompression bomb?); write it with numpy.savez, uncompressed"
                )
        with np.load(path, allow_pickle=False) as arrays:
            missing = sorted(set(names) - set(arrays.files))
            if missing:
                raise UserError(
                    f"{path} lacks {', '.join(missing)}; expected arrays: {', '.join(names)}"
                )
            return {split: (arrays[f"{split}_x"], arrays[f"{split}_y"]) for split in SPLITS}
    except (*DAMAGE, zipfile.BadZipFile, RuntimeError, MemoryError) as error:
        raise UserError(f"{path} is not a whole .npz file of numeric arrays: {error}") from error


def _read_idx_folder(folder):
    """Read train-, valid- and t10k- images and labels; without valid-, split it off train."""
    triple = {}
    for split, name in IDX_NAMES.items():
        if split == "valid" and not list(folder.glob("valid*images*")):
            continue
        triple[split] = tuple(
            read_idx(_one_file(folder, f"{name}*{part}*")) for part in ("images", "labels")
        )
    if "valid" not in triple:
        x, y = triple["train"]
        n_train = len(x) - len(x) // VALID_SHARE
        triple["train"], triple["valid"] = (x[:n_train], y[:n_train]), (x[n_train:], y[n_train:])
    return {split: triple[split] for split in SPLITS}


def _one_file(folder, pattern):
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise UserError(f"{folder} holds {len(files)} files named {pattern}; expected one")
    return files[0]


def read_idx(path):
    """Return the array of one IDX file, gzipped or not; raises UserError if it is malformed."""
    try:
        with ExitStack() as files:
            reader = _open_limited(path, files)
            magic = reader.read(4)
            is_idx = len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in IDX_TYPES
            if not is_idx or magic[3] == 0:
                raise UserError(f"{path} is not an IDX file of an array: it starts {magic.hex()}")
            dtype = np.dtype(IDX_TYPES[magic[2]])
            shape = tuple(np.frombuffer(reader.read(4 * magic[3]), ">u4").tolist())
            size = math.prod(shape) * dtype.itemsize
            data = reader.read(size)
            if len(shape) != magic[3] or len(data) != size:
                raise UserError(
                    f"{path} is truncated: {len(data)} of {size} bytes for shape {shape}"
                )
            reader.expect_end()
    except DAMAGE as error:
        raise UserError(f"{path} is not a whole IDX file: {error}") from error
    return np.frombuffer(data, dtype).reshape(shape)
