"""Readers of the three formats: pickle, npz, a folder of IDX files. Nothing is checked yet.

Each returns the splits of a data set, a dict ``{"train": (x, y), "valid": (x, y), "test": (x, y)}``
of what the file holds, which should be arrays: x of shape (N, D), (N, height, width) or with
further axes, y of shape (N,). "valid" is missing where the file has no validation part. Arrays of
a .npz and of IDX files are StoredArrays: only their headers have been read.
"""

import difflib
import errno
import gzip
import logging
import re
import zipfile
import zlib
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format

from msgd.data.dataset import SPLITS
from msgd.data.kinds import IDX_TYPES, is_idx, sniff
from msgd.data.pieces import StoredArray, number_of_bytes
from msgd.data.safe_pickle import MAX_AXES, LimitedReader, load_arrays
from msgd.errors import UserError, shown
from msgd.files import expand_home

log = logging.getLogger(__name__)

# Real data of the kind read here unpacks to some 13 times its size (MNIST), deflate's worst case
# is 1032: what lies far beyond data is taken for a bomb, unless it is too small to do harm.
MAX_EXPANSION = 200
HARMLESS_BYTES = 256 * 2**20

DAMAGE = (EOFError, OSError, ValueError, zlib.error)  # what a damaged file raises when read

KINDS = "a .pkl or .pkl.gz file, a .npz file, or a folder of IDX files"


def read_splits(path, headers_only=False):
    """Return the splits of the data set at ``path``: a pickle, a .npz, or an IDX folder.

    The first bytes decide what a file is, and its name only where they do not. With headers_only
    no more is read, whatever the size of the data; for a pickle, which has no header, None is
    returned. Raises UserError, naming the file and the finding, if it is not what it should be.
    """
    path = Path(expand_home(path))
    try:
        path.stat()  # from Python 3.14 on, exists() no longer says why a path cannot be looked at
    except (OSError, ValueError) as error:  # of a zero byte in it: ValueError
        code = getattr(error, "errno", errno.ENOENT)
        if code in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise UserError(_not_found(path)) from error
        # A name that no file can have, say, or a folder that may not be entered.
        raise UserError(f"the data set {shown(str(path))}: {error.strerror}") from error
    if path.is_dir():
        return _read_idx_folder(path, headers_only)
    if not path.is_file():
        raise UserError(f"{path} is neither a file nor a folder")
    found = sniff(path)
    if found.kind == "idx":
        raise UserError(f"{path} is one IDX file; name the folder that holds all of them")
    if found.kind == "zip" or (found.kind is None and path.suffix == ".npz"):
        return _read_npz(path)
    if found.kind == "pickle" or {".pkl", ".pickle"} & set(path.suffixes):
        return None if headers_only else _read_pickle(path)
    raise UserError(
        f"{path}: not a known kind of data set, it begins {found.head[:20]!r}; allowed: {KINDS}"
    )


