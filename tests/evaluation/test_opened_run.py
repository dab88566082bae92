"""Commands by hand on a run and data that do not belong together: an error, nothing written.

Each case spoils a copy of a run or of its data, and runs the commands that would use what is
spoiled. Without the checks some of them end in a traceback, the others in figures and scores that
mean nothing, or in memory that is overwritten.
"""

import json
import shutil

import numpy as np
import pytest
from conftest import as_triple, error_lines, make_dataset, save_npz

from msgd.cli import main
from msgd.data.unpickle import unpickle

WORDS = ["model=logistic_regression", "batch_size=10", "n_epochs=2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the data sets ``data`` and others, and runs of two of them."""
    root = tmp_path_factory.mktemp("made")
    toys = {
        "data": make_dataset(60, 30, 37, (6, 6), 3),
        "larger": make_dataset(60, 30, 37, (30, 30), 3),
        "smaller": make_dataset(60, 30, 37, (3, 3), 3),
        "classes": make_dataset(60, 30, 37, (6, 6), 40),
        "floats": make_dataset(60, 30, 37, (6, 6), 3, "float64"),
    }
    triples = {name: as_triple(toy) for name, toy in toys.items()}
    # Of the same shape, and with the same labels.
    triples["same"] = tuple((x[:, ::-1].copy(), y) for x, y in triples["data"])
    for name, triple in triples.items():
        save_npz(root / f"{name}.npz", triple)
        float_x = "float64" if name == "floats" else "float32"
        unpickle(root / f"{name}.npz", root / name, float_x)
    for name, data in (("own", "data"), ("other", "same")):
        run = ["--run", root / "runs" / name / "default", "--data", root / data, "--backend", "cpu"]
        assert call("train", *run, *WORDS) == 0
        assert call("score", *run) == 0
    return root


def call(*words):
    """Run msgd in this process with ``words``; return its exit code."""
    return main([str(word) for word in words])


class Spoiled:
    """A copy of ``made``'s data and runs to be spoiled, and commands on them."""

    def __init__(self, made, folder):
        self.made, self.data, self.runs = made, folder / "data", folder / "runs"
        self.run, self.out = self.runs / "own" / "default", folder / "out"
        shutil.copytree(made / "data", self.data)
        shutil.copytree(made / "runs", self.runs)

    def edit_json(self, path, **changes):
        found = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))

    def edit_settings(self, **changes):
        path = self.run / "provenance.json"
        settings = json.loads(path.read_text())["settings"]
        self.edit_json(path, settings={**settings, **changes})

    def edit_array(self, name, change):
        path = self.data / f"{name}.npy"
        np.save(path, change(np.load(path)))

    def edit_npz(self, name, change):
        path = self.run / name
        with np.load(path) as arrays:
            changed = change(dict(arrays))
        np.savez(path, **changed)

    def words(self, command, data=None):
        data = data or self.data
        with_run = ["--run", self.run, "--data", data]
        if command == "train":
            out = ["--run", self.out, "--states", self.out / "states"]
            return ["train", "--data", data, "--backend", "cpu", *out, *WORDS]
        if command in ("score", "score cuda"):
            backend = "cuda" if command.endswith("cuda") else "cpu"
            return ["score", *with_run, "--backend", backend]
        if command == "select":
            return ["select", self.run, "--data", data, "--output", self.out]
        if command == "report":
            return ["report", self.run, "--data", data, "--output", self.out / "report.html"]
        if command in ("tabulate", "compare-published"):
            return [command, self.run, "--output", self.out]
        if command == "validation_error_over":
            over = ["--over", "seed", "--runs", self.run]
            return ["plot", command, *over, "--output", self.out / "x.png"]
        suffix = "gif" if command == "weights_animation" else "png"
        return ["plot", command, *with_run, "--output", self.out / f"x.{suffix}"]

    def refuse(self, capsys, messages, *words):
        """Run ``words``: an error of one line that holds ``messages``, and no file changed."""
        before = self.files()
        capsys.readouterr()
        assert call(*words) == 1
        errors = error_lines(capsys.readouterr().err)
        assert len(errors) == 1, errors
        assert f"msgd {words[0]}: error: " in errors[0]
        for message in messages:
            assert message in errors[0]
        assert self.files() == before

    def files(self):
        return {p: p.read_bytes() for p in self.run.parents[2].rglob("*") if p.is_file()}


