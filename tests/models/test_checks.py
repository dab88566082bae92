"""No kernel is called with arrays of other sizes than it was made for, whoever calls."""

import dataclasses

import numpy as np
import pytest
import toy
from conftest import make_dataset

from msgd.errors import UserError
from msgd.models import CLASSIFIERS, DEVICES, load_backend, load_model

SHAPE = (12, 12)


def made(name):
    """Return (dataset, settings, parameters) that fit each other."""
    dataset = make_dataset(shape=SHAPE)
    settings = toy.settings_of(name, batch_size=10)
    return dataset, settings, load_model(name).initial_parameters(dataset, settings, np.float32)


def without_last(parameters):
    return dict([*parameters.items()][:-1])


def changed(change):
    """Return a function that changes the last of the arrays of two dimensions: the last weights."""

    def of(parameters):
        *_, name = (name for name, array in parameters.items() if array.ndim == 2)
        return {**parameters, name: change(parameters[name])}

    return of


WRONG = {
    "one is missing": without_last,
    "one too many": lambda p: {**p, "more": np.zeros(3, np.float32)},
    "none": lambda _: {},
    "another order": lambda p: dict([*p.items()][::-1]),
    "doubles": changed(lambda a: a.astype(np.float64)),
    "swapped bytes": changed(lambda a: a.astype(">f4")),
    "more units": changed(lambda a: np.vstack([a, a])),
    "fewer units": changed(lambda a: a[:-1]),
    "fewer classes": changed(lambda a: a[:, :-1]),
    "flat": changed(np.ravel),
    "transposed": changed(lambda a: a.T),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize(("name", "device"), toy.BACKENDS)
def test_parameters_that_are_not_the_models(name, device, case):
    """Neither at the start nor later, as those of a state or of a run would come."""
    dataset, settings, parameters = made(name)
    wrong = WRONG[case](parameters)
    with pytest.raises(UserError, match=r"does not fit the model: (it holds|weights\w* is)"):
        load_backend(name, device)(dataset, wrong, settings, np.float32)
    backend = load_backend(name, device)(dataset, parameters, settings, np.float32)
    with pytest.raises(UserError, match="does not fit the model"):
        backend.set_parameters(wrong)
    for array, kept in zip(backend.get_parameters().values(), parameters.values(), strict=True):
        np.testing.assert_array_equal(array, kept)


@pytest.mark.parametrize(("name", "device"), toy.BACKENDS)
def test_settings_that_do_not_fit_the_data(name, device):
    dataset, settings, parameters = made(name)
    for changes, message in (
        ({"batch_size": 41}, "batch_size is 41; allowed: 1 to 40"),
        ({"batch_size": 0}, "batch_size is 0; allowed: 1 to 40"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"batch_size": "all"}, "batch_size is all"),
    ):
        with pytest.raises(UserError, match=message):
            load_backend(name, device)(dataset, parameters, {**settings, **changes}, np.float32)
    for chunk_batches in (0, -1, 1.5, "2", True):
        with pytest.raises(UserError, match=f"device_chunk_batches is {chunk_batches!r}; allowed"):
            load_backend(name, device)(dataset, parameters, settings, np.float32, chunk_batches)
    floats = make_dataset(shape=SHAPE, pixels="float64")
    with pytest.raises(UserError, match="holds pixels of float64, but floatX is float32"):
        load_backend(name, device)(floats, parameters, settings, np.float32)


@pytest.mark.parametrize(
    ("name", "changes", "device"),
    [
        (name, changes, device)
        for name, changes in (
            ("mlp", {"n_hidden": [5]}),
            ("mlp", {"n_hidden": [5, 4, 3]}),
            ("lenet", {"nkerns": [3]}),
        )
        for device in DEVICES
    ],
)
def test_parameters_of_other_settings(device, name, changes):
    dataset, settings, parameters = made(name)
    with pytest.raises(UserError, match="does not fit the model"):
        load_backend(name, device)(dataset, parameters, {**settings, **changes}, np.float32)


@pytest.mark.parametrize("device", DEVICES)
def test_filters_larger_than_the_image(device):
    dataset, settings, parameters = made("lenet")
    with pytest.raises(UserError, match="filter_size is 13; allowed: at most 12"):
        load_backend("lenet", device)(
            dataset, parameters, {**settings, "filter_size": 13}, np.float32
        )


@pytest.mark.parametrize("other", [{"shape": (9, 12)}, {"shape": (12, 15)}, {"n_classes": 4}])
@pytest.mark.parametrize(("name", "device"), toy.BACKENDS)
def test_parameters_of_other_data(name, other, device):
    if name not in CLASSIFIERS and "n_classes" in other:
        pytest.skip("how many classes there are is nothing to a model without labels")
    _, settings, parameters = made(name)
    dataset = make_dataset(**{"shape": SHAPE, **other})
    with pytest.raises(UserError, match="does not fit the model"):
        load_backend(name, device)(dataset, parameters, settings, np.float32)


WRONG_DATA = {
    "n_classes": (2, "labels 0 to 2 in train_y, and 2 classes"),
    "image_shape": ((6, 7), r"train_x of \(40, 36\) uint8; expected: \(40, 42\)"),
    "train_y": (np.zeros(39, np.int32), r"train_x of \(40, 36\) uint8; expected: \(39, 36\)"),
    "test_y": (np.full(20, -1, np.int32), "labels -1 to -1 in test_y"),
    "valid_y": (np.zeros(20, np.int64), r"valid_y of \(20,\) int64; expected: \(20,\) int32"),
    "train_x": (np.zeros((36, 40), np.uint8).T, "train_x that is not in C order"),
    "valid_x": (np.zeros((20, 36), np.float32), r"valid_x of \(20, 36\) float32"),
    "test_x": (np.zeros((0, 36), np.uint8), r"test_x of \(0, 36\) uint8"),
}


@pytest.mark.parametrize("name", WRONG_DATA)
def test_arrays_that_do_not_fit_each_other_are_no_data_set(name):
    value, message = WRONG_DATA[name]
    with pytest.raises(UserError, match=f"the data set has .*{message}"):
        dataclasses.replace(make_dataset(shape=(6, 6)), **{name: value})
