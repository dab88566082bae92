"""Rules that are ended at any moment: nothing half-written counts, and a rerun ends the same."""

import random
import shlex
import shutil
import signal
import time

import pytest
from rules import (
    CONFIG,
    RULES,
    SHORT,
    Rules,
    download_from,
    finish,
    kill_after,
    kill_when_it_writes,
    partial_files,
    results_of,
    start,
)
from served import serving

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
KILLS = {**dict.fromkeys(RULES, 5), "train": 10}
QUICK = ["unpickle", "train", "score", "tabulate"]


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    return Rules(tmp_path_factory.mktemp("rules") / "toy", CONFIG)


@pytest.fixture(scope="module")
def few_rules(tmp_path_factory):
    return Rules(tmp_path_factory.mktemp("few") / "toy", SHORT)


def kill(rules, rule, n_kills, folder, first_signal=0):
    """Kill the process of a job of ``rule``; return how often it was.

    Two times of three at a random moment, else when it has just begun to write.
    """
    rules.run_until(rule)
    whole = results_of(rules.folder)
    seconds, moments, n_killed = rules.seconds[rule], random.Random(rule), 0
    for attempt in range(20 * n_kills):
        number = SIGNALS[(first_signal + n_killed) % len(SIGNALS)]
        copy = rules.without(rule, folder / str(attempt))
        process, began = start(rules.command(rule), copy), time.monotonic()
        if n_killed % 3 == 0:
            was_killed = kill_when_it_writes(process, copy, number)
        else:
            was_killed = kill_after(process, moments.uniform(0.1, 1) * seconds, number)
            if not was_killed:  # kernels are compiled now, or nobody else is busy
                seconds = time.monotonic() - began
        if not was_killed:
            continue
        n_killed += 1
        # In the midst of C or C++, of an import or of Matplotlib's letters, the exception that a
        # signal raises may come out as another one, or abort the process like a kill.
        assert process.returncode != 0
        if process.returncode == 128 + number:
            assert not partial_files(copy)
        for path in partial_files(copy):  # as the workflow does when it starts
            path.unlink()
        assert results_of(copy).items() <= whole.items(), "there is something half-written"
        done = finish(rules.command(rule), copy)
        assert done.returncode == 0, done.stderr
        assert results_of(copy) == whole
        shutil.rmtree(copy)
        if n_killed == n_kills:
            break
    return n_killed


@pytest.mark.parametrize("rule", QUICK)
def test_a_killed_rule_ends_with_the_same_bytes(few_rules, rule, tmp_path, record_property):
    n_killed = kill(few_rules, rule, 1, tmp_path, first_signal=QUICK.index(rule))
    record_property("cases", n_killed)
    assert n_killed == 1


@pytest.mark.trust
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_can_be_killed_at_any_moment(rules, rule, tmp_path, record_property):
    if rule not in rules.commands:
        pytest.skip("extra tensorboard is not installed: no event files")
    n_killed = kill(rules, rule, KILLS[rule], tmp_path)
    record_property("cases", n_killed)
    assert n_killed == KILLS[rule]


@pytest.mark.trust
def test_a_download_can_be_killed_at_any_moment(tmp_path, record_property):
    content, moments = bytes(range(256)) * 400, random.Random("download")
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "mnist.pkl.gz").write_bytes(content)
    with serving(tmp_path / "www", seconds=1.0) as address:
        words = download_from(f"{address}/mnist.pkl.gz", content, "mnist.gz")
        n_killed = 0
        for number in SIGNALS:
            # It takes a second and the start of Python; whenever it has not ended, it is killed.
            process = start(shlex.join(words), tmp_path)
            n_killed += kill_after(process, moments.uniform(0.2, 1.2), number)
            assert number == signal.SIGKILL or not partial_files(tmp_path)
            arrived = tmp_path / "mnist.gz"
            assert not arrived.exists() or arrived.read_bytes() == content
            assert finish(shlex.join(words), tmp_path).returncode == 0
            assert arrived.read_bytes() == content
            arrived.unlink()
    record_property("cases", n_killed)
    assert n_killed == len(SIGNALS)
