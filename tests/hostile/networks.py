"""Bad model files, and bad files of runs: what a stranger may hand over as a trained network."""

import copy
import io
import json
import os
import pickle
import zipfile

import numpy as np
from archives import LYING, central, overlapping, zipped
from cases import CANARY, Case

from msgd.config import complete_experiment

SIDE, CLASSES = 7, 3
ABOUT = {
    "format": "msgd model",
    "format_version": 1,
    "model": "logistic_regression",
    "settings": complete_experiment({"model": "logistic_regression"}),
    "floatX": "float32",
    "image_shape": [SIDE, SIDE],
    "n_classes": CLASSES,
    "pixels": {"dtype": "uint8", "scale": 1 / 256, "background": 0, "ink": 255},
    "is_mnist": False,
    "origin": {"run": "a/default", "data": {}, "code": None},
}
PARAMETERS = {
    "weights": np.ones((SIDE * SIDE, CLASSES), np.float32),
    "bias": np.zeros(CLASSES, np.float32),
}


def model_file(about=ABOUT, **arrays):
    """Return a model file; about: its description, as JSON text unless it is an array."""
    if not isinstance(about, np.ndarray):
        about = np.array(about if isinstance(about, str) else json.dumps(about))
    stream = io.BytesIO()
    np.savez(stream, **{**PARAMETERS, **arrays, "description": about})
    return stream.getvalue()


def picture(folder):
    from PIL import Image

    image = np.zeros((SIDE, SIDE), np.uint8)
    image[1:6, 3] = 255
    Image.fromarray(image).save(folder / "one.png")


def model(name, content, says, kind="model file", command="predict"):
    """Return the Case of a model file: the bytes ``content``, or what that function returns."""

    def make(folder):
        data = content(folder) if callable(content) else content
        (folder / "model.npz").write_bytes(data)
        picture(folder)
        rest = ["one.png"] if command == "predict" else ["--onnx", "model.onnx"]
        return [command, "--model", "model.npz", *rest]

    return Case(name, kind, make, says, "model.npz")


def described(**changes):
    return model_file({**ABOUT, **changes})


def settings(name, **changes):
    return described(model=name, settings={**complete_experiment({"model": name}), **changes})


def pixels(**changes):
    return described(pixels={**ABOUT["pixels"], **changes})


def without(*keys):
    about = copy.deepcopy(ABOUT)
    for key in keys:
        del about[key]
    return model_file(about)


