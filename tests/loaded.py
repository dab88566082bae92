"""What an HTML document or a style sheet makes a browser fetch as soon as it is opened."""

import re
from html.parser import HTMLParser

# Attributes whose address is fetched without a click; a link's only by what it is for.
FETCHED = {"src", "srcset", "poster", "data", "background"}
LINKS_NOT_FETCHED = {"search", "prev", "next", "index", "author", "canonical", "license", "help"}


class _Addresses(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.is_style = [], False

    def handle_starttag(self, tag, attrs):
        self.is_style = tag == "style"
        given = {name: value or "" for name, value in attrs}
        self.found += [given[name] for name in FETCHED & set(given)]
        if tag == "link" and given.get("rel") not in LINKS_NOT_FETCHED:
            self.found.append(given.get("href", ""))
        if tag in ("image", "use", "feImage"):  # of SVG
            self.found += [given[name] for name in ("href", "xlink:href") if name in given]
        if tag == "meta" and given.get("http-equiv", "").lower() == "refresh":
            self.found.append(given["content"].partition("url=")[2])
        self.found += addresses_in_style(given.get("style", ""))

    def handle_endtag(self, tag):
        self.is_style = False

    def handle_data(self, data):
        if self.is_style:
            self.found += addresses_in_style(data)


def addresses_in_page(text):
    """Return the addresses (list) that a browser fetches for an HTML document."""
    parser = _Addresses()
    parser.feed(text)
    parser.close()
    return parser.found


def addresses_in_style(text):
    """Return those that it fetches for a style sheet."""
    within = re.findall(r"""url\(\s*(?:"([^"]*)"|'([^']*)'|([^)"']*))\s*\)""", text)
    imported = re.findall(r"""@import\s+["']([^"']*)""", text)
    return [*map("".join, within), *imported]


def is_from_elsewhere(address):
    """Whether an address leads to another machine: not a file beside the page, nor in the page."""
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*):", address)
    return address.startswith("//") or bool(scheme and scheme[1].lower() not in ("data", "about"))
