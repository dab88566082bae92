"""Lists of a split in files, piece by piece, against the same in memory."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import darkened, make_dataset

from msgd.errors import UserError
from msgd.models.lists import Lists


@pytest.mark.parametrize("patch", [(1, 1), (2, 4)])
@pytest.mark.parametrize("share_of_zeros", [0.8, 1])
@pytest.mark.parametrize("piece_images", [4, 8, 20])
def test_lists_in_files_are_those_in_memory(tmp_path, piece_images, share_of_zeros, patch):
    """22 images in minibatches of 4: the pieces end with a tail."""
    dataset = dataclasses.replace(make_dataset(n_train=22, shape=(5, 5)), folder=tmp_path)
    dark = np.random.RandomState(0).uniform(size=dataset.train_x.shape) < share_of_zeros
    dataset = darkened(dataset, dark)
    whole = Lists(dataset, "train", 4, dataset.train_x.nbytes, True, patch)
    pieces = Lists(dataset, "train", 4, piece_images * 25, True, patch)
    assert not whole.maps
    assert len(pieces.maps) == len(pieces.pixels) + len(pieces.lit)
    assert [*tmp_path.iterdir()] == []
    for _ in range(2):  # before and after
        for one, other in zip(whole.pixels + whole.lit, pieces.pixels + pieces.lit, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        pieces.release_pages()


@pytest.mark.parametrize("reason", ["no folder", "full"])
def test_no_room_for_lists_is_a_plain_error(tmp_path, monkeypatch, reason):
    dataset = dataclasses.replace(make_dataset(n_train=22), folder=tmp_path / "gone")
    if reason == "full":
        full = Path("/dev/full")
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: full.open("w+b"))
    with pytest.raises(UserError, match="gone: no room for files of the lists of nonzero pixels"):
        Lists(dataset, "train", 4, 20, with_lit=False)
