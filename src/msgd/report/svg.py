"""Figures of Matplotlib as SVG inside the page: its colours and letters are those of the page.

So a figure follows the page from light to dark. What can be pointed at says its numbers, by the
``title`` elements of SVG: without a script.
"""

import io
import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import matplotlib.pyplot as plt
from markupsafe import Markup

from msgd.plots.style import BLUE, GREY, INK, LINES, ORANGE

SVG = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"
GRID = "#e6e6e6"
# What a figure is drawn in, and the page's variable that stands in its place.
VARIABLES = {
    INK: "--ink",
    GREY: "--muted",
    GRID: "--line",
    ORANGE: "--accent",
    BLUE: "--ink-soft",
    **{colour: f"--series-{number}" for number, colour in enumerate(LINES[1:-1], start=1)},
}
# The same ids and the same bytes each time; letters stay letters.
SETTINGS = {"svg.hashsalt": "msgd", "svg.fonttype": "none", "svg.image_inline": True}


def to_svg(figure, name, title, tips):
    """Return ``figure`` as an inline SVG element (Markup), and close it.

    name: unique on the page, begins all ids; title: what is read aloud in place of the picture;
    tips: dict of an artist's gid -> what it says when pointed at. Such an artist has no look of its
    own, but the class ``tip`` of the page.
    """
    stream = io.StringIO()
    with mpl.rc_context(SETTINGS):
        metadata = dict.fromkeys(["Date", "Creator", "Format", "Type"])
        figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
    plt.close(figure)
    root = ET.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    _say(root, tips)
    _rename(root, name)
    for element in root.iter():
        if "style" in element.attrib:
            element.set("style", _in_the_pages_colours(element.get("style")))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", title)
    return Markup(_serialised(root))


def _say(root, tips):
    """Give the artists of the gids ``tips`` their titles, and take their own style away."""
    for group in list(root.iter(f"{{{SVG}}}g")):
        tip = tips.get(group.get("id"))
        if tip is None:
            continue
        group.set("class", "tip")
        for shape in group.iter():
            shape.attrib.pop("style", None)
            shape.attrib.pop("clip-path", None)
        title = ET.Element(f"{{{SVG}}}title")
        title.text = tip
        group.insert(0, title)


def _rename(root, name):
    """Begin with ``name`` all ids that something refers to, and drop the others."""
    used = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            used.update(re.findall(r"url\(#([^)]+)\)", value))
            if key == LINK:
                used.add(value.removeprefix("#"))
    for element in root.iter():
        identifier = element.attrib.pop("id", None)
        if identifier in used:
            element.set("id", f"{name}-{identifier}")
        for key, value in list(element.attrib.items()):
            if key == LINK:
                del element.attrib[key]
                element.set("href", f"#{name}-{value.removeprefix('#')}")
            else:
                element.set(key, value.replace("url(#", f"url(#{name}-"))


def _in_the_pages_colours(style):
    """Return the CSS text ``style`` with variables in place of colours, in the page's letters."""
    # A font: only its size is kept.
    style = re.sub(r"font: (?:[\w-]+ )*?([\d.]+)px [^;]*", r"font-size: \1px", style)
    style = re.sub(r"font-family: [^;]*;?", "", style)
    for colour, variable in VARIABLES.items():
        style = style.replace(colour, f"var({variable})")
    return style


def _serialised(root):
    """Return the XML of ``root`` as HTML takes it: without prefixes of names."""
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
    return ET.tostring(root, encoding="unicode")
