"""Figures of any number of classes and any shape of images: bounded in size, and legible."""

import itertools
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text

from msgd.plots import mistakes, style, weights
from msgd.plots.mistakes import most_frequent_mistakes, plot_confusion, plot_mistakes
from msgd.plots.weights import plot_weights

DPI = 110


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def kept(monkeypatch):
    """The figures that were drawn, none of them saved."""
    figures = []
    for module in (mistakes, weights):
        monkeypatch.setattr(module, "save_figure", lambda figure, *_: figures.append(figure))
    return figures


def confusion(monkeypatch, kept, n_classes, labels, predicted, dpi=DPI):
    """Return the drawn confusion figure of ``labels`` and ``predicted``."""
    dataset = SimpleNamespace(test_y=labels, n_classes=n_classes)
    run = SimpleNamespace(dataset=dataset, predicted=lambda: predicted)
    monkeypatch.setattr(mistakes, "open_run", lambda *_: run)
    plot_confusion("data", "runs/experiment/default", "x.png", dpi)
    figure = kept[-1]
    figure.set_dpi(dpi)
    figure.canvas.draw()
    return figure


def near_misses(n_classes, n_test):
    """Return labels and predictions: every third is one of the next classes."""
    labels = np.arange(n_test) % n_classes
    shift = np.where(np.arange(n_test) % 3, 0, 1 + np.arange(n_test) % 7)
    return labels, (labels + shift) % n_classes


def texts_of(figure):
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


@pytest.mark.parametrize("n_classes", [2, 3, 10, 21, 30, 31, 100, 300, 1000, 100_000])
def test_the_confusion_figure_is_bounded_for_any_number_of_classes(monkeypatch, kept, n_classes):
    """A matrix of 100,000 classes would take 80 GB."""
    labels, predicted = near_misses(n_classes, 2 * n_classes)
    figure = confusion(monkeypatch, kept, n_classes, labels, predicted)
    width, height = figure.get_size_inches() * DPI
    assert max(width, height) <= 1500
    assert len(figure.findobj()) < 30**2 + 500
    image = figure.axes[0].images[0].get_array()
    assert image.shape[0] * 2 <= max(60, figure.axes[0].get_window_extent().width + 1)
    wrong = np.count_nonzero(labels != predicted)
    assert image.sum() == wrong  # a mistake is a mistake, however coarse the cells
    assert f"experiment: {wrong:,} mistake" in figure.get_suptitle().replace("\n", " ")


def test_a_single_mistake_is_told_as_one(monkeypatch, kept):
    figure = confusion(monkeypatch, kept, 3, np.array([0, 1, 2]), np.array([0, 1, 1]))
    assert figure.get_suptitle() == "experiment: 1 mistake among 3 test images"


@pytest.mark.parametrize("n_classes", [2, 21, 30, 31, 1000, 100_000])
@pytest.mark.parametrize("n_test", [10, 3000, 300_000])
def test_no_text_of_the_confusion_figure_is_cut_or_covered(monkeypatch, kept, n_classes, n_test):
    labels, predicted = near_misses(n_classes, n_test)
    figure = confusion(monkeypatch, kept, n_classes, labels, predicted)
    axes = figure.axes[0]
    for text in [figure._suptitle, axes.xaxis.label, axes.yaxis.label, *axes.texts]:
        box = text.get_window_extent()
        assert figure.bbox.x0 - 1 <= box.x0, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert figure.bbox.y0 - 1 <= box.y0, text
        assert box.y1 <= figure.bbox.y1 + 1, text
    for axis in (axes.xaxis, axes.yaxis):
        ticks = [t.get_window_extent() for t in axis.get_ticklabels() if t.get_text()]
        assert len(ticks) > 1
        places = [(b.x0, b.x1) if axis is axes.xaxis else (-b.y1, -b.y0) for b in ticks]
        assert all(a[1] < b[0] for a, b in itertools.pairwise(sorted(places)))
    if n_classes <= 30:
        row = [text.get_window_extent() for text in axes.texts[:n_classes]]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(row))


def test_the_most_frequent_mistakes_are_listed(monkeypatch, kept):
    labels = np.array([7, 7, 7, 99, 99, 5, 0, 1])
    predicted = np.array([8, 8, 8, 0, 0, 5, 99, 2])
    wrong = labels != predicted
    found = most_frequent_mistakes(labels[wrong], predicted[wrong], 100, 3)
    assert found == [(7, 8, 3), (99, 0, 2), (0, 99, 1)]
    figure = confusion(monkeypatch, kept, 100, labels, predicted)
    (listed,) = (t.get_text() for t in texts_of(figure) if " 7 →  8  3" in t.get_text())
    assert listed.splitlines() == [" 7 →  8  3", "99 →  0  2", " 0 → 99  1", " 1 →  2  1"]


def test_pairs_of_many_classes_are_not_mixed_up():
    """label * C + predicted is beyond 32 bits."""
    label = np.array([99_999, 99_998], np.int32)
    found = most_frequent_mistakes(label, np.array([99_998, 0], np.int32), 100_000, 9)
    assert found == [(99_998, 0, 1), (99_999, 99_998, 1)]


def test_many_classes_without_a_mistake(monkeypatch, kept):
    labels = np.arange(200)
    figure = confusion(monkeypatch, kept, 200, labels, labels)
    assert "no mistakes" in [text.get_text() for text in texts_of(figure)]


