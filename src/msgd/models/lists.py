"""Lists of nonzero pixels of splits of any size: in memory, or in files beside the data.

They take once or twice the room of the images if four of five pixels are zero, as in MNIST, and six
times that if none is; a Gram takes group_size numbers more for each image.
Those of a split that is larger than a piece go, piece by piece, to files without a name, which
vanish with the process, and are memory-mapped.
"""

import contextlib
import mmap
import tempfile

import numpy as np
from tqdm import tqdm

from msgd.errors import UserError
from msgd.kernels.patches import to_patches
from msgd.kernels.sparse import (
    CSR,
    DCSC,
    SPARE,
    Gram,
    to_csr,
    to_dcsc,
    to_gram,
)

# Index pointers: offsets into another field, shifted when pieces are joined.
INDEX_POINTERS = {
    CSR: {"indptr": "indices"},
    DCSC: {"groups": "pixel", "indptr": "indices"},
    Gram: {},
}
PADDED = {"indices", "pixel", "data"}  # these have SPARE zeros after their last entry


class Lists:
    """The lists of one split.

    by_image: CSR of all images; their entries, and those of the other lists, are patches of
    the shape ``patch``. A split of more than piece_bytes is listed in pieces of whole groups of
    group_size images. Of the training images, once asked for: by_pixel, DCSC; gram, Gram.
    """

    def __init__(self, dataset, split, group_size, piece_bytes, patch=(1, 1)):
        x, _ = dataset.split(split)
        self.dataset, self.split = dataset, split
        self.group_size = group_size
        self.size = patch[0] * patch[1]
        self.n_positions = to_patches(x[:1], dataset.image_shape, patch).shape[1] // self.size
        self.piece = max(1, piece_bytes // (group_size * x[0].nbytes)) * group_size
        if x.nbytes <= piece_bytes:
            self.piece = len(x)
        self.maps = []

        def list_piece(start, stop):
            piece = x if self.piece == len(x) else x[start:stop]
            return to_csr(to_patches(piece, dataset.image_shape, patch), self.size)

        self.by_image = self._list("nonzero pixels", list_piece, len(x))

    def add_by_pixel(self, n_images):
        """Set ``by_pixel`` to the DCSC of the first ``n_images``."""

        def list_piece(start, stop):
            images = self.by_image.images(start, stop)
            return to_dcsc(images, self.group_size, self.n_positions, self.size)

        self.by_pixel = self._list("pixels", list_piece, n_images)

    def add_gram(self, n_images, batch_size, pixel_scale):
        """Set ``gram`` to the Gram of the first ``n_images``, in pixel_scale's type."""

        def list_piece(start, stop):
            images = self.by_image.images(start, stop)
            return to_gram(images, batch_size, self.group_size, self.n_positions, pixel_scale)

        self.gram = self._list("products of images", list_piece, n_images)

    def _list(self, what, list_piece, n_images):
        """Return the lists that ``list_piece(start, stop)`` makes of all pieces, joined."""
        starts = range(0, n_images, self.piece)

        def pieces():
            title = f"listing {what} of {self.split}"
            for start in tqdm(starts, title, unit="piece", disable=None):
                yield list_piece(start, min(start + self.piece, n_images))
                self.release_pages()
                self.dataset.release_pages(self.split)

        if len(starts) <= 1:  # as they are, in memory
            return list_piece(0, n_images)
        try:
            return self._join(pieces(), self.dataset.folder)
        except OSError as error:
            raise UserError(
                f"{self.dataset.folder}: no room for files of the lists of nonzero pixels "
                f"({error}); they take once or twice what the images do if four of five pixels are "
                "zero, six times that if none is"
            ) from error

    def release_pages(self):
        """Give the memory of lists in files back; they are read again when needed."""
        for mapped in self.maps:
            mapped._mmap.madvise(mmap.MADV_DONTNEED)

    def _join(self, pieces, folder):
        """Return ``pieces``, lists of one kind, end to end in files in ``folder``."""
        with contextlib.ExitStack() as stack:
            files = counts = None
            for piece in pieces:
                kind, places = type(piece), INDEX_POINTERS[type(piece)]
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
