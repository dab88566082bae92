"""What the phases of a kernel's minibatch should take, from its machine code and the table.

A phase is what a device function that the kernel calls was compiled to, or what lies between two
barriers. Its straight code is replayed once, and each loop in it as often as the table says. Of
several copies that the compiler made of a loop the one counts that takes longest, and one that does
several passes of the source at once is passed as much less often.
"""

from collections import Counter
from functools import reduce
from math import gcd
from typing import NamedTuple

from gpu_estimate_code import find_loops, flow_order, places, read_kernel
from gpu_estimate_replay import replay, replay_loop

BARRIER = 30  # cycles of __syncthreads beside waiting for the slowest warp; not measured by us
GRID_WAIT = "CGSynchronize"  # in the name of the function of CUDA's runtime that waits for the grid
WORK = ("LDG", "LDS", "STG", "STS", "FFMA", "FADD", "FMUL")


class TableError(Exception):
    """The table and the machine code do not fit together; the text says where."""


class Loads(NamedTuple):
    """How many cycles a load takes."""

    l1: float
    l2: float


def _branch(place):
    """Return the name that the table has for an if, an else or a call."""
    return place.function if place.kind == "call" else place.name


def schedulers(phase):
    """Return a Phase for each kind of scheduler, by what its warps do."""
    kinds = phase.taken if isinstance(phase.taken, tuple) else (phase.taken,)
    return [phase._replace(taken=kind) for kind in kinds]


class Code:
    """A kernel's machine code with the place of each instruction in the source."""

    def __init__(self, text, kernel):
        self.kernel = kernel
        self.instructions, labels = read_kernel(text, kernel.function)
        self.places = [places(one) for one in self.instructions]
        self.order = {at: k for k, at in enumerate(flow_order(self.instructions, labels))}
        found = find_loops(self.instructions, labels)
        self.sources = {loop: self._source(loop) for loop in found}
        self.step = next((x for x in found if self._is_step(self.sources[x])), None)
        if self.step is None:
            raise TableError(
                f"{kernel.name}: {kernel.function} has no loop over `{kernel.loop}`, which the "
                "table calls the one over minibatches; mend benchmarks/gpu_estimate_table.py"
            )
        self.loops = [loop for loop in found if loop.body < self.step.body]
        self._check_branches()

    def _check_branches(self):
        """Raise TableError if the table says of a branch whether it is taken, and there is none."""
        phases = [one for phase in self.kernel.phases for one in schedulers(phase)]
        tables = [self.kernel.taken, *(phase.taken for phase in phases)]
        named = {name for taken in tables for name in taken}
        there = {_branch(place) for path in self.places for place in path if place.kind != "loop"}
        if gone := sorted(named - there):
            raise TableError(
                f"{self.kernel.name}: no machine code of {self.kernel.function} lies in a branch "
                f"or function `{gone[0]}`; mend `taken` in benchmarks/gpu_estimate_table.py"
            )

    def _source(self, loop):
        """Return the Places down to the loop of the source that ``loop`` was made of."""
        path = self.places[loop.latches[0]]
        inner = [k for k, place in enumerate(path) if place.kind == "loop"]
        return path[: inner[-1] + 1] if inner else ()

    def _is_step(self, path):
        loops = [place for place in path if place.kind == "loop"]
        return len(path) == len(loops) == 1 and path[0].name == self.kernel.loop

    def phase_function(self, at):
        """Return which phase's function instruction ``at`` was compiled from, or ""."""
        functions = {phase.function for phase in self.kernel.phases} - {""}
        called = [place.function for place in self.places[at] if place.kind == "call"]
        return next((name for name in called if name in functions), "")

    def sequences(self, indices, phase):
        """Return the Instructions that each warp of a scheduler issues of those in ``indices``."""
        return self.sequences_of(self.ordered(indices), phase)

    def ordered(self, indices):
        """Return those of ``indices`` that are reached, each before those that it leads to."""
        return sorted((at for at in indices if at in self.order), key=self.order.get)

    def sequences_of(self, ordered, phase):
        """Return the same of indices that are in order, and may be there several times."""
        return [
            [self.instructions[at] for at in ordered if self._is_taken(at, warp, phase)]
            for warp in range(phase.warps)
        ]

    def is_passed(self, at):
        """Whether some warp comes by instruction ``at``, by what is said of all phases."""
        around = [place for place in self.places[at] if place.kind != "loop"]
        taken = self.kernel.taken
        return not any(taken.get(_branch(place)) is (place.kind == "else") for place in around)

    def _is_taken(self, at, warp, phase):
        taken = {**self.kernel.taken, **phase.taken}
        for place in self.places[at]:
            if place.kind != "loop" and _branch(place) in taken:
                share = taken[_branch(place)]
                is_one = share if isinstance(share, bool) else warp in range(phase.warps)[share]
                if is_one == (place.kind == "else"):
                    return False
        return True

    def unrolled(self, loop, own):
        """Return how many passes of the source a pass of ``loop`` makes.

        The compiler writes them one after the other, so every load and sum is there as often.
        """
        path = self.sources[loop]
        counts = Counter()
        for at in own:
            deeper = [place for place in self.places[at][len(path) :] if place.kind == "loop"]
            one = self.instructions[at]
            if one.kind in WORK and not deeper:
                counts[one.frames, one.opcode] += 1
        return self.kernel.unrolled.get(path[-1].name) or reduce(gcd, counts.values(), 0) or 1


