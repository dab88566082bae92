"""The wheels of the extra ``gpu``: where their tools are, and whether they are there."""

import importlib.util
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest


def has_compiler():
    """Return whether the CUDA compiler's wheels are there; another one of NVIDIA's always is."""
    try:
        return bool(version("nvidia-nvvm"))
    except PackageNotFoundError:
        return False


def tool_folder():
    """Return the folder of cuobjdump and nvdisasm."""
    (root,) = importlib.util.find_spec("nvidia").submodule_search_locations
    return Path(root) / "cu13" / "bin"


def _missing():
    """Return what is not on this machine, or ""."""
    if not has_compiler():
        return "the CUDA compiler's wheels (pip install -c constraints.txt -e '.[gpu]')"
    tools = [tool_folder() / name for name in ("cuobjdump", "nvdisasm")]
    return ", ".join(str(tool) for tool in tools if not tool.exists())


def require_compiler():
    """Skip the test where the compiler is missing, or fail it if MSGD_REQUIRE_COMPILE_GATE=1."""
    if missing := _missing():
        message = f"the compile gate needs {missing}"
        if os.environ.get("MSGD_REQUIRE_COMPILE_GATE") == "1":
            pytest.fail(message)
        pytest.skip(message)
