"""The layer over Numba's simulator: what it adds, what it refuses, and that it changes no bits."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simulator
import toy
from conftest import make_dataset
from numba import cuda, float32, int32
from simulator import SimulatorError

from msgd.kernels import cuda as kernels
from msgd.models import CLASSIFIERS, MODELS

pytestmark = pytest.mark.skipif(
    not simulator.is_installed(), reason="the layer over the simulator is not in use"
)

ORDERS = ["forward", "reverse", "1", "2"]
EVERY_LANE = 0xFFFFFFFF


@pytest.fixture(params=ORDERS)
def order(request, monkeypatch):
    monkeypatch.setenv("MSGD_SIMULATOR_ORDER", request.param)


def line_of(function, text):
    """Return "file:line" of the first line of ``function`` that holds ``text``."""
    code = function.py_func.__code__
    lines = Path(code.co_filename).read_text().splitlines()[code.co_firstlineno :]
    (offset, *_) = (n for n, line in enumerate(lines) if text in line)
    return f"{code.co_filename}:{code.co_firstlineno + 1 + offset}"


# Order and barriers.


@cuda.jit
def queue(count, places):
    places[cuda.atomic.add(count, 0, 1)] = cuda.grid(1)
    cuda.syncthreads()
    places[cuda.atomic.add(count, 0, 1)] = cuda.grid(1)


def test_threads_run_in_the_order_asked_for(monkeypatch):
    """In the fixed orders a block runs to its end before another begins."""
    places = {}
    for order in [*ORDERS, "1"]:
        monkeypatch.setenv("MSGD_SIMULATOR_ORDER", order)
        found = np.full(24, -1, np.int32)
        queue[3, 4](np.zeros(1, np.int32), found)
        np.testing.assert_array_equal(np.sort(found), np.repeat(np.arange(12), 2))
        assert places.setdefault(order, found.tolist()) == found.tolist()
    blocks = np.repeat(np.arange(12).reshape(3, 1, 4), 2, axis=1)
    assert places["forward"] == blocks.ravel().tolist()
    assert places["reverse"] == blocks.ravel()[::-1].tolist()
    assert len({tuple(found) for found in places.values()}) == len(ORDERS)


def test_an_unknown_order_is_an_error(monkeypatch):
    monkeypatch.setenv("MSGD_SIMULATOR_ORDER", "backward")
    with pytest.raises(ValueError, match="is 'backward'; allowed: forward, reverse, a number"):
        queue[1, 1](np.zeros(1, np.int32), np.zeros(2, np.int32))


def make_exchange(barrier):
    """Return a kernel whose threads write, wait at ``barrier``, and read what a partner wrote."""

    @cuda.jit
    def exchange(values, distance, received):
        i = cuda.grid(1)
        values[i] = i
        if barrier == "warp":
            cuda.syncwarp()
        elif barrier == "block":
            cuda.syncthreads()
        elif barrier == "grid":
            cuda.cg.this_grid().sync()
        received[i] = values[i ^ distance]

    return exchange


@pytest.mark.parametrize("barrier", ["none", "warp", "block", "grid"])
@pytest.mark.parametrize(("reach", "distance"), [("warp", 1), ("block", 32), ("grid", 64)])
def test_a_barrier_that_does_not_reach_the_partner_shows(monkeypatch, barrier, reach, distance):
    expected = np.arange(128) ^ distance
    is_right = {}
    for order in ORDERS:
        monkeypatch.setenv("MSGD_SIMULATOR_ORDER", order)
        received = cuda.device_array(128, np.float32)
        make_exchange(barrier)[2, 64](cuda.device_array(128, np.float32), distance, received)
        is_right[order] = np.array_equal(received.copy_to_host(), expected)
    scopes = ["none", "warp", "block", "grid"]
    reaches = scopes.index(barrier) >= scopes.index(reach)
    assert is_right["forward"] == is_right["reverse"] == reaches
    assert all(is_right.values()) == reaches


@cuda.jit
def running_sums(values):
    """Each thread adds the sum of all earlier values, every round anew."""
    i = cuda.grid(1)
    grid = cuda.cg.this_grid()
    for _ in range(3):
        total = float32(0)
        for k in range(i + 1):
            total += values[k]
        grid.sync()
        values[i] = total
        grid.sync()


def test_the_grid_waits_again_and_again_for_all_blocks(order):
    values = np.ones(24, np.float32)
    running_sums[4, 6](values)
    expected = np.ones(24)
    for _ in range(3):
        expected = np.cumsum(expected)
    np.testing.assert_array_equal(values, expected)


@cuda.jit
def counts(found):
    i = cuda.threadIdx.x
    found[0, i] = cuda.syncthreads_count(i % 3 == 0)
    found[1, i] = cuda.syncthreads_and(i < 40)
    found[2, i] = cuda.syncthreads_and(i < 39)
    found[3, i] = cuda.syncthreads_or(i == 39)
    found[4, i] = cuda.syncthreads_or(i == 40)


def test_a_block_counts(order):
    found = np.full((5, 40), -1, np.int32)
    counts[1, 40](found)
    np.testing.assert_array_equal(found, np.repeat([[14], [1], [0], [1], [0]], 40, axis=1))


@cuda.jit
def return_early(values, received):
    i = cuda.threadIdx.x
    if i < 8:
        return
    values[i] = i
    cuda.syncthreads()
    received[i] = values[24 - i]


def test_a_block_does_not_wait_for_threads_that_have_returned(order):
    received = np.zeros(17, np.float32)
    return_early[1, 17](np.zeros(17, np.float32), received)
    np.testing.assert_array_equal(received, [0] * 8 + list(range(16, 7, -1)))


@cuda.jit
def wait_apart():
    if cuda.threadIdx.x < 5:
        cuda.syncthreads()
    else:
        cuda.syncthreads()  # the other place


def test_threads_that_wait_apart_are_reported_with_their_lines(order):
    with pytest.raises(SimulatorError) as error:
        wait_apart[1, 12]()
    message = str(error.value)
    here, there = line_of(wait_apart, "syncthreads()"), line_of(wait_apart, "the other place")
    assert f"5 wait in syncthreads, {here}: thread (" in message
    assert f"7 wait in syncthreads, {there}: thread (" in message
    assert "0 have returned" in message


@cuda.jit
def leave_the_grid():
    if cuda.blockIdx.x < 2:
        cuda.cg.this_grid().sync()


def test_the_grid_misses_threads_that_have_returned(order):
    with pytest.raises(SimulatorError) as error:
        leave_the_grid[3, 4]()
    assert f"8 wait in grid.sync, {line_of(leave_the_grid, 'sync()')}" in str(error.value)
    assert "4 have returned" in str(error.value)


def test_an_error_names_its_thread_and_ends_the_others(monkeypatch):
    monkeypatch.setenv("MSGD_SIMULATOR_ORDER", "forward")
    ended = []

    @cuda.jit
    def write_beyond(values):
        try:
            values[cuda.threadIdx.x] = 1
            cuda.syncthreads()
        finally:
            ended.append(cuda.threadIdx.x)

    with pytest.raises(IndexError) as error:
        write_beyond[1, 5](np.zeros(3))
    assert error.value.__notes__ == ["in thread (3, 0, 0) of block (0, 0, 0)"]
    assert ended == [3, 0, 1, 2]
    values = np.zeros(5)
    write_beyond[1, 5](values)
    np.testing.assert_array_equal(values, 1)


# Warps.


@cuda.jit
def shuffle(values, found):
    i = cuda.grid(1)
    v = values[i]
    found[0, i] = cuda.shfl_sync(EVERY_LANE, v, 5)
    found[1, i] = cuda.shfl_up_sync(EVERY_LANE, v, 3)
    found[2, i] = cuda.shfl_down_sync(EVERY_LANE, v, 3)
    found[3, i] = cuda.shfl_xor_sync(EVERY_LANE, v, 6)


def test_shuffles(order):
    values = np.random.RandomState(0).normal(size=64).astype(np.float32)
    found = np.zeros((4, 64), np.float32)
    shuffle[1, 64](values, found)
    warps, lanes = values.reshape(2, 32), np.arange(32)
    sources = [lanes * 0 + 5, lanes - 3, lanes + 3, lanes ^ 6]
    for row, source in zip(found, sources, strict=True):
        source = np.where((source < 0) | (source > 31), lanes, source)
        np.testing.assert_array_equal(row.reshape(2, 32), warps[:, source])


def test_a_shuffle_from_an_absent_lane_is_garbage(order):
    found = np.zeros((4, 8), np.float32)
    shuffle[1, 8](np.arange(8, dtype=np.float32), found)
    np.testing.assert_array_equal(found[2], [3, 4, 5, 6, 7, np.nan, np.nan, np.nan])


@cuda.jit
def vote(found):
    lane = cuda.laneid
    half = 0xFFFF if lane < 16 else 0xFFFF0000
    found[0, lane] = cuda.ballot_sync(half, lane % 5 == 0)
    found[1, lane] = cuda.all_sync(half, lane < 17)
    found[2, lane] = cuda.any_sync(half, lane == 20)


def test_halves_of_a_warp_vote(order):
    found = np.full((3, 32), -1, np.int64)
    vote[1, 32](found)
    low, high = 1 << 0 | 1 << 5 | 1 << 10 | 1 << 15, 1 << 20 | 1 << 25 | 1 << 30
    expected = np.array([[low, high], [1, 0], [0, 1]])
    np.testing.assert_array_equal(found, np.repeat(expected, 16, axis=1))


@cuda.jit
def vote_as_a_stranger():
    cuda.any_sync(0b0111, True)


def test_a_lane_outside_its_own_mask_is_an_error():
    with pytest.raises(SimulatorError, match="any_sync by lane 3, which is not in its mask"):
        vote_as_a_stranger[1, 4]()


# Memory and limits.


@cuda.jit
def copy_what_nobody_wrote(floats, integers):
    i = cuda.threadIdx.x
    in_block, by_thread = cuda.shared.array(3, float32), cuda.local.array((2, 2), int32)
    counters, scratch = cuda.shared.array(3, int32), cuda.local.array(2, float32)
    dynamic = cuda.shared.array(0, float32)
    floats[i], floats[i + 1], floats[i + 2] = in_block[i], scratch[i], dynamic[i]
    integers[i], integers[i + 1] = counters[i], by_thread[i, i]


def test_memory_that_nobody_wrote_is_garbage():
    floats, integers = np.zeros(3, np.float32), np.zeros(2, np.int32)
    copy_what_nobody_wrote[1, 1, 0, 16](floats, integers)
    np.testing.assert_array_equal(floats, np.nan)
    np.testing.assert_array_equal(integers, -1)
    for order in "CF":
        array = cuda.device_array((2, 3), np.float64, order=order).copy_to_host()
        np.testing.assert_array_equal(array, np.nan)


@cuda.jit
def two_on_a_line(found):
    i = cuda.threadIdx.x
    a, b = cuda.shared.array(4, float32), cuda.shared.array(4, float32)
    a[i], b[i] = 1, 2
    cuda.syncthreads()
    found[i] = 10 * a[3 - i] + b[3 - i]


def test_shared_arrays_on_one_line_are_two(order):
    found = np.zeros((3, 4), np.float32)
    for row in found:
        two_on_a_line[1, 4](row)
    np.testing.assert_array_equal(found, 12)


def make_hoarder(n_floats):
    @cuda.jit
    def hoarder():
        cuda.shared.array(n_floats, float32)
        cuda.shared.array(4, float32)

    return hoarder


def test_more_shared_memory_than_a_block_has_is_an_error():
    in_full = 48 * 1024 // 4 - 4
    make_hoarder(in_full - 8)[1, 2, 0, 32]()
    with pytest.raises(SimulatorError, match="49156 bytes of shared memory; allowed: 49152"):
        make_hoarder(in_full + 1)[1, 2]()
    hoarder = make_hoarder(in_full)
    with pytest.raises(SimulatorError, match="49160 bytes of shared memory; allowed: 49152"):
        hoarder[1, 2, 0, 8]()
    hoarder[1, 2]()
    with pytest.raises(SimulatorError, match="49153 bytes of shared memory; allowed: 49152"):
        wait_apart[1, 1, 0, 49153]()


@cuda.jit
def number(found, lanes):
    i, j, k = cuda.grid(3)
    found[i, j, k] = i + 100 * j + 10000 * k
    lanes[i, j, k] = cuda.laneid


def test_more_threads_than_a_block_has_are_an_error(order):
    found, lanes = np.zeros((2, 8, 16, 16))
    number[(1, 1, 2), (8, 16, 8)](found, lanes)
    i, j, k = np.indices(found.shape)
    np.testing.assert_array_equal(found, i + 100 * j + 10000 * k)
    np.testing.assert_array_equal(lanes, (i + 8 * j) % 32)
    with pytest.raises(SimulatorError, match="1040 threads per block; allowed: 1024"):
        number[1, (16, 13, 5)](found, lanes)


def test_options_of_the_compiler_are_accepted_and_no_others():
    @cuda.jit(max_registers=64, launch_bounds=(128, 2), lineinfo=True, lto=True, fastmath=False)
    def kernel(found):
        found[0] = double(3) + triple(3)

    @cuda.jit(device=True, forceinline=True)
    def double(value):
        return 2 * value

    @cuda.jit
    def triple(value):
        return 3 * value

    found = np.zeros(1)
    kernel[1, 1](found)
    assert found[0] == 15
    with pytest.raises(TypeError, match="max_register"):
        cuda.jit(max_register=64)


# The models.


# What a model's fast kernels can train: a shape of images and changes of the toy's settings.
FAST = {"mlp": ((6, 6), {**toy.FAST_LAYERS["mlp"], "lp": 0.0})}


def digest_of_steps(name, shape=toy.SHAPE, changes=None, is_fast=False):
    """Return a digest of all that two training steps of a model and any predictions give."""
    dataset = make_dataset(12, 10, 10, shape, 3)
    penalties = {"l1": 0.001, "l2": 0.01, "lp": 0.001} if name in CLASSIFIERS else {}
    settings = {"batch_size": 5, **penalties, **(changes or {})}
    settings = toy.settings_of(name, **settings)
    parameters = toy.random_parameters(dataset, settings, np.float32)
    backend = toy.make_backend("cuda", dataset, settings, parameters)
    assert bool(getattr(backend, "why_plain", "always")) != is_fast
    if MODELS[name] == "conjugate_gradient":
        cost, gradient = backend.cost_and_gradient()
        results = [np.float64(cost), *gradient.values()]
    else:
        results = [backend.train(0, 2), *backend.get_parameters().values()]
    if name in CLASSIFIERS:
        results += [backend.predict("valid"), np.int64(backend.count_errors("valid"))]
    assert all(np.isfinite(array).all() for array in results)
    return hashlib.sha256(b"".join(array.tobytes() for array in results)).hexdigest()


@pytest.fixture(scope="module")
def plain_digests():
    """The digests of all models on Numba's simulator without the layer."""
    program = """
import json
from test_simulator import MODELS, digest_of_steps, simulator
assert not simulator.is_installed()
print(json.dumps({name: digest_of_steps(name) for name in MODELS}))
"""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "MSGD_PLAIN_SIMULATOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(("blocks", "threads"), [(1, (4, 8)), (3, (2, 3))])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_plain_simulators_bits(
    plain_digests, monkeypatch, order, name, blocks, threads
):
    """In any order of threads and on any grid: else threads race."""
    monkeypatch.setattr(kernels, "SIMULATOR_BLOCKS", blocks)
    monkeypatch.setattr(kernels, "SIMULATOR_THREADS", threads)
    assert digest_of_steps(name) == plain_digests[name]


@pytest.mark.skipif(not kernels.HAS_WARPS, reason="the fast kernels need warps")
@pytest.mark.parametrize("name", FAST)
def test_fast_kernels_have_the_same_bits_in_any_order(monkeypatch, name):
    digests = set()
    for order in ORDERS:
        monkeypatch.setenv("MSGD_SIMULATOR_ORDER", order)
        digests.add(digest_of_steps(name, *FAST[name], is_fast=True))
    assert len(digests) == 1
