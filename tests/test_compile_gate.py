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

from msgd.kernels import options
from msgd.models import MODELS

FLOAT64 = re.compile(r"^(D(ADD|MUL|FMA|SETP|MNMX)|.*\.F64)")
GRID_SYNC_KERNELS = {"_train", "_add_gradients"}
GRID_SYNC_FRAME = 16  # bytes
LOCAL_MEMORY = re.compile(r"^(STL|LDL)")


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
    return json.loads(result.stdout)


def _count(kernel, pattern):
    return sum(n for opcode, n in kernel["instructions"].items() if pattern.match(opcode))


def test_every_kernel_is_compiled_in_both_float_types(compiled):
    kernels = {(kernel["kernel"], kernel["floatX"]) for kernel in compiled}
    names = {name for name, _ in kernels}
    assert len(names) >= 2
    assert kernels == {(name, float_x) for name in names for float_x in ("float32", "float64")}


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
        assert 0 < kernel["registers"] <= options.MAX_REGISTERS[kernel["floatX"]], kernel["kernel"]