@pytest.fixture
def spoiled(made, tmp_path):
    return Spoiled(made, tmp_path)


ON_DATA = ["train", "score", "score cuda", "select", "weights", "weights_animation"]
ON_DATA += ["confusion", "mistakes", "report"]
ON_A_RUN_AND_DATA = ON_DATA[1:]
ON_A_RUN = [*ON_A_RUN_AND_DATA, "tabulate", "compare-published", "validation_error_over"]
ON_A_RUN += ["learning_curve"]


@pytest.mark.parametrize("data", ["larger", "smaller", "classes", "same", "floats"])
@pytest.mark.parametrize("command", ON_A_RUN_AND_DATA)
def test_data_that_the_run_was_not_trained_on(spoiled, capsys, command, data):
    folder = spoiled.made / data
    message = f"{spoiled.run} was not trained on the data in {folder}: "
    spoiled.refuse(capsys, [message, "train_x"], *spoiled.words(command, folder))


@pytest.mark.parametrize(
    "words",
    [
        ["tabulate"],
        ["compare-published"],
        ["select", "--data", "{data}"],
        ["plot", "validation_error_over", "--over", "seed", "--runs"],
    ],
    ids=lambda words: words[0],
)
def test_runs_of_different_data(spoiled, capsys, words):
    other = spoiled.runs / "other" / "default"
    words = [word.format(data=spoiled.data) for word in words]
    runs = [spoiled.run, other] if words[0] != "select" else [other, spoiled.run]
    message = [f"{other} was ", "trained on ", "test_x, train_x, valid_x differ"]
    spoiled.refuse(capsys, message, *words, *runs, "--output", spoiled.out / "x.png")


@pytest.mark.parametrize(
    "words",
    [
        ["report", "--data", "{data}"],
        ["select", "--data", "{data}"],
        ["tabulate"],
        ["compare-published"],
        ["plot", "validation_error_over", "--over", "seed", "--runs"],
        ["plot", "learning_curve", "--best-of"],
    ],
    ids=lambda words: words[0],
)
def test_a_run_given_twice(spoiled, capsys, words):
    """By another path, too: it would count twice."""
    words = [word.format(data=spoiled.data) for word in words]
    again = spoiled.runs / "other" / ".." / "own" / "default"
    message = [f"{again} is given twice", "give each run once"]
    spoiled.refuse(capsys, message, *words, spoiled.run, again, "--output", spoiled.out / "x.png")


@pytest.mark.parametrize(
    ("command", "split"),
    [("train", "train"), ("train", "valid"), ("score", "test"), ("mistakes", "test")],
)
def test_images_changed_in_the_data_folder(spoiled, capsys, command, split):
    """Of the same shape and type, so that nothing but their hash tells."""
    spoiled.edit_array(f"{split}_x", lambda x: x[::-1].copy())
    message = [f"{spoiled.data}: {split}_x.npy is not the file that dataset.json is of"]
    spoiled.refuse(capsys, message, *spoiled.words(command))


# Of the data: what is done to it, and what of it is reported.
def summary(**changes):
    return lambda s: s.edit_json(s.data / "dataset.json", **changes)


def array(name, change):
    return lambda s: s.edit_array(name, change)


def content(name, change):
    def spoil(s):
        path = s.data / name
        path.write_bytes(change(path.read_bytes()))

    return spoil


