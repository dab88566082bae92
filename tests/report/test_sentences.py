"""The sentences of the page, of numbers made by hand whose right sentence is known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from msgd.plots.comparison import Comparison
from msgd.plots.mistakes import most_frequent_mistakes
from msgd.report import sections


def plain(text):
    """Return ``text`` with blanks in place of spaces that do not break."""
    return text.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            [0, 0, 1, 1, 1, 1, 1, 2, 2, 2],
            "Class 1 is the most frequent in the training images (50.0 %), class 0 the least "
            "(20.0 %).",
        ),
        (
            [2, 2, 2, 1],
            "Class 2 is the most frequent in the training images (75.0 %), class 0 the least "
            "(0.0 %).",
        ),
        ([2, 1, 0, 0, 1, 2], "All classes are equally frequent in the training images."),
    ],
)
def test_the_most_and_the_least_frequent_class(labels, said):
    assert plain(sections._how_frequent(np.array(labels), 3)) == said


@pytest.mark.parametrize(
    ("train", "test", "always", "wrong"),
    [
        ([0, 1, 1], [0, 0, 0, 1], 1, "75.0 %"),  # the training images make the choice
        ([2, 2, 0], [2, 2, 2, 0], 2, "25.0 %"),
        ([0, 1], [1, 2], 0, "100.0 %"),
    ],
)
def test_the_error_to_beat_is_that_of_the_most_frequent_class(train, test, always, wrong):
    dataset = SimpleNamespace(train_y=np.array(train), test_y=np.array(test))
    assert plain(sections._by_guessing(dataset)) == (
        f"A program that always answered {always} would be wrong on {wrong} of the test images: "
        "that is the error to beat."
    )


# True class: (images, mistakes).
@pytest.mark.parametrize(
    ("classes", "said"),
    [
        # The class of most mistakes is neither that of the highest rate nor that of the lowest.
        (
            {0: (100, 10), 1: (4, 2), 2: (200, 8)},
            "class 1 are misread most often (50.0 % of them), those of class 2 least (4.0 %)",
        ),
        (
            {3: (10, 1), 7: (10, 0), 8: (1, 1)},
            "class 8 are misread most often (100.0 % of them), those of class 7 least (0.0 %)",
        ),
        ({0: (10, 1), 1: (20, 2)}, None),  # as often each
    ],
)
def test_the_class_misread_most_often_is_that_of_the_highest_rate(classes, said):
    labels = np.concatenate([np.full(n, label) for label, (n, _) in classes.items()])
    wrong = np.concatenate([np.arange(n) < bad for n, bad in classes.values()])
    predicted = np.where(wrong, labels + 1, labels)
    pairs = most_frequent_mistakes(labels[wrong], predicted[wrong], labels.max() + 2, 10)
    found = plain(sections._worst_classes(labels, wrong, pairs))
    first = plain(sections._most_frequent(pairs))
    assert found == (f"{first} Images of {said}." if said else first)


@pytest.mark.parametrize(
    ("patience", "said"),
    [
        ([100, 100, 100], "No improvement extended the patience."),
        ([100, 100, 150], "Significant improvements extended the patience once."),
        ([110, 110, 110], "Significant improvements extended the patience once."),  # the first did
        (
            [110, 110, 150],
            "Significant improvements extended the patience twice, the last time in epoch 3.",
        ),
        (
            [110, 120, 130, 140, 140],
            "Significant improvements extended the patience 4 times, the last time in epoch 4.",
        ),
    ],
)
def test_every_extension_of_the_patience_is_counted(patience, said):
    history = pd.DataFrame({"patience": patience, "epoch": np.arange(1, len(patience) + 1)})
    assert plain(sections._extensions(history, {"patience": 100})) == said


def record_of(best, **changes):
    """Return what the sentences need of training.json; best: (iteration, epoch, errors)."""
    iteration, epoch, errors = best
    counts = {"validation_errors": errors, "validation_examples": 200}
    return {"best_iteration": iteration, "best_epoch": epoch, **counts, **changes}


@pytest.mark.parametrize(
    ("percents", "best", "said"),
    [
        ([7.5], (5, 1, 15), "There was one validation, in epoch 1: an error of 7.50 %."),
        (
            [7.5, 8.0],
            (5, 1, 15),
            "The lowest validation error, 7.50 % (the star), came at the first of 2 validations.",
        ),
        (
            [7.5, 4.0, 4.5],
            (10, 2, 8),
            "The validation error went from 7.50 % at the first of 3 validations to 4.00 % in "
            "epoch 2 (the star).",
        ),
    ],
)
def test_from_where_to_where_the_validation_error_went(percents, best, said):
    epochs = np.arange(1, len(percents) + 1)
    columns = {"epoch": epochs, "iteration": 5 * epochs, "validation_error_percent": percents}
    assert plain(sections._fall(pd.DataFrame(columns), record_of(best))) == said


@pytest.mark.parametrize(
    ("stopped_by", "has_patience", "said"),
    [
        ("patience", True, "Patience ran out after 1,200 iterations, in epoch 7."),
        (
            "n_epochs",
            True,
            "Training ended at its cap of 9 epochs (`n_epochs`), with patience left.",
        ),
        ("n_epochs", False, "Training ended at its cap of 9 epochs (`n_epochs`)."),
        (
            "divergence",
            True,
            "Training ended after 1,200 iterations, in epoch 7: its cost or a parameter was no "
            "longer finite.",
        ),
        (
            "convergence",
            False,
            "Training ended after 1,200 iterations, in epoch 7: no step improved the cost any "
            "further.",
        ),
    ],
)
def test_how_training_ended(stopped_by, has_patience, said):
    record = {"stopped_by": stopped_by, "iterations_run": 1200, "epochs_run": 7}
    assert plain(sections._how_it_ended(record, {"n_epochs": 9}, has_patience)) == said


def test_milestones_hold_the_numbers_of_their_validation():
    n = 40
    history = pd.DataFrame(
        {
            "epoch": np.arange(1, n + 1),
            "iteration": 1000 * np.arange(1, n + 1),
            "validation_error_percent": [*np.linspace(50, 12.5, n)],
            "cost": [*np.linspace(2.25, 0.125, n)],
            "patience": [np.nan, *np.full(n - 1, 12_345.0)],
        }
    )
    found = sections._milestones(history, record_of((27_000, 27, 50)))
    shown = [int(entry["epoch"]) for entry in found]
    assert {1, 27, n} <= set(shown)
    assert shown == sorted(set(shown))
    assert [entry["epoch"] for entry in found if entry["is_best"]] == ["27"]
    assert found[0] == {
        "is_best": False,
        "epoch": "1",
        "iteration": "1,000",
        "error": "50.00 %",
        "cost": "2.25",
        "patience": "–",
    }
    assert found[-1] == {
        "is_best": False,
        "epoch": "40",
        "iteration": "40,000",
        "error": "12.50 %",
        "cost": "0.125",
        "patience": "12,345",
    }


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ([3.5], "Mean cost: 3.5 in the only epoch."),
        (
            [3.5, 9.0, 1.25],
            "Mean cost: from 3.5 in the first epoch to 1.25 in epoch 3. That of each minibatch was "
            "taken before it changed the parameters.",
        ),
    ],
)
def test_from_where_to_where_the_cost_went(costs, said):
    rows = pd.DataFrame({"epoch": np.arange(1, len(costs) + 1), "cost": costs})
    assert sections._cost_finding(rows, "mean cost") == said


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((1, 1), "The weights of the only filter after epoch 2, as a picture"),
        ((3, 3), "The weights of each of the 3 filters after epoch 2, as a picture each"),
        (
            (10, 1200),
            "The weights of the first 10 of 1,200 filters after epoch 2, as a picture each",
        ),
    ],
)
def test_of_what_weights_are_shown(counts, said):
    assert sections._shown_weights(counts, "filter", "filters", " after epoch 2") == said


def test_each_mistake_has_the_chances_of_its_two_classes(monkeypatch):
    worst = SimpleNamespace(
        rows=np.array([31, 4]),
        images=np.array([[0.0, 1, 0, 0], [0, 0, 1, 0]]),
        labels=np.array([7, 2]),
        predicted=np.array([1, 9]),
        of_label=np.array([0.02, 0.125]),
        of_predicted=np.array([0.9, 0.75]),
    )
    monkeypatch.setattr(sections, "find_worst_mistakes", lambda *_: worst)
    run = SimpleNamespace(dataset=SimpleNamespace(image_shape=(2, 2)))
    found = sections._gallery(run)
    assert len({entry.pop("picture") for entry in found}) == 2
    keys = ("row", "label", "predicted", "of_label", "of_predicted")
    assert [tuple(plain(str(entry[key])) for key in keys) for entry in found] == [
        ("31", "7", "1", "2.0 %", "90.0 %"),
        ("4", "2", "9", "12.5 %", "75.0 %"),
    ]


def row_of(run, errors, n_params=10, **changes):
    """Return what the comparison needs of a row of score_rows."""
    rate = {"validation_errors": errors, "validation_examples": 200}
    percent = {"validation_error_percent": 100 * errors / 200}
    return {"experiment": "lr", "run": run, "n_params": n_params, **rate, **percent, **changes}


def test_the_runs_lie_between_the_lowest_and_the_highest_error(monkeypatch):
    drawn = []
    monkeypatch.setattr(sections.figures, "all_curves", lambda *given: drawn.append(given))
    monkeypatch.setattr(sections, "_grids", lambda runs: [])
    rows = [row_of("a=2", 30), row_of("a=1+b=3", 4), row_of("default", 90), row_of("c=4", 4, 5)]
    found = sections.comparison(["runs"] * 4, rows)
    assert plain(found["finding"]) == (
        "The lowest validation errors of the 4 runs lie between 2.00 and 45.00 %. The marked curve "
        "is that of the selected run."
    )
    names = ["lr c=4", "lr a=1, b=3", "lr a=2", "lr"]  # of equal ones the smaller first
    assert [entry["name"] for entry in found["rows"]] == names
    assert drawn[0][2] == ["lr a=2", "lr a=1, b=3", "lr", "lr c=4"]
    assert (found["n"], found["n_hidden"], found["n_curves"]) == (4, 0, 4)
    assert sections.comparison(["run"], rows[:1]) is None


@pytest.mark.parametrize(
    ("settings", "varied"),
    [
        ([{"l2": 0, "rate": 1, "seed": 1}, {"l2": 0, "rate": 2, "seed": 2}], ["rate"]),
        ([{"l2": 0, "rate": 1, "seed": 1}, {"l2": 0, "rate": 1, "seed": 2}], ["seed"]),
        ([{"l2": 0, "rate": 1}, {"l2": 0, "rate": 2}, {"l2": 1, "rate": 1}], ["l2", "rate"]),
        ([{"l2": 0, "seed": 1}, {"l2": 0, "seed": 1}], []),
    ],
)
def test_seeds_are_compared_where_nothing_else_varies(settings, varied):
    members = [SimpleNamespace(record={"settings": one}) for one in settings]
    assert sections._varied(members) == varied


@pytest.mark.parametrize(
    ("lines", "best", "said"),
    [
        # The worst value is that whose best run is worst, and not the one of the worst run.
        (
            {"b=1": {0: [9.0], 1: [2.5], 2: [6.0]}, "b=2": {0: [4.0], 1: [80.0], 2: [7.0]}},
            ("b=1", 1),
            "The lowest error, 2.50 %, came with learning_rate 0.1 (the star); the best run with "
            "1.0 reached 6.00 %.",
        ),
        (
            {"": {0: [3.0, 1.5], 1: [8.0, 5.0]}},
            ("", 0),
            "The lowest error, 1.50 %, came with learning_rate 0.01 (the star); the best run with "
            "0.1 reached 5.00 %. Points are means over seeds; bars go from the lowest to the "
            "highest.",
        ),
    ],
)
def test_a_grid_names_its_best_and_its_worst_value(lines, best, said):
    line, index = best
    found = Comparison("learning_rate", [0.01, 0.1, 1.0], [], lines)
    found.best = {"line": line, "index": index, "percent": min(lines[line][index])}
    assert plain(sections._grid_finding(found)) == said


@pytest.mark.parametrize(
    ("models", "too_small_for", "said"),
    [
        (["mlp"], [], "lenet"),
        (["mlp"], ["lenet"], "logistic_regression"),
        (["lenet", "logistic_regression"], [], "mlp"),
        (["logistic_regression", "lenet", "mlp"], [], None),
        (["mlp"], ["lenet", "logistic_regression"], None),
    ],
)
def test_a_model_to_try_is_none_of_the_runs_and_can_be_trained(
    monkeypatch, models, too_small_for, said
):
    monkeypatch.setattr(sections, "_can_train", lambda name, run: name not in too_small_for)
    row = {"experiment": "a", "stopped_by": "patience"}
    settings = {"model": models[0], "learning_rate": 0.1}
    dataset = SimpleNamespace(is_mnist=False)
    run = SimpleNamespace(record={"settings": settings}, dataset=dataset)
    steps = sections.next_steps(row, run, [{"model": model} for model in models])
    found = [step for step in steps if step["title"] == "Try another model"]
    assert [f"of the model {said}." in step["why"] for step in found] == ([True] if said else [])
    assert [step["yaml"] for step in found] == (
        [f"experiments:\n  {said}:\n    model: {said}"] if said else []
    )
