"""What a case of the corpus is, and the small data set that cases are made of."""

import io
from typing import NamedTuple

import numpy as np
from conftest import as_triple, make_dataset, save_npz

TOY = make_dataset(n_train=30, n_valid=12, n_test=9, shape=(4, 5), n_classes=3)
CANARY = "canary"  # the name of the file that exists only if a case was executed


class Case(NamedTuple):
    """A bad file or configuration.

    make: called with an empty folder, writes what is bad there and returns the words of the
    command that meets it, as a user would type them in that folder; says: what the one line of the
    error must hold, beside the name of what is bad; names: that name, where it is not the last word
    of the command.
    """

    name: str
    kind: str
    make: object
    says: str
    names: str | None = None


def data_set(name, kind, content, says, file="bad.pkl"):
    """Return the Case of a data set in the file ``file``, of the bytes ``content`` or what that
    function returns of the folder."""

    def make(folder):
        data = content(folder) if callable(content) else content
        (folder / file).write_bytes(data)
        return ["unpickle", "--output", "out", file]

    return Case(name, kind, make, says)


def npz_of_toy(**changes):
    """Return TOY's arrays as the bytes of a .npz file; changes: arrays in their place."""
    stream = io.BytesIO()
    save_npz(stream, as_triple(TOY))
    if changes:
        with np.load(io.BytesIO(stream.getvalue())) as arrays:
            named = {**arrays, **changes}
        stream = io.BytesIO()
        np.savez(stream, **named)
    return stream.getvalue()
