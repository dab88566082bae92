"""The GPU day from end to end on the pretended driver, and what is carried to it."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pretended
import pytest
from conftest import ROOT, environment
from pretended import Launch, read_log, with_gpu

from msgd.models import MODELS

BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import gpu_day  # noqa: E402
import gpu_day_pack  # noqa: E402
import gpu_day_steps  # noqa: E402


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    """Return with_gpu for the folder of a driver that was built here."""
    folder = pretended.build(tmp_path_factory.mktemp("driver"))
    return lambda **changes: with_gpu(folder, **changes)


def run_day(folder, *options, **changes):
    """Run a rehearsal; return the finished process and the report."""
    variables = environment(**changes)
    variables.pop("NUMBA_NUM_THREADS", None)  # conftest.py's, which a GPU day does not have
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu_day.py", "--rehearse", "--folder", folder, *options],
        capture_output=True,
        text=True,
        check=False,
        env=variables,
    )
    return done, json.loads((folder / "gpu_day.json").read_text())


def test_every_step_is_one_of_the_program():
    assert list(gpu_day.STEPS) == [step.__name__ for step in gpu_day_steps.STEPS]
    assert gpu_day.SECONDS <= 540


def test_the_sanitizer_watches_plain_and_fast_kernels(gpu, tmp_path):
    log = tmp_path / "log"
    program = [sys.executable, BENCHMARKS / "gpu_day_steps.py", "toy", tmp_path]
    paths = os.pathsep.join(str(ROOT / name) for name in ("src", "tests"))
    variables = environment(**gpu(PRETENDED_LOG=str(log), PYTHONPATH=paths))
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    launched = [event.kernel for event in read_log(log) if isinstance(event, Launch)]
    trained = [kernel for kernel in launched if kernel.startswith("_train")]
    both = ["_train", "_train_fast"]
    unlabelled = ["_train"] * 4  # two minibatches at once, but those of the Boltzmann machine
    assert trained == [*both, *both, "_train_fast", *both, *unlabelled]  # LeNet in TF32 too


def test_the_day_from_end_to_end(gpu, tmp_path):
    """What kernels that do nothing would give is wrong, and the report says that too."""
    empty = tmp_path / "bin"  # none of the tools
    empty.mkdir()
    done, report = run_day(tmp_path / "day", **gpu(PATH=str(empty)))
    assert done.returncode == 0, done.stderr
    steps = report["steps"]
    statuses = {name: outcome["status"] for name, outcome in report["outcome"].items()}
    assert statuses.pop("sanitizer") == "missing"
    assert statuses.pop("torch") in ("missing", "done")
    assert statuses == dict.fromkeys(statuses, "done")
    assert len(statuses) == 9
    assert report["hardware"]["gpu"] == "a pretended GPU, compute capability 9.0"
    assert report["packages"]["numba-cuda"] == "0.30.4"
    assert len(report["code"]["sha256"]) == len(report["cuda_sha256"]) == 64

    assert steps["versions"]["tools"]["ncu"] == "missing"
    assert set(steps["smoke"]["right, by blocks"].values()) == {False}
    assert steps["smoke"]["blocks at most"] == 396
    assert steps["tests"]["counts"] == {"PASSED": len(MODELS)}  # their backends' names
    counts = steps["errors"]["logistic_regression"]
    assert counts["float32"] == counts["float64"] == [0]
    assert counts["record"] == [1196]
    assert 0 <= counts["cpu float32"][0] <= 40
    assert steps["bits"]["same"] == {"logistic_regression": True}
    speed = steps["speed"]["logistic_regression"]
    for device in ("cuda", "cpu"):
        assert speed[device]["epochs_per_second"] > 0
        assert len(speed[device]["all"]) == 2
        assert speed[device]["validation_ms"] > 0
    assert speed["cpu"]["threads"] >= 1
    assert "grid.sync of 264 blocks, us" in steps["micro"]
    assert set(steps["profile"]["logistic_regression"]["us"]) == {
        *("forward", "loss", "penalty", "update", "cost, by one thread")
    }
    logs = "".join(path.read_text() for path in (tmp_path / "day").glob("*.log"))
    assert "low occupancy" not in logs  # Numba still knows what msgd.kernels.options said to it
    text = (tmp_path / "day" / "gpu_day.md").read_text()
    assert "| sanitizer | missing |" in text
    assert text in done.stdout


def test_a_step_out_of_time_leaves_what_it_found_and_no_process(tmp_path):
    script = tmp_path / "day.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import gpu_day, pathlib, json\n"
        "gpu_day.PROGRAM = pathlib.Path(sys.argv[1])\n"
        "print(json.dumps(gpu_day.run_step('slow', pathlib.Path(sys.argv[2]), 3, [])))\n"
    )
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import subprocess, sys, pathlib, time\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "pathlib.Path(sys.argv[2], 'slow.json').write_text('{\"child\": %d}' % child.pid)\n"
        "print('slowly', flush=True)\n"
        "time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, script, slow, tmp_path], capture_output=True, text=True, check=False
    )
    outcome, found = json.loads(done.stdout)
    assert outcome["status"] == "out of time"
    assert outcome["last_line"] == "slowly"
    assert 3 <= outcome["seconds"] < 30
    assert not is_running(found["child"])


def is_running(pid):
    """Tell whether process ``pid`` is there and not only waits to be forgotten."""
    status = Path("/proc", str(pid), "status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_a_step_that_fails_does_not_end_the_day(gpu, tmp_path):
    changes = gpu(PRETENDED_FAIL="cuLaunchKernelEx 1 719")
    done, report = run_day(tmp_path / "day", "--steps", "versions", "smoke", "micro", **changes)
    assert done.returncode == 0
    statuses = [outcome["status"] for outcome in report["outcome"].values()]
    assert statuses == ["done", "failed (exit code 1)", "failed (exit code 1)"]
    assert "CUDA_ERROR" in report["outcome"]["smoke"]["last_line"]


def test_without_a_device_the_day_ends_at_once(gpu, tmp_path):
    done, report = run_day(tmp_path / "day", **gpu(PRETENDED_DEVICES="0"))
    assert done.returncode == 1
    assert report["outcome"]["versions"]["status"].startswith("failed")
    assert report["outcome"]["smoke"]["status"].startswith(
        "not run: there is neither a CUDA device"
    )
    assert report["hardware"]["gpu"] is None


def test_a_second_run_keeps_what_the_first_found(gpu, tmp_path):
    steps = ["versions", "smoke", "micro"]
    _, first = run_day(tmp_path / "day", "--steps", *steps, **gpu())
    done, second = run_day(tmp_path / "day", "--keep", "--steps", "micro", **gpu())
    assert done.returncode == 0, done.stderr
    assert list(second["outcome"]) == steps
    kept = {"date": first["date"], "commit": first["code"]["commit"]}
    assert second["outcome"]["smoke"] == {**first["outcome"]["smoke"], **kept}
    assert second["steps"]["smoke"] == first["steps"]["smoke"]
    assert second["steps"]["micro"] != first["steps"]["micro"]
    assert "date" not in second["outcome"]["micro"]
    assert f"| smoke | done ({first['date']}) |" in done.stdout


def test_without_time_the_earlier_result_stays(gpu, tmp_path):
    _, first = run_day(tmp_path / "day", "--steps", "versions", "smoke", **gpu())
    _, second = run_day(tmp_path / "day", "--keep", "--steps", "smoke", "--seconds", "4", **gpu())
    assert second["steps"]["smoke"] == first["steps"]["smoke"]
    assert second["outcome"]["smoke"]["status"] == "done"


@pytest.mark.parametrize("name", ["cuda_sha256", "rehearsal", "packages", "gpu"])
def test_nothing_is_kept_of_another_day(gpu, tmp_path, name):
    _, first = run_day(tmp_path / "day", "--steps", "versions", **gpu())
    (first["hardware"] if name == "gpu" else first)[name] = "another"
    (tmp_path / "day" / "gpu_day.json").write_text(json.dumps(first))
    done, second = run_day(tmp_path / "day", "--keep", "--steps", "micro", **gpu())
    assert done.returncode == 1
    assert f"--keep: {name} was another, and is " in done.stderr
    assert second == first


def test_without_a_device_nothing_is_lost(gpu, tmp_path):
    _, first = run_day(tmp_path / "day", "--steps", "versions", **gpu())
    done, second = run_day(
        tmp_path / "day", "--keep", "--steps", "micro", **gpu(PRETENDED_DEVICES="0")
    )
    assert done.returncode == 1
    assert "--keep: there is neither a CUDA device" in done.stderr
    assert second == first


@pytest.mark.parametrize("text", ["{", "{}", '{"outcome": {"smoke": {}}}'])
def test_what_cannot_be_kept_is_said_in_one_line(gpu, tmp_path, text):
    (tmp_path / "gpu_day.json").write_text(text)
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu_day.py", "--keep", "--folder", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env=environment(**gpu()),
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be kept" in done.stderr


def test_no_step_is_begun_without_time(gpu, tmp_path):
    _, report = run_day(tmp_path / "day", "--seconds", "4", "--steps", "versions", **gpu())
    assert report["outcome"] == {"versions": {"status": "not run: no time left"}}


def make_wheel(folder, name, version, needs=(), size=0, tag="py3-none-any"):
    """Write a wheel that installs a module of its own name."""
    module = name.replace("-", "_")
    path = folder / f"{module}-{version}-{tag}.whl"
    info = f"{module}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}.py", f"VERSION = {version!r}\n")
        archive.writestr(f"{module}.bin", b"0" * size)
        archive.writestr(f"{info}/METADATA", "\r\n".join(lines) + "\r\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_what_is_needed_is_installed_and_nothing_else(tmp_path, monkeypatch):
    here = {"numpy": "2.5.2", "tqdm": "4.70.0", "llvmlite": "0.48.0"}
    monkeypatch.setattr(gpu_day_pack, "installed_version", lambda name: here.get(name))
    make_wheel(tmp_path, "numpy", "2.4.6")  # here is one that pyproject.toml does not allow
    make_wheel(tmp_path, "tqdm", "4.70.1")  # here is one that will do
    make_wheel(tmp_path, "numba", "0.68.1", ["llvmlite<0.51,>=0.50"])  # cannot be imported here
    make_wheel(tmp_path, "numba-cuda", "0.30.4", ["numba>=0.60"])  # leans on it
    make_wheel(tmp_path, "pooch", "1.9.0", ["platformdirs>=2.5", 'tqdm; extra == "progress"'])
    make_wheel(tmp_path, "platformdirs", "4.14.7")
    make_wheel(tmp_path, "rpds-py", "0.30", tag="cp27-cp27m-win32")
    target = tmp_path / "packages"
    found = gpu_day_pack.install(tmp_path, target)
    assert found["installed"] == {"numpy": "2.4.6", "pooch": "1.9.0", "platformdirs": "4.14.7"}
    assert found["left_out"] == {
        "tqdm": "tqdm 4.70.0 is there",
        "numba": "numba 0.68.1 needs llvmlite<0.51,>=0.50",
        "numba-cuda": "numba-cuda 0.30.4 needs numba>=0.60",
        "rpds-py": "rpds_py-0.30-cp27-cp27m-win32.whl is not for this Python or machine",
    }
    assert {path.stem for path in target.glob("*.py")} == {"numpy", "pooch", "platformdirs"}


def test_a_wheel_is_taken_where_another_needs_its_version(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_day_pack, "installed_version", {"base": "1.0"}.get)
    make_wheel(tmp_path, "base", "2.0")
    make_wheel(tmp_path, "top", "1.0", ["base>=2"])
    found = gpu_day_pack.install(tmp_path, tmp_path / "packages")
    assert found["installed"] == {"base": "2.0", "top": "1.0"}


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels, from which alone pip takes what it is asked for."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_what_goes_over_the_limit_is_left_out_with_a_reason(index, tmp_path):
    pins = (ROOT / "constraints.txt").read_text()
    assert "tabulate==0.10.0" in pins
    make_wheel(index, "pooch", "1.9.0", size=1000)
    make_wheel(index, "tabulate", "0.10.0", size=100_000)
    make_wheel(index, "tabulate", "0.11.0")  # not the one that constraints.txt names
    make_wheel(index, "tqdm", "4.70.1", size=1000)
    data = tmp_path / "mnist.pkl.gz"
    data.write_bytes(b"0" * 5000)
    names = ["pooch", "tabulate", "tqdm", "absent"]
    packed = gpu_day_pack.pack(tmp_path / "packed", names, "3.12", 20_000, data)
    files = {path.name for path in (tmp_path / "packed").iterdir()}
    assert files == {*packed["files"], "packed.json"}
    assert {name.split("-")[0] for name in packed["files"]} == {"mnist.pkl.gz", "pooch", "tqdm"}
    assert "0.1 MiB more would be over 0 MiB" in packed["left_out"]["tabulate"]
    assert "absent" in packed["left_out"]["absent"]
    assert "numba 0.68 works with" in packed["left_out"]["llvmlite"]
    assert sum(packed["files"].values()) <= 20_000
    assert json.loads((tmp_path / "packed" / "packed.json").read_text()) == packed


def test_the_package_and_its_program_need_no_snakemake(tmp_path):
    """Nor what else the other machine lacks: all is in the list of what is carried."""
    program = tmp_path / "probe.py"
    program.write_text(
        "import sys\n"
        "for name in ('snakemake', 'greenlet'):\n"
        "    sys.modules[name] = None\n"
        "import msgd.cli, msgd.training.run, msgd.evaluation.score, msgd.data.download\n"
        "from msgd.models import MODELS, load_backend\n"
        "for model in MODELS:\n"
        "    load_backend(model, 'cuda'), load_backend(model, 'cpu')\n"
    )
    done = subprocess.run(
        [sys.executable, program],
        capture_output=True,
        text=True,
        check=False,
        env=environment(NUMBA_ENABLE_CUDASIM="0"),
    )
    assert done.returncode == 0, done.stderr


def test_the_faster_number_of_threads_is_reported():
    many = {"epochs_per_second": 2.0, "threads": 8, "by_threads": {8: 2.0}}
    few = {"epochs_per_second": 3.0, "threads": 2, "by_threads": {2: 3.0}}
    assert gpu_day_steps.better(None, many) == many
    for pair in ((many, few), (few, many)):
        best = gpu_day_steps.better(*pair)
        assert (best["epochs_per_second"], best["threads"]) == (3.0, 2)
        assert best["by_threads"] == {8: 2.0, 2: 3.0}
    assert gpu_day_steps.thread_counts() == sorted(gpu_day_steps.thread_counts(), reverse=True)
