"""What the tests share.

Without a GPU the CUDA tests run on Numba's simulator under the layer of simulator.py, or, if
MSGD_PLAIN_SIMULATOR=1, on the simulator as it is.
"""

import ctypes
import dataclasses
import fcntl
import gzip
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _has_gpu():
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return driver.cuInit(0) == 0


# Before Numba is imported, for it looks once.
if not _has_gpu():
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")
# Two threads on one core too: that bits do not depend on their number is tested everywhere.
os.environ.setdefault("NUMBA_NUM_THREADS", str(max(2, len(os.sched_getaffinity(0)))))

import numba  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

import msgd as _  # noqa: E402, F401 (before simulator.py: it sees to the right numba.cuda)

if numba.config.ENABLE_CUDASIM:
    if os.environ.get("MSGD_PLAIN_SIMULATOR") == "1":
        # The simulator's main thread polls all others without a pause, 5 ms a turn by default.
        sys.setswitchinterval(0.0005)
    else:
        import simulator

        simulator.install()  # before anything is jitted

pytest.register_assert_rewrite("browser", "contract")

from msgd.data.dataset import Dataset  # noqa: E402
from msgd.data.download import download_mnist  # noqa: E402


def make_dataset(n_train=40, n_valid=20, n_test=20, shape=(3, 3), n_classes=3, pixels="uint8"):
    """Return a small Dataset in memory: noise around one prototype image per class.

    Its arrays are read-only, as those of files are: so kernels are compiled for one kind of array.
    """
    random = np.random.RandomState(20100114)
    prototypes = random.randint(0, 256, (n_classes, shape[0] * shape[1]))

    def split(n):
        y = np.arange(n) * 7 % n_classes
        x = np.clip(prototypes[y] + random.normal(0, 60, (n, prototypes.shape[1])), 0, 255)
        x[random.uniform(size=x.shape) < 0.3] = 0
        x = x.astype(np.uint8)
        if pixels != "uint8":  # off the bytes' grid
            x = (x / 300).astype(pixels)
        return _read_only(x), _read_only(y.astype(np.int32))

    return Dataset(
        *split(n_train),
        *split(n_valid),
        *split(n_test),
        n_classes=n_classes,
        image_shape=shape,
        is_mnist=False,
        sha256={},
        folder=None,
    )


def _read_only(array):
    array.flags.writeable = False
    return array


def darkened(dataset, where):
    """Return ``dataset`` with the training pixels train_x[where] set to 0."""
    x = dataset.train_x.copy()
    x[where] = 0
    return dataclasses.replace(dataset, train_x=_read_only(x))


class MemoryCheckpoint:
    """The iterations of a training's snapshots; keeps no states."""

    title = "toy"

    def __init__(self):
        self.snapshots = []

    def save_snapshot(self, iteration, parameters):
        """Take note of the iteration."""
        self.snapshots.append(iteration)

    def load(self, last_iteration):
        """Find nothing to go on from."""

    def is_state_due(self):
        """Ask for no state."""
        return False

    def save(self, state):
        """Keep no state."""


def as_triple(dataset):
    """Return the three (x, y) pairs of a Dataset, x as float32 pixels, as a pickle holds them."""
    return tuple(
        (
            dataset.images(split, slice(None)).astype(np.float32),
            dataset.split(split)[1].astype(np.int64),
        )
        for split in ("train", "valid", "test")
    )


def save_npz(path, triple):
    """Write a triple of (x, y) pairs as the .npz file that msgd reads."""
    names = ("train", "valid", "test")
    arrays = {
        f"{n}_{p}": a
        for n, pair in zip(names, triple, strict=True)
        for p, a in zip("xy", pair, strict=True)
    }
    np.savez(path, **arrays)


def save_idx(path, array):
    """Write ``array`` as an IDX file, gzipped if its name says so."""
    codes = {np.dtype(np.uint8): 8, np.dtype(np.int32): 12}
    header = struct.pack(">BBBB", 0, 0, codes[array.dtype], array.ndim)
    header += struct.pack(f">{array.ndim}I", *array.shape)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as stream:
        stream.write(header + array.astype(array.dtype.newbyteorder(">")).tobytes())


