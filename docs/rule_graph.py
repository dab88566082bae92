"""The graph of the workflow's rules as an SVG picture, from left to right.

Snakemake says which rule needs which. Where one leads to another by a third, the direct arrow is
left out, and a rule stands in the column after the last one that it needs. The rule ``all``, which
asks for every file that no other rule needs, is left out.
"""

import re
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
# Together they need every rule but those that are asked for by a key or a grid.
MODELS = ("logistic_regression", "da", "rbm")
LETTER, HEIGHT, GAP, BETWEEN = 7, 26, 12, 44  # px: a letter, a box, between boxes, between columns

STYLE = """
  text { font: 12px sans-serif; text-anchor: middle; fill: #222222; }
  rect { fill: #eef2f7; stroke: #2f6db5; }
  path { fill: none; stroke: #8a8a8a; }
  marker path { fill: #8a8a8a; stroke: none; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e8e8e8; }
    rect { fill: #1d2733; stroke: #7fb0e6; }
  }
"""


def rules_and_needs():
    """Return what each rule needs: dict of rule -> set of rules, as Snakemake says it."""
    with tempfile.TemporaryDirectory() as folder:
        experiments = {model: {"model": model} for model in MODELS}
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump({"experiments": experiments}))
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "-s",
            ROOT / "Snakefile",
            "--rulegraph",
            "dot",
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    names = dict(re.findall(r'^\t(\d+)\[label = "(\w+)"', done.stdout, re.MULTILINE))
    needs = {name: set() for name in names.values()}
    for one, other in re.findall(r"^\t(\d+) -> (\d+)$", done.stdout, re.MULTILINE):
        needs[names[other]].add(names[one])
    needs.pop("all")
    return needs


def without_detours(needs):
    """Return ``needs`` without what a rule needs by another one anyway."""

    def all_before(rule):
        return needs[rule].union(*map(all_before, needs[rule]))

    return {rule: direct - set().union(*map(all_before, direct)) for rule, direct in needs.items()}


def in_columns(needs):
    """Return the rules in columns (list of lists), each near what it needs."""
    column = {}

    def column_of(rule):
        if rule not in column:
            column[rule] = 1 + max(map(column_of, needs[rule]), default=-1)
        return column[rule]

    columns, place = [[] for _ in range(1 + max(map(column_of, needs)))], {}
    for rule in sorted(needs):
        columns[column[rule]].append(rule)
    for rules in columns:
        rules.sort(key=lambda rule: sum(place[n] for n in needs[rule]) / (len(needs[rule]) or 1))
        place |= {rule: number - (len(rules) - 1) / 2 for number, rule in enumerate(rules)}
    return columns


def draw(needs):
    """Return the SVG picture (str) of ``needs``, a dict of rule -> set of rules."""
    needs = without_detours(needs)
    columns = in_columns(needs)
    height = max(map(len, columns)) * (HEIGHT + GAP) + GAP
    boxes, left = {}, GAP
    for rules in columns:
        width = max(map(len, rules)) * LETTER + 2 * GAP
        top = (height - len(rules) * (HEIGHT + GAP) + GAP) / 2
        for number, rule in enumerate(rules):
            boxes[rule] = left, top + number * (HEIGHT + GAP), width
        left += width + BETWEEN
    size = f"{left - BETWEEN + GAP} {height}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img">',
        f"<title>The rules of the workflow</title><style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8Z"/></marker></defs>',
    ]
    for rule in sorted(needs):
        x, y, _ = boxes[rule]
        for needed in sorted(needs[rule]):
            start, level, width = boxes[needed]
            start, level, end, middle = start + width, level + HEIGHT / 2, x, y + HEIGHT / 2
            bend = BETWEEN / 2
            lines.append(
                f'<path d="M{start} {level:g}C{start + bend:g} {level:g} {end - bend:g} {middle:g} '
                f'{end} {middle:g}" marker-end="url(#tip)"/>'
            )
    for rule, (x, y, width) in boxes.items():
        lines.append(f'<rect x="{x}" y="{y:g}" width="{width}" height="{HEIGHT}" rx="5"/>')
        lines.append(f'<text x="{x + width / 2:g}" y="{y + 17:g}">{escape(rule)}</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    print(draw(rules_and_needs()), end="")
