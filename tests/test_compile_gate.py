"""The CUDA kernels compiled for a real H100, without one: what the simulator cannot see.

MSGD_REQUIRE_COMPILE_GATE=1 turns the skip, where the compiler's wheels are missing, into a failure.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from msgd.kernels import options
from msgd.models import MODELS

FLOAT64 = re.compile(r"^(D(ADD|MUL|FMA|SETP|MNMX)|.*\.F64)")
GRID_SYNC_KERNELS = {"_train", "_train_fast", "_add_gradients"}
GRID_SYNC_FRAME = 16  # bytes
RESERVED_SHARED = 1024  # bytes that the runtime has of every block's
WORD_LOADS = re.compile(r"^LD[GS](\.\w+)*\.128")
LOCAL_MEMORY = re.compile(r"^(STL|LDL)")


def _missing():
    """Return what the gate lacks on this machine, or ""."""
    if importlib.util.find_spec("nvidia") is None:
        return "the CUDA compiler's wheels (pip install -c constraints.txt -e '.[gpu]')"
    (root,) = importlib.util.find_spec("nvidia").submodule_search_locations
    tools = [Path(root, "cu13", "bin", name) for name in ("cuobjdump", "nvdisasm")]
    return ", ".join(str(tool) for tool in tools if not tool.exists())


@pytest.fixture(scope="module", params=MODELS)
def compiled(request):
    missing = _missing()
    if missing:
        message = f"the compile gate needs {missing}"
        if os.environ.get("MSGD_REQUIRE_COMPILE_GATE") == "1":
            pytest.fail(message)
        pytest.skip(message)
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


def is_fast(name):
    """Whether a kernel is one of those beside the plain ones, for float32 alone."""
    return name.endswith("_fast")


def _count(kernel, pattern):
    return sum(n for opcode, n in kernel["instructions"].items() if pattern.match(opcode))


def test_every_kernel_is_compiled_in_both_float_types(compiled):
    kernels = {(kernel["kernel"], kernel["floatX"]) for kernel in compiled}
    names = {name for name, _ in kernels}
    assert len(names) >= 2
    both = {(name, float_x) for name in names for float_x in ("float32", "float64")}
    assert kernels == both - {(name, "float64") for name in names if is_fast(name)}


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
        most = options.MAX_REGISTERS[kernel["floatX"]]
        if is_fast(kernel["kernel"]):  # a quarter of the SM runs every fourth warp
            most = 65536 // (-(-kernel["threads"] // 128) * 128)
        assert 0 < kernel["registers"] <= most, kernel["kernel"]


def test_shared_memory_is_what_a_block_gets_unasked(compiled):
    for kernel in compiled:
        assert kernel["shared"] <= 48 * 1024 + RESERVED_SHARED, kernel["kernel"]


def test_fast_kernels_read_16_bytes_at_once(compiled):
    found = {k["kernel"]: _count(k, WORD_LOADS) for k in compiled if is_fast(k["kernel"])}
    assert not found or max(found.values()) > 0
