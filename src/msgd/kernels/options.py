"""Every Numba option of the project, and the folder of compiled kernels.

fastmath stays off everywhere: it reorders sums, and the bits of a result must not depend on how a
compiler felt about a loop.
"""

import atexit
import os
import tempfile
from pathlib import Path

import numba

from msgd.source import source_sha256


def _cache_folder():
    """Return this source's own folder of compiled kernels, below NUMBA_CACHE_DIR or ~/.cache/msgd.

    Numba renews a cached function when its own file changes, but not when a function it calls
    from another file does: a corrected formula would go on running in its old form. And where it
    cannot write, it looks beside the source; so a folder that cannot be written is replaced by one
    of this process alone.
    """
    base = os.environ.get("NUMBA_CACHE_DIR")
    if not base:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msgd"
    folder = Path(base) / f"kernels-{source_sha256()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        temporary = tempfile.TemporaryDirectory(prefix="msgd-kernels-")
        atexit.register(temporary.cleanup)
        return Path(temporary.name)


numba.config.CACHE_DIR = str(_cache_folder())

# Numba warns of CUDA grids below 128 blocks. Ours are as large as the work, and nobody who runs the
# program can change them. Not through os.environ: Numba would then read all of it again, and forget
# the folder above.
if "NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS" not in os.environ:
    numba.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

# How long an OpenMP thread that waits for the others spins before it sleeps. GNU's default spins
# for milliseconds: on a machine busy with other work each waits for one that cannot run, and two
# threads become forty times slower than one. OpenMP reads it when Numba starts its threads.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def use_threads(threads):
    """Let the CPU kernels run on ``threads`` threads, or on all there are if those are fewer."""
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


CPU_ENTRY = {"error_model": "numpy", "fastmath": False, "cache": True}  # for calls from Python
# The index of a prange is signed where Numba infers types and unsigned where it compiles the loop's
# body, and a literal number is a type of its own: functions that take one are compiled for each.
# np.int64(index), and np.int64(0) for 0, halve that.
CPU_PARALLEL = {**CPU_ENTRY, "parallel": True}
# For calls from kernels alone: entries that unpack Python's objects take long to compile.
CPU = {**CPU_ENTRY, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
CPU_INLINE = {**CPU, "forceinline": True}  # for what is called once per row or per pixel
CUDA = {"fastmath": False}  # for calls from kernels
# For launches from Python. Numba keeps compiled kernels by the device's compute capability and the
# compiler's version, but not by these options: whoever changes one needs another NUMBA_CACHE_DIR.
CUDA_ENTRY = {**CUDA, "cache": True}

THREADS_PER_BLOCK = 128
# The compile gate's limits: an SM's 65,536 registers hold 3 and 2 blocks of 128 threads.
MAX_REGISTERS = {"float32": 160, "float64": 240}
