"""Data sets larger than the memory: read in pieces, to the same bytes, with little memory."""

import gzip
import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from conftest import as_triple, make_dataset, save_idx, save_idx_folder, save_npz

from msgd.data import pieces, unpickle
from msgd.data.dataset import ARRAY_NAMES, load_dataset
from msgd.errors import UserError

TOY = make_dataset(n_train=300, n_valid=120, n_test=90, shape=(4, 5), n_classes=3)
WHOLE = 2**30  # bytes in a piece: all in one


def named(toy, kind, valid=True):
    """Return the six arrays of ``toy`` by name, the pixels of ``kind``; four without ``valid``."""
    arrays = {}
    for split, (x, y) in zip(("train", "valid", "test"), as_triple(toy), strict=True):
        if split != "valid" or valid:
            arrays[f"{split}_x"], arrays[f"{split}_y"] = PIXELS[kind](x), y
    return arrays


PIXELS = {
    "k/256": lambda x: x,
    "bytes": lambda x: (x * 256).astype(np.uint8),
    "big-endian whole numbers": lambda x: (x * 256).astype(">i4"),
    "bool": lambda x: x > 0.5,
    "floats": lambda x: x / 3,
    "floats of both signs": lambda x: (x - 0.5).astype(np.float64) * 300,
    "columns": lambda x: np.asfortranarray(x),
    "pictures with a channel": lambda x: x.reshape(-1, 4, 5, 1),
}


def written(source, folder):
    """Return the bytes of each file that unpickle makes of ``source``."""
    unpickle.unpickle(source, folder, "float32")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("valid", [True, False])
@pytest.mark.parametrize("kind", PIXELS)
def test_the_size_of_the_pieces_changes_no_byte(tmp_path, monkeypatch, kind, valid):
    source = tmp_path / "toy.npz"
    np.savez_compressed(source, **named(TOY, kind, valid))
    found = []
    for size in (1, 100, 1_000, WHOLE):
        monkeypatch.setattr(pieces, "PIECE_BYTES", size)
        found.append(written(source, tmp_path / f"{size}"))
    assert found[0] == found[1] == found[2] == found[3]
    for name in ARRAY_NAMES:  # what numpy.save would have written
        stream = io.BytesIO()
        np.save(stream, np.load(tmp_path / "100" / f"{name}.npy"))
        assert found[0][f"{name}.npy"] == stream.getvalue()


@pytest.mark.parametrize("kind", ["npz", "compressed npz", "idx", "idx.gz"])
def test_less_memory_is_taken_than_the_images_have(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2**16)
    toy = make_dataset(n_train=8_000, n_valid=100, n_test=100, shape=(28, 28), n_classes=3)
    source = tmp_path / ("toy" if "idx" in kind else "toy.npz")
    if "idx" in kind:
        save_idx_folder(source, toy, ".gz" if kind == "idx.gz" else "")
    else:
        (np.savez_compressed if "compressed" in kind else np.savez)(source, **named(toy, "bytes"))
    n_bytes = toy.train_x.nbytes
    tracemalloc.start()
    try:
        unpickle.unpickle(source, tmp_path / "arrays", "float32")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < n_bytes / 3
    np.testing.assert_array_equal(load_dataset(tmp_path / "arrays").train_x, toy.train_x)


def test_pixels_that_cannot_be_used_are_named_in_whichever_piece_they_are(tmp_path):
    for split, row, value, words in (
        ("train", 287, np.nan, r"the train images hold nan at index \(287, 3\)"),
        ("test", 89, -np.inf, r"the test images hold -inf at index \(89, 3\)"),
        ("test", 88, 1e300, r"the test images, as float32, hold inf at index \(88, 3\)"),
    ):
        arrays = named(TOY, "floats of both signs")
        arrays[f"{split}_x"][row, 3] = value
        np.savez(tmp_path / "toy.npz", **arrays)
        with pytest.raises(UserError, match=words):
            unpickle.unpickle(tmp_path / "toy.npz", tmp_path / "arrays", "float32")
        assert not (tmp_path / "arrays").exists()


def test_the_number_of_images_is_known_from_headers(tmp_path, monkeypatch):
    save_npz(tmp_path / "toy.npz", as_triple(TOY))
    save_idx_folder(tmp_path / "idx", TOY)
    save_idx_folder(tmp_path / "packed", TOY, ".gz")
    twin = gzip.compress((tmp_path / "idx" / "train-images-idx3-ubyte").read_bytes())
    (tmp_path / "idx" / "train-images-idx3-ubyte.gz").write_bytes(twin)

    def refuse(*_):
        raise AssertionError("numbers were read")

    monkeypatch.setattr(pieces.StoredArray, "read", refuse)
    monkeypatch.setattr(pieces.StoredArray, "pieces", refuse)
    for name in ("toy.npz", "idx", "packed"):
        assert unpickle.known_sizes(str(tmp_path / name)).n_train == 300


