"""Steps of a GPU day that measure parts, or need tools and libraries beside msgd's own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from common import ROOT
from gpu_day_common import (
    TF32,
    MissingError,
    make_backend,
    make_fast_toy,
    median_seconds,
    settings_of,
    toy_dataset,
)
from gpu_day_phases import PHASES

from msgd.models import UNSUPERVISED

TENSOR_SHAPE = (16, 28)  # of the smallest images that tensor cores serve
STEPS = Path(__file__).with_name("gpu_day_steps.py")


def chase_kernel():
    """Return a kernel of loads each of which waits for the one before; gpu_estimate.py reads it."""
    from numba import cuda

    @cuda.jit
    def chase(following, times, last):
        at = last[0]  # goes on where the last launch ended, so that large arrays are new ground
        for _ in range(times):
            at = following[at]
        last[0] = at

    return chase


def micro(found, day):
    """What estimates of kernels lean on: waiting of the grid, loads, launches, allocations."""
    from numba import cuda

    @cuda.jit
    def wait(times):
        grid = cuda.cg.this_grid()
        for _ in range(times):
            grid.sync()

    @cuda.jit
    def nothing(a, b, c, d):
        pass

    for blocks in (2, 99, 125, 132, 264):
        few, many = (median_seconds(lambda n=n, b=blocks: wait[b, 128](n), 3) for n in (10, 5010))
        found[f"grid.sync of {blocks} blocks, us"] = (many - few) / 5000 * 1e6
    chase, last = chase_kernel(), cuda.to_device(np.zeros(1, np.int64))
    loads = 50_000
    for name, size, step in (("L1", 2**11, 272), ("L2", 2**20, 8144), ("HBM", 2**26, 8144)):
        following = cuda.to_device((np.arange(size, dtype=np.int64) + step) % size)
        seconds = median_seconds(lambda a=following: chase[1, 1](a, loads, last), 3)
        found[f"dependent load, {name}, ns"] = seconds / loads * 1e9
        del following
    array = cuda.to_device(np.zeros(1))

    def launch_many():
        for _ in range(500):
            nothing[128, 32](array, array, array, array)

    found["launch with 4 arrays, us"] = median_seconds(launch_many, 3) / 500 * 1e6

    def allocate_many():
        for _ in range(200):
            cuda.device_array(10_000, np.float32)

    found["allocation of 40 kB, us"] = median_seconds(allocate_many, 3) / 200 * 1e6
    found["summary"] = f"grid.sync of 132 blocks: {found['grid.sync of 132 blocks, us']:.2f} us"


def toy(found, day):
    """Train and validate all models as toys, by plain and fast kernels: the sanitizer watches."""
    dataset = toy_dataset()
    for model in day.models:
        plain, _ = make_backend(model, "cuda_plain", dataset, is_toy=True)
        fast, _ = make_fast_toy(model)
        backends = {"plain": plain, "fast": fast}
        if model == "lenet":
            backends["TF32"], _ = make_fast_toy(model, TENSOR_SHAPE, **TF32)
        for name, backend in backends.items():
            backend.train(0, 2)
            found[f"{model}, {name}"] = backend.count_errors("valid")
    for model in () if day.is_rehearsal else UNSUPERVISED:
        backend, _ = make_backend(model, "cuda", dataset, is_toy=True)
        found[model] = backend.train(0, 2).tolist()


def sanitizer(found, day):
    """What compute-sanitizer sees.

    Accesses outside of arrays, loads of what none wrote, races in shared memory.
    """
    if shutil.which("compute-sanitizer") is None:
        raise MissingError("compute-sanitizer")
    codes = {}
    for tool in ("memcheck", "initcheck", "racecheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        # cuda-bindings asks the driver for functions of later versions; that is no error of ours.
        command += ["--report-api-errors", "no"] if tool == "memcheck" else []
        command += [sys.executable, STEPS, "toy", day.folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout, done.stderr)
        codes[tool] = done.returncode
        found[tool] = {"exit_code": done.returncode, "last": done.stdout.splitlines()[-3:]}
    found["summary"] = f"exit codes {codes}; 0 is nothing found, 9 something"


TORCH_EPOCHS = {"logistic_regression": 20, "lenet": 3, "mlp": 1}


def torch(found, day):
    """Training epochs per second of PyTorch: eager, a CUDA graph of an epoch, compiled."""
    try:
        import torch as library
    except ImportError:
        raise MissingError("PyTorch") from None
    if not library.cuda.is_available():
        raise MissingError(f"a device for PyTorch {library.__version__}")
    found["version"] = library.__version__
    dataset = day.dataset()
    ways = {"eager": train_eagerly, "graph": graph_of_an_epoch, "compile": train_compiled}
    for way, make in ways.items():  # compiling takes longest, and may run out of time
        for model in day.models:
            epoch = make(library, on_device(model, dataset, day))
            epochs = day.epochs(model, TORCH_EPOCHS)
            rate = epochs / median_seconds(lambda e=epoch, n=epochs: [e() for _ in range(n)], 2)
            found[model] = {**found.get(model, {}), way: rate}
    found["summary"] = f"PyTorch {library.__version__}"


def on_device(model, dataset, day):
    """Return the PyTorch twin of ``model`` with its data on the GPU."""
    from competitors import TorchEager

    from msgd.models import load_model

    settings = settings_of(model, day.is_rehearsal)
    parameters = load_model(model).initial_parameters(dataset, settings, np.float32)
    twin = TorchEager(dataset, settings, parameters)
    twin.network.cuda()
    twin.x, twin.y = twin.x.cuda(), twin.y.cuda()
    return twin


def train_eagerly(library, twin):
    """Return a function that trains an epoch."""
    return twin.train_epoch


def train_compiled(library, twin):
    """Return a function that trains an epoch, its loss compiled."""
    twin.loss = library.compile(twin.loss, mode="reduce-overhead")
    return twin.train_epoch


def graph_of_an_epoch(library, twin):
    """Return a function that trains an epoch by one replay of a CUDA graph."""

    def train(batches):
        for x, y in batches:
            twin.optimizer.zero_grad(set_to_none=False)
            twin.loss(x, y).backward()
            twin.optimizer.step()

    batches = [*zip(twin.x, twin.y, strict=True)]
    library.cuda.synchronize()
    stream = library.cuda.Stream()
    with library.cuda.stream(stream):
        train(batches[:3])
    library.cuda.synchronize()
    graph = library.cuda.CUDAGraph()
    with library.cuda.graph(graph, stream=stream):
        train(batches)
    return graph.replay


PROFILED_BATCHES = {"logistic_regression": 83, "lenet": 3, "mlp": 20}


def profile(found, day):
    """Time per phase of a minibatch, and samples by source line of ncu.

    The phases are those of the plain kernels, each repeated alone; the samples, which go to
    FOLDER/ncu_MODEL.csv, are of the kernels that a training takes.
    """
    dataset = day.dataset()
    for model in day.models:
        backend, _ = make_backend(model, "cuda_plain", dataset, is_toy=day.is_rehearsal)
        microseconds = PHASES[model](backend)
        found[model] = {"us": microseconds, "us in all": sum(microseconds.values())}
    longest = {m: max(found[m]["us"], key=found[m]["us"].get) for m in day.models}
    found["summary"] = f"longest phases: {longest}"
    if shutil.which("ncu") is None:
        found["ncu"] = "missing"
        return
    found["ncu"] = {}
    for model in day.models:
        found["ncu"] = {**found["ncu"], model: sample(model, day)}


def sample(model, day):
    """Run ncu on a training of a few minibatches; return its exit code."""
    command = ["ncu", "--clock-control", "none", "--import-source", "no", "--page", "source"]
    command += ["--csv", "--section", "SourceCounters", "--kernel-name", "regex:_train"]
    command += [sys.executable, __file__, model, str(PROFILED_BATCHES[model]), str(day.folder)]
    cache = day.folder / "kernels-with-lines"  # compiled kernels are not told apart by options
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    (day.folder / f"ncu_{model}.csv").write_text(done.stdout[:8_000_000])
    print(done.stderr[-2000:])
    return done.returncode


def train_with_lines(model, count, folder):
    """Train ``count`` minibatches with kernels that know the lines of their source."""
    from gpu_day_common import Day

    from msgd.kernels import options

    for kind in (options.CUDA, options.CUDA_ENTRY):  # before a kernel is made with them
        kind["lineinfo"] = True
    backend, _ = make_backend(model, "cuda", Day(Path(folder)).dataset())
    backend.train(0, int(count))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))
    train_with_lines(*sys.argv[1:])
