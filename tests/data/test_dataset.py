"""Reading and checking data sets of every format, and what is said of bad ones."""

import gzip
import pickle
import subprocess
import sys

import numpy as np
import pytest
from conftest import as_triple, make_dataset, save_idx_folder, save_npz

from msgd.data import readers
from msgd.data.dataset import load_dataset
from msgd.data.unpickle import known_sizes, unpickle
from msgd.errors import UserError

pytestmark = pytest.mark.usefixtures("small_pieces")

TOY = make_dataset(n_train=30, n_valid=12, n_test=9, shape=(4, 5), n_classes=3)


def save_pickle(path, triple):
    with gzip.open(path, "wb") as stream:
        pickle.dump(triple, stream, protocol=2)


def check_equals_toy(folder):
    found = load_dataset(folder)
    for split in ("train", "valid", "test"):
        for a, b in zip(found.split(split), TOY.split(split), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    assert (found.n_classes, found.n_features, found.pixel_scale) == (3, 20, 1 / 256)
    assert not found.is_mnist
    return found


@pytest.mark.parametrize("kind", ["pickle", "npz", "npz of bytes", "idx", "idx.gz"])
def test_every_format_gives_the_same_arrays(tmp_path, kind):
    source = tmp_path / {"pickle": "toy.pkl.gz", "npz": "toy.npz"}.get(kind.split()[0], "toy")
    triple = as_triple(TOY)
    if kind == "pickle":
        save_pickle(source, triple)
    elif kind == "npz":
        save_npz(source, triple)
    elif kind == "npz of bytes":
        save_npz(source, [(TOY.split(s)[0], TOY.split(s)[1]) for s in ("train", "valid", "test")])
    else:
        save_idx_folder(source, TOY, ".gz" if kind == "idx.gz" else "")
    unpickle(source, tmp_path / "arrays", "float32")
    found = check_equals_toy(tmp_path / "arrays")
    # Only IDX files say how the pixels of an image lie.
    assert found.image_shape == ((4, 5) if "idx" in kind else (1, 20))
    assert known_sizes(str(source)) == (None if kind == "pickle" else (30, found.image_shape))


def test_images_with_axes_keep_their_shape(tmp_path):
    triple = [(x.reshape(-1, 4, 5), y) for x, y in as_triple(TOY)]
    save_npz(tmp_path / "toy.npz", triple)
    unpickle(tmp_path / "toy.npz", tmp_path / "arrays", "float32")
    assert check_equals_toy(tmp_path / "arrays").image_shape == (4, 5)


def test_square_images_are_recognised(tmp_path):
    save_npz(tmp_path / "toy.npz", as_triple(make_dataset(shape=(6, 6))))
    unpickle(tmp_path / "toy.npz", tmp_path / "arrays", "float32")
    assert load_dataset(tmp_path / "arrays").image_shape == (6, 6)


@pytest.mark.parametrize("float_x", ["float32", "float64"])
def test_pixels_off_the_bytes_grid_are_kept_as_floats(tmp_path, float_x):
    toy = make_dataset(pixels="float64")
    save_npz(tmp_path / "toy.npz", as_triple(toy))
    unpickle(tmp_path / "toy.npz", tmp_path / "arrays", float_x)
    found = load_dataset(tmp_path / "arrays")
    assert (found.train_x.dtype, found.pixel_scale) == (np.dtype(float_x), 1.0)
    np.testing.assert_allclose(found.train_x, toy.train_x, rtol=1e-6)


def test_arrays_are_mapped_and_read_only(tmp_path):
    save_npz(tmp_path / "toy.npz", as_triple(TOY))
    unpickle(tmp_path / "toy.npz", tmp_path / "arrays", "float32")
    x = load_dataset(tmp_path / "arrays").train_x
    assert type(x) is np.ndarray
    assert isinstance(x.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        x[0, 0] = 1


def test_mnist_is_what_the_tutorials_train_on(mnist):
    assert mnist.is_mnist
    assert (mnist.train_x.dtype, mnist.train_x.shape) == (np.uint8, (50_000, 784))
    assert (len(mnist.valid_x), len(mnist.test_x)) == (10_000, 10_000)
    assert mnist.train_x.max() * mnist.pixel_scale == 255 / 256
    assert list(mnist.train_y[:5]) == [5, 0, 4, 1, 9]
    assert (mnist.image_shape, mnist.n_classes) == ((28, 28), 10)


def bad(change):
    """Return a triple in which ``change`` was made to the six arrays, given by name."""
    arrays = {
        f"{split}_{part}": array.copy()
        for split, pair in zip(("train", "valid", "test"), as_triple(TOY), strict=True)
        for part, array in zip("xy", pair, strict=True)
    }
    change(arrays)
    return [(arrays[f"{s}_x"], arrays[f"{s}_y"]) for s in ("train", "valid", "test")]


def put(name, index, value):
    def change(arrays):
        arrays[name][index] = value

    return change


def replace(name, function):
    def change(arrays):
        arrays[name] = function(arrays[name])

    return change


BAD = {
    "NaN": (put("valid_x", (3, 7), np.nan), r"valid images hold nan at index \(3, 7\)"),
    "infinity": (put("test_x", (0, 1), np.inf), r"test images hold inf at index \(0, 1\)"),
    "negative label": (put("train_y", 4, -1), r"train label -1 at index 4 is out of range"),
    "label of no class": (put("test_y", 2, 3), r"test label 3 at index 2 .* are 0 to 2"),
    "label far beyond": (put("train_y", 2, 99), r"label 99 in train .* has label 3"),
    "fractional label": (
        replace("train_y", lambda y: y + 0.5),
        r"train label .* whole numbers",
    ),
    "NaN label": (replace("valid_y", lambda y: y * np.nan), r"valid labels hold nan"),
    "too few labels": (replace("train_y", lambda y: y[:-1]), r"30 images but labels of .*29"),
    "flat images": (replace("test_x", np.ravel), r"test images have shape \(180,\)"),
    "no images": (replace("test_x", lambda x: x[:0]), r"test images have shape \(0, 20\)"),
    "other width": (replace("test_x", lambda x: x[:, 1:]), r"images of different shapes"),
    "text": (replace("test_y", lambda y: y.astype(str)), r"refused|not an array of numbers"),
    "label beyond 32 bits": (put("test_y", 0, 2**32), r"test label 4294967296 at index 0"),
    "label beyond 64 bits": (
        replace("test_y", lambda y: y + 1e30),
        r"test label 1e\+30 at index 0 is out of range",
    ),
    "whole numbers that are no bytes": (
        replace("valid_x", lambda x: (x * 1000).astype(np.int64)),
        r"valid images are whole numbers from 0 to 996; .* 0 to 255",
    ),
    "too large for float32": (
        replace("test_x", lambda x: np.append(x.astype(float)[:-1], [[1e300] * 20], axis=0)),
        r"test images, as float32, hold inf at index \(8, 0\)",
    ),
    "labels of two axes": (
        replace("train_y", lambda y: np.stack([y, y], axis=1)),
        r"train labels have shape \(30, 2\); one class number for each image",
    ),
    "one-hot labels": (
        replace("valid_y", lambda y: np.eye(3)[y]),
        r"valid labels have shape \(12, 3\); they are one-hot, and numpy\.argmax\(labels, axis=1\)",
    ),
    "one-hot labels of bool": (
        replace("test_y", lambda y: np.eye(3, dtype=bool)[y]),
        r"test labels have shape \(9, 3\); they are one-hot",
    ),
    "one class": (replace("train_y", np.zeros_like), r"every training label is 0"),
}


@pytest.mark.parametrize("kind", ["toy.pkl.gz", "toy.npz"])
@pytest.mark.parametrize("finding", BAD)
def test_bad_arrays_are_reported_and_nothing_is_written(tmp_path, finding, kind):
    change, message = BAD[finding]
    source = tmp_path / kind
    (save_npz if kind.endswith("npz") else save_pickle)(source, bad(change))
    with pytest.raises(UserError, match=message) as caught:
        unpickle(source, tmp_path / "arrays", "float32")
    assert str(source) in str(caught.value)
    assert not (tmp_path / "arrays").exists()


def check_refused(source, message):
    with pytest.raises(UserError, match=message) as caught:
        unpickle(source, source.parent / "arrays", "float32")
    assert source.name in str(caught.value)
    assert not (source.parent / "arrays").exists()


def test_a_gzip_bomb_is_stopped_early(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "HARMLESS_BYTES", 2**20)
    source = tmp_path / "bomb.pkl.gz"
    save_pickle(source, [(np.zeros((2**18, 20), np.float32), np.zeros(2**18))] * 3)
    assert source.stat().st_size < 2**18
    check_refused(source, r"unpacks to more than .* bytes")


def test_an_npz_bomb_is_stopped_early(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "HARMLESS_BYTES", 2**20)
    source = tmp_path / "bomb.npz"
    np.savez_compressed(source, train_x=np.zeros((2**18, 20)))
    check_refused(source, r"unpacks to 41,943,\d+ bytes")


def test_truncated_files_are_reported(tmp_path):
    save_pickle(tmp_path / "whole.pkl.gz", as_triple(TOY))
    save_npz(tmp_path / "whole.npz", as_triple(TOY))
    for suffix, message in ((".pkl.gz", "is truncated"), (".npz", r"not a whole \.npz")):
        data = (tmp_path / f"whole{suffix}").read_bytes()
        source = tmp_path / f"half{suffix}"
        source.write_bytes(data[: len(data) // 2])
        check_refused(source, message)


@pytest.mark.parametrize("kind", ["toy.pkl.gz", "toy.npz", "toy"])
def test_damage_is_reported_wherever_it_is(tmp_path, kind):
    """A checksum at the end is verified, and nothing may follow it."""
    source = tmp_path / kind
    if kind == "toy":
        save_idx_folder(source, TOY, ".gz")
        file = source / "train-images-idx3-ubyte.gz"
    else:
        (save_npz if kind.endswith("npz") else save_pickle)(source, as_triple(TOY))
        file = source
    whole = file.read_bytes()
    damaged = [whole[:-4], whole[: len(whole) // 2] + b"\xff" + whole[len(whole) // 2 + 1 :]]
    if kind != "toy.npz":  # zip files may have a comment at their end
        damaged.append(whole + gzip.compress(b"more"))
    for data in damaged:
        file.write_bytes(data)
        check_refused(source, "is truncated|goes on|is not a|was refused|unpacks to|hold")


def test_a_truncated_idx_file_is_reported(tmp_path):
    folder = tmp_path / "toy"
    save_idx_folder(folder, TOY)
    file = folder / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:100])
    check_refused(folder, r"t10k-images-idx3-ubyte is truncated: 84 of 180 bytes")


def test_other_content_is_reported(tmp_path):
    (tmp_path / "noise.pkl.gz").write_bytes(b"no gzip at all")
    check_refused(tmp_path / "noise.pkl.gz", "not a pickle of arrays")
    save_pickle(tmp_path / "pair.pkl.gz", as_triple(TOY)[:2])
    check_refused(tmp_path / "pair.pkl.gz", "does not hold three pairs")
    np.savez(tmp_path / "lacks.npz", train_x=np.zeros((2, 2)))
    check_refused(tmp_path / "lacks.npz", "lacks train_y, test_x, test_y; it holds train_x")
    (tmp_path / "data.csv").write_text("1,2")
    check_refused(tmp_path / "data.csv", "not a known kind of data set")
    check_refused(tmp_path / "absent.npz", "does not exist")
    (tmp_path / "empty").mkdir()
    check_refused(tmp_path / "empty", "holds no file train-images")


def test_other_data_are_not_taken_for_mnist(tmp_path):
    save_npz(tmp_path / "toy.npz", as_triple(TOY))
    with pytest.raises(UserError, match=r"train_x, valid_x, test_x.* differ from MNIST"):
        unpickle(tmp_path / "toy.npz", tmp_path / "arrays", "float32", expect_mnist=True)
    assert not (tmp_path / "arrays").exists()


def test_training_imports_neither_readers_nor_download(tmp_path):
    """What these do to a data set shows in its arrays; an edit of them is no reason to retrain."""
    script = tmp_path / "probe.py"
    script.write_text("import sys, msgd.data.dataset; print(*sys.modules)")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "msgd.data.dataset" in loaded
    assert not loaded & {"pooch", "requests", "msgd.data.readers", "msgd.data.download"}
    assert not loaded & {"msgd.data.unpickle", "msgd.data.safe_pickle"}


def test_floats_of_any_size_are_compared_with_mnist_without_a_word(tmp_path):
    huge = [(x + np.float32(1e30), y) for x, y in as_triple(TOY)]
    save_npz(tmp_path / "toy.npz", huge)
    unpickle(tmp_path / "toy.npz", tmp_path / "arrays", "float32")
    assert not load_dataset(tmp_path / "arrays").is_mnist
