"""The table on terminals of any size, and the program on a terminal that it redraws."""

import os
import pty
import select
import signal
import time

import pytest
from conftest import ROOT, command, environment, msgd, msgd_unread
from rich.console import Console

from msgd.evaluation.progress import Progress
from msgd.evaluation.watch import BY_PATIENCE, describe, duration

BEFORE = "2026-11-26 18:02:{:02d},{:03d} INFO "


class Shown:
    """Stands for a Watcher of these runs, the last of them silent for an hour."""

    results = "results"

    def __init__(self, *runs):
        self.runs = runs

    def look(self):
        return self.runs

    def seconds_silent(self, run):
        return 3600 if run is self.runs[-1] else 1


def running(name, errors=60, iteration=200, **changes):
    values = {"epoch": iteration // 100, "cap": 10, "n_train_batches": 100, "examples": 1000}
    values |= {"best_errors": errors - 1, "best_epoch": 1, "patience": 449, "seconds": 3725.0}
    values |= {"seconds_per_iteration": 0.5, "silent_after": 60}
    return Progress(name, "running", errors=errors, iteration=iteration, **{**values, **changes})


def lines_of(watcher, width=200, height=None):
    console = Console(width=width, height=50, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(describe(watcher, width, height))
    return [line.rstrip() for line in captured.get().splitlines()]


RUNS = [
    Progress("b/late", "finished", "patience", 600, 6, 10, 100, 51, 1000, 50, 5, seconds=90061.0),
    Progress("a/failed", "failed", "error: diverged"),
    running("b/good", 60),
    running("b/better", 40),
    Progress("c/new", "starting", cap=10, silent_after=300),
    Progress("b/best", "finished", "n_epochs", 1000, 10, 10, 100, 31, 1000, 30, 9, seconds=5.0),
    running("z/dead", 1),
]


def test_what_the_table_says():
    header, *rows, counts, failure, _ = lines_of(Shown(*RUNS))
    assert header.split("  ")[0] == "run"
    names = [row.split()[0] for row in rows]
    assert names == ["b/better", "b/good", "c/new", "z/dead", "a/failed", "b/best", "b/late"]
    assert counts == "2 running, 1 starting, 1 stalled?, 1 failed, 2 finished"
    assert failure == "a/failed: error: diverged"
    cells = [" ".join(row.split()) for row in rows]
    # 450 - 200 minibatches of patience left, 800 to the cap, half a second each.
    assert cells[0] == (
        "b/better running 2 of 10 4.00 % 3.90 % in 1 250 = 2.5 epochs 1:02 h 2:05 min to 6:40 min"
    )
    assert cells[2] == "c/new starting 0 of 10"
    assert cells[3].startswith("z/dead stalled? 1:00 h 2 of 10 0.10 %")
    assert "min" not in cells[3]  # nobody knows whether it goes on
    assert cells[5] == "b/best finished 10 of 10 3.10 % 3.00 % in 9 5 s n_epochs"
    assert cells[6] == "b/late finished 6 of 10 5.10 % 5.00 % in 5 1 d 1 h patience"


def test_the_page_shows_the_table():
    """docs/watching.md: the runs of a sweep under way, as msgd watch shows them."""
    whole = {"cap": 200, "n_train_batches": 2500, "examples": 10000}
    whole["seconds_per_iteration"] = 0.0001
    one = {"errors": 203, "best_errors": 198, "best_epoch": 31, "patience": 154998}
    two = {"errors": 251, "best_errors": 250, "best_epoch": 11, "patience": 54998}
    five = {"errors": 221, "best_errors": 219, "best_epoch": 21, "patience": 104998}
    runs = [
        running("mlp/seed=1", iteration=85000, **whole, **one, seconds=9.0, epoch=34),
        running("mlp/seed=2", iteration=30000, **whole, **two, seconds=4.0, epoch=12),
        Progress("mlp/seed=3", "finished", "patience", 1, 41, errors=196, **whole, seconds=11.0),
        Progress("mlp/seed=4", "starting", cap=200, silent_after=300),
        running("mlp/seed=5", iteration=55000, **whole, **five, seconds=6.0, epoch=22),
    ]
    runs[2].best_errors, runs[2].best_epoch = 189, 37
    shown = "\n".join(f"    {line}" for line in lines_of(Shown(*runs)))
    assert shown in (ROOT / "docs" / "watching.md").read_text(), shown


@pytest.mark.parametrize("width", range(20, 140, 7))
def test_a_narrow_terminal_gets_fewer_columns_and_no_line_is_cut(width):
    runs = [*RUNS, running("grid/learning_rate=0.01+seed=1+n_hidden=500-500-500+l2=0.0001")]
    lines = lines_of(Shown(*runs), width)
    assert max(map(len, lines)) <= width
    counts = "2 running, 1 starting, 1 stalled?, 1 failed, 2 finished".replace("2 r", "3 r")
    below = lines[len(runs) + 1 :]
    assert " ".join(below).startswith(counts)
    assert any(line.startswith("b/better") for line in lines)
    if width >= 34:
        assert "3.90 % in 1" in "\n".join(lines)
    assert width < 70 or any("l2=0.0001 " in line and "..." in line for line in lines)


@pytest.mark.parametrize(
    ("width", "caption"),
    [
        (120, [f"error, best: on the validation set; {BY_PATIENCE}"]),
        (60, ["best: on the validation set", BY_PATIENCE]),
        (48, ["best: on the validation set"]),
        (20, ["best: on the", "validation set"]),
    ],
)
def test_the_caption_is_of_the_columns_shown_and_is_not_cut(width, caption):
    lines = lines_of(Shown(running("b/good", 60), running("b/better", 40)), width)
    assert len(lines) > 3
    assert lines[-len(caption) :] == caption
    for column in ("error", "time left"):
        assert (column in caption[0] + caption[-1]) == (column in lines[0])


def test_where_others_have_errors_a_cost_is_left_out_first():
    unlabelled = Progress("da/default", "running", cap=10, epoch=2, cost=81.4, seconds=9.0)
    unlabelled.iteration, unlabelled.n_train_batches, unlabelled.silent_after = 200, 100, 60
    wide = lines_of(Shown(running("b/good"), unlabelled))[0].split()
    assert {"cost", "error", "patience"} <= {*wide}
    narrow = lines_of(Shown(running("b/good"), unlabelled), 105)[0].split()
    assert "cost" not in narrow
    assert {"error", "patience"} <= {*narrow}


def test_hundreds_of_runs_are_cut_to_the_height_and_counted():
    runs = [running(f"grid/seed={seed}", 900 - seed) for seed in range(500)]
    for width, height in ((100, 8), (100, 24), (60, 24), (30, 24), (100, 50)):
        lines = lines_of(Shown(*runs), width, height)
        assert len(lines) < height
        assert lines[1].split()[0] == "grid/seed=498"  # the last one is silent
        shown = sum(line.startswith("grid/") for line in lines)
        assert f"{500 - shown} more are not shown" in " ".join(lines)


def test_a_folder_without_runs_says_so():
    assert lines_of(Shown())[0].startswith("no runs yet in results")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (3599.4, "59:59 min")],
        *[(3599.6, "1:00 h"), (86399.6, "1 d 0 h"), (400000, "4 d 15 h")],
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def write_log(path, n_validations):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        BEFORE.format(n, 0) + f"epoch {n}, minibatch 5/5, iteration {5 * n}: cost 0.500000, "
        f"validation error 50.0000 % (50/100), patience 100, best so far\n"
        for n in range(1, n_validations + 1)
    ]
    path.write_text("".join(lines))


