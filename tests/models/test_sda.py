"""Stacked denoising auto-encoders: the contract, and published figures."""

import toy
from stacks import StackContract, adapter_of

from msgd.models.sda import model

FINGERPRINTS = {
    "float32": [
        "0afe0fc3edb9db3a1433e7e183eb9e71b4f604bca17e3638ea1c0a3fca7d2bfd",
        "a2d0bd65eeedecc17502d5ba80fbcbde534a75a5c87227ad0f0c727a40a2d3db",
        "178c272fe4f7c9e33da2fc1aa61e742b63125c99289fa58f3ca1749a44742df2",
    ],
    "float64": [
        "e6409b288ebb23344ab9a63cee04901c1cd7b56d138d1147eb944f0a03fcb396",
        "4b4783f67a94e6b1169b23df328309bcc77176230e3a38d79ea5a6051d5bf1a5",
        "8d4c73a6f7e91b5625b4ef341430dc9f56fe6c151e73824c5870b09de978055a",
    ],
}


class TestContract(StackContract):
    adapter = adapter_of("sda")
    fingerprints = FINGERPRINTS
    first_cost = 916.8161752187417


def test_the_published_layers():
    settings = toy.published_settings("sda")
    layers = [model.layer_settings(settings, number) for number in (1, 2, 3)]
    assert [layer["corruption"] for layer in layers] == [0.1, 0.2, 0.3]
    for number, layer in enumerate(layers, start=1):
        draws = toy.load_model("da").mask_draws(784, layer)
        assert (draws.seed, draws.stream, draws.size) == (1054665268, number, 784)
