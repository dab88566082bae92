"""The page in a real browser: nothing fails to load, nothing is wider than the window."""

import pytest
from browser import assert_shown_whole, look, measuring, need_browser, write_window
from made import make_data, make_run

from msgd.report.page import write_report

MAY_SCROLL = {"scroll"}  # what is around a wide table
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@pytest.fixture(scope="module")
def measuring_page(tmp_path_factory):
    """The text of the page on a grid, in a copy that measures itself."""
    need_browser()
    sizes = {"n_classes": 10, "n_train": 100, "n_valid": 50, "n_test": 120, "shape": (7, 7)}
    rates = (0.001, 0.003, 0.01, 0.03)
    return page_on(tmp_path_factory.mktemp("page"), "a_long_name", rates, **sizes)


def page_on(folder, name, rates, **data):
    """Return the text of the page on a grid of the experiment ``name``, in a copy that measures."""
    data = make_data(folder, **data)
    runs = [make_run(data, f"{name}/learning_rate={rate}", learning_rate=rate) for rate in rates]
    write_report(runs, data, folder / "report.html")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count(POLICY) == 1
    return measuring(page.replace(POLICY, f"{POLICY}; script-src 'unsafe-inline'"))


@pytest.mark.parametrize("width", [390, 800, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_loads_whole_and_fits_its_window(measuring_page, tmp_path, width, dark):
    window = tmp_path / "window.html"
    write_window(window, [measuring_page], width)
    (page,), console = look(window.as_uri(), dark, tmp_path / "browser")
    assert console == []
    assert_shown_whole(page, width, dark, MAY_SCROLL)
    assert page["pictures"] > 20
    assert page["tips"] >= 5 + 4  # validations of the curve, runs
    # Of curves that lie on each other one is hit.
    assert page["pointedAt"] >= 5


@pytest.mark.parametrize("width", [800, 1400])
def test_no_name_pushes_the_errors_of_its_run_out_of_sight(tmp_path, width):
    need_browser()
    page = page_on(tmp_path, "n" * 63, (0.001, 0.01))
    write_window(tmp_path / "window.html", [page], width)
    (page,), console = look((tmp_path / "window.html").as_uri(), False, tmp_path / "browser")
    assert console == []
    assert "scroll" not in page["scroll"]
    assert_shown_whole(page, width, False, {"PRE", "command"})
