"""The shared formulas compiled for CUDA, the device, and launch shapes."""

import functools
import math
from pathlib import Path

import numba
import numpy as np
from numba import cuda

from msgd.errors import UserError
from msgd.kernels import formulas, options
from msgd.kernels.formulas import like
from msgd.models.interface import check_parameters, check_parts, expected_arrays, n_evaluated

IS_SIMULATOR = bool(numba.config.ENABLE_CUDASIM)
IS_NUMBA_CUDA = getattr(cuda, "implementation", None) == "NVIDIA"  # not Numba's own old module

if IS_NUMBA_CUDA and not IS_SIMULATOR:
    from numba.cuda.extending import overload

    @overload(formulas.like, target="cuda")
    def _like(x, value):
        number_type = x
        return lambda x, value: number_type(value)

    @overload(formulas.tanh, target="cuda")
    def _tanh(x):
        number_type = x
        return lambda x: number_type(math.tanh(x))

    sigmoid = cuda.jit(device=True, **options.CUDA)(formulas.sigmoid)

    @overload(formulas.sigmoid, target="cuda")
    def _sigmoid(x):
        return lambda x: sigmoid(x)


activate = cuda.jit(device=True, **options.CUDA)(formulas.activate)
activation_slope = cuda.jit(device=True, **options.CUDA)(formulas.activation_slope)
softmax_cross_entropy = cuda.jit(device=True, **options.CUDA)(formulas.softmax_cross_entropy)
first_argmax = cuda.jit(device=True, **options.CUDA)(formulas.first_argmax)
penalty = cuda.jit(device=True, **options.CUDA)(formulas.penalty)
penalty_gradient = cuda.jit(device=True, **options.CUDA)(formulas.penalty_gradient)


def require_device():
    """Raise UserError unless kernels can be launched: on a GPU or on Numba's simulator."""
    reason = why_no_device()
    if reason:
        raise UserError(
            f"backend is cuda, but {reason}; or set backend: cpu (or auto), or "
            "NUMBA_ENABLE_CUDASIM=1 to run small sizes on Numba's CUDA simulator"
        )


def why_no_device():
    """Return why kernels cannot be launched here, with what to do, or "" if they can.

    They need numba-cuda and either its simulator or a GPU, its driver, and a CUDA compiler that is
    not newer than the driver.
    """
    if not IS_NUMBA_CUDA:
        return (
            f"numba.cuda is Numba's own old module ({cuda.__file__}), not the package numba-cuda: "
            "install that, and if it is in a folder on PYTHONPATH, import msgd before numba.cuda"
        )
    return "" if IS_SIMULATOR else _why_no_driver() or _why_no_compiler()


def _why_no_driver():
    from numba.cuda.cudadrv.driver import driver
    from numba.cuda.cudadrv.error import CudaSupportError

    try:
        if not driver.is_available:  # asked before
            raise CudaSupportError(driver.initialization_error)
    except CudaSupportError as error:
        answer = " ".join(str(error).split()).rstrip(".:")
        return (
            f"there is neither a CUDA device with its driver nor the simulator ({answer}); install "
            "the driver, or let the program see a device"
        )
    return ""


def _why_no_compiler():
    from numba.cuda.cuda_paths import get_cuda_paths
    from numba.cuda.cudadrv import driver, nvvm, runtime

    parts = {
        "libnvvm": nvvm.NVVM,
        "libnvrtc": runtime.get_version,
        "libdevice": lambda: Path(get_cuda_paths()["libdevice"].info).stat(),
    }
    for name, load in parts.items():
        try:
            load()
        except Exception:  # each of them has its own kinds, with texts that fill the screen
            return (
                f"the CUDA compiler's {name} is not found; install the compiler (pip install -c "
                "constraints.txt -e '.[gpu]') or set CUDA_HOME to the folder of a CUDA 13 toolkit"
            )
    supported, compiler = driver.get_version(), runtime.get_version()
    if supported[0] < compiler[0]:
        return (
            f"the driver supports CUDA {supported[0]}.{supported[1]} and the compiler is that of "
            f"CUDA {compiler[0]}.{compiler[1]}; install a newer driver"
        )
    return ""