def refused(source):
    """Check that ``source`` is refused from its headers, and return what is said."""
    with pytest.raises(UserError) as caught:
        unpickle.known_sizes(str(source))
    said = str(caught.value)
    with pytest.raises(UserError) as caught:
        unpickle.unpickle(source, source.parent / "arrays", "float32")
    assert str(caught.value) == said
    assert not (source.parent / "arrays").exists()
    return said


def save_with_header(path, header, version=b"\x01\x00"):
    """Write TOY to ``path`` (.npz), train_x with a ``header`` of its own."""
    arrays = named(TOY, "bytes")
    text = header.encode().ljust(117) + b"\n"
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    data = b"\x93NUMPY" + version + length + text + arrays.pop("train_x").tobytes()
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_x.npy", data)


HEADER = "{{'descr': '|u1', 'fortran_order': False, 'shape': {}, }}"
LYING = {
    "more than there is": ("(301, 20)", "train_x.npy has 6000 bytes of numbers, shape (301, 20)"),
    "more than fits": (f"({2**62}, {2**62})", "train_x.npy has 6000 bytes of numbers, shape"),
    "less than nothing": ("(-300, -20)", "an array of shape (-300, -20)"),
    "nothing": (f"({2**62}, 0)", "expected (N, D) or (N, height, width)"),
}


@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00", b"\x03\x00"])
@pytest.mark.parametrize("shape", LYING)
def test_an_npz_whose_header_lies_is_refused(tmp_path, shape, version):
    claimed, words = LYING[shape]
    save_with_header(tmp_path / "toy.npz", HEADER.format(claimed), version)
    assert words in refused(tmp_path / "toy.npz")
    save_with_header(tmp_path / "toy.npz", HEADER.format("(300, 20)"), version)
    written(tmp_path / "toy.npz", tmp_path / "honest")
    np.testing.assert_array_equal(load_dataset(tmp_path / "honest").train_x, TOY.train_x)


def test_a_format_of_npy_to_come_is_refused(tmp_path):
    save_with_header(tmp_path / "toy.npz", HEADER.format("(300, 20)"), b"\x04\x00")
    assert "version (4, 0) of .npy" in refused(tmp_path / "toy.npz")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_idx_file_whose_header_lies_is_refused(tmp_path, suffix):
    folder = tmp_path / "toy"
    save_idx_folder(folder, TOY, suffix)
    header = b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 5)
    file = folder / f"train-images-idx3-ubyte{suffix}"
    file.write_bytes(gzip.compress(header) if suffix else header)
    assert "unpacks to more than" in refused(folder)


def test_arrays_of_one_name_twice_are_refused(tmp_path):
    source = tmp_path / "toy.npz"
    np.savez(source, **named(TOY, "bytes"))
    content = zipfile.ZipFile(source).read("train_x.npy")
    with zipfile.ZipFile(source, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("train_x.npy", content)
    assert "holds train_x and train_x, which mean the same" in refused(source)


@pytest.mark.parametrize("kind", ["npz", "idx.gz"])
def test_damage_at_the_end_is_found_before_anything_is_written(tmp_path, kind):
    """Where the last sixth of the training images is split off, too."""
    source = tmp_path / ("toy.npz" if kind == "npz" else "toy")
    if kind == "npz":
        np.savez(source, **named(TOY, "bytes", valid=False))
        file = source
        at = file.read_bytes().rindex(TOY.train_x[-1].tobytes())
    else:
        save_idx_folder(source, TOY, ".gz")
        for valid in source.glob("valid*"):
            valid.unlink()
        file = source / "train-images-idx3-ubyte.gz"
        at = len(file.read_bytes()) - 8  # the checksum
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="CRC"):
        unpickle.unpickle(source, tmp_path / "arrays", "float32")
    assert not (tmp_path / "arrays").exists()


def test_a_file_that_changes_while_it_is_read_is_reported(tmp_path, monkeypatch):
    source = tmp_path / "toy"
    save_idx_folder(source, TOY)
    check_classes = unpickle._check_classes

    def change_it(*arguments):
        save_idx(source / "train-images-idx3-ubyte", 255 - TOY.train_x.reshape(-1, 4, 5))
        return check_classes(*arguments)

    monkeypatch.setattr(unpickle, "_check_classes", change_it)
    with pytest.raises(UserError, match="was changed while it was read; run again"):
        unpickle.unpickle(source, tmp_path / "arrays", "float32")
    assert not (tmp_path / "arrays" / "dataset.json").exists()
