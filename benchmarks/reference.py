"""How much faster the fast CPU kernels are than the plain loops of reference.py.

    python benchmarks/reference.py [--models mlp ...] [--turns 5] [--output FILE]

Trains each model of the tutorials on MNIST in float32, with its published settings: minibatches by
the plain loops and by the fast kernels, in turns, in one process. The plain loops run on one
thread; so do the fast kernels, and once more on all cores. Prints JSON with hardware and versions.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numba
from common import backend_at_start, write_report

# Minibatches of a turn: (plain loops, fast kernels).
TURNS = {"logistic_regression": (10, 400), "mlp": (20, 1000), "lenet": (1, 4)}


def seconds_per_minibatch(backend, n, n_threads):
    """Return the mean seconds of the next ``n`` minibatches on ``n_threads`` threads."""
    numba.set_num_threads(n_threads)
    started = time.perf_counter()
    backend.train(0, n)
    return (time.perf_counter() - started) / n


def measure(model, n_turns):
    """Return {way: median seconds per minibatch} for ``model``, and the ratio on one thread."""
    n_plain, n_fast = TURNS[model]
    plain, fast = backend_at_start(model, "reference"), backend_at_start(model, "cpu")
    n_cores = numba.config.NUMBA_NUM_THREADS
    ways = {
        "reference": (plain, n_plain, 1),
        "one_thread": (fast, n_fast, 1),
        "all_cores": (fast, n_fast, n_cores),
    }
    for backend in (plain, fast):  # compiles, and lists pixels
        backend.train(0, 1)
    seconds = {way: [] for way in ways}
    for _ in range(n_turns):
        for way, arguments in ways.items():
            seconds[way].append(seconds_per_minibatch(*arguments))
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    return {
        "batch_size": plain.settings["batch_size"],
        "seconds_per_minibatch": medians,
        "turns": seconds,
        "ratio_on_one_thread": medians["reference"] / medians["one_thread"],
    }


def main():
    """Measure and print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[*TURNS], choices=TURNS)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    models = {}
    for model in options.models:
        models[model] = measure(model, options.turns)
        print(model, f"{models[model]['ratio_on_one_thread']:.1f} x", file=sys.stderr)
    write_report({"models": models}, options.output)


if __name__ == "__main__":
    main()
