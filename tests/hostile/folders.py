"""Bad folders of arrays: what a stranger may hand over as data that were read already."""

import json

import numpy as np
from archives import LYING
from cases import CANARY, Case, npz_of_toy
from networks import Call

from msgd.data.unpickle import unpickle


def arrays(name, edit, says, kind="data folder"):
    """Return the Case of a training on a folder of arrays after edit(folder)."""

    def make(folder):
        (folder / "toy.npz").write_bytes(npz_of_toy())
        unpickle(folder / "toy.npz", folder / "data", "float32")
        edit(folder / "data")
        words = "model=logistic_regression", "batch_size=10", "n_epochs=1"
        return ["train", "--data", "data", "--run", "out", "--backend", "cpu", *words]

    return Case(name, kind, make, says, "data")


def text(value):
    return lambda folder: (folder / "dataset.json").write_text(value)


def summary(**changes):
    def edit(folder):
        path = folder / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def instead(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def objects(folder):
    np.save(folder / "train_x.npy", np.array([Call(folder.parent / CANARY)] * 30, object))


FOLDERS = {
    "objects for images": (objects, r"not a whole \.npy file"),
    "nothing for images": (instead("train_x.npy", b""), r"not a whole \.npy file"),
    "no images": (lambda f: (f / "train_x.npy").unlink(), "No such file"),
    "a summary that is cut": (text('{"n_classes": '), "not JSON"),
    "a summary of 50,000 brackets": (text("[" * 50_000), "not JSON"),
    "a summary of 5,000 digits": (text('{"n_classes": ' + "9" * 5000 + "}"), "not JSON"),
    "a summary that is a list": (text("[]"), "not one of msgd's"),
    "a billion classes": (summary(n_classes=10**9), "classes"),
    "classes of text": (summary(n_classes="3\n\x1b[2J"), "n_classes"),
    "a class": (summary(n_classes=1), "n_classes"),
    "images of 2 ** 80 pixels": (summary(image_shape=[2**40, 2**40]), "expected"),
    "images below zero": (summary(image_shape=[-4, -5]), "image_shape"),
    "images of text": (summary(image_shape=["4", "5"]), "image_shape"),
    "hashes of text": (summary(sha256="train_x"), "not one of msgd's"),
    "pixels of a number": (summary(pixels=8), "not one of msgd's"),
    "other labels": (
        lambda f: np.save(f / "train_y.npy", np.arange(1, 31, dtype=np.int32) % 3),
        "its SHA-256 differs",
    ),
    "labels beyond the classes": (
        lambda f: np.save(f / "train_y.npy", np.arange(30, dtype=np.int32)),
        "has labels 0 to 29",
    ),
    "labels that are NaN": (
        lambda f: np.save(f / "test_y.npy", np.full(9, np.nan)),
        r"has a test_y of \(9,\) float64",
    ),
    "other images": (
        lambda f: np.save(f / "test_x.npy", np.zeros((9, 20), np.uint8)),
        "its SHA-256 differs",
    ),
}


def lying():
    """Yield cases of folders in which the header of train_x lies."""
    for name, member in LYING.items():
        says = r"not a whole \.npy file|has a train_x|has images of type|differs|not one of msgd's"
        yield arrays(f"images that lie: {name}", instead("train_x.npy", member), says)


CASES = [*(arrays(name, *case) for name, case in FOLDERS.items()), *lying()]
