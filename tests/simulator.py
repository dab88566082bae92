"""A layer over Numba's CUDA simulator: each CUDA thread is a greenlet, and to wait is to switch.

Numba's simulator makes an operating system's thread of each CUDA thread and polls them all, so a
wait is slow and chance says who is first; and it runs one block after the other. Here one thread
runs at a time, until it waits or returns, in a chosen order, with all blocks of the grid alive.

- The grid may wait with any number of blocks; warps have shuffles, votes and ``syncwarp``.
- MSGD_SIMULATOR_ORDER says which of the threads that can run does: ``forward``, ``reverse``, or by
  random choices with a number as their seed. Bits that depend on it are a race.
- A wait without end is an error that names the source lines. It is stricter than hardware: all who
  meet must wait at the same place in the source, and the grid misses threads that have returned.
- Memory that nobody has written is garbage: all bits set, NaN as a float and -1 as an integer.
- The hardware's limits on threads and shared memory hold; the compiler's options are accepted.

What it cannot see: threads that meet between two waits, as one that polls memory until another
writes there, which never ends here. Negative indices count from the end, as they do on a GPU.

The plain kernels use the grid's wait and device arrays alone; the fast ones use blocks, warps and
shared memory too.

Replaces private names of numba-cuda 0.30.4, which is pinned.
"""

import contextlib
import os
import random
import sys
from collections import defaultdict
from math import prod
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from greenlet import getcurrent, greenlet
from numba import cuda
from numba.cuda.errors import normalize_kernel_dimensions
from numba.cuda.np.numpy_support import as_dtype
from numba.cuda.simulator import api, kernel, kernelapi
from numba.cuda.simulator.args import ArgHint, InOut
from numba.cuda.simulator.cudadrv import devicearray
from numba.cuda.types import Type

MAX_THREADS = 1024  # of a block
# Of a block; for more a kernel must ask the driver, which numba-cuda does not.
MAX_SHARED_BYTES = 48 * 1024
WARP = 32

# How to compile, which changes no result; Numba's simulator rejects them.
COMPILER_OPTIONS = {"forceinline", "launch_bounds", "lineinfo", "lto", "max_registers"}

_plain_jit = api.jit
_plain_device_array = devicearray.device_array
_function_of_module = {}  # one for each module with kernels; its ``cuda`` is another in a launch


class SimulatorError(RuntimeError):
    """A kernel did what the hardware forbids or leaves undefined."""


def install():
    """Put the layer over the simulator, for all kernels jitted from now on."""
    api.FakeCUDAKernel = Kernel
    kernelapi.GridGroup = Grid
    cuda.jit = jit
    cuda.shfl_xor_sync = CudaModule.shfl_xor_sync  # by which programs tell that warps work
    cuda.device_array = devicearray.device_array = device_array


def is_installed():
    """Return whether kernels run on the layer."""
    return cuda.jit is jit


def jit(*arguments, **options):
    """Do as cuda.jit of the simulator, but take the compiler's options."""
    options = {name: value for name, value in options.items() if name not in COMPILER_OPTIONS}
    return _plain_jit(*arguments, **options)


def device_array(*arguments, **options):
    """Do as cuda.device_array, which promises nothing of the content: here it is garbage."""
    array = _plain_device_array(*arguments, **options)
    array._ary[...] = garbage(array.dtype)
    return array


def garbage(dtype):
    """Return a number of ``dtype``, NumPy's or Numba's, with all bits set."""
    dtype = as_dtype(dtype) if isinstance(dtype, Type) else np.dtype(dtype)
    return np.frombuffer(b"\xff" * dtype.itemsize, dtype)[0]


class Kernel(kernel.FakeCUDAKernel):
    """What cuda.jit makes of a function."""

    def __init__(self, fn, *arguments, **options):
        super().__init__(fn, *arguments, **options)
        _function_of_module.setdefault(id(fn.__globals__), fn)

    def __getitem__(self, configuration):
        self.dynshared_size = 0  # Numba's keeps that of the launch before
        return super().__getitem__(configuration)

    def __call__(self, *arguments):
        if self._device or isinstance(getcurrent(), Thread):
            return self.fn(*arguments)
        grid_dim, block_dim = normalize_kernel_dimensions(self.grid_dim, self.block_dim)
        if prod(block_dim) > MAX_THREADS:
            raise SimulatorError(f"{prod(block_dim)} threads per block; allowed: {MAX_THREADS}")
        write_back = []
        on_device = [_to_device(argument, write_back) for argument in arguments]
        module = CudaModule(grid_dim, block_dim, 0)
        with contextlib.ExitStack() as modules:
            for fn in _function_of_module.values():
                modules.enter_context(kernelapi.swapped_cuda_module(fn, module))
            Launch(grid_dim, block_dim, self.dynshared_size, lambda _: self.fn(*on_device)).run()
        for copy in write_back:
            copy()
        return None


