"""Every model room has the same three doors, and its twins the same public names and signatures."""

import importlib
import inspect

import pytest
import toy
from contract import Contract, SgdContract

from msgd.models import (
    CLASSIFIERS,
    MODELS,
    STACKS,
    interface,
    load_backend,
    load_model,
    load_trainer,
)


def public_methods(backend):
    return {
        name: list(inspect.signature(method).parameters)
        for name, method in inspect.getmembers(backend, inspect.isfunction)
        if not name.startswith("_") or name == "__init__"
    }


@pytest.mark.parametrize(("name", "device"), toy.BACKENDS)
def test_a_backend_offers_what_the_interface_says(name, device):
    expected = public_methods(interface.Classifier if name in CLASSIFIERS else interface.Backend)
    assert len(expected) == (9 if name in CLASSIFIERS else 7)
    found = public_methods(load_backend(name, device))
    assert {method: found.pop(method) for method in expected} == expected
    # What CpuBackend and CudaBackend ask of a room beside the interface. Compiled functions, which
    # ReferenceBackend asks for, are not among the methods.
    hooks = {
        "cpu": {"train_span"},
        "cuda": {"launch_train"},
        "reference": {"build_network", "minibatch"},
    }
    if name in CLASSIFIERS:
        hooks["cpu"] |= {"predict_rows"}
        hooks["cuda"] |= {"launch_logits"}
    if name in STACKS:  # made of other models' backends
        hooks = {key: {"represent"} for key in hooks}
    full = {"cost_and_gradient"} if MODELS[name] == "conjugate_gradient" else set()
    shared = {"allocate", "keep_parameters", "fetch_parameters", "keep_chain", "fetch_chain"}
    told = {"describe_epoch"} if name == "ca" else set()
    assert set(found) - shared == hooks[device] | full | told


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_keeps_the_contract(name):
    """Its own file takes in the tests of contract.py, with an adapter."""
    tests = importlib.import_module(f"test_{name}").TestContract
    assert issubclass(tests, SgdContract if MODELS[name] == "loop" else Contract)
    assert tests.adapter.name == name


@pytest.mark.parametrize("name", MODELS)
def test_a_model_room_offers_its_functions(name):
    model = load_model(name)
    predicting = ("probabilities",) if name in CLASSIFIERS else ()
    for function in ("initial_parameters", "weight_images", *predicting):
        assert inspect.getdoc(getattr(model, function))
    assert "Source:" in model.__doc__
    assert "Deviations" in model.__doc__


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_trainer(name):
    assert list(inspect.signature(load_trainer(name)).parameters) == [
        "backend",
        "dataset",
        "settings",
        "checkpoint",
    ]
