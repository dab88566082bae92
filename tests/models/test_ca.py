"""The contractive auto-encoder: the oracle, published figures, and every backend against them."""

import numpy as np
import oracle
import pytest
from autoencoders import (
    FLOATS,
    NAMES,
    Autoencoder,
    AutoencoderContract,
    check_steps,
    make_backend,
    settings_of,
    sha256,
)
from conftest import as_triple, make_dataset, save_npz

from msgd.cli import main
from msgd.data.dataset import load_dataset
from msgd.data.unpickle import unpickle
from msgd.models.ca import model
from msgd.training_log import read_log

FINGERPRINTS = {
    "float32": "711ee66f9d2d8f96100f0ba7aa1c8c9e287894282117779bf72d21ba681f17b7",
    "float64": "d3c4088a2502263d260903ffcdac4a2407339b488da05ad7cd924930b0a92926",
}
# Of the first minibatch at the published settings: the cost of reconstruction, and |J|^2 / B.
RECONSTRUCTION, JACOBIAN = 804.7344766448987, 374.4092685095644
PUBLISHED_TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
DEVICES = ["cpu", "reference"]  # at the published sizes; a simulator would take hours


def test_the_oracles_gradients_agree_with_finite_differences():
    random = np.random.RandomState(1)
    x = random.uniform(size=(5, 12))
    parameters = [random.normal(size=size) for size in ((12, 7), 7, 12)]
    analytic = oracle.autoencoder_gradients(parameters, x, x, 0.6)
    without = oracle.autoencoder_gradients(parameters, x, x)
    numeric = oracle.numerical_gradients(
        lambda p: oracle.autoencoder_cost(p, x, x, 0.6), parameters
    )
    for found, expected in zip(analytic, numeric, strict=True):
        assert np.abs(found - expected).max() <= 1e-8 * np.abs(expected).max()
    assert np.abs(analytic[0] - without[0]).max() > 0.1 * np.abs(without[0]).max()


@pytest.mark.parametrize("float_name", FINGERPRINTS)
def test_the_published_initial_weights(float_name):
    dataset = make_dataset(20, 10, 10, (28, 28), 10)
    parameters = model.initial_parameters(dataset, settings_of("ca"), FLOATS[float_name])
    assert list(parameters) == NAMES
    assert [array.shape for array in parameters.values()] == [(784, 500), (500,), (784,)]
    assert sha256(parameters["weights"]) == FINGERPRINTS[float_name]
    assert not parameters["hidden_bias"].any()
    assert not parameters["visible_bias"].any()


def test_the_oracle_has_the_published_cost(mnist):
    parameters = [*model.initial_parameters(mnist, settings_of("ca"), np.float64).values()]
    x = oracle.pixels(mnist.train_x[:10])
    np.testing.assert_allclose(oracle.autoencoder_cost(parameters, x, x), RECONSTRUCTION, 1e-10)
    np.testing.assert_allclose(oracle.jacobian_square(parameters, x), JACOBIAN, 1e-10)


@pytest.mark.parametrize("float_name", FLOATS)
@pytest.mark.parametrize("device", DEVICES)
def test_the_published_cost(mnist, device, float_name):
    tolerance = PUBLISHED_TOLERANCE[float_name]
    parameters = model.initial_parameters(mnist, settings_of("ca"), FLOATS[float_name])
    backend = make_backend(device, mnist, settings_of("ca"), parameters)
    np.testing.assert_allclose(backend.train(0, 1), RECONSTRUCTION + 0.1 * JACOBIAN, tolerance)
    np.testing.assert_allclose(backend.jacobian_norms, np.sqrt(JACOBIAN), tolerance)


@pytest.mark.parametrize("contraction", [0, 0.1, 2])
@pytest.mark.parametrize(("float_name", "pixels"), [("float32", "uint8"), ("float64", "float64")])
@pytest.mark.parametrize("device", DEVICES)
def test_ten_steps_follow_the_oracle_over_an_epoch_edge(device, float_name, pixels, contraction):
    """Four minibatches of six, and a tail of two."""
    dataset = make_dataset(n_train=26, shape=(10, 10), pixels=pixels)
    changes = {"batch_size": 6, "n_hidden": 7, "learning_rate": 0.1}
    settings = settings_of("ca", **changes, contraction=contraction)
    check_steps(device, dataset, settings, float_name, [(0, 3), (3, 10)])


@pytest.mark.parametrize("device", [*DEVICES, "cuda"])
def test_the_log_tells_the_mean_norm_of_each_epoch(tmp_path, device):
    """Minibatches of four, six an epoch; what follows the log reads the line all the same."""
    save_npz(tmp_path / "toy.npz", as_triple(make_dataset(24, 8, 8, (3, 3))))
    unpickle(tmp_path / "toy.npz", tmp_path / "data", "float32")
    log, words = tmp_path / "ca.log", ["batch_size=4", "n_hidden=3", "n_epochs=2"]
    options = ["--log", log, "--data", tmp_path / "data", "--run", tmp_path / "ca/default"]
    where = ["--backend", device, "model=ca", *words]
    assert main(["train", *map(str, options), *where]) == 0
    dataset = load_dataset(tmp_path / "data")
    settings = settings_of("ca", batch_size=4, n_hidden=3, n_epochs=2)
    parameters = model.initial_parameters(dataset, settings, np.float32)
    backend = make_backend(device, dataset, settings, parameters)
    text = log.read_text()
    for epoch in range(2):
        backend.train(6 * epoch, 6 * epoch + 6)
        norm = np.mean(backend.jacobian_norms, dtype=np.float64)
        assert f"iteration {6 * epoch + 6}: cost " in text
        assert f", jacobian norm {norm:.6f}\n" in text
    assert [row["iteration"] for row in read_log(text).validations] == [6, 12]


class TestContract(AutoencoderContract):
    adapter = Autoencoder("ca")

    @pytest.mark.parametrize("contraction", [0, 0.3])
    @pytest.mark.parametrize("device", [*DEVICES, "cuda"])
    def test_the_jacobian_norms_of_a_call(self, device, contraction):
        dataset, settings, parameters = self.toy_of(
            device, float_x=np.float64, contraction=contraction
        )
        backend = make_backend(device, dataset, settings, parameters)
        backend.train(0, 2)
        arrays = [*backend.get_parameters().values()]
        backend.train(2, 5)
        assert backend.jacobian_norms.shape == (3,)
        expected = oracle.jacobian_square(arrays, oracle.pixels(dataset.train_x[8:12]))
        np.testing.assert_allclose(backend.jacobian_norms[0], np.sqrt(expected), 1e-12)