def _to_device(argument, write_back):
    """Return what a kernel gets for an argument; of an array the NumPy array itself, for speed."""
    if isinstance(argument, tuple):
        values = [_to_device(value, write_back) for value in argument]
        return type(argument)(*values) if hasattr(argument, "_fields") else tuple(values)
    if isinstance(argument, np.ndarray) and argument.ndim > 0:
        argument = InOut(argument)
    if isinstance(argument, ArgHint):
        argument = argument.to_device(write_back)
    return argument._ary if isinstance(argument, devicearray.FakeCUDAArray) else argument


class Block:
    """What the threads of a block share. ``alive``: the bits of those that have not returned."""

    def __init__(self, index, n_threads, dynamic_bytes):
        self.index = index
        self.alive = (1 << n_threads) - 1
        self.shared = Shared(dynamic_bytes)


class Thread(greenlet):
    """A CUDA thread: ``number`` counts within its block, ``rank`` within the grid."""

    def __init__(self, run, block, index, number, rank):
        super().__init__(run)
        self.block, self.index, self.number, self.rank = block, index, number, rank
        self.value = None  # what it brings to the barrier where it waits
        self.received = None  # what all threads of the last barrier brought, by number
        self.frame = None  # where in the kernel it waits

    def __str__(self):
        return f"thread {self.index} of block {self.block.index}"


class Barrier(NamedTuple):
    """Where the threads of ``block`` in ``mask`` wait for each other; the whole grid if None."""

    operation: str
    block: Block | None
    mask: int
    site: tuple  # the instruction in the source


class Launch:
    """The threads of a launch: which can run, and which wait where."""

    def __init__(self, grid_dim, block_dim, dynamic_bytes, run):
        self.order = os.environ.get("MSGD_SIMULATOR_ORDER", "forward")
        self.random = random.Random(int(self.order)) if self.order.isdigit() else None
        if self.order not in ("forward", "reverse") and self.random is None:
            raise ValueError(
                f"MSGD_SIMULATOR_ORDER is {self.order!r}; allowed: forward, reverse, a number"
            )
        self.threads = []
        indices = _indices(block_dim)
        for block_index in _indices(grid_dim):
            block = Block(block_index, len(indices), dynamic_bytes)
            for number, index in enumerate(indices):
                self.threads.append(Thread(run, block, index, number, len(self.threads)))
        self.waiting = defaultdict(list)  # Barrier: threads
        self.ready = []  # the last one runs next
        self._make_ready(self.threads.copy())

    def run(self):
        """Run all threads to their end; raise what one raises, or SimulatorError if they hang."""
        try:
            while self.ready:
                thread = self._next_ready()
                try:
                    barrier = thread.switch(thread.received)
                except Exception as error:
                    error.add_note(f"in {thread}")
                    raise
                if thread.dead:
                    self._retire(thread)
                else:
                    self.waiting[barrier].append(thread)
                    self._release_if_complete(barrier)
            if self.waiting:
                raise SimulatorError(self._describe_waiting())
        finally:
            for thread in self.threads:
                if thread:  # it hangs amid the kernel
                    thread.throw()

    def _next_ready(self):
        """Return a thread that can run.

        Unless chosen at random it is one of those released last, so that a block, or a warp, runs
        as far ahead of the others as its barriers allow. If they are too narrow, it shows.
        """
        if self.random:
            k = self.random.randrange(len(self.ready))
            self.ready[k], self.ready[-1] = self.ready[-1], self.ready[k]
        return self.ready.pop()

    def _make_ready(self, threads):
        threads.sort(key=attrgetter("rank"), reverse=self.order != "reverse")
        self.ready += threads

    def _release_if_complete(self, barrier):
        threads = self.waiting[barrier]
        block = barrier.block
        n_expected = (block.alive & barrier.mask).bit_count() if block else len(self.threads)
        if len(threads) == n_expected:
            del self.waiting[barrier]
            values = {thread.number: thread.value for thread in threads}
            for thread in threads:
                thread.received = values
            self._make_ready(threads)

    def _retire(self, thread):
        """Let a block go on without a thread that has returned."""
        thread.block.alive &= ~(1 << thread.number)
        for barrier in [barrier for barrier in self.waiting if barrier.block is thread.block]:
            self._release_if_complete(barrier)

    def _describe_waiting(self):
        lines = ["no thread can go on:"]
        for barrier, threads in self.waiting.items():
            frame = threads[0].frame
            place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            lines.append(f"{len(threads)} wait in {barrier.operation}, {place}: {threads[0]}, ...")
        lines.append(f"{sum(thread.dead for thread in self.threads)} have returned")
        return "\n  ".join(lines)


