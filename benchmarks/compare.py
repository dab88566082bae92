"""Speed on the CPU, beside PyTorch, JAX and NumPy.

    pip install -r benchmarks/requirements.txt
    python benchmarks/compare.py [--models mlp] [--turns 5] [--busy] [--name compare_2]
    python benchmarks/compare.py --unsupervised [--models da] [--turns 5]

Trains the tutorials' models in float32, every library in a process of its own that waits while
another has its turn. Counted are epochs per second, of a pass over the training minibatches and one
validation each; with --unsupervised, of the models that learn without labels, minibatches per
second. First every library trains some from the same parameters, and its validation errors or its
costs are held against msgd's; compiling falls into them and is reported apart. Then they take
turns. With --busy a process that only computes runs beside them all the time. Writes
results/compare.json (or compare_unsupervised.json, compare_busy.json, or what --name says) with
hardware and versions; the first two have a picture in docs/images/.
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
from typing import NamedTuple

import competitors_unsupervised
import numpy as np
from common import ROOT, starting_point, write_report
from competitors import COMPETITORS

RESULTS = Path(__file__).with_name("results")
PICTURES = ROOT / "docs" / "images"
WITH_PICTURE = "compare", "compare_unsupervised"
ROUNDING = 1e-4  # by which costs in float32 may differ


class Epochs(NamedTuple):
    """How a classifier is measured: in epochs, of a pass over the minibatches and a validation."""

    first: int  # epochs trained before the turns, and compared
    turn: int  # epochs of a turn
    examples: int  # of the validation set, by which a library's errors may differ from msgd's
    unit, size = "epochs", 1

    def prepare(self, name, model):
        """Return (train, wake) of library ``name``, functions without arguments.

        train() trains one epoch, or span, and returns what check compares; wake() lets the
        library's threads compute something.
        """
        competitor = COMPETITORS[name](*starting_point(model))

        def train():
            competitor.train_epoch()
            return competitor.count_validation_errors()

        return train, competitor.count_validation_errors

    def check(self, found, expected):
        """Return what to report of the first errors; raise ValueError if they are not msgd's."""
        distance = max(abs(a - b) for a, b in zip(found, expected, strict=True))
        if distance > self.examples:
            raise ValueError(f"{distance} validation examples from msgd's")
        return {"first_errors": found}


class Spans(NamedTuple):
    """How training without labels is measured: in spans of minibatches, and costs.

    Of a stack it is the pre-training of the first layer.
    """

    size: int  # minibatches of a span, which divide those of an epoch
    first: int  # spans trained before the turns, and compared
    turn: int  # spans of a turn
    equal: int  # minibatches whose costs are msgd's but for rounding
    mean: float  # by which share the mean cost may differ: samples come from other generators
    target: float  # the ratio to the best other that was aimed at
    unit = "minibatches"

    def prepare(self, name, model):
        """See Epochs.prepare."""
        competitor = competitors_unsupervised.make(name, *starting_point(model))

        def train():
            return competitor.train(self.size)

        return train, train

    def check(self, found, expected):
        """Return what to report of the first costs; raise ValueError if they are not msgd's."""
        found, expected = np.ravel(found), np.ravel(expected)
        n, mean = self.equal, float(found.mean())
        distance = np.max(np.abs(found[:n] / expected[:n] - 1), initial=0)
        far = abs(mean / expected.mean() - 1)
        if not (distance <= ROUNDING and far <= self.mean):
            raise ValueError(f"first costs {distance:.1g} from msgd's, their mean {far:.1g}")
        return {"first_costs": [*map(float, found[:3])], "first_mean_cost": mean}


PLAN = {
    "logistic_regression": Epochs(first=5, turn=60, examples=3),
    "mlp": Epochs(first=2, turn=2, examples=5),
    # Its max-pooling splits ties differently elsewhere.
    "lenet": Epochs(first=1, turn=1, examples=40),
}
UNSUPERVISED = {
    "da": Spans(500, first=1, turn=5, equal=100, mean=1e-4, target=3),
    "rbm": Spans(100, first=5, turn=5, equal=1, mean=0.1, target=2),
    "sda": Spans(500, first=1, turn=4, equal=100, mean=1e-4, target=5),
    "dbn": Spans(250, first=2, turn=5, equal=0, mean=0.01, target=2),
}
SETTLE_SECONDS = 0.5
PATIENCE_SECONDS = 60  # of the first epoch; a slower library has a single turn
NOT_FOR = {("NumPy", "lenet")}  # nobody would
PACKAGES = ("msgd", "numpy", "numba", "torch", "jax")


