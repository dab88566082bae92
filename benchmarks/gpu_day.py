"""What only a GPU can tell about the CUDA kernels, in one command of at most nine minutes.

    python benchmarks/gpu_day_pack.py    # before, where there is a network
    python benchmarks/gpu_day.py         # on a machine with a GPU, which needs no network
    python benchmarks/gpu_day.py --keep --steps tests speed    # these again, the others as found

Each step is a process of its own with a time limit, the most important first; what a step found
until its limit is kept. Everything goes into gpu-day/: a .json and a .log per step, and all of them
in gpu_day.json and gpu_day.md. docs/gpu-day.md says what the steps are and what to do with it.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT
from gpu_day_pack import PACKED, install

# Seconds at most of each step, in the order of importance. All together have SECONDS.
STEPS = {
    "versions": 30,
    "smoke": 40,
    "tests": 110,
    "errors": 80,
    "bits": 45,
    "speed": 140,
    "micro": 30,
    "sanitizer": 60,
    "unlabelled": 50,
    "torch": 120,
    "profile": 60,
}
SECONDS = 540
SHORTEST = 5  # a step with less than this many seconds left is not begun
PROGRAM = Path(__file__).with_name("gpu_day_steps.py")
EXIT_MISSING = 3  # a step's exit code where this machine lacks what it needs


def environment(folder):
    """Return the environment of the steps: packages installed here before the machine's own."""
    threads = os.environ.get("NUMBA_NUM_THREADS") or str(len(os.sched_getaffinity(0)))
    paths = [folder / "packages", ROOT / "src", ROOT / "tests", os.environ.get("PYTHONPATH")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(path) for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "NUMBA_ENABLE_CUDASIM": "0",  # without a GPU the day fails; the simulator is no substitute
        # Set from the start: tests/conftest.py would set it later, and Numba then forgets what
        # msgd.kernels.options said to it.
        "NUMBA_NUM_THREADS": threads,
        "NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR") or str(folder / "kernels"),
    }


def run_step(name, folder, limit, options):
    """Run a step for at most ``limit`` seconds; return (its outcome, what it found)."""
    result = folder / f"{name}.json"
    result.unlink(missing_ok=True)
    started = time.monotonic()
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, PROGRAM, name, folder, "--seconds", str(limit), *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(folder),
            cwd=ROOT,
            start_new_session=True,  # so that what it started can be ended with it
        )
        try:
            code = process.wait(limit)
            status = {0: "done", EXIT_MISSING: "missing"}.get(code, f"failed (exit code {code})")
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:
            end(process)
    found = json.loads(result.read_text()) if result.exists() else {}
    outcome = {"status": status, "seconds": round(time.monotonic() - started, 1), "limit": limit}
    if status != "done":
        lines = (folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
        outcome["last_line"] = lines[-1][:500] if lines else ""
    return outcome, found


def end(process):
    """End ``process`` and all that it started and that is still running."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def describe(steps, packages):
    """Return the parts of the report that say where it comes from."""
    from msgd.models import MODELS
    from msgd.provenance import describe_code, describe_hardware
    from msgd.source import sha256_of_source, training_source

    versions = steps.get("versions", {})
    code = describe_code()
    packed = PACKED / "packed.json"
    if code["commit"] is None and packed.exists():  # a copy of the tree, without its history
        here = json.loads(packed.read_text()).get("code", code)
        if here["sha256"] == code["sha256"]:
            code = here
    files = {file for model in MODELS for file in training_source(model, "cuda")}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": {"gpu": versions.get("gpu"), **describe_hardware()},
        "packages": versions.get("packages", {}),
        "carried": packages,
        "code": code,
        "cuda_sha256": sha256_of_source(sorted(files)),
        "why_no_device": versions.get("why_no_device"),
    }


def table(report):
    """Return the report as Markdown: a row per step, and one per model's speed."""
    lines = [f"GPU: {report['hardware']['gpu']}", "", "| step | outcome | seconds | found |"]
    lines += ["| --- | --- | --- | --- |"]
    for name, outcome in report["outcome"].items():
        found = report["steps"].get(name, {})
        text = found.get("summary") or found.get("missing") or outcome.get("last_line", "")
        text = str(text).replace("|", "/").replace("\n", " ")[:160]
        status = outcome["status"] + (f" ({outcome['date']})" if "date" in outcome else "")
        lines.append(f"| {name} | {status} | {outcome.get('seconds', '')} | {text} |")
    speed, torch = (report["steps"].get(name, {}) for name in ("speed", "torch"))
    lines += ["", "Epochs per second; those of PyTorch without validation.", ""]
    lines += ["| model | CUDA | its training alone | CPU twin | PyTorch eager | graph | compile |"]
    lines += ["| --- " * 7 + "|"]
    for model in ("logistic_regression", "mlp", "lenet"):
        own, other = speed.get(model, {}), torch.get(model, {})
        cuda, cpu = own.get("cuda", {}), own.get("cpu", {})
        numbers = [cuda.get("epochs_per_second"), cuda.get("training_epochs_per_second")]
        numbers += [cpu.get("epochs_per_second"), *map(other.get, ("eager", "graph", "compile"))]
        cells = [f"{number:.3g}" if number else "" for number in numbers]
        lines.append(f"| {' | '.join([model, *cells])} |")
    return "\n".join(lines) + "\n"


def found_before(folder):
    """Return the report of an earlier run in ``folder``, each outcome with its date and commit.

    SystemExit if there is none that can be read.
    """
    path = folder / "gpu_day.json"
    try:
        report = json.loads(path.read_text())
        for outcome in report["outcome"].values():
            outcome.setdefault("date", report["date"])
            outcome.setdefault("commit", report["code"]["commit"])
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"--keep: {path} cannot be kept ({error!r}); run all steps") from None
    return report


