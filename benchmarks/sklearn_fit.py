"""Seconds and test error of ``MSGDClassifier.fit`` on MNIST, beside scikit-learn's own classifiers.

    python benchmarks/sklearn_fit.py [--turns 3] [--threads 2] [--share 0.02] [--output FILE]

Everyone is fitted to the 60,000 images of training and validation, on the same number of threads,
each fit in a process of its own, in turns. Our classifier and MLPClassifier set a sixth aside for
validation; LogisticRegression learns from all. Timed is ``fit`` alone, which for msgd includes
loading its compiled kernels from disk; the first fits, which compile them, are reported apart.
scikit-learn gets the pixels as float32, converted before. Test errors are those on the 10,000 test
images. A rival is as good as ours if its median test error is at most 0.1 percentage points higher;
the fastest of those says how much faster ours is. --share takes that share of all images, to try
the script. Prints JSON with hardware and versions.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

from common import MNIST, write_report

AS_GOOD = 0.1  # percentage points of test error
EPOCHS = 20  # of the networks under the published settings, which train for 1000
HIDDEN = 500
VALIDATION = 1 / 6
BATCH, L2 = 20, 0.0001  # of the tutorials' MLP; scikit-learn's penalty is alpha / (2 BATCH) W^2

# Each fit: whose it is, the estimator, its settings. random_state is the turn.
FITS = {
    "msgd logistic_regression": ("msgd", "MSGDClassifier", {"model": "logistic_regression"}),
    "msgd mlp, published settings": (
        "msgd",
        "MSGDClassifier",
        {"model": "mlp", "n_epochs": EPOCHS},
    ),
    "msgd mlp, learning_rate 0.1": (
        "msgd",
        "MSGDClassifier",
        {"model": "mlp", "n_epochs": EPOCHS, "learning_rate": 0.1},
    ),
    **{
        f"LogisticRegression, max_iter {most}": (
            "sklearn",
            "LogisticRegression",
            {"max_iter": most},
        )
        for most in (30, 100, 300, 3000)
    },
    "MLPClassifier, the tutorials' settings": (
        "sklearn",
        "MLPClassifier",
        {
            "hidden_layer_sizes": (HIDDEN,),
            "activation": "tanh",
            "solver": "sgd",
            "momentum": 0.0,
            "learning_rate_init": 0.01,
            "batch_size": BATCH,
            "alpha": 2 * BATCH * L2,
            "max_iter": EPOCHS,
            "n_iter_no_change": EPOCHS,
            "early_stopping": True,
            "validation_fraction": VALIDATION,
        },
    ),
    "MLPClassifier, adam": (
        "sklearn",
        "MLPClassifier",
        {
            "hidden_layer_sizes": (HIDDEN,),
            "activation": "tanh",
            "solver": "adam",
            "early_stopping": True,
            "validation_fraction": VALIDATION,
        },
    ),
}
RIVALS = {
    name: [rival for rival in FITS if rival.startswith(kind)]
    for name, kind in {
        "msgd logistic_regression": "LogisticRegression",
        "msgd mlp, published settings": "MLPClassifier",
        "msgd mlp, learning_rate 0.1": "MLPClassifier",
    }.items()
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
    owner, kind, settings = FITS[name]
    if owner == "msgd":
        from msgd.sklearn import MSGDClassifier

        return MSGDClassifier(**settings, random_state=seed, threads=threads)
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    kinds = {"LogisticRegression": LogisticRegression, "MLPClassifier": MLPClassifier}
    return kinds[kind](**settings, random_state=seed)


def fit(name, seed, threads, share):
    """Fit and test in this process; return {"seconds", "test_error_percent", "n_iter"}."""
    (x, y), (test_x, test_y) = images(share)
    if FITS[name][0] == "sklearn":
        x, test_x = (array.astype("float32") / 256 for array in (x, test_x))
    estimator = make_estimator(name, seed, threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that few iterations do not converge is what is measured
        started = time.perf_counter()
        estimator.fit(x, y)
        seconds = time.perf_counter() - started
    n_iter = estimator.n_iter_
    return {
        "seconds": seconds,
        "test_error_percent": 100 * float((estimator.predict(test_x) != test_y).mean()),
        "n_iter": int(n_iter if isinstance(n_iter, int) else n_iter.max()),
    }


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
        for key in ("seconds", "test_error_percent")
    }
    return {**middle, "turns": turns}


def compare(fits):
    """Return {fit of msgd: the fastest rival that is as good, and how many times faster ours is}.

    A ratio of None: no rival is as good.
    """
    found = {}
    for name, rivals in RIVALS.items():
        error = fits[name]["median_test_error_percent"]
        good = [r for r in rivals if fits[r]["median_test_error_percent"] <= error + AS_GOOD]
        best = min(good, key=lambda rival: fits[rival]["median_seconds"], default=None)
        ratio = best and fits[best]["median_seconds"] / fits[name]["median_seconds"]
        found[name] = {"fastest_as_good": best, "times_faster": ratio}
    return found


def measure(options):
    """Return the report of all fits (dict)."""
    ours = [name for name in FITS if FITS[name][0] == "msgd"]
    print("compiling, and loading what was compiled", file=sys.stderr)
    first = {name: fit_apart(name, 0, options)["seconds"] for name in ours}
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
        "settings": {name: {"estimator": f[1], **f[2]} for name, f in FITS.items()},
        "first_fit_seconds": first,
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
