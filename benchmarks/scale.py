"""Cost per example and memory as the training set grows from 50,000 to 8.1 million images.

    python benchmarks/scale.py [--images 8100000] [--folder DIR] [--output FILE]

Lays MNIST's training images end to end in a .npy file (6.4 GB for 8.1 million), trains one epoch of
logistic regression over it on the CPU, and prints nanoseconds per example and the peak of the
process's resident memory beside those of the 50,000, as JSON. The file is removed again. Each run
is a process of its own, and the sizes alternate, for the machine's speed drifts: small, large,
small, large, small. The first large run reads the file from the disk where it is no longer in the
page cache.
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

ROOT = Path(__file__).resolve().parents[1]
MNIST = ROOT / "results" / "data" / "mnist"
N_MNIST = 50_000


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


def measure(folder, n_epochs):
    """Train ``n_epochs`` and one more to warm up; return seconds per example and peak memory."""
    from msgd.config import complete_experiment
    from msgd.data.dataset import load_dataset
    from msgd.models import load_backend, load_model

    dataset = load_dataset(folder)
    settings = complete_experiment({"model": "logistic_regression"})
    parameters = load_model("logistic_regression").initial_parameters(dataset, settings, np.float32)
    backend = load_backend("logistic_regression", "cpu")(dataset, parameters, settings, np.float32)
    backend.train(0, 83)
    n_batches = len(dataset.train_x) // 600
    started = time.perf_counter()
    backend.train(0, n_epochs * n_batches)
    seconds = time.perf_counter() - started
    return {
        "images": len(dataset.train_x),
        "nanoseconds_per_example": round(1e9 * seconds / (n_epochs * n_batches * 600), 1),
        "peak_resident_megabytes": peak_resident_megabytes(),
    }


def measure_in_process(folder, n_epochs):
    """Run measure in a fresh process; return its result."""
    command = [sys.executable, __file__, "--measure", str(folder), "--epochs", str(n_epochs)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    """Measure both sizes and print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8_100_000)
    parser.add_argument("--folder", type=Path, help="where the large file may lie for a while")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.epochs)))
        return
    from msgd.provenance import describe_code, describe_hardware

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_large(folder, options.images)
        sizes = [(MNIST, 20), (folder, 1)] * 2 + [(MNIST, 20)]
        runs = [measure_in_process(*size) for size in sizes]
    report = {"runs": runs, "hardware": describe_hardware(), "code": describe_code()}
    text = json.dumps(report, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