def serve(name, model):
    """Be the process of library ``name``: answer lines, numbers of epochs or spans, by JSON."""
    train, wake = (PLAN | UNSUPERVISED)[model].prepare(name, model)
    is_warm = False
    for line in sys.stdin:
        if is_warm:  # the threads of the library before go to sleep, and ours wake up
            time.sleep(SETTLE_SECONDS)
            wake()
        is_warm = True
        seconds, found = [], []
        for _ in range(int(line)):
            started = time.perf_counter()
            found.append(train())
            seconds.append(time.perf_counter() - started)
        print(json.dumps({"seconds": seconds, "found": found}), flush=True)


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
        """Train ``n_epochs`` or spans; return {"seconds": [...], "found": [...]}, one of each."""
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
    plan = (PLAN | UNSUPERVISED)[model]
    libraries, results, expected = {}, {}, None
    for name in COMPETITORS:
        if (name, model) in NOT_FOR:
            continue
        library = Library(name, model)
        try:
            first = library.train(plan.first)
        except RuntimeError as error:
            print(f"{model}, {name}: does not run here ({error})", file=sys.stderr)
            continue
        expected = expected or first["found"]
        try:
            found = plan.check(first["found"], expected)
        except ValueError as error:
            raise SystemExit(f"{model}, {name}: {error}") from error
        libraries[name] = library
        results[name] = {
            **found,
            "first_epoch_seconds": first["seconds"][0],
            f"{plan.unit}_per_second": [],
        }
        print(f"{model}, {name}: {found}", file=sys.stderr)
    for turn in range(turns):
        for name, library in libraries.items():
            if turn and results[name]["first_epoch_seconds"] > PATIENCE_SECONDS:
                continue  # one turn tells enough
            seconds = library.train(plan.turn)["seconds"]
            rate = len(seconds) * plan.size / sum(seconds)
            results[name][f"{plan.unit}_per_second"].append(rate)
            print(f"{model}, {name}: {rate:.3f} {plan.unit}/s", file=sys.stderr)
    for library in libraries.values():
        library.close()
    return results


def summarise(results):
    """Add medians, spreads, and msgd's ratio to the best competitor.

    The ratio is the median of those of each turn: a machine may halve its speed half-way, and what
    a library did before says nothing of what another one does after. Add, where a ratio was aimed
    at, whether it is reached.
    """
    key = f"{results['unit']}_per_second"
    for model, runs in results["models"].items():
        for run in runs.values():
            rates = run[key]
            run["median"], run["spread"] = statistics.median(rates), [min(rates), max(rates)]
        best = max((n for n in runs if n != "msgd"), key=lambda n: runs[n]["median"])
        turns = zip(runs["msgd"][key], runs[best][key], strict=False)  # the slow have a single one
        ratio = statistics.median(ours / theirs for ours, theirs in turns)
        runs["msgd"]["best_competitor"], runs["msgd"]["ratio_to_best"] = best, ratio
        if model in UNSUPERVISED:
            target = UNSUPERVISED[model].target
            runs["msgd"]["target"], runs["msgd"]["is_reached"] = target, ratio >= target


def outcome(ours):
    """Return in words how msgd did; ours: what summarise made of its run."""
    text = f"{ours['ratio_to_best']:.2f} x {ours['best_competitor']}"
    if "target" in ours:
        reached = "reached" if ours["is_reached"] else "not reached"
        text += f"; {ours['target']} x was aimed at and is {reached}"
    return text


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

    n = len(results["models"])
    figure, panels = plt.subplots(1, n, figsize=(max(10, 3.6 * n), 2.8), squeeze=False)
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
        axes.set_xlabel(f"{results['unit']} per second")
        axes.grid(axis="y", visible=False)
    save_figure(figure, path, 110)


def main():
    """Measure, print the ratios, write the JSON and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--unsupervised", action="store_true", help="the models without labels")
    parser.add_argument("--models", nargs="+", choices=[*PLAN, *UNSUPERVISED])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--busy", action="store_true", help="with a competing process")
    parser.add_argument("--name", help="of the JSON file")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    plan = UNSUPERVISED if options.unsupervised else PLAN
    if not {*(options.models or [])} <= {*plan}:
        parser.error("models without labels, and no others, are measured with --unsupervised")
    name = "compare" + "_unsupervised" * options.unsupervised + "_busy" * options.busy
    name = options.name or name
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if options.busy else None
    try:
        models = {model: measure(model, options.turns) for model in options.models or plan}
    finally:
        if busy:
            busy.kill()
    results = {
        "unit": "minibatches" if options.unsupervised else "epochs",
        "models": models,
        "busy": options.busy,
        "load_before": os.getloadavg()[2],
        "versions": versions(),
    }
    summarise(results)
    write_report(results, RESULTS / f"{name}.json")
    if name in WITH_PICTURE:
        draw(results, PICTURES / f"{name}.png")
    for model, runs in models.items():
        print(f"{model}: {outcome(runs['msgd'])}")


if __name__ == "__main__":
    main()
