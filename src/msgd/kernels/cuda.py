"""The shared formulas compiled for CUDA, the device, and launch shapes."""

import numba
from numba import cuda

from msgd.errors import UserError
from msgd.kernels import formulas, options

IS_SIMULATOR = bool(numba.config.ENABLE_CUDASIM)

if not IS_SIMULATOR:
    from numba.cuda.extending import overload

    @overload(formulas.like, target="cuda")
    def _like(x, value):
        number_type = x
        return lambda x, value: number_type(value)


softmax_cross_entropy = cuda.jit(device=True, **options.CUDA)(formulas.softmax_cross_entropy)
first_argmax = cuda.jit(device=True, **options.CUDA)(formulas.first_argmax)
penalty = cuda.jit(device=True, **options.CUDA)(formulas.penalty)
penalty_gradient = cuda.jit(device=True, **options.CUDA)(formulas.penalty_gradient)


def require_device():
    """Raise UserError unless kernels can be launched: on a GPU or on Numba's simulator."""
    if not cuda.is_available():
        raise UserError(
            "backend is cuda, but there is neither a CUDA device with its driver nor the "
            "simulator; set backend: cpu (or auto), or NUMBA_ENABLE_CUDASIM=1 to run small sizes "
            "on Numba's CUDA simulator"
        )


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
    if IS_SIMULATOR:  # it runs one block in a cooperative launch, and an OS thread per thread
        return (1, 1), SIMULATOR_THREADS
    threads = (CLASS_LANES, options.THREADS_PER_BLOCK // CLASS_LANES)
    resident = BLOCKS_PER_SM * cuda.get_current_device().MULTIPROCESSOR_COUNT
    return (1, min(-(-n_rows // threads[1]), resident)), threads


CLASS_LANES = 16
SIMULATOR_THREADS = (4, 8)
BLOCKS_PER_SM = 2  # the compile gate holds registers low enough for 3
