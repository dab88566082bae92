"""Readers of the three formats: pickle, npz, a folder of IDX files. Nothing is checked yet.

Each returns the splits of a data set, a dict ``{"train": (x, y), "valid": (x, y), "test": (x, y)}``
of what the file holds, which should be arrays: x of shape (N, D), (N, height, width) or with
further axes, y of shape (N,). "valid" is missing where the file has no validation part.
"""

import difflib
import gzip
import logging
import math
import re
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from msgd.data.dataset import SPLITS
from msgd.data.kinds import IDX_TYPES, is_idx, sniff
from msgd.data.safe_pickle import LimitedReader, load_arrays
from msgd.errors import UserError
from msgd.files import expand_home

log = logging.getLogger(__name__)

# Real data of the kind read here unpacks to some 13 times its size (MNIST), deflate's worst case
# is 1032: what lies far beyond data is taken for a bomb, unless it is too small to do harm.
MAX_EXPANSION = 200
HARMLESS_BYTES = 256 * 2**20

DAMAGE = (EOFError, OSError, ValueError, zlib.error)  # what a damaged file raises when read

KINDS = "a .pkl or .pkl.gz file, a .npz file, or a folder of IDX files"


def read_splits(path):
    """Read the data set at ``path``: a pickle, packed by gzip or not, a .npz, or an IDX folder.

    The first bytes decide what a file is, and its name only where they do not. Raises UserError,
    naming the file and the finding, if it is not what it should be.
    """
    path = Path(expand_home(path))
    if not path.exists():
        raise UserError(_not_found(path))
    if path.is_dir():
        return _read_idx_folder(path)
    if not path.is_file():
        raise UserError(f"{path} is neither a file nor a folder")
    found = sniff(path)
    if found.kind == "idx":
        raise UserError(f"{path} is one IDX file; name the folder that holds all of them")
    if found.kind == "pickle":
        return _read_pickle(path)
    if found.kind == "zip" or path.suffix == ".npz":
        return _read_npz(path)
    if {".pkl", ".pickle"} & set(path.suffixes):
        return _read_pickle(path)
    raise UserError(
        f"{path}: not a known kind of data set, it begins {found.head[:20]!r}; allowed: {KINDS}"
    )


def _not_found(path):
    """Return the words for a path that does not exist: where it was sought, and what is there."""
    folder = path.absolute().parent
    text = f"the data set {path} does not exist; it was sought in {folder}"
    if path.is_symlink():
        return f"{text}, where a link of that name leads nowhere"
    if not folder.is_dir():
        return f"{text}, which is no folder"
    close = difflib.get_close_matches(path.name, [p.name for p in folder.iterdir()], n=1)
    return f"{text} (did you mean {close[0]}?)" if close else text


def expansion_limit(path):
    """Return how many bytes ``path`` may unpack to before it is taken for a bomb."""
    return max(HARMLESS_BYTES, MAX_EXPANSION * Path(path).stat().st_size)


def _open_limited(path, files):
    """Open ``path``, unpacking a gzip, as a LimitedReader that the ExitStack ``files`` closes."""
    opener = gzip.open if sniff(path).packed else open
    stream = files.enter_context(opener(path, "rb"))
    return LimitedReader(stream, expansion_limit(path), str(path))


def _read_pickle(path):
    with ExitStack() as files:
        content = load_arrays(lambda: _open_limited(path, files), str(path))
    if isinstance(content, dict):
        return _named_splits(path, content)
    is_triple = isinstance(content, tuple) and len(content) == len(SPLITS)
    if not is_triple or not all(isinstance(p, tuple) and len(p) == 2 for p in content):
        raise UserError(
            f"{path} does not hold three pairs, (train, valid, test) of (images, labels), "
            f"but {_description(content)}"
        )
    return dict(zip(SPLITS, content, strict=True))


def _description(content):
    """Return in a few words what a pickle holds in the place of three pairs."""
    if isinstance(content, np.ndarray):
        return f"one array of shape {content.shape}"
    if not isinstance(content, tuple):
        return f"a {type(content).__name__}"
    parts = [_part_description(part) for part in content[:4]]
    return f"{len(content)} entries" + (f" ({', '.join(parts)})" if len(content) <= 4 else "")


def _part_description(part):
    if isinstance(part, tuple):
        return "a pair" if len(part) == 2 else f"a tuple of {len(part)}"
    return "an array" if isinstance(part, np.ndarray) else f"a {type(part).__name__}"


def _read_npz(path):
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > expansion_limit(path):
            raise UserError(
                f"{path} unpacks to {unpacked:,} bytes, far beyond what its size suggests "
                "(a decompression bomb?); write it with numpy.savez, uncompressed"
            )
        if not any(member.filename.endswith(".npy") for member in members):
            names = _listed(member.filename for member in members)
            raise UserError(
                f"{path} is a zip archive but no .npz: it holds {names}; "
                "unpack it, and name what was in it"
            )
        with np.load(path, allow_pickle=False) as arrays:
            return _named_splits(path, arrays)
    except (*DAMAGE, zipfile.BadZipFile, RuntimeError, MemoryError, NotImplementedError) as error:
        hint = "; numpy.stack makes one array of a list" if "Object arrays" in str(error) else ""
        raise UserError(
            f"{path} is not a whole .npz file of numeric arrays: {error}{hint}"
        ) from error