DATA = {
    "fewer classes": (summary(n_classes=2), "labels 0 to 2 in train_y, and 2 classes"),
    "more classes": (summary(n_classes=50), "dataset.json says 50 classes, train_y has 3"),
    "classes in words": (summary(n_classes="3"), "has n_classes 3 and"),
    "larger images": (summary(image_shape=[60, 60]), "(60, 36) uint8; expected: (60, 3600) uint8"),
    "smaller images": (summary(image_shape=[2, 2]), "(60, 36) uint8; expected: (60, 4) uint8"),
    "images of no shape": (summary(image_shape=[36]), "image_shape (36,)"),
    "no classes": (summary(n_classes=None), "dataset.json is not one of msgd's (KeyError"),
    "no hashes": (summary(sha256=None), "dataset.json is not one of msgd's (KeyError"),
    "other pixels": (summary(pixels="float32"), "dataset.json says pixels of float32"),
    "other numbers": (
        summary(examples={"train": 60, "valid": 29, "test": 37}),
        "dataset.json says 29 valid examples, not 30",
    ),
    "a cut summary": (content("dataset.json", lambda b: b[:40]), "dataset.json is damaged"),
    "a list": (content("dataset.json", lambda _: b"[]"), "dataset.json is not one of msgd's"),
    "labels too large": (array("train_y", lambda y: y + 1000), "labels 1000 to 1002 in train_y"),
    "a test label": (array("test_y", lambda y: y + 1), "labels 1 to 3 in test_y"),
    "negative labels": (array("valid_y", lambda y: y - 5), "labels -5 to -3 in valid_y"),
    "long labels": (array("train_y", lambda y: y.astype(np.int64)), "train_y of (60,) int64"),
    "swapped bytes": (array("test_y", lambda y: y.astype(">i4")), "test_y of (37,) >i4"),
    "few labels": (array("train_y", lambda y: y[:5]), "expected: (5, 36)"),
    "one-hot labels": (array("train_y", lambda y: np.eye(3, dtype=np.int32)[y]), "(60, 3) int32"),
    "other labels": (array("valid_y", lambda y: y[::-1].copy()), "valid_y.npy is not the file"),
    "Fortran order": (array("train_x", np.asfortranarray), "train_x that is not in C order"),
    "narrow images": (array("test_x", lambda x: x[:, :9].copy()), "test_x of (37, 9) uint8"),
    "few images": (array("valid_x", lambda x: x[:20].copy()), "valid_x of (20, 36) uint8"),
    "signed pixels": (array("train_x", lambda x: x.astype(np.int16)), "images of type int16"),
    "mixed pixels": (array("test_x", lambda x: x.astype(np.float32)), "test_x of (37, 36) float32"),
    "pictures": (array("train_x", lambda x: x.reshape(-1, 6, 6)), "train_x of (60, 6, 6)"),
    "a cut array": (content("train_x.npy", lambda b: b[:500]), "train_x.npy is not a whole .npy"),
    "an empty file": (content("test_x.npy", lambda _: b""), "test_x.npy is not a whole .npy"),
    "a stranger": (content("test_y.npy", lambda _: b"<html>"), "test_y.npy is not a whole .npy"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_is_not_what_its_summary_says(spoiled, capsys, case):
    spoil, message = DATA[case]
    spoil(spoiled)
    for command in ON_DATA:
        spoiled.refuse(capsys, [message, str(spoiled.data)], *spoiled.words(command))


def test_float_pixels_of_another_type_than_float_x(spoiled, capsys):
    folder = spoiled.made / "floats"
    message = f"{folder} holds pixels of float64, but floatX is float32"
    spoiled.refuse(capsys, [message], *spoiled.words("train", folder))


# Of the run: what is done to it, what is reported, and by which commands.
def parameters(change):
    return lambda s: s.edit_npz("best_parameters.npz", change)


def predictions(change):
    return lambda s: s.edit_npz("test_predictions.npz", lambda a: change(a["predicted"]))


def record(**changes):
    return lambda s: s.edit_json(s.run / "provenance.json", **changes)


def settings(**changes):
    return lambda s: s.edit_settings(**changes)


def outcome(file, **changes):
    return lambda s: s.edit_json(s.run / file, **changes)


def without(name):
    return lambda s: (s.run / name).unlink()


def written(name, text):
    return lambda s: (s.run / name).write_text(text)


def first_snapshot(spoiled):
    shutil.copy(
        spoiled.run / "best_parameters.npz", spoiled.run / "snapshots/iteration_000000000.npz"
    )


def spoiled_snapshot(spoiled):
    spoiled.edit_npz("best_parameters.npz", lambda p: {"weights_1": p["weights"]})
    first_snapshot(spoiled)


NEED_PARAMETERS = ["score", "score cuda", "select", "mistakes", "report"]
NEED_PREDICTIONS = ["confusion", "mistakes", "report"]
NEED_SNAPSHOTS = ["weights", "weights_animation"]
NEED_HISTORY = ["learning_curve", "report"]
NEED_SCORES = ["tabulate", "compare-published", "select", "report"]
FIT = "best_parameters.npz does not fit the run's settings and the data in"
RUN = {
    "parameters of a perceptron": (
        parameters(lambda p: {"weights_1": p["weights"], "bias_1": p["bias"]}),
        "it holds weights_1, bias_1, not weights, bias",
        NEED_PARAMETERS,
    ),
    "no bias": (parameters(lambda p: {"weights": p["weights"]}), FIT, NEED_PARAMETERS),
    "one too many": (parameters(lambda p: {**p, "more": p["bias"]}), FIT, NEED_PARAMETERS),
    "another order": (
        parameters(lambda p: {"bias": p["bias"], "weights": p["weights"]}),
        FIT,
        NEED_PARAMETERS,
    ),
    "doubles": (
        parameters(lambda p: {name: array.astype(float) for name, array in p.items()}),
        "weights is (36, 3) float64, not (36, 3) float32",
        NEED_PARAMETERS,
    ),
    "fewer rows": (
        parameters(lambda p: {**p, "weights": p["weights"][:9]}),
        "weights is (9, 3) float32, not (36, 3) float32",
        NEED_PARAMETERS,
    ),
    "a short bias": (parameters(lambda p: {**p, "bias": p["bias"][:2]}), FIT, NEED_PARAMETERS),
    "nan": (
        parameters(lambda p: {**p, "weights": p["weights"] * np.float32("nan")}),
        "weights holds numbers that are not finite",
        NEED_PARAMETERS,
    ),
    "cut parameters": (
        written("best_parameters.npz", "PK"),
        "best_parameters.npz is not a whole .npz file",
        NEED_PARAMETERS,
    ),
    "no parameters": (
        without("best_parameters.npz"),
        "best_parameters.npz is missing",
        NEED_PARAMETERS,
    ),
    "double precision": (record(floatX="float64"), "holds files of two runs: floatX", ON_A_RUN),
    "no floatX": (record(floatX=None), "floatX is None; allowed: float32", ON_A_RUN_AND_DATA),
    "another model": (
        settings(model="logistic_cg"),
        "learning_rate is not a known key",
        ON_A_RUN,
    ),
    "an unknown model": (settings(model="forest"), "model is 'forest'", ON_A_RUN),
    "another model's outcome": (
        outcome("training.json", model="mlp"),
        "holds files of two runs: model is mlp in training.json",
        ON_A_RUN,
    ),
    "a large batch": (
        settings(batch_size=500),
        "provenance.json: batch_size is 500; allowed: at most 60",
        ON_A_RUN_AND_DATA,
    ),
    "no settings": (record(settings=None), "it lacks settings or data", ON_A_RUN),
    "no data": (record(data=None), "it lacks settings or data", ON_A_RUN),
    "a cut record": (written("provenance.json", "{"), "provenance.json is damaged", ON_A_RUN),
    "a list": (written("training.json", "[]"), "training.json is not one of msgd's", ON_A_RUN),
    "no record": (without("provenance.json"), "provenance.json is missing", ON_A_RUN),
    "no outcome": (without("training.json"), "training.json is missing", ON_A_RUN),
    "no errors": (
        outcome("training.json", validation_errors=None),
        "validation_errors is None",
        ON_A_RUN,
    ),
    "no minibatches": (
        outcome("training.json", n_train_batches=None),
        "n_train_batches is None",
        ON_A_RUN,
    ),
    "errors in halves": (
        outcome("training.json", validation_errors=0.5),
        "validation_errors is 0.5",
        ON_A_RUN,
    ),
    "more errors than examples": (
        outcome("training.json", validation_errors=31),
        "validation_errors is 31, validation_examples is 30",
        ON_A_RUN,
    ),
    "no score": (without("score.json"), "score.json is missing", NEED_SCORES),
    "half a score": (outcome("score.json", test_errors=None), "test_errors is None", NEED_SCORES),
    "no examples": (
        outcome("score.json", all_test_errors=0, all_test_examples=0),
        "all_test_examples is 0",
        NEED_SCORES,
    ),
    "few predictions": (
        predictions(lambda p: {"predicted": p[:5]}),
        "test_predictions.npz is of 5 test images; the data in",
        NEED_PREDICTIONS,
    ),
    "many predictions": (
        predictions(lambda p: {"predicted": np.tile(p, 2)}),
        "is of 74 test images",
        NEED_PREDICTIONS,
    ),
    "an unknown class": (
        predictions(lambda p: {"predicted": p + 5}),
        "has 3 classes, counted from 0",
        NEED_PREDICTIONS,
    ),
    "a negative class": (
        predictions(lambda p: {"predicted": p - 1}),
        "holds the classes -1 to",
        NEED_PREDICTIONS,
    ),
    "fractions of classes": (
        predictions(lambda p: {"predicted": p + 0.5}),
        "holds no predicted classes",
        NEED_PREDICTIONS,
    ),
    "another array": (
        predictions(lambda p: {"classes": p}),
        "holds no predicted classes",
        NEED_PREDICTIONS,
    ),
    "no predictions": (
        without("test_predictions.npz"),
        "test_predictions.npz is missing",
        NEED_PREDICTIONS,
    ),
    "another's snapshot": (
        spoiled_snapshot,
        "iteration_000000000.npz does not fit the run's settings",
        NEED_SNAPSHOTS,
    ),
    "no snapshots": (
        lambda s: shutil.rmtree(s.run / "snapshots"),
        "there are no snapshots",
        [*NEED_SNAPSHOTS, "report"],
    ),
    "no history": (without("history.csv"), "history.csv is missing", NEED_HISTORY),
    "another table": (
        written("history.csv", "a,b\n1,2\n"),
        "it lacks stage, iteration, epoch",
        NEED_HISTORY,
    ),
    "an empty history": (written("history.csv", ""), "is not one of msgd's", NEED_HISTORY),
    "a history of another run": (
        outcome("training.json", validation_errors=7),
        "holds files of two runs: history.csv ends with the best of",
        NEED_HISTORY,
    ),
    "no timings": (without("timings.csv"), "timings.csv is missing", ["report"]),
    "empty timings": (written("timings.csv", ""), "timings.csv is not one of msgd's", ["report"]),
    "another's timings": (
        written("timings.csv", "stage,iteration,seconds\ntrain,1,2\n"),
        "timings.csv is not of the rows in history.csv",
        ["report"],
    ),
}


@pytest.mark.parametrize("case", RUN)
def test_a_run_that_is_not_whole_or_not_one(spoiled, capsys, case):
    spoil, message, commands = RUN[case]
    spoil(spoiled)
    for command in commands:
        spoiled.refuse(capsys, [message, str(spoiled.run)], *spoiled.words(command))


def test_a_folder_that_is_no_run(spoiled, capsys):
    spoiled.run = spoiled.runs / "absent"
    for command in ON_A_RUN:
        message = f"{spoiled.run}/provenance.json is missing; is {spoiled.run} a run's folder?"
        spoiled.refuse(capsys, [message], *spoiled.words(command))


def test_a_snapshot_of_a_diverged_training_is_no_fault(spoiled):
    """The last one holds what came of it."""
    infinite = np.full(3, np.inf, np.float32)
    spoiled.edit_npz("best_parameters.npz", lambda p: {**p, "bias": infinite})
    first_snapshot(spoiled)
    spoiled.out.mkdir()
    assert call(*spoiled.words("weights")) == 0


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5", "true", "[1]", ""])
def test_chunks_are_whole_numbers_or_null(spoiled, capsys, given):
    words = [*spoiled.words("score cuda"), "--device-chunk-batches", given]
    with pytest.raises(SystemExit, match="2"):
        call(*words)
    assert "--device-chunk-batches: " in capsys.readouterr().err


@pytest.mark.parametrize("given", ["1", "null"])
def test_chunks_as_a_rule_gives_them(spoiled, given):
    assert call(*spoiled.words("score cuda"), "--device-chunk-batches", given) == 0
