"""Bring the README's picture and table and the page on performance up to date.

The README's table holds the runs in full: those of results/, after `snakemake --cores all`, and the
committed ones of docs/published; the page's is of benchmarks/results. With --check files are only
compared, and the exit code is 1 if one is out of date.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PICTURE = "logistic_regression/default/weights.png"
SHOWN = ["experiment", "quantity", "published", "reproduced", "equal", "source"]
PERFORMANCE = ROOT / "docs" / "performance.md"
COMPARISON = ROOT / "benchmarks" / "results" / "compare.json"


def table_of_full_runs():
    """Return the Markdown table of published figures and those of runs that were not cut."""
    files = (ROOT / folder / "published.csv" for folder in ("results", "docs/published"))
    frame = pd.concat([pd.read_csv(file, dtype=str) for file in files])
    shown = frame.loc[frame["epochs"] == "in full", SHOWN]
    return shown.to_markdown(index=False, disable_numparse=True) + "\n"


def table_of_comparison():
    """Return the Markdown table of epochs per second, and what it was measured on."""
    results = json.loads(COMPARISON.read_text(encoding="utf-8"))
    libraries = [*dict.fromkeys(name for runs in results["models"].values() for name in runs)]
    rows = []
    for model, runs in results["models"].items():
        row = {"epochs/s": model}
        for name in libraries:
            run = runs.get(name)
            row[name] = "–"
            if run:
                low, high = run["spread"]
                row[name] = f"{run['median']:.3g} ({low:.3g}–{high:.3g})"
        ours = runs["msgd"]
        row["msgd / best other"] = f"{ours['ratio_to_best']:.2f} ({ours['best_competitor']})"
        rows.append(row)
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    hardware = results["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    where = f"{hardware['processor']}, {hardware['cores']} cores; {versions}."
    return f"{table}\n\nMeasured on {where}\n"


def refreshed(text, mark, table):
    """Return ``text`` with ``table`` between its two marks."""
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->\n"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return before + begin + table + end + after


def main():
    """Refresh or check; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    tables = {
        README: ("published", table_of_full_runs()),
        PERFORMANCE: ("compare", table_of_comparison()),
    }
    out_of_date = 0
    for path, (mark, table) in tables.items():
        text = path.read_text(encoding="utf-8")
        if (new := refreshed(text, mark, table)) != text:
            out_of_date = 1
            if check:
                print(f"{path.relative_to(ROOT)} is out of date; run python docs/refresh.py")
            else:
                path.write_text(new, encoding="utf-8")
    if check:
        return out_of_date
    shutil.copyfile(ROOT / "results" / "plots" / PICTURE, ROOT / "docs" / "images" / "weights.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
