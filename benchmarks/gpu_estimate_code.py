"""The machine code of a CUDA kernel as an estimate needs it: instructions, loops, and their source.

``nvdisasm -gi -hex`` prints a cubin's instructions with their encodings, and before them the lines
of Python that they come from, if the kernel was compiled with lineinfo: the line of a device
function, the line that calls it, and so on up to the kernel. Nothing here depends on addresses, so
that another compilation of the same source is read the same way.
"""

import ast
import functools
import re
from pathlib import Path
from typing import NamedTuple

LOCATION = re.compile(r'//## File "([^"]*)", line (\d+)( inlined at)?')
LABEL = re.compile(r"^(\.L_x_\d+):")
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s+/\* 0x[0-9a-f]{16} \*/")
UPPER_HALF = re.compile(r"^\s+/\* (0x[0-9a-f]{16}) \*/")
TEXT = re.compile(r"^(@!?U?P[0-9T]+ )?\s*([A-Z0-9_.]+)\s*(.*)$")
TARGET = re.compile(r"`\((\.L_x_\d+)\)")


class Instruction(NamedTuple):
    """One instruction, with what ptxas encoded of when it and the next may issue."""

    guard: str  # the predicate it depends on, or ""
    opcode: str  # with its modifiers: LDG.E.64
    operands: str
    stall: int  # cycles until the next instruction of the warp may issue
    result: int | None  # number of the scoreboard entry that is taken until its result is there
    read: int | None  # number of the one that is taken until it has read its operands
    waits: tuple  # numbers of those that must be free before it issues
    frames: tuple  # (file, line) of its source, from the kernel's line to the innermost function's

    @property
    def kind(self):
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]


class Place(NamedTuple):
    """A statement around an instruction: a loop, a branch of an if, or a call."""

    kind: str  # "loop", "if", "else" or "call"
    function: str  # in which it stands; of a call, the function that is called
    name: (
        str  # of a loop its variable, in a while loop the condition's first; of an if its condition
    )
    line: int  # where it begins; of a call the line that calls


def read_kernel(text, name):
    """Return (instructions, {label: index}) of the function of nvdisasm's output ``text``.

    name: what the function's symbol contains.
    """
    sections = [part for part in re.split(r"\n//-+ ", text) if part.startswith(".text.")]
    (section,) = [part for part in sections if name in part.split("\n", 1)[0]]
    instructions, labels, frames = [], {}, []
    is_continued = False
    lines = iter(section.splitlines())
    for line in lines:
        if found := LOCATION.search(line):
            frames = frames if is_continued else []
            frames = [(found[1], int(found[2])), *frames]
            is_continued = found[3] is not None
        elif found := LABEL.match(line):
            labels[found[1]] = len(instructions)
        elif found := INSTRUCTION.match(line):
            control = int(UPPER_HALF.match(next(lines))[1], 16) >> 41  # bits 105 to 125
            guard, opcode, operands = TEXT.match(found[2]).groups()
            instructions.append(
                Instruction(
                    guard=(guard or "").strip(),
                    opcode=opcode,
                    operands=operands,
                    stall=control & 15,
                    result=_entry(control >> 5 & 7),
                    read=_entry(control >> 8 & 7),
                    waits=tuple(k for k in range(6) if control >> 11 + k & 1),
                    frames=tuple(frames),
                )
            )
    return instructions, labels


def _entry(number):
    return None if number == 7 else number


