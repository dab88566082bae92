"""Compile a model's CUDA kernels for an H100 on a machine without a GPU; print what came out.

Run as a program of its own, never on the simulator: ``python tests/offline_compiler.py MODEL``.
It drives the model's real Backend, with launches replaced by compilation to an sm_90 cubin, and
prints a JSON list with an entry per kernel and float type: registers, stack bytes, and how often
each machine instruction occurs.

Needs the wheels of the extra ``gpu``. Replaces private names of numba-cuda 0.30.4, which is pinned.
"""

import collections
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numba.cuda.api
import numba.cuda.compiler
import numba.cuda.cudadrv.devices
import numba.cuda.dispatcher
import numpy as np
from conftest import make_dataset
from numba import cuda, types
from numba.cuda.core.caching import NullCache

from msgd.config import complete_experiment
from msgd.kernels import cuda as kernels
from msgd.models import load_backend, load_model

COMPUTE_CAPABILITY = (9, 0)


class StandIn(np.ndarray):
    """A host array in the place of a device array: it has a type and a shape, which is enough."""

    def copy_to_host(self):
        return np.array(self)


def to_device(array, stream=None):
    return np.array(array).view(StandIn)


def device_array(shape, dtype):
    return np.zeros(shape, dtype).view(StandIn)


def pretend_device():
    """Let numba-cuda believe in an H100, so that its dispatchers compile as they would there."""
    device = SimpleNamespace(
        compute_capability=COMPUTE_CAPABILITY, id=0, MULTIPROCESSOR_COUNT=132, name="H100"
    )
    for module in (numba.cuda.dispatcher, numba.cuda.api, numba.cuda.compiler):
        module.get_current_device = lambda: device
    numba.cuda.cudadrv.devices.get_context = lambda *_: SimpleNamespace(device=device)
    numba.cuda.dispatcher._Kernel.bind = lambda self: None
    cuda.get_current_device = lambda: device
    kernels.why_no_device = lambda: ""
    cuda.to_device, cuda.device_array = to_device, device_array
    cuda.stream = lambda: SimpleNamespace(synchronize=lambda: None)


def type_of(value):
    if isinstance(value, np.ndarray):
        return types.Array(numba.from_dtype(value.dtype), value.ndim, "C")
    if isinstance(value, tuple):
        kinds = [type_of(item) for item in value]
        is_named = hasattr(value, "_fields")
        return types.NamedTuple(kinds, type(value)) if is_named else types.Tuple(kinds)
    return types.int64 if isinstance(value, int) else numba.from_dtype(np.dtype(type(value)))


def record_launches(launched):
    """Make ``kernel[shape](*arguments)`` store {name: (kernel, signature)} in ``launched``."""

    def launch(kernel, shape):
        def record(*arguments):
            signature = types.void(*map(type_of, arguments))
            threads = int(np.prod(shape[1]))
            launched[kernel.py_func.__name__] = kernel, signature, threads

        return record

    numba.cuda.dispatcher.CUDADispatcher.__getitem__ = launch


def tool_folder():
    """Return the folder of cuobjdump and nvdisasm in the wheels of the extra ``gpu``."""
    (root,) = importlib.util.find_spec("nvidia").submodule_search_locations
    return Path(root) / "cu13" / "bin"


def inspect(kernel, signature):
    """Compile ``kernel``; return its registers, stack bytes and instruction counts."""
    kernel._cache = NullCache()  # no place for kernels that no device has loaded
    folder = tool_folder()
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    cubin = kernel.compile(signature)._codelibrary.get_cubin(cc=(*COMPUTE_CAPABILITY, "a"))

    def dump(option, path):
        command = [str(folder / "cuobjdump"), option, path]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin.code)
        file.flush()
        usage, assembly = dump("-res-usage", file.name), dump("-sass", file.name)
    # The cubin holds functions of the CUDA runtime too; ours have the package in their name.
    (resources,) = re.findall(r"Function (\S*msgd\S*):\n\s*(.*)", usage)
    registers, stack, shared = (
        int(re.search(f"{n}:(\\d+)", resources[1])[1]) for n in ("REG", "STACK", "SHARED")
    )
    (body,) = [
        part
        for part in re.split(r"Function : ", assembly)[1:]
        if part.split("\n", 1)[0].strip() == resources[0]
    ]
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", body)
    return {
        "registers": registers,
        "stack": stack,
        "shared": shared,
        "instructions": collections.Counter(opcodes),
    }


def backends_of(model_name):
    """Return the model's Backend, and that of its plain kernels where it has fast ones beside."""
    found = [load_backend(model_name, "cuda")]
    plain = f"msgd.models.{model_name}.cuda_plain"
    if importlib.util.find_spec(plain):
        found.append(importlib.import_module(plain).Backend)
    return found


def main(model_name):
    pretend_device()
    launched = {}
    record_launches(launched)
    dataset = make_dataset(1200, 600, 600, (28, 28), 10)
    settings = complete_experiment({"model": model_name})
    results = []
    for float_name in ("float32", "float64"):
        float_x = np.dtype(float_name).type
        parameters = load_model(model_name).initial_parameters(dataset, settings, float_x)
        launched.clear()
        for make in backends_of(model_name):
            backend = make(dataset, parameters, settings, float_x)
            backend.train(0, 2)
            backend.count_errors("valid")
            if hasattr(backend, "cost_and_gradient"):
                backend.cost_and_gradient()
        for name, (kernel, signature, threads) in launched.items():
            found = {"kernel": name, "floatX": float_name, "threads": threads}
            results.append({**found, **inspect(kernel, signature)})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
