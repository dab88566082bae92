"""Epochs per second on the CPU, beside PyTorch, JAX and NumPy.

    pip install -r benchmarks/requirements.txt
    python benchmarks/compare.py [--models mlp] [--turns 5] [--busy] [--name compare_2]

Trains the tutorials' models in float32, every library in a process of its own that waits while
another has its turn; an epoch is a pass over the training minibatches and one validation. First
every library trains some epochs from the same parameters, and its validation errors are held
against msgd's; compiling falls into them and is reported apart. Then they take turns. With --busy
a process that only computes runs beside them all the time. Writes results/compare.json (or
compare_busy.json, or what --name says) with hardware and versions; compare.json has a picture,
docs/images/compare.png.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common import ROOT, starting_point, write_report
from competitors import COMPETITORS

RESULTS = Path(__file__).with_name("results")
PICTURE = ROOT / "docs" / "images" / "compare.png"

# Epochs trained before the turns and compared, epochs of a turn, and by how many examples of the
# validation set a library may differ: LeNet's max-pooling splits ties differently elsewhere.
PLAN = {
    "logistic_regression": {"first": 5, "turn": 60, "examples": 3},
    "mlp": {"first": 2, "turn": 2, "examples": 5},
    "lenet": {"first": 1, "turn": 1, "examples": 40},
}
SETTLE_SECONDS = 0.5
PATIENCE_SECONDS = 60  # of the first epoch; a slower library has a single turn
NOT_FOR = {("NumPy", "lenet")}  # nobody would
PACKAGES = ("msgd", "numpy", "numba", "torch", "jax")


def serve(name, model):
    """Be the process of library ``name``: answer each line, a number of epochs, with JSON."""
    competitor = COMPETITORS[name](*starting_point(model))
    is_warm = False
    for line in sys.stdin:
        if is_warm:  # the threads of the library before go to sleep, and ours wake up
            time.sleep(SETTLE_SECONDS)
            competitor.count_validation_errors()
        is_warm = True
        seconds, errors = [], []
        for _ in range(int(line)):
            started = time.perf_counter()
            competitor.train_epoch()
            errors.append(competitor.count_validation_errors())
            seconds.append(time.perf_counter() - started)
        print(json.dumps({"seconds": seconds, "errors": errors}), flush=True)


class Library:
    """A library's process."""

    def __init__(self, name, model):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name, model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def train(self, n_epochs):
        """Train ``n_epochs``; return {"seconds": [...], "errors": [...]}, a number per epoch."""
        self.process.stdin.write(f"{n_epochs}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args} ended")
        return json.loads(answer)

    def close(self):
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def measure(model, turns):
    """Return {library: what was measured} for ``model``."""
    plan = PLAN[model]
    libraries, results = {}, {}
    for name in COMPETITORS:
        if (name, model) in NOT_FOR:
            continue
        library = Library(name, model)
        try:
            first = library.train(plan["first"])
        except RuntimeError as error:
            print(f"{model}, {name}: does not run here ({error})", file=sys.stderr)
            continue
        distance = max(
            abs(found - expected)
            for found, expected in zip(
                first["errors"],
                results.get("msgd", first).get("first_errors", first["errors"]),
                strict=True,
            )
        )
        if distance > plan["examples"]:
            raise SystemExit(f"{model}, {name}: {distance} validation examples from msgd's")
        libraries[name] = library
        results[name] = {
            "first_errors": first["errors"],
            "first_epoch_seconds": first["seconds"][0],
            "epochs_per_second": [],
        }
        print(f"{model}, {name}: errors {first['errors']}", file=sys.stderr)
    for turn in range(turns):
        for name, library in libraries.items():
            if turn and results[name]["first_epoch_seconds"] > PATIENCE_SECONDS:
                continue  # one turn tells enough
            seconds = library.train(plan["turn"])["seconds"]
            results[name]["epochs_per_second"].append(len(seconds) / sum(seconds))
            print(f"{model}, {name}: {len(seconds) / sum(seconds):.3f} epochs/s", file=sys.stderr)
    for library in libraries.values():
        library.close()
    return results


def summarise(results):
    """Add medians, spreads, and the ratio of msgd's median to the best competitor's."""
    for runs in results["models"].values():
        for run in runs.values():
            rates = run["epochs_per_second"]
            run["median"], run["spread"] = statistics.median(rates), [min(rates), max(rates)]
        best = max((n for n in runs if n != "msgd"), key=lambda n: runs[n]["median"])
        ratio = runs["msgd"]["median"] / runs[best]["median"]
        runs["msgd"]["best_competitor"], runs["msgd"]["ratio_to_best"] = best, ratio


def versions():
    """Return {package: version, None if it is not installed}."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def draw(results, path):
    """Draw a bar per library and a panel per model to the PNG file ``path``."""
    import matplotlib.pyplot as plt

    from msgd.plots.style import BLUE, GREY, INK, save_figure

    figure, panels = plt.subplots(1, len(results["models"]), figsize=(10, 2.8), squeeze=False)
    for axes, (model, runs) in zip(panels[0], results["models"].items(), strict=True):
        names = [*runs][::-1]
        medians = [runs[name]["median"] for name in names]
        low, high = zip(*(runs[name]["spread"] for name in names), strict=True)
        whiskers = [
            [m - a for m, a in zip(medians, low, strict=True)],
            [b - m for m, b in zip(medians, high, strict=True)],
        ]
        colours = [BLUE if name == "msgd" else GREY for name in names]
        axes.barh(names, medians, xerr=whiskers, color=colours, ecolor=INK)
        axes.set_title(f"{model}: {runs['msgd']['ratio_to_best']:.1f} x the best other")
        axes.set_xlabel("epochs per second")
        axes.grid(axis="y", visible=False)
    save_figure(figure, path, 110)


def main():
    """Measure, print the ratios, write the JSON and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[*PLAN], choices=PLAN)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--busy", action="store_true", help="with a competing process")
    parser.add_argument("--name", help="of the JSON file")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if options.busy else None
    try:
        models = {model: measure(model, options.turns) for model in options.models}
    finally:
        if busy:
            busy.kill()
    results = {
        "models": models,
        "busy": options.busy,
        "load_before": os.getloadavg()[2],
        "versions": versions(),
    }
    summarise(results)
    name = options.name or ("compare_busy" if options.busy else "compare")
    write_report(results, RESULTS / f"{name}.json")
    if name == "compare":
        draw(results, PICTURE)
    for model, runs in models.items():
        ours = runs["msgd"]
        print(f"{model}: {ours['ratio_to_best']:.2f} x {ours['best_competitor']}")


if __name__ == "__main__":
    main()
