"""What the tests of the auto-encoders share: settings, the oracle's steps, and a contract."""

import hashlib
from typing import NamedTuple

import numba
import numpy as np
import oracle
import pytest
from conftest import as_triple, darkened, make_dataset, save_npz

from msgd.config import experiment_schema
from msgd.data.dataset import load_dataset
from msgd.data.unpickle import unpickle
from msgd.kernels.uniform import fill_uniform, new_position
from msgd.models import cpu_backend, load_backend, load_model
from msgd.models.da.tied_layer import NEVER
from msgd.models.mlp.first_layer import BLOCK, PANEL

NAMES = ["weights", "hidden_bias", "visible_bias"]
FLOATS = {"float32": np.float32, "float64": np.float64}
# Of the costs and of the parameters after a few steps: a few roundings for each of them.
TOLERANCE = {"float32": 3e-6, "float64": 1e-13}


def settings_of(name, **changes):
    """Return the published settings of the model ``name``, those in ``changes`` changed."""
    schema = experiment_schema(name)["properties"]
    defaults = {key: entry["default"] for key, entry in schema.items() if "default" in entry}
    return {"model": name, **defaults, **changes}


def random_parameters(dataset, settings, float_x, noise=0.1):
    """Return the initial parameters with noise on all of them, so that none is 0."""
    random = np.random.RandomState(5)
    initial = load_model(settings["model"]).initial_parameters(dataset, settings, np.float64)
    return {
        name: (array + random.normal(0, noise, array.shape)).astype(float_x)
        for name, array in initial.items()
    }


def make_backend(device, dataset, settings, parameters):
    """Return the Backend of a device with ``parameters``, whose floatX is theirs."""
    float_x = parameters["weights"].dtype.type
    return load_backend(settings["model"], device)(dataset, parameters, settings, float_x)


def masks_of(settings, n_features, n):
    """Return the first n masks of a denoising auto-encoder, (n, B, D) float64; None of others."""
    if "corruption" not in settings:
        return None
    shape = settings["batch_size"], n_features
    position = new_position(load_model("da").mask_draws(n_features, settings))
    masks = []
    for _step in range(n):
        u = np.empty(shape)
        fill_uniform(position, u)
        masks.append((u < 1 - settings["corruption"]).astype(np.float64))
    return masks


