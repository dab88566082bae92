"""The deep belief network: the contract, and published figures."""

import pytest
import toy
from stacks import StackContract, adapter_of

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


class TestContract(StackContract):
    adapter = adapter_of("dbn")
    fingerprints = FINGERPRINTS
    first_cost = -1055.153526362693


def test_the_published_layers():
    settings = toy.published_settings("dbn")
    for number in (1, 2, 3):
        layer = model.layer_settings(settings, number)
        assert (layer["persistent"], layer["gibbs_steps"]) == (False, 1)
        draws = toy.load_model("rbm").gibbs_draws(784, layer)
        assert {one.seed for one in draws} == {843828734}
        assert [one.stream for one in draws] == [3 * number - 2, 3 * number - 1, 3 * number]
        assert [one.size for one in draws] == [10000, 7840, 10000]


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