def save_idx_folder(folder, toy, suffix=""):
    """Write a Dataset as a folder of IDX files."""
    folder.mkdir()
    for split, name in (("train", "train"), ("valid", "valid"), ("test", "t10k")):
        x, y = toy.split(split)
        images = x.reshape(-1, *toy.image_shape)
        save_idx(folder / f"{name}-images-idx3-ubyte{suffix}", images)
        save_idx(folder / f"{name}-labels-idx1-ubyte{suffix}", y.astype(np.uint8))


def msgd(*arguments, **environment):
    """Run the msgd program in a process of its own; return the finished process."""
    return run("msgd.cli", *arguments, **environment)


def msgd_unread(*arguments):
    """Run the msgd program as before ``| head -0``, where nobody reads; return the process."""
    reader, writer = os.pipe()
    os.close(reader)
    words = command("msgd.cli", *arguments)
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    return done


def _is_edited(file):
    """Return whether a file of the clone differs from what is committed, as far as git tells."""
    words = ["git", "-C", ROOT, "diff", "--quiet", "HEAD", "--", file]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 1
    except OSError:
        return False


needs_shipped_config = pytest.mark.skipif(
    _is_edited("config.yaml"), reason="config.yaml was edited: this tests the one that is committed"
)


def snakemake(directory, *arguments, **environment):
    """Run this repository's workflow in ``directory`` in a process of its own."""
    return run("snakemake", *in_folder(directory), *arguments, **environment)


def in_folder(directory):
    """Return the arguments with which snakemake runs the workflow in ``directory``."""
    return "-s", ROOT / "Snakefile", "--directory", directory


def run(module, *arguments, cwd=None, **changes):
    """Run ``python -m module arguments``, the environment changed; return the process."""
    return subprocess.run(
        command(module, *arguments),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env=environment(**changes),
    )


def command(module, *arguments):
    """Return the words of ``python -m module arguments``."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def environment(**changes):
    """Return this process's environment with ``changes``, in which rules find the msgd program."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, **changes}


@pytest.fixture
def small_pieces(monkeypatch):
    """Every data set is unpickled in many pieces, however small it is."""
    from msgd.data import pieces

    monkeypatch.setattr(pieces, "PIECE_BYTES", 100)


@pytest.fixture(scope="session")
def mnist_file():
    """The path of mnist.pkl.gz: the pipeline's own, fetched if it is not there yet.

    Fetched by one of the processes that test; another one would change it while it is read.
    """
    path = ROOT / "results" / "downloads" / "mnist.pkl.gz"
    folder = os.open(ROOT / "results", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        download_mnist(path)
    finally:
        os.close(folder)
    return path


@pytest.fixture(scope="session")
def mnist_folder(mnist_file, tmp_path_factory):
    """A folder with MNIST's six arrays."""
    from msgd.data.unpickle import unpickle

    folder = tmp_path_factory.mktemp("mnist")
    unpickle(mnist_file, folder, "float32", expect_mnist=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def mnist(mnist_folder):
    """MNIST as a Dataset."""
    from msgd.data.dataset import load_dataset

    return load_dataset(mnist_folder)


def error_lines(text):
    """Return the lines of standard error but those that a training's log begins with (list)."""
    begins = "hyperparameters: ", "floatX ", "backend "
    return [line for line in text.splitlines() if not line.startswith(begins)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures of one run that were saved, in their order; each is kept in its file too."""
    from msgd.plots import learning_curve, mistakes, reconstructions, samples, style, weights

    figures = []

    def keep(figure, path, dpi):
        figures.append(figure)
        style.save_figure(figure, path, dpi)

    for module in (learning_curve, weights, mistakes, reconstructions, samples):
        monkeypatch.setattr(module, "save_figure", keep)
    return figures


def has_picture(path):
    """Whether a picture holds more than its background."""
    from PIL import Image

    with Image.open(path) as image:
        return len(image.convert("RGB").getcolors(maxcolors=10**6)) > 1
