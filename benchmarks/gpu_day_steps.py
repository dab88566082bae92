"""The steps of a GPU day, each in a process of its own, which gpu_day.py starts.

A step is a function that puts what it finds into ``found``, which is written to FOLDER/STEP.json at
once: so nothing is lost when time runs out. It raises MissingError where this machine lacks what it
needs.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from unittest import mock

import numpy as np
from common import ROOT
from gpu_day import EXIT_MISSING
from gpu_day_common import TF32, Day, Found, MissingError, make_backend
from gpu_day_tools import micro, profile, sanitizer, torch, toy
from gpu_day_unlabelled import unlabelled

BLOCKS = (1, 2, 37, 99, 125, 132, 264)
PACKAGES = (
    *("numpy", "numba", "llvmlite", "numba-cuda", "cuda-bindings", "cuda-core", "cuda-pathfinder"),
    *("nvidia-nvjitlink", "nvidia-cuda-nvrtc", "nvidia-nvvm", "pandas", "scipy", "torch", "pytest"),
)
TOOLS = ("nvidia-smi", "compute-sanitizer", "ncu", "nvcc", "cuobjdump")
SMI_FIELDS = "name,driver_version,clocks.sm,clocks.max.sm,clocks.max.mem,power.limit,memory.total"


def versions(found, day):
    """Which packages, libraries, tools and device are here, and whether they go together."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    found["packages"] = {"python": sys.version.split()[0], **packages}
    found["tools"] = {name: shutil.which(name) or "missing" for name in TOOLS}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        found["nvidia-smi"] = f"{SMI_FIELDS}: {done.stdout.strip() or done.stderr.strip()}"
    from msgd.kernels import cuda as kernels

    found["numba.cuda"] = kernels.cuda.__file__
    found["why_no_device"] = kernels.why_no_device()
    if found["why_no_device"]:
        found["summary"] = found["why_no_device"]
        raise SystemExit(found["summary"])
    from numba.cuda.cuda_paths import get_cuda_paths
    from numba.cuda.cudadrv import driver, nvvm, runtime

    found["gpu"] = kernels.describe_device()
    found["cuda"] = {
        "driver": driver.get_version(),
        "compiler": runtime.get_version(),
        "libnvvm's IR": nvvm.NVVM().get_ir_version(),
        "nvJitLink is used": driver._have_nvjitlink(),
        **{name: str(path.info) for name, path in get_cuda_paths().items() if path},
    }
    device = kernels.cuda.get_current_device()
    names = ("MULTIPROCESSOR_COUNT", "CLOCK_RATE", "MAX_SHARED_MEMORY_PER_BLOCK", "WARP_SIZE")
    found["device"] = {name: getattr(device, name) for name in names}
    found["summary"] = f"{found['gpu']}, driver {found['cuda']['driver']}"


def smoke(found, day):
    """Whether all blocks of a grid wait for each other, from 1 block to 264."""
    from numba import cuda

    @cuda.jit
    def ring(first, second):
        grid = cuda.cg.this_grid()
        i = cuda.grid(1)
        first[i] = i
        grid.sync()
        second[i] = first[(i + 12345) % first.shape[0]]

    right = {}
    for blocks in BLOCKS:
        n = blocks * 128
        first, second = (cuda.to_device(np.zeros(n, np.int64)) for _ in range(2))
        ring[blocks, 128](first, second)
        expected = (np.arange(n) + 12345) % n
        right[blocks] = bool((second.copy_to_host() == expected).all())
        found["right, by blocks"] = right
    (kernel,) = ring.overloads.values()
    found["blocks at most"] = kernel.max_cooperative_grid_blocks(128)
    found["summary"] = f"right for {sum(right.values())} of {len(right)} grids"


