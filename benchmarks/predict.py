"""How many digits `msgd predict` recognises in pictures, beside the same digits given directly.

    python benchmarks/predict.py [--output FILE]

MNIST test digits are saved as pictures in several forms, PNG or JPEG: other sizes, dark on light,
cut out closely, as a scan of a page, and as if photographed (uneven light, blur, noise, specks, a
dark desk at the edge or all around, the sheet askew, the picture on its side by EXIF). They are
read back and classified by the runs of logistic regression and the MLP in results/, which
`snakemake --cores all` makes. Prints JSON with hardware and versions.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import MNIST, ROOT, write_report
from PIL import Image
from scipy import ndimage

RUNS = {
    name: ROOT / "results" / "runs" / name / "default" for name in ("logistic_regression", "mlp")
}
# Every 25th test digit, but those by which the constants of msgd.inference.pictures were chosen.
CHOSEN = [i for i in range(512, 10_000, 25) if i % 33 != 3]
UPRIGHT = {6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180}  # stored so, by orientation


def enlarged(digit, side):
    """Return a digit (28, 28) uint8 as ink (side, side) from 0 to 1."""
    image = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float64) / 255


def cut_out(digit):
    """Return a digit as ink, with one pixel of ground around it."""
    rows, columns = (np.flatnonzero((digit > 60).any(axis=axis)) for axis in (1, 0))
    return digit[rows[0] - 1 : rows[-1] + 2, columns[0] - 1 : columns[-1] + 2] / 255


def on_page(digit, random, side, shape, ink=0.25, specks=0):
    """Return the brightness of a page of ``shape`` with the digit, ``side`` pixels, somewhere."""
    page = np.zeros(shape)
    top, left = (random.integers(n // 8, n - n // 8 - side) for n in shape)
    page[top : top + side, left : left + side] = enlarged(digit, side)
    for _ in range(specks):
        row, column = (random.integers(0, n - 3) for n in shape)
        page[row : row + 3, column : column + 3] = 1
    return 0.85 - (0.85 - ink) * page


def photographed(page, random, fall=0.4, noise=0.03, blur=1.2):
    """Return a page under light that falls off in a random direction, blurred and noisy."""
    y, x = np.mgrid[-0.5 : 0.5 : page.shape[0] * 1j, -0.5 : 0.5 : page.shape[1] * 1j]
    angle = random.uniform(0, 2 * np.pi)
    light = 1 - fall * (0.5 + np.cos(angle) * x + np.sin(angle) * y) - 0.2 * (x * x + y * y)
    return ndimage.gaussian_filter(page * light, blur) + random.normal(0, noise, page.shape)


def on_desk(page):
    """Return a page that does not cover the picture: a dark desk at its left and lower edge."""
    page[:, : page.shape[1] // 14] = 0.12
    page[-page.shape[0] // 20 :] = 0.12
    return page


def sheet_on_desk(page):
    """Return a picture with a dark desk on all sides of the page."""
    return np.pad(page, ((60, 80), (50, 90)), constant_values=0.12)


def askew(picture, random):
    """Return a picture of a desk turned by up to 30 degrees, with more of the desk around it."""
    return ndimage.rotate(picture, random.uniform(-30, 30), order=1, cval=0.12)


PHOTO = (480, 640)
# Each form: kind of file, EXIF orientation, the brightness of the picture.
FORMS = {
    "28 x 28, as MNIST has them": ("png", 1, lambda d, r: d / 255),
    "28 x 28, dark on light": ("png", 1, lambda d, r: 1 - d / 255),
    "cut out closely, dark on light": ("png", 1, lambda d, r: 1 - cut_out(d)),
    "64 x 64": ("png", 1, lambda d, r: enlarged(d, 64)),
    "280 x 280, dark on light": ("jpg", 1, lambda d, r: 1 - enlarged(d, 280)),
    "scan of a page, the digit a 16th of its height": (
        *("jpg", 1),
        lambda d, r: on_page(d, r, 100, (1600, 1200)) + r.normal(0, 0.01, (1600, 1200)),
    ),
    "photograph": ("jpg", 1, lambda d, r: photographed(on_page(d, r, 250, PHOTO), r)),
    "photograph, on its side by EXIF": (
        *("jpg", 6),
        lambda d, r: photographed(on_page(d, r, 250, PHOTO), r),
    ),
    "photograph, upside down by EXIF, pencil": (
        *("jpg", 3),
        lambda d, r: photographed(on_page(d, r, 250, PHOTO, ink=0.55), r),
    ),
    "photograph, much noise and blur, half the light lost": (
        *("jpg", 1),
        lambda d, r: photographed(on_page(d, r, 250, PHOTO), r, fall=0.6, noise=0.08, blur=3),
    ),
    "photograph, specks, a dark desk at the edge": (
        *("jpg", 1),
        lambda d, r: photographed(on_desk(on_page(d, r, 200, PHOTO, specks=30)), r),
    ),
    "photograph, a dark desk on all sides": (
        *("jpg", 1),
        lambda d, r: photographed(sheet_on_desk(on_page(d, r, 200, (340, 500))), r),
    ),
    "photograph, the sheet askew by up to 30 degrees": (
        *("jpg", 1),
        lambda d, r: photographed(askew(sheet_on_desk(on_page(d, r, 200, (340, 500))), r), r),
    ),
}


def write_pictures(folder, form, digits):
    """Write ``digits`` (n, 28, 28) in a ``form`` into ``folder``; return the paths, in order."""
    kind, orientation, brightness = FORMS[form]
    paths = []
    for number, digit in enumerate(digits):
        grey = brightness(digit, np.random.default_rng(number))
        image = Image.fromarray(np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8))
        exif = Image.Exif()
        if orientation != 1:
            image = image.transpose(UPRIGHT[orientation])
            exif[0x0112] = orientation
        paths.append(folder / f"{number:04d}.{kind}")
        image.save(paths[-1], exif=exif)
    return paths


def load_models():
    """Return {name: ModelFile} of RUNS."""
    from msgd.evaluation.model_card import write_best_model
    from msgd.inference.model_file import load_model_file

    models = {}
    for name, run in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            write_best_model([run], MNIST, folder)
            models[name] = load_model_file(Path(folder) / "best_model.npz")
    return models


def count_right(models, images, labels):
    """Return {model: how many of ``images`` (n, 784) bytes it recognises}."""
    from msgd.inference.predict import predict_classes

    return {
        name: int((predict_classes(model, images) == labels).sum())
        for name, model in models.items()
    }


def measure(models, digits, labels):
    """Return {form: {model: digits recognised}}: given directly, in every form, and normalised."""
    from msgd.inference.pictures import digit_of, ink_of, placed
    from msgd.inference.predict import predict_pictures

    flat = digits.reshape(len(digits), -1)
    found = {"given directly": count_right(models, flat, labels)}
    model = next(iter(models.values()))  # all take the same images
    for form in FORMS:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_pictures(Path(folder), form, digits)
            predictions, faults = predict_pictures(model, paths)
        seen = {one.file: one.seen for one in predictions}
        used = [str(path) in seen for path in paths]
        images = np.stack([*seen.values()]).reshape(len(seen), -1)
        found[form] = count_right(models, images, labels[used]) | {"refused": len(faults)}
        print(form, found[form], file=sys.stderr)
    again = [placed(digit_of(*ink_of(digit / 255)), digit.shape) for digit in digits]
    again = np.rint(np.stack(again) * 255).astype(np.uint8).reshape(flat.shape)
    found["28 x 28, if placed anew"] = count_right(models, again, labels)
    return found


def main():
    """Measure and print the JSON."""
    from msgd.data.dataset import load_dataset

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    dataset = load_dataset(MNIST)
    digits = dataset.test_x[CHOSEN].reshape(-1, *dataset.image_shape)
    found = measure(load_models(), digits, dataset.test_y[CHOSEN])
    write_report({"digits": len(digits), "recognised": found}, options.output)


if __name__ == "__main__":
    main()