def check_same(before, now):
    """Raise SystemExit if two reports are not of one kind of machine, packages and CUDA code."""
    if now["why_no_device"]:
        raise SystemExit(f"--keep: {now['why_no_device']}")
    for name in ("gpu", "processor", "cores"):
        check_equal(name, before["hardware"].get(name), now["hardware"][name])
    for name in ("rehearsal", "packages", "cuda_sha256"):
        check_equal(name, before.get(name), now[name])


def check_equal(name, then, now):
    """Raise SystemExit unless ``then`` equals ``now``, which are called ``name``."""
    if then != now:
        raise SystemExit(f"--keep: {name} was {then}, and is {now}; run all steps again")


def run_day(folder, names, seconds, options, keep=False):
    """Run the steps ``names`` and return the report, which is renewed in ``folder`` after each.

    With ``keep``, what an earlier run in ``folder`` found in other steps stays in the report, each
    with its date; SystemExit if it was of another machine, other packages or other CUDA code.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    sys.path.insert(0, str(ROOT / "src"))
    try:
        packages = install(PACKED, folder / "packages") if PACKED.exists() else {}
    except Exception as error:  # the machine's own packages may do
        packages = {"failed": repr(error)}
    before = found_before(folder) if keep else None
    report = dict(before or {"outcome": {}, "steps": {}})
    for name in dict.fromkeys(["versions", *names] if keep else names):
        left = seconds - (time.monotonic() - started)
        no_gpu = report.get("why_no_device")
        if no_gpu or left < SHORTEST:
            not_run = {"status": "not run: " + (no_gpu or "no time left")}
            report["outcome"].setdefault(name, not_run)
        else:
            limit = round(min(STEPS[name], left), 1)
            outcome, found = run_step(name, folder, limit, options)
            report["outcome"][name], report["steps"][name] = outcome, found
        in_order = [step for step in STEPS if step in report["outcome"]]
        report["outcome"] = {step: report["outcome"][step] for step in in_order}
        parts = {"rehearsal": bool(options), **describe(report["steps"], packages)}
        if before:
            check_same(before, parts)
        report = {**report, **parts, "seconds": round(time.monotonic() - started, 1)}
        (folder / "gpu_day.json").write_text(json.dumps(report, indent=2) + "\n")
        (folder / "gpu_day.md").write_text(table(report))
        print(f"{name}: {json.dumps(report['outcome'][name])}", flush=True)
    return report


def main():
    """Run the day; exit code 1 if there is no usable GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "gpu-day")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all steps together")
    parser.add_argument("--keep", action="store_true", help="what an earlier run found in others")
    parser.add_argument("--rehearse", action="store_true", help="with toys, to try the steps")
    options = parser.parse_args()
    words = ["--rehearse"] if options.rehearse else []
    folder = options.folder.resolve()
    report = run_day(folder, options.steps, options.seconds, words, options.keep)
    print(table(report))
    return 1 if report["why_no_device"] else 0


if __name__ == "__main__":
    sys.exit(main())
