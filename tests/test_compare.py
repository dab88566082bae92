"""benchmarks/compare.py: the other libraries train what msgd trains, or nothing is measured.

PyTorch and JAX are tried where they are installed, which CI does not do; NumPy always.
"""

import json
import sys
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import toy
from conftest import ROOT, make_dataset

from msgd.kernels.uniform import fill_uniform, new_position
from msgd.models import UNSUPERVISED, load_model

sys.path.insert(0, str(ROOT / "benchmarks"))
import compare
import competitors_unsupervised as competitors

SIZE, SPAN, SPANS = 10, 3, 4  # of a minibatch, minibatches of a span, spans: of two epochs
ROUNDINGS = {"rtol": 3e-6, "atol": 0}
PACKAGES = {"PyTorch eager": "torch", "torch.compile": "torch", "JAX jit+scan": "jax"}
N_HIDDEN = toy.LAYERS["rbm"]["n_hidden"]
CHAINS = {"persistent": True, "gibbs_steps": 3}, {"persistent": False, "gibbs_steps": 1}
LIBRARIES = ["NumPy", "PyTorch eager", "JAX jit+scan"]


def toy_settings(model, **changes):
    """Return the settings of a toy whose minibatches have SIZE images."""
    key = "batch_size" if model in UNSUPERVISED else "pretraining_batch_size"
    return toy.settings_of(model, **{key: SIZE}, **changes)


