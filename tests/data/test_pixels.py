"""Channels and scales: what is read as what, and what is refused or warned of."""

import json
import logging

import numpy as np
import pytest
from conftest import make_dataset

from msgd.data.dataset import load_dataset
from msgd.data.unpickle import known_sizes, unpickle
from msgd.errors import UserError

pytestmark = pytest.mark.usefixtures("small_pieces")

SPLITS = ("train", "valid", "test")
SIZES = {"train": 40, "valid": 20, "test": 20}


def labels(n):
    return np.arange(n) % 3


def save(path, images):
    """Write images, a dict of split -> array, with labels of three classes, as .npz."""
    arrays = {f"{split}_x": x for split, x in images.items()}
    np.savez(path, **arrays, **{f"{split}_y": labels(len(x)) for split, x in images.items()})
    return path


def noise(*shape, high=256, dtype=np.uint8):
    """Return bytes for each split, (N, *shape), that reach from 0 to high - 1."""
    images = {}
    for split, n in SIZES.items():
        x = np.random.RandomState(len(images)).randint(0, high, (n, *shape))
        x.reshape(n, -1)[:, 0] = high - 1
        images[split] = x.astype(dtype)
    return images


def read(tmp_path, images, float_x="float32"):
    unpickle(save(tmp_path / "toy.npz", images), tmp_path / "arrays", float_x)
    return load_dataset(tmp_path / "arrays")


def refusal(tmp_path, images):
    with pytest.raises(UserError) as caught:
        read(tmp_path, images)
    assert str(caught.value).startswith(str(tmp_path / "toy.npz"))
    assert not (tmp_path / "arrays").exists()
    return str(caught.value)


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# Channels.

ONE_CHANNEL = {  # shape of an image -> (its pixels, height and width)
    (20,): (1, 20),
    (36,): (6, 6),
    (4, 5): (4, 5),
    (4, 5, 1): (4, 5),
    (1, 4, 5): (4, 5),
    (28, 28, 1): (28, 28),
    (1, 28, 28): (28, 28),
    # Three axes are height and width, however small.
    (1, 28): (1, 28),
    (28, 1): (28, 1),
    (3, 3): (3, 3),
    (4, 4): (4, 4),
    (2, 28): (2, 28),
    (28, 3): (28, 3),
    (1, 1): (1, 1),
    # Where both ends have length 1 the last is the channel.
    (1, 5, 1): (1, 5),
    (1, 1, 1): (1, 1),
    # A square number of pixels beside one channel is a row of them.
    (784, 1): (28, 28),
    (1, 64): (8, 8),
    (65, 1): (65, 1),
}


@pytest.mark.parametrize("shape", ONE_CHANNEL)
def test_a_single_channel_is_dropped(tmp_path, shape):
    images = noise(*shape)
    found = read(tmp_path, images)
    assert found.image_shape == ONE_CHANNEL[shape]
    for split, x in images.items():
        np.testing.assert_array_equal(found.split(split)[0], x.reshape(len(x), -1))
    assert known_sizes(str(tmp_path / "toy.npz")) == (40, ONE_CHANNEL[shape])


def test_splits_may_differ_in_where_their_single_channel_is(tmp_path):
    images = noise(4, 5)
    images["valid"], images["test"] = images["valid"][..., None], images["test"][:, None]
    assert read(tmp_path, images).image_shape == (4, 5)


SEVERAL_CHANNELS = {  # shape of an image -> how to make it grey
    (28, 28, 3): "x.mean(axis=-1) / 256.",
    (28, 28, 4): "x[..., :3].mean(axis=-1) / 256.",
    (28, 28, 2): "x[..., :1].mean(axis=-1) / 256.",
    (3, 28, 28): "x.mean(axis=1) / 256.",
    (4, 28, 28): "x[:, :3].mean(axis=1) / 256.",
    (5, 6, 3): "x.mean(axis=-1) / 256.",
    (4, 4, 4): "x.mean(axis=...) / 256 over the channels.",
    (3, 3, 3): "x.mean(axis=...) / 256 over the channels.",
    (6, 1, 6): "x.mean(axis=...) / 256 over the channels.",
    (28, 28, 28): "x.mean(axis=...) / 256 over the channels.",
    (784, 3): "x.mean(axis=-1) / 256; if they have no channels, x.reshape(len(x), -1) makes rows",
    (3, 784): "x.mean(axis=1) / 256; if they have no channels, x.reshape(len(x), -1) makes rows",
    (784, 4): "x[..., :3].mean(axis=-1) / 256; if they have no",
    (64, 2): "x[..., :1].mean(axis=-1) / 256; if they have no",
}


