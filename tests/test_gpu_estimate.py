"""The estimate of the CUDA kernels' speed: its parts on made-up machine code, and the whole.

The whole is compiled as the compile gate's kernels are, and compared with the accepted estimates.
"""

import os
import subprocess
import sys

import pytest
from compiler_wheels import require_compiler
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu_estimate
import gpu_estimate_code as machine
from gpu_estimate_phases import BARRIER, Code, Loads, Phases, TableError
from gpu_estimate_replay import BRANCH, replay, replay_loop
from gpu_estimate_table import KERNELS, Kernel, Phase

LOADS = Loads(l1=50, l2=300)
NONE = 7  # in the place of the number of a scoreboard entry

SOURCE = """\
def add(a, b):
    return a + b


def total(values, n):
    z = 0
    for k in range(n):
        z = add(z, values[k])
    return z


def kernel(values, n):
    for step in range(n):
        if values:
            total(values, n)
        else:
            other(n)


def other(n):
    return n + n
"""


def one(text, stall=1, result=NONE, waits=()):
    """Return an instruction as nvdisasm prints it; stall, result, waits: see Instruction."""
    control = stall | result << 5 | NONE << 8 | sum(1 << entry for entry in waits) << 11
    return f"\t/*0010*/ {text} ; /* 0x{0:016x} */\n\t/* 0x{control << 41:016x} */"


def at(file, *lines):
    """Return the marks of a line of the source, after those of the lines that call it."""
    marks = []
    for k in range(len(lines)):
        inlined = f' inlined at "{file}", line {lines[k - 1]}' if k else ""
        marks.insert(0, f'\t//## File "{file}", line {lines[k]}{inlined}')
    return "\n".join(marks)


def listing(*parts, name="kernel"):
    return "\n".join(["first", f"//----- .text.{name} -----", *parts, ""])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "kernels.py"
    path.write_text(SOURCE)
    return str(path)


def made_of(file, *more):
    """Return the listing of SOURCE's kernel, whose loop in ``total`` is unrolled twice.

    more: lines of it behind that loop.
    """
    return listing(
        at(file, 13),
        one("MOV R0, R1"),
        ".L_x_1:",
        at(file, 15, 7),
        one("MOV R2, RZ", 4),
        ".L_x_2:",
        at(file, 15, 8),
        one("LDG.E R4, [R2]", result=0),
        one("LDG.E R5, [R2+0x4]", result=0),
        at(file, 15, 8, 2),
        one("FADD R3, R3, R4", 4, waits=(0,)),
        one("FADD R3, R3, R5", 4),
        at(file, 15, 7),
        one("ISETP.NE.AND P0, PT, R2, RZ, PT", 13),
        one("@P0 BRA `(.L_x_2)", 5),
        *more,
        at(file, 13),
        one("BAR.SYNC.DEFER_BLOCKING 0x0"),
        at(file, 17, 21),
        one("FADD R6, R6, R6", 15),
        at(file, 13),
        one("@P1 BRA `(.L_x_1)", 5),
        one("EXIT"),
    )


def kernel(*phases, **more):
    numbers = {"blocks": 1, "minibatches": 1, "grid_waits": 0}
    names = {"name": "toy", "model": "toy", "function": "kernel"}
    return Kernel(**{**names, **numbers, **more}, phases=phases)


def cycles(file, phase, behind=(), **more):
    """Return the cycles of a phase; behind: see made_of; more: parts of the Kernel."""
    return Phases(Code(made_of(file, *behind), kernel(phase, **more)), LOADS).of_function(phase)


def test_an_instruction_has_what_the_compiler_encoded_and_its_source(file):
    instructions, labels = machine.read_kernel(made_of(file), "kernel")
    load, _, add = instructions[2:5]
    assert (load.opcode, load.kind, load.stall, load.result, load.waits) == (
        *("LDG.E", "LDG", 1, 0),
        (),
    )
    assert (add.stall, add.result, add.read, add.waits) == (4, None, None, (0,))
    assert add.frames == ((file, 15), (file, 8), (file, 2))
    assert [place.kind for place in machine.places(add)] == ["loop", "if", "call", "loop", "call"]
    assert labels == {".L_x_1": 1, ".L_x_2": 2}


def test_loops_are_found_by_their_branches_back(file):
    outer, inner = machine.find_loops(*machine.read_kernel(made_of(file), "kernel"))
    assert (outer.header, inner.header) == (1, 2)
    assert inner.body == set(range(2, 8)) < outer.body


