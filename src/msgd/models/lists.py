"""Lists of nonzero pixels of splits of any size: in memory, or in files beside the data.

They take about the room of the images if four of five pixels are zero, as in MNIST, and six times
that if none is. Those of a split that is larger than a piece go,
piece by piece, to files without a name, which vanish with the process, and are memory-mapped.
"""

import contextlib
import mmap
import tempfile

import numpy as np
from tqdm import tqdm

from msgd.errors import UserError
from msgd.kernels.nonzero import SPARE, LitImages, NonzeroPixels, list_lit, list_nonzero
from msgd.kernels.patches import to_patches

# Which fields of a list count places in another, and so go on counting from piece to piece.
PLACES_IN = {NonzeroPixels: {"first": "position"}, LitImages: {"first": "pixel", "entry": "image"}}
PADDED = {"position", "pixel", "image", "value"}  # these have SPARE zeros after their last entry


class Lists:
    """The lists of one split.

    pixels: NonzeroPixels of all images; lit: LitImages of the whole minibatches, or None. Their
    entries are patches of the shape ``patch``.
    """

    def __init__(self, dataset, split, batch_size, piece_bytes, with_lit, patch=(1, 1)):
        x, _ = dataset.split(split)
        n_images = len(x)
        size = patch[0] * patch[1]
        n_positions = to_patches(x[:1], dataset.image_shape, patch).shape[1] // size
        self.maps = []
        # Pieces of whole minibatches: a minibatch's LitImages come from one of them.
        n = max(1, piece_bytes // (batch_size * x[0].nbytes)) * batch_size
        starts = [0] if x.nbytes <= piece_bytes else range(0, n_images, n)

        def progress(what):
            title = f"listing {what} of {split}"
            return tqdm(starts, title, unit="piece", disable=True if len(starts) == 1 else None)

        def pieces_of_pixels():
            for start in progress("nonzero pixels"):
                piece = x[start : start + n] if len(starts) > 1 else x
                yield list_nonzero(to_patches(piece, dataset.image_shape, patch), size)
                dataset.release_pages(split)

        def pieces_of_lit():
            for start in progress("lit images"):
                rows = self.pixels.rows(start, min(start + n, n_images))
                rows = rows if len(starts) > 1 else self.pixels
                yield list_lit(rows, batch_size, n_positions, size)
                self.release_pages()

        self.pixels = self._join(pieces_of_pixels(), len(starts), dataset.folder)
        self.lit = self._join(pieces_of_lit(), len(starts), dataset.folder) if with_lit else None

    def release_pages(self):
        """Give the memory of lists in files back; they are read again when needed."""
        for mapped in self.maps:
            mapped._mmap.madvise(mmap.MADV_DONTNEED)

    def _join(self, pieces, n_pieces, folder):
        """Return ``pieces``, lists of one kind, one after the other; a single one as it is."""
        if n_pieces == 1:
            return next(pieces)
        try:
            return self._join_in_files(pieces, folder)
        except OSError as error:
            raise UserError(
                f"{folder}: no room for files of the lists of nonzero pixels ({error}); they take "
                "about as much as the images if four of five pixels are zero, six times if none is"
            ) from error

    def _join_in_files(self, pieces, folder):
        with contextlib.ExitStack() as stack:
            files = counts = None
            for piece in pieces:
                kind, places = type(piece), PLACES_IN[type(piece)]
                if files is None:
                    files = {
                        name: stack.enter_context(tempfile.TemporaryFile(dir=folder))
                        for name in kind._fields
                    }
                    counts = dict.fromkeys(kind._fields, 0)
                    for name in places:
                        np.zeros(1, np.int64).tofile(files[name])
                arrays = piece._asdict()
                for name, place in places.items():
                    arrays[name] = arrays[name][1:] + counts[place]
                for name in arrays.keys() & PADDED:
                    arrays[name] = arrays[name][:-SPARE]
                for name, array in arrays.items():
                    array.tofile(files[name])
                    counts[name] += len(array)
            for name in counts.keys() & PADDED:
                np.zeros(SPARE, arrays[name].dtype).tofile(files[name])
            return kind(*[self._map(files[name], arrays[name].dtype) for name in kind._fields])

    def _map(self, file, dtype):
        file.flush()
        self.maps.append(np.memmap(file, dtype, "r+"))
        # A plain array over the map: Numba compiles for ndarray, not for its subclass memmap.
        return self.maps[-1].view(np.ndarray)
