"""What the CUDA kernels should take on an H100, by their machine code: no GPU is needed.

    python benchmarks/gpu_estimate.py                      # all kernels, as tables
    python benchmarks/gpu_estimate.py mlp --json           # one, as JSON
    python benchmarks/gpu_estimate.py --check              # exit code 1 if one became slower
    python benchmarks/gpu_estimate.py --accept             # take today's estimates as those to keep

It is an estimate. The kernels are compiled as for an H100 and each loop is replayed with the
compiler's own stall counts (gpu_estimate_replay.py), as often as gpu_estimate_table.py says that
the slowest thread passes it. How long loads and waits of the grid take is what the last GPU day
measured. Needs the wheels of the extra ``gpu``.
"""

import argparse
import itertools
import json
import os
import sys
from importlib.metadata import version

from common import ROOT
from gpu_estimate_code import find_loops, read_kernel
from gpu_estimate_phases import Code, Loads, Phases, TableError
from gpu_estimate_replay import replay_loop
from gpu_estimate_table import KERNELS

ACCEPTED = ROOT / "benchmarks" / "results" / "gpu_estimate.json"
GPU_DAY = ROOT / "benchmarks" / "results" / "gpu_day.json"
DESIGNS = ROOT / "benchmarks" / "results" / "gpu_designs.json"
TOLERATED = 1.1  # times the accepted estimate
# The clock that the device of the GPU day reaches. These kernels wait more than they compute, so
# power does not hold it back: replayed at this clock, an H100's dependent loads left 37 cycles to
# the L1 cache, within what is published (33 to 41), and an H200's 43; at 1755 MHz, the slowest that
# the H100 may do under load, 26.
CLOCK = 1980  # cycles of a microsecond
L2_MEGABYTES = 5.5  # in a microsecond, of all multiprocessors together; published, not measured
COMPILERS = ("numba", "numba-cuda", "llvmlite", "nvidia-nvvm", "nvidia-nvjitlink")
LISTING = ("nvdisasm", "-gi", "-hex", "-c")


def compiled(kernels):
    """Return {name: what nvdisasm prints of the Kernel}, and of the day's dependent loads."""
    os.environ["NUMBA_ENABLE_CUDASIM"] = "0"  # before Numba is imported: its compiler is wanted
    sys.path[:0] = [str(ROOT / name) for name in ("src", "tests")]
    from msgd.kernels import options

    # Lines of the source beside the machine code, which stays the same; before models are imported.
    options.CUDA["lineinfo"] = options.CUDA_ENTRY["lineinfo"] = True
    import offline_compiler
    from gpu_day_tools import chase_kernel
    from numba import types

    offline_compiler.pretend_device()
    offline_compiler.leave_out_variables()
    integers = types.int64[::1]
    signature = types.void(integers, types.int64, integers)
    (chase,) = offline_compiler.disassemble(chase_kernel(), signature, LISTING)
    listings = {}
    for kernel in kernels:
        launched = offline_compiler.launches(kernel.model, "float32", **kernel.settings)
        if kernel.function not in launched:
            raise TableError(
                f"{kernel.model} launches no kernel {kernel.function}, but {', '.join(launched)}; "
                f"mend the entry {kernel.name} in benchmarks/gpu_estimate_table.py"
            )
        (listing,) = offline_compiler.disassemble(*launched[kernel.function], LISTING)
        listings[kernel.name] = listing
    return listings, chase


def load_cycles(chase, micro):
    """Return the Loads with which the replay of dependent loads takes what was measured.

    chase: their machine code; micro: what the GPU day's step of that name found.
    """
    instructions, labels = read_kernel(chase, "chase")
    loop = find_loops(instructions, labels)[0]
    sequence = [instructions[at] for at in sorted(loop.body)]
    loads = sum(one.kind == "LDG" for one in sequence)

    def cycles(name):
        wanted = micro[f"dependent load, {name}, ns"] * CLOCK / 1000 * loads
        low, high = 0, 2000
        while high - low > 1:
            middle = (low + high) // 2
            is_less = replay_loop([sequence], middle) < wanted
            low, high = (middle, high) if is_less else (low, middle)
        return high

    return Loads(cycles("L1"), cycles("L2"))


