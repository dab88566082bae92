"""Files of compiled kernels that are not whole, and folders that take none."""

import importlib.util
import logging

import numba
import pytest

from msgd.kernels import options  # noqa: F401  # whose import has the files checked

SOURCE = """\
from numba import njit

@njit(cache=True)
def double(x):
    return 2 * x
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A function that loads a module with a function to be compiled, as a new process would."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "doubling.py").write_text(SOURCE)

    def load():
        spec = importlib.util.spec_from_file_location("doubling", tmp_path / "doubling.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.double

    return load


def is_found(function):
    """Call a function; return whether its machine code was found in the cache."""
    assert function(21) == 42
    return bool(function.stats.cache_hits)


def test_a_whole_file_is_used(load):
    assert [is_found(load()) for _ in range(2)] == [False, True]


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("place", [0, 0.5, -1])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_torn_file_is_written_anew(load, tmp_path, suffix, place, damage):
    is_found(load())
    (path,) = tmp_path.glob(f"cache/**/*.{suffix}")
    content = bytearray(path.read_bytes())
    at = int(place * len(content)) if place >= 0 else len(content) - 1
    content[at] ^= 1
    path.write_bytes(content[:at] if damage == "cut" else content)
    assert [is_found(load()) for _ in range(2)] == [False, True]


def test_a_file_that_cannot_be_written_is_done_without(load, monkeypatch, caplog):
    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with caplog.at_level(logging.INFO, "msgd"):
        assert [is_found(load()) for _ in range(2)] == [False, False]
    assert "a compiled kernel could not be kept: [Errno 28] No space left" in caplog.text