@functools.cache
def _functions(file):
    tree = ast.parse(Path(file).read_text("utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@functools.cache
def _places_of_line(file, line):
    """Return (function name, its Places around ``line``, outermost first)."""
    around = [f for f in _functions(file) if f.lineno <= line <= f.end_lineno]
    if not around:
        return "", ()
    function = max(around, key=lambda node: node.lineno)
    places, node = [], function
    while node is not None:
        node = next((n for n in _statements(node) if n.lineno <= line <= n.end_lineno), None)
        if isinstance(node, ast.For):
            places.append(Place("loop", function.name, ast.unparse(node.target), node.lineno))
        elif isinstance(node, ast.While):
            names = [n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)]
            name = (names or [ast.unparse(node.test)])[0]  # `while True` is a loop over True
            places.append(Place("loop", function.name, name, node.lineno))
        elif isinstance(node, ast.If) and line >= node.body[0].lineno:
            kind = "if" if line <= node.body[-1].end_lineno else "else"
            places.append(Place(kind, function.name, ast.unparse(node.test), node.lineno))
    return function.name, tuple(places)


def _statements(node):
    return [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def places(instruction):
    """Return the Places around an instruction, from the kernel's outermost loop inwards."""
    found, call_line = [], 0
    for depth, (file, line) in enumerate(instruction.frames):
        function, around = _places_of_line(file, line)
        if depth:
            found.append(Place("call", function, "", call_line))
        found += around
        call_line = line
    return tuple(found)


class Loop(NamedTuple):
    """A loop of the machine code."""

    header: int  # index of the instruction that all passes go through first
    body: frozenset  # indices of its instructions, nested loops' among them
    latches: tuple  # indices of the branches back to the header


def successors(instructions, labels):
    """Return for each instruction the indices of those that may follow it in a warp."""
    following = []
    for at, instruction in enumerate(instructions):
        onward = [at + 1] if at + 1 < len(instructions) else []
        is_sure = not instruction.guard and not re.search(r"\bU?P\d", instruction.operands)
        # BRA.DIV leads around a shuffle or vote whose lanes came apart; there they do not.
        if instruction.kind in ("BRA", "JMP") and not instruction.opcode.startswith("BRA.DIV"):
            target = labels[TARGET.search(instruction.operands)[1]]
            onward = [target] if is_sure else [*onward, target]
        elif instruction.kind in ("EXIT", "RET") and is_sure:
            onward = []
        following.append(onward)
    return following


def flow_order(instructions, labels):
    """Return the indices of a kernel's instructions, each before those that it leads to."""
    return _order(successors(instructions, labels))


def find_loops(instructions, labels):
    """Return the Loops of a kernel, inner ones after those around them."""
    following = successors(instructions, labels)
    dominators = _dominators(following)
    before = [[] for _ in following]
    for at, onward in enumerate(following):
        for target in onward:
            before[target].append(at)
    found = {}
    for at, onward in enumerate(following):
        for header in onward:
            if _dominates(dominators, header, at):
                body, latches = found.setdefault(header, ({header}, []))
                latches.append(at)
                open_ends = [at]
                while open_ends:
                    here = open_ends.pop()
                    if here not in body:
                        body.add(here)
                        open_ends += before[here]
    loops = [Loop(h, frozenset(body), tuple(ends)) for h, (body, ends) in found.items()]
    return sorted(loops, key=lambda loop: -len(loop.body))


def _order(following):
    """Return the reachable indices, each before those it leads to, but for branches back."""
    seen, order, pending = {0}, [], [(0, iter(following[0]))]
    while pending:
        at, onward = pending[-1]
        target = next((t for t in onward if t not in seen), None)
        if target is None:
            order.append(at)
            pending.pop()
        else:
            seen.add(target)
            pending.append((target, iter(following[target])))
    return order[::-1]


def _dominators(following):
    """Return {index: the last instruction that every way to it goes through}; of the first None."""
    order = _order(following)
    rank = {at: k for k, at in enumerate(order)}
    before = {at: [] for at in order}
    for at in order:
        for target in following[at]:
            before[target].append(at)
    nearest, is_changed = {order[0]: None}, True

    def common(a, b):
        while a != b:
            if rank[a] > rank[b]:
                a = nearest[a]
            else:
                b = nearest[b]
        return a

    while is_changed:
        is_changed = False
        for at in order[1:]:
            new = functools.reduce(common, [b for b in before[at] if b in nearest])
            is_changed |= nearest.get(at, -1) != new
            nearest[at] = new
    return nearest


def _dominates(nearest, above, at):
    if at not in nearest:
        return False
    while at is not None and at != above:
        at = nearest[at]
    return at is not None
