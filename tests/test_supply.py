"""What comes from elsewhere: packages by their pins and hashes, and nothing for those who read."""

import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT
from cuda.pathfinder import load_nvidia_dynamic_lib
from loaded import addresses_in_page, addresses_in_style, is_from_elsewhere

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def same_for_all(name):
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path):
    """Return {name: (version, hashes)} of a file of pins."""
    text = re.sub(r"#.*", "", path.read_text(encoding="utf-8")).replace("\\\n", " ")
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, version = re.match(rf"({NAME})==([^\s;]+)", line).groups()
        found[same_for_all(name)] = version, re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line)
    return found


@pytest.fixture(scope="module")
def hashed():
    return pins(ROOT / "requirements.txt")


def test_every_package_of_a_user_is_hashed_in_its_pinned_version(hashed):
    pinned = pins(ROOT / "constraints.txt")
    for name, (version, hashes) in hashed.items():
        assert pinned[name][0] == version, name
        assert hashes, name
        assert len(hashes) == len(set(hashes)), name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked_for = project["project"]["dependencies"] + project["build-system"]["requires"]
    assert {same_for_all(re.match(NAME, one)[0]) for one in asked_for} <= set(hashed)


@pytest.mark.parametrize("file", ["constraints.txt", "requirements.txt"])
def test_pins_name_no_place_to_fetch_from(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*-[a-z-]", text.replace("    --hash", ""), re.MULTILINE), "an option"


@pytest.mark.trust
@pytest.mark.skipif(
    not all(map(find_spec, ("sphinx", "myst_parser", "furo"))), reason="extra docs is not installed"
)
def test_the_site_fetches_nothing_from_elsewhere(tmp_path, record_property):
    words = ["-q", "-W", "-n", "-d", tmp_path / "doctrees", "-c", ROOT / "docs", ROOT]
    subprocess.run([sys.executable, "-m", "sphinx", *words, tmp_path / "site"], check=True)
    pages = [*tmp_path.glob("site/**/*.html")]
    sheets = [*tmp_path.glob("site/**/*.css")]
    assert len(pages) > 20
    assert len(sheets) > 2
    n_addresses = 0
    for files, read in ((pages, addresses_in_page), (sheets, addresses_in_style)):
        for path in files:
            found = read(path.read_text(encoding="utf-8"))
            n_addresses += len(found)
            assert not [*filter(is_from_elsewhere, found)], path
    assert n_addresses > 100
    record_property("cases", len(pages) + len(sheets))


FETCHES = [
    '<img src="https://there/a.png">',
    '<script src="//there/a.js"></script>',
    '<link rel="stylesheet" href="http://there/a.css">',
    '<meta http-equiv="Refresh" content="0; url=https://there">',
    '<p style="background: url(https://there/a.png)">',
    "<style>@import 'https://there/a.css';</style>",
    '<svg><image href="https://there/a.png"/></svg>',
]
FETCHES_NOTHING = [
    '<a href="https://there">a link to follow</a>',
    '<img src="data:image/png;base64,AAAA">',
    '<link rel="stylesheet" href="_static/a.css">',
    '<link rel="search" href="https://there/search.html">',
    "<p>https://there is named</p>",
]


@pytest.mark.parametrize("page", FETCHES)
def test_what_is_fetched_from_elsewhere_is_seen(page):
    assert [*filter(is_from_elsewhere, addresses_in_page(page))]


@pytest.mark.parametrize("page", FETCHES_NOTHING)
def test_what_is_beside_the_page_is_allowed(page):
    assert not [*filter(is_from_elsewhere, addresses_in_page(page))]


@pytest.mark.skipif(sys.platform != "linux", reason="the wheel is for Linux")
def test_the_library_that_numba_cuda_asks_for_comes_with_the_package():
    """Machines without CUDA lack it, and Numba's CUDA simulator is not imported without."""
    found = load_nvidia_dynamic_lib("cudart")
    assert "site-packages" in Path(found.abs_path).parts, found