@pytest.mark.parametrize("shape", SEVERAL_CHANNELS)
def test_several_channels_are_refused_with_their_shape(tmp_path, shape):
    said = refusal(tmp_path, noise(*shape))
    assert f"the train images have shape {(40, *shape)}, more than one channel" in said
    assert SEVERAL_CHANNELS[shape] in said
    with pytest.raises(UserError, match="more than one channel"):
        known_sizes(str(tmp_path / "toy.npz"))


def test_the_advice_on_channels_leads_to_data_that_are_read(tmp_path, caplog):
    """Grey from RGBA bytes, as the message says, is on a scale that raises no warning."""
    images = {split: x[..., :3].mean(axis=-1) / 256 for split, x in noise(6, 6, 4).items()}
    assert read(tmp_path, images).image_shape == (6, 6)
    assert warnings_of(caplog) == []
    assert "x.mean(axis=-1)." in refusal_of_floats(tmp_path / "rgb")


def refusal_of_floats(folder):
    folder.mkdir()
    return refusal(folder, {split: x / 256 for split, x in noise(6, 6, 3).items()})


@pytest.mark.parametrize("split", ["valid", "test"])
def test_channels_of_one_split_are_refused_too(tmp_path, split):
    images = noise(6, 6)
    images[split] = np.stack([images[split]] * 3, axis=-1)
    assert f"the {split} images have shape (20, 6, 6, 3)" in refusal(tmp_path, images)


@pytest.mark.parametrize("shape", [(1, 4, 5, 1), (2, 4, 5, 3), (1, 1, 1, 1, 1)])
def test_further_axes_are_refused_with_their_shape(tmp_path, shape):
    said = refusal(tmp_path, noise(*shape))
    assert f"the train images have shape {(40, *shape)}, more axes than" in said


def test_rows_beside_pictures_are_refused_with_both_shapes(tmp_path):
    images = noise(4, 5)
    images["test"] = images["test"].reshape(-1, 20)
    assert "train (4, 5), valid (4, 5), test (20,)" in refusal(tmp_path, images)


# Scales.


@pytest.mark.parametrize("float_x", ["float32", "float64"])
def test_bool_is_zero_and_one(tmp_path, caplog, float_x):
    images = {split: x.astype(bool) for split, x in noise(4, 5, high=2).items()}
    found = read(tmp_path, images, float_x)
    assert (found.train_x.dtype, found.pixel_scale) == (np.dtype(float_x), 1.0)
    np.testing.assert_array_equal(found.train_x, images["train"].reshape(40, 20))
    assert set(np.unique(found.train_x)) == {0, 1}
    assert warnings_of(caplog) == []
    assert pixels_of(tmp_path) == f"{float_x}, bool as 0 and 1"


def pixels_of(tmp_path):
    return json.loads((tmp_path / "arrays" / "dataset.json").read_text())["pixels"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, np.uint16])
@pytest.mark.parametrize("high", [2, 17, 101, 128])
def test_small_whole_numbers_are_bytes_with_one_warning(tmp_path, caplog, high, dtype):
    images = noise(4, 5, high=high, dtype=dtype)
    found = read(tmp_path, images)
    np.testing.assert_array_equal(found.images("train", slice(None)) * 256, images_of(images))
    (said,) = warnings_of(caplog)
    assert f"whole numbers of at most {high - 1}. They are taken for bytes" in said
    assert f"(images / {high - 1}).astype('float32')" in said
    assert ("images.astype(bool)" in said) == (high == 2)
    assert pixels_of(tmp_path) == (
        f"uint8, k stands for k/256: whole numbers from 0 to {high - 1} taken for bytes"
    )


