"""The restricted Boltzmann machine: the oracle, published figures, every backend against them."""

import itertools

import numba
import numpy as np
import oracle
import pytest
from autoencoders import FLOATS, NAMES, bits, make_backend, random_parameters, settings_of, sha256
from conftest import darkened, make_dataset

from msgd.errors import UserError
from msgd.kernels.uniform import fill_uniform, new_position
from msgd.kernels.vectors import HALF
from msgd.models import cpu_backend, load_backend
from msgd.models.rbm import model
from msgd.models.rbm.chains import NEVER, PANEL, get_weights
from msgd.models.rbm.samples import sample_chains

FINGERPRINTS = {
    "float32": "3ac0c13c5e7cc60f196104060c9a1ba927d046fc71c52fd409a5399082cf697f",
    "float64": "320e4cb05239bdbde42158d8c58439f12c455d0e5337e45149986a03e5072fff",
}
# At the published settings: the first ten costs of PCD-15, the first of CD-1; of the chains how
# many ones v has after the first minibatch, with its hash, and h after the first and the tenth.
COSTS = [
    *(-424.8459232224219, -55.06710733504495, -75.1683307968669, -28.346562189880252),
    *(-13.907732448330568, -39.86405004540826, -141.33590669922472, -3.1152362238202174),
    *(-6.753204091419025, -7.837281117891682),
]
CD_COST = -975.1609635506609
FIRST_V = 9520, "be4a25cbb2dc745618fd0bc98f8fd10665f8767266eb5845ff057ef08312de70"
ONES_OF_H = {1: 6704, 10: 395}
ONES_OF_TENTH_V = 6337
FREE_ENERGY = -465.14465845418016  # of the first test image, before training
# The pseudo-likelihood is 784 times a difference of energies of hundreds: its errors are absolute.
PUBLISHED_TOLERANCE = {"float32": {"atol": 2e-3}, "float64": {"rtol": 1e-10}}
DEVICES = ["reference", "cpu", "cuda"]
PUBLISHED_DEVICES = ["reference", "cpu"]  # too much for the simulator
# (batch, image shape, n_hidden) at the edges of the CPU's panels and vectors, images fewer and more
# than threads.
SIZES = [
    (1, (1, 3), 1),
    (3, (8, 8), PANEL - 1),
    (2, (5, 13), PANEL),
    (5, (7, 9), PANEL + 1),
    (7, (3, 3), 2 * PANEL + HALF),
    (33, (11, 12), 2 * PANEL + HALF + 1),
]
# The same around the simulator's blocks of 4 x 8 threads.
CUDA_SIZES = [(1, (1, 3), 1), (8, (1, 7), 4), (9, (2, 4), 5), (3, (3, 3), 9)]
CASES = [("cpu", size) for size in SIZES] + [("cuda", size) for size in CUDA_SIZES]
CHAINS = [(True, 1), (True, 3), (False, 1), (False, 2)]  # persistent, gibbs_steps
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


