"""Parameters on disk: .npz files of plain arrays, written atomically, and when to take one."""

import math
import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from msgd.errors import UserError
from msgd.files import atomic_path


def save_parameters(path, parameters):
    """Write ``parameters`` (dict of name -> array) to the .npz file ``path``.

    Equal parameters give equal bytes: the file holds no date.
    """
    with atomic_path(path) as temporary:
        np.savez(temporary, **parameters)


def load_parameters(path):
    """Return the parameters of the .npz file ``path``: dict of name -> array, in saved order.

    Raises UserError, as load_arrays does.
    """
    return load_arrays(path)


def load_arrays(path):
    """Return the arrays of the .npz file ``path`` by name; UserError if it is not whole."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: the run is not whole") from error
    except _NOT_WHOLE as error:
        if getattr(error, "filename", None):  # it cannot be opened, whatever it holds
            raise
        raise UserError(f"{path} is not a whole .npz file ({error})") from error


# Of a file that is cut, damaged or something else zipfile, zlib and NumPy have these; an OSError
# where it is to be read before its beginning.
_NOT_WHOLE = (ValueError, EOFError, BadZipFile, zlib.error, KeyError, AttributeError)
_NOT_WHOLE += (RuntimeError, OSError)


def is_due(validation):
    """Return whether a snapshot is taken at the ``validation``-th validation (from 1).

    At 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, ...: the powers of the square root of 2. Early steps change
    the most, and a thousand validations make twenty snapshots.
    """
    power = round(2 * math.log2(validation))
    return validation in {math.floor(2 ** (p / 2) + 0.5) for p in (power - 1, power, power + 1)}


def snapshot_path(folder, iteration):
    """Return the path of the snapshot taken after ``iteration`` minibatches (0: initial)."""
    return Path(folder) / f"iteration_{iteration:09d}.npz"


def list_snapshots(folder):
    """Return (iteration, path) of every snapshot in ``folder``, in order; others are left out."""
    paths = sorted(Path(folder).glob("iteration_*.npz"))
    numbers = [path.stem.removeprefix("iteration_") for path in paths]
    return [(int(n), path) for n, path in zip(numbers, paths, strict=True) if n.isdecimal()]
