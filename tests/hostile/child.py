"""Runs cases of the corpus one after the other, as commands in one process with limits.

    python child.py FOLDER FIRST

takes the cases from number FIRST on, each in a folder of its own in FOLDER, and prints a line of
JSON for each. Should one hang or kill the process, the lines end with the number that was begun.
"""

import contextlib
import faulthandler
import io
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from corpus import CASES  # noqa: E402

import msgd.kernels.options  # noqa: E402, F401 (before there is a limit)
from msgd.cli import main  # noqa: E402

MEMORY = 2 * 2**30  # beyond what the program takes for itself
SECONDS = 30  # of the CPU, and twice that in all
USAGE_ERROR = 2


def peak():
    """Return the bytes that this process has had at most since the last call of forget_peak."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024


def forget_peak():
    with contextlib.suppress(OSError):  # where it is not allowed, what comes on top is counted
        Path("/proc/self/clear_refs").write_text("5")


def run(words):
    """Run a command; return its exit code and what it wrote to standard error."""
    written = io.StringIO()
    with contextlib.redirect_stderr(written), contextlib.redirect_stdout(io.StringIO()):
        return main(words), written.getvalue()


def meet(case, folder):
    """Run ``case`` in the new folder ``folder``; return what came of it (dict)."""
    folder.mkdir()
    os.chdir(folder)
    words = case.make(folder)
    forget_peak()
    before, started = peak(), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process, whatever it is busy with
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
    try:
        code, said = run([*map(str, words)])
    except SystemExit as error:
        code, said = error.code, "usage"
    except BaseException as error:  # what a user would see as a traceback
        code, said = 1, f"Traceback: {error!r}"[:2000]
    signal.setitimer(signal.ITIMER_PROF, 0)
    faulthandler.cancel_dump_traceback_later()
    return {
        "code": code,
        "said": said[:3000],
        "length": len(said),
        "bytes": peak() - before,
        "seconds": time.process_time() - started,
        "names": words[-1] if case.names is None else case.names,
    }


def take_all(folder, first):
    limit = MEMORY + bytes_in_use()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number, case in enumerate(CASES[first:], start=first):
        print(json.dumps({"number": number}), flush=True)
        outcome = meet(case, folder / str(number))
        print(json.dumps({"number": number, **outcome}), flush=True)


def bytes_in_use():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    take_all(Path(sys.argv[1]).resolve(), int(sys.argv[2]))
