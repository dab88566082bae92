"""What files hold, as one hash: content decides whether a data set is read again, never a date."""

import re
import time
from pathlib import Path

from msgd.data.dataset import ANEW
from msgd.errors import UserError
from msgd.files import read_json, sha256_of_file, sha256_of_hashes, write_json


def data_name(path):
    """Return the name of the data set in a file or folder: ``digits`` of ``digits.pkl.gz``."""
    name = re.sub(r"(\.(pkl|pickle|npz|gz))+$", "", Path(path).name, flags=re.IGNORECASE)
    return name.lstrip(".") or "data"


# A file changed less than so long ago may change again and keep its dates, where these are coarse.
COARSEST_DATE = 2e9  # nanoseconds


def sha256_of_files(paths, memory):
    """Return one SHA-256, 64 hexadecimal digits, of the names and contents of the files ``paths``.

    ``memory``: as in hashes_of_files.
    """
    hashes = hashes_of_files(paths, memory)
    return sha256_of_hashes({Path(name).name: sha256 for name, sha256 in hashes.items()})


def hashes_of_files(paths, memory):
    """Return {path as text: SHA-256} of the files ``paths``.

    ``memory``: JSON file that keeps the hashes of single files, so that gigabytes are read once. A
    hash is taken from there while the file's size, dates, inode and device are what they were: the
    dates are those of the last write and of the last change of any kind, which no program can set
    back. A memory that cannot be read or written only costs time.
    """
    known = _recall(memory)
    found = {str(path): _hash_of(Path(path), known) for path in paths}
    if any(known.get(name) != entry for name, entry in found.items()):
        _remember(memory, {**known, **found})
    return {name: entry["sha256"] for name, entry in found.items()}


def check_images(dataset, splits):
    """Raise UserError unless the images of ``splits`` are those that dataset.json is of.

    dataset: msgd.data.dataset.Dataset, read from a folder. For what reads images; all else was
    checked when the data set was loaded.
    """
    for split in splits:
        name = f"{split}_x"
        if sha256_of_file(dataset.folder / f"{name}.npy") != dataset.sha256.get(name):
            what = f"{name}.npy is not the file that dataset.json is of: its SHA-256 differs"
            raise UserError(f"{dataset.folder}: {what}; {ANEW}")


def _hash_of(path, known):
    """Return what is remembered of ``path`` (dict): what tells whether it changed, and its hash."""
    before = file_state(path)
    entry = known.get(str(path), {})
    if entry.get("state") == before:
        return entry
    sha256 = sha256_of_file(path)
    # A file that may be written still is hashed anew next time.
    is_old = time.time_ns() - path.stat().st_ctime_ns > COARSEST_DATE
    is_settled = is_old and file_state(path) == before
    return {"state": before if is_settled else None, "sha256": sha256}


def file_state(path):
    """Return what tells whether a file changed (list): size, two dates in ns, inode, device."""
    status = path.stat()
    return [
        *(status.st_size, status.st_mtime_ns, status.st_ctime_ns),
        *(status.st_ino, status.st_dev),
    ]


def _recall(memory):
    try:
        known = read_json(memory)
    except (OSError, UserError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {name: entry for name, entry in known.items() if isinstance(entry, dict)}


def _remember(memory, known):
    try:
        write_json(memory, known)
    except OSError:
        return