def follow(dataset, settings, given, n_steps):
    """Return the oracle's costs and parameters (list) of ``n_steps`` steps from ``given``."""
    x, batch_size = oracle.pixels(dataset.train_x), settings["batch_size"]
    parameters = [array.astype(np.float64) for array in given.values()]
    masks = masks_of(settings, x.shape[1], n_steps)
    costs = []
    for step in range(n_steps):
        start = step % (len(x) // batch_size) * batch_size
        images = x[start : start + batch_size]
        corrupted = images if masks is None else masks[step] * images
        batch = parameters, images, corrupted, settings.get("contraction", 0.0)
        costs.append(oracle.autoencoder_cost(*batch))
        gradients = oracle.autoencoder_gradients(*batch)
        for array, gradient in zip(parameters, gradients, strict=True):
            array -= settings["learning_rate"] * gradient
    return costs, parameters


def check_steps(device, dataset, settings, float_name, spans):
    """Hold the costs and the parameters of a training in ``spans`` against the oracle."""
    tolerance = TOLERANCE[float_name]
    given = random_parameters(dataset, settings, FLOATS[float_name])
    backend = make_backend(device, dataset, settings, given)
    costs = np.concatenate([backend.train(*span) for span in spans])
    assert costs.dtype == FLOATS[float_name]
    expected_costs, expected = follow(dataset, settings, given, spans[-1][1])
    np.testing.assert_allclose(costs, expected_costs, rtol=tolerance)
    found = backend.get_parameters()
    assert list(found) == NAMES
    for array, right, before in zip(found.values(), expected, given.values(), strict=True):
        assert array.dtype == FLOATS[float_name]
        assert np.linalg.norm(array - right) <= tolerance * np.linalg.norm(right)
        assert np.linalg.norm(right - before) > 1000 * tolerance * np.linalg.norm(right)


def bits(*results):
    """Return the bytes of arrays, and of dicts of arrays."""
    arrays = []
    for result in results:
        arrays += result.values() if isinstance(result, dict) else [result]
    return [array.tobytes() for array in arrays]


def sha256(array):
    return hashlib.sha256(array).hexdigest()


# (batch, image shape, n_hidden): on the CPU around vectors and chunks of pixels, blocks and panels
# of units, and tiles of images.
CPU_SIZES = [
    (1, (1, 3), 1),
    (4, (4, 4), PANEL),
    (5, (1, 17), PANEL + 1),
    (6, (8, 8), BLOCK - 1),
    (9, (5, 13), BLOCK),
    (20, (11, 12), BLOCK + 1),
    (10, (28, 28), 130),
]
# For the CUDA kernels around the simulator's blocks of 4 x 8 threads.
CUDA_SIZES = [(1, (1, 3), 1), (8, (1, 7), 4), (9, (2, 4), 5), (3, (3, 3), 9)]
ALL_SIZES = {"cpu": CPU_SIZES, "cuda": CUDA_SIZES, "reference": CPU_SIZES[:3]}
CASES = [(device, *size) for device, sizes in ALL_SIZES.items() for size in sizes]


class Autoencoder(NamedTuple):
    """What the contract has to know of a model."""

    name: str


class AutoencoderContract:
    """The tests that both pass. A subclass has an ``adapter``."""

    adapter: Autoencoder

    def settings(self, **changes):
        return settings_of(self.adapter.name, **{"learning_rate": 0.1, **changes})

    def toy(self, float_x=np.float32, **changes):
        """Return (dataset, settings, parameters) of five minibatches of 4, and a tail of 2."""
        return self.made((9, 10), float_x, n_hidden=BLOCK + 3, **changes)

    def toy_of(self, device, **changes):
        """Return the same, but small for the simulator."""
        return self.made((2, 3), n_hidden=5, **changes) if device == "cuda" else self.toy(**changes)

    def made(self, shape, float_x=np.float32, **changes):
        dataset = make_dataset(22, 11, 11, shape, 3)
        settings = self.settings(batch_size=4, **changes)
        return dataset, settings, random_parameters(dataset, settings, float_x)

    @pytest.mark.parametrize(
        ("float_name", "pixels"), [("float32", "uint8"), ("float64", "float64")]
    )
    @pytest.mark.parametrize(("device", "batch_size", "shape", "n_hidden"), CASES, ids=str)
    def test_steps_of_any_size(self, device, batch_size, shape, n_hidden, float_name, pixels):
        """Three steps on two minibatches and a tail."""
        dataset = make_dataset(2 * batch_size + 1, 3, 3, shape, 3, pixels)
        settings = self.settings(batch_size=batch_size, n_hidden=n_hidden)
        check_steps(device, dataset, settings, float_name, [(0, 3)])

    def test_the_fast_twin_follows_the_reference_at_the_published_sizes(self):
        settings, n_steps = settings_of(self.adapter.name), 6
        dataset = make_dataset(5 * settings["batch_size"], 10, 10, (28, 28), 10, "float64")
        given = random_parameters(dataset, settings, np.float64)
        found = {}
        for device in ("reference", "cpu"):
            backend = make_backend(device, dataset, settings, given)
            costs = backend.train(0, n_steps)
            arrays = backend.get_parameters().values()
            found[device] = costs, np.concatenate([array.ravel() for array in arrays])
        (costs, theta), (twins_costs, twins_theta) = found.values()
        eps = np.finfo(np.float64).eps
        assert np.linalg.norm(twins_theta - theta) <= n_steps * eps * np.linalg.norm(theta)
        # A cost is a sum over pixels and images, of which sums of different order differ.
        np.testing.assert_allclose(twins_costs, costs, rtol=20 * eps)

    def test_weights_far_off_do_not_overflow(self):
        """Units and pixels are 0 or 1, and costs are thousands."""
        dataset, settings, parameters = self.toy(learning_rate=1e-6)
        if "contraction" in settings:
            settings["contraction"] = 0.0
        for array in parameters.values():
            array *= 1000
        for device in ("cpu", "reference"):
            costs = make_backend(device, dataset, settings, parameters).train(0, 1)
            expected = follow(dataset, settings, parameters, 1)[0]
            assert expected[0] > 1e4
            np.testing.assert_allclose(costs, expected, rtol=1e-5)

    @pytest.mark.parametrize("device", ALL_SIZES)
    def test_images_of_zeros(self, device):
        """Lists without a pixel; nothing of the minibatch before is left in them."""
        dataset = darkened(make_dataset(12, 3, 3, (3, 4), 3), slice(4, 8))
        settings = self.settings(batch_size=4, n_hidden=5)
        check_steps(device, dataset, settings, "float32", [(0, 5)])

    def test_padding_learns_nothing(self):
        dataset, settings, parameters = self.toy()
        backend = make_backend("cpu", dataset, settings, parameters)
        backend.train(0, 10)
        layer, (n_visible, n_hidden) = backend.network.layer, parameters["weights"].shape
        panels = layer.panels.reshape(-1, len(layer.visible_bias), PANEL)
        assert np.count_nonzero(panels) == n_visible * n_hidden
        assert (layer.bias[n_hidden:] == NEVER).all()
        assert (layer.visible_bias[n_visible:] == NEVER).all()
        assert len(layer.visible_bias) > n_visible
        assert len(layer.bias) > n_hidden

    @pytest.mark.parametrize("device", ALL_SIZES)
    def test_parameters_are_copied_in_and_out(self, device):
        dataset, settings, given = self.toy_of(device)
        kept = bits(given)
        for array in given.values():  # as those of a file that is mapped
            array.flags.writeable = False
        backend = make_backend(device, dataset, settings, given)
        first = backend.get_parameters()
        costs = backend.train(0, 4)
        assert bits(given) == bits(first) == kept
        trained = backend.get_parameters()
        for name, array in trained.items():
            assert (array != given[name]).any(), name
            array[:] = 7  # what was returned is the caller's
        backend.set_parameters(given)
        assert bits(backend.get_parameters()) == kept
        assert bits(backend.train(0, 4)) == bits(costs)  # nothing of before is left over

    # However the work is cut.

    def test_bits_do_not_depend_on_the_number_of_threads(self):
        available = numba.config.NUMBA_NUM_THREADS  # two at least, see conftest.py
        settings = self.settings(batch_size=20)
        dataset = make_dataset(100, 10, 10, (28, 28), 10)
        parameters = random_parameters(dataset, settings, np.float32)
        results = []
        try:
            for n_threads in (1, available):
                numba.set_num_threads(n_threads)
                backend = make_backend("cpu", dataset, settings, parameters)
                results.append(bits(backend.train(0, 7), backend.get_parameters()))
        finally:
            numba.set_num_threads(available)
        assert results[0] == results[1]

    @pytest.mark.parametrize("device", ALL_SIZES)
    def test_bits_do_not_depend_on_where_calls_end(self, device):
        """Nor on whether a new backend goes on, from the parameters alone."""
        dataset, settings, parameters = self.toy_of(device)
        results = []
        for ends, is_new in (([12], False), ([1, 4, 5, 12], False), ([1, 7, 12], True)):
            backend = make_backend(device, dataset, settings, parameters)
            costs, start = [], 0
            for end in ends:
                costs.append(backend.train(start, end))
                start = end
                if is_new:
                    before = backend.get_parameters()
                    backend = make_backend(device, dataset, settings, before)
            results.append(bits(np.concatenate(costs), backend.get_parameters()))
        assert results[0] == results[1] == results[2]

    def test_an_earlier_minibatch_again_gives_the_same_bits(self):
        """As after a killed run's state was read: positions are computed, not counted on."""
        dataset, settings, parameters = self.toy()
        backend = make_backend("cpu", dataset, settings, parameters)
        results = []
        for _again in range(2):
            backend.set_parameters(parameters)
            results.append(bits(backend.train(3, 9), backend.get_parameters()))
        assert results[0] == results[1]

    @pytest.mark.parametrize("chunk_batches", [1, 2, 9])
    def test_chunks_give_the_same_bits(self, chunk_batches):
        """Data larger than a CUDA device: chunks of minibatches instead of resident data."""
        dataset, settings, parameters = self.toy_of("cuda")
        results = []
        for chunks in (None, chunk_batches):
            backend = load_backend(self.adapter.name, "cuda")(
                dataset, parameters, settings, np.float32, chunks
            )
            trained = [backend.train(0, 1), backend.train(1, 7), backend.get_parameters()]
            results.append(bits(*trained, getattr(backend, "jacobian_norms", trained[0])))
        assert results[0] == results[1]

    @pytest.mark.parametrize("piece_bytes", [1, 800])
    def test_long_spans_in_pieces_give_the_same_bits(self, tmp_path, monkeypatch, piece_bytes):
        """Over arrays mapped from files whose pages are given back after each piece."""
        dataset, settings, parameters = self.toy()
        save_npz(tmp_path / "toy.npz", as_triple(dataset))
        unpickle(tmp_path / "toy.npz", tmp_path / "arrays", "float32")
        mapped = load_dataset(tmp_path / "arrays")
        results = []
        for size in (cpu_backend.PIECE_BYTES, piece_bytes):
            monkeypatch.setattr(cpu_backend, "PIECE_BYTES", size)
            backend = make_backend("cpu", mapped, settings, parameters)
            trained = backend.train(0, 12), backend.get_parameters()
            results.append(bits(*trained, getattr(backend, "jacobian_norms", trained[0])))
        assert results[0] == results[1]