def test_without_a_terminal_the_table_is_shown_once_as_plain_text(tmp_path):
    write_log(tmp_path / "logs/train/a/default.log", 2)
    for options in ([], ["--once"]):
        done = msgd("watch", tmp_path, *options, FORCE_COLOR="", COLUMNS="30")
        assert (done.returncode, done.stderr) == (0, "")
        assert "\x1b" not in done.stdout
        row = next(line for line in done.stdout.splitlines() if line.startswith("a/default"))
        assert " ".join(row.split()[:4]) in ("a/default running 2 50.00", "a/default stalled? 0 s")
        assert "patience left" in done.stdout  # whatever COLUMNS says


def test_a_name_that_the_locale_cannot_write_is_shown_as_far_as_it_can(tmp_path):
    write_log(tmp_path / "logs/train/größe/default.log", 2)
    done = msgd("watch", tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "gr??e/default" in done.stdout


def test_nobody_needs_to_read_to_its_end(tmp_path):
    """As `| head` does not: no traceback, and no complaint of Python's own at its end."""
    done = msgd_unread("watch", tmp_path)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_errors_are_one_line(tmp_path):
    done = msgd("watch", tmp_path / "nowhere")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("msgd watch: error: ")
    assert "nowhere is not a folder" in line
    for seconds in ("0", "nan", "often"):
        done = msgd("watch", tmp_path, "--every", seconds)
        assert done.returncode == 2
        assert f"{seconds} is not a number of seconds from 0.1 to 86400" in done.stderr


def test_a_terminal_is_redrawn_until_ctrl_c(tmp_path, monkeypatch):
    log = tmp_path / "logs/train/a/default.log"
    write_log(log, 2)
    words = command("msgd.cli", "watch", tmp_path, "--every", "0.1")
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # who runs tests in the background ignores it
        changes = {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "100", "LINES": "20"}
        os.execve(words[0], words, environment(**changes))
    output, is_left = b"", False
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                output += os.read(terminal, 65536)
            except OSError:  # it has ended
                break
        if b"10     50" in output and not is_left:
            os.write(terminal, b"\x03")
            is_left = True
        elif b"2      50" in output:
            write_log(log, 10)
    else:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0, output
    assert is_left
    assert b"Traceback" not in output
    assert b"\x1b[3" not in output.replace(b"\x1b[?25", b"")  # no colours
    assert output.rstrip().endswith(b"\x1b[?25h")  # the cursor is back