def _indices(dim):
    """Return all indices of a grid or block, x running fastest."""
    return [kernelapi.Dim3(x, y, z) for z, y, x in np.ndindex(*dim[::-1])]


def _wait(operation, block, mask=-1, value=None):
    """Suspend this thread until its barrier is complete; return {number: value} of its threads."""
    thread = getcurrent()
    frame = sys._getframe(2)
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    thread.value, thread.frame = value, frame
    site = id(frame.f_code), frame.f_lasti
    return thread.parent.switch(Barrier(operation, block, mask, site))


class CudaModule(kernelapi.FakeCUDAModule):
    """What kernels see as ``cuda``."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._local = Local()

    threadIdx = property(lambda self: getcurrent().index)  # noqa: N815
    blockIdx = property(lambda self: getcurrent().block.index)  # noqa: N815
    laneid = property(lambda self: getcurrent().number % WARP)
    shared = property(lambda self: getcurrent().block.shared)

    def syncthreads(self):
        _wait("syncthreads", getcurrent().block)

    def syncthreads_count(self, value):
        values = _wait("syncthreads_count", getcurrent().block, value=value).values()
        return sum(map(bool, values))

    def syncthreads_and(self, value):
        return int(all(_wait("syncthreads_and", getcurrent().block, value=value).values()))

    def syncthreads_or(self, value):
        return int(any(_wait("syncthreads_or", getcurrent().block, value=value).values()))

    def syncwarp(self, mask=0xFFFFFFFF):
        _exchange("syncwarp", mask)

    def ballot_sync(self, mask, value):
        lanes = _exchange("ballot_sync", mask, value)
        return sum(1 << lane for lane, value in lanes.items() if value)

    def all_sync(self, mask, value):
        return all(_exchange("all_sync", mask, value).values())

    def any_sync(self, mask, value):
        return any(_exchange("any_sync", mask, value).values())

    def shfl_sync(self, mask, value, source):
        return _shuffle("shfl_sync", mask, value, source % WARP)

    def shfl_up_sync(self, mask, value, delta):
        return _shuffle("shfl_up_sync", mask, value, self.laneid - delta)

    def shfl_down_sync(self, mask, value, delta):
        return _shuffle("shfl_down_sync", mask, value, self.laneid + delta)

    def shfl_xor_sync(self, mask, value, lane_mask):
        return _shuffle("shfl_xor_sync", mask, value, self.laneid ^ lane_mask)


def _exchange(operation, mask, value=None):
    """Wait for the lanes of this warp that are in ``mask``; return {lane: value}."""
    thread = getcurrent()
    lane = thread.number % WARP
    first = thread.number - lane
    mask &= 0xFFFFFFFF
    if not mask >> lane & 1:
        raise SimulatorError(f"{operation} by lane {lane}, which is not in its mask {mask:#010x}")
    values = _wait(operation, thread.block, mask << first, value)
    return {number - first: value for number, value in values.items()}


def _shuffle(operation, mask, value, source):
    """Return the value of lane ``source``: one's own if there is none, garbage if it is absent."""
    lanes = _exchange(operation, mask, value)
    if not 0 <= source < WARP:
        return value
    return lanes[source] if source in lanes else garbage(np.asarray(value).dtype)


class Grid:
    """All threads of a launch: what kernels get from ``cuda.cg.this_grid()``."""

    def sync(self):
        _wait("grid.sync", None)


class Local:
    """What kernels see as ``cuda.local``."""

    def array(self, shape, dtype, alignment=None):
        return np.full(shape, garbage(dtype))


class Shared:
    """What the threads of a block see as ``cuda.shared``."""

    def __init__(self, dynamic_bytes):
        self.dynamic = np.full(dynamic_bytes, 0xFF, np.uint8)
        self.arrays = {}
        self._check_size()

    def array(self, shape, dtype, alignment=None):
        """Return the array of this place in the source; for shape 0 dynamic shared memory."""
        if shape == 0:
            dtype = garbage(dtype).dtype
            return self.dynamic[: self.dynamic.size // dtype.itemsize * dtype.itemsize].view(dtype)
        frame = sys._getframe(1)
        key = frame.f_code, frame.f_lasti, shape, dtype
        if key not in self.arrays:
            self.arrays[key] = np.full(shape, garbage(dtype))
            self._check_size()
        return self.arrays[key]

    def _check_size(self):
        size = self.dynamic.nbytes + sum(array.nbytes for array in self.arrays.values())
        if size > MAX_SHARED_BYTES:
            raise SimulatorError(f"{size} bytes of shared memory; allowed: {MAX_SHARED_BYTES}")
