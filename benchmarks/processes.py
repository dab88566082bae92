"""What running as processes costs: start-up, and runs side by side.

    python benchmarks/processes.py [--models mlp ...] [--output FILE]

For each model, in float32 on MNIST, on the CPU: seconds from the start of a process to the end of
its first minibatch, with compiled kernels on disk (warm) and without (cold); and how much longer
two runs of one thread take side by side than one alone. Prints JSON with hardware and versions.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import backend_at_start, write_report

REPEATS = 3
SPANS = {"logistic_regression": 83 * 20, "mlp": 2500, "lenet": 20}  # minibatches trained alone


def train(model, started, n_minibatches):
    """Train the first minibatch and then ``n_minibatches``; print JSON."""
    backend = backend_at_start(model)
    backend.train(0, 1)
    first = time.time() - started
    begun = time.perf_counter()
    if n_minibatches:
        backend.train(1, 1 + n_minibatches)
    seconds = time.perf_counter() - begun
    print(json.dumps({"first_minibatch": first, "seconds": seconds}))


def run(model, n_minibatches=0, copies=1, *, cache, threads=None):
    """Return the results of ``copies`` processes started at once."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    if threads:
        environment["NUMBA_NUM_THREADS"] = str(threads)
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--train", model, str(time.time()), str(n_minibatches)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        for _ in range(copies)
    ]
    answers = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{model}: a process failed")
    return [json.loads(answer) for answer in answers]


def measure(model):
    """Return what the module describes, of one model."""
    with tempfile.TemporaryDirectory() as cache:
        cold = run(model, cache=cache)[0]["first_minibatch"]
        warm = [run(model, cache=cache)[0]["first_minibatch"] for _ in range(REPEATS)]
        alone, side_by_side = [], []
        for _ in range(REPEATS):
            for copies, seconds in ((1, alone), (2, side_by_side)):
                results = run(model, SPANS[model], copies, cache=cache, threads=1)
                seconds.append(max(result["seconds"] for result in results))
    return {
        "cold_seconds": round(cold, 2),
        "warm_seconds": round(statistics.median(warm), 2),
        "side_by_side_ratio": round(statistics.median(side_by_side) / statistics.median(alone), 3),
    }


def main():
    """Measure and print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[*SPANS], choices=SPANS)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        model, started, n_minibatches = options.train
        train(model, float(started), int(n_minibatches))
        return
    models = {}
    for model in options.models:
        models[model] = measure(model)
        print(model, models[model], file=sys.stderr)
    write_report({"models": models}, options.output)


if __name__ == "__main__":
    main()
