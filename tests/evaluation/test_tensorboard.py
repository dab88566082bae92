"""Event files read back by TensorBoard itself, by which they are judged."""

import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import as_triple, make_dataset, msgd, save_npz

from msgd.config import complete_experiment
from msgd.data.unpickle import unpickle
from msgd.errors import UserError
from msgd.evaluation.score import score_run
from msgd.evaluation.tensorboard import FILE_NAME, _summary_of_hyperparameters, write_event_file
from msgd.files import read_json
from msgd.training.run import run_training

pytest.importorskip("tensorboard", reason="extra tensorboard is not installed: no event files")

RUNS = {
    "mcnemar": {"model": "logistic_regression", "improvement_test": "mcnemar"},
    "conjugate": {"model": "logistic_cg"},
    "unscored": {"model": "logistic_regression", "learning_rate": 0.05},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder of three runs, two of them scored, and their event files."""
    root = tmp_path_factory.mktemp("results")
    save_npz(root / "toy.npz", as_triple(make_dataset(60, 30, 30, (4, 4), 3)))
    unpickle(root / "toy.npz", root / "data", "float32")
    for name, changes in RUNS.items():
        run = root / "runs" / name / "default"
        settings = complete_experiment({"batch_size": 10, "n_epochs": 5, **changes})
        run_training(root / "data", run, settings, "cpu", "float32", 1)
        if name != "unscored":
            score_run(root / "data", run, "cpu", 1)
        write_event_file(run, root / "tensorboard" / name / "default")
    return root


def history_of(results, name):
    run = results / "runs" / name / "default"
    timings = pd.read_csv(run / "timings.csv")
    return pd.read_csv(run / "history.csv"), timings["seconds"], read_json(run / "training.json")


@pytest.mark.parametrize("name", RUNS)
def test_tensorboard_reads_what_the_run_holds(results, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(results / "tensorboard" / name / "default"))
    events.Reload()

    def column(tag):
        found = events.Tensors(tag)
        values = [tensor_util.make_ndarray(event.tensor_proto).item() for event in found]
        return [e.step for e in found], [e.wall_time for e in found], values

    history, seconds, training = history_of(results, name)
    history["best"] = 100 * history["best_validation_errors"] / training["validation_examples"]
    expected = {
        "training/cost": "cost",
        "training/epoch": "epoch",
        "validation/error_percent": "validation_error_percent",
        "validation/best_error_percent": "best",
    }
    if name != "conjugate":
        expected["training/patience"] = "patience"
    if name == "mcnemar":
        expected["validation/improvement_p"] = "improvement_p"
    for tag, key in expected.items():
        there = history[key].notna()  # McNemar's first p is not
        steps, times, values = column(tag)
        assert steps == [*history["iteration"][there]]
        assert times == [*seconds[there]]
        np.testing.assert_array_equal(values, history[key][there].to_numpy(np.float32))
    if name != "unscored":
        score = read_json(results / "runs" / name / "default" / "score.json")
        percent = np.float32(100 * score["test_errors"] / score["test_examples"])
        end = [training["best_iteration"]], [seconds.iloc[-1]], [percent]
        assert column("test/error_percent") == end
        expected["test/error_percent"] = ""
    assert {*events.Tags()["tensors"]} == {*expected, SESSION_START_INFO_TAG}


def test_tensorboard_serves_the_runs(results):
    """Through what its server asks: its list of runs, a series, and the page of hyperparameters."""
    from tensorboard import context
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.data import provider
    from tensorboard.plugins.hparams import metadata as hparams
    from tensorboard.plugins.scalar import metadata as scalars

    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(results / "tensorboard"))
    multiplexer.Reload()
    data = data_provider.MultiplexerDataProvider(multiplexer, str(results / "tensorboard"))
    ctx = context.RequestContext()
    runs = data.list_runs(ctx, experiment_id="")
    assert {run.run_name for run in runs} == {f"{name}/default" for name in RUNS}
    tag = "validation/error_percent"
    found = data.read_scalars(
        ctx,
        experiment_id="",
        plugin_name=scalars.PLUGIN_NAME,
        downsample=1000,
        run_tag_filter=provider.RunTagFilter(tags=[tag]),
    )
    for name in RUNS:
        history, _, _ = history_of(results, name)
        values = [point.value for point in found[f"{name}/default"][tag]]
        expected = history["validation_error_percent"].to_numpy(np.float32)
        np.testing.assert_array_equal(values, expected)
    pages = data.list_tensors(ctx, experiment_id="", plugin_name=hparams.PLUGIN_NAME)
    for name in RUNS:
        series = pages[f"{name}/default"][hparams.SESSION_START_INFO_TAG]
        started = hparams.parse_session_start_info_plugin_data(series.plugin_content)
        assert started.hparams["model"].string_value == RUNS[name]["model"]
        assert started.hparams["n_epochs"].number_value == 5
    found = _summary_of_hyperparameters({"n_hidden": [5, 4], "validation_frequency": None}, "mlp")
    content = found.value[0].metadata.plugin_data.content
    started = hparams.parse_session_start_info_plugin_data(content)
    words = {key: value.string_value for key, value in started.hparams.items()}
    assert words == {"n_hidden": "[5, 4]", "validation_frequency": "null"}


def test_the_same_run_gives_the_same_bytes(results, tmp_path):
    run = results / "runs" / "mcnemar" / "default"
    done = msgd("tensorboard", "--run", run, "--output", tmp_path / "again", TZ="Asia/Tokyo")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "again").iterdir()
    first = results / "tensorboard" / "mcnemar" / "default" / FILE_NAME
    assert (path.name, path.read_bytes()) == (FILE_NAME, first.read_bytes())


def test_files_of_two_runs_are_refused(results, tmp_path):
    run = shutil.copytree(results / "runs" / "unscored", tmp_path / "copy") / "default"
    lines = (run / "timings.csv").read_text().splitlines(keepends=True)
    (run / "timings.csv").write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match="are they of one run"):
        write_event_file(run, tmp_path / "events")
    assert not (tmp_path / "events").exists()


def test_without_the_extra_the_error_says_how_to_install_it(results, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"pip install .*\[tensorboard\]"):
        write_event_file(results / "runs" / "unscored" / "default", tmp_path / "events")
    assert not (tmp_path / "events").exists()