class Phases:
    """The cycles of phases of a Code, with loads of given cycles."""

    def __init__(self, code, loads):
        self.code = code
        self.loads = loads

    def of_function(self, phase):
        """Return the cycles of what ``phase.function`` was compiled to, or of the rest for ""."""
        code = self.code
        loops = [x for x in code.loops if code.phase_function(x.latches[0]) == phase.function]
        others = [x for x in code.loops if x not in loops]
        indices = {at for at in code.step.body if code.phase_function(at) == phase.function}
        if not indices:
            raise TableError(
                f"{code.kernel.name}: no machine code comes from `{phase.function}`, which phase "
                f"'{phase.name}' names; mend its entry in benchmarks/gpu_estimate_table.py"
            )
        if phase.function:
            indices |= {at for loop in loops for at in loop.body}
        else:
            indices -= {at for loop in others for at in loop.body}
        return max(self._cycles(indices, loops, one) for one in schedulers(phase))

    def _cycles(self, indices, loops, phase, replayed=replay):
        """Return the cycles of instructions, those of the loops among them included."""
        outer = [x for x in loops if not any(x.body < other.body for other in loops)]
        straight = indices - {at for loop in outer for at in loop.body}
        total = 0
        for path in sorted({self.code.sources[loop] for loop in outer}):
            copies = [loop for loop in outer if self.code.sources[loop] == path]
            chosen, has_rest = self._passed(path, copies, indices, loops, phase)
            total += sum(cycles * times for _, cycles, times in chosen)
            if not has_rest:
                straight -= self._of_source(path, straight)
        return total + self._replayed(self.code.sequences(straight, phase), phase, replayed)

    def _replayed(self, sequences, phase, replayed=replay):
        l1, l2 = (replayed(sequences, cycles) for cycles in self.loads)
        return l1 + (l2 - l1) * phase.l2_share

    def _laid_out(self, indices, loops, phase):
        """Return ``indices`` in the order in which a warp comes by them, loops as often as it does.

        So warps that pass a loop are replayed beside those that meanwhile do something else.
        """
        code = self.code
        outer = [x for x in loops if not any(x.body < other.body for other in loops)]
        straight = indices - {at for loop in outer for at in loop.body}
        passes = {}  # {first index of a loop: what a warp does there}
        for path in sorted({code.sources[loop] for loop in outer}):
            copies = [loop for loop in outer if code.sources[loop] == path]
            chosen, has_rest = self._passed(path, copies, indices, loops, phase)
            for loop, _, times in chosen:
                inside = [other for other in loops if other.body < loop.body]
                passes[loop.header] = self._laid_out(loop.body, inside, phase) * round(times)
            if not has_rest:
                straight -= self._of_source(path, straight)
        return [x for at in code.ordered(straight | passes.keys()) for x in passes.get(at, [at])]

    def _passed(self, path, copies, indices, loops, phase):
        """Return [(loop, cycles of a pass, passes)] of a loop of the source, and if some are left.

        copies: the loops it was compiled to, of which one or two are passed.
        """
        passes = self._passes(path, phase)
        # A copy without the loops within it is for when they have no passes.
        deep = [x for x in copies if any(other.body < x.body for other in loops)]
        best = {}  # {passes of the source in one: (loop, cycles)}
        for loop in deep or copies:
            inside = [other for other in loops if other.body < loop.body]
            own = (loop.body & indices) - {at for other in inside for at in other.body}
            cycles = self._cycles(loop.body & indices, inside, phase, replay_loop)
            together = self.code.unrolled(loop, own)
            if together not in best or cycles > best[together][1]:
                best[together] = loop, cycles
        most, least = max(best), min(best)
        left = passes % most
        chosen = [(*best[most], passes // most)]
        if left and least < most:
            return [*chosen, (*best[least], left / least)], False
        # A remainder without a loop of its own is straight code beside the loop.
        return chosen, bool(left)

    def _of_source(self, path, indices):
        """Return which of ``indices`` come from the body of the source's loop at ``path``."""
        code = self.code
        return {
            at
            for at in indices
            if code.places[at][: len(path)] == path
            and code.instructions[at].frames[-1][1] != path[-1].line
        }

    def _passes(self, path, phase):
        loop = path[-1]
        for name in (f"{loop.function}.{loop.name}", loop.name):
            if name in phase.passes:
                passes = phase.passes[name]
                return passes[self._call(path)] if isinstance(passes, tuple) else passes
        raise TableError(
            f"{self.code.kernel.name}: phase '{phase.name}' passes a loop over `{loop.name}` "
            f"({loop.function}, line {loop.line}) and does not say how often; say so in "
            "benchmarks/gpu_estimate_table.py"
        )

    def _call(self, path):
        """Return which of the calls of a function with one loop, in order of lines, ``path`` is."""
        calls = {
            other for other in self.code.sources.values() if other[:-1] and other[-1] == path[-1]
        }
        return sorted(calls).index(path)

    def between_barriers(self, phases):
        """Return the cycles of each of ``phases``, the stretches of a minibatch in order."""
        code = self.code
        outer = [x for x in code.loops if not any(x.body < other.body for other in code.loops)]
        nested = {at for loop in outer for at in loop.body}
        ordered = sorted(code.step.body & code.order.keys(), key=code.order.get)
        stretches = [set()]
        for at in ordered:
            stretches[-1].add(at)
            if at not in nested and self.is_barrier(at) and code.is_passed(at):
                stretches.append(set())
        if len(stretches) > 1:
            tail = stretches.pop()  # the loop comes round: a warp goes from it to the first
            stretches[0] |= tail
            code.order.update({at: code.order[at] - len(code.order) for at in tail})
        if len(stretches) != len(phases):
            raise TableError(
                f"{code.kernel.name}: {code.kernel.function} has {len(stretches)} stretches "
                f"between barriers and the table {len(phases)}; mend "
                "benchmarks/gpu_estimate_table.py"
            )
        return [
            BARRIER + max(self._of_stretch(indices, one) for one in schedulers(phase))
            for indices, phase in zip(stretches, phases, strict=True)
        ]

    def _of_stretch(self, indices, phase):
        """Return the cycles of warps from one barrier to the next."""
        loops = [loop for loop in self.code.loops if loop.body <= indices]
        ordered = self._laid_out(indices, loops, phase)
        return self._replayed(self.code.sequences_of(ordered, phase), phase)

    def is_barrier(self, at):
        """Whether threads wait for each other at instruction ``at``: of a block or of the grid."""
        one = self.code.instructions[at]
        return one.kind == "BAR" or (one.kind == "CALL" and GRID_WAIT in one.operands)
