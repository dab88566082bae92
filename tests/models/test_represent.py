"""What finished layers make of the training images."""

import itertools

import numba
import numpy as np
import oracle
import pytest
from conftest import make_dataset

from msgd.models.represent import TOGETHER, represent
from msgd.models.sda import reference

# Of sums of a few hundred products.
TOLERANCE = {"float32": 2e-6, "float64": 1e-14}


def layers_of(sizes, float_x):
    random = np.random.RandomState(3)
    return [
        (random.normal(0, 0.3, size).astype(float_x), random.normal(size=size[1]).astype(float_x))
        for size in itertools.pairwise(sizes)
    ]


@pytest.mark.parametrize("how", [represent, reference.represent])
@pytest.mark.parametrize(("float_name", "pixels"), [("float32", "uint8"), ("float64", "float64")])
@pytest.mark.parametrize("n_units", [(1,), (16, 17), (70, 3, 33)])
def test_it_is_what_the_oracle_has(how, float_name, pixels, n_units):
    """Of more images than are taken together, and of units that fill no vector."""
    float_x = np.dtype(float_name).type
    dataset = make_dataset(TOGETHER + 3, 3, 3, (9, 11), 3, pixels)
    layers = layers_of((99, *n_units), float_x)
    expected = oracle.pixels(dataset.train_x)
    for weights, bias in layers:
        expected = oracle.sigmoid(expected @ weights.astype(float) + bias)
    found = how(dataset, layers, float_x)
    assert (found.shape, found.dtype) == ((TOGETHER + 3, n_units[-1]), float_name)
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[float_name])


def test_the_same_bytes_for_any_number_of_threads():
    dataset = make_dataset(TOGETHER + 40, 3, 3, (20, 15), 3)
    layers = layers_of((300, 130, 70), np.float32)
    available = numba.config.NUMBA_NUM_THREADS  # two at least, see conftest.py
    found = []
    try:
        for n_threads in (1, available):
            numba.set_num_threads(n_threads)
            found.append(represent(dataset, layers, np.float32).tobytes())
    finally:
        numba.set_num_threads(available)
    assert found[0] == found[1]
