"""Seconds and test error of ``MSGDClassifier.fit`` on MNIST, beside scikit-learn's own classifiers.

    python benchmarks/sklearn_fit.py [--turns 3] [--threads 2] [--share 0.02] [--output FILE]

Everyone is fitted to the 60,000 images of training and validation, on the same number of threads,
in turns, in a process for each. There it is fitted once, and again if that took less than half a
minute: our first fit in a process imports Numba and loads compiled kernels from disk. One more,
before all others and with no compiled kernels on disk, is reported apart. Our classifier and
MLPClassifier set a sixth aside for validation; LogisticRegression learns from all. scikit-learn's
get the pixels as float32, converted before. Test errors are those on the 10,000 test images.

scikit-learn's classifiers do not stop at our error, so each is also fitted with fewer iterations. A
rival is as good as ours if its median test error is at most 0.1 percentage points higher; the
fastest of those says how many times faster ours is. --share takes that share of all images, to try
the script. Prints JSON with hardware and versions.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

from common import MNIST, write_report

AS_GOOD = 0.1  # percentage points of test error
FIT_AGAIN = 30  # seconds of a first fit below which there is a second one
VALIDATION = 1 / 6
BATCH, L2 = 20, 0.0001  # of the tutorials' MLP; scikit-learn's penalty is alpha / (2 BATCH) W^2
MLP = {"model": "mlp", "n_epochs": 20}  # published settings but for the epochs, which are 1000
NETWORK = {
    "hidden_layer_sizes": (500,),
    "activation": "tanh",
    "early_stopping": True,
    "validation_fraction": VALIDATION,
}
ADAM = {**NETWORK, "solver": "adam"}
TUTORIALS_MLP = {
    **NETWORK,
    "solver": "sgd",
    "momentum": 0.0,
    "learning_rate_init": 0.01,
    "batch_size": BATCH,
    "alpha": 2 * BATCH * L2,
}


def until(iterations):
    """Return the settings of MLPClassifier for just so many iterations."""
    return {"max_iter": iterations, "n_iter_no_change": iterations}


OURS = "MSGDClassifier"
# Each fit: its estimator and its settings. random_state is the turn.
FITS = {
    "msgd logistic_regression": (OURS, {"model": "logistic_regression"}),
    "msgd logistic_regression, learning_rate 0.3": (
        OURS,
        {"model": "logistic_regression", "learning_rate": 0.3},
    ),
    "msgd mlp": (OURS, MLP),
    "msgd mlp, learning_rate 0.1": (OURS, {**MLP, "learning_rate": 0.1}),
    "msgd mlp, learning_rate 0.1, batch_size 10, l2 0": (
        OURS,
        {**MLP, "n_epochs": 15, "learning_rate": 0.1, "batch_size": 10, "l2": 0},
    ),
    **{
        f"LogisticRegression, max_iter {most}": ("LogisticRegression", {"max_iter": most})
        for most in (30, 40, 50, 60, 100, 300)
    },
    **{
        f"MLPClassifier, the tutorials' settings, max_iter {most}": (
            "MLPClassifier",
            {**TUTORIALS_MLP, **until(most)},
        )
        for most in (10, 15, 20)
    },
    **{
        f"MLPClassifier, adam, max_iter {most}": ("MLPClassifier", {**ADAM, **until(most)})
        for most in (10, 15, 20, 30)
    },
    "MLPClassifier, adam, as it stops": ("MLPClassifier", ADAM),
}
THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PACKAGES = ("msgd", "scikit-learn", "numpy", "scipy", "numba")


def images(share):
    """Return (x, y) for fitting and (x, y) of the test, that share of each from its begin."""
    import numpy as np

    from msgd.data.dataset import load_dataset

    dataset = load_dataset(MNIST)
    x, y = (
        np.concatenate([getattr(dataset, f"{split}_{part}") for split in ("train", "valid")])
        for part in "xy"
    )
    n, n_test = round(share * len(x)), round(share * len(dataset.test_x))
    return (x[:n], y[:n]), (dataset.test_x[:n_test], dataset.test_y[:n_test])


def make_estimator(name, seed, threads):
    """Return the unfitted estimator of FITS[name]."""
    kind, settings = FITS[name]
    if kind == OURS:
        from msgd.sklearn import MSGDClassifier

        return MSGDClassifier(**settings, random_state=seed, threads=threads)
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    kinds = {"LogisticRegression": LogisticRegression, "MLPClassifier": MLPClassifier}
    return kinds[kind](**settings, random_state=seed)


def fit(name, seed, threads, share):
    """Fit and test in this process.

    Returns {"seconds_first", "seconds", "test_error_percent", "n_iter"}: the seconds of the first
    fit and of the second, which are the same if there is none.
    """
    (x, y), (test_x, test_y) = images(share)
    if FITS[name][0] != OURS:
        x, test_x = (array.astype("float32") / 256 for array in (x, test_x))
    estimator = make_estimator(name, seed, threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that few iterations do not converge is what is measured
        first = seconds = seconds_of_fit(estimator, x, y)
        if first < FIT_AGAIN:
            seconds = seconds_of_fit(estimator, x, y)
    n_iter = estimator.n_iter_
    return {
        "seconds_first": first,
        "seconds": seconds,
        "test_error_percent": 100 * float((estimator.predict(test_x) != test_y).mean()),
        "n_iter": int(n_iter if isinstance(n_iter, int) else n_iter.max()),
    }


def seconds_of_fit(estimator, x, y):
    """Return how long ``estimator.fit`` takes."""
    started = time.perf_counter()
    estimator.fit(x, y)
    return time.perf_counter() - started


def fit_apart(name, seed, options):
    """Return what ``fit`` does, done in a process of its own on as many threads as told."""
    words = ["--fit", name, "--seed", str(seed), "--threads", str(options.threads)]
    environment = {**os.environ, **dict.fromkeys(THREADS, str(options.threads))}
    process = subprocess.run(
        [sys.executable, __file__, *words, "--share", str(options.share)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(process.stdout)


def summarise(turns):
    """Return a fit's turns with their medians."""
    middle = {
        f"median_{key}": statistics.median(turn[key] for turn in turns)
        for key in ("seconds_first", "seconds", "test_error_percent")
    }
    return {**middle, "turns": turns}


