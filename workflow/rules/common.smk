# What the rules share: the checked configuration, the list of runs, and what decides on a rerun
# beside the inputs that Snakemake compares itself. It does not see imported code, and compares large
# files by date alone, so rules take hashes of both as parameters. What training saves is `ancient`
# where it is read: training.json has its hashes, and decides.

import glob
import importlib.util
import os
import re
import shlex
import sys
import time
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

from msgd.backends import ON_SIMULATOR, asks_for_gpu, gpu_name
from msgd.config import (
    compared_hyperparameters,
    complete_config,
    expand_grid,
    hyperparameter_words,
    yaml_scalar,
)
from msgd.config_file import read_file
from msgd.data.content import data_name, sha256_of_files
from msgd.data.sources import load_sources
from msgd.data.unpickle import known_sizes
from msgd.errors import UserError
from msgd.evaluation.outcome import describe_outcome
from msgd.evaluation.tensorboard import FILE_NAME as EVENT_FILE
from msgd.evaluation.tensorboard import INSTALL as INSTALL_TENSORBOARD
from msgd.files import remove_partial, sha256_of_hashes
from msgd.models import AUTOENCODERS, SAMPLERS, UNSUPERVISED
from msgd.network_size import check_sizes
from msgd.source import SHAPES_NO_NUMBER, closure, run_source, sha256_of_source

# `config` is Snakemake's own: bound anew, it is the complete one for all rules and for the report.
try:
    for file in workflow.configfiles:
        read_file(file)
    config = complete_config(config)
    check_sizes(config["experiments"], known_sizes(config["dataset"]))
except UserError as error:
    raise WorkflowError(str(error))

# A grid is lists of values in the configuration, not the table of a Paramspace: the schema checks them,
# a value may be a list itself, and a run is named by what varies and by nothing else.
EXPERIMENTS = config["experiments"]
RUNS = {
    f"{experiment}/{run}": settings
    for experiment, grid in EXPERIMENTS.items()
    for run, settings in expand_grid(grid).items()
}
RUNS_OF = {
    experiment: [run for run in RUNS if run.startswith(f"{experiment}/")]
    for experiment in EXPERIMENTS
}
GRIDS = {experiment: runs for experiment, runs in RUNS_OF.items() if len(runs) > 1}
# What learns without labels makes no errors: it is not scored, and nothing says which of its runs is best.
UNLABELLED = [
    name for name, grid in EXPERIMENTS.items() if grid["model"] in UNSUPERVISED
]
SCORED = [
    run for run, settings in RUNS.items() if settings["model"] not in UNSUPERVISED
]
SAMPLED = [run for run, settings in RUNS.items() if settings["model"] in SAMPLERS]
# Snakemake keeps all inputs of a job for each of its outputs, so a job of all runs of a grid would cost
# the square of their number.
BATCH = 25
SCORED_TOGETHER = {
    f"{experiment}_{first // BATCH + 1}": runs[first : first + BATCH]
    for experiment, runs in GRIDS.items()
    if experiment not in UNLABELLED
    for first in range(0, len(runs), BATCH)
}
# What figures are drawn of: each experiment's run; of a grid the best one, whose name is known only
# after training, or all where none is best. Of any other run they are drawn when they are asked for.
BEST = "best"  # in the place of a run's name: the run of the lowest validation error
HAS_BEST = [experiment for experiment in GRIDS if experiment not in UNLABELLED]
DRAWN = [run for name, runs in RUNS_OF.items() if name not in HAS_BEST for run in runs]
DRAWN += [f"{experiment}/{BEST}" for experiment in HAS_BEST]
if config["plots"]["all_runs"]:
    DRAWN += [run for experiment in HAS_BEST for run in GRIDS[experiment]]
FIGURES = ["learning_curve.png", "weights.png", "weights.gif"]
FIGURES_OF_ERRORS = ["confusion.png", "mistakes.png"]
FIGURES_OF_MODEL = {
    **dict.fromkeys(UNSUPERVISED, FIGURES),
    **dict.fromkeys(AUTOENCODERS, [*FIGURES, "reconstructions.png"]),
    **dict.fromkeys(SAMPLERS, [*FIGURES, "samples.png"]),
}
PLOTS = [
    f"results/plots/{run}/{figure}"
    for run in DRAWN
    for experiment in [run.rpartition("/")[0]]
    for figure in FIGURES_OF_MODEL.get(
        EXPERIMENTS[experiment]["model"], FIGURES + FIGURES_OF_ERRORS
    )
]
# What tells of errors, where anything makes some.
TABLES = [
    f"results/{name}.{kind}"
    for name in ["test_scores", "published", "model_card"]
    for kind in ["csv", "md", "html"]
    if SCORED and (name, kind) != ("model_card", "csv")
]
if SCORED:
    TABLES += ["results/best_model.npz", "results/report.html"]
