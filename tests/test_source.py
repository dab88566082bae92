"""The source a result depends on is what Python imports to compute it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import toy
from conftest import as_triple, environment, make_dataset, save_npz

from msgd.config import hyperparameter_words
from msgd.data.unpickle import unpickle
from msgd.models import DEVICES, MODELS
from msgd.source import PACKAGE, SHAPES_NO_NUMBER, closure, run_source, training_source

# What the program imports before it calls the training: itself, its checks of the data's hashes and
# of the memory, how a log begins, and words for its lines.
THE_PROGRAMS = {
    *("cli.py", "data/content.py", "network_size.py", "output.py", "training_log.py"),
    "wording.py",
}
# Trains, then prints the files of the package's modules that were imported. Not those that Numba
# imports to read its list of a function's compiled versions, where types of other models' may be.
TRAIN_AND_LIST = """
import json, sys
from numba.core.caching import IndexDataCacheFile
from msgd.cli import main
load, listed = IndexDataCacheFile._load_index, set()
def load_index(cache):
    before = set(sys.modules)
    versions = load(cache)
    listed.update(set(sys.modules) - before)
    return versions
IndexDataCacheFile._load_index = load_index
code = main(sys.argv[1:])
modules = {name: module for name, module in sys.modules.items() if name not in listed}
files = [module.__file__ for name, module in modules.items() if name.split(".")[0] == "msgd"]
print(json.dumps(files))
sys.exit(code)
"""


def names(files):
    return {file.relative_to(PACKAGE).as_posix() for file in files}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_npz(folder / "toy.npz", as_triple(make_dataset(40, 20, 20, (8, 8), 3)))
    unpickle(folder / "toy.npz", folder / "arrays", "float32")
    return folder / "arrays"


@pytest.mark.parametrize("model", MODELS)
def test_the_source_of_a_run_is_what_a_training_imports(model, data, tmp_path):
    """On all devices together, one of them the simulator; what is the program's own left out."""
    program = tmp_path / "train_and_list.py"
    program.write_text(TRAIN_AND_LIST)
    words = hyperparameter_words(toy.settings_of(model, batch_size=20, n_epochs=1))
    imported = set()
    for device, simulator in (("cpu", "0"), ("cuda", "1"), ("reference", "0")):
        options = ("--data", data, "--run", tmp_path / device, "--backend", device)
        done = run_program(program, "train", *options, *words, NUMBA_ENABLE_CUDASIM=simulator)
        assert done.returncode == 0, done.stderr
        files = names(map(Path, json.loads(done.stdout.splitlines()[-1]))) - THE_PROGRAMS
        assert files - {*SHAPES_NO_NUMBER} <= names(training_source(model, device))
        imported |= files
    assert imported == names(run_source(model))


def run_program(*words, **changes):
    """Run a Python file with arguments in a process of its own, the environment changed."""
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(**changes)
    )


@pytest.mark.parametrize("model", ["logistic_regression", "mlp", "lenet"])
def test_what_the_lists_are_made_by_shapes_a_training(model):
    assert "models/lists.py" in names(training_source(model, "cpu"))


def test_a_model_built_on_another_is_shaped_by_its_room_too():
    assert "models/logistic_regression/cpu.py" in names(training_source("logistic_cg", "cpu"))
    assert "models/logistic_cg/cpu.py" not in names(run_source("logistic_regression"))


def test_the_other_devices_kernels_shape_nothing():
    kernels = {
        "cpu": {"models/mlp/cpu.py", "models/cpu_backend.py", "kernels/cpu.py"},
        "cuda": {"models/mlp/cuda.py", "models/mlp/cuda_plain.py", "kernels/cuda.py"},
        "reference": {
            *("models/mlp/reference.py", "models/reference_backend.py", "kernels/reference.py"),
            "kernels/cpu.py",  # compiles the formulas of both
        },
    }
    assert set(kernels) == set(DEVICES)
    for device, own in kernels.items():
        found = names(training_source("mlp", device))
        assert own <= found
        assert not found & (set().union(*kernels.values()) - own), device


def test_data_is_read_by_no_training():
    """An edit of a reader must not train anew: what it read is compared by content."""
    for model in MODELS:
        assert not {"data/readers.py", "data/download.py"} & names(run_source(model))


def test_imports_are_found_wherever_they_stand():
    """In a function, of a name that is a module, of a package's parent, through other files."""
    assert "kernels/cuda.py" in names(closure("training/run.py"))
    assert "kernels/__init__.py" in names(closure("training/run.py"))
    assert "files.py" in names(closure("plots/learning_curve.py"))
    assert "cli.py" not in names(closure("training/run.py"))


def test_a_file_that_is_named_is_in_its_closure_whatever_its_kind():
    assert names(closure("evaluation/published.yaml")) == {"evaluation/published.yaml"}