def grid_wait(micro, blocks):
    """Return the us of a wait of a grid: between those measured, in proportion to its blocks."""
    pairs = [(int(k.split()[2]), us) for k, us in micro.items() if k.startswith("grid.sync")]
    measured = sorted(pairs)
    for (low, at_low), (high, at_high) in itertools.pairwise(measured):
        if low <= blocks <= high:
            return at_low + (at_high - at_low) * (blocks - low) / (high - low)
    raise TableError(f"the GPU day measured waits of {measured[0][0]} to {measured[-1][0]} blocks")


def estimate(kernel, listing, loads, micro):
    """Return {"phases": {name: cycles}, "us_per_step": ..., ...} of a Kernel of the table."""
    phases = Phases(Code(listing, kernel), loads)
    if kernel.by_barrier:
        cycles = phases.between_barriers(kernel.phases)
    else:
        cycles = [phases.of_function(phase) for phase in kernel.phases]
    found = {
        phase.name: {"cycles": round(n), "us": n / CLOCK + phase.l2_megabytes / L2_MEGABYTES}
        for phase, n in zip(kernel.phases, cycles, strict=True)
    }
    us = kernel.grid_waits * grid_wait(micro, kernel.blocks)
    found["waits of the grid"] = {"cycles": round(us * CLOCK), "us": us}
    step = sum(phase["us"] for phase in found.values())
    return {
        "us_per_step": step,
        "epochs_per_second": 1e6 / step / kernel.minibatches,
        "phases": found,
    }


def commit_of_speeds(day):
    return (day["outcome"]["speed"].get("commit") or day["code"]["commit"])[:12]


def measured(day, designs, kernel):
    """Return what was measured of a kernel: us of a step and of phases, and epochs/s.

    Of a kernel that the GPU day did not measure it is what a draft of it took, in us, or None.
    """
    if kernel.measured_at != commit_of_speeds(day):
        found = [d["us_per_step"] for d in designs if d["design"] == kernel.draft]
        if kernel.draft and not found:
            raise TableError(
                f"{kernel.name}: no draft `{kernel.draft}` was measured; mend `draft` in "
                "benchmarks/gpu_estimate_table.py"
            )
        return {"draft": kernel.draft, "us_per_step": found[0]} if found else None
    speed = day["steps"]["speed"][kernel.model][kernel.speed]
    wait = grid_wait(day["steps"]["micro"], kernel.blocks)
    alone = day["steps"].get("profile", {}).get(kernel.model, {}).get("us", {})
    return {
        "us_per_step": 1e6 / speed["training_epochs_per_second"] / kernel.minibatches,
        "training_epochs_per_second": speed["training_epochs_per_second"],
        "epochs_per_second": speed["epochs_per_second"],
        "phases": {name: us - wait for name, us in alone.items()},
        "commit": kernel.measured_at,
    }


def table(kernel, found):
    """Return an estimate and what was measured as Markdown."""
    day = found["measured"] or {}
    alone = day.get("phases", {})
    lines = [
        f"## {kernel.name}",
        "",
        "| phase | cycles | us, estimated | share | us, measured alone |",
        "|:--|--:|--:|--:|--:|",
    ]
    for name, phase in found["phases"].items():
        us = f"{max(alone[name], 0):.4g}" if name in alone else ""
        share = phase["us"] / found["us_per_step"]
        lines.append(f"| {name} | {phase['cycles']} | {phase['us']:.4g} | {share:.0%} | {us} |")
    lines += [
        "",
        f"Estimated: {found['us_per_step']:.4g} us a step, {found['epochs_per_second']:.3g} "
        "epochs/s of training alone.",
        what_was_measured(day, found["us_per_step"]),
        "",
    ]
    return "\n".join(lines)


def what_was_measured(day, estimated):
    """Return a sentence on what ``measured`` returned, {} for None."""
    if not day:
        return "The last GPU day did not measure it."
    ratio = f"{estimated / day['us_per_step']:.2f}"
    if "draft" in day:
        return (
            f"The last GPU day did not measure it; a draft of the same design ({day['draft']}) "
            f"took {day['us_per_step']:.4g} us. Estimated / the draft's time: {ratio}."
        )
    return (
        f"Measured were, at commit {day['commit']}, {day['us_per_step']:.4g} us and "
        f"{day['training_epochs_per_second']:.3g} epochs/s, {day['epochs_per_second']:.3g} "
        "with validation. Estimated / measured time, if the kernel has not changed since: "
        f"{ratio}."
    )


