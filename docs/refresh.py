"""Bring the README's picture and table up to date with results/; with --check, only compare.

Run after `snakemake --cores all`. Exits with 1 if --check finds the table out of date.
"""

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PICTURE = "logistic_regression/default/weights.png"
BEGIN, END = "<!-- published: begin -->\n", "<!-- published: end -->\n"


def refreshed(readme, table):
    """Return the text ``readme`` with ``table`` between its two marks."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + table + END + after


def main():
    """Refresh or check; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    readme = README.read_text(encoding="utf-8")
    table = (ROOT / "results" / "published.md").read_text(encoding="utf-8")
    text = refreshed(readme, table)
    if check:
        if text != readme:
            print("README.md: the published table is out of date; run python docs/refresh.py")
        return int(text != readme)
    README.write_text(text, encoding="utf-8")
    shutil.copyfile(ROOT / "results" / "plots" / PICTURE, ROOT / "docs" / "images" / "weights.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
