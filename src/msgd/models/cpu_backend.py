"""What the CPU backends of all models share; see msgd.models.interface.Backend."""

import numpy as np

from msgd.models.interface import count_mistakes, n_batches

# A long span of minibatches is trained in pieces of about this many bytes of pixels, after each of
# which their pages are given back: the file may be larger than the memory.
PIECE_BYTES = 2**27


class CpuBackend:
    """A model on the CPU, over memory-mapped arrays.

    A model's room adds set_parameters, get_parameters, ``allocate()``, which makes its scratch
    arrays, ``train_span(first, last, costs)``, which trains minibatches and writes their costs, and
    ``predict_classes(x, predicted)``, which writes the classes of the images x (n, D).
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
        self.set_parameters(parameters)
        self.allocate()

    def train(self, first, last):
        """See msgd.models.interface.Backend.train."""
        costs = np.empty(last - first, self.float_x)
        batch_bytes = self.batch_size * self.dataset.train_x[0].nbytes
        piece = max(1, PIECE_BYTES // batch_bytes)
        for start in range(first, last, piece):
            stop = min(start + piece, last)
            self.train_span(start, stop, costs[start - first : stop - first])
            if self.n_train_batches > piece:
                self.dataset.release_pages("train")
        return costs

    def count_errors(self, split):
        """See msgd.models.interface.Backend.count_errors."""
        return count_mistakes(self.predict(split), self.dataset.split(split)[1], self.batch_size)

    def predict(self, split):
        """See msgd.models.interface.Backend.predict."""
        x, _ = self.dataset.split(split)
        predicted = np.empty(len(x), np.int32)
        piece = max(1, PIECE_BYTES // x[0].nbytes)
        for start in range(0, len(x), piece):
            rows = slice(start, start + piece)
            self.predict_classes(x[rows], predicted[rows])
            if len(x) > piece:
                self.dataset.release_pages(split)
        return predicted
