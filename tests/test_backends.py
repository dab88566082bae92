"""Which device ``backend`` comes to: auto takes a GPU only where it was measured to be faster."""

import logging

import pytest
import yaml
from conftest import ROOT

from msgd import backends
from msgd.backends import asks_for_gpu, choose_device
from msgd.errors import UserError
from msgd.files import write_json
from msgd.kernels import cuda as cuda_kernels

GPU = "NVIDIA H100 80GB HBM3"
FASTER = {"model": "lenet", "gpu": GPU, "cuda": 20.0, "cpu": 0.4, "commit": "0" * 40}
SLOWER = {"model": "mlp", "gpu": GPU, "cuda": 0.2, "cpu": 8.5, "commit": "0" * 40}


@pytest.fixture
def machine(monkeypatch, tmp_path, caplog):
    """A function that pretends a machine: its GPU, what was measured, why it has no device."""
    caplog.set_level(logging.INFO, "msgd")

    def pretend(gpu=GPU, rows=(FASTER, SLOWER), reason="", on_simulator=False):
        speeds = tmp_path / "speeds.yaml"
        speeds.write_text(yaml.safe_dump([*rows]))
        monkeypatch.setattr(backends, "SPEEDS_FILE", speeds)
        monkeypatch.setattr(backends, "ON_SIMULATOR", on_simulator)
        monkeypatch.setattr(backends, "gpu_name", lambda: gpu)
        monkeypatch.setattr(cuda_kernels, "why_no_device", lambda: reason, raising=False)

    return pretend


def test_auto_takes_a_gpu_where_it_was_measured_to_be_faster(machine, caplog):
    machine()
    assert choose_device("auto", "lenet") == "cuda"
    assert "on NVIDIA H100 80GB HBM3 lenet ran 20 epochs/s, and 0.4 on the CPU" in caplog.text
    assert asks_for_gpu("auto", "lenet")


@pytest.mark.parametrize(
    ("model", "pretended", "message"),
    [
        ("mlp", {}, "mlp was measured to be slower on NVIDIA H100"),
        ("logistic_regression", {}, "logistic_regression was never measured on NVIDIA H100"),
        ("lenet", {"gpu": "NVIDIA A100"}, "lenet was never measured on NVIDIA A100"),
        ("lenet", {"gpu": ""}, "there is no CUDA driver with a GPU"),
        ("lenet", {"rows": ()}, "lenet was never measured on"),
        ("lenet", {"reason": "libnvvm is missing"}, "libnvvm is missing"),
        ("lenet", {"on_simulator": True}, "the CUDA simulator runs only where backend is cuda"),
    ],
)
def test_auto_takes_the_cpu_otherwise_and_says_why(machine, caplog, model, pretended, message):
    machine(**pretended)
    assert choose_device("auto", model) == "cpu"
    assert f"backend auto takes cpu: {message}" in caplog.text
    assert not asks_for_gpu("auto", model)


def test_no_gpu_is_asked_for_by_what_takes_none(machine):
    machine()
    assert not asks_for_gpu("cpu", "lenet")
    assert not asks_for_gpu("reference", "lenet")
    assert asks_for_gpu("cuda", "mlp"), "what is asked for is taken, however slow"


def test_the_reference_runs_only_where_it_is_asked_for(machine, caplog):
    machine()
    assert choose_device("reference", "lenet") == "reference"
    assert "backend reference, as configured" in caplog.text


def test_an_unknown_backend_is_refused():
    with pytest.raises(UserError, match="backend is 'tpu'; allowed: auto or cpu or cuda or refer"):
        choose_device("tpu", "mlp")


def test_a_gpu_day_becomes_the_rows_that_are_read(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import refresh

    speed = {
        "lenet": {
            "cuda": {"epochs_per_second": 20.0},
            "cpu": {"epochs_per_second": 0.4, "threads": 2},
        },
        "mlp": {"cuda": {"epochs_per_second": 0.2}},  # out of time before the CPU's turn
        "summary": "text",
    }
    day = {
        "hardware": {"gpu": f"{GPU}, compute capability 9.0", "processor": "one", "cores": 2},
        "code": {"commit": "1" * 40},
        "outcome": {"speed": {"commit": "0" * 40}},  # kept from an earlier run
        "packages": {},
        "steps": {"speed": speed},
    }
    write_json(tmp_path / "gpu_day.json", day)
    monkeypatch.setattr(refresh, "MEASURED", tmp_path)
    assert yaml.safe_load(refresh.measured_speeds()) == [FASTER]
    rows = [line.split("|") for line in refresh.table_of_gpu().splitlines()]
    shown = {row[1].strip(): (row[2].strip(), row[4].strip()) for row in rows if len(row) > 2}
    assert shown["lenet"] == ("20", "0.4 (2 threads)")
    assert shown["mlp"] == ("0.2", "–")
    assert "logistic_regression" not in shown
    assert f"commit {'0' * 12}." in refresh.table_of_gpu()
    monkeypatch.setattr(refresh, "MEASURED", tmp_path / "empty")
    assert yaml.safe_load(refresh.measured_speeds()) == []
    assert "Nothing has been measured" in refresh.table_of_gpu()


def test_the_committed_measurements_have_what_is_read():
    for row in yaml.safe_load(backends.SPEEDS_FILE.read_text()):
        assert set(row) == set(FASTER)
        assert row["cuda"] > 0
        assert row["cpu"] > 0
