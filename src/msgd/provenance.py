"""Where a result comes from: code, packages, hardware, data, configuration."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import msgd
from msgd.source import PACKAGE, sha256_of_source, source_sha256, training_source

# Those that compute the numbers, then those that show them.
PACKAGES = (
    *("numpy", "scipy", "numba", "llvmlite", "numba-cuda"),
    *("pandas", "matplotlib", "snakemake"),
)


def describe_run(settings, backend, device, float_x, threads, dataset):
    """Return the record kept beside a run (dict, for JSON).

    settings: completed hyperparameters; backend: what was configured; device: what it came to,
    "cpu", "reference", or "cuda" and a name; dataset: msgd.data.dataset.Dataset.
    """
    return {
        "settings": settings,
        "seed": settings["seed"],
        "backend": backend,
        "device": device,
        "floatX": float_x,
        "threads": threads,
        "data": {"is_mnist": dataset.is_mnist, "sha256": dataset.sha256},
        "code": describe_code(settings["model"], device_of(device)),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": describe_hardware(),
    }


def device_of(description):
    """Return the device from its description: "cuda" from "cuda: NVIDIA H100", say."""
    return description.partition(":")[0]


def describe_code(model=None, device="cpu"):
    """Return the package's version, a SHA-256 of its source, and the commit if it is a clone's.

    With ``model`` also ``training_sha256``, of the source that shapes its training on ``device``:
    while that is today's (``is_made_by_this_source``), a training gives the same numbers.
    """
    code = {
        "version": msgd.__version__,
        "sha256": source_sha256(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", ".")),
    }
    if model:
        code["training_sha256"] = sha256_of_source(training_source(model, device))
    return code


def is_made_by_this_source(code, model, device="cpu"):
    """Return whether ``code``, as describe_code returned it, is that of a training today."""
    return code.get("training_sha256") == sha256_of_source(training_source(model, device))


def describe_hardware():
    """Return the processor's name, its usable cores, and the operating system."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _processor():
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments):
    """Return git's output for the package's folder, or None without git or a clone."""
    try:
        result = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
