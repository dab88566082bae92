"""The number of parameters, before there are any: it is that of the arrays which are made."""

import numpy as np
import pytest
import toy
from conftest import make_dataset

from msgd import network_size
from msgd.config import complete_config
from msgd.data.unpickle import Sizes
from msgd.errors import UserError
from msgd.models import MODELS, load_model

ONE_LAYER = {"mlp": {"n_hidden": 7}, "lenet": {"nkerns": [3], "n_hidden": [6, 5, 4]}}
SETTINGS = [(name, changes) for name in MODELS for changes in ({}, ONE_LAYER.get(name, {}))]


@pytest.mark.parametrize(("name", "changes"), SETTINGS)
def test_it_is_the_number_that_training_begins_with(name, changes):
    dataset, settings = make_dataset(shape=(9, 7), n_classes=4), toy.settings_of(name, **changes)
    parameters = load_model(name).initial_parameters(dataset, settings, np.float32)
    found = network_size.n_parameters(settings, dataset.image_shape, dataset.n_classes)
    assert found == sum(array.size for array in parameters.values())


def test_arrays_of_any_size_are_not_made_by_the_word_of_a_file():
    dataset, settings = make_dataset(shape=(5, 4)), toy.settings_of("mlp", n_hidden=10**6)
    with pytest.raises(UserError, match=r"a\.npz: it holds 5 numbers, .* has 24,000,003"):
        network_size.check_held({"weights": np.zeros(5)}, settings, dataset, "a.npz")
    held = {"weights": np.broadcast_to(np.float32(0), 24_000_003)}
    network_size.check_held(held, settings, dataset, "a.npz")
    few = toy.settings_of("mlp", n_hidden=10)
    network_size.check_held({"weights": np.zeros(5)}, few, dataset, "a.npz")


def test_what_does_not_fit_the_data_is_said_together_before_any_job():
    given = {
        "a": {"model": "logistic_regression", "batch_size": [10, 600]},
        "b": {"model": "lenet", "batch_size": 10, "filter_size": [2, 5], "nkerns": [2, 2]},
        "c": {"model": "mlp", "batch_size": 10},
    }
    experiments = complete_config({"experiments": given})["experiments"]
    network_size.check_sizes(experiments, None)
    with pytest.raises(UserError) as caught:
        network_size.check_sizes(experiments, Sizes(500, (8, 8)))
    first, second = str(caught.value).splitlines()[1:]
    assert first.startswith("- experiments.a.batch_size is 600; allowed: at most 500")
    assert second.startswith("- experiments.b.filter_size is 5; allowed: at most 2")
    assert second.endswith("or leave b out")
    experiments["a"]["batch_size"], experiments["b"]["filter_size"] = 10, 2
    network_size.check_sizes(experiments, Sizes(500, (8, 8)))


def test_what_does_not_fit_into_the_memory_is_refused(monkeypatch):
    dataset, settings = make_dataset(shape=(5, 4)), toy.settings_of("mlp", n_hidden=10**6)
    monkeypatch.setattr(network_size, "memory", lambda: 16 * 24_000_003)
    network_size.check_memory(settings, dataset, "float32")
    with pytest.raises(UserError, match=r"24,000,003 parameters, whose training takes 0\.7 GiB"):
        network_size.check_memory(settings, dataset, "float64")


def test_the_memory_is_that_of_this_machine():
    assert 2**28 < network_size.memory() < 2**50
