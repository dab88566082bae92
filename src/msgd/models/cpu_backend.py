"""What the CPU backends of all models share; see msgd.models.interface.Backend."""

import numpy as np

from msgd.kernels.arguments import Minibatches, descent_of
from msgd.models.interface import (
    OneStage,
    check_parameters,
    check_parts,
    count_mistakes,
    expected_arrays,
    n_batches,
)
from msgd.models.lists import Lists

# A split of more bytes of pixels than this is gone through in pieces, after each of which the pages
# of the piece are given back: the file may be larger than the memory.
PIECE_BYTES = 2**27


class CpuBackend(OneStage):
    """A model on the CPU, over memory-mapped arrays.

    A model's room adds ``keep_parameters(parameters)``, which gets what set_parameters has checked,
    get_parameters, ``allocate()``, which makes its scratch arrays, and ``train_span(first, last,
    costs)``, which trains minibatches of one piece and writes their costs. ``patch`` is the shape
    of the patches that the room's lists are made of, ``group_batches`` how many minibatches of an
    epoch belong together there: calls of train_span end where a group ends, or where the caller
    wants to stop.
    """

    patch = (1, 1)
    group_batches = 1

    def __init__(self, dataset, parameters, settings, float_x, chunk_batches=None):
        check_parts(dataset, settings, float_x, chunk_batches)
        self.expected = expected_arrays(dataset, settings, float_x)
        self.dataset = dataset
        self.settings = settings
        self.float_x = float_x
        self.batch_size = settings["batch_size"]
        self.n_train_batches = n_batches(len(dataset.train_x), self.batch_size)
        self.pixel_scale = float_x(dataset.pixel_scale)
        self.descent = descent_of(settings, float_x)
        self.minibatches = Minibatches(
            dataset.train_y,
            self.batch_size,
            self.n_train_batches,
            self.pixel_scale,
            float_x(1) / float_x(self.batch_size),
        )
        self.lists = {}
        self.set_parameters(parameters)
        self.allocate()

    def set_parameters(self, parameters):
        """See msgd.models.interface.Backend.set_parameters."""
        check_parameters(parameters, self.expected)
        self.keep_parameters(parameters)

    def train(self, first, last):
        """See msgd.models.interface.Backend.train."""
        costs = np.empty(last - first, self.float_x)
        start = first
        while start < last:
            stop = min(last, self._end_of_piece(start))
            self.train_span(start, stop, costs[start - first : stop - first])
            self._release_pages("train")
            start = stop
        return costs

    def _lists(self, split):
        """Return the msgd.models.lists.Lists of ``split``, made when first asked for."""
        if split not in self.lists:
            group_size = self.group_batches * self.batch_size
            self.lists[split] = Lists(self.dataset, split, group_size, PIECE_BYTES, self.patch)
            if split == "train":
                self._list_for_training(self.lists[split])
        return self.lists[split]

    def _list_for_training(self, lists):
        """Add to ``lists``, a Lists of the training images, what training needs."""
        lists.add_by_pixel(self.n_train_batches * self.batch_size)

    def _release_pages(self, split):
        """Give the memory of a split larger than a piece back, and that of its lists."""
        if not self._is_resident(split):
            self.dataset.release_pages(split)
            if split in self.lists:
                self.lists[split].release_pages()

    def _is_resident(self, split):
        return self.dataset.split(split)[0].nbytes <= PIECE_BYTES

    def _end_of_piece(self, first):
        """Return the minibatch before which the piece that begins with ``first`` ends."""
        if self._is_resident("train"):
            return np.inf
        batches_of_piece = self.group_batches * max(
            1,
            PIECE_BYTES // (self.group_batches * self.batch_size * self.dataset.train_x[0].nbytes),
        )
        in_epoch = first % self.n_train_batches
        begin_of_group = in_epoch // self.group_batches * self.group_batches
        return first - in_epoch + min(begin_of_group + batches_of_piece, self.n_train_batches)


class CpuClassifier(CpuBackend):
    """A classifier on the CPU: its room adds ``predict_rows(split, start, stop, predicted)``.

    That writes the classes of images start..stop-1 of ``split`` into predicted, int32.
    """

    def count_errors(self, split):
        """See msgd.models.interface.Classifier.count_errors."""
        return count_mistakes(self.predict(split), self.dataset.split(split)[1], self.batch_size)

    def predict(self, split):
        """See msgd.models.interface.Classifier.predict."""
        x, _ = self.dataset.split(split)
        predicted = np.empty(len(x), np.int32)
        piece = len(x) if self._is_resident(split) else max(1, PIECE_BYTES // x[0].nbytes)
        for start in range(0, len(x), piece):
            stop = min(start + piece, len(x))
            self.predict_rows(split, start, stop, predicted[start:stop])
            self._release_pages(split)
        return predicted
