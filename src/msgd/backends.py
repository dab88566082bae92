"""Which device a run uses: the meaning of the config key ``backend``."""

import ctypes
import logging
import os
from functools import cache
from pathlib import Path

import yaml

from msgd.errors import UserError
from msgd.models import DEVICES

log = logging.getLogger(__name__)

SPEEDS_FILE = Path(__file__).with_name("measured_speeds.yaml")
ON_SIMULATOR = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") == "1"


def choose_device(backend, model):
    """Return one of msgd.models.DEVICES for config key ``backend``, and log why.

    Raises UserError for "cuda" with neither a GPU nor the simulator: the device is what was asked
    for, never a silent stand-in.
    """
    if backend in ("cpu", "reference"):
        log.info("backend %s, as configured", backend)
        return backend
    if backend == "cuda":
        from msgd.kernels.cuda import describe_device, require_device

        require_device()
        log.info("backend cuda, as configured: %s", describe_device())
        return "cuda"
    if backend != "auto":
        raise UserError(f"backend is {backend!r}; allowed: auto or {' or '.join(DEVICES)}")
    reason = _why_not_cuda(model)
    if reason:
        log.info("backend auto takes cpu: %s", reason)
        return "cpu"
    speed = measured_speed(model, gpu_name())
    log.info(
        "backend auto takes cuda: on %s %s ran %.3g epochs/s, and %.3g on the CPU beside it",
        *(gpu_name(), model, speed["cuda"], speed["cpu"]),
    )
    return "cuda"


def asks_for_gpu(backend, model):
    """Return whether a run takes up a GPU: what Snakemake counts as ``gpu``, and Slurm lends."""
    return backend == "cuda" or (backend == "auto" and not _why_not_cuda(model))


def measured_speed(model, gpu):
    """Return the row of measured_speeds.yaml for ``model`` on the GPU of that name, or None.

    A row is a dict: model, gpu, cuda and cpu (epochs per second, validation included), commit.
    """
    rows = yaml.safe_load(SPEEDS_FILE.read_text(encoding="utf-8")) or []
    return next((row for row in rows if (row["model"], row["gpu"]) == (model, gpu)), None)


@cache
def gpu_name():
    """Return the name of the first GPU, "" without one; makes no context on it."""
    try:  # not through Numba, whose CUDA half takes a second to import
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    calls = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetName(name, len(name), device),
    )
    return name.value.decode() if all(call() == 0 for call in calls) else ""


def _why_not_cuda(model):
    """Return why ``auto`` does not take CUDA for ``model``, or "" if it does."""
    if ON_SIMULATOR:
        return "the CUDA simulator runs only where backend is cuda"
    gpu = gpu_name()
    if not gpu:
        return "there is no CUDA driver with a GPU"
    speed = measured_speed(model, gpu)
    if speed is None:
        return f"{model} was never measured on {gpu}; backend: cuda runs it there"
    if speed["cuda"] <= speed["cpu"]:
        return f"{model} was measured to be slower on {gpu}; backend: cuda runs it there"
    from msgd.kernels.cuda import why_no_device

    return why_no_device()