THREADS = 1 if config["backend"] == "reference" else config["threads"]
COMPARED = {
    experiment: compared_hyperparameters(grid)
    for experiment, grid in EXPERIMENTS.items()
    if experiment not in UNLABELLED
}
COMPARISONS = [
    f"results/plots/{experiment}/validation_error_over_{key}.png"
    for experiment, keys in COMPARED.items()
    for key in keys
]

# Missing it is said now, not when the trainings are done.
if config["tensorboard"] and importlib.util.find_spec("tensorboard") is None:
    raise WorkflowError(INSTALL_TENSORBOARD)
EVENT_FILES = [
    f"results/tensorboard/{run}/{EVENT_FILE}" for run in RUNS if config["tensorboard"]
]

# What comes of them is there without them, so that a run's folder that was removed is made anew.
FILES_OF_RUNS = [
    f"results/runs/{run}/{name}"
    for name, runs in {
        "training.json": RUNS,
        "provenance.json": RUNS,
        "score.json": SCORED,
        "samples.npz": SAMPLED,
    }.items()
    for run in runs
]

IS_MNIST = config["dataset"] == "mnist"
DATASET_FILE = (
    "results/downloads/mnist.pkl.gz"
    if IS_MNIST
    else os.path.normpath(config["dataset"])
)
DATASET_FILES = (
    sorted(filter(os.path.isfile, glob.glob(f"{glob.escape(DATASET_FILE)}/*")))
    if os.path.isdir(DATASET_FILE)
    else [DATASET_FILE]
)
CONTENTS = ".snakemake/msgd/contents.json"  # hashes of files once computed
DATA = f"results/data/{data_name(DATASET_FILE)}"
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
            + "".join(f", {name}/{BEST} (of figures)" for name in HAS_BEST)
        )
    return RUNS[run]


def score_of(wildcards):
    """The score of this run, if it has any."""
    run = f"{wildcards.experiment}/{wildcards.run}"
    return [f"results/runs/{run}/score.json"] if run in SCORED else []


def compared_runs(wildcards):
    """The runs of an experiment with a grid."""
    experiment, key = wildcards.experiment, wildcards.hyperparameter
    if key not in COMPARED.get(experiment, []):
        raise WorkflowError(
            f"the configuration has no experiment {experiment} with a grid over {key}"
        )
    return RUNS_OF[experiment]


def is_of_the_best(wildcards):
    """Whether a figure is of the best run of a grid, and not of a run by its name."""
    return wildcards.run == BEST and wildcards.experiment in HAS_BEST


def drawn_runs(wildcards):
    """The run that a figure is of; all those of a grid where it is of the best one."""
    if is_of_the_best(wildcards):
        return GRIDS[wildcards.experiment]
    settings_of(wildcards)  # says which runs there are
    return [f"{wildcards.experiment}/{wildcards.run}"]


def predicted_by_drawn(wildcards):
    """The predictions of each run of which one is drawn."""
    if wildcards.experiment in UNLABELLED:
        model = EXPERIMENTS[wildcards.experiment]["model"]
        raise WorkflowError(
            f"{wildcards.experiment} is of the model {model}, which predicts no classes"
        )
    return of_drawn("test_predictions.npz")(wildcards)


def of_drawn(name):
    """A function that gives the file ``name`` of each run of which one is drawn."""

    def files_for(wildcards):
        return [f"results/runs/{run}/{name}" for run in drawn_runs(wildcards)]

    return files_for


def drawn(wildcards):
    """The option of msgd plot before the folders of the runs of which one is drawn."""
    return "best-of" if is_of_the_best(wildcards) else "run"


@cache
def code_of(*rooms):
    """The hash of the files or folders ``rooms`` of the package and of all they import."""
    return sha256_of_source(closure(*rooms, leaves=SHAPES_NO_NUMBER))


def drawing_code(figure, asks_model=False):
    """A function that gives the hash of the source ``figure``, and of the model if it asks one.

    Which run is the best is decided by source, too.
    """

    def code_for(wildcards):
        rooms = [figure]
        if asks_model:
            model = EXPERIMENTS[wildcards.experiment]["model"]
            rooms.append(f"models/{model}/model.py")
        if is_of_the_best(wildcards):
            rooms.append("evaluation/selection.py")
        return code_of(*rooms)

    return code_for


