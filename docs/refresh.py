"""Bring the README's picture and table up to date; with --check, only compare.

The table holds the runs in full: those of results/, after `snakemake --cores all`, and the
committed ones of docs/published. Exits with 1 if --check finds it out of date.
"""

import argparse
import shutil
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PICTURE = "logistic_regression/default/weights.png"
SHOWN = ["experiment", "quantity", "published", "reproduced", "equal", "source"]
BEGIN, END = "<!-- published: begin -->\n", "<!-- published: end -->\n"


def table_of_full_runs():
    """Return the Markdown table of published figures and those of runs that were not cut."""
    files = (ROOT / folder / "published.csv" for folder in ("results", "docs/published"))
    frame = pd.concat([pd.read_csv(file, dtype=str) for file in files])
    shown = frame.loc[frame["epochs"] == "in full", SHOWN]
    return shown.to_markdown(index=False, disable_numparse=True) + "\n"


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
    text = refreshed(readme, table_of_full_runs())
    if check:
        if text != readme:
            print("README.md: the published table is out of date; run python docs/refresh.py")
        return int(text != readme)
    README.write_text(text, encoding="utf-8")
    shutil.copyfile(ROOT / "results" / "plots" / PICTURE, ROOT / "docs" / "images" / "weights.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