def instruction(text, stall=1, result=NONE, waits=()):
    (found,), _ = machine.read_kernel(listing(one(text, stall, result, waits)), "kernel")
    return found


def test_stall_counts_and_entries_delay_a_warp():
    add = instruction("FADD R0, R0, R0", 4)
    assert replay([[add] * 10], 300) == 40
    load = instruction("LDG.E R0, [R2]", result=2)
    user = instruction("FADD R0, R0, R0", waits=(2,))
    assert replay([[load, user]], 300) == 301


def test_warps_hide_waiting_but_share_pipes():
    add = instruction("FADD R0, R0, R0", 4)
    assert replay([[add] * 10] * 4, 300) == 43
    sine = instruction("MUFU.SIN R0, R0")
    assert replay([[sine] * 10] * 2, 300) == 19 * 8 + 1


def test_a_pass_of_a_loop_costs_a_branch_at_least():
    assert replay_loop([[instruction("FADD R0, R0, R0", 4)] * 10], 300) == 40
    assert replay_loop([[instruction("FADD R0, R0, R0", 4)]], 300) == BRANCH
    assert replay_loop([[]], 300) == 0


def test_a_loop_is_passed_as_the_table_says(file):
    """A pass of the source is half one of the machine code, which is unrolled twice."""
    few, many = (cycles(file, Phase("all", "total", {"k": n})) for n in (10, 30))
    one_pass = 2 + LOADS.l2 + 4 + 4 + 13 + 5  # the second load is issued two cycles after the first
    assert many - few == pytest.approx(10 * one_pass)
    in_l1 = cycles(file, Phase("all", "total", {"k": 30}, l2_share=0))
    assert many - in_l1 == pytest.approx(15 * (LOADS.l2 - LOADS.l1))


def test_branches_that_are_not_taken_cost_nothing(file):
    rest = Phase("else", "other", {})
    inside = Phase("all", "total", {"k": 10})
    assert cycles(file, rest) == 15
    assert cycles(file, rest, taken={"values": True}) == 0
    assert cycles(file, inside, taken={"values": True}) > 0
    assert cycles(file, inside, taken={"values": False}) == 0


def test_a_remainder_counts_only_where_passes_are_left(file):
    behind = [at(file, 15, 8, 2), one("FADD R3, R3, R7", 11)]
    even, odd = (Phase("all", "total", {"k": n}) for n in (10, 11))
    assert cycles(file, even, behind) == cycles(file, even)
    assert cycles(file, odd, behind) == cycles(file, odd) + 11


def test_a_remainder_may_be_a_loop(file):
    behind = [
        *(".L_x_3:", at(file, 15, 8), one("LDG.E R4, [R2]", result=0)),
        *(at(file, 15, 7), one("@P0 BRA `(.L_x_3)", 15)),
    ]
    even, odd = (Phase("all", "total", {"k": n}) for n in (10, 11))
    assert cycles(file, even, behind) == cycles(file, even)
    assert cycles(file, odd, behind) == cycles(file, odd) + 16


def test_of_two_copies_of_a_loop_the_slower_one_counts(file):
    def copy(stall):
        work = one("LDG.E R4, [R2]", stall, result=0)
        branch = one("@P0 BRA `(.L_x_3)", stall, waits=(0,))
        return [".L_x_3:", at(file, 15, 8), work, work, at(file, 15, 7), branch]

    phase = Phase("all", "total", {"k": 10})
    assert cycles(file, phase, copy(1)) == cycles(file, phase)
    assert cycles(file, phase, copy(15)) > cycles(file, phase)


NESTED = """\
def sums(values, n):
    for i in range(n):
        for k in range(n):
            n += values[k]


def kernel(values, n):
    for step in range(n):
        sums(values, n)
"""