@pytest.mark.parametrize(
    ("shape", "ratio"),
    [((28, 28), 1), ((1, 1), 1), ((1, 784), 1 / 5), ((90, 3), 5), ((8, 4), 2)],
)
def test_pictures_are_never_thinner_than_a_fifth(shape, ratio):
    figure, axes = plt.subplots()
    style.picture(axes, np.zeros(shape))
    figure.canvas.draw()
    box = axes.get_window_extent()
    assert box.height / box.width == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize("level", [0, 0.4, 1])
def test_an_image_of_equal_pixels_is_as_dark_as_they_are(tmp_path, monkeypatch, kept, level):
    """Beside one that is black, and not white whatever it is."""
    test_x = np.array([[level], [1]])
    toy = SimpleNamespace(
        test_y=np.array([1, 1]), image_shape=(1, 1), images=lambda split, rows: test_x[rows]
    )
    uniform = np.full((2, 3), 1 / 3)
    run = SimpleNamespace(
        dataset=toy,
        settings={"model": "mlp"},
        best_parameters=dict,
        predicted=lambda: np.array([0, 0]),
    )
    monkeypatch.setattr(mistakes, "open_run", lambda *_: run)
    monkeypatch.setattr(mistakes, "check_images", lambda *_: None)
    model = type("Model", (), {"probabilities": staticmethod(lambda *_: uniform)})
    monkeypatch.setattr(mistakes, "load_model", lambda name: model)
    plot_mistakes("data", tmp_path, "x.png", DPI, 5)
    assert kept[-1].get_suptitle().endswith("the 2 worst of 2 mistakes")
    image = kept[-1].axes[0].images[0]
    (((red, *_),),) = image.to_rgba(image.get_array())
    assert red == pytest.approx(1 - level, abs=0.01)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
@pytest.mark.parametrize("n_rows", [1, 6, 10])
def test_the_epochs_of_the_weight_images_are_not_cut(monkeypatch, kept, n, n_rows):
    images = np.random.RandomState(0).normal(size=(n_rows, n, 5, 5))
    titles = [f"epoch {k}, minibatch 1250/2500" for k in range(1001 - n_rows, 1001)]
    found = weights.WeightImages(titles, images, 500)
    monkeypatch.setattr(weights, "load_weight_images", lambda *_: found)
    plot_weights("data", "run", "x.png", DPI, "RdBu_r")
    figure = kept[-1]
    figure.canvas.draw()
    sheet = figure.axes[0]
    assert [label.get_text().replace("\n", " ") for label in sheet.get_yticklabels()] == titles
    for text in (*sheet.get_yticklabels(), figure._suptitle, figure.axes[1].yaxis.label):
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 + 1
        assert box.x1 <= figure.bbox.x1


def test_a_diverged_snapshot_does_not_blank_the_others():
    images = np.ones((2, 1, 2, 2), np.float32)
    images[1] = np.nan
    images[1, 0, 0, 0] = np.inf
    assert weights._scale(images, "RdBu_r") == {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}
    assert weights._scale(images[1:] * np.nan, "RdBu_r")["vmax"] == 1


@pytest.mark.parametrize(
    ("probability", "text"),
    [
        (0.5, "50.0 %"),
        (0.0004, "0.04 %"),
        (3e-7, "0.00003 %"),
        (3e-9, "3e-07 %"),
        (1e-300, "1e-298 %"),
        (0.0, "0 %"),
        (np.nan, "nan %"),
    ],
)
def test_tiny_probabilities_are_written_in_few_letters(probability, text):
    assert mistakes.percent_of(np.float64(probability)) == text


def test_long_titles_are_folded():
    figure = plt.figure(figsize=(4, 3))
    style.set_title(figure, "wide " + ", ".join(f"hyperparameter_{k}=0.123" for k in range(5)))
    figure.canvas.draw()
    assert figure._suptitle.get_window_extent().x1 <= figure.bbox.x1
    assert figure.get_suptitle().count("\n") >= 2


@pytest.mark.parametrize("n", [1, 10, 11, 30, 100])
def test_all_words_beside_a_square_are_on_the_figure(monkeypatch, kept, n):
    images = np.ones((1, n, 4, 4), np.float32)
    found = weights.WeightImages(["epoch 2"], images, n, is_square=True)
    monkeypatch.setattr(weights, "load_weight_images", lambda *_: found)
    plot_weights("data", "runs/da/default", "x.png", DPI, "RdBu_r")
    figure = kept[-1]
    figure.set_dpi(DPI)
    figure.canvas.draw()
    for text in texts_of(figure):
        box = text.get_window_extent()
        assert -1 <= box.y0 < box.y1 <= figure.bbox.height + 1, text
        assert -1 <= box.x0 < box.x1 <= figure.bbox.width + 1, text


@pytest.mark.parametrize("is_square", [True, False])
@pytest.mark.parametrize("n", [1, 4, 9, 30, 100])
def test_the_colour_bar_is_seen_beside_any_number_of_weights(monkeypatch, kept, n, is_square):
    n_rows, n_columns = (1, n) if is_square else (-(-n // 10), min(n, 10))
    images = np.ones((n_rows, n_columns, 4, 4), np.float32)
    titles = [f"epoch {k}" for k in range(n_rows)]
    found = weights.WeightImages(titles, images, n, is_square)
    monkeypatch.setattr(weights, "load_weight_images", lambda *_: found)
    plot_weights("data", "runs/da/default", "x.png", DPI, "RdBu_r")
    figure = kept[-1]
    figure.set_dpi(DPI)
    figure.canvas.draw()
    bar = figure.axes[1].get_window_extent()
    assert 0.07 * DPI <= bar.width <= 0.2 * DPI
    assert bar.height >= 0.5 * DPI
