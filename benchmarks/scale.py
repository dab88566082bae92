"""Cost per example and memory as the training set grows from 50,000 to 8.1 million images.

    python benchmarks/scale.py [--images 8100000] [--models ...] [--folder DIR] [--output FILE]

Lays MNIST's training images end to end in a .npy file (6.4 GB for 8.1 million), trains an epoch of
a model over it on the CPU, and prints nanoseconds per example and the peak of the process's
resident memory beside those of the 50,000, as JSON. Listing the nonzero pixels, which comes once
before the first epoch, is timed apart. The files, with lists as large again, are removed at the
end. Each run is a process of its own, and the sizes alternate, for the machine's speed drifts:
small, large, small, large, small.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import MNIST, cpu_backend, write_report

N_MNIST = 50_000
EPOCHS = {"logistic_regression": 40, "mlp": 2}  # of the 50,000 images


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
    (folder / "dataset.json").symlink_to(MNIST / "dataset.json")


def peak_resident_megabytes():
    """Return this process's peak of resident memory, mapped pages of files included."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024


def measure(folder, model, n_epochs):
    """Train ``n_epochs`` and a first one; return seconds per example and peak memory."""
    backend = cpu_backend(model, folder)
    n_images, n_batches = len(backend.dataset.train_x), backend.n_train_batches
    n_examples = n_batches * backend.batch_size
    backend.count_errors("valid")
    started = time.perf_counter()
    backend.train(0, 1)
    listed = time.perf_counter()
    backend.train(0, min(n_batches, N_MNIST // backend.batch_size))
    warm = time.perf_counter()
    backend.train(0, n_epochs * n_batches)
    ended = time.perf_counter()
    return {
        "model": model,
        "images": n_images,
        "nanoseconds_per_example": round(1e9 * (ended - warm) / (n_epochs * n_examples), 1),
        "listing_nanoseconds_per_example": round(1e9 * (listed - started) / n_examples, 1),
        "peak_resident_megabytes": peak_resident_megabytes(),
    }


def measure_in_process(folder, model, n_epochs):
    """Run measure in a fresh process; return its result."""
    command = [sys.executable, __file__, "--measure", str(folder), model, str(n_epochs)]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(result, file=sys.stderr)
    return result


def main():
    """Measure both sizes and print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8_100_000)
    parser.add_argument("--folder", type=Path, help="where the large file may lie for a while")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--models", nargs="+", default=[*EPOCHS], choices=EPOCHS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        folder, model, n_epochs = options.measure
        print(json.dumps(measure(Path(folder), model, int(n_epochs))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_large(folder, options.images)
        runs = []
        for model in options.models:
            small, large = (MNIST, model, EPOCHS[model]), (folder, model, 1)
            measure_in_process(*small)  # compiles
            runs += [measure_in_process(*run) for run in (small, large, small, large, small)]
    write_report({"runs": runs}, options.output)


if __name__ == "__main__":
    main()
