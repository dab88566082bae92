"""Pictures are brought to a model's form: where the digit lies, what is ink, what is refused."""

import dataclasses

import numpy as np
import pytest
import toy
from conftest import make_dataset
from models import model_of
from PIL import Image
from scipy import ndimage

from msgd.errors import UserError
from msgd.inference.pictures import digit_of, ink_of, placed, read_grey, sheet_of, stored_image


def four():
    """A drawn 4, (28, 28) from 0 to 1, in MNIST's box of 20 pixels and about its middle."""
    ink = np.zeros((28, 28))
    ink[4:16, 6:8] = 1
    ink[14:16, 6:22] = 1
    ink[4:24, 16:18] = 1
    centre = np.rint(np.array(ndimage.center_of_mass(ink)) - 14).astype(int)
    return np.roll(ink, -centre, axis=(0, 1))


@pytest.fixture(scope="module")
def mnists():
    """A model of MNIST's form."""
    model = model_of(make_dataset(shape=(28, 28), n_classes=10), toy.settings_of("mlp"))
    pixels = {"dtype": "uint8", "scale": 1 / 256, "background": 0, "ink": 255}
    return dataclasses.replace(model, is_mnist=True, pixels=pixels)


def enlarged(ink, times):
    return np.kron(ink, np.ones((times, times)))


def on_page(ink, shape, at, paper=0.85, dark=0.2):
    page = np.zeros(shape)
    page[at[0] : at[0] + ink.shape[0], at[1] : at[1] + ink.shape[1]] = ink
    return paper - (paper - dark) * page


def cut_out(ink):
    """Return the digit with one pixel of ground around it: a quarter is ink."""
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] - 1 : rows[-1] + 2, columns[0] - 1 : columns[-1] + 2]


def uneven(page, fall=0.5):
    y, x = np.mgrid[0 : 1 : page.shape[0] * 1j, 0 : 1 : page.shape[1] * 1j]
    noise = np.random.RandomState(3).normal(0, 0.03, page.shape)
    return page * (1 - fall * (0.7 * x + 0.3 * y)) + noise


def with_desk(page):
    page = page.copy()
    page[:, :20] = 0.1
    page[-25:] = 0.1
    page[40:44, 300:304] = 0.1  # a speck
    return page


def on_desk(page, desk=0.15):
    """Return a page with a desk on all its sides."""
    return np.pad(page, ((40, 70), (60, 60)), constant_values=desk)


def askew(picture, degrees, desk=0.15):
    """Return a page on a desk turned counterclockwise, with more of the desk around it."""
    return ndimage.rotate(picture, degrees, order=1, cval=desk)


