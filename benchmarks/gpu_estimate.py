"""What the CUDA kernels should take on an H100, by their machine code: no GPU is needed.

    python benchmarks/gpu_estimate.py                      # all models, as tables
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
TOLERATED = 1.1  # times the accepted estimate
# The clock that the device of the GPU day reaches. These kernels wait more than they compute, so
# power does not hold it back: replayed at this clock, its dependent loads leave 37 cycles to the L1
# cache, within what is published (33 to 41); at 1755 MHz, the slowest it may do under load, 26.
CLOCK = 1980  # cycles of a microsecond
L2_MEGABYTES = 5.5  # in a microsecond, of all multiprocessors together; published, not measured
COMPILERS = ("numba", "numba-cuda", "llvmlite", "nvidia-nvvm", "nvidia-nvjitlink")
LISTING = ("nvdisasm", "-gi", "-hex", "-c")


def compiled(models):
    """Return {model: what nvdisasm prints of its kernel}, and of the day's dependent loads."""
    os.environ["NUMBA_ENABLE_CUDASIM"] = "0"  # before Numba is imported: its compiler is wanted
    sys.path[:0] = [str(ROOT / name) for name in ("src", "tests")]
    from msgd.kernels import options

    # Lines of the source beside the machine code, which stays the same; before models are imported.
    options.CUDA["lineinfo"] = options.CUDA_ENTRY["lineinfo"] = True
    import offline_compiler
    from gpu_day_tools import chase_kernel
    from numba import types

    offline_compiler.pretend_device()
    integers = types.int64[::1]
    signature = types.void(integers, types.int64, integers)
    (chase,) = offline_compiler.disassemble(chase_kernel(), signature, LISTING)
    listings = {}
    for kernel in KERNELS:
        if kernel.model in models:
            launched = offline_compiler.launches(kernel.model, "float32")
            if kernel.name not in launched:
                raise TableError(
                    f"{kernel.model} launches no kernel {kernel.name}, but {', '.join(launched)}; "
                    "mend its entry in benchmarks/gpu_estimate_table.py"
                )
            (listing,) = offline_compiler.disassemble(*launched[kernel.name], LISTING)
            listings[kernel.model] = listing
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


def measured(day, kernel):
    """Return what the GPU day found of a kernel: us of a step and of phases, and epochs/s."""
    speed = day["steps"]["speed"][kernel.model]["cuda"]
    wait = grid_wait(day["steps"]["micro"], kernel.blocks)
    alone = day["steps"]["profile"][kernel.model]["us"]
    return {
        "us_per_step": 1e6 / speed["training_epochs_per_second"] / kernel.minibatches,
        "training_epochs_per_second": speed["training_epochs_per_second"],
        "epochs_per_second": speed["epochs_per_second"],
        "phases": {name: us - wait for name, us in alone.items()},
        "commit": day["outcome"]["speed"].get("commit") or day["code"]["commit"],
    }


def table(kernel, found):
    """Return an estimate and what was measured as Markdown."""
    day = found["measured"]
    lines = [
        f"## {kernel.model}",
        "",
        "| phase | cycles | us, estimated | share | us, measured alone |",
        "|:--|--:|--:|--:|--:|",
    ]
    for name, phase in found["phases"].items():
        alone = f"{max(day['phases'][name], 0):.4g}" if name in day["phases"] else ""
        share = phase["us"] / found["us_per_step"]
        lines.append(f"| {name} | {phase['cycles']} | {phase['us']:.4g} | {share:.0%} | {alone} |")
    ratio = found["us_per_step"] / day["us_per_step"]
    return "\n".join(
        [
            *lines,
            "",
            f"Estimated: {found['us_per_step']:.4g} us a step, {found['epochs_per_second']:.3g} "
            "epochs/s of training alone.",
            f"Measured were, at commit {day['commit'][:12]}, {day['us_per_step']:.4g} us and "
            f"{day['training_epochs_per_second']:.3g} epochs/s, {day['epochs_per_second']:.3g} "
            "with validation. Estimated / measured time, if the kernel is that one: "
            f"{ratio:.2f}.",
            "",
        ]
    )


def became_slower(found, accepted):
    """Return a line for each model whose estimate is more than tolerated above the accepted one.

    found, accepted: {model: {"us_per_step": ...}}.
    """
    lines = []
    for model, one in found.items():
        if model not in accepted:
            lines.append(f"{model}: no estimate is accepted yet")
        elif one["us_per_step"] > TOLERATED * accepted[model]["us_per_step"]:
            lines.append(
                f"{model}: a step is estimated at {one['us_per_step']:.4g} us, accepted are "
                f"{accepted[model]['us_per_step']:.4g}"
            )
    return lines


def compilers():
    return {name: version(name) for name in COMPILERS}


def check(found):
    """Return the exit code: 1, with the reason printed, if a model became slower."""
    accepted = json.loads(ACCEPTED.read_text())
    slower = became_slower(found, accepted["models"])
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
    """Make ``found`` the accepted estimates, beside those of other models."""
    models = json.loads(ACCEPTED.read_text())["models"] if ACCEPTED.exists() else {}
    for model, one in found.items():
        phases = {name: round(phase["us"], 3) for name, phase in one["phases"].items()}
        rounded = {name: round(one[name], 3) for name in ("us_per_step", "epochs_per_second")}
        models[model] = {**rounded, "phases": phases}
    what = "Estimates by benchmarks/gpu_estimate.py, in us of a minibatch; not measured."
    report = {"what": what, "compilers": compilers()}
    ACCEPTED.write_text(json.dumps({**report, "models": models}, indent=1) + "\n")


def parse_arguments():
    names = [kernel.model for kernel in KERNELS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(names))
    parser.add_argument("--json", action="store_true", help="print JSON, not tables")
    parser.add_argument("--check", action="store_true", help="compare with the accepted estimates")
    parser.add_argument("--accept", action="store_true", help="keep these estimates as accepted")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.models) - set(names))
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)}; there are {', '.join(names)}")
    return arguments, arguments.models or names


def main():
    """Estimate, print, and return the exit code."""
    arguments, models = parse_arguments()
    day = json.loads(GPU_DAY.read_text())
    micro, found = day["steps"]["micro"], {}
    try:
        listings, chase = compiled(models)
        loads = load_cycles(chase, micro)
        for kernel in KERNELS:
            if kernel.model in models:
                found[kernel.model] = estimate(kernel, listings[kernel.model], loads, micro)
                found[kernel.model]["measured"] = measured(day, kernel)
    except TableError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps({"clock_mhz": CLOCK, "loads": loads._asdict(), "models": found}, indent=1))
    else:
        print("Estimates by replay of machine code for an H100; nothing below ran on one, but for")
        print(
            f"what is called measured. Clock {CLOCK} MHz; a load takes {loads.l1} cycles from the"
        )
        print(f"L1 cache, {loads.l2} from L2.\n")
        print("\n".join(table(k, found[k.model]) for k in KERNELS if k.model in found))
    if arguments.accept:
        accept(found)
    return check(found) if arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
