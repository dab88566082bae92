"""What every backend of every model does, whatever the model: the tests that all of them pass.

A model's own file has an Adapter, which says what its oracle is and which sizes lie at the edges of
its blocks, and takes the tests in::

    class TestContract(SgdContract):
        adapter = Adapter("mlp", ...)

A test that asks for a ``device`` runs on each that the model has, one that asks for ``sizes`` on
each with the sizes that the adapter has for it.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np
import oracle
import pytest
import toy
from conftest import MemoryCheckpoint, as_triple, make_dataset, save_npz

from msgd.data.dataset import Dataset, load_dataset
from msgd.data.unpickle import unpickle
from msgd.models import DEVICES, MODELS, cpu_backend, load_model, load_trainer

PENALTIES = {"l1": 0.002, "l2": 0.01, "lp": 0.003, "p": 1.5}
ALL_KINDS = tuple((float_x, p) for float_x in ("float32", "float64") for p in ("uint8", "float"))
TOY = {"batch_size": 4}  # of 22 images: five minibatches, and a tail of two


class Sizes(NamedTuple):
    """A minibatch, its images, and the layers over them."""

    batch_size: int
    shape: tuple
    n_classes: int
    changes: dict  # of the settings, besides the batch size

    def __str__(self):
        shape = "x".join(map(str, self.shape))
        changes = "".join(f" {key}={value}" for key, value in self.changes.items())
        return f"{self.batch_size} of {shape} in {self.n_classes}{changes}"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What the contract has to know of a model.

    The oracle's functions take a list of float64 parameters, images (n, height, width) as float64
    pixels and, at the end, the settings: ``logits(parameters, images, settings)``, and with labels
    (n,) before the settings ``cost`` and ``gradients``, which returns a list like the parameters.
    """

    name: str
    logits: Callable
    cost: Callable
    gradients: Callable
    sizes: dict  # {device: [Sizes]} of steps; a device without gets those of "cuda": small ones
    predictions: dict  # {device: [(n_valid, n_classes, changes)]}, likewise
    # {floatX: the relative error of a step}: some roundings for each of the sums on the way
    tolerances: dict
    noise: float = 0.1  # on the initial parameters
    # (floatX, pixels) of steps. Each pair costs a compilation of the training kernels, 10 to 25 s.
    kinds: tuple = (("float32", "uint8"), ("float64", "float"))
    smooth: tuple = ({},)  # changes under which the oracle is held against finite differences
    copied: tuple = ((3, {}),)  # (n_classes, changes): arrays with and without room for padding
    # (n_train, changes) of trainings with all threads and with one, on 28 x 28 pixels
    threads: tuple = ((100, {}),)
    published_batch: dict = dataclasses.field(default_factory=dict)  # {device: images}, else 20
    slow_at_published: tuple = ()  # devices where such a step takes half a minute or more
    devices: tuple = DEVICES  # that the tests run on
    toy_shape: tuple = toy.SHAPE  # of the images where the size does not matter
    layers: dict = dataclasses.field(default_factory=dict)  # else those of the toys

    @property
    def is_sgd(self):
        """Whether the model is trained by minibatches, not by its full gradient."""
        return MODELS[self.name] == "loop"

    def first_kind(self, float_name):
        """Return the first of the kinds of a floatX, for tests that one kind is enough for."""
        return next(kind for kind in self.kinds if kind[0] == float_name)

    def sizes_of(self, device):
        """Return the sizes of steps at the edges of a device's blocks."""
        return self.sizes.get(device, self.sizes["cuda"])

    @property
    def published_layers(self):
        """Return the published settings of the layers that toys have smaller."""
        published = toy.published_settings(self.name)
        return {key: published[key] for key in toy.LAYERS.get(self.name, {})}

    def settings_of(self, **changes):
        """Return complete settings of toys; what the model has no key for is left out."""
        if not self.is_sgd:
            changes.pop("learning_rate", None)
        return toy.settings_of(self.name, **{**self.layers, **changes})

    def random_parameters(self, dataset, settings, float_x):
        """Return initial parameters with the adapter's noise."""
        return toy.random_parameters(dataset, settings, float_x, self.noise)


def as_images(x, shape):
    return oracle.pixels(x).reshape(-1, *shape)


