"""The shared formulas compiled for CUDA, the device, and launch shapes."""

import math
from pathlib import Path
from typing import NamedTuple

import numba
from numba import cuda

from msgd.errors import UserError
from msgd.kernels import formulas, options
from msgd.kernels.cache import check_files
from msgd.kernels.formulas import like

IS_SIMULATOR = bool(numba.config.ENABLE_CUDASIM)
# Whether threads of a warp can exchange values: on Numba's simulator as it is they cannot, and the
# plain kernels, which do without, run alone.
HAS_WARPS = hasattr(cuda, "shfl_xor_sync")
# For functions that get registers (cuda.local.array) from a kernel: a call that is not inlined gets
# their address, and what has an address lies in memory. Numba's simulator knows no such option.
INLINE = options.CUDA if IS_SIMULATOR else {**options.CUDA, "forceinline": True}
IS_NUMBA_CUDA = getattr(cuda, "implementation", None) == "NVIDIA"  # not Numba's own old module

if IS_NUMBA_CUDA and not IS_SIMULATOR:
    from numba.cuda.core import caching
    from numba.cuda.extending import overload

    check_files(caching)

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


sigmoid_cross_entropy = cuda.jit(device=True, **options.CUDA)(formulas.sigmoid_cross_entropy)
activate = cuda.jit(device=True, **options.CUDA)(formulas.activate)
activation_slope = cuda.jit(device=True, **options.CUDA)(formulas.activation_slope)
softmax_cross_entropy = cuda.jit(device=True, **options.CUDA)(formulas.softmax_cross_entropy)
first_argmax = cuda.jit(device=True, **options.CUDA)(formulas.first_argmax)
penalty = cuda.jit(device=True, **options.CUDA)(formulas.penalty)
has_penalty = cuda.jit(device=True, **options.CUDA)(formulas.has_penalty)
is_l2_alone = cuda.jit(device=True, **options.CUDA)(formulas.is_l2_alone)
l2_factor = cuda.jit(device=True, **options.CUDA)(formulas.l2_factor)
penalty_gradient = cuda.jit(device=True, **options.CUDA)(formulas.penalty_gradient)
sgd_step = cuda.jit(device=True, **options.CUDA)(formulas.sgd_step)


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
        if not driver.is_available:  # the answer of the first attempt
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
        except Exception:  # each has exceptions of its own, with texts that fill the screen
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
    side by side. Blocks are stacked over rows: as many as the rows need, but no more than the
    device can hold at once, because in a cooperative launch they wait for each other. Kernels
    stride over the grid and one thread computes each sum in a fixed order, so results do not depend
    on this shape.
    """
    if IS_SIMULATOR:
        return (1, SIMULATOR_BLOCKS), SIMULATOR_THREADS
    threads = (CLASS_LANES, options.THREADS_PER_BLOCK // CLASS_LANES)
    resident = BLOCKS_PER_SM * cuda.get_current_device().MULTIPROCESSOR_COUNT
    return (1, min(-(-n_rows // threads[1]), resident)), threads


def launch_shape_of_tasks(n_tasks):
    """Return (blocks, threads) for kernels whose phases share out up to ``n_tasks`` by number."""
    return launch_shape(-(-n_tasks // CLASS_LANES))


CLASS_LANES = 16
SIMULATOR_BLOCKS = 1  # Numba's own runs only one in a cooperative launch; tests/simulator.py more
SIMULATOR_THREADS = (4, 8)  # an OS thread each
BLOCKS_PER_SM = 2  # fits because test_compile_gate limits registers
# For kernels that need more registers than options.MAX_REGISTERS: they get what there is. Numba's
# own simulator does not know the option.
ALL_REGISTERS = (
    {} if IS_SIMULATOR else {"launch_bounds": (options.THREADS_PER_BLOCK, BLOCKS_PER_SM)}
)


class Images(NamedTuple):
    """The images that pass through a model together: a minibatch, or those of a prediction."""

    x: object  # (N, D) uint8 or floatX, a device array of pixels
    start: int  # the first of them is x[start]
    n: int  # how many they are
    pixel_scale: float  # what a stored pixel is multiplied by to become floatX


@cuda.jit(device=True, **options.CUDA)
def thread_of_grid():
    """Return (t, n): the calling thread's number and how many there are in the whole grid.

    Where tasks have numbers too, thread t takes the tasks t, t + n, t + 2 n, ...: all threads have
    work, however the tasks lie in rows and columns, and neighbours read what lies side by side.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    return row * lanes + lane, rows * lanes