class Call:
    """Pickles as a call that makes the file ``path``."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def objects(folder):
    return Call(folder / CANARY)


NOT_WHOLE = r"is not a whole \.npz file"
DAMAGED = "its description is not msgd's"
FITS_NOT = "does not fit its description"
MODELS = {
    "objects for parameters": (
        lambda f: model_file(weights=np.array([objects(f)], object)),
        NOT_WHOLE,
    ),
    "an object for a description": (
        lambda f: model_file(np.array(objects(f), object)),
        NOT_WHOLE,
    ),
    "a pickle": (lambda f: pickle.dumps(objects(f)), NOT_WHOLE),
    "a pickle as a member": (
        lambda f: zipped([("description.npy", pickle.dumps(objects(f)))]),
        NOT_WHOLE,
    ),
    "a single array": (np.lib.format.MAGIC_PREFIX + b"\1\0" + bytes(100), NOT_WHOLE),
    "nothing": (b"", NOT_WHOLE),
    "a zip of nothing": (zipped([]), "does not say what model it holds"),
    "the parameters alone": (zipped([("weights.npy", b"")]), NOT_WHOLE + "|does not say"),
    "a bomb": (
        lambda f: zipped([("weights.npy", bytes(2**28 + 2**24))], zipfile.ZIP_DEFLATED),
        "bomb",
    ),
    "a thousand members that are one": (lambda f: overlapping(), "bomb"),
    "a size that lies upwards": (central(model_file(), 24, b"\xff\xff\xff\x7f"), "bomb|whole"),
    "an encrypted member": (central(model_file(), 8, b"\1\0"), NOT_WHOLE),
    "an unknown compression": (central(model_file(), 10, b"\x63\0"), NOT_WHOLE),
    "half of it": (model_file()[:700], NOT_WHOLE),
    "numbers for a description": (model_file(np.arange(4)), "is damaged"),
    "bytes for a description": (model_file(np.array(b"{}")), "is damaged"),
    "a description of nothing": (model_file(""), DAMAGED),
    "a description that is a list": (model_file("[]"), DAMAGED),
    "a description of 50,000 brackets": (model_file("[" * 50_000), DAMAGED),
    "a description with 5,000 digits": (model_file('{"format": ' + "9" * 5000 + "}"), DAMAGED),
    "a description of two lines": (described(format="a\nb \x1b[2J"), "no model file of msgd"),
    "another format": (described(format=["msgd model"]), "no model file of msgd"),
    "a version to come": (described(format_version=10**300), "version"),
    "a version of two lines": (described(format_version="1\n\x1b[2J"), "version"),
    "no settings": (without("settings"), DAMAGED),
    "no pixels": (without("pixels"), DAMAGED),
    "no origin": (without("origin"), DAMAGED),
    "an origin of text": (described(origin="a/default"), DAMAGED),
    "an origin without a run": (described(origin={}), DAMAGED),
    "settings of text": (described(settings="mlp"), "model is missing"),
    "settings of a path": (described(settings={"model": "../../x"}), "allowed: logistic"),
    "a learning rate that is NaN": (
        settings("logistic_regression", learning_rate=float("nan")),
        "a finite number",
    ),
    "an unknown setting": (settings("logistic_regression", x=1), "not a known key"),
    "settings of two models": (settings("mlp"), FITS_NOT),
    "300,000 units": (settings("mlp", n_hidden=300_000), FITS_NOT),
    "twice a million units": (settings("mlp", n_hidden=[10**6, 10**6]), FITS_NOT),
    "10 ** 8 units": (settings("mlp", n_hidden=10**8), "allowed: a whole number"),
    "a million kernels": (settings("lenet", nkerns=[10**6, 10**6], filter_size=1), FITS_NOT),
    "a million units that are tied": (settings("sda", n_hidden=[10**6] * 3), FITS_NOT),
    "a model without classes": (settings("rbm", n_hidden=10**6), "does not fit|no classes"),
    "images of 10 ** 10 pixels": (described(image_shape=[10**5, 10**5]), FITS_NOT),
    "images below zero": (described(image_shape=[-7, -7]), DAMAGED),
    "images of one side": (described(image_shape=[49]), DAMAGED),
    "images of fractions": (described(image_shape=[7.5, 7]), DAMAGED),
    "images of text": (described(image_shape="77"), DAMAGED),
    "a billion classes": (described(n_classes=10**9), FITS_NOT),
    "classes below zero": (described(n_classes=-3), DAMAGED),
    "classes of text": (described(n_classes="3"), DAMAGED),
    "a float of half": (described(floatX="float16"), DAMAGED),
    "a float that is a list": (described(floatX=["float32"]), DAMAGED),
    "pixels of objects": (pixels(dtype="O"), DAMAGED),
    "pixels of text": (pixels(dtype="<U9"), DAMAGED),
    "pixels of 2 GB": (pixels(dtype="V2000000000"), DAMAGED),
    "a scale that is NaN": (pixels(scale=float("nan")), DAMAGED),
    "a scale of text": (pixels(scale="1"), DAMAGED),
    "a ground of 10 ** 300": (pixels(background=1e300), DAMAGED),
    "an ink that is a list": (pixels(ink=[255]), DAMAGED),
    "weights of another shape": (model_file(weights=np.ones((3, 49), np.float32)), FITS_NOT),
    "weights of another type": (model_file(weights=np.ones((49, 3), np.int64)), FITS_NOT),
    "weights that are NaN": (
        model_file(weights=np.full((49, 3), np.nan, np.float32)),
        "not finite",
    ),
    "one array more": (model_file(more=np.zeros(3)), FITS_NOT),
}
EXPORTED = ("300,000 units", "an object for a description", "weights that are NaN")


def lying():
    """Yield cases of model files whose weights' header lies."""
    for name, member in LYING.items():
        with zipfile.ZipFile(io.BytesIO(model_file())) as archive:
            members = {one: archive.read(one) for one in archive.namelist()}
        data = zipped({**members, "weights.npy": member}.items())
        says = NOT_WHOLE + "|" + FITS_NOT
        yield model(f"weights that lie: {name}", data, says, "model file that lies")