def pixels_of(float_name, pixels):
    """Return how the pixels of a kind are stored."""
    return "uint8" if pixels == "uint8" else float_name


def as_list(parameters):
    return [array.astype(np.float64) for array in parameters.values()]


def bits(*results):
    """Return the bytes of arrays, numbers, and dicts of arrays."""
    arrays = []
    for result in results:
        arrays += result.values() if isinstance(result, dict) else [np.asarray(result)]
    return [array.tobytes() for array in arrays]


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


class Contract:
    """The tests. A subclass has an ``adapter``."""

    adapter: Adapter

    def pytest_generate_tests(self, metafunc):
        """Give a test the devices, sizes and kinds it asks for."""
        adapter, wanted = self.adapter, set(metafunc.fixturenames)
        if "sizes" in wanted:
            cases = [(d, sizes) for d in adapter.devices for sizes in adapter.sizes_of(d)]
            metafunc.parametrize(("device", "sizes"), cases, ids=str)
        elif "prediction" in wanted:
            table = adapter.predictions
            cases = [(d, case) for d in adapter.devices for case in table.get(d, table["cuda"])]
            metafunc.parametrize(("device", "prediction"), cases, ids=str)
        elif "device" in wanted:
            slow = adapter.slow_at_published if "published" in metafunc.function.__name__ else ()
            marked = [pytest.param(device, marks=pytest.mark.slow) for device in slow]
            quick = [device for device in adapter.devices if device not in slow]
            metafunc.parametrize("device", [*quick, *marked])
        if "kind" in wanted:
            kinds = [adapter.first_kind(float_name) for float_name in adapter.tolerances]
            metafunc.parametrize("kind", kinds, ids="-".join)
        elif "pixels" in wanted:
            metafunc.parametrize(("float_name", "pixels"), adapter.kinds)
        for name in ("smooth", "copied", "threads"):
            if name in wanted:
                metafunc.parametrize(name, getattr(adapter, name), ids=str)

    # The oracle.

    def test_oracle_gradients_agree_with_finite_differences(self, smooth):
        settings = self.adapter.settings_of(**{**PENALTIES, "p": 2.7, **smooth})
        dataset = make_dataset(5, 3, 3, toy.SHAPE, 3, "float64")
        random = np.random.RandomState(1)
        # Pixels of which no two are equal: no maximum is tied.
        batch = random.uniform(size=(5, *toy.SHAPE)), random.randint(0, 3, 5), settings
        parameters = as_list(toy.random_parameters(dataset, settings, np.float64, noise=0.5))
        analytic = self.adapter.gradients(parameters, *batch)
        numeric = oracle.numerical_gradients(lambda p: self.adapter.cost(p, *batch), parameters)
        for found, expected in zip(analytic, numeric, strict=True):
            assert np.abs(expected).max() > 1e-4
            np.testing.assert_allclose(found, expected, atol=1e-8)

    def test_model_probabilities_agree_with_the_oracle(self, smooth):
        dataset = make_dataset(shape=(11, 10))
        settings = self.adapter.settings_of(**smooth)
        parameters = self.adapter.random_parameters(dataset, settings, np.float32)
        images = dataset.images("test", [3, 5])
        model = load_model(self.adapter.name)
        found = model.probabilities(parameters, images, settings, dataset.image_shape)
        logits = self.adapter.logits(as_list(parameters), images.reshape(2, 11, 10), settings)
        np.testing.assert_allclose(found, oracle.softmax(logits), rtol=1e-12)

    # Steps.

    def test_a_step_agrees_with_the_oracle(self, device, sizes, float_name, pixels):
        self.check_a_step(device, sizes, float_name, pixels)

    def test_a_step_at_the_published_sizes(self, device):
        batch_size = self.adapter.published_batch.get(device, 20)
        sizes = Sizes(batch_size, (28, 28), 10, self.adapter.published_layers)
        # The reference adds 392,000 penalties of the MLP one by one: float32 loses five digits.
        float_name = "float64" if device == "reference" else "float32"
        self.check_a_step(device, sizes, *self.adapter.first_kind(float_name))

    def test_large_logits_do_not_overflow(self, device):
        """The classes' probabilities are 0 and 1; costs are thousands."""

        def enlarge(parameters):
            [*parameters.values()][-1][:] = [1e4, -1e4, 0]

        sizes = Sizes(8, self.adapter.toy_shape, 3, {})
        cost = self.check_a_step(device, sizes, "float32", "uint8", enlarge)
        assert cost > 1e3

    def check_a_step(self, device, sizes, float_name, pixels, change=lambda parameters: None):
        """Hold the cost and the gradient of a step against the oracle; return the cost."""
        adapter, tolerance = self.adapter, self.adapter.tolerances[float_name]
        float_x = np.dtype(float_name).type
        batch_size, shape, n_classes, changes = sizes
        settings = adapter.settings_of(batch_size=batch_size, learning_rate=0.5, **changes)
        n_train = max(batch_size, n_classes) if adapter.is_sgd else 3 * batch_size + 1
        n_train = max(n_train, n_classes)
        stored = pixels_of(float_name, pixels)
        dataset = make_dataset(n_train, n_classes, n_classes, shape, n_classes, stored)
        parameters = adapter.random_parameters(dataset, settings, float_x)
        change(parameters)
        backend = toy.make_backend(device, dataset, settings, parameters)
        assert bits(backend.get_parameters()) == bits(parameters)
        cost, gradients, rounding = gradients_of(adapter, backend, parameters)

        expected_cost, expected = self.expected_of(dataset, settings, as_list(parameters))
        assert abs(cost - expected_cost) <= tolerance * expected_cost
        for array, found, gradient in zip(parameters.values(), gradients, expected, strict=True):
            assert found.shape == array.shape
            assert np.linalg.norm(gradient) > 0
            error = np.linalg.norm(found - gradient)
            allowed = rounding * np.finfo(float_x).eps * np.linalg.norm(array)
            assert error <= tolerance * np.linalg.norm(gradient) + allowed
        return cost

    def expected_of(self, dataset, settings, parameters):
        """Return the oracle's (cost, gradients) of what the model trains at once.

        A minibatch, or the mean over all whole minibatches of the training set.
        """
        batch_size = settings["batch_size"]
        images = as_images(dataset.train_x, dataset.image_shape)
        n = 1 if self.adapter.is_sgd else len(images) // batch_size
        batches = [slice(i * batch_size, (i + 1) * batch_size) for i in range(n)]
        batches = [(parameters, images[b], dataset.train_y[b], settings) for b in batches]
        gradients = [self.adapter.gradients(*batch) for batch in batches]
        return (
            np.mean([self.adapter.cost(*batch) for batch in batches]),
            [np.mean(arrays, axis=0) for arrays in zip(*gradients, strict=True)],
        )

    def toy(self, float_x=np.float32, n_classes=3, **changes):
        """Return (dataset, settings, parameters) of five minibatches."""
        dataset = make_dataset(22, 11, 11, self.adapter.toy_shape, n_classes)
        settings = self.adapter.settings_of(**TOY, **changes)
        return dataset, settings, self.adapter.random_parameters(dataset, settings, float_x)

    # Predictions.

    def test_predictions_and_error_counts(self, device, prediction):
        n_valid, n_classes, changes = prediction
        dataset = make_dataset(30, n_valid, 10, (10, 10), n_classes)
        settings = self.adapter.settings_of(batch_size=10, **changes)
        # Of such a size that not all images get the same class.
        parameters = toy.random_parameters(dataset, settings, np.float64, noise=0.5)
        backend = toy.make_backend(device, dataset, settings, parameters)
        images = as_images(dataset.valid_x, dataset.image_shape)
        logits = self.adapter.logits(as_list(parameters), images, settings)
        expected = logits.argmax(axis=1)
        assert len(np.unique(expected)) > 1
        predicted = backend.predict("valid")
        assert predicted.dtype == np.int32
        np.testing.assert_array_equal(predicted, expected)
        n_counted = n_valid // 10 * 10 or n_valid  # whole minibatches; all if there is none
        wrong = (expected != dataset.valid_y)[:n_counted].sum()
        assert wrong > 0
        assert wrong < n_counted or n_classes > 5  # of many classes all may be wrong
        assert [backend.count_errors("valid") for _ in range(2)] == [wrong, wrong]

    def test_the_first_of_equal_maxima_is_predicted(self, device):
        """The last weights are 0 at the beginning: the logits are the bias."""
        dataset = make_dataset(shape=self.adapter.toy_shape, n_classes=4)
        settings = self.adapter.settings_of(batch_size=10)
        model = load_model(self.adapter.name)
        parameters = model.initial_parameters(dataset, settings, np.float32)
        weights, bias = [*parameters.values()][-2:]
        weights[:], bias[:] = 0, [0, 2, 1, 2]
        backend = toy.make_backend(device, dataset, settings, parameters)
        assert (backend.predict("test") == 1).all()

    # Copies.

    def test_parameters_are_copied_in_and_out(self, device, copied):
        n_classes, changes = copied
        dataset, settings, given = self.toy(n_classes=n_classes, **changes)
        kept = bits(given)
        for array in given.values():  # as those of a file that is mapped
            array.flags.writeable = False
        backend = toy.make_backend(device, dataset, settings, given)
        first = backend.get_parameters()
        results = self.train(backend, 4)
        assert bits(given) == bits(first) == kept
        trained = backend.get_parameters()
        if self.adapter.is_sgd:
            for name, array in trained.items():
                assert (array != given[name]).any(), name
        for array in trained.values():
            array[:] = 7  # what was returned is the caller's
        backend.set_parameters(given)
        assert bits(given) == bits(backend.get_parameters()) == kept
        assert bits(*self.train(backend, 4)) == bits(*results)  # nothing of before is left over
        assert bits(given) == kept

    def test_the_best_parameters_do_not_go_on_training(self, device, monkeypatch):
        """Of four validations, the second finds the fewest errors."""
        more = {"patience": 1000, "n_epochs": 4} if self.adapter.is_sgd else {"n_epochs": 4}
        dataset, settings, parameters = self.toy(**more)
        backend = toy.make_backend(device, dataset, settings, parameters)
        counts, seen = iter([7, 3, 5, 6]), []

        def count_errors(split):
            seen.append(bits(backend.get_parameters()))
            return next(counts)

        monkeypatch.setattr(backend, "count_errors", count_errors)
        train = load_trainer(self.adapter.name)
        result = train(backend, dataset, settings, MemoryCheckpoint())
        assert len(seen) == 4
        assert bits(result.best_parameters) == seen[1]
        assert bits(backend.get_parameters()) == seen[3] != seen[1]

    # However the work is cut.

    def train(self, backend, *ends):
        """Return what training gives: of SGD's minibatches up to each of ``ends``, or the full."""
        if not self.adapter.is_sgd:
            return backend.cost_and_gradient()
        starts = (0, *ends)
        costs = [backend.train(*span) for span in zip(starts, ends, strict=False)]
        return *costs, backend.get_parameters()

    def test_bits_do_not_depend_on_the_number_of_threads(self, threads):
        n_train, changes = threads
        available = numba.config.NUMBA_NUM_THREADS  # two at least, see conftest.py
        dataset = make_dataset(n_train, 70, 10, (28, 28), 10)
        settings = self.adapter.settings_of(**{**self.adapter.published_layers, **changes})
        parameters = self.adapter.random_parameters(dataset, settings, np.float32)
        last = n_train // settings["batch_size"] + 1  # an epoch and one more
        results = []
        try:
            for n_threads in (1, available):
                numba.set_num_threads(n_threads)
                backend = toy.make_backend("cpu", dataset, settings, parameters)
                results.append(bits(*self.train(backend, last), backend.predict("valid")))
        finally:
            numba.set_num_threads(available)
        assert results[0] == results[1]

    @pytest.mark.parametrize("chunk_batches", [1, 2, 3, 5, 9])
    def test_chunks_give_the_same_bits(self, chunk_batches):
        """Data larger than a CUDA device: chunks of minibatches instead of resident data."""
        dataset, settings, parameters = self.toy()
        results = []
        for chunks in (None, chunk_batches):
            backend = toy.make_backend("cuda", dataset, settings, parameters, chunks)
            # Spans that begin and end within a chunk, cross one, and cross the epoch.
            trained = self.train(backend, 1, 4, 12)
            counted = backend.count_errors("valid"), backend.predict("train")
            results.append(bits(*trained, *counted))
        assert results[0] == results[1]

    @pytest.mark.parametrize("piece_bytes", [1, 300])
    def test_long_spans_in_pieces_give_the_same_bits(self, tmp_path, monkeypatch, piece_bytes):
        """On the CPU, over arrays mapped from files whose pages are given back after each piece."""
        self.cut_groups(monkeypatch)
        dataset, settings, parameters = self.toy()
        save_npz(tmp_path / "toy.npz", as_triple(dataset))
        unpickle(tmp_path / "toy.npz", tmp_path / "arrays", "float32")
        mapped = load_dataset(tmp_path / "arrays")
        released = []
        release = Dataset.release_pages

        def release_and_note(self, split):
            released.append(split)
            release(self, split)

        monkeypatch.setattr(Dataset, "release_pages", release_and_note)
        results = []
        for size in (cpu_backend.PIECE_BYTES, piece_bytes):
            monkeypatch.setattr(cpu_backend, "PIECE_BYTES", size)
            backend = toy.make_backend("cpu", mapped, settings, parameters)
            results.append(bits(*self.train(backend, 1, 12), backend.predict("valid")))
            assert set(released) == (set() if size > 1000 else {"train", "valid"})
        assert results[0] == results[1]

    def cut_groups(self, monkeypatch):
        """Make what the model trains together so small that the toys have several of it."""


