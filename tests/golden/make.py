"""Make the golden trajectories: validation errors per epoch of the published recipes in float64.

    python tests/golden/make.py mlp 5
    python tests/golden/make.py lenet 5

Trains the model from its published initial weights with the published settings on MNIST, by the
plain loops of its reference.py in float64, and writes tests/golden/MODEL.json. An epoch takes tens
of seconds for the MLP and minutes for LeNet. Needs results/data/mnist (snakemake makes it).
"""

import json
import sys
from pathlib import Path

import numpy as np

from msgd.config import complete_experiment
from msgd.data.dataset import load_dataset
from msgd.models import load_backend, load_model
from msgd.provenance import describe_code, describe_hardware

HERE = Path(__file__).resolve().parent
MNIST = HERE.parents[1] / "results" / "data" / "mnist"


def trajectory(dataset, name, device, n_epochs, float_x):
    """Yield (mean cost, validation errors) after each epoch of model ``name`` on ``device``."""
    settings = complete_experiment({"model": name})
    parameters = load_model(name).initial_parameters(dataset, settings, float_x)
    backend = load_backend(name, device)(dataset, parameters, settings, float_x)
    n_batches = len(dataset.train_x) // settings["batch_size"]
    for epoch in range(n_epochs):
        costs = backend.train(epoch * n_batches, (epoch + 1) * n_batches)
        yield float(np.mean(costs, dtype=np.float64)), backend.count_errors("valid")


def main(name, n_epochs):
    """Write the trajectory of ``name``, anew after each of ``n_epochs`` epochs."""
    dataset = load_dataset(MNIST)
    record = {
        "model": name,
        "device": "reference",
        "floatX": "float64",
        "epochs": [],
        "code": describe_code(name, "reference"),
        "hardware": describe_hardware(),
    }
    for cost, errors in trajectory(dataset, name, "reference", n_epochs, np.float64):
        record["epochs"].append({"cost": cost, "validation_errors": errors})
        print(len(record["epochs"]), record["epochs"][-1], flush=True)
        text = json.dumps(record, indent=2) + "\n"
        (HERE / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
