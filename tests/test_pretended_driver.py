"""The host half of CUDA where there is no GPU: on a pretended driver, whose kernels do nothing.

Real are the dispatchers, the compiler, the cache, allocations, copies, streams and launches; only
what kernels would compute is missing: every array keeps the zeros it began with.
"""

import json
import sys
import tomllib
from pathlib import Path

import pretended
import pytest
import toy
from conftest import ROOT, as_triple, error_lines, make_dataset, msgd, save_npz
from packaging.requirements import Requirement
from pretended import Launch, read_log, run_program, with_gpu

DEVICE = "a pretended GPU, compute capability 9.0"


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    """Return with_gpu for the folder of a driver that was built here."""
    folder = pretended.build(tmp_path_factory.mktemp("driver"))
    return lambda **changes: with_gpu(folder, **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_npz(folder / "toy.npz", as_triple(make_dataset(60, 30, 30, (10, 10), 3)))
    done = msgd("unpickle", folder / "toy.npz", "--output", folder / "arrays")
    assert done.returncode == 0, done.stderr
    return folder / "arrays"


def train(data, run, *words, model="logistic_regression", options=(), changes=None, **environment):
    return msgd(
        *("train", "--data", data, "--run", run, "--backend", "cuda", *options),
        *toy.words_of(model, batch_size=10, n_epochs=2, **(changes or {})),
        *words,
        **environment,
    )


# A model, changes of its toy, and the kernel that trains.
TRAININGS = [
    ("logistic_regression", {}, "_train_fast"),
    ("mlp", {}, "_train"),
    ("mlp", toy.FAST_LAYERS["mlp"], "_train_fast"),
    ("lenet", {}, "_train"),
]


@pytest.mark.parametrize(("model", "changes", "trains"), TRAININGS)
def test_train_and_score_from_end_to_end(gpu, data, tmp_path, model, changes, trains):
    run, log = tmp_path / "run", tmp_path / "log"
    done = train(data, run, model=model, changes=changes, **gpu(PRETENDED_LOG=str(log)))
    assert done.returncode == 0, done.stderr
    assert f"backend cuda, as configured: {DEVICE}" in done.stderr
    assert "Warning" not in done.stderr
    assert json.loads((run / "provenance.json").read_text())["device"] == f"cuda: {DEVICE}"
    assert json.loads((run / "training.json").read_text())["backend"] == "cuda"

    launches = [event for event in read_log(log) if isinstance(event, Launch)]
    for launch in launches:
        assert launch.is_cooperative == (launch.kernel == trains)
        assert launch.threads % 32 == 0
        assert 1 <= launch.blocks <= 264
    assert {"_count_mistakes", trains} <= {launch.kernel for launch in launches}

    log.unlink()
    score = ("score", "--data", data, "--run", run, "--backend", "cuda")
    done = msgd(*score, **gpu(PRETENDED_LOG=str(log)))
    assert done.returncode == 0, done.stderr
    assert (run / "score.json").exists()
    kernels = {event.kernel for event in read_log(log) if isinstance(event, Launch)}
    assert "_predict_classes" in kernels
    assert trains not in kernels


def test_conjugate_gradients_find_nothing_to_do_where_gradients_are_zero(gpu, data, tmp_path):
    log = tmp_path / "log"
    done = train(data, tmp_path / "run", model="logistic_cg", **gpu(PRETENDED_LOG=str(log)))
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].endswith("in epoch 0 of 0; stopped by convergence")
    launches = [event for event in read_log(log) if isinstance(event, Launch)]
    added = [launch.is_cooperative for launch in launches if launch.kernel == "_add_gradients"]
    assert added
    assert all(added)


def test_auto_says_what_it_takes(gpu, data, tmp_path):
    done = train(data, tmp_path / "run", options=("--backend", "auto"), **gpu())
    assert done.returncode == 0, done.stderr
    assert "backend auto takes c" in done.stderr


FAST_LENET = """
import numpy as np
import toy
from conftest import make_dataset
dataset = make_dataset(20, 10, 10, toy.FAST_SHAPE, 3)
settings = toy.settings_of("lenet", batch_size=5, **toy.FAST_LAYERS["lenet"])
parameters = toy.random_parameters(dataset, settings, np.float32)
backend = toy.make_backend("cuda", dataset, settings, parameters)
kept = {name: array.tobytes() for name, array in backend.get_parameters().items()}
assert kept == {name: array.tobytes() for name, array in parameters.items()}
backend.train(0, 3)
backend.count_errors("valid")
"""