def draws_of(settings, n_features):
    """A function that returns the next numbers of an operation by its name, (B, n) float64."""
    draws = model.gibbs_draws(n_features, settings)._asdict()
    positions = {name: new_position(one) for name, one in draws.items()}

    def draw(name):
        u = np.empty((settings["batch_size"], positions[name].size // settings["batch_size"]))
        fill_uniform(positions[name], u)
        return u

    return draw


def follow(dataset, settings, given, n_steps):
    """Return the oracle's costs, parameters (list), and v and h of ``n_steps`` minibatches."""
    x, size = oracle.pixels(dataset.train_x), settings["batch_size"]
    starts = [step % (len(x) // size) * size for step in range(n_steps)]
    parameters = [array.astype(np.float64) for array in given.values()]
    chain = np.zeros((size, settings["n_hidden"])) if settings["persistent"] else None
    draw = draws_of(settings, x.shape[1])
    costs, visible, hidden = oracle.rbm_train(
        parameters,
        [x[start : start + size] for start in starts],
        chain,
        draw,
        settings["gibbs_steps"],
        settings["learning_rate"],
    )
    return costs, parameters, visible, hidden


def published(dataset, float_name, **changes):
    """Return the settings and the initial parameters at the published sizes."""
    settings = settings_of("rbm", **changes)
    return settings, model.initial_parameters(dataset, settings, FLOATS[float_name])


def toy(float_name="float32", pixels="uint8", n_steps=3, **changes):
    """Return (dataset, settings, parameters) of four minibatches of 6, and a tail of 2."""
    dataset = make_dataset(n_train=26, shape=(2, 5), pixels=pixels)
    changes = {"batch_size": 6, "n_hidden": 7, "gibbs_steps": n_steps, **changes}
    settings = settings_of("rbm", **changes)
    return dataset, settings, random_parameters(dataset, settings, FLOATS[float_name])


def test_the_published_settings():
    expected = {"learning_rate": 0.1, "batch_size": 20, "n_epochs": 15, "seed": 123}
    expected |= {"n_hidden": 500, "persistent": True, "gibbs_steps": 15}
    assert settings_of("rbm") == {"model": "rbm", **expected}


def test_the_statistics_are_the_gradient_of_the_difference_of_free_energies():
    random = np.random.RandomState(1)
    x, v = random.uniform(size=(5, 12)), (random.uniform(size=(5, 12)) < 0.4).astype(float)
    parameters = [random.normal(size=size) for size in ((12, 7), 7, 12)]

    def difference(p):
        return oracle.rbm_free_energies(p, x).mean() - oracle.rbm_free_energies(p, v).mean()

    numeric = oracle.numerical_gradients(difference, parameters)
    for found, expected in zip(oracle.rbm_gradients(parameters, x, v), numeric, strict=True):
        assert np.abs(found - expected).max() <= 1e-8 * np.abs(expected).max()


def test_the_free_energy_is_that_of_all_hidden_states():
    """And the pseudo-likelihood is the probability of a pixel, given all others."""
    random = np.random.RandomState(2)
    parameters = weights, hidden_bias, visible_bias = [
        random.normal(size=size) for size in ((4, 3), 3, 4)
    ]
    hidden = np.array([*itertools.product([0, 1], repeat=3)])

    def probability(v):  # not normalised
        energies = -v @ visible_bias - hidden @ hidden_bias - v @ weights @ hidden.T
        return np.exp(-energies).sum()

    v = np.array([1.0, 0, 0.5, 1])
    (energy,) = oracle.rbm_free_energies(parameters, v[None])
    np.testing.assert_allclose(np.exp(-energy), probability(v), rtol=1e-13)
    named = dict(zip(NAMES, parameters, strict=True))
    np.testing.assert_allclose(model.free_energies(named, v[None]), [energy], rtol=1e-13)
    rounded, flipped = np.array([1.0, 0, 0, 1]), np.array([1.0, 1, 0, 1])
    expected = probability(rounded) / (probability(rounded) + probability(flipped))
    found = oracle.rbm_log_pseudo_likelihood(parameters, v[None], 1)
    np.testing.assert_allclose(found, 4 * np.log(expected), rtol=1e-13)


def test_the_means_given_the_other_layer():
    random = np.random.RandomState(3)
    parameters = [random.normal(size=size) for size in ((4, 3), 3, 4)]
    named = dict(zip(NAMES, parameters, strict=True))
    v, h = random.uniform(size=(2, 4)), random.uniform(size=(2, 3))
    weights, hidden_bias, visible_bias = parameters
    expected = oracle.sigmoid(v @ weights + hidden_bias)
    np.testing.assert_allclose(model.hidden_means(named, v), expected, rtol=1e-13)
    expected = oracle.sigmoid(h @ weights.T + visible_bias)
    np.testing.assert_allclose(model.visible_means(named, h), expected, rtol=1e-13)
    np.testing.assert_array_equal(model.weight_images(named, (2, 2))[1, 1], weights[2:, 1])


@pytest.mark.parametrize("float_name", FLOATS)
def test_the_published_initial_weights(float_name):
    dataset = make_dataset(20, 10, 10, (28, 28), 10)
    _, parameters = published(dataset, float_name)
    assert list(parameters) == NAMES
    assert [array.shape for array in parameters.values()] == [(784, 500), (500,), (784,)]
    assert sha256(parameters["weights"]) == FINGERPRINTS[float_name]
    assert not parameters["hidden_bias"].any()
    assert not parameters["visible_bias"].any()


def test_the_published_blocks_of_random_numbers():
    draws = model.gibbs_draws(784, settings_of("rbm"))
    assert [one.stream for one in draws] == [1, 2, 3]
    assert [one.size for one in draws] == [10000, 15680, 10000]
    assert {one.seed for one in draws} == {843828734}


def test_the_oracle_has_the_published_figures(mnist):
    settings, given = published(mnist, "float64")
    assert abs(model.free_energies(given, mnist.images("test", [0]))[0] - FREE_ENERGY) < 1e-9
    costs, _, visible, hidden = follow(mnist, settings, given, 10)
    np.testing.assert_allclose(costs, COSTS, rtol=1e-10)
    assert (visible[0].sum(), sha256(visible[0].astype(np.uint8))) == FIRST_V
    assert {n: hidden[n - 1].sum() for n in ONES_OF_H} == ONES_OF_H
    assert visible[9].sum() == ONES_OF_TENTH_V
    settings, given = published(mnist, "float64", persistent=False, gibbs_steps=1)
    np.testing.assert_allclose(follow(mnist, settings, given, 1)[0], [CD_COST], rtol=1e-10)


@pytest.mark.parametrize("float_name", FLOATS)
@pytest.mark.parametrize("device", PUBLISHED_DEVICES)
def test_the_published_figures(mnist, device, float_name):
    """The samples are the same ones in both float types."""
    tolerance = PUBLISHED_TOLERANCE[float_name]
    settings, given = published(mnist, float_name)
    backend = make_backend(device, mnist, settings, given)
    costs = []
    for done, last in itertools.pairwise((0, *ONES_OF_H)):
        costs += [*backend.train(done, last)]
        chain = backend.get_state()["chain"]
        assert chain.sum() == ONES_OF_H[last]
    np.testing.assert_allclose(costs, COSTS, **{"rtol": 1e-5, **tolerance})
    _, parameters, _, hidden = follow(mnist, settings, given, 10)
    np.testing.assert_array_equal(chain, hidden[-1])
    for array, expected in zip(backend.get_parameters().values(), parameters, strict=True):
        error = np.linalg.norm(array - expected)
        assert error <= TOLERANCE[float_name] * np.linalg.norm(expected)
    settings, given = published(mnist, float_name, persistent=False, gibbs_steps=1)
    costs = make_backend(device, mnist, settings, given).train(0, 1)
    np.testing.assert_allclose(costs, [CD_COST], rtol=tolerance.get("rtol", 1e-5))


@pytest.mark.parametrize("chains", CHAINS, ids=str)
@pytest.mark.parametrize(("float_name", "pixels"), [("float32", "uint8"), ("float64", "float64")])
@pytest.mark.parametrize("device", DEVICES)
def test_ten_steps_follow_the_oracle_over_an_epoch_edge(device, float_name, pixels, chains):
    persistent, n_steps = chains
    toys = toy(float_name, pixels, n_steps, persistent=persistent)
    check_steps(device, *toys, float_name, [(0, 3), (3, 10)])


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize(("device", "size"), CASES, ids=str)
def test_steps_of_all_sizes_follow_the_oracle(device, size, persistent):
    batch_size, shape, n_hidden = size
    dataset = make_dataset(n_train=2 * batch_size, shape=shape)
    changes = {"batch_size": batch_size, "n_hidden": n_hidden, "persistent": persistent}
    settings = settings_of("rbm", gibbs_steps=2, **changes)
    given = random_parameters(dataset, settings, np.float32)
    check_steps(device, dataset, settings, given, "float32", [(0, 3)])


def check_steps(device, dataset, settings, given, float_name, spans):
    """Hold costs, parameters and the chain of a training in ``spans`` against the oracle."""
    backend = make_backend(device, dataset, settings, given)
    costs = np.concatenate([backend.train(*span) for span in spans])
    assert costs.dtype == FLOATS[float_name]
    n_steps = spans[-1][1]
    expected_costs, parameters, _, hidden = follow(dataset, settings, given, n_steps)
    np.testing.assert_allclose(costs, expected_costs, rtol=TOLERANCE[float_name])
    found = backend.get_parameters()
    assert list(found) == NAMES
    for array, expected, before in zip(found.values(), parameters, given.values(), strict=True):
        assert array.dtype == FLOATS[float_name]
        error = np.linalg.norm(array - expected)
        assert error <= TOLERANCE[float_name] * np.linalg.norm(expected)
        assert np.linalg.norm(expected - before) > 1e3 * error
    if settings["persistent"]:
        np.testing.assert_array_equal(backend.get_state()["chain"], hidden[-1])
    else:
        assert backend.get_state() == {}


@pytest.mark.parametrize("device", DEVICES)
def test_the_pixel_that_is_flipped_goes_round_all_of_them(device):
    """Over more minibatches than an image has pixels."""
    dataset = make_dataset(n_train=8, shape=(1, 3))
    settings = settings_of("rbm", batch_size=2, n_hidden=2, gibbs_steps=1)
    given = random_parameters(dataset, settings, np.float64)
    costs = make_backend(device, dataset, settings, given).train(0, 9)
    np.testing.assert_allclose(costs, follow(dataset, settings, given, 9)[0], rtol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_a_pixel_of_one_half_is_rounded_down(device):
    """As 128 of 256, of which MNIST has some; the next larger one is rounded up."""
    dataset = make_dataset(n_train=4, shape=(1, 4))
    x = np.array([[128, 129, 127, 255]] * 4, np.uint8)
    x.flags.writeable = False
    object.__setattr__(dataset, "train_x", x)
    settings = settings_of("rbm", batch_size=4, n_hidden=3, gibbs_steps=1)
    given = random_parameters(dataset, settings, np.float64, noise=2)
    costs = make_backend(device, dataset, settings, given).train(0, 4)
    np.testing.assert_allclose(costs, follow(dataset, settings, given, 4)[0], rtol=1e-12)


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_training_goes_on_from_parameters_and_state(device, persistent):
    """However calls are cut, in the same object and in a new one; begin starts anew."""
    dataset, settings, given = toy(persistent=persistent)
    whole = make_backend(device, dataset, settings, given)
    costs = whole.train(0, 9)
    cut = make_backend(device, dataset, settings, given)
    cut.begin(None)
    parts = [cut.train(0, 1), cut.train(1, 4)]
    state, parameters = cut.get_state(), cut.get_parameters()
    parts.append(cut.train(4, 9))
    assert bits(np.concatenate(parts), cut.get_parameters(), cut.get_state()) == bits(
        costs, whole.get_parameters(), whole.get_state()
    )
    resumed = make_backend(device, dataset, settings, parameters)
    resumed.begin(None)
    resumed.set_state(state)
    assert bits(resumed.train(4, 9), resumed.get_parameters(), resumed.get_state()) == bits(
        costs[4:], whole.get_parameters(), whole.get_state()
    )
    whole.set_parameters(given)
    whole.begin(None)
    assert bits(whole.train(0, 9)) == bits(costs)


@pytest.mark.parametrize("persistent", [True, False])
def test_the_same_bytes_for_any_number_of_threads_and_in_pieces(persistent, monkeypatch):
    """Of images and of panels there is no multiple of two."""
    dataset = make_dataset(n_train=30, shape=(20, 15))
    changes = {"batch_size": 7, "n_hidden": 2 * PANEL + 3, "persistent": persistent}
    settings = settings_of("rbm", gibbs_steps=4, **changes)
    given = random_parameters(dataset, settings, np.float32)

    def train():
        backend = make_backend("cpu", dataset, settings, given)
        return bits(backend.train(0, 9), backend.get_parameters(), backend.get_state())

    available = numba.config.NUMBA_NUM_THREADS  # two at least, see conftest.py
    with_all = train()
    try:
        for n_threads in (1, available):
            numba.set_num_threads(n_threads)
            assert train() == with_all
    finally:
        numba.set_num_threads(available)
    for n_tasks in (3, 5, 100):  # of more threads than there may be
        with monkeypatch.context() as patch:
            patch.setattr(numba, "get_num_threads", lambda n_tasks=n_tasks: n_tasks)
            assert train() == with_all
    monkeypatch.setattr(cpu_backend, "PIECE_BYTES", 2 * 7 * 300 + 1)
    assert train() == with_all


@pytest.mark.parametrize("chunk_batches", [1, 3, 9])
def test_chunks_give_the_same_bits(chunk_batches):
    """Data larger than a CUDA device: chunks of minibatches instead of resident data."""
    dataset, settings, given = toy(n_steps=1)
    results = []
    for chunks in (None, chunk_batches):
        backend = load_backend("rbm", "cuda")(dataset, given, settings, np.float32, chunks)
        trained = backend.train(0, 1), backend.train(1, 10)
        results.append(bits(*trained, backend.get_parameters(), backend.get_state()))
    assert results[0] == results[1]


@pytest.mark.parametrize("persistent", [True, False])
def test_the_cpu_follows_the_plain_loops(persistent):
    """In float64 at the published sizes, but for fewer steps; the samples are the same ones."""
    dataset = make_dataset(n_train=60, shape=(28, 28), n_classes=10)
    settings = settings_of("rbm", gibbs_steps=3, persistent=persistent)
    given = model.initial_parameters(dataset, settings, np.float64)
    plain, fast = (make_backend(device, dataset, settings, given) for device in PUBLISHED_DEVICES)
    np.testing.assert_allclose(fast.train(0, 6), plain.train(0, 6), rtol=1e-10)
    found, expected = fast.get_parameters(), plain.get_parameters()
    for name, array in expected.items():
        assert np.linalg.norm(found[name] - array) <= 1e-12 * np.linalg.norm(array)
    assert bits(fast.get_state()) == bits(plain.get_state())


@pytest.mark.parametrize("device", DEVICES)
def test_a_state_of_another_run_is_refused(device):
    backend = make_backend(device, *toy())
    chain = backend.get_state()["chain"]
    assert (chain.shape, chain.dtype) == ((6, 7), np.uint8)
    assert not chain.any()
    for state in ({}, {"chain": chain[:5]}, {"chain": chain + 2}, {"chain": chain.astype(float)}):
        with pytest.raises(UserError, match="the state"):
            backend.set_state(state)
    chain[:] = 1
    backend.set_state({"chain": chain})
    chain[:] = 0
    assert backend.get_state()["chain"].all()


@pytest.mark.parametrize("device", DEVICES)
def test_large_weights_do_not_overflow(device):
    """Probabilities are 0 and 1; costs are hundreds."""
    for persistent in (True, False):
        dataset, settings, given = toy(persistent=persistent)
        for array in given.values():
            array *= 1000
        costs = make_backend(device, dataset, settings, given).train(0, 6)
        expected = follow(dataset, settings, given, 6)[0]
        assert min(expected) < -500
        np.testing.assert_allclose(costs, expected, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_images_of_zeros(device):
    """Lists without a pixel; nothing of the minibatch before is left in them."""
    for persistent in (True, False):
        dataset = darkened(make_dataset(12, 3, 3, (3, 4), 3), slice(4, 8))
        settings = settings_of("rbm", batch_size=4, n_hidden=5, persistent=persistent)
        given = random_parameters(dataset, settings, np.float32)
        check_steps(device, dataset, settings, given, "float32", [(0, 5)])


@pytest.mark.parametrize("device", DEVICES)
def test_parameters_are_copied_in_and_out(device):
    dataset, settings, given = toy()
    kept = bits(given)
    for array in given.values():  # as those of a file that is mapped
        array.flags.writeable = False
    backend = make_backend(device, dataset, settings, given)
    first = backend.get_parameters()
    costs = backend.train(0, 4)
    assert bits(given) == bits(first) == kept
    for name, array in backend.get_parameters().items():
        assert (array != given[name]).any(), name
        array[:] = 7  # what was returned is the caller's
    backend.set_parameters(given)
    backend.begin(None)
    assert bits(backend.get_parameters()) == kept
    assert bits(backend.train(0, 4)) == bits(costs)  # nothing of before is left over


def test_padding_learns_nothing():
    for persistent in (True, False):
        dataset, settings, given = toy(persistent=persistent)
        backend = make_backend("cpu", dataset, settings, given)
        backend.train(0, 10)
        n_visible, n_hidden = given["weights"].shape
        layers = (backend.visible, n_visible, n_hidden), (backend.hidden, n_hidden, n_visible)
        for units, n, n_other in layers:
            assert units.stride > n
            assert units.n_rows > n_other
            assert (units.bias[n:] == NEVER).all()
            assert np.count_nonzero(units.weights) == n * n_other
            assert not units.marks.reshape(-1)[: 6 * units.stride].reshape(6, -1)[:, n:].any()
        copy = get_weights(backend.visible, n_hidden)
        assert bits(copy) == bits(np.ascontiguousarray(backend.get_parameters()["weights"].T))


def test_the_published_samples_begin_with_these_images():
    dataset = make_dataset(20, 10, 10000, (28, 28), 10)
    first, *draws = model.sampling(dataset, settings_of("rbm"), 20)
    assert first == 7068
    assert [(one.seed, one.stream) for one in draws] == [(843828734, 4), (843828734, 5)]
    assert [one.size for one in draws] == [10000, 15680]


@pytest.mark.parametrize("float_name", FLOATS)
@pytest.mark.parametrize("n_test", [3, 11])
def test_samples_after_training_follow_the_oracle(float_name, n_test):
    """Of three chains if there are so many images, and of more than there are."""
    dataset = make_dataset(9, 5, n_test, shape=(9, 8))
    settings = settings_of("rbm", n_hidden=PANEL + 3)
    given = random_parameters(dataset, settings, FLOATS[float_name])
    found = sample_chains(given, dataset, settings, n_chains=4, n_rows=3, n_steps=4)
    n_chains = min(4, n_test)
    assert (found.shape, found.dtype) == ((3, n_chains, 72), given["weights"].dtype)
    weights, hidden_bias, visible_bias = (array.astype(float) for array in given.values())
    first, *draws = model.sampling(dataset, settings, n_chains)
    assert first == 0 if n_test == 3 else 0 < first < 8
    v = oracle.pixels(dataset.test_x[first : first + n_chains])
    positions = [new_position(one) for one in draws]
    u = np.empty((n_chains, PANEL + 3)), np.empty((n_chains, 72))
    for row in found:
        for _step in range(4):
            for position, numbers in zip(positions, u, strict=True):
                fill_uniform(position, numbers)
            h = (u[0] < oracle.sigmoid(v @ weights + hidden_bias)).astype(float)
            means = oracle.sigmoid(h @ weights.T + visible_bias)
            v = (u[1] < means).astype(float)
        np.testing.assert_allclose(row, means, rtol=10 * TOLERANCE[float_name])
