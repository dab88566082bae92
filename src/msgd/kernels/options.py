"""Every Numba option of the project, and the folder of compiled kernels.

fastmath stays off everywhere: it reorders sums, and the bits of a result must not depend on how a
compiler felt about a loop.
"""

import atexit
import hashlib
import logging
import os
import tempfile
import warnings
from pathlib import Path

from msgd.errors import UserError
from msgd.kernels.cache import check_files
from msgd.source import source_sha256

log = logging.getLogger(__name__)

HARMLESS = {"NUMBA_CACHE_DIR", "NUMBA_ENABLE_CUDASIM"}  # whatever they hold
# Variables of Numba's that change neither the compiled kernels nor what its own cache asks for.
NOT_COMPILED_IN = (
    *(*HARMLESS, "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY"),
    *("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_WARNINGS"),
)


def _import_numba():
    """Import Numba and return it; raise UserError if a variable of the environment keeps it back.

    Numba warns of a value that it cannot read, with the traceback of its attempt, and goes on
    without; of some it raises ValueError; and of some features its compiler aborts.
    """
    features = os.environ.get("NUMBA_CPU_FEATURES", "")
    if any(word and word[0] not in "+-" for word in features.split(",")):
        raise UserError(
            f"NUMBA_CPU_FEATURES is {features!r}; allowed: words like +avx2,-avx512f; mend it or "
            "unset it"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Environment variable", RuntimeWarning)
            import numba
    except (RuntimeWarning, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"Numba cannot be loaded: {reason}; {_unset('NUMBA_')}") from error
    return numba


def _unset(prefix):
    """Return the advice to unset what the environment holds under names that begin so."""
    names = sorted({name for name in os.environ if name.startswith(prefix)} - HARMLESS)
    found = " ".join(f"{name}={os.environ[name]}" for name in names)
    return f"mend or unset what the environment has: {found}" if found else "install Numba anew"


numba = _import_numba()


def _cache_folder():
    """Return this source's own folder of compiled kernels, below NUMBA_CACHE_DIR or ~/.cache/msgd.

    Numba renews a cached function when its own file changes, but not when a function it calls
    from another file does: a corrected formula would go on running in its old form. Nor does it
    ask by which settings (NUMBA_OPT, NUMBA_BOUNDSCHECK) one was compiled. And where it cannot
    write, it looks beside the source; so a folder that cannot be written is replaced by one of
    this process alone.
    """
    try:
        folder = Path(_cache_base()) / f"kernels-{_kernels_key()}"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError) as error:  # RuntimeError: no home is known of this user
        log.warning(
            "compiled kernels cannot be kept (%s), so every process compiles them; set "
            "NUMBA_CACHE_DIR to a folder that can be written",
            error,
        )
        temporary = tempfile.TemporaryDirectory(prefix="msgd-kernels-")
        atexit.register(temporary.cleanup)
        return Path(temporary.name)


def _cache_base():
    cache = os.environ.get("XDG_CACHE_HOME")
    return os.environ.get("NUMBA_CACHE_DIR") or Path(cache or Path.home() / ".cache") / "msgd"


def _kernels_key():
    """Return 16 hexadecimal digits that differ where kernels would be compiled otherwise."""
    settings = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith("NUMBA_") and value and name not in NOT_COMPILED_IN
    }
    if not settings:
        return source_sha256()[:16]
    return hashlib.sha256(f"{source_sha256()} {settings}".encode()).hexdigest()[:16]


numba.config.CACHE_DIR = str(_cache_folder())
check_files(numba.core.caching)

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
    """Let the CPU kernels run on ``threads`` threads, or on all there are if those are fewer.

    Raises UserError if the environment keeps kernels from being compiled or threads from starting.
    """
    if numba.config.DISABLE_JIT:
        raise UserError("NUMBA_DISABLE_JIT is set, but the kernels run compiled only; unset it")
    try:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    except (ValueError, RuntimeError, ImportError) as error:
        layer = os.environ.get("NUMBA_THREADING_LAYER", "")
        if not any(name.startswith("NUMBA_THREADING_LAYER") for name in os.environ):
            raise
        install = ", or pip install tbb" if layer == "tbb" else ""
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"Numba cannot start its threads: {reason}; {_unset('NUMBA_THREADING_LAYER')}{install}"
        ) from error


CPU_ENTRY = {"error_model": "numpy", "fastmath": False, "cache": True}  # for calls from Python
# The index of a prange is signed where Numba infers types and unsigned where it compiles the loop's
# body, and a literal number is a type of its own: functions that take one are compiled for each.
# np.int64(index), and np.int64(0) for 0, halve that.
# NamedTuples and a prange, as Numba 0.68 has it; tests/kernels/test_tuples.py holds it to that:
# - A write to an array of a tuple is kept if a called function does it, or if the array was bound
#   to a name before the loop. In the loop's own body, layer.weights[i] = x is silently dropped.
# - A loop takes tuples of arrays and numbers apart, but not tuples within them. Pass the inner
#   tuple to a function that has the loop; binding it to a name before the loop is not enough.
# - A tuple has at most 100 fields.
CPU_PARALLEL = {**CPU_ENTRY, "parallel": True}
# For calls from kernels alone: entries that unpack Python's objects take long to compile.
CPU = {**CPU_ENTRY, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
CPU_PARALLEL_INNER = {**CPU, "parallel": True}  # the same of parallel loops
CPU_INLINE = {**CPU, "forceinline": True}  # for what is called once per row or per pixel
CUDA = {"fastmath": False}  # for calls from kernels
# For launches from Python. Numba keeps compiled kernels by the device's compute capability and the
# compiler's version, not by these options; the name of our folder has the hash of all source in it.
CUDA_ENTRY = {**CUDA, "cache": True}

# How many numbers a sum takes in order before it begins another: in float32 a longer one would lose
# digits. No minibatch of the tutorials has more images.
SUMMED_AT_ONCE = 1024

THREADS_PER_BLOCK = 128
# The compile gate's limits: an SM's 65,536 registers hold 3 and 2 blocks of 128 threads.
MAX_REGISTERS = {"float32": 160, "float64": 240}
