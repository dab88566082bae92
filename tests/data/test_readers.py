"""Files as people have them: what they hold decides, whatever they are called."""

import bz2
import gzip
import io
import logging
import lzma
import os
import pickle
import tarfile
import zipfile
from functools import partial

import numpy as np
import pytest
from conftest import as_triple, make_dataset, save_idx, save_idx_folder, save_npz

from msgd.config import complete_config
from msgd.data import readers
from msgd.data.dataset import load_dataset
from msgd.data.unpickle import known_sizes, unpickle
from msgd.errors import UserError

pytestmark = pytest.mark.usefixtures("small_pieces")

TOY = make_dataset(n_train=30, n_valid=12, n_test=9, shape=(4, 5), n_classes=3)
SPLITS = ("train", "valid", "test")


def read(source):
    """Return the data set at ``source``, read."""
    folder = source.parent / "arrays"
    unpickle(source, folder, "float32")
    return load_dataset(folder)


def check_toy(found, toy=TOY):
    for split in SPLITS:
        for a, b in zip(found.split(split), toy.split(split), strict=True):
            np.testing.assert_array_equal(a, b)


def check_split_off(found):
    """The validation set must be the last sixth of TOY's training set."""
    np.testing.assert_array_equal(found.train_x, TOY.train_x[:25])
    np.testing.assert_array_equal(found.train_y, TOY.train_y[:25])
    np.testing.assert_array_equal(found.valid_x, TOY.train_x[25:])
    np.testing.assert_array_equal(found.valid_y, TOY.train_y[25:])
    np.testing.assert_array_equal(found.test_x, TOY.test_x)


def refusal(source, by_headers=True):
    """Return what is said of ``source``; by_headers: whether it is seen before any job has run."""
    with pytest.raises(UserError) as caught:
        read(source)
    assert source.name in str(caught.value)
    assert not (source.parent / "arrays").exists()
    if by_headers:
        with pytest.raises(UserError):
            known_sizes(str(source))
    return str(caught.value)


