"""The page: true numbers, all of them in the page itself, in a document that is well made."""

import base64
import html
import io
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from made import make_data, make_run
from PIL import Image

from msgd.evaluation.intervals import wilson_interval
from msgd.files import read_json, write_json
from msgd.plots.comparison import Comparison
from msgd.plots.mistakes import confusion_matrix
from msgd.plots.style import ORANGE
from msgd.report import figures, page, pictures, sections
from msgd.report.figures import thinned
from msgd.report.page import write_report

VOID = {"meta", "img", "br", "input", "hr", "link", "wbr"}


class Document(HTMLParser):
    """An HTML document as [(tag, attributes, ancestors, text), ...]; ends must match beginnings."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", "inside": [e["tag"] for e in self.open], **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag
        if tag in ("td", "th"):
            self.handle_data(" ")  # a cell's text ends with it

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attributes):
        """Return the elements of ``tag`` with these attributes (class_ for class)."""
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [
            element
            for element in self.elements
            if element["tag"] == tag and wanted.items() <= element.items()
        ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(data folder, run folders) of a grid over the learning rate with two seeds."""
    data = make_data(tmp_path_factory.mktemp("grid"))
    rates, seeds = (0.01, 0.5), (1, 2)
    return data, [
        make_run(data, f"grid/learning_rate={rate}+seed={seed}", learning_rate=rate, seed=seed)
        for rate in rates
        for seed in seeds
    ]


def write(tmp_path, data, folders):
    """Write the page on ``folders``; return its text and the Document."""
    path = tmp_path / "report.html"
    write_report(folders, data, path)
    text = path.read_text(encoding="utf-8")
    return text, Document(text)


@pytest.fixture(scope="module")
def one(runs, tmp_path_factory):
    """(text, Document, run folder, data folder) of the page on a single run."""
    data, folders = runs
    return *write(tmp_path_factory.mktemp("one"), data, folders[:1]), folders[0], data


@pytest.fixture(scope="module")
def several(runs, tmp_path_factory):
    return write(tmp_path_factory.mktemp("several"), *runs)


def words(element):
    return " ".join(element["text"].split())


def test_the_answer_is_the_score_with_its_interval(one):
    text, document, run, _ = one
    score = read_json(run / "score.json")
    k, n = score["test_errors"], score["test_examples"]
    assert 0 < k < n
    (number,) = document.all("p", class_="number")
    assert words(number) == f"{100 * k / n:.2f} %"
    # Wilson's interval, written out.
    z, p = 1.959963984540054, k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert wilson_interval(k, n) == pytest.approx((middle - half, middle + half), rel=1e-12)
    (lede,) = document.all("p", class_="lede")
    assert f"misread {k} of {n} test images" in words(lede)
    assert f"between {100 * (middle - half):.2f} and {100 * (middle + half):.2f} %" in words(lede)
    assert "the only run" in text
    whole = f"({score['all_test_errors']} of {score['all_test_examples']})"
    assert n == 30
    assert score["all_test_examples"] == 33
    assert whole in text


def test_what_there_is_one_of_is_not_in_the_plural(one, tmp_path, caplog):
    text, _, run, data = one
    assert "; 1 thread</td>" in text
    assert not re.findall(r"(?<![\w.,])1\s(?:runs|threads|cores|errors|images|epochs)\b", text)
    with caplog.at_level("INFO"):
        write(tmp_path, data, [run])
    assert f"report on grid {run.name.replace('+', ', ')} of 1 run: " in caplog.text
    history = pd.read_csv(run / "history.csv").iloc[0].to_dict()
    assert "(1 error)" in figures._tip({**history, "validation_errors": 1.0}, 3.25)


def test_the_interval_of_no_errors_has_a_width():
    low, high = wilson_interval(0, 50)
    assert low == 0
    assert high == pytest.approx(1.959963984540054**2 / (50 + 1.959963984540054**2))


def test_the_curve_says_every_validation_when_pointed_at(one):
    _, document, run, _ = one
    history = pd.read_csv(run / "history.csv")
    tips = [words(e) for e in document.all("title") if "g" in e["inside"]]
    expected = [
        f"epoch {row.epoch}, iteration {row.iteration} "
        f"validation error {row.validation_error_percent:.2f} % ({row.validation_errors} errors) "
        f"training cost {row.cost:.4g} patience {row.patience:,}"
        for row in history.itertuples()
    ]
    assert tips == expected * 2  # drawn for wide and for narrow windows
    caption = " ".join(map(words, document.all("figcaption")))
    training = read_json(run / "training.json")
    lowest = 100 * training["validation_errors"] / training["validation_examples"]
    assert f"{lowest:.2f} %" in caption
    assert "ended at its cap of 5 epochs (n_epochs), with patience left" in caption