def compare(fits):
    """Return {fit of msgd: {"fastest_as_good": rival, "times_faster_first", "times_faster"}}.

    The ratios are of first fits in a process and of second ones; None where no rival is as good.
    """
    found = {}
    for name in (name for name in FITS if is_ours(name)):
        most = fits[name]["median_test_error_percent"] + AS_GOOD
        kind = "MLPClassifier" if FITS[name][1]["model"] == "mlp" else "LogisticRegression"
        rivals = (rival for rival, (its_kind, _) in FITS.items() if its_kind == kind)
        good = [rival for rival in rivals if fits[rival]["median_test_error_percent"] <= most]
        best = min(good, key=lambda rival: fits[rival]["median_seconds"], default=None)
        found[name] = {"fastest_as_good": best}
        for times, key in (("times_faster_first", "seconds_first"), ("times_faster", "seconds")):
            found[name][times] = best and fits[best][f"median_{key}"] / fits[name][f"median_{key}"]
    return found


def is_ours(name):
    """Return whether FITS[name] is a fit of msgd."""
    return FITS[name][0] == OURS


def measure(options):
    """Return the report of all fits (dict)."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["NUMBA_CACHE_DIR"] = cache
        print("compiling", file=sys.stderr)
        ours = filter(is_ours, FITS)
        compiling = {name: fit_apart(name, 0, options)["seconds_first"] for name in ours}
        turns = {name: [] for name in FITS}
        for turn in range(options.turns):
            for name, done in turns.items():
                done.append(fit_apart(name, turn, options))
                print(f"turn {turn + 1}, {name}: {done[-1]}", file=sys.stderr)
    fits = {name: summarise(done) for name, done in turns.items()}
    return {
        "threads": options.threads,
        "share_of_images": options.share,
        "as_good_within_percentage_points": AS_GOOD,
        "settings": {name: {"estimator": kind, **how} for name, (kind, how) in FITS.items()},
        "seconds_with_compiling": compiling,
        "fits": fits,
        "comparison": compare(fits),
        "packages": {package: version(package) for package in PACKAGES},
    }


def main():
    """Measure and print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--fit", choices=FITS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fit:
        print(json.dumps(fit(options.fit, options.seed, options.threads, options.share)))
    else:
        write_report(measure(options), options.output)


if __name__ == "__main__":
    main()
