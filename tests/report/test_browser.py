"""The page in a real browser: nothing fails to load, nothing is wider than the window."""

import html
import json
import os
import re
import shutil
import subprocess

import pytest
from made import make_data, make_run

from msgd.report.page import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr",),
)
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# A window is never narrower than 500 pixels; a frame in it can be.
FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><body>
<iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{page}"></iframe>"""
# Measures the page once it has loaded and writes what it finds beside its frame, as JSON.
MEASURE = """
<script>
const refused = [], broken = [];
document.addEventListener("securitypolicyviolation", event => refused.push(event.blockedURI));
document.addEventListener("error", event => broken.push(event.target.tagName), true);
addEventListener("load", () => {
  const root = document.documentElement;
  const found = {width: innerWidth, scrollWidth: root.scrollWidth, refused, broken};
  found.isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  found.background = getComputedStyle(document.body).backgroundColor;
  found.requests = performance.getEntriesByType("resource").map(entry => entry.name)
    .filter(name => !name.startsWith("data:"));
  found.pictures = [...document.querySelectorAll("img, image")].length;
  found.blank = [...document.querySelectorAll("img")].filter(image => !image.naturalWidth).length;
  const tips = [...document.querySelectorAll(".tip")].filter(tip => tip.getClientRects().length);
  found.tips = tips.length;
  found.pointedAt = tips.filter(tip => {
    tip.scrollIntoView({block: "center", behavior: "instant"});
    const box = tip.querySelector("path, use").getBoundingClientRect();
    const hit = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    return hit && hit.closest(".tip");
  }).length;
  const result = document.createElement("pre");
  result.id = "measured";
  result.textContent = JSON.stringify(found);
  parent.document.body.append(result);
});
</script>
</head>"""


@pytest.fixture(scope="module")
def measuring_page(tmp_path_factory):
    """The text of the page on a grid, in a copy that measures itself."""
    if BROWSER is None:
        reason = "no Chromium or Chrome is installed (Debian: apt-get install chromium)"
        if os.environ.get("MSGD_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("page")
    data = make_data(folder, n_classes=10, n_train=100, n_valid=50, n_test=120, shape=(7, 7))
    rates = (0.001, 0.003, 0.01, 0.03)
    runs = [
        make_run(data, f"a_long_name/learning_rate={rate}", learning_rate=rate) for rate in rates
    ]
    write_report(runs, data, folder / "report.html")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count(POLICY) == page.count("</head>") == 1
    page = page.replace(POLICY, f"{POLICY}; script-src 'unsafe-inline'")
    return page.replace("</head>", MEASURE)


def measure(page, width, is_dark, folder):
    """Return what the page says of itself at ``width``, and what the browser's console said."""
    theme = f"--blink-settings=preferredColorScheme={0 if is_dark else 1}"
    file = folder / "frame.html"
    file.write_text(FRAME.format(width=width, page=html.escape(page)), encoding="utf-8")
    window = "--window-size=1600,1000", f"--user-data-dir={folder / 'browser'}"
    command = [BROWSER, *QUIET, theme, *window, "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    return json.loads(html.unescape(found[1])), re.findall(r".*CONSOLE.*", done.stderr)


@pytest.mark.parametrize("width", [390, 800, 1400])
@pytest.mark.parametrize("is_dark", [False, True])
def test_the_page_loads_whole_and_fits_its_window(measuring_page, tmp_path, width, is_dark):
    found, console = measure(measuring_page, width, is_dark, tmp_path)
    assert console == []
    assert found["refused"] == []
    assert found["requests"] == []
    assert found["width"] == width
    assert found["scrollWidth"] <= width
    assert found["isDark"] is is_dark
    assert (sum(map(int, re.findall(r"\d+", found["background"])[:3])) < 200) is is_dark
    assert found["pictures"] > 20
    assert found["broken"] == []
    assert found["blank"] == 0
    assert found["tips"] >= 5 + 4  # validations of the curve, runs
    # Of curves that lie on each other one is hit.
    assert found["pointedAt"] >= 5
