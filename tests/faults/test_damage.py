"""What a training left to go on from, damaged: told, and done without."""

import pytest
from rules import SHORT, Rules, finish, results_of

PLACES = ["start", "middle", "end"]


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    return Rules(tmp_path_factory.mktemp("rules") / "toy", SHORT)


@pytest.mark.trust
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["*.state", "snapshots/*.npz", "run.json"])
def test_a_damaged_state_is_told_and_done_without(rules, tmp_path, kind, place):
    """A training that goes on from it ends with the same bytes; the page is written anew."""
    folder = rules.without("train", tmp_path / "toy", keep_states=True)
    (page,) = folder.glob("results/states/*/run.json")
    before = page.read_bytes()
    for path in folder.glob(f"results/states/*/{kind}"):
        content = bytearray(path.read_bytes())
        content[{"start": 0, "middle": len(content) // 2, "end": -1}[place]] ^= 1
        path.write_bytes(content)
    done = finish(rules.command("train"), folder)
    assert done.returncode == 0, done.stderr
    assert results_of(folder) == results_of(rules.folder)
    assert page.read_bytes() == before
    log = (folder / "results" / "logs" / "train" / "a" / "default.log").read_text()
    is_of_use = kind == "run.json"
    assert ("is damaged; falling back" in log) != is_of_use
    assert ("going on from the state" in log) == is_of_use