@cuda.jit(device=True, **options.CUDA)
def ordered_sum(values):
    """Return the sum of ``values`` (n,) floatX, added in order, by the calling thread alone."""
    total = values[0]
    for i in range(1, values.shape[0]):
        total += values[i]
    return total


@cuda.jit(device=True, **options.CUDA)
def dot(a, b):
    """Return the product of two vectors (n,) floatX, summed by the calling thread alone.

    Four sums in turn, so that more loads are on their way at once.
    """
    n = len(a)
    whole = n - n % 4
    first = second = third = fourth = like(b[0], 0)
    for k in range(0, whole, 4):
        first += a[k] * b[k]
        second += a[k + 1] * b[k + 1]
        third += a[k + 2] * b[k + 2]
        fourth += a[k + 3] * b[k + 3]
    for left in range(whole, n):
        first += a[left] * b[left]
    return (first + second) + (third + fourth)


@cuda.jit(device=True, **options.CUDA)
def times_column(a, matrix, column):
    """Return dot(a, matrix[:, column]), which takes fewer registers so.

    a: (n,) floatX; matrix: (n, m) floatX.
    """
    n = len(a)
    whole = n - n % 4
    first = second = third = fourth = like(a[0], 0)
    for k in range(0, whole, 4):
        first += a[k] * matrix[k, column]
        second += a[k + 1] * matrix[k + 1, column]
        third += a[k + 2] * matrix[k + 2, column]
        fourth += a[k + 3] * matrix[k + 3, column]
    for left in range(whole, n):
        first += a[left] * matrix[left, column]
    return (first + second) + (third + fourth)


@cuda.jit(device=True, **options.CUDA)
def pixel_dot(pixels, pixel_scale, b):
    """Return the product of an image with a vector, both (n,), as dot does.

    pixels: uint8 or floatX; pixel_scale: floatX, what each is multiplied by; b: floatX.
    """
    n = len(pixels)
    whole = n - n % 4
    first = second = third = fourth = like(pixel_scale, 0)
    for k in range(0, whole, 4):
        first += pixels[k] * pixel_scale * b[k]
        second += pixels[k + 1] * pixel_scale * b[k + 1]
        third += pixels[k + 2] * pixel_scale * b[k + 2]
        fourth += pixels[k + 3] * pixel_scale * b[k + 3]
    for left in range(whole, n):
        first += pixels[left] * pixel_scale * b[left]
    return (first + second) + (third + fourth)


@cuda.jit(device=True, **options.CUDA)
def loss_phase(y, start, inverse_batch_size, logits, error, example_nll):
    """Compute the loss of a minibatch of B images and its gradient: one thread per image.

    y: (N,) int32, the labels, whose y[start : start + B] are used; inverse_batch_size: 1/B, floatX;
    logits: (B, C) floatX. error (B, C) floatX is overwritten with the derivatives of the cost by
    the logits, example_nll (B,) floatX with the negative log-likelihood of each label.
    """
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    if lane == 0:
        for i in range(row, logits.shape[0], rows):
            example_nll[i] = softmax_cross_entropy(
                logits[i], y[start + i], inverse_batch_size, error[i]
            )


@cuda.jit(device=True, **options.CUDA)
def penalty_phase(descent, weights, row_penalty):
    """Overwrite row_penalty (D,) floatX with the penalty of each row: one thread per row.

    descent: msgd.kernels.arguments.Descent; weights: (D, C) floatX.
    """
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    if lane == 0:
        for d in range(row, weights.shape[0], rows):
            total = like(descent.rate, 0)
            for c in range(weights.shape[1]):
                total += penalty(weights[d, c], descent)
            row_penalty[d] = total


@cuda.jit(device=True, **options.CUDA)
def cost_phase(descent, inverse_batch_size, example_nll, row_penalty, costs, step):
    """Overwrite costs[step] with the cost of a minibatch: one thread of the whole grid.

    descent: msgd.kernels.arguments.Descent; inverse_batch_size: 1/B, floatX; example_nll: (B,)
    floatX, the negative log-likelihoods; row_penalty: floatX, the penalty of each row of all
    weights, not looked at where nothing is penalised; costs: floatX.
    """
    lane, row = cuda.grid(2)
    if lane == 0 and row == 0:
        cost = ordered_sum(example_nll) * inverse_batch_size
        if has_penalty(descent):
            cost += ordered_sum(row_penalty)
        costs[step] = cost
