"""Samples of a run: written once, by any number of threads, and shown by figure and page."""

import shutil

import numpy as np
import pytest
from made import make_data, make_run

from msgd.cli import main
from msgd.config import complete_experiment
from msgd.data.dataset import load_dataset
from msgd.errors import UserError
from msgd.evaluation.opened_run import open_run
from msgd.evaluation.samples import sample_run
from msgd.models.rbm import samples
from msgd.models.rbm.samples import N_CHAINS, N_ROWS, N_STEPS, sample_chains
from msgd.plots.samples import plot_samples
from msgd.plots.weights import side_by_side
from msgd.report import sections
from msgd.report.page import write_report
from msgd.training.run import run_training

SHAPE = (4, 5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def runs(data):
    """(the run of a machine with its samples, a scored classifier)."""
    folder = data.parent / "runs" / "rbm" / "default"
    settings = {"model": "rbm", "n_hidden": 6, "batch_size": 10, "n_epochs": 3, "gibbs_steps": 2}
    run_training(data, folder, complete_experiment(settings), "cpu", "float32", 1)
    sample_run(data, folder, 1)
    return folder, make_run(data, "lr/default")


@pytest.fixture
def changed(runs, tmp_path):
    """A function that writes the samples anew, with other arrays, into a copy of the run."""

    def write(**arrays):
        folder = tmp_path / "rbm" / "default"
        ignore = shutil.ignore_patterns("samples.npz")
        shutil.copytree(runs[0], folder, ignore=ignore, dirs_exist_ok=True)
        if arrays:
            np.savez(folder / "samples.npz", **arrays)
        return folder

    return write


def test_the_file_holds_the_chains_of_the_last_parameters(data, runs):
    run = open_run(runs[0], data)
    means, steps = run.samples()
    dataset = load_dataset(data)
    expected = sample_chains(run.best_parameters(), dataset, run.settings)
    np.testing.assert_array_equal(means, expected)
    assert (means.shape, means.dtype) == ((N_ROWS, N_CHAINS, dataset.n_features), np.float32)
    assert steps == N_STEPS == 1000


def test_the_command_writes_the_same_bytes_for_any_number_of_threads(data, runs):
    path = runs[0] / "samples.npz"
    before = path.read_bytes()
    path.unlink()
    options = ["--data", str(data), "--run", str(runs[0]), "--threads", "2"]
    assert main(["sample", *options]) == 0
    assert path.read_bytes() == before


def test_a_model_that_draws_none_says_so(data, runs, tmp_path):
    message = "which draws no samples; those that do: rbm"
    with pytest.raises(UserError, match=message):
        sample_run(data, runs[1], 1)
    with pytest.raises(UserError, match=message):
        plot_samples(data, runs[1], tmp_path / "samples.png", 50)
    assert not (runs[1] / "samples.npz").exists()


MEANS = np.full((2, 3, 20), 0.5, np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "msgd sample writes it"),
        ({"means": MEANS}, "holds no samples"),
        ({"steps": 5}, "holds no samples"),
        ({"means": MEANS.astype(float), "steps": 5}, "holds no samples"),
        ({"means": MEANS, "steps": [5]}, "holds no samples"),
        ({"means": MEANS[:, :, 1:], "steps": 5}, r"means of \(2, 3, 19\)"),
        ({"means": MEANS[0], "steps": 5}, r"means of \(3, 20\)"),
        ({"means": MEANS[:0], "steps": 5}, r"means of \(0, 3, 20\)"),
        ({"means": 3 * MEANS, "steps": 5}, "not between 0 and 1"),
        ({"means": MEANS * np.float32(np.nan), "steps": 5}, "not between 0 and 1"),
    ],
)
def test_files_that_hold_something_else_are_refused(data, changed, arrays, message):
    with pytest.raises(UserError, match=message):
        open_run(changed(**arrays), data).samples()


def test_a_column_is_a_chain_and_rows_go_down(data, runs, tmp_path, drawn):
    plot_samples(data, runs[0], tmp_path / "samples.png", 50)
    means, _ = open_run(runs[0], data).samples()
    pictures = drawn[0].axes[0].images
    assert len(pictures) == N_ROWS
    tops = [picture.get_extent()[3] for picture in pictures]
    assert tops == sorted(tops)
    for picture, row in zip(pictures, means, strict=True):
        found = picture.get_array().filled(np.nan)
        np.testing.assert_array_equal(found, side_by_side(row.reshape(-1, *SHAPE)))
        assert picture.get_clim() == (0, 1)
    assert drawn[0].get_suptitle() == "rbm: samples of 20 chains from test images"
    assert drawn[0].axes[0].get_ylabel() == "down: 1,000 steps a row"


def test_the_page_shows_them(data, runs, tmp_path, changed):
    write_report([runs[1], runs[0]], data, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count('<figure class="samples">') == 1
    assert "each row is 1,000\N{NO-BREAK SPACE}steps further. From row to row" in text
    with pytest.raises(UserError, match="msgd sample writes it"):
        write_report([runs[1], changed()], data, tmp_path / "report.html")


def test_the_page_says_whether_chains_move():
    near = np.zeros((3, 2, 4))
    near[:, 1] = 0.5  # two chains, neither of which moves
    found = sections._how_far(near)
    assert "changes by 0.000 on average" in found
    assert "differ by 0.500: a chain keeps for long to what it shows." in found
    far = np.zeros((3, 3, 4))
    far[1] = 0.25
    far[:, 2] += 0.125
    found = sections._how_far(far)
    assert "changes by 0.250 on average" in found
    assert "differ by 0.083: a chain soon shows another." in found


def test_a_single_chain_has_nothing_to_be_compared_with(data, changed):
    for means in (MEANS[:1], MEANS[:, :1]):
        found = sections._samples(open_run(changed(means=means, steps=1), data))
        assert found["finding"].endswith("each row is 1\N{NO-BREAK SPACE}step further.")


def test_what_is_written_beside_the_means_is_what_was_taken(data, changed, monkeypatch):
    folder = changed()
    monkeypatch.setattr(samples, "N_STEPS", 7)
    sample_run(data, folder, 1)
    run = open_run(folder, data)
    means, steps = run.samples()
    assert steps == 7
    expected = sample_chains(run.best_parameters(), run.dataset, run.settings, n_steps=7)
    np.testing.assert_array_equal(means, expected)
