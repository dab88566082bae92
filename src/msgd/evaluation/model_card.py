"""The selected model: its parameters under a fixed name, and the card that says what they are."""

import ast
import html
import inspect
import logging
import re
from pathlib import Path

import pandas as pd

from msgd.config import yaml_scalar
from msgd.data.content import check_images
from msgd.evaluation.opened_run import open_runs
from msgd.evaluation.selection import score_rows, validation_rate
from msgd.evaluation.tables import PAGE, error_rate, html_table
from msgd.files import read_json, sha256_of_file, write_text
from msgd.inference.model_file import save_model
from msgd.models import MODELS, load_model
from msgd.wording import times

log = logging.getLogger(__name__)


def write_best_model(run_folders, data_folder, folder):
    """Select a run and write best_model.npz, model_card.md and model_card.html into ``folder``.

    run_folders: of scored runs, ``.../experiment/run``; data_folder: the six arrays they were
    trained on. best_model.npz is a model file (msgd.inference.model_file): the selected run's best
    parameters and what they are of. Raises UserError for a run of other data, for its validation
    error does not compare.
    """
    folder, run_folders = Path(folder), [Path(path) for path in run_folders]
    runs = open_runs(run_folders, data_folder)
    dataset = read_json(Path(data_folder) / "dataset.json")
    rows = score_rows(run_folders)
    (index,) = [i for i, row in enumerate(rows) if row["selected"]]
    row = rows[index]
    parameters = runs[index].best_parameters()  # checked before anything is written
    check_images(runs[index].dataset, ["train"])  # of which the model file has ground and ink
    save_model(folder / "best_model.npz", runs[index], parameters, _name(row))
    title = f"Model card: {_name(row)}"
    best = folder / "best_model.npz"
    sections = card_sections(rows, runs[index].record, dataset, parameters, best)
    write_text(folder / "model_card.md", _markdown_page(title, sections))
    body = "\n".join(map(_html_section, sections))
    write_text(folder / "model_card.html", PAGE.format(title=html.escape(title), body=body))
    log.info("selected %s of %s: %s", _name(row), times(len(rows), "run"), _validation(row))


def card_sections(rows, record, dataset, parameters, path):
    """Return the card as a list of (heading, block, ...).

    rows: as score_rows returns them; record: provenance.json of the selected run; dataset:
    dataset.json; parameters: the selected run's best, dict of name -> array; path: of the file
    whose hash is told. A block is text with ``code`` in backquotes, a dict of
    facts, a DataFrame, or Code.
    """
    (row,) = (row for row in rows if row["selected"])
    shapes = {
        "array": [*parameters],
        "shape": [" x ".join(map(str, array.shape)) for array in parameters.values()],
        "dtype": [str(array.dtype) for array in parameters.values()],
    }
    return [
        ("", _how_selected(rows)),
        ("Scores", _scores(row), SCORES_NOTE),
        ("Model", _model(row, record)),
        ("Training", _training(row, record)),
        ("Settings", {key: f"`{yaml_scalar(v)}`" for key, v in record["settings"].items()}),
        ("Data", _data(dataset)),
        ("Use and limits", _limits(dataset)),
        ("Loading it", LOADING, pd.DataFrame(shapes), Code(_program(dataset))),
        ("Provenance", _provenance(record, path)),
    ]


class Code(str):
    """A program in a card."""


def _name(row):
    return f"{row['experiment']}/{row['run']}"


def _validation(row):
    return error_rate(row["validation_errors"], row["validation_examples"])


def _how_selected(rows):
    (row,) = (row for row in rows if row["selected"])
    if len(rows) == 1:
        return f"`best_model.npz` holds the parameters of `{_name(row)}`, the only run."
    text = (
        f"`best_model.npz` holds the parameters of `{_name(row)}`, selected for the lowest "
        f"validation error among {len(rows)} runs (`test_scores.md` lists them all). Test errors "
        "had no part in the choice."
    )
    n_equal = sum(validation_rate(other) == validation_rate(row) for other in rows)
    if n_equal > 1:
        text += (
            f" {n_equal} runs have this validation error; of them it has the fewest parameters or, "
            "where these are equal too, comes first."
        )
    return text


SCORES_NOTE = (
    "The validation error is the lowest of all validations of all runs, so it flatters. The test "
    "set was used for no choice: it was scored once, by these parameters, after training."
)


def _scores(row):
    scores = {
        "validation error": _validation(row),
        "test error": error_rate(row["test_errors"], row["test_examples"]),
    }
    if row["all_test_examples"] != row["test_examples"]:
        whole = error_rate(row["all_test_errors"], row["all_test_examples"])
        scores["whole test set, tail batch included"] = whole
    return scores


def _model(row, record):
    model = record["settings"]["model"]
    return {
        "kind": _docstring(load_model(model)).partition(":")[0],
        "formulas": f"in `model.py` of `msgd.models.{model}`",
        "parameters": f"{row['n_params']:,} numbers, {record['floatX']}",
    }


def _docstring(module):
    """Return the docstring of ``module`` from its source: python -OO keeps none."""
    return ast.get_docstring(ast.parse(inspect.getsource(module)))


METHODS = {"loop": "minibatch SGD with patience", "conjugate_gradient": "conjugate gradients"}