def device_errors_told(method):
    """Let a Backend's method raise UserError where the driver fails."""

    @functools.wraps(method)
    def call(self, *arguments, **more):
        try:
            return method(self, *arguments, **more)
        except Exception as error:
            # The driver is reached through two packages, each with errors of its own.
            if not type(error).__module__.startswith(("numba.cuda.cudadrv", "cuda.")):
                raise
            text = " ".join(str(error).split()).partition(". ")[0]  # what may cause it fills pages
            if "OUT_OF_MEMORY" in text:
                raise UserError(
                    f"the CUDA device has too little memory ({text}); set device_chunk_batches to "
                    "how many minibatches may be on it at a time, fewer if it is set, or backend: "
                    "cpu"
                ) from error
            raise UserError(f"the CUDA device failed: {text}") from error

    return call


def describe_device():
    """Return what kernels run on, as text."""
    if IS_SIMULATOR:
        return "Numba's CUDA simulator"
    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    return f"{name}, compute capability {'.'.join(map(str, device.compute_capability))}"


def launch_shape(n_rows):
    """Return (blocks, threads) for two-dimensional kernels over rows and columns.

    n_rows: how many rows have work. Threads are CLASS_LANES wide, so that columns (classes) lie
    side by side; blocks are stacked over rows, as many as the rows need and as the device can hold
    at once, for in a cooperative launch they wait for each other. Kernels stride over the grid and
    every sum is taken by one thread in a fixed order, so results do not depend on this shape.
    """
    if IS_SIMULATOR:
        return (1, SIMULATOR_BLOCKS), SIMULATOR_THREADS
    threads = (CLASS_LANES, options.THREADS_PER_BLOCK // CLASS_LANES)
    resident = BLOCKS_PER_SM * cuda.get_current_device().MULTIPROCESSOR_COUNT
    return (1, min(-(-n_rows // threads[1]), resident)), threads


CLASS_LANES = 16
SIMULATOR_BLOCKS = 1  # Numba's own runs no more in a cooperative launch; the tests' layer does
SIMULATOR_THREADS = (4, 8)  # an OS thread each
BLOCKS_PER_SM = 2  # the compile gate holds registers low enough


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
        """Start the upload of a training chunk; of the others the latest one is kept."""
        if chunk in self.chunks:
            return
        rows = self.chunk_batches * self.batch_size
        piece = slice(chunk * rows, (chunk + 1) * rows)
        self.chunks = dict(list(self.chunks.items())[-1:])
        self.chunks[chunk] = tuple(
            cuda.to_device(array[piece], stream=self.upload_stream)
            for array in self.dataset.split("train")
        )


class CudaBackend:
    """What the CUDA backends of all models share; see msgd.models.interface.Backend.

    A model's room adds ``allocate()``, which makes its scratch arrays, and two launches:
    ``launch_train(x, y, minibatch, costs)`` trains len(costs) minibatches, in
    ``self.shared.stream``, and writes their costs; ``launch_logits(x, logits)`` writes the
    (n, C) logits of the images x. It may replace ``keep_parameters(parameters)``, which gets what
    set_parameters has checked.
    """

    @device_errors_told
    def __init__(self, dataset, parameters, settings, float_x, chunk_batches=None):
        check_parts(dataset, settings, float_x, chunk_batches)
        require_device()
        self.expected = expected_arrays(dataset, settings, float_x)
        self.batch_size = settings["batch_size"]
        self.n_classes = dataset.n_classes
        self.float_x = float_x
        self.settings = settings
        self.pixel_scale = float_x(dataset.pixel_scale)
        self.learning_rate = float_x(settings.get("learning_rate", 0))  # 0: not trained by SGD
        self.penalties = tuple(float_x(settings[name]) for name in ("l1", "l2", "lp", "p"))
        self.shared = SharedVariables(dataset, self.batch_size, chunk_batches)
        self.set_parameters(parameters)
        self.allocate()

    @device_errors_told
    def train(self, first, last):
        """See msgd.models.interface.Backend.train."""
        costs = cuda.device_array(last - first, self.float_x)
        for x, y, minibatch, step, count in self.shared.train_pieces(first, last):
            self.launch_train(x, y, minibatch, costs[step : step + count])
        return costs.copy_to_host()

    @device_errors_told
    def count_errors(self, split):
        """See msgd.models.interface.Backend.count_errors."""
        mistakes = cuda.to_device(np.zeros(1, np.int32))
        n_counted = n_evaluated(len(self.shared.dataset.split(split)[1]), self.batch_size)
        for x, y, start in self.shared.split_pieces(split):
            predicted = self._predict(x)
            n = min(len(y), n_counted - start)
            if n > 0:
                _count_mistakes[launch_shape(n)](predicted, y, n, mistakes)
        return int(mistakes.copy_to_host()[0])

    @device_errors_told
    def predict(self, split):
        """See msgd.models.interface.Backend.predict."""
        pieces = [self._predict(x).copy_to_host() for x, _, _ in self.shared.split_pieces(split)]
        return np.concatenate(pieces)

    def _predict(self, x):
        """Return the predicted classes of the images x as a device array, (len(x),) int32."""
        logits = cuda.device_array((len(x), self.n_classes), self.float_x)
        predicted = cuda.device_array(len(x), np.int32)
        self.launch_logits(x, logits)
        _predict_classes[launch_shape(len(x))](logits, predicted)
        return predicted

    @device_errors_told
    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        return {name: array.copy_to_host() for name, array in self.parameters.items()}

    @device_errors_told
    def set_parameters(self, parameters):
        """See msgd.models.interface.Backend.set_parameters."""
        check_parameters(parameters, self.expected)
        self.keep_parameters(parameters)

    def keep_parameters(self, parameters):
        """Take the parameters to the device."""
        self.parameters = {name: cuda.to_device(array) for name, array in parameters.items()}


@cuda.jit(device=True, **options.CUDA)
def ordered_sum(values):
    """Return the sum of ``values`` (n,), taken in order."""
    total = values[0]
    for i in range(1, values.shape[0]):
        total += values[i]
    return total


@cuda.jit(device=True, **options.CUDA)
def loss_phase(y, start, inverse_batch_size, logits, error, example_nll):
    """Overwrite error (B, C) and example_nll (B,) from logits (B, C): one thread per example."""
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    if lane == 0:
        for i in range(row, logits.shape[0], rows):
            example_nll[i] = softmax_cross_entropy(
                logits[i], y[start + i], inverse_batch_size, error[i]
            )


@cuda.jit(device=True, **options.CUDA)
def penalty_phase(penalties, weights, row_penalty):
    """Overwrite row_penalty (rows of weights,) with the penalty of each row: one thread per row."""
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    if lane == 0:
        for d in range(row, weights.shape[0], rows):
            total = like(penalties[0], 0)
            for c in range(weights.shape[1]):
                total += penalty(weights[d, c], penalties)
            row_penalty[d] = total


@cuda.jit(**options.CUDA_ENTRY)
def _predict_classes(logits, predicted):
    """Overwrite predicted (N,) int32 with the class of largest logit: one thread per example."""
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    if lane == 0:
        for i in range(row, logits.shape[0], rows):
            predicted[i] = first_argmax(logits[i])


@cuda.jit(**options.CUDA_ENTRY)
def _count_mistakes(predicted, y, n_counted, mistakes):
    """Add to mistakes[0] how many of the first n_counted predictions differ from y (N,)."""
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    if lane == 0:
        for i in range(row, n_counted, rows):
            if predicted[i] != y[i]:
                cuda.atomic.add(mistakes, 0, 1)  # integers: the order does not matter
