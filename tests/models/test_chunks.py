"""Data larger than a CUDA device; that chunks give the bits of resident data is in contract.py."""

import numpy as np
import pytest
import toy
from conftest import make_dataset

from msgd.kernels import cuda_uniform


def test_at_most_two_chunks_are_on_the_device():
    dataset = make_dataset(n_train=22, shape=(5, 5), n_classes=3)
    settings = toy.settings_of("logistic_regression", batch_size=4)
    parameters = toy.random_parameters(dataset, settings, np.float32)
    backend = toy.make_backend("cuda", dataset, settings, parameters, chunk_batches=2)
    for x, _, minibatch, _, count in backend.shared.train_pieces(0, 12):
        assert len(x) in (8, 6)  # two minibatches, or the last one with the tail
        assert 4 * (minibatch + count) <= len(x)
        assert len(backend.shared.chunks) <= 2


def test_a_count_of_errors_that_was_interrupted_leaves_nothing_behind(monkeypatch):
    """Of several pieces the first was counted; the next call begins anew."""
    dataset = make_dataset(n_train=22, shape=(5, 5), n_classes=3)
    settings = toy.settings_of("logistic_regression", batch_size=4)
    parameters = toy.random_parameters(dataset, settings, np.float32)
    backend = toy.make_backend("cuda", dataset, settings, parameters, chunk_batches=1)
    expected = backend.count_errors("valid")
    assert backend.count_errors("valid") == expected > 0
    of_piece, pieces = backend._logits, []

    def interrupted(x):
        pieces.append(len(x))
        if len(pieces) == 2:
            raise KeyboardInterrupt
        return of_piece(x)

    monkeypatch.setattr(backend, "_logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        backend.count_errors("valid")
    monkeypatch.undo()
    assert backend.count_errors("valid") == expected


def test_bits_do_not_depend_on_how_many_minibatches_are_corrupted_together(monkeypatch):
    dataset = make_dataset(n_train=22, shape=(5, 5), n_classes=3)
    settings = toy.settings_of("da", batch_size=4)
    parameters = toy.random_parameters(dataset, settings, np.float32)
    costs, trained = [], []
    for ahead in (cuda_uniform.AHEAD, 1):
        monkeypatch.setattr(cuda_uniform, "AHEAD", ahead)
        backend = toy.make_backend("cuda", dataset, settings, parameters)
        costs.append(backend.train(0, 7))
        trained.append(b"".join(array.tobytes() for array in backend.get_parameters().values()))
    np.testing.assert_array_equal(*costs)
    assert trained[0] == trained[1]