def test_a_copy_of_a_loop_for_when_inner_ones_have_no_passes_does_not_count(tmp_path):
    file = str(tmp_path / "nested.py")
    (tmp_path / "nested.py").write_text(NESTED)
    store = one("STG.E [R2], R4", 15)

    def found(*copy):
        text = listing(
            *(at(file, 8), one("MOV R0, R1"), ".L_x_1:", one("MOV R2, RZ", 4)),
            *(".L_x_2:", at(file, 9, 2), one("MOV R4, RZ", 15)),
            *(".L_x_3:", at(file, 9, 4), one("FADD R4, R4, R5", 10)),
            *(at(file, 9, 3), one("@P0 BRA `(.L_x_3)", 5)),
            *(at(file, 9, 2), store, one("@P1 BRA `(.L_x_2)", 5)),
            *copy,
            *(at(file, 8), one("@P3 BRA `(.L_x_1)", 5), one("EXIT")),
        )
        phase = Phase("sums", "sums", {"i": 2, "k": 10})
        return Phases(Code(text, kernel(phase)), LOADS).of_function(phase)

    assert found() == 2 * (15 + 15 + 5 + 10 * (10 + 5))
    copy = ".L_x_4:", at(file, 9, 2), store, store, one("@P2 BRA `(.L_x_4)", 5)
    assert found(*copy) == found()


def test_calls_of_one_function_have_passes_of_their_own(tmp_path):
    file = str(tmp_path / "nested.py")
    (tmp_path / "nested.py").write_text(
        NESTED.replace("        for k", "        sums(i, 0)\n        for k")
    )
    loops = [
        [
            f".L_x_{number}:",
            *(at(file, 9, line, 3), one("FADD R4, R4, R5", 10)),
            *(at(file, 9, line, 2), one(f"@P0 BRA `(.L_x_{number})", 5)),
        ]
        for number, line in ((2, 3), (3, 4))
    ]
    ends = at(file, 9), one("@P3 BRA `(.L_x_1)", 5), one("EXIT")
    text = listing(
        at(file, 9), one("MOV R0, R1"), ".L_x_1:", one("NOP"), *loops[0], *loops[1], *ends
    )
    phase = Phase("sums", "sums", {"i": (10, 3)})
    assert Phases(Code(text, kernel(phase)), LOADS).of_function(phase) == 13 * 15
    phase = Phase("sums", "sums", {"i": (10, 0)})
    assert Phases(Code(text, kernel(phase)), LOADS).of_function(phase) == 10 * 15


def test_while_loops_have_names(tmp_path):
    path = tmp_path / "loops.py"
    path.write_text("def f(n, m):\n    while n > m:\n        while True:\n            n = m\n")
    (load,), _ = machine.read_kernel(listing(at(path, 4), one("LDG.E R0, [R2]")), "kernel")
    assert [place.name for place in machine.places(load)] == ["n", "True"]


def test_a_slice_of_the_warps_takes_a_branch(file):
    def sequences(**taken):
        phase = Phase("all", "total", {"k": 10}, warps=3, taken=taken)
        code = Code(made_of(file), kernel(phase))
        return [len(sequence) for sequence in code.sequences({2, 3, 9}, phase)]

    assert sequences() == [3, 3, 3]
    assert sequences(values=slice(0, 2)) == [2, 2, 1]
    assert sequences(values=slice(-1, None)) == [1, 1, 2]
    assert sequences(total=False) == [1, 1, 1]


def test_code_for_lanes_that_came_apart_is_left_out(file):
    behind = [at(file, 15, 8), one("BRA.DIV UR4, `(.L_x_9)")]
    text = made_of(file, *behind) + "\n.L_x_9:\n" + one("SHFL.BFLY PT, R0, R0, 0x1, 0x1f") + "\n"
    instructions, labels = machine.read_kernel(text, "kernel")
    order = machine.flow_order(instructions, labels)
    assert instructions[-1].kind == "SHFL"
    assert sorted(order) == list(range(len(instructions) - 1))


def test_stretches_between_barriers(file):
    phases = Phase("before and after", "", {"k": 10}), Phase("rest", "", {})
    found = Code(made_of(file), kernel(*phases, by_barrier=True))
    with pytest.raises(TableError, match="has 1 stretches between barriers and the table 2"):
        Phases(found, LOADS).between_barriers(phases)
    (both,) = Phases(found, LOADS).between_barriers(phases[:1])
    straight = 4 + 1 + 15 + 5  # before the loop, and after it
    assert both == BARRIER + 5 * (2 + LOADS.l2 + 4 + 4 + 13 + 5) + straight


def test_a_barrier_in_a_branch_that_is_not_taken_is_none(file):
    barrier = at(file, 15, 7), one("BAR.SYNC.DEFER_BLOCKING 0x0")
    phases = [Phase("all", "", {"k": 10})] * 2

    def found(phases, **more):
        code = Code(made_of(file, *barrier), kernel(*phases, by_barrier=True, **more))
        return Phases(code, LOADS).between_barriers(phases)

    assert len(found(phases)) == 2
    assert len(found(phases, taken={"values": True})) == 2
    assert found(phases[:1], taken={"values": False}) == [BARRIER + 1 + 15 + 5]


