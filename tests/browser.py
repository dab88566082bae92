"""A headless browser for tests: pages in frames of a given width, each of which measures itself."""

import html
import json
import os
import re
import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr",),
)
# A window is never narrower than 500 pixels; a frame in it can be.
FRAME = '<iframe style="border: 0; width: {width}px; height: 900px" {page}></iframe>'
WINDOW = '<!doctype html><meta name="color-scheme" content="light dark"><body>'
# Measures a page once it has loaded, and writes what it finds beside its frame, as JSON.
MEASURE = """
<script>
const refused = [], broken = [];
document.addEventListener("securitypolicyviolation", event => refused.push(event.blockedURI));
document.addEventListener("error", event => broken.push(event.target.tagName), true);
addEventListener("load", () => {
  const root = document.documentElement, all = selector => [...document.querySelectorAll(selector)];
  const found = {address: location.pathname, refused, broken};
  found.width = innerWidth;
  found.scrollWidth = root.scrollWidth;
  found.isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  found.background = getComputedStyle(document.body).backgroundColor;
  found.requests = performance.getEntriesByType("resource").map(entry => entry.name)
    .filter(name => !name.startsWith("data:") && !name.startsWith(location.origin + "/"));
  found.pictures = all("img, image").length;
  found.blank = all("img").filter(image => !image.naturalWidth).length;
  found.unnamed = all("img").filter(image => !image.alt).length;
  found.headings = all("h1, h2, h3, h4, h5, h6").map(heading => Number(heading.tagName[1]));
  found.scroll = all("body *").filter(element => element.scrollWidth > element.clientWidth
    && /auto|scroll/.test(getComputedStyle(element).overflowX))
    .map(element => element.className || element.tagName);
  const tips = all(".tip").filter(tip => tip.getClientRects().length);
  found.tips = tips.length;
  found.pointedAt = tips.filter(tip => {
    tip.scrollIntoView({block: "center", behavior: "instant"});
    const box = tip.querySelector("path, use").getBoundingClientRect();
    const hit = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    return hit && hit.closest(".tip");
  }).length;
  const result = document.createElement("pre");
  result.className = "measured";
  result.textContent = JSON.stringify(found);
  parent.document.body.append(result);
});
</script>
</head>"""


def need_browser():
    """Skip the test if no browser is installed, or fail it if MSGD_REQUIRE_BROWSER is 1."""
    if BROWSER is None:
        reason = "no Chromium or Chrome is installed (Debian: apt-get install chromium)"
        if os.environ.get("MSGD_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


def measuring(page):
    """Return the text of a page that measures itself."""
    assert page.count("</head>") == 1
    return page.replace("</head>", MEASURE)


def write_window(path, pages, width):
    """Write to ``path`` a page of frames: ``pages`` are texts, or addresses that start with a /."""
    with path.open("w", encoding="utf-8") as file:
        file.write(WINDOW)
        for page in pages:
            attribute = "src" if page.startswith("/") else "srcdoc"
            file.write(FRAME.format(width=width, page=f'{attribute}="{html.escape(page)}"'))


def look(address, is_dark, profile):
    """Return what each page in the window at ``address`` says of itself, and what the console said.

    ``profile`` is a folder for what the browser keeps.
    """
    theme = f"--blink-settings=preferredColorScheme={0 if is_dark else 1}"
    window = "--window-size=1600,1000", f"--user-data-dir={profile}"
    command = [BROWSER, *QUIET, theme, *window, "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = re.findall(r'<pre class="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    console = re.findall(r".*CONSOLE.*", done.stderr)
    return [json.loads(html.unescape(text)) for text in found], console


def is_dark(background):
    """Return whether a colour, as a browser writes it, is dark."""
    return sum(map(int, re.findall(r"\d+", background)[:3])) < 200


def assert_shown_whole(page, width, dark, may_scroll):
    """Assert that what a page says of itself is that nothing is missing, foreign or too wide.

    ``may_scroll``: the first words of the classes, or the tags, of what may scroll sideways.
    """
    assert page["refused"] == page["requests"] == page["broken"] == []
    assert page["width"] == width
    assert page["scrollWidth"] <= width
    assert {kind.split()[0] for kind in page["scroll"]} <= may_scroll
    assert page["isDark"] is dark
    assert is_dark(page["background"]) is dark
    assert page["blank"] == page["unnamed"] == 0
