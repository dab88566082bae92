"""A replay of machine code on one scheduler of an H100's multiprocessor, in cycles.

Warps issue in order. An instruction issues when the stall count of the one before it is over, the
scoreboard entries that it waits for are free, and its pipe is; the scheduler issues one instruction
a cycle. The compiler wrote stall counts and entries into the code, so they are not guessed.
What is: how long a pipe is taken and how long what writes a scoreboard entry lasts, published
figures or what is usual. How long loads take is the caller's to say, for it was measured.

Not replayed: conflicts of shared memory's banks, misses of the instruction cache, several sectors
of one load, other users of the L2 cache.
"""

from typing import NamedTuple

ALU = (
    *("IADD3", "LOP3", "SEL", "SHF", "LEA", "ISETP", "I2FP", "FSETP", "FSEL", "FMNMX", "VIADD"),
    *("PLOP3", "IABS", "IMNMX", "VIMNMX", "PRMT", "MOV", "FLO", "POPC", "P2R", "R2P", "F2FP"),
)
UNIFORM = ("ULDC", "UMOV", "UIADD3", "UIMAD", "USHF", "ULOP3", "USEL", "UISETP", "R2UR", "ULEA")
MEMORY = ("LDG", "STG", "LDS", "STS", "LDL", "STL", "ATOMG", "REDG", "RED", "LD", "ST", "LDSM")
# {kind: (pipe, cycles that a warp's instruction takes it)}: FP32 has 32 lanes a scheduler, whole
# numbers 16, shuffles 8, special functions 4. Tensor cores would take 4 cycles for 16 x 8 x 8 in
# TF32; by this instruction they are said to reach 60 % of that.
PIPES = {
    **dict.fromkeys(("FFMA", "FADD", "FMUL"), ("fp32", 1)),
    "IMAD": ("imad", 2),
    **dict.fromkeys(ALU, ("alu", 2)),
    **dict.fromkeys(UNIFORM, ("uniform", 2)),
    **dict.fromkeys(MEMORY, ("memory", 2)),
    "SHFL": ("memory", 4),
    **dict.fromkeys(("MUFU", "I2F", "F2I", "F2F"), ("special", 8)),
    "HMMA": ("tensor", 7),
}
# Cycles until what an instruction writes is there, where a scoreboard entry says so.
LATENCY = {
    **dict.fromkeys(("LDS", "SHFL"), 25),
    **dict.fromkeys(("LDC", "S2R", "S2UR"), 30),
    **dict.fromkeys(("MUFU", "I2F", "F2I", "F2F"), 20),
}
OTHER_LATENCY = 12
OPERANDS_READ = 15  # cycles until an instruction has read its operands, where an entry says so
BRANCH = 10  # cycles that a branch back costs at least, for the instructions are fetched anew
FEW, MANY = 4, 12  # passes of a loop: from the one to the other it has settled


class Warp:
    """Where a warp stands in its instructions."""

    def __init__(self, sequence):
        self.sequence = sequence
        self.at = 0
        self.ready = 0  # cycle from which its next instruction may issue, but for entries
        self.free = [0] * 6  # cycle from which each scoreboard entry is free
        self.last_issue = -1

    def may_issue(self):
        """Return the first cycle in which the next instruction may issue, but for its pipe."""
        waits = (self.free[entry] for entry in self.sequence[self.at].waits)
        return max(self.ready, *waits, 0)

    def issue(self, cycle, load_cycles):
        """Issue the next instruction in ``cycle``."""
        instruction = self.sequence[self.at]
        lasts = load_cycles if instruction.kind == "LDG" else LATENCY.get(instruction.kind)
        lasts = lasts or OTHER_LATENCY
        for entry, cycles in ((instruction.result, lasts), (instruction.read, OPERANDS_READ)):
            if entry is not None:
                self.free[entry] = max(self.free[entry], cycle + cycles)
        self.ready = cycle + max(1, instruction.stall)
        self.last_issue = cycle
        self.at += 1

    def end(self):
        """Return the cycle in which it is past its last instruction; results may be on the way."""
        return self.ready


class Slot(NamedTuple):
    """When a warp may issue, and which: ordered by time, then by who waits longest."""

    cycle: int
    last_issue: int
    number: int


def replay(sequences, load_cycles):
    """Return the cycles of warps that start together, each with its list of Instructions."""
    warps = [Warp(sequence) for sequence in sequences]
    taken = {}  # cycle from which each pipe is free
    now = 0
    while True:
        slots = []
        for number, warp in enumerate(warps):
            if warp.at < len(warp.sequence):
                pipe, _ = PIPES.get(warp.sequence[warp.at].kind, ("other", 1))
                cycle = max(now, warp.may_issue(), taken.get(pipe, 0))
                slots.append(Slot(cycle, warp.last_issue, number))
        if not slots:
            return max((warp.end() for warp in warps), default=0)
        cycle, _, number = min(slots)
        pipe, occupied = PIPES.get(warps[number].sequence[warps[number].at].kind, ("other", 1))
        taken[pipe] = cycle + occupied
        warps[number].issue(cycle, load_cycles)
        now = cycle + 1


def replay_loop(sequences, load_cycles):
    """Return the cycles of one pass of a loop, once it has settled; 0 if no warp passes it."""
    if not any(sequences):
        return 0
    passes = [replay([s * n for s in sequences], load_cycles) for n in (FEW, MANY)]
    return max((passes[1] - passes[0]) / (MANY - FEW), BRANCH)
