"""The page: the selected run's story, made of what training, scoring and selection wrote."""

import logging
from pathlib import Path

import jinja2
from markupsafe import Markup

from msgd.data.content import check_images
from msgd.errors import UserError
from msgd.evaluation.model_card import card_sections, in_html
from msgd.evaluation.opened_run import open_runs
from msgd.evaluation.selection import score_rows
from msgd.files import read_json, write_text
from msgd.report import sections
from msgd.wording import times

log = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("page.html.j2")


def write_report(run_folders, data_folder, path, how=sections.HOW):
    """Write the page on the runs in ``run_folders`` to the HTML file ``path``.

    run_folders: of scored runs, ``.../experiment/run``, and of runs without labels, one scored run
    at least; data_folder: the six arrays they were trained on; how: a sections.HowToRun, with which
    the page says what to do next. The same files give the same bytes.
    Raises UserError, before anything is written, if files are missing or do not belong together.
    """
    everything = open_runs(map(Path, run_folders), data_folder)
    runs = [run for run in everything if run.is_classifier]
    if not runs:
        raise UserError(
            "none of these runs predicts classes: there is no answer for a page to give"
        )
    run_folders = [run.folder for run in runs]
    rows = score_rows(run_folders)
    check_images(runs[0].dataset, ["test"])
    summary = read_json(Path(data_folder) / "dataset.json")
    (index,) = [i for i, row in enumerate(rows) if row["selected"]]
    run, row = runs[index], rows[index]
    best = run.folder / "best_parameters.npz"
    told = card_sections(rows, run.record, summary, run.best_parameters(), best)
    card = {heading: blocks for heading, *blocks in told}
    page = (
        _environment()
        .get_template(TEMPLATE.name)
        .render(
            row=row,
            rows=rows,
            name=sections.name_of(row),
            kind=card["Model"][0]["kind"],
            took=_how_long(run.seconds().iloc[-1]),
            summary=summary,
            settings=card["Settings"][0],
            provenance=card["Provenance"][0],
            facts_of_data=card["Data"][0],
            limits=card["Use and limits"][0],
            answer=sections.answer(row, rows, run_folders),
            data=sections.data(run),
            training=sections.training(run),
            weights=sections.weights(run),
            unlabelled=sections.unlabelled(
                # Of a grid of stacks, the selected run alone: each run has a curve for each layer.
                [r for r in everything if r is run or not _is_of_a_classifiers_grid(r)]
            ),
            mistakes=sections.mistakes(run),
            comparison=sections.comparison(runs, rows),
            how=how,
            steps=sections.next_steps(row, run, rows),
        )
    )
    write_text(path, page)
    of_runs = times(len(rows), "run")
    log.info("report on %s of %s: %.2f MB", sections.name_of(row), of_runs, len(page) / 1e6)


def _is_of_a_classifiers_grid(run):
    """Return whether an OpenedRun is one of several of an experiment that is scored."""
    return run.is_classifier and run.folder.name != "default"


def _environment():
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["inline"] = lambda text: Markup(in_html(text))
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["percent"] = sections.percent
    environment.globals["times"] = sections.times
    return environment


def _how_long(seconds):
    """Return ``seconds`` in words."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
