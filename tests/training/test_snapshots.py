"""Parameter files and the schedule of snapshots."""

import random

import numpy as np
import pytest

from msgd.errors import UserError
from msgd.training import snapshots


def test_parameters_come_back_bit_for_bit_in_order(tmp_path):
    given = {
        "weights": np.random.RandomState(0).normal(size=(3, 2)).astype(np.float32),
        "bias": np.array([1e-300, np.pi]),
    }
    path = tmp_path / "parameters.npz"
    snapshots.save_parameters(path, given)
    found = snapshots.load_parameters(path)
    assert list(found) == list(given)
    for name, array in given.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes()


def test_equal_parameters_give_equal_files(tmp_path):
    for name in ("a.npz", "b.npz"):
        snapshots.save_parameters(tmp_path / name, {"bias": np.arange(3.0)})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "parameters.npz"
    snapshots.save_parameters(path, {"bias": np.zeros(2)})
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        snapshots.save_parameters(path, {"bias": np.ones(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # NumPy's open file
def test_a_file_of_which_a_bit_has_changed_is_read_right_or_refused(tmp_path, record_property):
    given = {"weights": np.arange(12.0).reshape(3, 4), "bias": np.ones(3, np.float32)}
    path, bits = tmp_path / "parameters.npz", random.Random(1)
    snapshots.save_parameters(path, given)
    content = path.read_bytes()
    record_property("cases", len(content))
    refusals = []
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << bits.randrange(8)
        path.write_bytes(flipped)
        try:
            found = snapshots.load_arrays(path)
        except UserError as error:
            refusals.append(str(error))
        else:  # a date, say; or a name, which whoever asks for another does not find
            for name in found.keys() & given.keys():
                np.testing.assert_array_equal(found[name], given[name], strict=True)
    assert len(refusals) > len(content) / 2
    assert all(str(path) in refusal for refusal in refusals)


def test_the_schedule_thins_out():
    due = [k for k in range(1, 1001) if snapshots.is_due(k)]
    assert due[:10] == [1, 2, 3, 4, 6, 8, 11, 16, 23, 32]
    assert len(due) < 20


def test_snapshots_are_listed_in_order(tmp_path):
    for iteration in (100, 9, 0):
        path = snapshots.snapshot_path(tmp_path, iteration)
        snapshots.save_parameters(path, {"bias": np.zeros(1)})
    (tmp_path / "iteration_of_mine.npz").touch()
    assert [iteration for iteration, _ in snapshots.list_snapshots(tmp_path)] == [0, 9, 100]