def npz_bytes(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npz_of_toy():
    stream = io.BytesIO()
    save_npz(stream, as_triple(TOY))
    return stream.getvalue()


PICKLES = {protocol: pickle.dumps(as_triple(TOY), protocol) for protocol in range(6)}


@pytest.mark.parametrize("name", ["toy.pkl.gz", "toy.pkl", "toy.npz", "toy", "toy.dat", "toy.gz"])
@pytest.mark.parametrize("content", ["pickle", "old pickle", "packed pickle", "npz"])
def test_contents_decide_not_names(tmp_path, content, name):
    data = {
        "pickle": PICKLES[5],
        "old pickle": PICKLES[0],
        "packed pickle": gzip.compress(PICKLES[2]),
        "npz": npz_of_toy(),
    }
    (tmp_path / name).write_bytes(data[content])
    check_toy(read(tmp_path / name))
    n_train = 30 if content == "npz" else None  # a pickle has no header that says it
    sizes = known_sizes(str(tmp_path / name))
    assert (sizes and sizes.n_train) == n_train


@pytest.mark.parametrize("protocol", PICKLES)
def test_pickles_are_known_by_their_beginning(tmp_path, protocol):
    (tmp_path / "toy").write_bytes(PICKLES[protocol])
    check_toy(read(tmp_path / "toy"))


def tar_of(data):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("toy.pkl")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def zip_of(*names):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return stream.getvalue()


def npy_bytes():
    stream = io.BytesIO()
    np.save(stream, TOY.train_x)
    return stream.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 17051982\n"
HTML = b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>"
FOREIGN = {
    "HTML": (HTML, "a web page (HTML), not data"),
    "HTML in capitals, after a byte order mark": (b"\xef\xbb\xbf<HTML>", "a web page (HTML)"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page (HTML)"),
    "Git LFS pointer": (LFS, "a Git LFS pointer to the file, not a data set that is read; run git"),
    "git-annex pointer": (b"/annex/objects/MD5E-s1--0.gz\n", "a git-annex pointer"),
    "npy": (npy_bytes(), "a single array (.npy)"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "MATLAB": (b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(200), "a MATLAB file"),
    "xz": (lzma.compress(PICKLES[2]), "packed by xz, not a data set that is read; unpack it"),
    "bz2": (bz2.compress(PICKLES[2]), "packed by bzip2"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(100), "packed by zstd"),
    "tar": (tar_of(PICKLES[2]), "a tar archive"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG picture"),
    "empty": (b"", "is empty"),
    "CSV": (b"label,pixel0,pixel1\n5,0,0\n", "not a known kind of data set, it begins b'label"),
    "JSON": (b'{"message": "Not Found"}', "not a known kind of data set, it begins b'{"),
    "zip of other files": (zip_of("train.csv", "test.csv"), "it holds train.csv, test.csv"),
    "empty zip": (zip_of(), "it holds nothing"),
    "one IDX file": (b"\0\0\x08\x01\0\0\0\x01\x07", "name the folder that holds all of them"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_data_set_is_called_by_its_name(tmp_path, kind, packed):
    content, words = FOREIGN[kind]
    source = tmp_path / "data.bin"
    source.write_bytes(gzip.compress(content) if packed else content)
    said = refusal(source)
    if packed and "zip" in kind:
        words = "a gzip file, and in it is a zip archive (.npz); unpack it with gunzip"
    if packed and kind == "empty":
        words = "unpacks to nothing"
    assert words in said
    assert ("a gzip file, and in it is" in said) == (
        packed and kind not in ("empty", "CSV", "JSON", "one IDX file")
    )


@pytest.mark.parametrize("name", ["mnist.pkl.gz", "mnist.pkl", "mnist.npz", "mnist"])
@pytest.mark.parametrize("kind", ["HTML", "Git LFS pointer", "tar", "empty"])
def test_it_is_called_so_under_every_name(tmp_path, kind, name):
    content, words = FOREIGN[kind]
    (tmp_path / name).write_bytes(content)
    assert words in refusal(tmp_path / name)


def test_a_file_packed_twice_is_reported(tmp_path):
    (tmp_path / "toy.pkl.gz").write_bytes(gzip.compress(gzip.compress(PICKLES[2])))
    assert "packed twice" in refusal(tmp_path / "toy.pkl.gz")


@pytest.mark.parametrize("length", [5, 12, 40])
def test_a_gzip_cut_at_its_beginning_is_reported(tmp_path, length):
    (tmp_path / "toy.pkl.gz").write_bytes(gzip.compress(os.urandom(600))[:length])
    assert "is truncated" in refusal(tmp_path / "toy.pkl.gz")


def test_a_pickled_attack_is_refused_under_every_name(tmp_path):
    trace = tmp_path / "trace"

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    for protocol in range(6):
        data = pickle.dumps((((Attack(), 0),) * 3), protocol)
        for name in ("a.npz", "a.pkl.gz", "a"):
            (tmp_path / name).write_bytes(data)
            assert "a foreign object" in refusal(tmp_path / name, by_headers=False)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["bomb.npz", "bomb", "bomb.pkl"])
def test_a_bomb_is_stopped_under_every_name(tmp_path, monkeypatch, name):
    monkeypatch.setattr(readers, "HARMLESS_BYTES", 2**20)
    zeros = [(np.zeros((2**18, 20), np.float32), np.zeros(2**18))] * 3
    (tmp_path / name).write_bytes(gzip.compress(pickle.dumps(zeros, 4)))
    assert "unpacks to more than" in refusal(tmp_path / name, by_headers=False)
    np.savez_compressed(tmp_path / "it.npz", x_train=np.zeros((2**18, 20)))
    (tmp_path / "it.npz").rename(tmp_path / name)
    assert "unpacks to 41,943," in refusal(tmp_path / name)


# Pickles.


@pytest.mark.parametrize("protocol", range(6))
def test_transposed_images_are_read(tmp_path, protocol):
    """Pictures kept with N last, as MATLAB has them, and turned over before pickling."""
    images = [(x.reshape(-1, 4, 5), y) for x, y in as_triple(TOY)]
    turned = [(np.ascontiguousarray(x.transpose(1, 2, 0)).transpose(2, 0, 1), y) for x, y in images]
    columns = [(np.asfortranarray(x), y) for x, y in images]
    for name, content in (("turned", turned), ("columns", columns)):
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
        found = read(tmp_path / name)
        check_toy(found)
        assert found.image_shape == (4, 5)


@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_get_a_hint(tmp_path, kind):
    (train_x, train_y), valid, test = as_triple(TOY)
    source = tmp_path / "toy.pkl"
    refused = partial(refusal, source, by_headers=False)
    source.write_bytes(pickle.dumps(((kind(train_x), train_y), valid, test)))
    assert "train images are a list of 30, not one array; numpy.stack(images)" in refused()
    source.write_bytes(pickle.dumps(((train_x, kind(train_y.tolist())), valid, test)))
    assert "train labels are a list of 30, not one array; numpy.array(labels)" in refused()
    source.write_bytes(pickle.dumps(((test[0].tolist(), test[1]), valid, test)))
    assert "train images are a list of 9, not one array; numpy.stack(images)" in refused()


def test_long_lists_of_images_get_the_hint_too(tmp_path):
    pair = list(np.zeros((1000, 4), np.float32)), np.zeros(1000)
    (tmp_path / "toy.pkl").write_bytes(pickle.dumps((pair, pair, pair)))
    assert "numpy.stack" in refusal(tmp_path / "toy.pkl", by_headers=False)


def test_a_pickle_of_something_else_is_described(tmp_path):
    source = tmp_path / "toy.pkl"
    train, valid, test = as_triple(TOY)
    for content, words in (
        ((train, test), "but 2 entries (a pair, a pair)"),
        ((train, valid, test, test), "but 4 entries"),
        (train[0], "but one array of shape (30, 20)"),
        ({1, 2}, "but a set"),
        (((train[0],), valid, test), "but 3 entries (a tuple of 1, a pair, a pair)"),
        ((train[0], train[1], test[0]), "but 3 entries (an array, an array, an array)"),
    ):
        source.write_bytes(pickle.dumps(content))
        assert words in refusal(source, by_headers=False)


# Names of arrays.

NAMES = {
    "own": ("train_x", "train_y", "valid_x", "valid_y", "test_x", "test_y"),
    "Keras, x_valid": ("x_train", "y_train", "x_valid", "y_valid", "x_test", "y_test"),
    "Keras, x_val": ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"),
    "capitals": ("X_train", "y_train", "X_val", "y_val", "X_test", "y_test"),
    "val_x": ("train_x", "train_y", "val_x", "val_y", "test_x", "test_y"),
    "MedMNIST": (
        *("train_images", "train_labels", "val_images"),
        *("val_labels", "test_images", "test_labels"),
    ),
    "validation": (
        *("train_images", "train_labels", "validation_images"),
        *("validation_labels", "test_images", "test_labels"),
    ),
}


def named(style, triple=None):
    arrays = [array for pair in triple or as_triple(TOY) for array in pair]
    return dict(zip(NAMES[style], arrays, strict=True))


@pytest.mark.parametrize("kind", ["npz", "pickle"])
@pytest.mark.parametrize("style", NAMES)
def test_names_of_arrays_are_understood(tmp_path, style, kind):
    arrays = named(style)
    data = npz_bytes(**arrays) if kind == "npz" else pickle.dumps(arrays)
    (tmp_path / "toy").write_bytes(data)
    check_toy(read(tmp_path / "toy"))


@pytest.mark.parametrize("style", NAMES)
def test_labels_in_a_column_are_read(tmp_path, style):
    triple = [(x.reshape(-1, 4, 5), y[:, None].astype(np.uint8)) for x, y in as_triple(TOY)]
    (tmp_path / "toy.npz").write_bytes(npz_bytes(**named(style, triple)))
    check_toy(read(tmp_path / "toy.npz"))


@pytest.mark.parametrize("style", NAMES)
def test_without_a_validation_part_the_last_sixth_is_split_off(tmp_path, style, caplog):
    arrays = {name: a for name, a in named(style).items() if "val" not in name}
    source = tmp_path / "toy.npz"
    source.write_bytes(npz_bytes(**arrays, unrelated=np.zeros(3)))
    with caplog.at_level(logging.INFO, "msgd"):
        check_split_off(read(source))
    assert f"{source} has no validation part: the last 5 of 30 training images" in caplog.text
    assert known_sizes(str(source)).n_train == 25


def test_a_missing_array_is_reported_with_those_found(tmp_path):
    for style in NAMES:
        for name in named(style):
            arrays = named(style)
            del arrays[name]
            (tmp_path / "toy.npz").write_bytes(npz_bytes(**arrays))
            said = refusal(tmp_path / "toy.npz")
            split = next(s for s in ("train", "val", "test") if s in name)
            part = "x" if "x" in name.lower() or "images" in name else "y"
            assert f"lacks {split.replace('val', 'valid')}_{part}; it holds " in said
            assert all(other in said for other in arrays)
            assert "x_train" in said
            assert "train_images" in said


def test_arrays_without_names_are_reported(tmp_path):
    np.savez(tmp_path / "toy.npz", *range(30))
    said = refusal(tmp_path / "toy.npz")
    assert "lacks train_x, train_y, test_x, test_y; it holds arr_0, arr_1" in said
    assert "and 18 more" in said


def test_two_names_of_one_thing_are_refused(tmp_path):
    for extra in ("x_train", "train_images", "Train_X", "x_training"):
        arrays = {**named("own"), extra: TOY.train_x}
        (tmp_path / "toy.npz").write_bytes(npz_bytes(**arrays))
        assert f"holds train_x and {extra}, which mean the same" in refusal(tmp_path / "toy.npz")


def test_an_npz_of_objects_gets_a_hint(tmp_path):
    arrays = named("Keras, x_val")
    arrays["x_train"] = np.array([*arrays["x_train"], None], dtype=object)
    (tmp_path / "toy.npz").write_bytes(npz_bytes(**arrays))
    assert "numpy.stack" in refusal(tmp_path / "toy.npz")


def test_too_few_images_to_split_off_a_validation_set_are_reported(tmp_path):
    few = {name: array[:5] for name, array in named("own").items() if "valid" not in name}
    (tmp_path / "toy.npz").write_bytes(npz_bytes(**few))
    with pytest.raises(UserError, match="no validation part, and 5 training images are too few"):
        read(tmp_path / "toy.npz")


def test_labels_too_few_are_reported_before_anything_is_split_off(tmp_path):
    arrays = {name: array for name, array in named("own").items() if "valid" not in name}
    arrays["train_y"] = arrays["train_y"][:-1]
    (tmp_path / "toy.npz").write_bytes(npz_bytes(**arrays))
    assert "train has 30 images but labels of shape (29,)" in refusal(tmp_path / "toy.npz")


def test_classes_that_the_split_takes_away_get_a_hint(tmp_path):
    arrays = {name: array for name, array in named("own").items() if "valid" not in name}
    arrays["train_y"] = np.repeat([0, 1, 2], [15, 10, 5])
    (tmp_path / "toy.npz").write_bytes(npz_bytes(**arrays))
    with pytest.raises(UserError, match=r"valid label 2 .* shuffle them first"):
        read(tmp_path / "toy.npz")


# Folders of IDX files.


@pytest.fixture
def idx(tmp_path):
    folder = tmp_path / "digits"
    save_idx_folder(folder, TOY)
    return folder


def test_a_folder_without_a_validation_set_is_split(idx, caplog):
    for file in idx.glob("valid*"):
        file.unlink()
    with caplog.at_level(logging.INFO, "msgd"):
        check_split_off(read(idx))
    assert "the last 5 of 30 training images are split off" in caplog.text
    assert known_sizes(str(idx)).n_train == 25


def test_contents_of_idx_files_decide_not_names(idx):
    packed = idx / "train-images-idx3-ubyte"
    packed.write_bytes(gzip.compress(packed.read_bytes()))
    (idx / "t10k-images-idx3-ubyte").rename(idx / "t10k-images.idx3-ubyte.gz")
    (idx / "t10k-labels-idx1-ubyte").rename(idx / "T10K-labels")
    check_toy(read(idx))


@pytest.mark.parametrize("prefix", ["val", "validation", "valid"])
def test_validation_files_may_begin_with(idx, prefix):
    for file in idx.glob("valid*"):
        file.rename(idx / file.name.replace("valid", prefix))
    check_toy(read(idx))


@pytest.mark.parametrize("part", ["images", "labels"])
@pytest.mark.parametrize(
    ("old", "new"), [("valid", "val"), ("valid", "validation"), ("t10k", "test")]
)
def test_two_names_of_one_split_are_refused(idx, old, new, part):
    (file,) = idx.glob(f"{old}-{part}*")
    other = idx / file.name.replace(old, new)
    other.write_bytes(file.read_bytes())
    said = refusal(idx)
    assert file.name in said
    assert other.name in said
    assert "under two names" in said


@pytest.mark.parametrize("part", ["images-idx3-ubyte", "labels-idx1-ubyte"])
def test_a_file_packed_and_unpacked_is_read_if_both_are_the_same(idx, caplog, part):
    file = idx / f"train-{part}"
    packed = idx / f"train-{part}.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    with caplog.at_level(logging.INFO, "msgd"):
        check_toy(read(idx))
    assert f"{file.name} and {packed.name} hold the same array" in caplog.text


DIFFERENT = {
    "one value": lambda y: np.append(y[:-1], y[-1:] ^ 1),
    "numbers of four bytes": lambda y: y.astype(np.int32),
    "fewer": lambda y: y[:-1],
    "signed": lambda y: y,
}


@pytest.mark.parametrize("change", DIFFERENT)
def test_files_packed_and_unpacked_that_differ_are_refused(idx, change):
    packed = idx / "train-labels-idx1-ubyte.gz"
    save_idx(packed, DIFFERENT[change](TOY.train_y.astype(np.uint8)))
    if change == "signed":
        data = gzip.decompress(packed.read_bytes())
        packed.write_bytes(gzip.compress(b"\0\0\x09" + data[3:]))
    said = refusal(idx, by_headers=change != "one value")
    assert f"holds train-labels-idx1-ubyte and {packed.name}, which differ" in said


def test_a_damaged_twin_is_named(idx):
    packed = idx / "train-labels-idx1-ubyte.gz"
    packed.write_bytes(gzip.compress((idx / "train-labels-idx1-ubyte").read_bytes())[:-6])
    assert packed.name in refusal(idx)


def test_folders_and_other_files_beside_are_no_matter(idx):
    (idx / "train-images-idx3-ubyte.d").mkdir()
    (idx / "README.md").write_text("digits")
    (idx / "._train-images-idx3-ubyte").write_bytes(b"what macOS leaves")
    check_toy(read(idx))


@pytest.mark.parametrize("name", ["train-images", "train-labels", "valid-images", "t10k-labels"])
def test_a_missing_idx_file_is_reported_with_those_found(idx, name):
    (file,) = idx.glob(f"{name}*")
    file.unlink()
    said = refusal(idx)
    assert f"holds no file {name}" in said
    assert all(other.name in said for other in idx.iterdir())


@pytest.mark.parametrize("kind", ["HTML", "Git LFS pointer", "xz", "npy", "empty"])
def test_what_is_no_idx_file_is_called_by_its_name(idx, kind):
    content, words = FOREIGN[kind]
    (idx / "t10k-images-idx3-ubyte").write_bytes(content)
    said = refusal(idx)
    assert "t10k-images-idx3-ubyte" in said
    assert words in said


def test_an_idx_bomb_is_stopped(idx, monkeypatch):
    monkeypatch.setattr(readers, "HARMLESS_BYTES", 2**20)
    header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (30, 1000, 1000))
    (idx / "train-images-idx3-ubyte").write_bytes(gzip.compress(header + bytes(30_000_000)))
    assert "unpacks to more than" in refusal(idx)


# Paths.


def test_a_path_not_found_is_reported_with_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "digits.npz").write_bytes(b"")
    for path, words in (
        ("absent.pkl", f"the data set absent.pkl does not exist; it was sought in {tmp_path}"),
        ("sub/x", f"it was sought in {tmp_path / 'sub'}"),
        ("sub/digit.npz", f"{tmp_path / 'sub'} (did you mean digits.npz?)"),
        ("no/x", f"it was sought in {tmp_path / 'no'}, which is no folder"),
        (str(tmp_path / "y"), f"it was sought in {tmp_path}"),
    ):
        with pytest.raises(UserError) as caught:
            unpickle(path, tmp_path / "arrays", "float32")
        assert words in str(caught.value)
        with pytest.raises(UserError, match="it was sought in"):
            known_sizes(path)


def test_a_link_that_leads_nowhere_is_reported(tmp_path):
    (tmp_path / "toy.npz").symlink_to(tmp_path / "gone.npz")
    assert "a link of that name leads nowhere" in refusal(tmp_path / "toy.npz")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    assert "neither a file nor a folder" in refusal(tmp_path / "pipe.npz")


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "toy.npz").write_bytes(npz_of_toy())
    config = complete_config(
        {"dataset": "~/toy.npz", "experiments": {"a": {"model": "logistic_regression"}}}
    )
    assert config["dataset"] == str(tmp_path / "toy.npz")
    for path in ("~/toy.npz", config["dataset"]):
        unpickle(path, tmp_path / "arrays", "float32")
        assert known_sizes(path).n_train == 30
    check_toy(load_dataset(tmp_path / "arrays"))
    with pytest.raises(UserError, match=rf"{tmp_path}/toy\.npy does not exist.*{tmp_path} "):
        known_sizes("~/toy.npy")
    with pytest.raises(UserError, match=r"~nobody-of-that-name/toy\.npz does not exist"):
        known_sizes("~nobody-of-that-name/toy.npz")


@pytest.mark.parametrize("path", ["./mnist", "mnist/", "a/~/b.npz", "../x.npz", "/a//b.npz"])
def test_other_paths_stay_as_they_are_written(path):
    """A folder ./mnist, above all, is not the data set of that name."""
    config = complete_config({"dataset": path, "experiments": {"a": {"model": "mlp"}}})
    assert config["dataset"] == path