def test_the_fast_kernels_of_lenet_are_launched(gpu, tmp_path):
    log = tmp_path / "log"
    done = run_program(FAST_LENET, **gpu(PRETENDED_LOG=str(log)))
    assert done.returncode == 0, done.stderr
    launches = [event for event in read_log(log) if isinstance(event, Launch)]
    trained = ["_arrange_fast", "_train_fast", "_flatten_fast", "_costs_fast"]
    scored = ["_arrange_fast", "_convolve_fast", "_hidden_fast", "_logits_fast"]
    assert [launch.kernel for launch in launches] == [*trained, *scored, "_count_mistakes"]
    for launch in launches:
        assert launch.is_cooperative == (launch.kernel == "_train_fast")


CHUNKS = """
import numpy as np
from conftest import make_dataset
from msgd.config import complete_experiment
from msgd.models import load_backend, load_model
dataset = make_dataset(n_train=22, n_valid=11, shape=(5, 5), n_classes=3)  # 5 minibatches
settings = complete_experiment({"model": "logistic_regression", "batch_size": 4})
parameters = load_model("logistic_regression").initial_parameters(dataset, settings, np.float32)
backend = load_backend("logistic_regression", "cuda")(
    dataset, parameters, settings, np.float32, CHUNK
)
backend.train(0, 5)
"""


