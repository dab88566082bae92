"""The denoising auto-encoder: the oracle, published figures, and every backend against them."""

import autoencoders
import numpy as np
import oracle
import pytest
from autoencoders import (
    FLOATS,
    NAMES,
    Autoencoder,
    AutoencoderContract,
    check_steps,
    follow,
    make_backend,
    settings_of,
    sha256,
)
from conftest import make_dataset

from msgd.models.da import model

FINGERPRINTS = {
    "float32": "3ac0c13c5e7cc60f196104060c9a1ba927d046fc71c52fd409a5399082cf697f",
    "float64": "320e4cb05239bdbde42158d8c58439f12c455d0e5337e45149986a03e5072fff",
}
# At the published settings: the first ten costs; then weights[0, :4] and the norm of the weights.
COSTS = [
    *(848.3954057975468, 245.1963920191286, 183.3533714308372, 173.4324811133626),
    *(167.0492826855829, 165.5248887246449, 153.86241561528408, 148.2069691305752),
    *(144.94121481531468, 154.39469057736957),
]
WEIGHTS = [0.10163511367485406, -0.05398266170959974, 0.08911537754757298, 0.1116182932571047]
NORM = 100.44610925574617
UNCORRUPTED_COST = 851.7533511495697  # of the first minibatch without corruption
PUBLISHED_TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
DEVICES = ["cpu", "reference"]  # at the published sizes; a simulator would take hours


def test_the_oracles_gradients_agree_with_finite_differences():
    random = np.random.RandomState(1)
    x = random.uniform(size=(5, 12))
    corrupted = x * (random.uniform(size=x.shape) < 0.7)
    parameters = [random.normal(size=size) for size in ((12, 7), 7, 12)]
    analytic = oracle.autoencoder_gradients(parameters, x, corrupted)
    numeric = oracle.numerical_gradients(
        lambda p: oracle.autoencoder_cost(p, x, corrupted), parameters
    )
    for found, expected in zip(analytic, numeric, strict=True):
        assert np.abs(found - expected).max() <= 1e-8 * np.abs(expected).max()


@pytest.mark.parametrize("float_name", FINGERPRINTS)
def test_the_published_initial_weights(float_name):
    dataset = make_dataset(20, 10, 10, (28, 28), 10)
    parameters = model.initial_parameters(dataset, settings_of("da"), FLOATS[float_name])
    assert list(parameters) == NAMES
    assert [array.shape for array in parameters.values()] == [(784, 500), (500,), (784,)]
    assert sha256(parameters["weights"]) == FINGERPRINTS[float_name]
    assert not parameters["hidden_bias"].any()
    assert not parameters["visible_bias"].any()


def test_the_published_masks():
    draws = model.mask_draws(784, settings_of("da"))
    assert (draws.seed, draws.stream, draws.size) == (843828734, 1, 20 * 784)
    (mask,) = autoencoders.masks_of(settings_of("da"), 784, 1)
    assert mask.sum() == 11045
    digest = "a3f6d590d5bfa24f31f8db7d25a5e1392bd767c6d5fc25a7c8aad39d7e10eed8"
    assert sha256(mask.astype(np.uint8)) == digest


def test_the_oracle_has_the_published_costs(mnist):
    settings = settings_of("da")
    parameters = model.initial_parameters(mnist, settings, np.float64)
    costs, (weights, _, _) = follow(mnist, settings, parameters, 10)
    np.testing.assert_allclose(costs, COSTS, rtol=1e-10)
    np.testing.assert_allclose(weights[0, :4], WEIGHTS, rtol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(weights), NORM, rtol=1e-10)


@pytest.mark.parametrize("float_name", FLOATS)
@pytest.mark.parametrize("device", DEVICES)
def test_the_published_costs(mnist, device, float_name):
    tolerance = PUBLISHED_TOLERANCE[float_name]
    for corruption, expected in ((0.3, COSTS), (0, [UNCORRUPTED_COST])):
        settings = settings_of("da", corruption=corruption)
        parameters = model.initial_parameters(mnist, settings, FLOATS[float_name])
        backend = make_backend(device, mnist, settings, parameters)
        costs = backend.train(0, len(expected))
        np.testing.assert_allclose(costs, expected, rtol=tolerance)
        if corruption > 0:
            weights = backend.get_parameters()["weights"]
            np.testing.assert_allclose(weights[0, :4], WEIGHTS, rtol=10 * tolerance)
            np.testing.assert_allclose(np.linalg.norm(weights), NORM, rtol=tolerance)


@pytest.mark.parametrize("corruption", [0, 0.3, 1])
@pytest.mark.parametrize(("float_name", "pixels"), [("float32", "uint8"), ("float64", "float64")])
@pytest.mark.parametrize("device", DEVICES)
def test_ten_steps_follow_the_oracle_over_an_epoch_edge(device, float_name, pixels, corruption):
    """Four minibatches of six, and a tail of two."""
    dataset = make_dataset(n_train=26, shape=(10, 10), pixels=pixels)
    settings = settings_of("da", batch_size=6, n_hidden=7, corruption=corruption)
    check_steps(device, dataset, settings, float_name, [(0, 3), (3, 10)])


class TestContract(AutoencoderContract):
    adapter = Autoencoder("da")
