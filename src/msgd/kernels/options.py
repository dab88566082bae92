"""Every Numba option of the project, and the folder of compiled kernels.

fastmath stays off everywhere: it reorders sums, and the bits of a result must not depend on how a
compiler felt about a loop.
"""

import os
from pathlib import Path

import numba

from msgd.source import source_sha256


def _set_cache_folder():
    """Give this version of the source its own cache folder, unless NUMBA_CACHE_DIR names one.

    Numba renews a cached function when its own file changes, but not when a function it calls
    from another file does: a corrected formula would go on running in its old form.
    """
    if "NUMBA_CACHE_DIR" not in os.environ:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        numba.config.CACHE_DIR = str(base / "msgd" / f"numba-{source_sha256()[:16]}")


_set_cache_folder()

CPU = {"error_model": "numpy", "fastmath": False, "cache": True}
CPU_INLINE = {**CPU, "forceinline": True}  # for what is called once per row or per pixel
CPU_PARALLEL = {**CPU, "parallel": True}
CUDA = {"fastmath": False}

# A minibatch is cut into at most this many chunks, whose sums are added in order. More would help
# more threads and cost more additions; the number never follows the threads, so neither do bits.
MAX_CHUNKS = 8
MIN_CHUNK_EXAMPLES = 16

THREADS_PER_BLOCK = 128
# The compile gate's limits: an SM's 65,536 registers hold 3 and 2 blocks of 128 threads.
MAX_REGISTERS = {"float32": 160, "float64": 240}


def n_chunks(batch_size):
    """Return P, the number of chunks a minibatch of ``batch_size`` examples is cut into."""
    return max(1, min(MAX_CHUNKS, batch_size // MIN_CHUNK_EXAMPLES))
