"""Hashes of a data set's files: content decides, and a hash once computed is remembered."""

import os

import pytest

from msgd.data import content
from msgd.data.content import sha256_of_files


@pytest.fixture
def read(monkeypatch):
    """The files that were read to be hashed, in order."""
    names = []

    def hash_and_note(path):
        names.append(path.name)
        return original(path)

    original = content.sha256_of_file
    monkeypatch.setattr(content, "sha256_of_file", hash_and_note)
    return names


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two files, remembered however young they are."""
    monkeypatch.setattr(content, "COARSEST_DATE", -1)
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_bytes(path.name.encode() * 100)
    return paths


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/digits.npz", "digits"),
        ("results/downloads/mnist.pkl.gz", "mnist"),
        ("digits.v1.npz", "digits.v1"),
        ("digits.v2.NPZ", "digits.v2"),
        ("folder/", "folder"),
        (".hidden.npz", "hidden"),
        ("..npz", "data"),
    ],
)
def test_the_name_of_a_data_set(path, name):
    assert content.data_name(path) == name


def test_what_did_not_change_is_not_read_again(files, read, tmp_path):
    memory = tmp_path / "below" / "memory.json"
    first = sha256_of_files(files, memory)
    assert sha256_of_files(files, memory) == first
    assert read == ["a", "b"]


def test_other_content_under_the_old_date_and_size_is_seen(files, read, tmp_path):
    memory = tmp_path / "memory.json"
    first = sha256_of_files(files, memory)
    times = files[0].stat()
    files[0].write_bytes(b"A" * 100)
    os.utime(files[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert files[0].stat().st_mtime_ns == times.st_mtime_ns
    assert sha256_of_files(files, memory) != first
    assert read == ["a", "b", "a"]


def test_a_file_that_may_be_written_still_is_read_again(files, read, tmp_path, monkeypatch):
    monkeypatch.setattr(content, "COARSEST_DATE", 3600e9)
    memory = tmp_path / "memory.json"
    assert sha256_of_files(files, memory) == sha256_of_files(files, memory)
    assert read == ["a", "b", "a", "b"]


def test_an_older_file_in_its_place_is_seen(files, tmp_path):
    memory = tmp_path / "memory.json"
    first = sha256_of_files(files, memory)
    other = tmp_path / "other"
    other.write_bytes(b"A" * 100)
    os.utime(other, (0, 0))
    other.replace(files[0])
    assert sha256_of_files(files, memory) != first


def test_a_touched_file_is_read_and_is_the_same(files, read, tmp_path):
    memory = tmp_path / "memory.json"
    first = sha256_of_files(files, memory)
    os.utime(files[1], (1, 1))
    assert sha256_of_files(files, memory) == first
    assert read == ["a", "b", "b"]


def test_a_file_more_or_less_or_renamed_is_seen(files, tmp_path):
    memory = tmp_path / "memory.json"
    first = sha256_of_files(files, memory)
    assert sha256_of_files(files[:1], memory) != first
    renamed = files[1].rename(tmp_path / "c")
    assert sha256_of_files([files[0], renamed], memory) != first


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"x": 1}'])
def test_a_damaged_memory_costs_time_only(files, tmp_path, damage):
    memory = tmp_path / "memory.json"
    first = sha256_of_files(files, memory)
    memory.write_text(damage)
    assert sha256_of_files(files, memory) == first


def test_a_memory_that_cannot_be_written_costs_time_only(files, tmp_path):
    (tmp_path / "file").write_text("in the way")
    memory = tmp_path / "file" / "memory.json"
    assert sha256_of_files(files, memory) == sha256_of_files(files, tmp_path / "memory.json")