def copies_and_launches(gpu, log, chunk):
    """Return the streams, and the uploads of images in streams and the launches in their order."""
    done = run_program(CHUNKS.replace("CHUNK", str(chunk)), **gpu(PRETENDED_LOG=str(log)))
    assert done.returncode == 0, done.stderr
    events = read_log(log)
    streams = [
        event[1] for event in events if not isinstance(event, Launch) and event[0] == "stream"
    ]
    order = []
    for event in events:
        if isinstance(event, Launch):
            assert event.stream == streams[0]
            order.append("train")
        elif event[0] == "upload" and event[3] == streams[1] and int(event[1]) % 25 == 0:
            order.append(int(event[1]) // 25)  # images of 25 bytes
    return streams, order


def test_the_next_chunk_is_uploaded_while_the_present_one_is_trained(gpu, tmp_path):
    """Kernels run in one stream and uploads in another; each is asked for before any wait."""
    streams, order = copies_and_launches(gpu, tmp_path / "log", 2)
    assert len(set(streams)) == 2
    assert order == [8, "train", 8, "train", 6, "train", 8]


def test_resident_data_are_uploaded_once(gpu, tmp_path):
    _, order = copies_and_launches(gpu, tmp_path / "log", None)
    assert order == ["train"]


NO_DEVICE = "backend is cuda, but there is neither a CUDA device with its driver nor the simulator"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PRETENDED_DEVICES": "0"}, f"{NO_DEVICE} (Error at driver init: Call to cuInit"),
        ({"PRETENDED_FAIL": "cuInit 1 803"}, f"{NO_DEVICE} (Error at driver init: Call to cuInit"),
        ({"NUMBA_DISABLE_CUDA": "1"}, f"{NO_DEVICE} (CUDA is disabled due to setting"),
        ({"PRETENDED_VERSION": "12040"}, "but the driver supports CUDA 12.4 and the compiler is"),
        ({"PRETENDED_FAIL": "cuMemAlloc 1 2"}, "the CUDA device has too little memory"),
        ({"PRETENDED_FAIL": "cuMemAlloc 9 2"}, "how many minibatches may be on it at a time"),
        ({"PRETENDED_FAIL": "cuLaunchKernelEx 1 719"}, "the CUDA device failed: CUDA_ERROR"),
        ({"PRETENDED_FAIL": "cuLaunchKernelEx 3 700"}, "the CUDA device failed: CUDA_ERROR"),
        ({"PRETENDED_FAIL": "cuStreamSynchronize 1 700"}, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ({"PRETENDED_FAIL": "cuMemcpyDtoH 1 700"}, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ({"PRETENDED_FAIL": "cuMemcpyHtoD 1 700"}, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ({"PRETENDED_FAIL": "cuLibraryLoadData 1 209"}, "there is no kernel image available"),
    ],
    ids=lambda value: "_".join(map("=".join, value.items())) if isinstance(value, dict) else "",
)
def test_what_fails_is_reported_in_one_line(gpu, data, tmp_path, changes, message):
    done = train(data, tmp_path / "run", **gpu(**changes))
    assert done.returncode == 1
    assert message in done.stderr
    (error,) = error_lines(done.stderr)
    assert error.startswith("msgd train: error: ")
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("cuMemAlloc 10 2", "has too little memory"),
        ("cuMemAlloc 16 2", "has too little memory"),
        ("cuLaunchKernelEx 1 719", "failed: CUDA_ERROR"),
    ],
)
@pytest.mark.parametrize("model", ["mlp", "lenet", "logistic_cg"])
def test_failures_are_reported_for_every_model(gpu, data, tmp_path, model, failure, message):
    """In making the backend, in its arrays and in what it launches."""
    changes = gpu(PRETENDED_FAIL=failure)
    done = train(data, tmp_path / "run", model=model, **changes)
    assert done.returncode == 1
    assert f"msgd train: error: the CUDA device {message}" in done.stderr
    assert "Traceback" not in done.stderr


HIDING = """
import os
from cuda import pathfinder
load = pathfinder.load_nvidia_dynamic_lib
def load_unless_hidden(name):
    if name == os.environ["HIDDEN_LIBRARY"]:
        raise pathfinder.DynamicLibNotFoundError(name)
    return load(name)
pathfinder.load_nvidia_dynamic_lib = load_unless_hidden
"""


@pytest.mark.parametrize("library", ["nvvm", "nvrtc"])
def test_a_missing_part_of_the_compiler_is_no_missing_device(gpu, data, tmp_path, library):
    (tmp_path / "sitecustomize.py").write_text(HIDING)
    changes = gpu(HIDDEN_LIBRARY=library, PYTHONPATH=str(tmp_path))
    done = train(data, tmp_path / "run", **changes)
    assert done.returncode == 1
    assert f"but the CUDA compiler's lib{library} is not found" in done.stderr
    assert "pip install -c constraints.txt -e '.[gpu]'" in done.stderr
    assert "device with its driver" not in done.stderr
    assert "Traceback" not in done.stderr


WHICH = """
import sys
BEFORE
import numba, msgd
from msgd.kernels.cuda import why_no_device
print(sys.modules["numba.cuda"].__file__)
print(why_no_device())
"""


def which_numba_cuda(gpu, before=""):
    """Import it where packages are on PYTHONPATH only, so that no .pth file was run."""
    folders = [str(ROOT / "src"), *(path for path in sys.path if path.endswith("site-packages"))]
    program = f"sys.path += {folders}\n{before}"
    done = run_program(WHICH.replace("BEFORE", program), "-S", **gpu())
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_packages_on_the_path_alone_give_the_right_numba_cuda(gpu):
    file, _ = which_numba_cuda(gpu)
    assert Path(file).parts[-4:-1] == ("numba_cuda", "numba", "cuda")


@pytest.mark.parametrize("before", ["import numba.cuda", "from numba import cuda"])
def test_numbas_own_old_module_is_reported(gpu, before):
    file, reason = which_numba_cuda(gpu, before)
    assert Path(file).parts[-4:-1] != ("numba_cuda", "numba", "cuda")
    assert reason.startswith(f"numba.cuda is Numba's own old module ({file})")
    assert "import msgd before numba.cuda" in reason


def cached(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("cuda*.nb?")}


def architectures(log):
    """Return the compute capabilities that the machine code of the loaded programs is for."""
    loads = [event for event in read_log(log) if event[0] == "load"]
    return {int(event[2], 16) >> 8 & 0xFF for event in loads}


def test_a_second_process_compiles_nothing_and_another_device_its_own(gpu, data, tmp_path):
    cache = tmp_path / "cache"
    contents = []
    for number, capability in enumerate(("90", "90", "80", "80", "90")):
        log = tmp_path / f"log{number}"
        changes = gpu(
            NUMBA_CACHE_DIR=str(cache), PRETENDED_CAPABILITY=capability, PRETENDED_LOG=str(log)
        )
        done = train(data, tmp_path / "run", **changes)
        assert done.returncode == 0, done.stderr
        assert architectures(log) == {int(capability)}
        contents.append(cached(cache))
    kernels = {path.name.split("-")[0] for path in contents[0]}
    assert {
        "cuda.make_train.locals._train_fast",
        "cuda.make_logits.locals._logits_fast",
        "cuda_backend._count_mistakes",
    } <= kernels
    assert contents[1] == contents[0]
    assert len(contents[2]) > len(contents[1])
    assert contents[4] == contents[3] == contents[2]


def test_small_grids_bring_no_warning_unless_asked_for(gpu):
    program = CHUNKS.replace("CHUNK", "None")
    strict = "import warnings\nwarnings.simplefilter('error')\n" + program
    done = run_program(strict, **gpu())
    assert done.returncode == 0, done.stderr
    done = run_program(program, **gpu(NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS="1"))
    assert "Grid size 4 will likely result in GPU under-utilization" in done.stderr


def test_numpy_is_one_that_numba_cuda_can_be_imported_with():
    """numba-cuda 0.30.4 uses np.row_stack, which NumPy 2.5 no longer has."""
    import numba_cuda

    source = Path(numba_cuda.__file__).parent / "numba" / "cuda" / "np" / "arrayobj.py"
    assert "np.row_stack" in source.read_text(), "then numpy<2.5 in pyproject.toml can go"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (numpy,) = [r for r in map(Requirement, project["dependencies"]) if r.name == "numpy"]
    assert not numpy.specifier.contains("2.5.0")
    assert numpy.specifier.contains("2.4.6")