def test_the_confusion_matrix_and_the_worst_mistakes_are_those_of_the_predictions(one):
    _, document, run, data = one
    with np.load(run / "test_predictions.npz") as arrays:
        predicted = arrays["predicted"]
    labels = np.load(data / "test_y.npy")
    (table,) = document.all("table", class_="confusion")
    rows = np.array(re.findall(r"\d+", table["text"])[3:], int).reshape(3, 4)  # the first: labels
    np.testing.assert_array_equal(rows[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(rows[:, 1:], confusion_matrix(labels, predicted, 3))
    shown = [e["alt"] for e in document.all("img") if e["alt"].startswith("test image")]
    wrong = np.flatnonzero(predicted != labels)
    assert len(shown) == min(len(wrong), sections.SHOWN_MISTAKES)
    for alt in shown:
        row, label = map(int, re.fullmatch(r"test image (\d+), of class (\d+)", alt).groups())
        assert labels[row] == label != predicted[row]


def test_a_grid_is_compared_and_a_single_run_is_not(one, several):
    text, document = several
    assert "The runs compared" in text
    assert "lowest validation error of 4 runs" in text
    (table,) = [e for e in document.all("table") if "grid learning_rate=0.5" in e["text"]]
    assert table["text"].count("(selected)") == 1
    (grid,) = [words(e) for e in document.all("figcaption") if "came with" in e["text"]]
    assert re.search(
        r"The lowest error, [\d.]+ %, came with learning_rate [\d.]+ \(the star\)", grid
    )
    assert "means over seeds" in grid
    assert "The runs compared" not in one[0]


def test_where_nothing_is_published_the_page_says_so(one):
    assert "so there is nothing to compare" in one[0]


def test_published_figures_stand_beside_ours(runs, tmp_path, monkeypatch):
    data, folders = runs

    def found(quantity, equal, epochs="in full"):
        names = {"experiment": "grid", "run": folders[0].name, "epochs": epochs}
        figures = {"published": "1.000", "reproduced": "2.000", "equal": equal, "source": "x"}
        return {**names, "quantity": quantity, **figures}

    rows = [
        found("validation_error_percent", "yes"),
        found("best_epoch", "no: 2 epochs more"),
        found("epochs_run", "within 3: 1 epoch less"),
        found("test_error_percent", "not compared", "5, cut from 9"),
    ]
    monkeypatch.setattr(sections, "compare_with_published", lambda _: rows)
    text, _ = write(tmp_path, data, folders[:1])
    finding = "1 came out equal to the last published digit, 1 within the expected tolerance"
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    assert f"Of 3 published figures that can be compared, {finding}, and 1 did not." in text
    assert "1 figure belongs to a run cut short of the published number of epochs." in text
    for verdict in ("equal", "no: 2 epochs more", "within 3: 1 epoch less", "not compared"):
        assert f"<td>{verdict}</td>" in text
    assert "the diamond" not in text  # a run that was cut is not held against the figure


def test_the_same_files_give_the_same_bytes(runs, several, tmp_path):
    assert write(tmp_path, *runs)[0] == several[0]


def test_the_page_asks_for_nothing_from_elsewhere(several):
    text, document = several
    assert "default-src 'none'" in text
    assert not document.all("script")
    assert not document.all("link")
    addresses = [e[key] for e in document.elements for key in ("src", "href") if key in e]
    for address in addresses:  # no file beside it, either: the page may be carried away
        assert address.startswith(("data:image/png;base64,", "#"))
    assert not re.findall(r"(?<!xmlns=\")https?://(?!www\.w3\.org)", text)
    assert len(text) < 1_500_000


def test_the_document_is_well_made(several):
    _, document = several
    (root,) = document.all("html")
    assert root["lang"] == "en"
    ids = [e["id"] for e in document.elements if "id" in e]
    assert len(ids) == len(set(ids))
    for element in document.elements:
        for key in ("href", "aria-labelledby", "for"):
            value = element.get(key, "")
            if key != "href" or value.startswith("#"):
                assert not value or value.removeprefix("#") in ids
        for used in re.findall(r"url\(#([^)]+)\)", " ".join(map(str, element.values()))):
            assert used in ids
    levels = [int(e["tag"][1]) for e in document.elements if re.fullmatch(r"h\d", e["tag"])]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(np.diff(levels)) == 1
    for tag in ("header", "main", "footer", "nav"):
        assert len(document.all(tag)) == 1
    assert all(e["alt"] for e in document.all("img"))
    for svg in document.all("svg"):
        assert svg["role"] == "img"
        assert svg["aria-label"]
    for heading in document.all("th"):
        assert "scope" in heading or "colspan" in heading


def test_figures_take_the_colours_of_the_page(several):
    text, document = several
    variables = set(re.findall(r"^\s*(?:--[\w-]+: .*)$", text, re.MULTILINE))
    defined = set(re.findall(r"(--[\w-]+):", "".join(variables)))
    inside = [e for e in document.elements if "svg" in e["inside"] and "style" in e]
    assert inside
    for element in inside:
        assert not re.search(r"#[0-9a-f]{6}", element["style"]), element["style"]
        assert set(re.findall(r"var\((--[\w-]+)\)", element["style"])) <= defined


def test_names_cannot_break_the_page(runs, tmp_path):
    data, _ = runs
    run = make_run(data, "a&<b>/x=$\\frac$")
    text, _ = write(tmp_path, data, [run])
    assert "<b>/x" not in text
    assert "a&amp;&lt;b&gt;" in text


def test_weights_are_warm_or_cool_and_nothing_where_they_are_zero():
    images = np.array([[[1.0, 0.0], [-1.0, 0.5]], [[np.nan, np.inf], [0, 0]]])
    with Image.open(io.BytesIO(pictures.weight_mosaic(images, 1.0, 2))) as picture:
        found = np.asarray(picture.convert("RGBA"))
    assert found.shape == (2, 4, 4)
    assert found[0, 0].tolist() == [*pictures.POSITIVE, 255]
    assert found[1, 0].tolist() == [*pictures.NEGATIVE, 255]
    assert found[0, 1, 3] == 0
    assert found[1, 1].tolist() == [*pictures.POSITIVE, round(255 * (64 / 127) ** 0.8)]
    assert (found[:, 2:, 3] == 0).all()  # what is not finite has no colour


def test_large_pictures_are_made_small():
    image = np.zeros((1, 300, 200))
    image[:, :150] = 1
    png = pictures.ink_picture(image)
    address = pictures.data_uri(png)
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
        alpha = np.asarray(picture)[..., 1]
    assert max(alpha.shape) <= pictures.LONGEST_SIDE + 8
    middle = alpha.shape[1] // 2
    assert alpha[alpha.shape[0] // 4, middle] == 255
    assert alpha[3 * alpha.shape[0] // 4, middle] == 0


def test_a_thinned_curve_keeps_its_ends_and_extremes():
    values = np.random.RandomState(0).normal(size=10_000)
    values[1234], values[7777] = 99, -99
    kept = thinned(values, 100)
    assert len(kept) <= 102
    assert (np.diff(kept) > 0).all()
    assert {0, 1234, 7777, 9999} <= set(kept.tolist())


def test_the_template_is_source_and_shipped():
    from msgd.source import closure

    assert page.TEMPLATE in closure("report")


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_names_beside_ends_that_meet_stand_one_above_the_other(scale):
    figure, axes = plt.subplots(figsize=(5, 3))
    axes.set(xlim=(0, 2), ylim=(1, 9), yscale=scale)
    ends = {"c": (1, 4.02), "a": (1, 4), "b": (1, 4.01), "high": (1, 8.5), "elsewhere": (2, 4)}
    figures._name_ends(axes, [(name, end, "black") for name, end in ends.items()])
    figure.canvas.draw()
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    plt.close(figure)
    middles = [boxes[name].y0 + boxes[name].y1 for name in ("a", "b", "c", "high")]
    assert middles == sorted(middles)
    for one, other in pairwise(("a", "b", "c", "high")):
        assert not boxes[one].overlaps(boxes[other])
    assert boxes["elsewhere"].y0 == pytest.approx(boxes["a"].y0, abs=2)


@pytest.fixture
def kept(monkeypatch):
    """The figures that were drawn for the page, none of them written."""
    found = []
    monkeypatch.setattr(figures, "to_svg", lambda figure, *_: found.append(figure) or "")
    yield found
    plt.close("all")


@pytest.mark.parametrize("n_lines", [2, 5, 6])
def test_names_beside_lines_have_their_colours(kept, n_lines):
    lines = {f"l2={k}": {0: [5.0 + k], 1: [9.0]} for k in range(n_lines)}  # they meet at the end
    found = Comparison("learning_rate", [0.1, 1.0], ["l2"], lines)
    found.best = {"line": "l2=1", "index": 0, "percent": 6.0}
    figures.over_hyperparameter(found, "grid-0")
    for figure in kept:
        (axes,) = figure.axes
        colours = {text.get_text(): text.get_color() for text in axes.texts}
        assert sorted(colours) == (sorted(lines) if n_lines < 6 else ["l2=1"])
        assert len(set(colours.values())) == len(colours)
        drawn = [line for line in axes.lines if line.get_gid() is None and line.get_marker() == "o"]
        starts = {line.get_ydata()[0]: line.get_color() for line in drawn}
        for name, colour in colours.items():
            assert starts[lines[name][0][0]] == colour


@pytest.mark.parametrize("n_runs", [2, 5, 6])
def test_names_beside_the_curves_of_runs_have_their_colours(kept, n_runs):
    def validations(k):
        columns = {"iteration": [10, 20, 30], "validation_error_percent": [50.0 + k, 40, 30]}
        return SimpleNamespace(validations=lambda: pd.DataFrame(columns))

    rows = [
        {
            "selected": k == 1,
            "validation_error_percent": 30.0,
            "n_train_batches": 10,
            "best_epoch": 3,
        }
        for k in range(n_runs)
    ]
    names = [f"run {k}" for k in range(n_runs)]
    figures.all_curves([validations(k) for k in range(n_runs)], rows, names)
    for figure in kept:
        (axes,) = figure.axes
        seen = [line for line in axes.lines if line.get_gid() is None]
        starts = {line.get_ydata()[0]: line.get_color() for line in seen}
        named = {text.get_text(): text.get_color() for text in axes.texts}
        own = {name: starts[50.0 + k] for k, name in enumerate(names)}
        assert named == (own if n_runs < 6 else {})
        assert own["run 1"] == ORANGE
        assert len(set(own.values())) == (n_runs if n_runs < 6 else 2)


def test_long_names_leave_room_for_the_curves(kept):
    names = [f"{'n' * 63} learning_rate={rate}" for rate in (0.001, 0.01)]
    history = pd.DataFrame({"iteration": [10, 20], "validation_error_percent": [50.0, 40]})
    row = {"validation_error_percent": 40.0, "n_train_batches": 10, "best_epoch": 2}
    rows = [{**row, "selected": True}, {**row, "selected": False}]
    figures.all_curves([SimpleNamespace(validations=lambda: history)] * 2, rows, names)
    for figure in kept:
        figure.canvas.draw()
        (axes,) = figure.axes
        assert axes.get_window_extent().width > 0.3 * figure.bbox.width
        for text in axes.texts:
            assert text.get_window_extent().x1 <= figure.bbox.x1 + 1
        assert sorted(text.get_text()[-3:] for text in axes.texts) == [".01", "001"]


def ticks_of(axes):
    """Return the places of the ticks of the axis of epochs that are in sight."""
    low, high = axes.get_xlim()
    return [float(tick) for tick in axes.get_xticks() if low <= tick <= high]


@pytest.mark.parametrize("n_epochs", [1, 2, 3, 4, 5, 30])
def test_the_axis_of_few_epochs_has_whole_ones(kept, n_epochs):
    epochs = np.arange(1, n_epochs + 1)
    percents = np.full(n_epochs, 5.0)
    history = pd.DataFrame({"iteration": 10 * epochs, "validation_error_percent": percents})
    run = SimpleNamespace(validations=lambda: history)
    row = {"validation_error_percent": 5.0, "n_train_batches": 10, "best_epoch": 1}
    figures.all_curves([run, run], [{**row, "selected": k == 0} for k in (0, 1)], ["a", "b"])
    figures.cost_curve(pd.DataFrame({"epoch": epochs, "cost": percents}), "cost", "c", "cost")
    assert len(kept) == 4
    for figure in kept:
        ticks = ticks_of(figure.axes[0])
        assert ticks
        assert [tick for tick in ticks if tick % 1] == []
        assert n_epochs >= 5 or ticks == [*range(1, n_epochs + 1)]


def luminance(colour):
    """Return the relative luminance of #rrggbb, as WCAG 2 defines it."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return np.dot(linear, (0.2126, 0.7152, 0.0722))


def contrast(one, other):
    """Return the contrast of two colours, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mixed(one, other, share):
    """Return ``share`` (0..1) of one colour in the other, as color-mix does in srgb."""
    pairs = [(int(one[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


@pytest.mark.parametrize("place", ["light", "dark", "print"])
def test_letters_stand_out_from_what_is_behind_them(several, place):
    """4.5 is what WCAG 2 asks of text (level AA)."""
    text, _ = several
    blocks = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    found = [dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", block)) for block in blocks]
    colours = found[0] | found[["light", "dark", "print"].index(place)]
    assert len(found) == 3
    for name in colours.keys() - {"--paper", "--raised", "--line"}:
        for behind in ("--paper", "--raised"):
            assert contrast(colours[name], colours[behind]) >= 4.5, (name, behind)
    (share,) = re.findall(r"calc\(var\(--t\) \* (\d+)%\)", text)  # of the confusion matrix
    most = mixed(colours["--accent"], colours["--paper"], int(share) / 100)
    assert contrast(colours["--ink"], most) >= 4.5


def test_what_to_change_next_is_said_where_it_helps_and_can_be_read_back(tmp_path):
    data = make_data(tmp_path)
    run = make_run(data, "007/default")
    _, document = write(tmp_path, data, [run])
    steps = [yaml.safe_load(e["text"]) for e in document.all("pre") if "snakemake" not in e["text"]]
    longer = {"model": "logistic_regression", "n_epochs": 50}
    assert steps[0] == {"experiments": {"007": longer}}
    training = read_json(run / "training.json")
    write_json(run / "training.json", {**training, "validation_errors": 0})
    history = pd.read_csv(run / "history.csv")
    history.assign(best_validation_errors=0).to_csv(run / "history.csv", index=False)
    assert "Let it train longer" not in write(tmp_path, data, [run])[0]


def test_a_single_mistake_is_told_as_one(tmp_path):
    data = make_data(tmp_path)
    run = make_run(data, "one/default")
    labels = np.load(data / "test_y.npy")
    np.savez(
        run / "test_predictions.npz", predicted=np.where(np.arange(33) == 5, 1 - labels % 2, labels)
    )
    text, document = write(tmp_path, data, [run])
    assert "This is the one." in text
    captions = [words(e) for e in document.all("figcaption")]
    assert any(c.startswith("The only mistake: its true class got") for c in captions)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([5, 3], "The most frequent confusion is 0 taken for 1, 5 times."),
        ([1], "The most frequent confusion is 0 taken for 1, 1 time."),
        ([4, 4], "The most frequent confusions are 0 taken for 1 and 2 taken for 3, 4 times each."),
        ([2, 2, 2], "No confusion is more frequent than others: 0 taken for 1, 2 times."),
    ],
)
def test_confusions_that_are_as_frequent_are_all_named(counts, said):
    pairs = [(2 * k, 2 * k + 1, n) for k, n in enumerate(counts)]
    assert sections._most_frequent(pairs).replace("\N{NO-BREAK SPACE}", " ") == said


def test_weights_say_how_far_they_have_come_from_where_they_began():
    first = np.full((1, 2, 3, 3), 2, np.float32)
    little, much = (np.concatenate([first, first * share]) for share in (1.25, 3))
    start = "still show mostly the random numbers"
    assert "changed by 25" in sections._how_changed(little)
    assert start in sections._how_changed(little)
    assert "changed by 200" in sections._how_changed(much)
    assert start not in sections._how_changed(much)
    assert sections._how_changed(np.concatenate([0 * first, first])) == ""
    with np.errstate(all="ignore"):
        diverged = np.concatenate([first, first * np.float32(1e38) * np.float32(1e38)])
    assert sections._how_changed(diverged) == ""


def test_what_to_do_next_is_said_for_how_the_page_was_made(runs, tmp_path):
    data, folders = runs
    how = sections.HowToRun("mine/of my own.yaml", "snakemake --configfile 'mine/of my own.yaml'")
    write_report(folders, data, tmp_path / "report.html", how)
    text = html.unescape((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Put the lines into <code>mine/of my own.yaml</code>" in text
    assert text.count(f">{how.command}</pre>") == text.count('class="step"') > 0
    assert "snakemake --cores all" not in text
    assert "Bring your own images" not in text  # the data are one's own