# Names of arrays: a split and a part in either order, joined by _, in capitals or not. So the
# names of this package, of Keras (x_train) and of MedMNIST (train_images) are all understood.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation"),
    "test": ("test",),
}
PART_NAMES = {"x": ("x", "images"), "y": ("y", "labels")}
UNDERSTOOD = (
    "train_x, train_y, test_x, test_y and, optionally, valid_x, valid_y; also "
    "x_train, y_train, ... or train_images, train_labels, ..., and val for valid"
)


def _named_splits(path, arrays):
    """Return the splits out of ``arrays``, a mapping of names to arrays."""
    names = {
        f"{split}_{part}": _name_of(path, split, part, arrays)
        for split in SPLITS
        for part in PART_NAMES
    }
    without_valid = names["valid_x"] is None and names["valid_y"] is None
    splits = [split for split in SPLITS if not (split == "valid" and without_valid)]
    missing = [f"{s}_{p}" for s in splits for p in PART_NAMES if names[f"{s}_{p}"] is None]
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)}; it holds {_listed(arrays)}. "
            f"Understood: {UNDERSTOOD}"
        )
    return {split: tuple(arrays[names[f"{split}_{part}"]] for part in "xy") for split in splits}


def _name_of(path, split, part, arrays):
    """Return the one name among ``arrays`` that means ``part`` of ``split``, or None."""
    pairs = [(s, p) for s in SPLIT_NAMES[split] for p in PART_NAMES[part]]
    spellings = {f"{s}_{p}" for s, p in pairs} | {f"{p}_{s}" for s, p in pairs}
    found = [name for name in arrays if isinstance(name, str) and name.lower() in spellings]
    if len(found) > 1:
        raise UserError(
            f"{path} holds {' and '.join(found)}, which mean the same; leave only one of them there"
        )
    return found[0] if found else None


def _listed(names, at_most=12):
    names = [str(name) for name in names]
    more = [f"and {len(names) - at_most} more"] if len(names) > at_most else []
    return ", ".join(names[:at_most] + more) or "nothing"


# How the names of IDX files begin: the official t10k, and what is seen beside it.
_IDX_NAME = re.compile(
    r"(training|train|validation|valid|val|t10k|test).*?(images|labels)", re.IGNORECASE
)
_IDX_SPLITS = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation"),
    "test": ("t10k", "test"),
}


def _read_idx_folder(folder):
    """Return the splits of a folder of IDX files; without valid-* files, without "valid"."""
    files = {}  # (how the name begins, "images" or "labels") -> paths
    for path in sorted(folder.iterdir()):
        match = _IDX_NAME.match(path.name)
        if match and path.is_file():
            files.setdefault(tuple(group.lower() for group in match.groups()), []).append(path)
    splits = {}
    for split, prefixes in _IDX_SPLITS.items():
        present = [prefix for prefix in prefixes if any(key[0] == prefix for key in files)]
        if len(present) > 1:
            names = [path.name for key in files for path in files[key] if key[0] in present]
            raise UserError(
                f"{folder} holds {split} files under two names, {' and '.join(present)}: "
                f"{_listed(names)}; leave only one set of them there"
            )
        if split == "valid" and not present:
            continue
        prefix = present[0] if present else prefixes[0]
        splits[split] = tuple(
            _one_idx(folder, prefix, part, files.get((prefix, part), []))
            for part in ("images", "labels")
        )
    return splits


def _one_idx(folder, prefix, part, paths):
    """Return the array that every one of ``paths`` holds: a file may lie packed and unpacked."""
    if not paths:
        raise UserError(
            f"{folder} holds no file {prefix}-{part}...; expected are IDX files whose names begin "
            "train-images, train-labels, t10k-images, t10k-labels, and valid-images, valid-labels "
            f"where they are; it holds: {_listed(sorted(p.name for p in folder.iterdir()))}"
        )
    array = read_idx(paths[0])
    for other in paths[1:]:
        if not _same(array, read_idx(other)):
            raise UserError(
                f"{folder} holds {paths[0].name} and {other.name}, which differ; leave only the "
                "right one there"
            )
    if len(paths) > 1:
        names = " and ".join(path.name for path in paths)
        log.info("%s: %s hold the same array", folder, names)
    return array


def _same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def read_idx(path):
    """Return the array of one IDX file, gzipped or not; raises UserError if it is malformed."""
    try:
        with ExitStack() as files:
            reader = _open_limited(path, files)
            magic = reader.read(4)
            if not is_idx(magic):
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
