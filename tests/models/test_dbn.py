"""The deep belief network: the contract, and published figures."""

import math

import numpy as np
import pytest
import toy
from autoencoders import sha256
from conftest import make_dataset
from stacks import (
    FLOATS,
    StackContract,
    adapter_of,
    follow,
    published,
    train_through,
)

from msgd.models.dbn import model

FINGERPRINTS = {
    "float32": [
        "a5d887f92467fec77d010f24c85d2c21a44c4cab1def9daeaecf0c0d8ae21395",
        "f45ac8fa4b59fb44f5297d2992480caf9d67753342d43a446bfe9731bfe99bff",
        "71075153b6f8c441c16865bee5eeba862bf6ba0160671f79ab595f876214b2d6",
    ],
    "float64": [
        "57ad068ba3790a9a97bb093772e420a9c55bc55a95e9263841c3bccff94beba2",
        "5c5ccd5c70064d6c341f65c56b5a503f6f0c03ef8dc617d9c06067ac1a7b61de",
        "22e3edbefdf092632e7944aca874e592b476966461d9f5c6b0f9607bb0d9a0eb",
    ],
}
FIRST_COST = -1055.153526362693  # of the first layer, at the published settings
PUBLISHED_TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


class TestContract(StackContract):
    adapter = adapter_of("dbn")


@pytest.mark.parametrize("float_name", FINGERPRINTS)
def test_the_published_initial_weights(float_name):
    dataset = make_dataset(20, 10, 10, (28, 28), 10)
    settings = toy.published_settings("dbn")
    parameters = [*model.initial_parameters(dataset, settings, FLOATS[float_name]).values()]
    assert [sha256(array) for array in parameters[:6:2]] == FINGERPRINTS[float_name]
    assert not any(array.any() for array in (*parameters[1::2], parameters[6]))


def test_the_published_layers():
    settings = toy.published_settings("dbn")
    for number in (1, 2, 3):
        layer = model.layer_settings(settings, number)
        assert (layer["persistent"], layer["gibbs_steps"]) == (False, 1)
        draws = toy.load_model("rbm").gibbs_draws(784, layer)
        assert {one.seed for one in draws} == {843828734}
        assert [one.stream for one in draws] == [3 * number - 2, 3 * number - 1, 3 * number]
        assert [one.size for one in draws] == [10000, 7840, 10000]


@pytest.mark.parametrize("float_name", FLOATS)
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_the_published_figures(mnist, device, float_name):
    """Two minibatches of each stage, as the oracle has them, and those figures that are known."""
    dataset, settings, given = published(mnist, "dbn", float_name)
    backend = toy.make_backend(device, dataset, settings, given)
    found = train_through(backend, 2)
    expected, parameters = follow(dataset, settings, given, 2)
    tolerance = PUBLISHED_TOLERANCE[float_name]
    np.testing.assert_allclose(found, expected, rtol=tolerance)
    np.testing.assert_allclose(found[0][0], FIRST_COST, rtol=tolerance)
    np.testing.assert_allclose(found[3][0], math.log(10), rtol=tolerance)
    for array, right in zip(backend.get_parameters().values(), parameters, strict=True):
        assert np.linalg.norm(array - right) <= tolerance * np.linalg.norm(right)


@pytest.mark.parametrize("device", ["cpu", "cuda", "reference"])
@pytest.mark.parametrize("chains", [(True, 1), (True, 2), (False, 2)], ids=str)
def test_layers_of_other_chains_follow_the_oracle(device, chains):
    persistent, n_steps = chains
    contract = TestContract()
    changes = {"persistent": persistent, "gibbs_steps": n_steps, "shape": (2, 3)}
    contract.check_stages(device, *contract.stack("float64", "float", **changes))


def test_a_chain_is_state_beside_the_visible_biases():
    dataset, settings, given = TestContract().stack(persistent=True)
    backend = toy.make_backend("cpu", dataset, settings, given)
    backend.begin(model.stages(settings)[0])
    backend.train(0, 3)
    state = backend.get_state()
    assert list(state) == ["visible_bias", "chain"]
    assert state["chain"].any()
    assert state["visible_bias"].any()
