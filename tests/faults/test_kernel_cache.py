"""Folders of compiled kernels that are torn, read-only, or of another machine: the same bytes."""

import shutil

import pytest
from mounts import own_mounts
from rules import SHORT, Rules, finish, results_of

pytestmark = pytest.mark.trust  # to compile takes long; tests/kernels/test_cache.py is short


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    return Rules(tmp_path_factory.mktemp("rules") / "toy", SHORT)


@pytest.fixture(scope="module")
def kept(rules, tmp_path_factory):
    """A folder of the kernels that a training has compiled, and nothing else."""
    folder = tmp_path_factory.mktemp("kernels")
    copy = rules.without("train", folder / "toy")
    done = finish(rules.command("train"), copy, NUMBA_CACHE_DIR=str(folder / "cache"))
    assert done.returncode == 0, done.stderr
    return folder / "cache"


def train(rules, tmp_path, cache, **changes):
    """Train once more by the kernels in ``cache``; check the bytes."""
    folder = rules.without("train", tmp_path / "toy")
    done = finish(rules.command("train"), folder, NUMBA_CACHE_DIR=str(cache), **changes)
    assert done.returncode == 0, done.stderr
    assert results_of(folder) == results_of(rules.folder)
    assert "Traceback" not in done.stderr
    shutil.rmtree(folder)


def damaged(content, kind):
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    return {"cut": content[: len(content) // 2], "empty": b"", "flipped": flipped}[kind]


def torn(cache, copy, suffix, kind):
    """Copy the folder ``cache`` to ``copy``, all its files of ``suffix`` damaged; return it."""
    shutil.copytree(cache, copy)
    files = [*copy.rglob(f"*{suffix}")]
    assert files
    for path in files:
        path.write_bytes(damaged(path.read_bytes(), kind))
    return copy


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".nbi", "cut"), (".nbi", "flipped"), (".nbc", "cut"), (".nbc", "flipped"), (".nbc", "empty")],
)
def test_a_torn_kernel_is_compiled_anew(rules, kept, tmp_path, suffix, kind):
    cache = torn(kept, tmp_path / "cache", suffix, kind)
    train(rules, tmp_path, cache)
    for path in kept.rglob(f"*{suffix}"):
        mended = cache / path.relative_to(kept)
        assert mended.stat().st_size > 100, "it was not written anew"
        assert mended.read_bytes() != damaged(path.read_bytes(), kind)


def test_a_cache_that_may_not_be_written_is_done_without(rules, kept, tmp_path):
    with own_mounts() as mounts:
        folder = rules.without("train", tmp_path / "toy")
        cache = shutil.copytree(kept, tmp_path / "cache")
        mounts.mount("--bind", cache, cache)
        mounts.mount("-o", "remount,bind,ro", cache)
        words = rules.command("train").split()
        done = mounts.run(folder, "env", f"NUMBA_CACHE_DIR={cache}", *words)
        assert done.returncode == 0, done.stderr
        assert "set NUMBA_CACHE_DIR to a folder that can be written" in done.stderr
        assert results_of(folder) == results_of(rules.folder)


def test_a_cache_that_is_full_costs_no_training(rules, tmp_path):
    with own_mounts() as mounts:
        folder = rules.without("train", tmp_path / "toy")
        (cache := tmp_path / "cache").mkdir()
        mounts.mount("-t", "tmpfs", "-o", "size=200k", "none", cache)
        words = rules.command("train").split()
        done = mounts.run(folder, "env", f"NUMBA_CACHE_DIR={cache}", *words)
        assert done.returncode == 0, done.stderr
        (result,) = done.stderr.splitlines()
        assert result.startswith("a/default: ")
        log = (folder / "results" / "logs" / "train" / "a" / "default.log").read_text()
        assert "a compiled kernel could not be kept: [Errno 28] No space left on device" in log
        assert results_of(folder) == results_of(rules.folder)
        assert not [*mounts.seen(cache).rglob("*.tmp.*")]


def test_kernels_of_another_machine_are_not_run(rules, kept, tmp_path):
    """A folder that two machines share; the other one has the instructions of 2013."""
    cache = shutil.copytree(kept, tmp_path / "cache")
    own = {path: path.read_bytes() for path in cache.rglob("*.nbc")}
    train(rules, tmp_path, cache, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="")
    both = [*cache.rglob("*.nbc")]
    assert len(both) == 2 * len(own), "they were shared"
    assert {path: path.read_bytes() for path in own} == own
    train(rules, tmp_path, cache)
    assert sorted(cache.rglob("*.nbc")) == sorted(both)
