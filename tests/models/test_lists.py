"""Lists of a split in files, piece by piece, against the same in memory."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import darkened, make_dataset

from msgd.errors import UserError
from msgd.models.lists import Lists


def training_lists(dataset, group_size, piece_images, patch):
    """The Lists of 22 images, in minibatches of 4: a tail of two is not trained."""
    lists = Lists(dataset, "train", group_size, piece_images * 25, patch)
    lists.add_by_pixel(20)
    if patch == (1, 1):
        lists.add_gram(20, 4, np.float32(1 / 256))
        return lists, lists.by_image + lists.by_pixel + lists.gram
    return lists, lists.by_image + lists.by_pixel


@pytest.mark.parametrize("patch", [(1, 1), (2, 4)])
@pytest.mark.parametrize("share_of_zeros", [0.8, 1])
@pytest.mark.parametrize("piece_images", [4, 8, 20, 21])
@pytest.mark.parametrize("group_size", [4, 8])
def test_lists_in_files_are_those_in_memory(
    tmp_path, group_size, piece_images, share_of_zeros, patch
):
    dataset = dataclasses.replace(make_dataset(n_train=22, shape=(5, 5)), folder=tmp_path)
    dark = np.random.RandomState(0).uniform(size=dataset.train_x.shape) < share_of_zeros
    dataset = darkened(dataset, dark)
    whole, arrays = training_lists(dataset, group_size, 22, patch)
    pieces, mapped = training_lists(dataset, group_size, piece_images, patch)
    assert not whole.maps
    n_in_files = len(mapped) if pieces.piece < 20 else len(pieces.by_image)
    assert len(pieces.maps) == n_in_files
    assert [*tmp_path.iterdir()] == []
    for _ in range(2):  # before and after
        for one, other in zip(arrays, mapped, strict=True):
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
        Lists(dataset, "train", 4, 20)
