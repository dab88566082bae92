"""Compile a model's CUDA kernels for an H100 on a machine without a GPU; print what came out.

Run as a program of its own, never on the simulator: ``python tests/offline_compiler.py MODEL``, at
the published sizes, or at others with the words SIDE CLASSES BATCH_SIZE after it, images being
SIDE x SIDE pixels. It drives the model's real Backends, of cuda.py and of cuda_plain.py, with
launches replaced by compilation to an sm_90 cubin, and prints a JSON list with an entry per kernel
and float type: registers, how many it may have, bytes of stack and of shared memory, how often each
machine instruction occurs, and whether it is one of the fast kernels.

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
from types import SimpleNamespace

import numba.cuda.api
import numba.cuda.compiler
import numba.cuda.cudadrv.devices
import numba.cuda.dispatcher
import numpy as np
from compiler_wheels import tool_folder
from conftest import make_dataset
from numba import cuda, types
from numba.cuda.core.caching import NullCache
from numba.cuda.cudadrv import nvvm

from msgd.config import complete_experiment, parse_hyperparameter_words
from msgd.kernels import cuda as kernels
from msgd.kernels import options
from msgd.models import CLASSIFIERS, load_backend, load_model

COMPUTE_CAPABILITY = (9, 0)
VARIABLE = re.compile(rb'@"?llvm\.dbg\.')  # in a line of LLVM's code that says where a variable is
SM_REGISTERS = 65_536


class StandIn(np.ndarray):
    """A host array in the place of a device array: it has a type and a shape, which is enough."""

    def copy_to_host(self):
        return np.array(self)

    def copy_to_device(self, array):
        self[...] = array


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


def leave_out_variables():
    """Compile without what says where variables are, which the option lineinfo brings.

    NVVM refuses some of it ("Symbol name with unsupported characters"); lines of the source stay.
    """
    add_whole = nvvm.CompilationUnit.add_module

    def add_module(self, code):
        if not code.startswith(b"BC"):  # text, not bitcode
            kept = [line for line in code.split(b"\n") if not VARIABLE.search(line)]
            code = b"\n".join(kept)
        return add_whole(self, code)

    nvvm.CompilationUnit.add_module = add_module


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
            launched[kernel.py_func.__name__] = kernel, signature

        return record

    numba.cuda.dispatcher.CUDADispatcher.__getitem__ = launch


def disassemble(kernel, signature, *commands):
    """Compile ``kernel``; return what each of ``commands``, a tool's words, prints of its cubin."""
    kernel._cache = NullCache()  # no place for kernels that no device has loaded
    folder = tool_folder()
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    cubin = kernel.compile(signature)._codelibrary.get_cubin(cc=(*COMPUTE_CAPABILITY, "a"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin.code)
        file.flush()
        return [
            subprocess.run(
                [str(folder / tool), *options, file.name],
                capture_output=True,
                text=True,
                check=True,
                env=environment,
            ).stdout
            for tool, *options in commands
        ]


def inspect(kernel, signature):
    """Compile ``kernel``; return its registers, bytes of memory and instruction counts."""
    usage, assembly = disassemble(
        kernel, signature, ("cuobjdump", "-res-usage"), ("cuobjdump", "-sass")
    )
    # The cubin holds functions of the CUDA runtime too; ours have the package in their name.
    (resources,) = re.findall(r"Function (\S*msgd\S*):\n\s*(.*)", usage)
    registers, stack, shared = (
        int(re.search(f"{name}:(\\d+)", resources[1])[1]) for name in ("REG", "STACK", "SHARED")
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


def most_registers(kernel, float_name):
    """Return how many registers a thread of ``kernel`` may have.

    A kernel that says how many threads a block has says too how many blocks an SM must hold. A
    quarter of an SM, with a quarter of its registers, runs every fourth warp.
    """
    bounds = kernel.targetoptions.get("launch_bounds")
    if not bounds:
        return options.MAX_REGISTERS[float_name]
    threads, blocks = bounds
    warps = -(-threads // 32) * blocks
    return min(SM_REGISTERS // 4 // (-(-warps // 4) * 32), 255)


def backend_classes(model_name):
    """Yield the model's CUDA Backend and, where it has one, that of its plain kernels."""
    yield load_backend(model_name, "cuda")
    if has_plain(model_name):
        yield importlib.import_module(f"msgd.models.{model_name}.cuda_plain").Backend


def has_plain(model_name):
    """Return whether a model has fast kernels, and so plain ones in a file of their own."""
    return importlib.util.find_spec(f"msgd.models.{model_name}.cuda_plain") is not None


def launches(model_name, float_name, side=28, n_classes=10, **changes):
    """Return {name: (kernel, signature)} of what a model launches.

    Call pretend_device first. It trains, validates, and computes the gradient where it has one, on
    images of side x side pixels; changes: of the published settings.
    """
    launched = {}
    record_launches(launched)
    dataset = make_dataset(1200, 600, 600, (side, side), n_classes)
    settings = complete_experiment({"model": model_name, **changes})
    float_x = np.dtype(float_name).type
    parameters = load_model(model_name).initial_parameters(dataset, settings, float_x)
    for backend_class in backend_classes(model_name):
        backend = backend_class(dataset, parameters, settings, float_x)
        backend.train(0, 2)
        if model_name in CLASSIFIERS:
            backend.count_errors("valid")
            backend.predict("valid")
        if hasattr(backend, "cost_and_gradient"):
            backend.cost_and_gradient()
    return launched


def main(model_name, *words):
    """Print what inspect returns of each kernel of a model, as JSON.

    words: key=value, of what launches takes: side, n_classes or hyperparameters.
    """
    pretend_device()
    changes, results = parse_hyperparameter_words(words), []
    for float_name in ("float32",) if "arithmetic" in changes else ("float32", "float64"):
        for name, (kernel, signature) in launches(model_name, float_name, **changes).items():
            file = kernel.py_func.__module__.rpartition(".")[2]
            result = {
                "kernel": name,
                "floatX": float_name,
                "is_fast": has_plain(model_name) and file not in ("cuda_plain", "cuda_backend"),
                "most_registers": most_registers(kernel, float_name),
            }
            results.append({**result, **inspect(kernel, signature)})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
