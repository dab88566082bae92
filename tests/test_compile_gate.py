"""The CUDA kernels compiled for a real H100, without one: what the simulator cannot see.

MSGD_REQUIRE_COMPILE_GATE=1 turns the skip, where the compiler's wheels are missing, into a failure.
"""

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
GRID_SYNC_KERNELS = {"_train", "_train_span", "_add_gradients"}
FAST_KERNELS = {  # of float32 alone, with the least of the 128-bit loads from shared memory
    "mlp": {"_train_span": 20, "_share_logits_of_images": 0, "_sum_costs": 0, "_sum_logits": 0}
}
GRID_SYNC_FRAME = 16  # bytes
MOST_SHARED = (48 + 1) * 1024  # bytes; one KiB of them is the driver's
LOCAL_MEMORY = re.compile(r"^(STL|LDL)")


class Compiled(list):
    """The kernels of a model, as tests/offline_compiler.py describes them."""

    def __init__(self, model, kernels):
        super().__init__(kernels)
        self.fast = FAST_KERNELS.get(model, {})


@pytest.fixture(scope="module", params=MODELS)
def compiled(request):
    require_compiler()
    program = Path(__file__).with_name("offline_compiler.py")
    result = subprocess.run(
        [sys.executable, program, request.param],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return Compiled(request.param, json.loads(result.stdout))


def _count(kernel, pattern):
    return sum(n for opcode, n in kernel["instructions"].items() if pattern.match(opcode))


def test_every_kernel_is_compiled_in_both_float_types(compiled):
    names = {
        float_x: {kernel["kernel"] for kernel in compiled if kernel["floatX"] == float_x}
        for float_x in ("float32", "float64")
    }
    assert len(names["float64"]) >= 2
    assert names["float32"] == names["float64"] | set(compiled.fast)


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
    assert max(kernel["shared"] for kernel in compiled) <= MOST_SHARED


def test_fast_kernels_load_four_numbers_at_once_where_their_design_says_so(compiled):
    for kernel in compiled:
        least = compiled.fast.get(kernel["kernel"], 0)
        loads = _count(kernel, re.compile(r"^LDS\.128"))
        assert loads >= least, kernel["kernel"]
