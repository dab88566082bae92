"""What the CPU backends of all models share; see msgd.models.interface.Backend."""

import numpy as np

from msgd.kernels.nonzero import list_lit, list_nonzero
from msgd.models.interface import count_mistakes, n_batches

# A split of more bytes of pixels than this is gone through in pieces, after each of which the pages
# of the piece are given back: the file may be larger than the memory.
PIECE_BYTES = 2**27


class CpuBackend:
    """A model on the CPU, over memory-mapped arrays.

    A model's room adds set_parameters, get_parameters, ``allocate()``, which makes its scratch
    arrays, ``train_span(first, last, costs)``, which trains minibatches of one piece and writes
    their costs, and ``predict_rows(split, start, stop, predicted)``, which writes the classes of
    images start..stop-1.
    """

    def __init__(self, dataset, parameters, settings, float_x, chunk_batches=None):
        self.dataset = dataset
        self.settings = settings
        self.float_x = float_x
        self.batch_size = settings["batch_size"]
        self.n_train_batches = n_batches(len(dataset.train_x), self.batch_size)
        self.pixel_scale = float_x(dataset.pixel_scale)
        self.learning_rate = float_x(settings.get("learning_rate", 0))  # 0: not trained by SGD
        self.penalties = tuple(float_x(settings[name]) for name in ("l1", "l2", "lp", "p"))
        self.listed = {}
        self.set_parameters(parameters)
        self.allocate()

    def train(self, first, last):
        """See msgd.models.interface.Backend.train."""
        costs = np.empty(last - first, self.float_x)
        start = first
        while start < last:
            stop = min(last, self._end_of_piece(start))
            self.train_span(start, stop, costs[start - first : stop - first])
            if not self._is_resident("train"):
                self.dataset.release_pages("train")
            start = stop
        return costs

    def count_errors(self, split):
        """See msgd.models.interface.Backend.count_errors."""
        return count_mistakes(self.predict(split), self.dataset.split(split)[1], self.batch_size)

    def predict(self, split):
        """See msgd.models.interface.Backend.predict."""
        x, _ = self.dataset.split(split)
        predicted = np.empty(len(x), np.int32)
        piece = len(x) if self._is_resident(split) else max(1, PIECE_BYTES // x[0].nbytes)
        for start in range(0, len(x), piece):
            stop = min(start + piece, len(x))
            self.predict_rows(split, start, stop, predicted[start:stop])
            if piece < len(x):
                self.dataset.release_pages(split)
        return predicted

    def _nonzero(self, split, start, stop):
        """Return the msgd.kernels.nonzero.NonzeroPixels of images start..stop-1 of ``split``.

        Those of a split of one piece are listed once and kept.
        """
        x, _ = self.dataset.split(split)
        if not self._is_resident(split):
            return list_nonzero(x[start:stop])
        if split not in self.listed:
            self.listed[split] = list_nonzero(x)
        return self.listed[split].rows(start, stop)

    def _lit(self, start, stop):
        """Return the msgd.kernels.nonzero.LitImages of the minibatches of images start..stop-1."""
        n_features = self.dataset.train_x.shape[1]
        if not self._is_resident("train"):
            return list_lit(self._nonzero("train", start, stop), self.batch_size, n_features)
        if "lit" not in self.listed:
            pixels = self._nonzero("train", 0, self.n_train_batches * self.batch_size)
            self.listed["lit"] = list_lit(pixels, self.batch_size, n_features)
        return self.listed["lit"]

    def _rows_of(self, first, last):
        """Return (start, stop): the training examples that minibatches first..last-1 are made of.

        The whole training set if it is one piece: the minibatches may then go round it.
        """
        if self._is_resident("train"):
            return 0, self.n_train_batches * self.batch_size
        start = first % self.n_train_batches * self.batch_size
        return start, start + (last - first) * self.batch_size

    def _is_resident(self, split):
        return self.dataset.split(split)[0].nbytes <= PIECE_BYTES

    def _end_of_piece(self, first):
        """Return the minibatch before which the piece that begins with ``first`` ends."""
        if self._is_resident("train"):
            return np.inf
        batch_bytes = self.batch_size * self.dataset.train_x[0].nbytes
        end_of_epoch = (first // self.n_train_batches + 1) * self.n_train_batches
        return min(first + max(1, PIECE_BYTES // batch_bytes), end_of_epoch)
