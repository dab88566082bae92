"""Data larger than the device: chunks of minibatches give the bits of resident data."""

import numpy as np
import pytest
from conftest import as_triple, make_dataset, save_npz

from msgd.config import complete_experiment
from msgd.data.dataset import Dataset, load_dataset
from msgd.data.unpickle import unpickle
from msgd.models import MODELS, cpu_backend, load_backend, load_model
from msgd.models.mlp import deferred as mlp_deferred

SMALL = {
    "logistic_regression": {},
    "mlp": {"n_hidden": 3},
    "lenet": {"nkerns": [2], "filter_size": 2, "n_hidden": 3},
}


@pytest.mark.parametrize("chunk_batches", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("name", [name for name, trainer in MODELS.items() if trainer == "loop"])
def test_chunks_give_the_same_bits(name, chunk_batches):
    dataset = make_dataset(n_train=22, n_valid=11, shape=(5, 5), n_classes=3)  # 5 minibatches
    settings = complete_experiment({"model": name, "batch_size": 4, **SMALL[name]})
    parameters = load_model(name).initial_parameters(dataset, settings, np.float32)
    results = []
    for chunks in (None, chunk_batches):
        backend = load_backend(name, "cuda")(dataset, parameters, settings, np.float32, chunks)
        # Spans that begin and end within a chunk, cross one, and cross the epoch.
        costs = [backend.train(0, 1), backend.train(1, 4), backend.train(4, 12)]
        errors = np.array([backend.count_errors("valid")])
        trained = backend.get_parameters().values()
        results.append([*costs, errors, backend.predict("train"), *trained])
    for resident, chunked in zip(*results, strict=True):
        assert resident.tobytes() == chunked.tobytes()


def test_at_most_two_chunks_are_on_the_device():
    dataset = make_dataset(n_train=22, shape=(5, 5), n_classes=3)
    settings = complete_experiment({"model": "logistic_regression", "batch_size": 4})
    parameters = load_model("logistic_regression").initial_parameters(dataset, settings, np.float32)
    backend = load_backend("logistic_regression", "cuda")(
        dataset, parameters, settings, np.float32, 2
    )
    for x, _, minibatch, _, count in backend.shared.train_pieces(0, 12):
        assert len(x) in (8, 6)  # two minibatches, or the last one with the tail
        assert 4 * (minibatch + count) <= len(x)
        assert len(backend.shared.chunks) <= 2


@pytest.mark.parametrize("piece_bytes", [1, 250])
@pytest.mark.parametrize("name", MODELS)
def test_long_spans_in_pieces_give_the_same_bits(tmp_path, monkeypatch, name, piece_bytes):
    """On the CPU, over arrays mapped from files whose pages are given back after each piece."""
    monkeypatch.setattr(mlp_deferred, "GROUP_IMAGES", 8)  # groups of two minibatches, and one alone
    dataset = make_dataset(n_train=22, n_valid=11, shape=(5, 5), n_classes=3)
    save_npz(tmp_path / "toy.npz", as_triple(dataset))
    unpickle(tmp_path / "toy.npz", tmp_path / "arrays", "float32")
    mapped = load_dataset(tmp_path / "arrays")
    released = []
    release = Dataset.release_pages

    def release_and_note(self, split):
        released.append(split)
        release(self, split)

    settings = complete_experiment({"model": name, "batch_size": 4, **SMALL.get(name, {})})
    parameters = load_model(name).initial_parameters(mapped, settings, np.float32)
    results = []
    for size in (cpu_backend.PIECE_BYTES, piece_bytes):
        monkeypatch.setattr(cpu_backend, "PIECE_BYTES", size)
        monkeypatch.setattr(Dataset, "release_pages", release_and_note)
        backend = load_backend(name, "cpu")(mapped, parameters, settings, np.float32)
        if MODELS[name] == "loop":
            costs = np.concatenate([backend.train(0, 1), backend.train(1, 12)])
            trained = backend.get_parameters()
        else:
            cost, trained = backend.cost_and_gradient()
            costs = np.array([cost])
        results.append([costs, backend.predict("valid"), *trained.values()])
        assert set(released) == (set() if size > 1000 else {"train", "valid"})
    for whole, pieces in zip(*results, strict=True):
        assert whole.tobytes() == pieces.tobytes()