class SgdContract(Contract):
    """The tests of what minibatches train."""

    @pytest.mark.parametrize("penalties", [{}, {"l2": 0.001}, PENALTIES], ids=["no", "l2", "all"])
    def test_ten_steps_follow_the_oracle_over_an_epoch_edge(self, device, kind, penalties):
        """Four minibatches of six, and a tail of two."""
        float_x, pixels = np.dtype(kind[0]).type, pixels_of(*kind)
        adapter, tolerance = self.adapter, 10 * self.adapter.tolerances[kind[0]]
        dataset = make_dataset(n_train=26, shape=(10, 10), pixels=pixels)
        settings = adapter.settings_of(batch_size=6, learning_rate=0.3, **penalties)
        given = adapter.random_parameters(dataset, settings, float_x)
        backend = toy.make_backend(device, dataset, settings, given)
        costs = np.concatenate([backend.train(0, 3), backend.train(3, 10)])

        images, parameters = as_images(dataset.train_x, dataset.image_shape), as_list(given)
        for step, cost in enumerate(costs):
            rows = slice(step % 4 * 6, step % 4 * 6 + 6)
            batch = images[rows], dataset.train_y[rows], settings
            expected = adapter.cost(parameters, *batch)
            assert abs(cost - expected) <= tolerance * expected
            gradients = adapter.gradients(parameters, *batch)
            for array, gradient in zip(parameters, gradients, strict=True):
                array -= 0.3 * gradient
        for found, expected in zip(backend.get_parameters().values(), parameters, strict=True):
            assert relative_error(found, expected) <= tolerance

    def test_going_on_in_the_midst_of_an_epoch_gives_the_same_bits(self, device):
        """Parameters are all that a backend remembers."""
        dataset, settings, parameters = self.toy()
        whole = toy.make_backend(device, dataset, settings, parameters)
        whole.train(0, 3)
        resumed = toy.make_backend(device, dataset, settings, whole.get_parameters())
        costs = [backend.train(3, 12) for backend in (whole, resumed)]
        assert bits(costs[0], whole.get_parameters()) == bits(costs[1], resumed.get_parameters())


def gradients_of(adapter, backend, parameters):
    """Return (cost, gradients, rounding): of a step of SGD, or as the backend says itself.

    rounding: how many epsilons of the parameters the gradients may be off, for a step was rounded
    when it was subtracted from them.
    """
    if not adapter.is_sgd:
        cost, gradient = backend.cost_and_gradient()
        for array, given in zip(gradient.values(), parameters.values(), strict=True):
            assert array.dtype == given.dtype
        return cost, gradient.values(), 0
    rate = backend.settings["learning_rate"]
    (cost,) = backend.train(0, 1)
    after = backend.get_parameters()
    assert list(after) == list(parameters)
    gradients = []
    for name, old in parameters.items():
        assert after[name].dtype == old.dtype
        gradients.append((old.astype(np.float64) - after[name]) / rate)
    return cost, gradients, 2 / rate
