"""The CUDA kernels compiled for a real H100, without one: what the simulator cannot see.

MSGD_REQUIRE_COMPILE_GATE=1 turns the skip, where the compiler's wheels are missing, into a failure.
"""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from compiler_wheels import require_compiler

from msgd.models import MODELS

FLOAT64 = re.compile(r"^(D(ADD|MUL|FMA|SETP|MNMX)|.*\.F64)")
GRID_SYNC_KERNELS = {"_train", "_add_gradients", "_train_fast"}
GRID_SYNC_FRAME = 16  # bytes
LOCAL_MEMORY = re.compile(r"^(STL|LDL)")
TENSOR = re.compile(r"^HMMA\.1688\.F32\.TF32")
MOST_SHARED = (48 + 1) * 1024  # bytes of a block; one KiB of them is the driver's
# The largest sizes that fast kernels serve.
LARGEST = {"logistic_regression": ("side=32", "n_classes=16", "batch_size=1200")}
# How many instructions that move 16 bytes the design of fast kernels has at least.
WIDE = {
    # A thread's weights of ten classes, and their gradients.
    ("logistic_regression", "_train_fast"): {"LDG.E.128": 10, "STG.E.128": 10},
    ("logistic_regression", "_logits_fast"): {"LDG.E.128": 10},
    # The errors of a block's four units, of twenty images.
    ("mlp", "_train_fast"): {"LDS.128": 20},
}


@pytest.fixture(scope="module", params=MODELS)
def compiled(request):
    return compile_offline(request.param)


@functools.cache
def compile_offline(*words):
    """Return what offline_compiler.py prints for its ``words``; skip the test if it cannot run."""
    require_compiler()
    program = Path(__file__).with_name("offline_compiler.py")
    result = subprocess.run(
        [sys.executable, program, *map(str, words)],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def _count(kernel, pattern):
    return sum(n for opcode, n in kernel["instructions"].items() if pattern.match(opcode))


def test_every_kernel_is_compiled_in_both_float_types(compiled):
    kernels = {(k["kernel"], k["floatX"]) for k in compiled if not k["is_fast"]}
    names = {name for name, _ in kernels}
    assert "_train" in names
    assert kernels == {(name, float_x) for name in names for float_x in ("float32", "float64")}
    assert {k["floatX"] for k in compiled if k["is_fast"]} <= {"float32"}


def test_no_float64_instruction_in_a_float32_kernel(compiled):
    found = {k["kernel"]: _count(k, FLOAT64) for k in compiled if k["floatX"] == "float32"}
    assert found == dict.fromkeys(found, 0)


def test_the_gate_sees_float64_where_it_is(compiled):
    (train,) = (k for k in compiled if (k["kernel"], k["floatX"]) == ("_train", "float64"))
    assert _count(train, FLOAT64) > 0


def test_no_local_memory(compiled):
    found = {(k["kernel"], k["floatX"]): _count(k, LOCAL_MEMORY) for k in compiled}
    assert found == dict.fromkeys(found, 0)


def test_no_stack_but_the_frame_of_a_grid_sync(compiled):
    """Calls into the CUDA runtime to wait for the grid reserve a frame; no instruction uses it."""
    for kernel in compiled:
        syncs_grid = kernel["kernel"] in GRID_SYNC_KERNELS
        assert kernel["stack"] <= (GRID_SYNC_FRAME if syncs_grid else 0), kernel["kernel"]


def test_registers_leave_room_for_resident_blocks(compiled):
    for kernel in compiled:
        assert 0 < kernel["registers"] <= kernel["most_registers"], kernel["kernel"]


def test_shared_memory_is_what_a_block_may_have_without_asking(compiled):
    for kernel in compiled:
        assert kernel["shared"] <= MOST_SHARED, kernel["kernel"]


@pytest.mark.parametrize("model", sorted({model for model, _ in WIDE}))
def test_fast_kernels_move_four_numbers_at_a_time_where_their_design_says_so(model):
    fast = {kernel["kernel"]: kernel for kernel in compile_offline(model) if kernel["is_fast"]}
    for (of_model, name), wide in WIDE.items():
        if of_model == model:
            for opcode, least in wide.items():
                assert fast[name]["instructions"].get(opcode, 0) >= least, (name, opcode)


@pytest.mark.parametrize("model", LARGEST)
def test_the_largest_sizes_of_fast_kernels_fit_the_registers(model):
    fast = [k for k in compile_offline(model, *LARGEST[model]) if k["is_fast"]]
    assert {kernel["floatX"] for kernel in fast} == {"float32"}
    for kernel in fast:
        assert _count(kernel, LOCAL_MEMORY) == 0
        assert kernel["stack"] <= (GRID_SYNC_FRAME if kernel["kernel"] in GRID_SYNC_KERNELS else 0)
        assert kernel["registers"] <= kernel["most_registers"]


def test_tensor_cores_multiply_where_arithmetic_is_tf32():
    """Each loop's body is there once: conv. 2, three products, filters 2, and errors in two parts.

    Of the errors' weights four of the five rows of a filter are read, a word each, in either part.
    """
    fast = [k for k in compile_offline("lenet", "arithmetic=tf32") if k["is_fast"]]
    trains = {kernel["kernel"]: _count(kernel, TENSOR) for kernel in fast}
    assert trains.pop("_train_fast") >= 8 + 3 * 8 + 28 + 2 * 20
    assert set(trains.values()) == {0}  # predictions are in float32
    for kernel in fast:
        assert _count(kernel, LOCAL_MEMORY) == 0, kernel["kernel"]
        assert _count(kernel, FLOAT64) == 0, kernel["kernel"]
        assert kernel["registers"] <= kernel["most_registers"], kernel["kernel"]
        assert kernel["shared"] <= MOST_SHARED, kernel["kernel"]
    (train,) = (kernel for kernel in fast if kernel["kernel"] == "_train_fast")
    assert train["instructions"].get("LDG.E.128", 0) >= 2 * 4