def became_slower(found, accepted):
    """Return a line for each kernel whose estimate is more than tolerated above the accepted one.

    found, accepted: {name: {"us_per_step": ...}}.
    """
    lines = []
    for name, one in found.items():
        if name not in accepted:
            lines.append(f"{name}: no estimate is accepted yet")
        elif one["us_per_step"] > TOLERATED * accepted[name]["us_per_step"]:
            lines.append(
                f"{name}: a step is estimated at {one['us_per_step']:.4g} us, accepted are "
                f"{accepted[name]['us_per_step']:.4g}"
            )
    return lines


def compilers():
    return {name: version(name) for name in COMPILERS}


def check(found):
    """Return the exit code: 1, with the reason printed, if a kernel became slower."""
    accepted = json.loads(ACCEPTED.read_text())
    slower = became_slower(found, accepted["kernels"])
    if not slower:
        return 0
    if (now := compilers()) != accepted["compilers"]:
        slower.append(f"Accepted were what {accepted['compilers']} made; here are {now}.")
    slower.append(
        "If that is meant, say why in the commit message and accept it: "
        "python benchmarks/gpu_estimate.py --accept"
    )
    print(*slower, sep="\n", file=sys.stderr)
    return 1


def accept(found):
    """Make ``found`` the accepted estimates, beside those of other kernels of the table."""
    kernels = json.loads(ACCEPTED.read_text())["kernels"] if ACCEPTED.exists() else {}
    for name, one in found.items():
        phases = {phase: round(cost["us"], 3) for phase, cost in one["phases"].items()}
        rounded = {key: round(one[key], 3) for key in ("us_per_step", "epochs_per_second")}
        kernels[name] = {**rounded, "phases": phases}
    report = {
        "what": "Estimates by benchmarks/gpu_estimate.py, in us of a minibatch; not measured.",
        "compilers": compilers(),
        "kernels": {one.name: kernels[one.name] for one in KERNELS if one.name in kernels},
    }
    ACCEPTED.write_text(json.dumps(report, indent=1) + "\n")


def parse_arguments():
    """Return the arguments and the Kernels that they ask for."""
    names = [kernel.name for kernel in KERNELS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=", ".join(names))
    parser.add_argument("--json", action="store_true", help="print JSON, not tables")
    parser.add_argument("--check", action="store_true", help="compare with the accepted estimates")
    parser.add_argument("--accept", action="store_true", help="keep these estimates as accepted")
    arguments = parser.parse_args()
    wanted = arguments.kernels or names
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"no such kernel: {', '.join(unknown)}; there are {', '.join(names)}")
    return arguments, [kernel for kernel in KERNELS if kernel.name in wanted]


def main():
    """Estimate, print, and return the exit code."""
    arguments, kernels = parse_arguments()
    day = json.loads(GPU_DAY.read_text())
    designs = json.loads(DESIGNS.read_text())["designs"]
    micro, found = day["steps"]["micro"], {}
    try:
        listings, chase = compiled(kernels)
        loads = load_cycles(chase, micro)
        for kernel in kernels:
            found[kernel.name] = estimate(kernel, listings[kernel.name], loads, micro)
            found[kernel.name]["measured"] = measured(day, designs, kernel)
    except TableError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.json:
        report = {"clock_mhz": CLOCK, "loads": loads._asdict(), "kernels": found}
        print(json.dumps(report, indent=1))
    else:
        print("Estimates by replay of machine code for an H100; nothing below ran on one, but for")
        print(
            f"what is called measured. Clock {CLOCK} MHz; a load takes {loads.l1} cycles from the"
        )
        print(f"L1 cache, {loads.l2} from L2.\n")
        print("\n".join(table(kernel, found[kernel.name]) for kernel in kernels))
    if arguments.accept:
        accept(found)
    return check(found) if arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