def test_of_kinds_of_schedulers_the_slower_one_counts(file):
    kinds = {"values": True}, {"values": False}
    few, none = (cycles(file, Phase("all", "total", {"k": 10}, taken=kind)) for kind in kinds)
    assert few > none == 0
    assert cycles(file, Phase("all", "total", {"k": 10}, taken=kinds)) == few


def test_between_barriers_a_warp_passes_a_loop_beside_what_another_does(file):
    def found(**more):
        phase = Phase("all", "", {"k": 10}, **more)
        code = Code(made_of(file), kernel(phase, by_barrier=True))
        return Phases(code, LOADS).between_barriers([phase])[0]

    looping, resting = (found(taken={"values": which}) for which in (True, False))
    beside = found(taken={"values": slice(0, 1)}, warps=2)
    assert looping <= beside < looping + resting - BARRIER


@pytest.mark.parametrize(
    ("phase", "more", "says"),
    [
        (Phase("gone", "_gone", {}), {}, "no machine code comes from `_gone`, which phase 'gone'"),
        (Phase("all", "total", {}), {}, r"a loop over `k` \(total, line 7\) and does not say how"),
        (Phase("all", "total", {"k": 1}), {"loop": "x"}, "has no loop over `x`"),
        (Phase("all", "total", {"k": 1}), {"taken": {"n > 0": True}}, "branch or function `n > 0`"),
        (Phase("all", "total", {"k": 1}, taken={"y": True}), {}, "branch or function `y`"),
    ],
)
def test_a_table_that_does_not_fit_the_code_is_named(file, phase, more, says):
    with pytest.raises(TableError, match=says):
        cycles(file, phase, **more)


def test_what_became_slower_is_named():
    accepted = {"mlp": {"us_per_step": 100}}
    assert gpu_estimate.became_slower({"mlp": {"us_per_step": 109}}, accepted) == []
    (line,) = gpu_estimate.became_slower({"mlp": {"us_per_step": 111}}, accepted)
    assert line == "mlp: a step is estimated at 111 us, accepted are 100"
    (line,) = gpu_estimate.became_slower({"lenet": {"us_per_step": 1}}, accepted)
    assert line == "lenet: no estimate is accepted yet"


def a_day(commit):
    """Return the report of a GPU day on which `toy` took 10 us a step, 4 us of them waits."""
    speed = {"training_epochs_per_second": 1e5, "epochs_per_second": 9e4}
    steps = {
        "speed": {"toy": {"cuda": speed}},
        "profile": {"toy": {"us": {"all": 6}}},
        "micro": {"grid.sync of 1 blocks, us": 4, "grid.sync of 2 blocks, us": 4},
    }
    return {"outcome": {"speed": {}}, "code": {"commit": commit + "0" * 28}, "steps": steps}


def test_what_a_day_measured_belongs_to_the_kernel_of_its_commit():
    phase, drafts = Phase("all", "total", {}), [{"design": "a draft", "us_per_step": 20}]
    commit = "123456789abc"
    plain, fast = kernel(phase, measured_at=commit), kernel(phase, draft="a draft")
    of_plain = gpu_estimate.measured(a_day(commit), drafts, plain)
    assert (of_plain["us_per_step"], of_plain["phases"]) == (10, {"all": 2})
    assert "Measured were, at commit 123456789abc, 10 us" in gpu_estimate.what_was_measured(
        of_plain, 8
    )
    of_fast = gpu_estimate.measured(a_day(commit), drafts, fast)
    said = gpu_estimate.what_was_measured(of_fast, 8)
    assert "did not measure it; a draft of the same design (a draft) took 20 us" in said
    assert said.endswith("0.40.")
    assert gpu_estimate.measured(a_day("f" * 12), drafts, plain) is None
    with pytest.raises(TableError, match="toy: no draft `gone` was measured"):
        gpu_estimate.measured(a_day(commit), drafts, kernel(phase, draft="gone"))


@pytest.mark.parametrize("name", [one.name for one in KERNELS])
def test_no_kernel_became_slower_without_saying_so(name):
    """Accept what is meant: python benchmarks/gpu_estimate.py --accept."""
    require_compiler()
    result = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu_estimate.py", name, "--check"],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
