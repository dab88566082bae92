"""Cost per example and memory as the training set grows from 50,000 to 8.1 million images.

    python benchmarks/scale.py [--images 8100000] [--models ...] [--folder DIR] [--output FILE]

Lays MNIST's training images end to end in a .npy file (6.4 GB for 8.1 million), trains epochs of a
model over the 50,000 and over it on the CPU, by turns in one process, for the machine's speed
drifts, and prints nanoseconds per example and the peak of the process's resident memory as JSON.
Listing the nonzero pixels, which comes once before the first epoch, is timed apart. The files, with
lists that take up to twice their room, are removed at the end.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import MNIST, backend_at_start, write_report

from msgd.files import sha256_of_file

N_MNIST = 50_000
EPOCHS = {"logistic_regression": 160, "mlp": 20}  # over the 50,000 images, a turn
TURNS = 5


def write_large(folder, n_images):
    """Write train_x.npy and train_y.npy of ``n_images`` to ``folder``; link the other arrays."""
    for part in "xy":
        source = np.load(MNIST / f"train_{part}.npy")
        large = np.lib.format.open_memmap(
            folder / f"train_{part}.npy", "w+", source.dtype, (n_images, *source.shape[1:])
        )
        for start in range(0, n_images, N_MNIST):
            n = min(N_MNIST, n_images - start)
            large[start : start + n] = source[:n]
        large.flush()
        for split in ("valid", "test"):
            (folder / f"{split}_{part}.npy").symlink_to(MNIST / f"{split}_{part}.npy")
    summary = json.loads((MNIST / "dataset.json").read_text())
    summary["examples"]["train"] = n_images
    summary["sha256"]["train_y"] = sha256_of_file(folder / "train_y.npy")
    (folder / "dataset.json").write_text(json.dumps(summary))


def peak_resident_megabytes():
    """Return this process's peak of resident memory, mapped pages of files included."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024


def prepare(folder, model):
    """List the images of ``folder`` and train an epoch; return the backend and what that took."""
    backend = backend_at_start(model, "cpu", folder)
    n_images = len(backend.dataset.train_x)
    started = time.perf_counter()
    backend.train(0, 1)
    listed = time.perf_counter()
    backend.train(0, backend.n_train_batches)
    return backend, {
        "model": model,
        "images": n_images,
        "listing_nanoseconds_per_example": round(1e9 * (listed - started) / n_images, 1),
        "peak_resident_megabytes": peak_resident_megabytes(),
        "nanoseconds_per_example": [],
    }


def measure(folder, model):
    """Train over MNIST's images and over those of ``folder`` by turns; return what each took."""
    backend_at_start(model).train(0, 1)  # compiles
    prepared = [(*prepare(MNIST, model), EPOCHS[model]), (*prepare(folder, model), 1)]
    for _ in range(TURNS):
        for backend, result, n_epochs in prepared:
            n_batches = n_epochs * backend.n_train_batches
            started = time.perf_counter()
            backend.train(0, n_batches)
            seconds = time.perf_counter() - started
            nanoseconds = 1e9 * seconds / (n_batches * backend.batch_size)
            result["nanoseconds_per_example"].append(round(nanoseconds, 1))
    for _, result, _ in prepared:
        result["median"] = statistics.median(result["nanoseconds_per_example"])
    return [result for _, result, _ in prepared]


def measure_in_process(folder, model):
    """Run measure in a fresh process; return its result."""
    command = [sys.executable, __file__, "--measure", str(folder), model]
    runs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for run in runs:
        print(run, file=sys.stderr)
    return runs


def main():
    """Measure both sizes of every model and print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8_100_000)
    parser.add_argument("--folder", type=Path, help="where the large file may lie for a while")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--models", nargs="+", default=[*EPOCHS], choices=EPOCHS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        folder, model = options.measure
        print(json.dumps(measure(Path(folder), model)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_large(folder, options.images)
        runs = [run for model in options.models for run in measure_in_process(folder, model)]
    write_report({"runs": runs}, options.output)


if __name__ == "__main__":
    main()