def begin(name, model, **changes):
    """Return (msgd, other), competitors at the start of a toy's training, the other of a library.

    Skip the test if the library is not installed.
    """
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    dataset = make_dataset(n_train=SIZE * SPAN * SPANS // 2, shape=toy.SHAPE)
    settings = toy_settings(model, **changes)
    parameters = load_model(model).initial_parameters(dataset, settings, np.float32)
    start = dataset, settings, parameters
    return competitors.make("msgd", *start), competitors.make(name, *start)


@pytest.mark.parametrize(
    ("model", "corruption"), [("da", 0.0), ("da", 0.3), ("sda", [0.0, 0.2]), ("sda", [0.3, 0.2])]
)
@pytest.mark.parametrize("name", LIBRARIES)
def test_an_autoencoder_is_msgds(name, model, corruption):
    ours, other = begin(name, model, corruption=corruption)
    for _ in range(SPANS // 2):  # in the first epoch masks are msgd's
        costs = ours.train(SPAN)
        np.testing.assert_allclose(other.train(SPAN), costs, **ROUNDINGS)
    repeated = other.train(SPAN)
    assert len(repeated) == SPAN
    if corruption in (0, [0, 0.2]):
        np.testing.assert_allclose(repeated, ours.train(SPAN), **ROUNDINGS)


def take_numbers_of_msgd(monkeypatch, name, settings, n_features):
    """Let the random numbers of a library be those of msgd for a machine of ``settings``."""
    draws = load_model("rbm").gibbs_draws(n_features, settings)
    of_hidden = draws.hidden if settings["persistent"] else draws.positive  # of CD-1
    positions = {n_features: new_position(draws.visible), N_HIDDEN: new_position(of_hidden)}

    def uniform(shape):
        numbers = np.empty(shape, np.float32)
        fill_uniform(positions[shape[1]], numbers)
        return numbers

    if name == "NumPy":
        random = SimpleNamespace(random=lambda shape, _: uniform(shape))
        monkeypatch.setattr(np.random, "default_rng", lambda _: random)
    elif name == "PyTorch eager":
        import torch

        def numbers(like):
            return torch.from_numpy(uniform(like.shape))

        monkeypatch.setattr(torch, "rand_like", numbers)
    else:
        import jax
        from jax.experimental import io_callback

        def numbers(_, shape):
            result = jax.ShapeDtypeStruct(shape, np.float32)
            return io_callback(lambda: uniform(shape), result, ordered=True)

        monkeypatch.setattr(jax.random, "uniform", numbers)


@pytest.mark.parametrize("model", ["rbm", "dbn"])
@pytest.mark.parametrize("chains", CHAINS, ids=["PCD-3", "CD-1"])
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_machine_with_the_numbers_of_msgd_is_msgds(name, chains, model, monkeypatch):
    ours, other = begin(name, model, **chains)
    settings = toy_settings(model, **chains)
    if model == "dbn":
        settings = load_model("dbn").layer_settings(settings, 1)
    take_numbers_of_msgd(monkeypatch, name, settings, toy.SHAPE[0] * toy.SHAPE[1])
    for _ in range(SPANS):
        np.testing.assert_allclose(other.train(SPAN), ours.train(SPAN), rtol=1e-4)


@pytest.mark.parametrize("chains", CHAINS, ids=["PCD-3", "CD-1"])
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_machine_with_its_own_samples_learns_as_msgd(name, chains):
    ours, other = begin(name, "rbm", **chains)
    n = SPAN * SPANS // 2
    costs, others = (np.array([one.train(n) for _ in range(30)]) for one in (ours, other))
    if chains["persistent"]:
        np.testing.assert_allclose(others[0, 0], costs[0, 0], rtol=1e-5)
    assert costs[0].mean() < costs[-10:].mean() - 1  # it has learnt something
    np.testing.assert_allclose(others[-10:].mean(), costs[-10:].mean(), rtol=0.05)


def plan(**changes):
    """Return a plan of spans of four minibatches, of which two are to have the costs of msgd."""
    found = compare.Spans(4, first=1, turn=2, equal=2, mean=0.1, target=3)
    return found._replace(**changes)


def test_costs_that_are_not_msgds_are_found():
    costs = [[100.0, 50.0, 40.0, 30.0]]
    assert plan().check(costs, costs) == {"first_costs": costs[0][:3], "first_mean_cost": 55}
    plan().check([[100.005, 50.0, 45.0, 35.0]], costs)
    for wrong in ([[100.02, 50, 40, 30]], [[100, 50, 40, 60]], [[100, 50, 40, np.nan]]):
        with pytest.raises(ValueError, match="from msgd's"):
            plan().check(wrong, costs)
    plan(equal=0).check([[101.0, 50.0, 40.0, 30.0]], costs)


def test_errors_that_are_not_msgds_are_found():
    epochs = compare.Epochs(first=2, turn=1, examples=3)
    assert epochs.check([900, 803], [900, 800]) == {"first_errors": [900, 803]}
    with pytest.raises(ValueError, match="4 validation examples"):
        epochs.check([900, 804], [900, 800])


SECONDS = {"msgd": 0.5, "NumPy": 8.0, "PyTorch eager": 2.0, "JAX jit+scan": 1.0}


class Pretended:
    """A library's process that takes SECONDS for a span and has one cost."""

    costs = MappingProxyType({})  # where it is not 90

    def __init__(self, name, model):
        self.name = name

    def train(self, n):
        if self.name not in SECONDS:
            raise RuntimeError("it is not installed")
        cost = self.costs.get(self.name, 90.0)
        return {"seconds": [SECONDS[self.name]] * n, "found": [[cost] * 4] * n}

    def close(self):
        pass


@pytest.fixture
def pretended(monkeypatch):
    """Let all processes be Pretended, and ``da`` have the plan of this file."""
    monkeypatch.setattr(compare, "Library", Pretended)
    monkeypatch.setattr(compare, "UNSUPERVISED", {"da": plan()})


@pytest.mark.usefixtures("pretended")
def test_minibatches_are_counted_and_the_ratio_is_told(monkeypatch, tmp_path):
    results = {"unit": "minibatches", "models": {"da": compare.measure("da", 3)}}
    runs = results["models"]["da"]
    assert [*runs] == ["msgd", "NumPy", "PyTorch eager", "JAX jit+scan"]
    assert runs["msgd"]["minibatches_per_second"] == [8.0, 8.0, 8.0]
    compare.summarise(results)
    assert runs["msgd"]["best_competitor"] == "JAX jit+scan"
    assert (runs["msgd"]["ratio_to_best"], runs["msgd"]["is_reached"]) == (2.0, False)
    assert compare.outcome(runs["msgd"]).endswith("3 x was aimed at and is not reached")
    monkeypatch.setitem(compare.UNSUPERVISED, "da", plan(target=2))
    compare.summarise(results)
    assert compare.outcome(runs["msgd"]).endswith("2 x was aimed at and is reached")

    table = refreshed_table(results, monkeypatch, tmp_path)
    assert table[0][0] == "minibatches/s"
    assert table[0][-2:] == ["msgd / best other", "aimed at"]
    assert table[2] == [
        *("da", "8 (8–8)", "0.5 (0.5–0.5)", "2 (2–2)", "4 (4–4)"),
        *("2.00 (JAX jit+scan)", "2, reached"),
    ]


def refreshed_table(results, monkeypatch, folder):
    """Return the cells of the table that docs/refresh.py makes of ``results``."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import refresh

    monkeypatch.setattr(refresh, "MEASURED", folder)
    assert refresh.comparison_without_labels() == "Nothing has been measured yet.\n"
    more = {
        "versions": {"msgd": "1"},
        "hardware": {"processor": "a made-up one", "cores": 2},
        "code": {"commit": None},
    }
    (folder / "compare_unsupervised.json").write_text(json.dumps({**results, **more}))
    text = refresh.comparison_without_labels()
    picture = text.splitlines()[-1]
    assert picture.endswith("(images/compare_unsupervised.png)")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.usefixtures("pretended")
def test_a_library_that_trains_something_else_is_not_measured(monkeypatch):
    monkeypatch.setattr(Pretended, "costs", {"JAX jit+scan": 91.0})
    with pytest.raises(SystemExit, match=r"da, JAX jit\+scan: first costs 0.01 from msgd's"):
        compare.measure("da", 3)


@pytest.mark.parametrize("model", compare.UNSUPERVISED)
def test_spans_divide_an_epoch_of_mnist(model):
    spans = compare.UNSUPERVISED[model]
    settings = toy.published_settings(model)
    size = settings["batch_size" if model in UNSUPERVISED else "pretraining_batch_size"]
    assert 50_000 // size % spans.size == 0
    assert spans.equal <= spans.first * spans.size
