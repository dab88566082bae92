"""What Numba does with NamedTuples in parallel loops: the rules in kernels/options.py hold.

Where Numba changes what it does, a test says which rule can go.
"""

from typing import NamedTuple

import numpy as np
import pytest
from numba import njit, prange
from numba.core.errors import UnsupportedParforsError


class Layer(NamedTuple):
    weights: np.ndarray
    step: float


class Network(NamedTuple):
    layer: Layer
    n: int


def layer():
    return Layer(np.zeros(8), 2.0)


@njit
def write(layer, i):
    layer.weights[i] += layer.step


@njit(parallel=True)
def write_in_a_called_function(layer):
    for i in prange(layer.weights.shape[0]):
        write(layer, i)


@njit(parallel=True)
def write_to_an_array_taken_out_before(layer):
    weights = layer.weights
    for i in prange(weights.shape[0]):
        weights[i] += layer.step


@pytest.mark.parametrize("run", [write_in_a_called_function, write_to_an_array_taken_out_before])
def test_a_tuple_goes_into_a_parallel_loop_and_writes_to_its_arrays_are_kept(run):
    given = layer()
    run(given)
    np.testing.assert_array_equal(given.weights, 2.0)


@njit(parallel=True)
def write_in_the_body(layer):
    for i in prange(layer.weights.shape[0]):
        layer.weights[i] += layer.step


@njit(parallel=True)
def write_to_an_array_taken_out_in_the_body(layer):
    for i in prange(layer.weights.shape[0]):
        weights = layer.weights
        weights[i] += layer.step


@pytest.mark.parametrize("run", [write_in_the_body, write_to_an_array_taken_out_in_the_body])
def test_a_write_to_a_field_in_the_body_of_a_parallel_loop_is_dropped(run):
    given = layer()
    run(given)
    message = "Numba keeps such writes now: take the rule about them out of kernels/options.py"
    assert not given.weights.any(), message


@njit(parallel=True)
def use_a_tuple_in_a_tuple(network):
    for i in prange(network.n):
        write(network.layer, i)


@njit(parallel=True)
def use_a_tuple_taken_out_before(network):
    layer = network.layer
    for i in prange(network.n):
        write(layer, i)


@njit(parallel=True)
def use_a_tuple_of_a_plain_tuple(layers):
    for i in prange(layers[0].weights.shape[0]):
        write(layers[0], i)


NESTED = "Numba unpacks nested tuples now: take the rule about them out of kernels/options.py"


@pytest.mark.parametrize(
    ("run", "pack"),
    [
        (use_a_tuple_in_a_tuple, lambda one: Network(one, 8)),
        (use_a_tuple_taken_out_before, lambda one: Network(one, 8)),
        (use_a_tuple_of_a_plain_tuple, lambda one: (one, one)),
    ],
)
def test_a_tuple_of_tuples_cannot_be_used_in_a_parallel_loop(run, pack):
    """Not even if the inner one is taken out before the loop; the errors say nothing of that."""
    try:
        run(pack(layer()))
    except (TypeError, AttributeError):
        return
    pytest.fail(NESTED)


@njit
def use_each_in_a_parallel_function(network, layers):
    write_in_a_called_function(network.layer)
    for one in layers:
        write_in_a_called_function(one)


def test_a_tuple_of_tuples_is_taken_apart_by_the_call_of_a_parallel_function():
    given = layer(), layer()
    use_each_in_a_parallel_function(Network(given[0], 8), given)
    np.testing.assert_array_equal(given[0].weights, 4.0)
    np.testing.assert_array_equal(given[1].weights, 2.0)


def with_fields(n):
    """Return a NamedTuple of ``n`` fields: an array and numbers."""
    kind = NamedTuple(f"Of{n}", [("weights", np.ndarray), *((f"f{i}", int) for i in range(1, n))])
    return kind(np.zeros(8), *range(1, n))


@njit
def write_one(fields, i):
    fields.weights[i] = fields.f1


@njit(parallel=True)
def write_ones(fields):
    for i in prange(fields.weights.shape[0]):
        write_one(fields, i)


def test_a_tuple_has_at_most_a_hundred_fields():
    given = with_fields(100)
    write_ones(given)
    np.testing.assert_array_equal(given.weights, 1)
    with pytest.raises(UnsupportedParforsError, match="length 101 in a parallel region exceeds"):
        write_ones(with_fields(101))


@njit
def write_index(i, out):
    out[i] = i


@njit
def write_signed_index(i, out):
    out[i] = i


@njit(parallel=True)
def write_indices(out):
    for i in prange(out.shape[0]):
        write_index(i, out)
        write_signed_index(np.int64(i), out)


def test_functions_get_an_unsigned_index_and_are_compiled_twice_unless_it_is_converted():
    write_indices(np.zeros(8))
    signed, both = write_signed_index.signatures, write_index.signatures
    assert [str(kinds[0]) for kinds in signed] == ["int64"]
    message = "the rule about np.int64(index) can go from kernels/options.py"
    assert sorted(str(kinds[0]) for kinds in both) == ["int64", "uint64"], message