BIG = enlarged(four(), 8)
PICTURES = {
    "the size of the model's": four(),
    "dark on light": 1 - four(),
    "four times": enlarged(four(), 4),
    "low contrast": 0.5 - 0.1 * enlarged(four(), 4),
    "cut out": 1 - cut_out(four()),
    "cut out, light on dark": cut_out(four()),
    "a page": on_page(BIG, (400, 500), (100, 30)),
    "a small one": on_page(enlarged(four(), 3), (600, 500), (400, 300)),
    "uneven light and noise": uneven(on_page(BIG, (400, 500), (100, 230))),
    "light on dark, uneven": 1 - uneven(on_page(BIG, (400, 500), (50, 30))),
    "pencil, and a darker desk": with_desk(on_page(BIG, (400, 500), (90, 130), dark=0.65)),
    "a sheet on a desk": uneven(on_desk(on_page(BIG, (250, 350), (5, 90)))),
    "pencil, a sheet on a desk": uneven(on_desk(on_page(BIG, (250, 350), (5, 90), dark=0.5)), 0.2),
    "a dark sheet": uneven(on_desk(1 - on_page(BIG, (250, 350), (5, 90)), desk=0.9), 0.2),
    "a sheet askew by 6 degrees": uneven(askew(on_desk(on_page(BIG, (250, 350), (5, 90))), 6)),
    "a sheet askew by -30 degrees": askew(on_desk(on_page(BIG, (350, 300), (90, 10))), -30),
    "a dark sheet askew": 1 - askew(on_desk(on_page(BIG, (250, 350), (5, 90))), 15),
    "a desk on three sides": on_desk(on_page(BIG, (250, 350), (5, 90)))[:290],
    "a desk and a speck": uneven(with_desk(on_page(BIG, (400, 500), (90, 130)))),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_digit_is_found_and_placed_whatever_the_picture(mnists, name):
    found = stored_image(np.clip(PICTURES[name], 0, 1), mnists)
    assert (found.shape, found.dtype) == ((28, 28), np.uint8)
    rows, columns = (np.flatnonzero((found > 127).any(axis=axis)) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
    np.testing.assert_allclose(ndimage.center_of_mass(found), 14, atol=0.75)
    overlap = np.corrcoef(found.ravel(), four().ravel())[0, 1]
    assert overlap > 0.9, overlap
    assert np.median(found) == 0


@pytest.mark.parametrize("invert", [False, True])
def test_what_has_the_models_form_is_taken_as_it_is(mnists, invert):
    image = np.rint(four() * 200).astype(np.uint8)
    image[14, 10:13] = [7, 90, 131]
    grey = (255 - image if invert else image) / 255
    np.testing.assert_array_equal(stored_image(grey, mnists), image)


def test_what_has_the_models_size_but_not_its_form_is_placed(mnists):
    small = np.zeros((28, 28))
    small[1:12, 1:12] = np.asarray(
        Image.fromarray(four()[3:25, 3:25].astype("f4")).resize((11, 11))
    )
    found = stored_image(small, mnists)
    rows = np.flatnonzero((found > 127).any(axis=1))
    assert np.ptp(rows) + 1 in (19, 20)


def test_other_sizes_and_scales_of_pixels(mnists):
    pixels = {"dtype": "float32", "scale": 1.0, "background": 1.5, "ink": -0.5}
    model = dataclasses.replace(mnists, image_shape=(14, 42), pixels=pixels, is_mnist=False)
    found = stored_image(PICTURES["a page"], model)
    assert (found.shape, found.dtype) == ((14, 42), np.float32)
    assert (found.min(), found.max()) == (-0.5, 1.5)
    rows = np.flatnonzero((found < 0.5).any(axis=1))
    assert np.ptp(rows) + 1 == 10  # 20/28 of 14
    own = np.linspace(0, 1, 14 * 42).reshape(14, 42)
    np.testing.assert_allclose(stored_image(own, model), 2 * own - 0.5, atol=1e-6)
    row = dataclasses.replace(model, image_shape=(1, 784))
    with pytest.raises(UserError, match="not the size of the model's images, 1 x 784"):
        stored_image(PICTURES["a page"], row)


def disc(shape):
    y, x = np.mgrid[-1.1 : 1.1 : shape[0] * 1j, -1.1 : 1.1 : shape[1] * 1j]
    return np.hypot(y, x) < 1


NO_SHEETS = {
    "a 0 of thick strokes": ((80, 60), disc((80, 60)), np.s_[32:-32, 24:-24]),
    "a straight 1": ((60, 26), np.s_[3:-3, 2:-2], np.s_[:0]),
    "a 0 of straight lines": ((80, 60), np.s_[5:-5, 5:-5], np.s_[17:-17, 17:-17]),
    "a blot": ((80, 60), np.s_[20:50, 10:45], np.s_[:0]),
}


@pytest.mark.parametrize("name", NO_SHEETS)
def test_what_is_no_sheet_is_not_cut_out(name):
    shape, bright, dark = NO_SHEETS[name]
    grey = np.zeros(shape)
    grey[bright] = 0.9
    grey[dark] = 0
    assert sheet_of(grey) is grey


@pytest.mark.parametrize("n", [4, 5, 28])
def test_a_line_from_corner_to_corner_is_no_sheet(n):
    """Its pixels span no area."""
    grey = 1 - np.eye(n)
    assert sheet_of(grey) is grey


def noise_only():
    return 0.8 + np.random.RandomState(1).normal(0, 0.05, (300, 400))


@pytest.mark.parametrize(
    "grey", [np.ones((50, 50)), np.zeros((28, 28)), noise_only(), uneven(np.full((200, 300), 0.8))]
)
def test_blank_pictures_are_refused(mnists, grey):
    with pytest.raises(UserError, match="it is blank"):
        stored_image(np.clip(grey, 0, 1), mnists)


def test_the_box_is_filled_and_proportions_are_kept():
    tall = placed(np.ones((60, 12)), (28, 28))
    rows, columns = (np.flatnonzero(tall.any(axis=axis)) for axis in (1, 0))
    assert (len(rows), len(columns)) == (20, 4)
    assert (rows[0], columns[0]) == (4, 12)


def test_the_digit_alone_is_cut_out():
    digit = digit_of(*ink_of(PICTURES["a desk and a speck"]))
    assert abs(digit.shape[0] - 160) < 8
    assert abs(digit.shape[1] - 128) < 8


ORIENTATIONS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    6: np.rot90,
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_picture_stands_as_its_exif_flag_says(tmp_path, orientation, kind):
    upright = np.kron(np.arange(6).reshape(2, 3) * 50, np.ones((16, 16))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(ORIENTATIONS[orientation](upright))
    Image.fromarray(stored).save(tmp_path / f"a.{kind}", exif=exif)
    found = read_grey(tmp_path / f"a.{kind}")
    np.testing.assert_allclose(found, upright / 255, atol=0.05)


def test_kinds_of_pixels(tmp_path):
    ramp = np.tile(np.linspace(0, 1, 256), (40, 1))
    grey = np.rint(ramp * 255).astype(np.uint8)
    image = Image.fromarray(grey)
    kinds = {
        "rgb.png": image.convert("RGB"),
        "palette.png": image.convert("P"),
        "cmyk.jpg": image.convert("RGB").convert("CMYK"),
        "deep.png": Image.fromarray((ramp * 65535).astype(np.uint16)),
        "float.tiff": Image.fromarray((ramp * 7 - 3).astype(np.float32)),
    }
    for name, kind in kinds.items():
        kind.save(tmp_path / name)
        np.testing.assert_allclose(read_grey(tmp_path / name), ramp, atol=0.03, err_msg=name)


@pytest.mark.parametrize("ink", [0, 255])
def test_the_transparent_is_ground(tmp_path, ink):
    alpha = (four() * 255).astype(np.uint8)
    Image.merge("LA", [Image.new("L", (28, 28), ink), Image.fromarray(alpha)]).save(
        tmp_path / "a.png"
    )
    grey = read_grey(tmp_path / "a.png")
    np.testing.assert_allclose(grey, four() if ink else 1 - four(), atol=1e-6)


def test_large_pictures_are_reduced(tmp_path):
    Image.new("L", (2500, 1000), 90).save(tmp_path / "a.png")
    assert max(read_grey(tmp_path / "a.png").shape) <= 800


def bad_files(folder):
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64)).astype(np.uint8))
    for kind in ("png", "jpg"):
        image.save(folder / f"whole.{kind}")
        data = (folder / f"whole.{kind}").read_bytes()
        (folder / f"cut.{kind}").write_bytes(data[: len(data) // 2])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "folder").mkdir()
    image.resize((65, 65)).save(folder / "large.png")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cut.png", "it cannot be read|it is damaged"),
        ("cut.jpg", "it cannot be read|it is damaged"),
        ("text.png", "no image of a kind that is read"),
        ("empty.png", "no image of a kind that is read"),
        ("folder", "it cannot be read: Is a directory"),
        ("absent.png", "it cannot be read: No such file"),
        ("large.png", "it has too many pixels"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, name, message, monkeypatch):
    bad_files(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    with pytest.raises(UserError, match=message):
        read_grey(tmp_path / name)
