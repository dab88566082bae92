"""What the tests of stacks share: the oracle through all stages, and a contract."""

import dataclasses
import gc
import math
import weakref

import numba
import numpy as np
import oracle
import pytest
import toy
from autoencoders import sha256
from conftest import make_dataset
from contract import Adapter, SgdContract, Sizes, as_list, bits, pixels_of

from msgd.errors import UserError
from msgd.kernels.mrg31k3p import Draws
from msgd.kernels.uniform import fill_uniform, new_position
from msgd.models import cpu_backend, load_stages

FLOATS = {"float32": np.float32, "float64": np.float64}
# Of the costs and of the parameters after some steps in every stage: roundings of each of them.
TOLERANCE = {"float32": 1e-4, "float64": 1e-11}
PUBLISHED_TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


# The oracle: layers by those of the auto-encoder and of the machine, then the network of sigmoids.


def logits(parameters, images, settings):
    return oracle.mlp_forward(parameters, images.reshape(len(images), -1), "sigmoid")[0][-1]


def cost(parameters, images, y, settings):
    x = images.reshape(len(images), -1)
    return oracle.mlp_cost(parameters, x, y, "sigmoid", **oracle.penalties_of(settings))


def gradients(parameters, images, y, settings):
    x = images.reshape(len(images), -1)
    return oracle.mlp_gradients(parameters, x, y, "sigmoid", **oracle.penalties_of(settings))


def draws_of(settings, shape, streams):
    """A function that returns the next numbers (B, n) of a block of the generator, by its name.

    shape: the numbers of a row, by the name; streams: the blocks, likewise.
    """
    seed = np.random.RandomState(settings["seed"]).randint(2**30)
    size = settings["pretraining_batch_size"]
    positions = {
        name: new_position(Draws(seed, stream, size * shape[name]))
        for name, stream in streams.items()
    }

    def draw(name):
        u = np.empty((size, shape[name]))
        fill_uniform(positions[name], u)
        return u

    return draw


def follow_autoencoder(layer, batches, settings, number):
    """Train ``layer``, [W, b, b'] changed, on a list of minibatches; return the costs."""
    draw = draws_of(settings, {"mask": len(layer[0])}, {"mask": number})
    share = np.resize(settings["corruption"], number)[-1]  # one for all, or one for each
    costs = []
    for x in batches:
        corrupted = x * (draw("mask") < 1 - share)
        costs.append(oracle.autoencoder_cost(layer, x, corrupted))
        gradients = oracle.autoencoder_gradients(layer, x, corrupted)
        for array, gradient in zip(layer, gradients, strict=True):
            array -= settings["pretraining_learning_rate"] * gradient
    return costs


def follow_machine(layer, batches, settings, number):
    """Train ``layer``, [W, b, c] changed, on a list of minibatches; return the costs."""
    n_visible, n_hidden = layer[0].shape
    widths = {"positive": n_hidden, "visible": n_visible, "hidden": n_hidden}
    streams = {name: 3 * number - 2 + k for k, name in enumerate(widths)}
    chain = np.zeros((len(batches[0]), n_hidden)) if settings["persistent"] else None
    draw, rate = draws_of(settings, widths, streams), settings["pretraining_learning_rate"]
    return oracle.rbm_train(layer, batches, chain, draw, settings["gibbs_steps"], rate)[0]


FOLLOW_LAYER = {"sda": follow_autoencoder, "dbn": follow_machine}


