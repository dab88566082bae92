"""What the CUDA backends of all models share; see msgd.models.interface.Backend."""

import functools
import logging

import numpy as np
from numba import cuda

from msgd.errors import UserError
from msgd.kernels import options
from msgd.kernels.arguments import descent_of
from msgd.kernels.cuda import first_argmax, launch_shape, require_device
from msgd.models.interface import (
    OneStage,
    check_parameters,
    check_parts,
    expected_arrays,
    n_evaluated,
)

log = logging.getLogger(__name__)


def log_plain(why):
    """Say why the plain kernels serve, if they do: a model has fast ones, but not for all sizes."""
    if why:
        log.info("the plain CUDA kernels serve, which are slow: %s", why)


def translate_device_errors(method):
    """Decorate a Backend's method: where the driver fails, it raises UserError."""

    @functools.wraps(method)
    def call(self, *arguments, **more):
        try:
            return method(self, *arguments, **more)
        except Exception as error:
            # The driver is reached through two packages, each with errors of its own.
            if not type(error).__module__.startswith(("numba.cuda.cudadrv", "cuda.")):
                raise
            text = " ".join(str(error).split()).partition(". ")[0]  # its possible causes fill pages
            if "OUT_OF_MEMORY" in text:
                raise UserError(
                    f"the CUDA device has too little memory ({text}); set device_chunk_batches to "
                    "how many minibatches may be on it at a time, fewer if it is set, or backend: "
                    "cpu"
                ) from error
            raise UserError(f"the CUDA device failed: {text}") from error

    return call