def _not_found(path):
    """Return the words for a path that does not exist: where it was sought, and what is there."""
    folder = path.absolute().parent
    name, where = (shown(str(one), 300) for one in (path, folder))
    text = f"the data set {name} does not exist; it was sought in {where}"
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
        names = _named_splits(path, list(content))
        return {split: tuple(content[name] for name in pair) for split, pair in names.items()}
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
    with _npz_damage_named(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_expansion(path, members)
        if not any(member.filename.endswith(".npy") for member in members):
            names = _listed(member.filename for member in members)
            raise UserError(
                f"{path} is a zip archive but no .npz: it holds {names}; "
                "unpack it, and name what was in it"
            )
        names = [member.filename.removesuffix(".npy") for member in members]
        member_of = dict(zip(names, members, strict=True))
        return {
            split: tuple(_npz_array(path, archive, member_of[name]) for name in pair)
            for split, pair in _named_splits(path, names).items()
        }


def check_npz(path):
    """Raise UserError unless the .npz file ``path`` is one of arrays that are as large as they say.

    For who lets NumPy read it whole: nothing takes memory that is not in the file.
    """
    with _npz_damage_named(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_expansion(path, members)
        for member in members:
            if not isinstance(_npz_array(path, archive, member), StoredArray):
                raise ValueError(f"{member.filename} is no array")


def _check_expansion(path, members):
    """Raise UserError if a zip's ``members`` unpack to far more than its size suggests."""
    unpacked = sum(member.file_size for member in members)
    if unpacked > expansion_limit(path):
        raise UserError(
            f"{path} unpacks to {unpacked:,} bytes, far beyond what its size suggests "
            "(a decompression bomb?); write it with numpy.savez, uncompressed"
        )


@contextmanager
def _npz_damage_named(path):
    """Turn what a damaged or foreign .npz makes NumPy and zipfile raise into a UserError."""
    try:
        yield
    except (*DAMAGE, zipfile.BadZipFile, RuntimeError, MemoryError, NotImplementedError) as error:
        hint = "; numpy.stack makes one array of a list" if "Object arrays" in str(error) else ""
        finding = shown(" ".join(str(error).split()), 200)
        raise UserError(
            f"{path} is not a whole .npz file of numeric arrays: {finding}{hint}"
        ) from error


def _npz_array(path, archive, member):
    """Return the array in ``member`` of the open ``archive``; bytes if it holds none."""
    with archive.open(member) as stream:
        magic = stream.read(len(npy_format.MAGIC_PREFIX))
        if magic != npy_format.MAGIC_PREFIX:
            return magic  # which is no array, as will be said
        stream.seek(0)
        shape, order, dtype = _npy_header(stream)
        size, present = number_of_bytes(shape, dtype), member.file_size - stream.tell()
    if size > present:
        raise ValueError(
            f"{member.filename} has {present} bytes of numbers, shape {shape} of {dtype} is {size}"
        )

    @contextmanager
    def open_data():
        with _npz_damage_named(path), zipfile.ZipFile(path) as again, again.open(member) as stream:
            _npy_header(stream)
            yield lambda count: _exactly(stream, count, member.filename)

    return StoredArray(shape, dtype, order, open_data)


def _npy_header(stream):
    """Read the header of a .npy file; return shape, order ("C" or "F") and dtype of the array."""
    version = npy_format.read_magic(stream)
    if version not in NPY_VERSIONS:
        raise ValueError(f"format version {version} of .npy, which is not known")
    try:
        shape, is_fortran, dtype = NPY_VERSIONS[version](stream)
    except Exception as error:  # the header is Python's, and whatever parsing that may raise
        raise ValueError(f"its header cannot be read: {error}") from error
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"an array of shape {shape}")
    return shape, "F" if is_fortran else "C", dtype


# Version 3 differs from 2 in the names of fields, which arrays of numbers do not have.
NPY_VERSIONS = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
    (3, 0): npy_format.read_array_header_2_0,
}


def _exactly(stream, count, name):
    """Return the next ``count`` bytes of ``stream``; ValueError if there are fewer."""
    data = stream.read(count)
    if len(data) != count:
        raise ValueError(f"{name} is truncated, {count} bytes expected, {len(data)} found")
    return data


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


def _named_splits(path, present):
    """Return which of the names ``present`` are meant: a dict of split -> (images, labels)."""
    names = {
        f"{split}_{part}": _name_of(path, split, part, present)
        for split in SPLITS
        for part in PART_NAMES
    }
    without_valid = names["valid_x"] is None and names["valid_y"] is None
    splits = [split for split in SPLITS if not (split == "valid" and without_valid)]
    missing = [f"{s}_{p}" for s in splits for p in PART_NAMES if names[f"{s}_{p}"] is None]
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)}; it holds {_listed(present)}. "
            f"Understood: {UNDERSTOOD}"
        )
    return {split: tuple(names[f"{split}_{part}"] for part in "xy") for split in splits}


def _name_of(path, split, part, present):
    """Return the one name among ``present`` that means ``part`` of ``split``, or None."""
    pairs = [(s, p) for s in SPLIT_NAMES[split] for p in PART_NAMES[part]]
    spellings = {f"{s}_{p}" for s, p in pairs} | {f"{p}_{s}" for s, p in pairs}
    found = [name for name in present if isinstance(name, str) and name.lower() in spellings]
    if len(found) > 1:
        raise UserError(
            f"{path} holds {' and '.join(found)}, which mean the same; leave only one of them there"
        )
    return found[0] if found else None


