"""A configuration file as it is written, looked at before anything is made of it.

YAML has surprises: of a key given twice it keeps the last, a few anchors can stand for billions of
values, and 010 is 8. What a file says here is what its reader would take it to say, or refused.
"""

import json
import math
import re
from pathlib import Path

import yaml

from msgd.config import LARGEST_INTEGER, dotted, raise_findings, yaml_scalar
from msgd.errors import UserError, shown

# More is taken for a mistake or an attack, and is refused before it takes time or memory.
MOST_BYTES = 2**20
MOST_VALUES = 100_000  # where what its anchors name is written out wherever it stands
MOST_DIGITS = 200  # of a number: the time to read one grows with their square

PLAIN_INTEGER = re.compile("[-+]?(0|[1-9][0-9_]*)")
OWN_TAGS = "tag:yaml.org,2002:"


def read_file(file):
    """Return what a configuration file holds (dict); file: path of YAML or JSON.

    Raises UserError if it says something else than what YAML would read: a key given twice, of
    which YAML keeps the last; anchors that multiply; tags, and what would let Snakemake run the
    file's expressions; numbers that are not decimal. Nothing of it is executed.
    """
    path = Path(file)
    if path.exists() and not path.is_file():
        raise UserError(f"the configuration {file} is no file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise UserError(f"the configuration {file} has {size:,} bytes; allowed: {MOST_BYTES:,}")
    try:
        text = path.read_text(encoding="utf-8")
        is_json = _is_json(text)
        loader = yaml.SafeLoader(text.replace("\t", " ") if is_json else text)  # it may have tabs
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"the configuration {file} holds no keys with values")
        if _n_values(root, {}) > MOST_VALUES:
            raise UserError(
                f"the configuration {file} holds more than {MOST_VALUES:,} values where its "
                "anchors are written out, or one that stands in itself"
            )
        findings = [*_surprises(root, (), set())]
        if not findings:
            return json.loads(text) if is_json else loader.construct_document(root)
    except RecursionError as error:
        raise UserError(f"the configuration {file} is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(
            f"the configuration {file} is not YAML that can be read: {_what_is_wrong(error)}"
        ) from error
    return raise_findings(findings, f"configuration in {file}")


def _what_is_wrong(error):
    """Return in one line what a YAMLError or ValueError says, and where."""
    mark, context = (getattr(error, key, None) for key in ("problem_mark", "context_mark"))
    if mark is None:
        return shown(" ".join(str(error).split()), 300)
    begun = f", in what began in line {context.line + 1}" if context else ""
    where = f"line {mark.line + 1}, column {mark.column + 1}"
    return (
        f"{where}: {error.problem}{begun}. Keys of one level stand below each other, indented by "
        "spaces alone, each with a colon and a space after it"
    )


def _is_json(text):
    """Return whether ``text`` is read as JSON, as Snakemake tries first."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _n_values(node, known):
    """Return how many values ``node`` is when anchors are written out; infinity within itself.

    known: {id of a node: its values}, changed.
    """
    if id(node) not in known:
        known[id(node)] = math.inf  # as long as it is not known: it is asked for by itself
        known[id(node)] = 1 + sum(_n_values(child, known) for child in _children(node))
    return known[id(node)]


def _children(node):
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _surprises(node, path, seen):
    """Yield a finding for all in ``node`` that YAML reads unlike people; seen: ids, changed.

    A node that an anchor names stands in many places, but is looked at once.
    """
    if id(node) in seen:
        return
    seen.add(id(node))
    if not node.tag.startswith(OWN_TAGS) or node.tag.startswith(f"{OWN_TAGS}python"):
        tag = shown(node.tag.removeprefix(OWN_TAGS))
        yield f"{dotted(path)} has the tag {tag}; allowed: none"
    if isinstance(node, yaml.ScalarNode):
        yield from _odd_number(node, path)
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _surprises(item, (*path, number), seen)
    if isinstance(node, yaml.MappingNode):
        yield from _odd_keys(node, path)
        for key, value in node.value:
            yield from _surprises(value, (*path, str(key.value)), seen)


def _odd_number(node, path):
    """Yield a finding for a number that YAML reads as another one than is written."""
    text = node.value
    is_odd = node.tag == f"{OWN_TAGS}int" and not PLAIN_INTEGER.fullmatch(text)
    if is_odd or (node.tag == f"{OWN_TAGS}float" and ":" in text):
        number = yaml_scalar(yaml.safe_load(text))
        yield (
            f"{dotted(path)} is written {shown(text)}, which YAML reads as {shown(number)}; "
            "write it as a decimal number"
        )
    elif node.tag == f"{OWN_TAGS}int" and len(text) > MOST_DIGITS:
        yield f"{dotted(path)} has {len(text)} digits; allowed: at most {LARGEST_INTEGER}"


def _odd_keys(node, path):
    """Yield a finding for every key that stands twice, or that lets the file be executed."""
    lines = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        name, line = dotted((*path, str(key.value))), key.start_mark.line + 1
        if key.value == "__use_yte__":
            yield f"{name} is not allowed: by it Snakemake would run Python that the file holds"
        if key.value in lines and key.tag != f"{OWN_TAGS}merge":
            yield f"{name} is given in line {lines[key.value]} and in line {line}; keep one"
        lines.setdefault(key.value, line)