def tests(found, day):
    """The suite's CUDA tests, on the device."""
    wanted = "(cuda or chunks) and not published and not long_spans"  # those are the CPU twins'
    chosen = ["tests/models", "tests/test_cli.py", "-k", wanted]
    if day.is_rehearsal:  # some that need no kernel
        chosen = ["tests/models/test_twins.py", "-k", "cuda"]
    workers = "1" if day.is_rehearsal else str(min(6, len(os.sched_getaffinity(0))))
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *chosen]
    command += ["-n", workers, "--maxprocesses", workers, "--dist", "load"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    # Before the limit, so that pytest still says what was wrong with those that failed.
    timer = threading.Timer(max(1, day.seconds - 15), process.send_signal, [signal.SIGINT])
    timer.daemon = True
    timer.start()
    counts, failed, line = {}, [], ""
    for line in process.stdout:
        print(line, end="")
        outcome = re.match(r"\[gw\d+\] .* (PASSED|FAILED|ERROR|SKIPPED) (.+)", line)
        if outcome:
            counts[outcome[1]] = counts.get(outcome[1], 0) + 1
            failed += [outcome[2].strip()] if outcome[1] in ("FAILED", "ERROR") else []
            found["counts"], found["failed"] = counts, failed
    found["last_line"] = line.strip()
    found["summary"] = ", ".join(f"{n} {name.lower()}" for name, n in sorted(counts.items()))
    found["exit_code"] = process.wait()
    if found["exit_code"] == INTERRUPTED:
        found["summary"] += ", then out of time"
    elif not counts or found["exit_code"] not in (ALL_PASSED, SOME_FAILED):
        raise SystemExit(f"pytest ended with {found['exit_code']}: {found['last_line']}")


ALL_PASSED, SOME_FAILED, INTERRUPTED = 0, 1, 2  # pytest's exit codes


def recorded_errors(model):
    """Return the validation errors of the first epochs, from the repository's own records."""
    if model == "logistic_regression":
        from training.test_published import VALIDATION_ERRORS

        return VALIDATION_ERRORS
    record = json.loads((ROOT / "tests" / "golden" / f"{model}.json").read_text())
    return [row["validation_errors"] for row in record["epochs"]]


ERROR_EPOCHS = {"logistic_regression": 5, "lenet": 1, "mlp": 1}


def count_errors(model, device, float_name, day, **changes):
    """Return the validation errors after each of the first epochs; changes: of the settings."""
    dataset = day.dataset()
    backend, n = make_backend(model, device, dataset, float_name, day.is_rehearsal, **changes)
    counts = []
    for epoch in range(day.epochs(model, ERROR_EPOCHS)):
        backend.train(epoch * n, (epoch + 1) * n)
        counts.append(backend.count_errors("valid"))
    return counts


def errors(found, day):
    """Validation errors of the first published epochs: on the GPU, by the CPU twin, on record."""
    day.dataset()  # once, before several processes want it
    rehearse = ["--rehearse"] if day.is_rehearsal else []
    twins = {}
    for model in day.models:  # beside the GPU, for they take long to compile
        command = [sys.executable, __file__, f"twin_errors-{model}", day.folder, *rehearse]
        twins[model] = subprocess.Popen(command)
    for model in day.models:
        counts = {"record": recorded_errors(model)[: day.epochs(model, ERROR_EPOCHS)]}
        for float_name in ("float32", "float64"):
            counts[float_name] = count_errors(model, "cuda", float_name, day)
            found[model] = counts
        if model == "lenet":
            counts["TF32"] = count_errors(model, "cuda", "float32", day, **TF32)
            found[model] = counts
    for model, process in twins.items():
        process.wait()
        path = day.folder / f"twin_errors-{model}.json"
        twin = json.loads(path.read_text()).get("errors") if path.exists() else None
        found[model] = {**found[model], "cpu float32": twin}
    off = {
        model: int(np.abs(np.subtract(found[model]["float32"], found[model]["record"])).max())
        for model in day.models
    }
    found["examples off the record, float32"] = off
    found["summary"] = f"examples off the record: {off}"


def twin_errors(found, day, model):
    """A part of the step errors: the CPU twin's."""
    found["errors"] = count_errors(model, "cpu", "float32", day)


BIT_BATCHES = {"logistic_regression": 249, "mlp": 60, "lenet": 6}


def trained_bits(model, device, blocks, count, dataset, day):
    """Return the hash of the parameters after ``count`` minibatches.

    device: "cuda" or "cuda_plain", or "TF32" for the former in that arithmetic; blocks: of grids
    that may be smaller at most, None for as many as usual. Those of the fast kernels of logistic
    regression and the MLP follow from the sizes.
    """
    plain = importlib.import_module(f"msgd.models.{model}.cuda_plain")
    fast = importlib.import_module(f"msgd.models.{model}.cuda")
    name = "launch_shape_of_tasks" if model == "mlp" else "launch_shape"
    usual = getattr(plain, name)

    def fewer_blocks(n):
        (x, y), threads = usual(n)
        return (x, min(y, blocks)), threads

    with contextlib.ExitStack() as patches:
        if blocks:
            patches.enter_context(mock.patch.object(plain, name, fewer_blocks))
        if blocks and hasattr(fast, "resident_blocks"):
            patches.enter_context(mock.patch.object(fast, "resident_blocks", return_value=blocks))
        changes = {}
        if device == "TF32":
            device, changes = "cuda", TF32
        backend, n = make_backend(model, device, dataset, is_toy=day.is_rehearsal, **changes)
        backend.train(0, min(count, n))
    arrays = backend.get_parameters().values()
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def bits(found, day):
    """Whether two runs, and runs on other grids, give the same bytes."""
    dataset = day.dataset()
    same = {}
    for model in day.models:
        count = BIT_BATCHES[model]
        few = max(2, count // 20)  # one block is slow
        groups = {
            "cuda": {"first": (None, count), "second": (None, count), "37 blocks": (37, count)},
            "cuda_plain": {"plain": (None, count), "plain, 37 blocks": (37, count)},
            "cuda_plain, few": {"plain, few": (None, few), "plain, few, one block": (1, few)},
        }
        if model == "lenet":
            runs = {"first": (None, count), "second": (None, count), "37 blocks": (37, count)}
            groups["TF32"] = {f"TF32, {name}": run for name, run in runs.items()}
        hashes, same[model] = {}, True
        for group, runs in groups.items():
            for name, (blocks, length) in runs.items():
                device = group.partition(",")[0]
                hashes[name] = trained_bits(model, device, blocks, length, dataset, day)
                found[model] = hashes
            same[model] &= len({hashes[name] for name in runs}) == 1
        found["same"] = same
    found["summary"] = f"same bytes: {same}"


CUDA_EPOCHS = {"logistic_regression": (30, 3), "lenet": (2, 3), "mlp": (10, 3)}
PLAIN_EPOCHS = {"logistic_regression": (5, 2), "lenet": (1, 1), "mlp": (1, 2)}
CPU_EPOCHS = {"logistic_regression": (30, 3), "lenet": (1, 2), "mlp": (2, 3)}


ENOUGH = 10  # seconds after which no turn is begun: what is slow gets fewer


def measure(backend, n_batches, epochs, turns):
    """Return epochs per second, each with its validation, and what the validations take."""
    backend.train(0, min(n_batches, 3))  # compiles
    backend.count_errors("valid")
    rates, training, validation = [], [], []
    begun = time.perf_counter()
    while len(rates) < turns and time.perf_counter() - begun < ENOUGH:
        seconds = []
        for _ in range(epochs):
            started = time.perf_counter()
            backend.train(0, n_batches)
            trained = time.perf_counter()
            backend.count_errors("valid")
            seconds.append((trained - started, time.perf_counter() - trained))
        training.append(epochs / sum(a for a, _ in seconds))
        rates.append(epochs / sum(a + b for a, b in seconds))
        validation += [1e3 * b for _, b in seconds]
    return {
        "epochs_per_second": statistics.median(rates),
        "all": rates,
        "training_epochs_per_second": statistics.median(training),
        "validation_ms": statistics.median(validation),
    }


def speed(found, day):
    """Epochs per second of the CUDA kernels, fast and plain, and of the CPU twin, in float32."""
    dataset = day.dataset()
    for model in day.models:
        backend, n = make_backend(model, "cuda", dataset, is_toy=day.is_rehearsal)
        found[model] = {"cuda": measure(backend, n, *plan(CUDA_EPOCHS, model, day))}
        if model == "lenet":
            backend, n = make_backend(model, "cuda", dataset, is_toy=day.is_rehearsal, **TF32)
            tf32 = measure(backend, n, *plan(CUDA_EPOCHS, model, day))
            found[model] = {**found[model], "cuda TF32": tf32}
        backend, n = make_backend(model, "cuda_plain", dataset, is_toy=day.is_rehearsal)
        plain = measure(backend, n, *plan(PLAIN_EPOCHS, model, day))
        found[model] = {**found[model], "cuda plain": plain}
        del backend
    for threads in thread_counts():
        for model in day.models:
            twin = twin_speed(model, threads, dataset, day)
            found[model] = {**found[model], "cpu": better(found[model].get("cpu"), twin)}
    ratios = {
        model: found[model]["cuda"]["epochs_per_second"] / found[model]["cpu"]["epochs_per_second"]
        for model in day.models
    }
    found["summary"] = "times the CPU twin: " + ", ".join(f"{m} {r:.3g}" for m, r in ratios.items())


def plan(epochs, model, day):
    """Return (epochs, turns) for ``model``."""
    return (1, 2) if day.is_rehearsal else epochs[model]


def thread_counts():
    """Return the numbers of threads to try, all cores first: time may run out."""
    import numba

    most = numba.config.NUMBA_NUM_THREADS
    return sorted({most, min(8, most), min(2, most)}, reverse=True)


def twin_speed(model, threads, dataset, day):
    """Return the CPU twin's speed on ``threads`` threads."""
    from msgd.kernels.options import use_threads

    use_threads(threads)
    backend, n = make_backend(model, "cpu", dataset, is_toy=day.is_rehearsal)
    measured = measure(backend, n, *plan(CPU_EPOCHS, model, day))
    rates = {threads: measured["epochs_per_second"]}
    return {**measured, "threads": threads, "by_threads": rates}


def better(one, other):
    """Return the faster of two speeds, with the rates of both by their threads; one may be None."""
    if one is None:
        return other
    faster = max(one, other, key=lambda speed: speed["epochs_per_second"])
    return {**faster, "by_threads": {**one["by_threads"], **other["by_threads"]}}


STEPS = [versions, smoke, tests, errors, bits, speed, micro, sanitizer, unlabelled, torch, profile]
PARTS = {step.__name__: step for step in [*STEPS, twin_errors, toy]}


def main():
    """Run the step that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--seconds", type=float, default=60, help="when the step will be ended")
    options = parser.parse_args()
    name, *arguments = options.step.split("-")
    found = Found(options.folder / f"{options.step}.json")
    try:
        PARTS[name](found, Day(options.folder, options.rehearse, options.seconds), *arguments)
    except MissingError as error:
        found["missing"] = f"missing: {error}"
        print(found["missing"])
        return EXIT_MISSING
    return 0


if __name__ == "__main__":
    sys.exit(main())