@cache
def code_of_training(model):
    """The hash of the source that a training of ``model`` imports."""
    return sha256_of_source(run_source(model))


def page_code(wildcards):
    """The hash of the source of the page, and of the models it asks."""
    models = sorted({settings["model"] for settings in RUNS.values()})
    rooms = [f"models/{model}/model.py" for model in models]
    return code_of("report", "evaluation/published.yaml", *rooms)


def training_code(wildcards):
    """The hash of the source that a training of this run's model imports."""
    return code_of_training(settings_of(wildcards)["model"])


def sampling_code(wildcards):
    """The hash of the source that this run's samples are drawn by."""
    model = settings_of(wildcards)["model"]
    if model not in SAMPLERS:
        raise WorkflowError(
            f"{wildcards.experiment} is of the model {model}, which draws no samples"
        )
    return code_of("evaluation/samples.py", f"models/{model}/samples.py")


def dataset_content(wildcards):
    """The hash of what the data set holds; of MNIST before its download, the published one."""
    if IS_MNIST and not os.path.exists(DATASET_FILE):
        return sha256_of_hashes({"mnist.pkl.gz": load_sources()["sha256"]})
    return sha256_of_files(DATASET_FILES, CONTENTS)


def gpus_of(model):
    """How many GPUs a run of ``model`` asks for: out of the profile's limit, or of Slurm as --gpus."""
    return int(asks_for_gpu(config["backend"], model))


def gpus(wildcards):
    """How many GPUs this run asks for."""
    return gpus_of(settings_of(wildcards)["model"])


def one_of(names):
    """The wildcard constraint to be one of ``names``; nothing fits where there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


def dataset_source(wildcards):
    """What is read: the file, or the folder of the files."""
    return DATASET_FILE


def make_up_for_the_clock():
    """Date results in the future now, and tell of data that are dated so.

    A clock was set back. Snakemake takes no output that is older than an input.
    """
    now = time.time()

    def is_ahead(path):
        return os.path.exists(path) and os.path.getmtime(path) > now

    # With Snakemake's hidden files, by which it dates folders.
    for path in filter(is_ahead, Path("results").rglob("*")):
        os.utime(path, (now, now))
    for path in filter(is_ahead, DATASET_FILES):
        what = "is dated in the future, so nothing is made of it"
        print(f"{path} {what}: touch {path}, or set the clock", file=sys.stderr)


def near(path):
    """The path as people give it here: relative if it lies in this folder."""
    path = os.path.realpath(path)
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative


# The file that says what is trained: the last of --configfile, if it was given.
CONFIGURATION = near(["config.yaml", *workflow.overwrite_configfiles][-1])


def command_again():
    """The command that makes everything with this workflow and configuration, in this folder."""
    words = ["snakemake", "--cores", "all"]
    snakefile = near(workflow.main_snakefile)
    if snakefile not in ("Snakefile", "workflow/Snakefile"):
        words += ["-s", snakefile]
    if workflow.overwrite_configfiles:
        words += ["--configfile", *map(near, workflow.overwrite_configfiles)]
    return shlex.join(words)


def require_gpu():
    """Refuse what is to run on a GPU where there is none.

    Said by the first job it would be too late: Snakemake would have removed what that makes anew.
    """
    asked_for = {"train", *(f"score_{batch}" for batch in SCORED_TOGETHER), "score"}
    is_needed = any(job.rule.name in asked_for for job in workflow.dag.needrun_jobs())
    if config["backend"] == "cuda" and workflow.local_exec and is_needed:
        if not ON_SIMULATOR and not gpu_name():
            raise WorkflowError(
                "backend is cuda, but there is no CUDA driver with a GPU; backend: auto takes the CPU"
            )


def folders_of_runs(wildcards, input):
    """The folders of all runs whose training.json is read."""
    paths = [input.training] if isinstance(input.training, str) else input.training
    return [os.path.dirname(path) for path in paths]


def run_figure(name, category, figure):
    """A figure of one run, or of the best one, with its caption (workflow/report/) and where the report shows it."""
    return report(
        f"results/plots/{{experiment}}/{{run}}/{name}",
        caption=f"../report/{os.path.splitext(name)[0]}.rst",
        category=category,
        subcategory="{experiment}",
        labels={"run": "{run}", "figure": figure},
    )


def plot_options(*keys, **others):
    """Options of msgd plot: those that the configuration has under plots, by their keys, and others."""
    values = {**{key: config["plots"][key] for key in keys}, **others}
    return [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]


def hyperparameters(wildcards):
    """The configuration of this run and nothing else, as key=value words."""
    return hyperparameter_words(settings_of(wildcards))