def _listed(names, at_most=12):
    names = [*names]
    more = [f"and {len(names) - at_most} more"] if len(names) > at_most else []
    return ", ".join([*map(shown, names[:at_most]), *more]) or "nothing"


# How the names of IDX files begin: the official t10k, and what is seen beside it.
_IDX_NAME = re.compile(
    r"(training|train|validation|valid|val|t10k|test).*?(images|labels)", re.IGNORECASE
)
_IDX_SPLITS = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation"),
    "test": ("t10k", "test"),
}


def _read_idx_folder(folder, headers_only):
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
            _one_idx(folder, prefix, part, files.get((prefix, part), []), headers_only)
            for part in ("images", "labels")
        )
    return splits


def _one_idx(folder, prefix, part, paths, headers_only):
    """Return the array that every one of ``paths`` holds: a file may lie packed and unpacked.

    With headers_only, whether they all hold it is seen from their headers alone.
    """
    if not paths:
        raise UserError(
            f"{folder} holds no file {prefix}-{part}...; expected are IDX files whose names begin "
            "train-images, train-labels, t10k-images, t10k-labels, and valid-images, valid-labels "
            f"where they are; it holds: {_listed(sorted(p.name for p in folder.iterdir()))}"
        )
    array = open_idx(paths[0])
    for other in paths[1:]:
        if not _same(array, open_idx(other), headers_only):
            raise UserError(
                f"{folder} holds {paths[0].name} and {other.name}, which differ; leave only the "
                "right one there"
            )
    if len(paths) > 1 and not headers_only:
        names = " and ".join(path.name for path in paths)
        log.info("%s: %s hold the same array", folder, names)
    return array


def _same(a, b, headers_only):
    """Return whether StoredArrays ``a`` and ``b`` are equal, byte for byte."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    is_empty = 0 in a.shape  # which has no pieces
    return (
        headers_only
        or is_empty
        or all(x.tobytes() == y.tobytes() for x, y in zip(a.pieces(), b.pieces(), strict=True))
    )


def open_idx(path):
    """Return the array of one IDX file, gzipped or not, as a StoredArray.

    Raises UserError if its header is malformed; reading the array does if the file is damaged.
    """
    with _idx_damage_named(path), ExitStack() as files:
        shape, dtype = _idx_header(path, _open_limited(path, files))
    size = number_of_bytes(shape, dtype)

    @contextmanager
    def open_data():
        with _idx_damage_named(path), ExitStack() as files:
            reader = _open_limited(path, files)
            _idx_header(path, reader)
            n_read = 0

            def read(count):
                nonlocal n_read
                data = reader.read(count)
                n_read += len(data)
                if len(data) != count:
                    raise UserError(
                        f"{path} is truncated: {n_read} of {size} bytes for shape {shape}"
                    )
                return data

            yield read
            reader.expect_end()

    return StoredArray(shape, dtype, "C", open_data)


def _idx_header(path, reader):
    """Read the header of an IDX file from a LimitedReader; return shape and dtype of its array."""
    magic = reader.read(4)
    if not is_idx(magic):
        raise UserError(f"{path} is not an IDX file of an array: it starts {magic.hex()}")
    dtype = np.dtype(IDX_TYPES[magic[2]])
    if magic[3] > MAX_AXES:
        raise UserError(f"{path} is an array of {magic[3]} axes; at most {MAX_AXES} are read")
    sizes = reader.read(4 * magic[3])
    if len(sizes) != 4 * magic[3]:
        raise UserError(f"{path} is truncated: it ends within its header")
    shape = tuple(np.frombuffer(sizes, ">u4").tolist())
    size = number_of_bytes(shape, dtype)
    reader.expect(size)
    return shape, dtype


@contextmanager
def _idx_damage_named(path):
    """Turn what a damaged IDX file makes its readers raise into a UserError."""
    try:
        yield
    except DAMAGE as error:
        raise UserError(f"{path} is not a whole IDX file: {error}") from error