def images_of(images):
    return images["train"].reshape(len(images["train"]), -1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_bytes_raise_no_warning(tmp_path, caplog, dtype):
    found = read(tmp_path, noise(4, 5, dtype=dtype))
    assert (found.train_x.dtype, found.pixel_scale) == (np.uint8, 1 / 256)
    assert warnings_of(caplog) == []


def test_bytes_of_several_widths_are_one_type(tmp_path, caplog):
    images = noise(4, 5)
    images["valid"], images["test"] = images["valid"].astype("i8"), images["test"].astype(">u2")
    np.testing.assert_array_equal(
        read(tmp_path, images).test_x, noise(4, 5)["test"].reshape(20, 20)
    )
    assert warnings_of(caplog) == []


def test_dark_splits_of_bytes_are_no_other_scale(tmp_path, caplog):
    """Only the maximum over all splits says whether whole numbers look like bytes."""
    images = noise(4, 5)
    images["test"] //= 7
    images["valid"][:] = 0
    read(tmp_path, images)
    assert warnings_of(caplog) == []


def scaled(images, factor, shift=0.0, dtype=np.float32):
    return {split: (x * factor + shift).astype(dtype) for split, x in images.items()}


LARGE = {
    "0 to 255": (1.0, 0.0, "from 0 to 255"),
    "0 to 16": (16 / 255, 0.0, "from 0 to 16"),
    "0 to 100": (100 / 255, 0.0, "from 0 to 100"),
    "-128 to 127": (1.0, -128.0, "from -128 to 127"),
    "0 to 65535": (257.0, 0.0, "from 0 to 6.554e+04"),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_far_beyond_one_raise_one_warning(tmp_path, caplog, name, dtype):
    factor, shift, words = LARGE[name]
    if dtype is np.float16 and factor > 256:
        factor = 255.0
        words = "from 0 to 6.502e+04"
    images = scaled(noise(4, 5), factor, shift, dtype)
    found = read(tmp_path, images)
    np.testing.assert_array_equal(found.train_x, images_of(images).astype(np.float32))
    (said,) = warnings_of(caplog)
    assert f"the images are floats {words}. They are taken as they are" in said
    assert pixels_of(tmp_path) == f"float32, {words}, taken as they are"


def standardised(images):
    x = images["train"].astype(float)
    return {s: (z - x.mean()) / x.std() for s, z in images.items()}


def with_outlier(images):
    images["train"][3, 2, 1] = 20
    return images


LEGITIMATE = {
    "0 to 1": scaled(noise(4, 5), 1 / 255),
    "k/256": scaled(noise(4, 5), 1 / 256),
    "0 and 1": scaled(noise(4, 5, high=2), 1),
    "-1 to 1": scaled(noise(4, 5), 2 / 255, -1),
    "-0.5 to 0.5": scaled(noise(4, 5), 1 / 255, -0.5),
    "standardised": standardised(noise(4, 5)),
    "divided by the standard deviation": scaled(noise(4, 5), 1 / 80),
    "0 to 2": scaled(noise(4, 5), 2 / 255),
    "standardised, with an outlier": with_outlier(standardised(noise(4, 5))),
    "0 to 1, with an outlier": with_outlier(scaled(noise(4, 5), 1 / 255)),
    "all 0": scaled(noise(4, 5), 0),
}


@pytest.mark.parametrize("name", LEGITIMATE)
def test_ordinary_floats_raise_no_warning(tmp_path, caplog, name):
    images = LEGITIMATE[name]
    found = read(tmp_path, images, "float64")
    np.testing.assert_array_equal(found.images("train", slice(None)), images_of(images))
    assert warnings_of(caplog) == []


UNIT, BYTES = scaled(noise(4, 5), 1 / 255), noise(4, 5)
MIXED = {
    "bytes, unit": (BYTES, UNIT, "whole numbers (uint8) from 0 to 255", "floats (float32)"),
    "bytes, k/256": (BYTES, scaled(BYTES, 1 / 256), "whole numbers (uint8)", "from 0 to 0.9961"),
    "int64, unit": (noise(4, 5, dtype="i8"), UNIT, "whole numbers (int64)", "floats (float32)"),
    "bool, bytes": (scaled(BYTES, 1, dtype=bool), BYTES, "bool", "whole numbers (uint8)"),
    "bool, floats": (scaled(BYTES, 1, dtype=bool), UNIT, "bool", "floats (float32)"),
    "unit, 0 to 255": (UNIT, scaled(BYTES, 1), "from 0 to 1", "floats (float32) from 0 to 255"),
    "unit, 0 to 16": (UNIT, scaled(BYTES, 16 / 255), "from 0 to 1", "from 0 to 16"),
    "0 and 1, bytes": (noise(4, 5, high=2), BYTES, "(uint8) from 0 to 1", "from 0 to 255"),
    "0 and 1, 0 to 16": (noise(4, 5, high=2), noise(4, 5, high=17), "from 0 to 1", "from 0 to 16"),
    "-1 to 1, unit": (scaled(BYTES, 2 / 255, -1), UNIT, "from -1 to 1", "from 0 to 1"),
    "standardised, unit": (standardised(BYTES), UNIT, "floats (float64) from -", "from 0 to 1"),
    "standardised, 0 to 255": (standardised(BYTES), scaled(BYTES, 1), "from -", "from 0 to 255"),
}


@pytest.mark.parametrize("odd", SPLITS)
@pytest.mark.parametrize("name", MIXED)
def test_splits_of_two_types_or_scales_are_refused(tmp_path, name, odd):
    common, other, words, other_words = MIXED[name]
    said = refusal(tmp_path, {**common, odd: other[odd]})
    assert f"the {odd} images" in said
    assert words in said
    assert other_words in said
    assert "in one type and on one scale" in said


def darker(images, factor, n=20):
    return {**images, "test": (images["test"] * factor).astype(images["test"].dtype)[:n]}


ONE_SCALE = {
    "a darker split": darker(UNIT, 0.2),
    "a black split": darker(UNIT, 0),
    "a nearly black image alone": darker(UNIT, 0.01, n=1),
    "float32 beside float64": {**UNIT, "test": UNIT["test"].astype(float)},
    "k/256 beside k/255": {**UNIT, "test": scaled(BYTES, 1 / 256)["test"]},
    "one standardised image, all above the mean": {
        **standardised(BYTES),
        "test": np.abs(standardised(BYTES)["test"][:1]),
    },
    "counts with a long tail": {
        split: np.random.RandomState(n).standard_cauchy((n, 20)) ** 2 for split, n in SIZES.items()
    },
}


@pytest.mark.parametrize("name", ONE_SCALE)
def test_a_split_that_happens_to_lie_lower_is_read(tmp_path, name):
    images = ONE_SCALE[name]
    found = read(tmp_path, images, "float64")
    np.testing.assert_array_equal(found.test_x, images["test"].reshape(-1, 20))


def test_the_tutorials_floats_stay_bytes(tmp_path, caplog):
    toy = make_dataset(shape=(4, 5))
    found = read(tmp_path, {s: toy.images(s, slice(None)).astype("f4") for s in SPLITS})
    np.testing.assert_array_equal(found.train_x, toy.train_x)
    assert pixels_of(tmp_path) == "uint8, k stands for k/256"
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(("low", "high"), [(-1, 255), (0, 256), (0, 65535)])
def test_whole_numbers_beyond_bytes_are_refused_with_what_to_do(tmp_path, low, high):
    images = noise(4, 5, dtype=np.int64)
    images["train"][0, 0, :2] = low, high
    said = refusal(tmp_path, images)
    assert f"whole numbers from {low} to {high}" in said
    assert "floats from 0 to 1" in said
