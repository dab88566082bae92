"""A GPU pretended to programs: the driver of pretended_driver.c, built and put before all others.

Kernels are compiled by the real compiler, so this needs the wheels of the extra ``gpu``, and a C
compiler. MSGD_REQUIRE_PRETENDED_DRIVER=1 turns the skip, where they are missing, into a failure.
"""

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from compiler_wheels import has_compiler
from conftest import environment

SOURCE = Path(__file__).with_name("pretended_driver.c")


def build(folder):
    """Build the driver in ``folder``, as libcuda.so.1; skip the test where that cannot be."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    missing = []
    if compiler is None:
        missing.append("a C compiler")
    if not has_compiler():
        missing.append("the CUDA compiler (pip install -c constraints.txt -e '.[gpu]')")
    if missing:
        message = f"the pretended driver needs {' and '.join(missing)}"
        if os.environ.get("MSGD_REQUIRE_PRETENDED_DRIVER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    command = [compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1"]
    done = subprocess.run([*command, SOURCE, "-ldl"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def with_gpu(folder, **changes):
    """Return the changes of environment under which programs find the driver in ``folder``."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))
    return {"LD_LIBRARY_PATH": path, "NUMBA_ENABLE_CUDASIM": "0", **changes}


def run_program(text, *python_options, **changes):
    """Run ``text`` as a Python program that finds the tests' modules; return the process."""
    changes.setdefault("PYTHONPATH", str(SOURCE.parent))
    return subprocess.run(
        [sys.executable, *python_options, "-c", text],
        capture_output=True,
        text=True,
        check=False,
        env=environment(**changes),
    )


class Launch(NamedTuple):
    """A launch that the driver noted; ``kernel`` is the function's name in Python."""

    kernel: str
    blocks: int
    threads: int
    stream: str
    is_cooperative: bool


LAUNCH = re.compile(
    r"launch \S+?(?:4cuda|10cuda_plain|12cuda_backend|12cuda_uniform)"
    r"(?:\d+\w+?_3clocals_3e)?"  # the function that made the kernel
    r"\d+(\w+?)B\d*v\d+\S* grid (\S+) block (\S+) stream (\S+) cooperative (\d)"
)


def read_log(path):
    """Return what the driver noted: Launches, and the words of every other line."""
    events = []
    for line in path.read_text().splitlines():
        found = LAUNCH.match(line)
        if found:
            name, grid, block, stream, cooperative = found.groups()
            sizes = [math.prod(map(int, size.split(","))) for size in (grid, block)]
            events.append(Launch(name, *sizes, stream, cooperative == "1"))
        else:
            assert not line.startswith("launch"), line
            events.append(line.split())
    return events
