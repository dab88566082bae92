"""Which device a run uses: the meaning of the config key ``backend``."""

import ctypes
import logging
import os

from msgd.errors import UserError

log = logging.getLogger(__name__)


def choose_device(backend):
    """Return "cpu" or "cuda" for config key ``backend`` ("auto", "cpu", "cuda"), and log why.

    Raises UserError for "cuda" with neither a GPU nor the simulator: the device is what was asked
    for, never a silent stand-in.
    """
    if backend == "cpu":
        log.info("backend cpu, as configured")
        return "cpu"
    if backend == "cuda":
        from msgd.kernels.cuda import describe_device, require_device

        require_device()
        log.info("backend cuda, as configured: %s", describe_device())
        return "cuda"
    if backend != "auto":
        raise UserError(f"backend is {backend!r}; allowed: auto or cpu or cuda")
    reason = _why_not_cuda()
    if reason:
        log.info("backend auto takes cpu: %s", reason)
        return "cpu"
    from msgd.kernels.cuda import describe_device

    log.info("backend auto takes cuda: %s", describe_device())
    return "cuda"


def _why_not_cuda():
    """Return why ``auto`` does not take CUDA, or "" if it does."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") == "1":
        return "the CUDA simulator runs only where backend is cuda"
    try:  # asks before Numba's CUDA half is imported: most machines have no driver
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA driver is installed"
    from numba import cuda

    return "" if cuda.is_available() else "the CUDA driver finds no usable device"
