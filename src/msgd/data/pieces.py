"""Arrays read piece by piece, so that a data set may be larger than the memory."""

import math

import numpy as np

PIECE_BYTES = 2**24  # what is read at a time; checks and conversions take a few times that


class StoredArray:
    """An array in a file: its header is known, its numbers are read each time they are asked for.

    shape (tuple) and dtype are what the header says; order is "C" or "F", as the numbers lie in
    the file. open_data: called for every reading, returns a context manager that gives a function
    read(count), which returns the next count bytes of the numbers; UserError if they are damaged.
    """

    def __init__(self, shape, dtype, order, open_data):
        self.shape, self.dtype, self.order = shape, dtype, order
        self._open_data = open_data

    @property
    def ndim(self):
        """The number of axes."""
        return len(self.shape)

    def __len__(self):
        return self.shape[0]

    def read(self):
        """Return the whole array, read-only."""
        with self._open_data() as read:
            data = read(number_of_bytes(self.shape, self.dtype))
        return np.frombuffer(data, self.dtype).reshape(self.shape, order=self.order)

    def pieces(self):
        """Yield the rows as function ``pieces`` does."""
        if self.order == "F":  # the numbers of a row are scattered over the file
            yield from pieces(self.read())
            return
        row = number_of_bytes(self.shape[1:], self.dtype)
        with self._open_data() as read:
            for start, stop in _spans(len(self), row):
                data = read((stop - start) * row)
                yield np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])


def pieces(array):
    """Yield the rows of ``array`` in order, in arrays (n, ...) of about PIECE_BYTES.

    array: (N, ...), a StoredArray or a NumPy array; its rows are not empty.
    """
    if isinstance(array, StoredArray):
        yield from array.pieces()
        return
    for start, stop in _spans(len(array), array[0].nbytes):
        yield array[start:stop]


def whole(array):
    """Return ``array``, a StoredArray or a NumPy array, as a NumPy array."""
    return array.read() if isinstance(array, StoredArray) else array


def number_of_bytes(shape, dtype):
    """Return the bytes of an array, in whole numbers of any size: a header may say anything."""
    return math.prod(shape) * dtype.itemsize


def _spans(n_rows, row_bytes):
    """Yield (start, stop) of the pieces of an array of n_rows rows."""
    step = max(1, PIECE_BYTES // row_bytes)
    for start in range(0, n_rows, step):
        yield start, min(start + step, n_rows)
