"""How long the patience rules train, and what it buys, over several seeds.

    python benchmarks/patience_rules.py [--seeds 10] [--jobs 2] [--mlp-epochs 200]

Trains logistic regression and the MLP of the tutorials on MNIST on the CPU, one thread a job; the
seed shuffles the training examples once and draws the MLP's initial weights. A training does not
depend on its rule until it stops, so each seed is trained once, until every rule has stopped or the
cap on epochs is reached, and the rules read along. Writes results/patience_rules.json after every
seed (finished ones are not trained again), and the page and picture made of it,
docs/patience-rules.md and docs/images/patience-rules.png.
"""

import argparse
import dataclasses
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
MNIST = ROOT / "results" / "data" / "mnist"
OUTPUT = Path(__file__).with_name("results") / "patience_rules.json"
PAGE = ROOT / "docs" / "patience-rules.md"
PICTURE = ROOT / "docs" / "images" / "patience-rules.png"

RULES = {
    "threshold 0.995": {"improvement_test": "threshold", "improvement_threshold": 0.995},
    "mcnemar 0.05": {"improvement_test": "mcnemar", "improvement_alpha": 0.05},
    "mcnemar 0.01": {"improvement_test": "mcnemar", "improvement_alpha": 0.01},
}


def train_one_seed(model, seed, n_epochs):
    """Train ``model`` with ``seed`` for at most ``n_epochs``; return {rule: its outcome}."""
    from msgd.config import complete_experiment
    from msgd.data.dataset import load_dataset
    from msgd.kernels.options import use_threads
    from msgd.models import load_backend, load_model
    from msgd.models.interface import n_evaluated
    from msgd.training.early_stopping import EarlyStopping, default_validation_frequency

    use_threads(1)
    dataset = load_dataset(MNIST)
    order = np.random.RandomState(seed).permutation(len(dataset.train_x))
    dataset = dataclasses.replace(
        dataset, train_x=dataset.train_x[order], train_y=dataset.train_y[order]
    )
    settings = complete_experiment({"model": model, "seed": seed})
    parameters = load_model(model).initial_parameters(dataset, settings, np.float32)
    backend = load_backend(model, "cpu")(dataset, parameters, settings, np.float32)
    n_train_batches = len(dataset.train_x) // settings["batch_size"]
    frequency = default_validation_frequency(n_train_batches, settings["patience"])
    n_valid, n_test = (
        n_evaluated(len(split), settings["batch_size"])
        for split in (dataset.valid_y, dataset.test_y)
    )
    rules = {
        name: EarlyStopping(
            settings["patience"],
            settings["patience_increase"],
            **{"improvement_threshold": settings["improvement_threshold"], **rule},
        )
        for name, rule in RULES.items()
    }
    outcomes, test_errors = {}, {}
    for done in range(frequency, n_epochs * n_train_batches + 1, frequency):
        backend.train(done - frequency, done)
        correct = backend.predict("valid")[:n_valid] == dataset.valid_y[:n_valid]
        for name, rule in rules.items():
            if name in outcomes:
                continue
            if rule.is_exhausted(done - 2):  # it stopped before this validation
                outcomes[name] = _outcome(rule, rule.patience + 1, True)
                continue
            if rule.update(done - 1, n_valid - int(np.count_nonzero(correct)), correct):
                test_errors[name] = backend.count_errors("test")
            if rule.is_exhausted(done - 1):
                outcomes[name] = _outcome(rule, done, True)
        if len(outcomes) == len(rules):
            break
    for name, rule in rules.items():
        outcomes.setdefault(name, _outcome(rule, done, False))
    for name, outcome in outcomes.items():
        outcome["test_error_percent"] = 100 * test_errors[name] / n_test
        outcome["validation_error_percent"] = 100 * rules[name].best_errors / n_valid
        outcome["epochs"] = -(-outcome["iterations"] // n_train_batches)
    return outcomes


def _outcome(rule, iterations, stopped):
    return {"iterations": iterations, "best_iteration": rule.best_iteration, "stopped": stopped}


def write_page(results):
    """Write the page and the picture of ``results``, the content of the JSON file."""
    rows = [
        "| model | rule | epochs: median (range) | stopped by patience "
        "| validation error: mean ± sd | test error: mean ± sd |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for model, runs in results["models"].items():
        for rule in RULES:
            outcomes = [run[rule] for run in runs["seeds"].values()]
            epochs = [outcome["epochs"] for outcome in outcomes]
            stopped = sum(outcome["stopped"] for outcome in outcomes)
            errors = " | ".join(
                f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f} %"
                for split in ("validation", "test")
                for values in [[outcome[f"{split}_error_percent"] for outcome in outcomes]]
            )
            rows.append(
                f"| {model}, at most {runs['n_epochs']} epochs | {rule} "
                f"| {statistics.median(epochs):g} ({min(epochs)}–{max(epochs)}) "
                f"| {stopped} of {len(outcomes)} | {errors} |"
            )
    PAGE.write_text(TEXT.format(table="\n".join(rows)), encoding="utf-8")
    draw(results)


TEXT = """# The patience rules compared

Written by `benchmarks/patience_rules.py` from `benchmarks/results/patience_rules.json`; do not
edit.

Logistic regression and the MLP with the tutorials' settings on MNIST, in float32 on the CPU. A seed
shuffles the training examples once and draws the MLP's initial weights. All rules read along in the
same training, so within a seed they differ in nothing but the moment at which they stop. A run that
was not stopped by patience was ended by the cap on epochs: there the rules could not differ.

{table}

![Test error over the epochs trained, a point per seed and rule](images/patience-rules.png)

`threshold 0.995` is the published rule: patience grows when the errors fall below 99.5 % of the
best. Below 2 % error that is one example in 10,000, which chance moves. `mcnemar` asks whether the
model is better than the last one that was found significantly better, by an exact one-sided test on
the validation examples of which the two disagree.

Its caveat: the test is repeated at every validation, always on the same examples, so the chance
that a run has a false finding is larger than alpha. Alpha is a knob of patience, not the error rate
of a run. The test error is shown to judge the rules; none of them used it.
"""


def draw(results):
    """Draw test error over epochs trained, a panel per model."""
    import matplotlib.pyplot as plt

    from msgd.plots.style import BLUE, GREY, ORANGE, save_figure

    figure, panels = plt.subplots(1, len(results["models"]), figsize=(9, 3.8), squeeze=False)
    for axes, (model, runs) in zip(panels[0], results["models"].items(), strict=True):
        for (rule, marker), colour in zip(
            zip(RULES, "osD", strict=True), (GREY, BLUE, ORANGE), strict=True
        ):
            outcomes = [run[rule] for run in runs["seeds"].values()]
            epochs = [outcome["epochs"] for outcome in outcomes]
            errors = [outcome["test_error_percent"] for outcome in outcomes]
            axes.plot(epochs, errors, marker, color=colour, alpha=0.75, label=rule)
        axes.set_title(f"{model}, at most {runs['n_epochs']} epochs")
        axes.set_xlabel("epochs trained")
        axes.set_ylabel("test error of the best parameters (%)")
        axes.set_xlim(0, None)
    panels[0][0].legend()
    save_figure(figure, PICTURE, 110)


def main():
    """Train what is missing, write the JSON, the page and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--logistic-regression-epochs", type=int, default=1000)
    parser.add_argument("--mlp-epochs", type=int, default=200)
    options = parser.parse_args()
    from msgd.files import read_json, write_json
    from msgd.provenance import describe_code, describe_hardware

    caps = {"logistic_regression": options.logistic_regression_epochs, "mlp": options.mlp_epochs}
    results = read_json(OUTPUT) if OUTPUT.exists() else {"models": {}}
    results |= {"hardware": describe_hardware(), "code": describe_code()}
    missing = []
    for model, n_epochs in caps.items():
        runs = results["models"].setdefault(model, {"n_epochs": n_epochs, "seeds": {}})
        if runs["n_epochs"] != n_epochs:
            runs.update(n_epochs=n_epochs, seeds={})
        missing += [
            (model, seed, n_epochs)
            for seed in range(1, options.seeds + 1)
            if str(seed) not in runs["seeds"]
        ]
    with ProcessPoolExecutor(options.jobs) as pool:
        jobs = {pool.submit(train_one_seed, *job): job for job in missing}
        for finished in tqdm(as_completed(jobs), total=len(jobs), unit="seed"):
            model, seed, _ = jobs[finished]
            seeds = results["models"][model]["seeds"]
            seeds[str(seed)] = finished.result()
            results["models"][model]["seeds"] = dict(sorted(seeds.items(), key=lambda s: int(s[0])))
            write_json(OUTPUT, results)
    write_page(results)


if __name__ == "__main__":
    main()
