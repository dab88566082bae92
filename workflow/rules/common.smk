# What the rules share: the checked configuration, the list of runs, and the source files that shape
# a result. Snakemake does not see imported code, so rules name it as input.

import glob
import os

from snakemake.exceptions import WorkflowError

from msgd.config import (
    check_split_sizes,
    compared_hyperparameters,
    complete_config,
    expand_grid,
    hyperparameter_words,
    yaml_scalar,
)
from msgd.data.unpickle import count_training_examples
from msgd.errors import UserError
from msgd.source import source_files, training_source

try:
    config = complete_config(config)
    check_split_sizes(config["experiments"], count_training_examples(config["dataset"]))
except UserError as error:
    raise WorkflowError(str(error))

EXPERIMENTS = config["experiments"]
RUNS = {
    f"{experiment}/{run}": settings
    for experiment, grid in EXPERIMENTS.items()
    for run, settings in expand_grid(grid).items()
}
FIGURES = [
    "learning_curve.png",
    "weights.png",
    "weights.gif",
    "confusion.png",
    "mistakes.png",
]
COMPARED = {
    experiment: compared_hyperparameters(grid)
    for experiment, grid in EXPERIMENTS.items()
}
COMPARISONS = [
    f"results/plots/{experiment}/validation_error_over_{key}.png"
    for experiment, keys in COMPARED.items()
    for key in keys
]

IS_MNIST = config["dataset"] == "mnist"
DATASET_FILE = (
    "results/downloads/mnist.pkl.gz"
    if IS_MNIST
    else os.path.normpath(config["dataset"])
)
# Of a folder the files are the input: its own date does not tell that one was edited.
DATASET_FILES = (
    sorted(glob.glob(f"{glob.escape(DATASET_FILE)}/*"))
    if os.path.isdir(DATASET_FILE)
    else DATASET_FILE
)
DATA = f"results/data/{os.path.basename(DATASET_FILE).split('.')[0]}"
ARRAYS = [
    f"{DATA}/{split}_{part}.npy"
    for split in ["train", "valid", "test"]
    for part in "xy"
]


wildcard_constraints:
    experiment="[^/]+",
    run="[^/]+",


def settings_of(wildcards):
    """The hyperparameters of this run."""
    run = f"{wildcards.experiment}/{wildcards.run}"
    if run not in RUNS:
        raise WorkflowError(
            f"the configuration has no run {run}; it has: {', '.join(RUNS)}"
        )
    return RUNS[run]


def compared_runs(wildcards):
    """The runs of an experiment with a grid."""
    experiment, key = wildcards.experiment, wildcards.hyperparameter
    if key not in COMPARED.get(experiment, []):
        raise WorkflowError(
            f"the configuration has no experiment {experiment} with a grid over {key}"
        )
    return [run for run in RUNS if run.startswith(f"{experiment}/")]


def training_code(wildcards):
    """The source that shapes what this run computes."""
    return training_source(settings_of(wildcards)["model"])


def dataset_source(wildcards, input):
    """What is read: the file, or the folder of the files."""
    return DATASET_FILE


def data_folder(wildcards, input):
    """The folder of the six arrays."""
    return os.path.dirname(input.dataset)


def run_folder(wildcards, output):
    """The folder in which training or scoring leaves its files."""
    return os.path.dirname(output[0])


def drawn_run_folder(wildcards, input):
    """The folder of the run whose saved files are drawn."""
    return os.path.dirname(input[0])


def tabulated_run_folders(wildcards, input):
    """The folders of all runs."""
    return [os.path.dirname(path) for path in input.training]


def hyperparameters(wildcards):
    """The configuration of this run and nothing else, as key=value words."""
    return hyperparameter_words(settings_of(wildcards))