class SharedVariables:
    """The six arrays on the device: all of them, or a chunk of minibatches at a time.

    The training kernels run in ``stream``; while they do, the next chunk is uploaded in a stream of
    its own. Chunks hold whole minibatches, so the kernels see the same numbers either way.
    """

    def __init__(self, dataset, batch_size, chunk_batches):
        self.dataset = dataset
        self.batch_size = batch_size
        self.n_train_batches = len(dataset.train_x) // batch_size
        self.chunk_batches = min(chunk_batches or self.n_train_batches, self.n_train_batches)
        self.n_chunks = -(-self.n_train_batches // self.chunk_batches)
        self.is_resident = chunk_batches is None
        self.stream, self.upload_stream = cuda.stream(), cuda.stream()
        self.chunks = {}  # the training chunk in use and the next one
        self.splits = {}
        if self.is_resident:
            for split in ("train", "valid", "test"):
                self.splits[split] = tuple(map(cuda.to_device, dataset.split(split)))

    def train_pieces(self, first, last):
        """Yield (x, y, minibatch, step, count) until minibatches first..last-1 are covered.

        Minibatches ``minibatch`` to ``minibatch + count - 1`` of the device arrays x and y are to
        be trained, the span's ``step``-th and following. Launch kernels in ``self.stream``.
        """
        done = first
        while done < last:
            chunk, minibatch = divmod(done % self.n_train_batches, self.chunk_batches)
            in_chunk = min(self.chunk_batches, self.n_train_batches - chunk * self.chunk_batches)
            count = min(last - done, in_chunk - minibatch)
            x, y = self._train_chunk(chunk)
            yield x, y, minibatch, done - first, count
            done += count
            if self.n_chunks > 1:  # the kernel is running: fetch what comes after it
                self._upload((chunk + 1) % self.n_chunks)
        self.stream.synchronize()

    def split_pieces(self, split):
        """Yield (x, y, start) of device arrays that cover a split: rows ``start`` and following."""
        if self.is_resident:
            yield *self.splits[split], 0
            return
        x, y = self.dataset.split(split)
        rows = self.chunk_batches * self.batch_size
        for start in range(0, len(x), rows):
            piece = slice(start, start + rows)
            yield cuda.to_device(x[piece]), cuda.to_device(y[piece]), start

    def _train_chunk(self, chunk):
        if self.is_resident:
            return self.splits["train"]
        if chunk not in self.chunks:
            self._upload(chunk)
        self.upload_stream.synchronize()
        return self.chunks[chunk]

    def _upload(self, chunk):
        """Start the upload of a training chunk, unless it is there; keep the latest other one."""
        if chunk in self.chunks:
            return
        rows = self.chunk_batches * self.batch_size
        piece = slice(chunk * rows, (chunk + 1) * rows)
        self.chunks = dict(list(self.chunks.items())[-1:])
        self.chunks[chunk] = tuple(
            cuda.to_device(array[piece], stream=self.upload_stream)
            for array in self.dataset.split("train")
        )


class CudaBackend(OneStage):
    """What the CUDA backends of all models share; see msgd.models.interface.Backend.

    A model's room adds ``allocate()``, which makes its scratch arrays, and
    ``launch_train(x, y, minibatch, costs)``, which trains len(costs) minibatches, in
    ``self.shared.stream``, and writes their costs. It may replace ``keep_parameters(parameters)``,
    which gets what set_parameters has checked, and with it ``fetch_parameters()``, which returns
    the same.
    """

    @translate_device_errors
    def __init__(self, dataset, parameters, settings, float_x, chunk_batches=None):
        check_parts(dataset, settings, float_x, chunk_batches)
        require_device()
        self.expected = expected_arrays(dataset, settings, float_x)
        self.batch_size = settings["batch_size"]
        self.n_classes = dataset.n_classes
        self.float_x = float_x
        self.settings = settings
        self.pixel_scale = float_x(dataset.pixel_scale)
        self.descent = descent_of(settings, float_x)
        self.shared = SharedVariables(dataset, self.batch_size, chunk_batches)
        self.buffers = {}
        self.set_parameters(parameters)
        self.allocate()

    @translate_device_errors
    def train(self, first, last):
        """See msgd.models.interface.Backend.train."""
        costs = self._buffer("costs", (last - first,), self.float_x)
        for x, y, minibatch, step, count in self.shared.train_pieces(first, last):
            piece = costs if count == last - first else costs[step : step + count]
            self.launch_train(x, y, minibatch, piece)
        return costs.copy_to_host()

    def _buffer(self, name, shape, dtype):
        """Return a device array with anything in it: that of the call before, if it has the shape.

        To make one takes longer than a small kernel runs.
        """
        if name not in self.buffers or self.buffers[name].shape != shape:
            self.buffers[name] = cuda.device_array(shape, dtype)
        return self.buffers[name]

    @translate_device_errors
    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        return self.fetch_parameters()

    @translate_device_errors
    def set_parameters(self, parameters):
        """See msgd.models.interface.Backend.set_parameters."""
        check_parameters(parameters, self.expected)
        self.keep_parameters(parameters)

    def keep_parameters(self, parameters):
        """Copy the parameters to the device."""
        self.parameters = {name: cuda.to_device(array) for name, array in parameters.items()}

    def fetch_parameters(self):
        """Return a copy of the parameters, a dict as keep_parameters gets."""
        return {name: array.copy_to_host() for name, array in self.parameters.items()}


class CudaClassifier(CudaBackend):
    """A classifier on a CUDA device: its room adds ``launch_logits(x, logits)``.

    That writes the (n, C) logits of the images x.

    The device counts the mistakes of all calls together, for a copy to set that number to 0 would
    take as long as to count: n_mistakes is what it was after the latest call. None: not known,
    before the first call and after one that was interrupted.
    """

    n_mistakes = None

    @translate_device_errors
    def count_errors(self, split):
        """See msgd.models.interface.Classifier.count_errors."""
        if self.n_mistakes is None:
            self.mistakes, self.n_mistakes = cuda.to_device(np.zeros(1, np.int64)), 0
        before, self.n_mistakes = self.n_mistakes, None
        n_counted = n_evaluated(len(self.shared.dataset.split(split)[1]), self.batch_size)
        for x, y, start in self.shared.split_pieces(split):
            n = min(len(y), n_counted - start)
            if n > 0:
                _count_mistakes[launch_shape(n)](self._logits(x), y, n, self.mistakes)
        self.n_mistakes = int(self.mistakes.copy_to_host()[0])
        return self.n_mistakes - before

    @translate_device_errors
    def predict(self, split):
        """See msgd.models.interface.Classifier.predict."""
        pieces = [self._predict(x).copy_to_host() for x, _, _ in self.shared.split_pieces(split)]
        return np.concatenate(pieces)

    def _predict(self, x):
        """Return the predicted classes of the images x as a device array, (len(x),) int32."""
        predicted = self._buffer("predicted", (len(x),), np.int32)
        _predict_classes[launch_shape(len(x))](self._logits(x), predicted)
        return predicted

    def _logits(self, x):
        """Return the logits of the images x as a device array, (len(x), C) floatX."""
        logits = self._buffer("logits", (len(x), self.n_classes), self.float_x)
        self.launch_logits(x, logits)
        return logits


@cuda.jit(**options.CUDA_ENTRY)
def _predict_classes(logits, predicted):
    """Overwrite predicted (N,) int32 with the class of the largest logit: one thread per image.

    logits: (N, C) floatX.
    """
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    if lane == 0:
        for i in range(row, logits.shape[0], rows):
            predicted[i] = first_argmax(logits[i])


@cuda.jit(**options.CUDA_ENTRY)
def _count_mistakes(logits, y, n_counted, mistakes):
    """Add to mistakes[0] for how many of the first n_counted images the label is not predicted.

    logits: (N, C) floatX; y: (N,) int32; mistakes: (1,) int64. One thread per image.
    """
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    if lane == 0:
        for i in range(row, n_counted, rows):
            if first_argmax(logits[i]) != y[i]:
                cuda.atomic.add(mistakes, 0, 1)  # integers: the order does not matter