def _training(row, record):
    settings = record["settings"]
    before = {}
    if n_epochs := settings.get("pretraining_epochs"):
        before["pre-training"] = (
            f"each hidden layer, {times(n_epochs, 'epoch')} without labels; what follows is of "
            "fine-tuning"
        )
    return {
        "method": METHODS[MODELS[row["model"]]],
        **before,
        "epochs": f"{row['epochs_run']} run of at most {settings['n_epochs']}",
        "stopped by": f"`{row['stopped_by']}`",
        "best epoch": f"{row['best_epoch']}; its parameters are these",
        "iterations": f"{row['iterations_run']:,} run, the best after {row['best_iteration']:,}; "
        f"minibatches an epoch: {row['n_train_batches']:,}",
    }


def _data(dataset):
    published = "MNIST as published, bit for bit" if dataset["is_mnist"] else "not MNIST"
    height, width = dataset["image_shape"]
    examples = ", ".join(f"{n:,} {split}" for split, n in dataset["examples"].items())
    return {
        "source": f"`{dataset['source']}`: {published}",
        "images": f"{height} x {width} pixels, "
        f"{times(dataset['n_classes'], 'class', 'classes')}; {dataset['pixels']}",
        "examples": examples,
        **{f"SHA-256 of {name}.npy": f"`{sha}`" for name, sha in dataset["sha256"].items()},
    }


def _limits(dataset):
    height, width = dataset["image_shape"]
    kind = (
        "a single handwritten digit, sized and centred as MNIST's are"
        if dataset["is_mnist"]
        else "an image prepared as those of the data above"
    )
    return (
        f"Meant for learning and for comparing methods. It sorts {kind}, in {height} x {width} "
        f"pixels, into one of {times(dataset['n_classes'], 'class', 'classes')}, and gives some "
        "class to any other picture too. Its error on images from elsewhere was not measured, nor "
        "whether its probabilities can be taken at their word."
    )


LOADING = (
    "`best_model.npz` is a NumPy archive of plain arrays: the parameters, in the order of the "
    "layers, and `description`, a text in JSON that says what they are of. `msgd predict` uses it "
    "on pictures, `msgd export` turns it into ONNX. NumPy alone opens it; the program below also "
    "asks the package for the class of an image."
)


def _program(dataset):
    """Return a Python program that loads best_model.npz and applies it to an image."""
    height, width = dataset["image_shape"]
    is_bytes = dataset["pixels"].startswith("uint8")
    scale = "pixels 0, 1/256, ..., 255/256" if is_bytes else "pixels on the scale of the data above"
    return f"""\
import json

import numpy as np
from msgd.models import load_model

with np.load("best_model.npz") as file:
    parameters = {{name: file[name] for name in file.files}}
about = json.loads(str(parameters.pop("description")))

images = np.zeros((1, {height * width}))  # one per row, row by row: {scale}
model = load_model(about["model"])
probabilities = model.probabilities(parameters, images, about["settings"], about["image_shape"])
print(probabilities.argmax(axis=1))
"""


def _provenance(record, path):
    code, hardware = record["code"], record["hardware"]
    commit = f"commit `{code['commit']}`" if code["commit"] else "not in a clone"
    edited = ", with uncommitted changes" if code["uncommitted_changes"] else ""
    cores = times(hardware["cores"], "core")
    packages = [f"{name} {version}" for name, version in record["packages"].items() if version]
    return {
        f"SHA-256 of {path.name}": f"`{sha256_of_file(path)}`",
        "msgd": f"{code['version']}, {commit}{edited}",
        "SHA-256 of its source": f"`{code['sha256']}`",
        "seed": str(record["seed"]),
        "floatX": record["floatX"],
        "backend": f"`{record['backend']}`, on {record['device']}; "
        f"{times(record['threads'], 'thread')}",
        "hardware": f"{hardware['processor']}, {cores}, {hardware['machine']}, "
        f"{hardware['system']}",
        "packages": f"Python {record['python']}, " + ", ".join(packages),
    }


def _markdown_page(title, sections):
    parts = [f"# {title}"]
    for heading, *blocks in sections:
        parts += [f"## {heading}"] if heading else []
        parts += map(_markdown, blocks)
    return "\n\n".join(parts) + "\n"


def _markdown(block):
    if isinstance(block, Code):
        return f"```python\n{block}```"
    if isinstance(block, dict):
        return "\n".join(f"- {key}: {value}" for key, value in block.items())
    if isinstance(block, pd.DataFrame):
        return block.to_markdown(index=False, disable_numparse=True)
    return block


def _html_section(section):
    heading, *blocks = section
    return (f"<h2>{heading}</h2>" if heading else "") + "".join(map(_html, blocks))


def _html(block):
    if isinstance(block, Code):
        return f"<pre>{html.escape(block)}</pre>"
    if isinstance(block, dict):
        rows = (f"<tr><th>{key}</th><td>{in_html(value)}</td></tr>" for key, value in block.items())
        return '<table class="facts">' + "".join(rows) + "</table>"
    if isinstance(block, pd.DataFrame):
        return html_table(block)
    return f"<p>{in_html(block)}</p>"


def in_html(text):
    """Return ``text`` as HTML, what stands in backquotes as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text))