RECORD = {
    "data": {"sha256": {"train_x": "0"}},
    "settings": ABOUT["settings"],
    "floatX": "float32",
}
TRAINING = {
    **dict.fromkeys(("n_params", "epochs_run", "iterations_run", "n_train_batches"), 1),
    "best_epoch": 1,
    "best_iteration": 1,
    "validation_errors": 1,
    "validation_examples": 2,
    "model": "logistic_regression",
    "floatX": "float32",
}
SCORE = {"test_errors": 1, "test_examples": 2, "all_test_errors": 1, "all_test_examples": 2}


def run(name, says, **files):
    """Return the Case of a run whose files hold other text (str or JSON) than they should."""

    def make(folder):
        place = folder / "runs" / "a" / "default"
        place.mkdir(parents=True)
        texts = {"provenance": RECORD, "training": TRAINING, "score": SCORE, **files}
        for file, content in texts.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (place / f"{file}.json").write_text(text)
        return ["tabulate", "--output", "out", "runs/a/default"]

    return Case(name, "run's files", make, says)


def changed(record, **changes):
    return {**record, **changes}


RUNS = [
    run("a record that is cut", "is damaged: it is not JSON", provenance='{"data": '),
    run("a record that is a list", "holds no mapping", provenance=[]),
    run("a record of 50,000 brackets", "is not JSON", provenance="[" * 50_000),
    run("a record with 5,000 digits", "is not JSON", provenance='{"a": ' + "9" * 5000 + "}"),
    run("hashes that are a number", "lacks settings or data", provenance={"data": {"sha256": 1}}),
    run("settings of text", "lacks settings", provenance=changed(RECORD, settings="mlp")),
    run(
        "settings of 10 ** 8 units",
        "allowed: a whole number",
        provenance=changed(RECORD, settings={"model": "mlp", "n_hidden": 10**8}),
    ),
    run(
        "settings of no model",
        "model is missing",
        provenance=changed(RECORD, settings={"n_hidden": 3}),
    ),
    run(
        "settings of a path",
        "allowed: logistic",
        provenance=changed(RECORD, settings={"model": "../x"}),
    ),
    run(
        "a training of another model", "files of two runs", training=changed(TRAINING, model="mlp")
    ),
    run("epochs below zero", "epochs_run is -1", training=changed(TRAINING, epochs_run=-1)),
    run("epochs of text", "epochs_run is", training=changed(TRAINING, epochs_run="a\n\x1b[2J")),
    run(
        "more errors than examples",
        "validation_errors is 3",
        training=changed(TRAINING, validation_errors=3),
    ),
    run(
        "errors among no examples",
        "validation_examples is",
        training=changed(TRAINING, validation_errors=0, validation_examples=0),
    ),
    run("a score of NaN", "test_errors is nan", score=changed(SCORE, test_errors=float("nan"))),
    run("a score of text", "test_errors is", score=changed(SCORE, test_errors="1" * 10_000)),
    run("a score of nothing", "holds no mapping", score="null"),
]

CASES = [
    *(model(name, *case) for name, case in MODELS.items()),
    *(model(f"exported: {name}", *MODELS[name], command="export") for name in EXPORTED),
    *lying(),
    *RUNS,
]