def follow(dataset, settings, given, n_steps):
    """Return the costs of n_steps minibatches of each stage (list of lists), and the parameters."""
    parameters, costs = [array.astype(np.float64) for array in given.values()], []
    images = oracle.pixels(dataset.train_x)
    for number in range(1, len(parameters) // 2):
        size = settings["pretraining_batch_size"]
        starts = [step % (len(images) // size) * size for step in range(n_steps)]
        weights, bias = parameters[2 * number - 2 : 2 * number]
        layer = [weights, bias, np.zeros(len(weights))]
        batches = [images[start : start + size] for start in starts]
        costs.append(FOLLOW_LAYER[settings["model"]](layer, batches, settings, number))
        images = oracle.sigmoid(images @ weights + bias)
    costs.append([])
    images, size = oracle.pixels(dataset.train_x), settings["batch_size"]
    for step in range(n_steps):
        start = step % (len(images) // size) * size
        rows = slice(start, start + size)
        batch = parameters, images[rows], dataset.train_y[rows], settings
        costs[-1].append(cost(*batch))
        for array, gradient in zip(parameters, gradients(*batch), strict=True):
            array -= settings["learning_rate"] * gradient
    return costs, parameters


# Trainings.


def settings_of(name, **changes):
    """Return settings of a stack of the model ``name`` that moves in a few steps."""
    rates = {"learning_rate": 0.3, "pretraining_learning_rate": 0.2}
    return toy.settings_of(name, **{**rates, "batch_size": 4, **changes})


def train_through(backend, *ends):
    """Train minibatches up to each of ``ends`` in every stage; return the costs of each."""
    costs = []
    for stage in load_stages(backend.settings):
        backend.begin(stage)
        spans = zip((0, *ends), ends, strict=False)
        costs.append(np.concatenate([backend.train(*span) for span in spans]))
    return costs


# (sizes of minibatches, of pre-training first; image shape; n_hidden): on the CPU around vectors,
# blocks and panels; on CUDA around the simulator's blocks of 4 x 8 threads.
CPU_SIZES = [
    ((1, 1), (3, 5), [7, 3]),
    ((3, 4), (10, 10), [70, 9, 5]),
    ((5, 1), (1, 17), [64, 129]),
    ((1, 6), (7, 7), 16),
]
CUDA_SIZES = [((1, 1), (1, 3), [3, 2]), ((3, 2), (2, 4), [5, 9]), ((9, 8), (1, 3), 4)]
SIZES = {"cpu": CPU_SIZES, "cuda": CUDA_SIZES, "reference": CPU_SIZES}
CASES = [(device, *size) for device, sizes in SIZES.items() for size in sizes]


# Of fine-tuning, which is the same for both. For each depth it is compiled anew, which takes ten
# seconds: one stack does for them.
STEPS = [
    Sizes(7, (4, 4), 10, {"n_hidden": [70, 3], "l2": 0.01}),
    Sizes(1, (3, 3), 2, {"n_hidden": 1, "pretraining_batch_size": 1}),
    Sizes(20, (11, 10), 3, {"n_hidden": [9, 130, 5]}),
]


def adapter_of(name):
    """Return the Adapter of a stack."""
    return Adapter(
        name=name,
        logits=logits,
        cost=cost,
        gradients=gradients,
        sizes={
            "cpu": STEPS if name == "sda" else STEPS[:1],
            "cuda": [
                Sizes(1, (1, 3), 2, {"n_hidden": 1, "pretraining_batch_size": 1}),
                Sizes(9, (3, 3), 5, {"n_hidden": [5, 3]}),
            ],
        },
        predictions={"cuda": [(33, 5, {"n_hidden": [9, 8]}), (33, 5, {"n_hidden": 5})]},
        tolerances={"float32": 1e-5, "float64": 1e-12},
        noise=0.3,
        copied=((3, {"n_hidden": [4, 70]}),),
        threads=((100, {"n_hidden": [130, 70, 50]}),),
    )


class StackContract(SgdContract):
    """The tests that both pass.

    fingerprints: SHA-256 of the published initial weights of each layer, by float type; first_cost:
    of the first layer, at the published settings.
    """

    @pytest.mark.parametrize("float_name", FLOATS)
    def test_the_published_initial_weights(self, float_name):
        dataset = make_dataset(20, 10, 10, (28, 28), 10)
        settings = toy.published_settings(self.adapter.name)
        model = toy.load_model(self.adapter.name)
        parameters = [*model.initial_parameters(dataset, settings, FLOATS[float_name]).values()]
        assert [sha256(array) for array in parameters[:6:2]] == self.fingerprints[float_name]
        assert not any(array.any() for array in (*parameters[1::2], parameters[6]))
        assert parameters[6].shape == (1000, 10)

    @pytest.mark.parametrize("float_name", FLOATS)
    @pytest.mark.parametrize("twin", ["cpu", "reference"])
    def test_the_published_figures(self, mnist, twin, float_name):
        """Two minibatches of each stage, as the oracle has them, and figures that are known."""
        dataset, settings, given = published(mnist, self.adapter.name, float_name)
        backend = toy.make_backend(twin, dataset, settings, given)
        found = train_through(backend, 2)
        expected, parameters = follow(dataset, settings, given, 2)
        tolerance = PUBLISHED_TOLERANCE[float_name]
        np.testing.assert_allclose(found, expected, rtol=tolerance)
        np.testing.assert_allclose(found[0][0], self.first_cost, rtol=tolerance)
        np.testing.assert_allclose(found[3][0], math.log(10), rtol=tolerance)
        for array, right in zip(backend.get_parameters().values(), parameters, strict=True):
            assert np.linalg.norm(array - right) <= tolerance * np.linalg.norm(right)

    def test_a_step_at_the_published_sizes(self, device):
        """The simulator would take hours; its kernels are the multilayer perceptron's."""
        if device != "cuda":
            super().test_a_step_at_the_published_sizes(device)

    def stack(self, float_name="float32", pixels="uint8", shape=(5, 6), **changes):
        """Return (dataset, settings, parameters) of seven minibatches of 4."""
        dataset = make_dataset(30, 9, 9, shape, 3, pixels_of(float_name, pixels))
        settings = settings_of(self.adapter.name, **changes)
        random = self.adapter.random_parameters(dataset, settings, FLOATS[float_name])
        return dataset, settings, random

    @pytest.mark.parametrize(("twin", "size", "shape", "n_hidden"), CASES, ids=str)
    def test_all_stages_follow_the_oracle(self, twin, size, shape, n_hidden, float_name, pixels):
        """Over the edge of an epoch; the layers' corruptions differ."""
        changes = dict(zip(("pretraining_batch_size", "batch_size"), size, strict=True))
        if self.adapter.name == "sda":
            changes["corruption"] = [0.1, 0.6, 0.3][: np.size(n_hidden)]
        stack = self.stack(float_name, pixels, shape, n_hidden=n_hidden, **changes)
        self.check_stages(twin, *stack)

    def check_stages(self, device, dataset, settings, given):
        """Hold the costs of each stage and the last parameters against the oracle."""
        float_name = next(iter(given.values())).dtype.name
        tolerance, n_steps = TOLERANCE[float_name], 31
        backend = toy.make_backend(device, dataset, settings, given)
        found = train_through(backend, 1, 4, n_steps)
        expected, parameters = follow(dataset, settings, given, n_steps)
        assert len(found) == len(expected) == np.size(settings["n_hidden"]) + 1
        for costs, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(costs, right, rtol=tolerance)
        for array, right, before in zip(
            backend.get_parameters().values(), parameters, given.values(), strict=True
        ):
            error = np.linalg.norm(array - right)
            assert error <= tolerance * np.linalg.norm(right)
            assert np.linalg.norm(right - before) > 100 * error

    def test_a_layer_leaves_the_others_alone(self, device):
        dataset, settings, given = self.stack(shape=(2, 3))
        backend = toy.make_backend(device, dataset, settings, given)
        before = given
        for number, stage in enumerate(load_stages(settings)[:-1], start=1):
            backend.begin(stage)
            backend.train(0, 5)
            after = backend.get_parameters()
            changed = [name for name in given if (after[name] != before[name]).any()]
            assert changed == [f"weights_{number}", f"bias_{number}"]
            before = after

    def test_training_goes_on_from_parameters_and_state(self, device):
        """In every stage, in a new object, as after a kill; set_parameters replaces all of them."""
        dataset, settings, given = self.stack(shape=(2, 3), pretraining_batch_size=3)
        whole = toy.make_backend(device, dataset, settings, given)
        for stage in load_stages(settings):
            whole.begin(stage)
            whole.train(0, 4)
            parameters, state = whole.get_parameters(), whole.get_state()
            expected = bits(whole.train(4, 9), whole.get_parameters(), whole.get_state())
            resumed = toy.make_backend(device, dataset, settings, given)
            resumed.set_parameters(parameters)
            resumed.begin(stage)
            resumed.set_state(state)
            found = bits(resumed.train(4, 9), resumed.get_parameters(), resumed.get_state())
            assert found == expected, stage
            resumed.set_parameters(parameters)
            resumed.set_state(state)
            again = bits(resumed.train(4, 9), resumed.get_parameters(), resumed.get_state())
            assert again == expected, stage

    def test_a_state_of_another_stage_is_refused(self, device):
        dataset, settings, given = self.stack(shape=(2, 3))
        backend = toy.make_backend(device, dataset, settings, given)
        first, second, last = load_stages(settings)
        backend.begin(first)
        state = backend.get_state()
        assert next(iter(state)) == "visible_bias"
        assert state["visible_bias"].shape == (6,)
        for wrong in ({}, {**state, "more": np.zeros(1)}):
            with pytest.raises(UserError, match="the state holds"):
                backend.set_state(wrong)
        backend.begin(second)
        assert backend.get_state()["visible_bias"].shape == (5,)
        with pytest.raises(UserError, match=r"visible_bias is \(6,\)"):
            backend.set_state(state)
        backend.begin(last)
        assert backend.get_state() == {}

    def test_errors_are_counted_in_every_stage(self, device):
        """Of the parameters as they are; a stage without validation may be asked, too."""
        changes = {"n_hidden": [9, 8], "pretraining_learning_rate": 2.0}
        dataset, settings, given = self.stack(shape=(2, 3), **changes)
        backend = toy.make_backend(device, dataset, settings, given)
        images, found = oracle.pixels(dataset.valid_x).reshape(9, 2, 3), set()
        for stage in load_stages(settings):
            backend.begin(stage)
            backend.train(0, 7)
            right = logits(as_list(backend.get_parameters()), images, settings).argmax(axis=1)
            np.testing.assert_array_equal(backend.predict("valid"), right)
            found.add(tuple(right))
            assert backend.count_errors("valid") == (right != dataset.valid_y)[:8].sum()
        assert len(found) > 1

    def test_without_pretraining_there_is_one_stage(self):
        settings = self.stack(pretraining_epochs=0)[1]
        assert [stage.name for stage in load_stages(settings)] == ["fine_tune"]

    def test_stages_have_their_own_minibatches(self):
        sizes = {"pretraining_batch_size": 5, "pretraining_epochs": 3, "batch_size": 7}
        settings = self.stack(n_hidden=[4, 3, 2], n_epochs=9, **sizes)[1]
        stages = [(s.name, s.n_epochs, s.batch_size, s.is_validated) for s in load_stages(settings)]
        layers = [(f"pretrain_{number}", 3, 5, False) for number in (1, 2, 3)]
        assert stages == [*layers, ("fine_tune", 9, 7, True)]

    @pytest.mark.parametrize("size", [0, 31, "all"])
    def test_minibatches_that_do_not_fit_the_data(self, device, size):
        dataset, settings, given = self.stack()
        settings["pretraining_batch_size"] = size
        backend = toy.make_backend(device, dataset, settings, given)
        with pytest.raises(UserError, match=f"pretraining_batch_size is {size}; allowed: 1 to 30"):
            backend.begin(load_stages(settings)[0])

    def test_what_a_layer_learns_from_is_made_once_and_let_go(self, monkeypatch):
        dataset, settings, given = self.stack(n_hidden=[7, 6, 5])
        backend = toy.make_backend("cpu", dataset, settings, given)
        made, represent = [], backend.represent

        def noting(dataset, layers, float_x):
            gc.collect()
            assert not any(one() is not None for one in made), "the former layer's are in the way"
            images = represent(dataset, layers, float_x)
            made.append(weakref.ref(images))
            return images

        monkeypatch.setattr(backend, "represent", noting)
        for stage in load_stages(settings):
            backend.begin(stage)
            for epoch in range(2):
                backend.train(10 * epoch, 10 * epoch + 10)
        gc.collect()
        assert [one() for one in made] == [None, None]

    def test_the_same_bytes_however_the_work_is_cut(self, monkeypatch):
        """On any number of threads, in calls of any length, in pieces."""
        shape = {"n_hidden": [130, 70], "shape": (20, 15), "pretraining_batch_size": 3}
        dataset, settings, given = self.stack(**shape)

        def train(*ends):
            backend = toy.make_backend("cpu", dataset, settings, given)
            costs = train_through(backend, *ends)[:-1]  # fine-tuning rounds by where calls end
            backend.begin(load_stages(settings)[-1])
            return bits(*costs, backend.train(0, 9), backend.get_parameters())

        available = numba.config.NUMBA_NUM_THREADS  # two at least, see conftest.py
        expected = train(12)
        try:
            numba.set_num_threads(1)
            assert train(12) == expected
        finally:
            numba.set_num_threads(available)
        monkeypatch.setattr(cpu_backend, "PIECE_BYTES", 2 * 3 * 300 * 4)
        assert train(12) == expected


def published(dataset, name, float_name, **changes):
    """Return (dataset, settings, initial parameters) at the published sizes; 200 images train."""
    settings = toy.published_settings(name, **changes)
    few = dataclasses.replace(dataset, train_x=dataset.train_x[:200], train_y=dataset.train_y[:200])
    model = toy.load_model(name)
    return few, settings, model.initial_parameters(few, settings, FLOATS[float_name])
