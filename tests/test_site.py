"""The pages of docs as a site, in a real browser: whole at every width, light and dark, offline."""

import functools
import http.server
import importlib.util
import itertools
import os
import subprocess
import sys
import threading

import pytest
from browser import assert_shown_whole, look, measuring, need_browser, write_window
from conftest import ROOT

MAY_SCROLL = {"PRE", "table-wrapper", "formula"}


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Gives out files of a folder, and says nothing of it."""

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """(folder, address, paths of its pages) of a site whose pages measure themselves."""
    need_browser()
    if importlib.util.find_spec("sphinx") is None:
        reason = "Sphinx is missing: pip install -c constraints.txt -e '.[docs]' installs it"
        if os.environ.get("MSGD_REQUIRE_SITE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("site")
    kept_apart = "-d", folder.parent / "doctrees"
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "-n",
        *kept_apart,
        "-c",
        "docs",
        ".",
        folder,
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    paths = []
    for path in sorted(folder.rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        if 'http-equiv="refresh"' not in text and "_static" not in path.parts:
            path.write_text(measuring(text), encoding="utf-8")
            paths.append(f"/{path.relative_to(folder)}")
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()


@pytest.mark.parametrize("width", [390, 800, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_every_page_loads_whole_and_fits_its_window(site, tmp_path, width, dark):
    folder, address, paths = site
    write_window(folder / "window.html", paths, width)
    pages, console = look(f"{address}/window.html", dark, tmp_path / "browser")
    assert console == []
    assert sorted(page["address"] for page in pages) == paths
    for page in pages:
        assert_shown_whole(page, width, dark, MAY_SCROLL)


def test_the_headings_of_every_page_are_in_order(site, tmp_path):
    folder, address, paths = site
    write_window(folder / "window.html", paths, 1400)
    pages, _ = look(f"{address}/window.html", False, tmp_path / "browser")
    assert sorted(page["address"] for page in pages) == paths
    for page in pages:
        levels = page["headings"]
        if page["address"] == "/search.html":  # a script gives it one once it has searched
            continue
        assert levels[0] == 1, page["address"]
        assert levels.count(1) == 1, page["address"]
        deeper = [level - above for above, level in itertools.pairwise(levels)]
        assert max(deeper, default=0) <= 1, page["address"]
