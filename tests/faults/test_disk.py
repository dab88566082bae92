"""Disks that are full or read-only: one line that names the file, and nothing half-written."""

import shutil

import pytest
from mounts import own_mounts
from rules import SHORT, Rules, download_from, partial_files, results_of
from served import serving

PAGE = 4096  # bytes, the least by which a tmpfs grows
FULL, READ_ONLY = "No space left on device", "Read-only file system"


@pytest.fixture
def mounts():
    with own_mounts() as mounts:
        yield mounts


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    return Rules(tmp_path_factory.mktemp("rules") / "toy", SHORT)


def refusal(done, step, reason):
    """Return the file that a command which gave up says it could not write, all it says."""
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"msgd {step}: error: ")
    assert line.endswith(f": {reason}")
    return line.removeprefix(f"msgd {step}: error: ").removesuffix(f": {reason}")


def fill_up(mounts, folder, whole, words):
    """Run a command whose results have no room, then a page more each time, until it ends well.

    ``folder``: as it was before the command. Return the files that had no room, in order.
    """
    results = folder / "results"
    shutil.move(results, folder / "before")
    results.mkdir()
    mounts.mount("-t", "tmpfs", "-o", "size=1g", "none", results)
    assert mounts.run(folder, "cp", "-r", "before/.", "results").returncode == 0
    seen = mounts.seen(folder)
    # Pages and not bytes; the file system's own notion of what is in use.
    used = mounts.run(folder, "df", "--block-size=4096", "--output=used", "results").stdout
    pages, refused = int(used.split()[1]), []
    while True:
        mounts.mount("-o", f"remount,size={pages * PAGE}", results)
        done = mounts.run(folder, *words)
        assert not partial_files(seen / "results")
        if done.returncode == 0:
            assert results_of(seen) == whole
            return refused
        refused.append(refusal(done, words[words.index("msgd") + 1], FULL))
        assert results_of(seen).items() <= whole.items(), "there is something half-written"
        pages += 1


def with_log_elsewhere(command):
    """Return the words of a rule's command, with a log that has room: all is said there."""
    words = command.split()
    words[words.index("--log") + 1] = "log"
    return words


def names_of(refused):
    return {path.rpartition("/")[2] for path in refused}


def test_tables_need_room_and_their_log_does_not(rules, mounts, tmp_path, record_property):
    folder = rules.without("tabulate", tmp_path / "toy")
    shutil.rmtree(folder / "results" / "logs" / "tabulate", ignore_errors=True)
    words = rules.command("tabulate").split()
    refused = fill_up(mounts, folder, results_of(rules.folder), words)
    record_property("cases", len(refused))
    assert {"test_scores.csv", "test_scores.md", "test_scores.html"} <= names_of(refused)


NEEDED = {
    "unpickle": {"train_x.npy", "valid_y.npy", "test_x.npy", "dataset.json"},
    "train": {"run.json", "training.json"},  # between them is used what the one before has freed
    "score": {"test_predictions.npz", "score.json"},
    "select": {"best_model.npz", "model_card.md", "model_card.html"},
}


@pytest.mark.trust
@pytest.mark.parametrize("rule", NEEDED)
def test_every_file_needs_room(rules, mounts, tmp_path, rule, record_property):
    folder = rules.without(rule, tmp_path / "toy")
    words = with_log_elsewhere(rules.command(rule))
    refused = fill_up(mounts, folder, results_of(rules.folder), words)
    record_property("cases", len(refused))
    assert NEEDED[rule] <= names_of(refused)
    if rule == "train":
        has = {(path.split("/")[1], "/snapshots/" in path) for path in refused}
        assert has == {("runs", False), ("runs", True), ("states", False), ("states", True)}
        assert any(name.endswith(".state") for name in names_of(refused))


@pytest.mark.trust
@pytest.mark.parametrize("figure", ["learning_curve", "weights_animation"])
def test_a_figure_needs_room(rules, mounts, tmp_path, figure, record_property):
    """Of a figure of many pages it is tried with none, with one, with half and with nearly all."""
    rules.run_until(f"plot {figure}")
    (whole,) = rules.made[f"plot {figure}"]
    folder = rules.without(f"plot {figure}", tmp_path / "toy")
    plots = (folder / whole).parent
    plots.mkdir(parents=True, exist_ok=True)
    mounts.mount("-t", "tmpfs", "-o", "size=1g", "none", plots)
    pages = -(-(rules.folder / whole).stat().st_size // PAGE)
    sizes = sorted({1, 2, pages // 2, pages - 1})
    words = with_log_elsewhere(rules.command(f"plot {figure}"))
    for size in sizes:
        mounts.mount("-o", f"remount,size={size * PAGE}", plots)
        assert refusal(mounts.run(folder, *words), "plot", FULL) == whole
        assert not [*mounts.seen(plots).iterdir()]
    record_property("cases", len(sizes))
    mounts.mount("-o", f"remount,size={pages * PAGE}", plots)
    done = mounts.run(folder, *words)
    assert done.returncode == 0, done.stderr
    assert (mounts.seen(folder) / whole).read_bytes() == (rules.folder / whole).read_bytes()


@pytest.mark.trust
def test_a_download_needs_room(mounts, tmp_path, record_property):
    content = bytes(range(256)) * 400
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "mnist.pkl.gz").write_bytes(content)
    (tmp_path / "out").mkdir()
    mounts.mount("-t", "tmpfs", "-o", "size=1g", "none", tmp_path / "out")
    pages = len(content) // PAGE
    with serving(tmp_path / "www") as address:
        words = download_from(f"{address}/mnist.pkl.gz", content, "out/mnist.gz")
        for size in (1, pages // 2, pages - 1):
            mounts.mount("-o", f"remount,size={size * PAGE}", tmp_path / "out")
            done = mounts.run(tmp_path, *words)
            assert refusal(done, "download", FULL) == "out/mnist.gz"
            assert not [*mounts.seen(tmp_path / "out").iterdir()]
        mounts.mount("-o", "remount,size=1g", tmp_path / "out")
        assert mounts.run(tmp_path, *words).returncode == 0
    record_property("cases", 3)
    assert (mounts.seen(tmp_path / "out") / "mnist.gz").read_bytes() == content


READ_ONLY_RULES = ["unpickle", "train", "score", "select", "plot learning_curve"]


def make_read_only(mounts, folder):
    mounts.mount("--bind", folder, folder)
    mounts.mount("-o", "remount,bind,ro", folder)


@pytest.mark.parametrize(
    "rule",
    ["tabulate", *(pytest.param(rule, marks=pytest.mark.trust) for rule in READ_ONLY_RULES)],
)
def test_results_that_may_not_be_written_stay_as_they_are(rules, mounts, tmp_path, rule):
    folder = rules.without(rule, tmp_path / "toy")
    before = results_of(folder)
    make_read_only(mounts, folder / "results")
    words = rules.command(rule).split()
    done = mounts.run(folder, *words)  # whose log may not be written
    assert "/results/logs/" in refusal(done, words[1], READ_ONLY)
    done = mounts.run(folder, *with_log_elsewhere(rules.command(rule)))
    assert refusal(done, words[1], READ_ONLY).startswith("results/")
    assert results_of(folder) == before
    assert not partial_files(folder)
    done = mounts.run(folder, "umount", "results")
    done = mounts.run(folder, *words)
    assert done.returncode == 0, done.stderr
    assert results_of(folder) == results_of(rules.folder)
