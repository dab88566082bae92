"""Lists of nonzero pixels, against NumPy."""

import numpy as np
import pytest

from msgd.kernels.nonzero import TASKS, list_lit, list_nonzero


def images(n, d, dtype, share_of_zeros=0.8):
    random = np.random.RandomState(0)
    x = random.randint(1, 256, (n, d)).astype(dtype)
    x[random.uniform(size=x.shape) < share_of_zeros] = 0
    return x


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("n", [1, TASKS - 1, TASKS, TASKS + 1, 150])
@pytest.mark.parametrize("share_of_zeros", [0, 0.8, 1])
def test_lists_by_image_are_the_nonzero_entries_in_order(n, dtype, share_of_zeros):
    x = images(n, 23, dtype, share_of_zeros)
    pixels = list_nonzero(x)
    rows, positions = np.nonzero(x)
    np.testing.assert_array_equal(pixels.position, positions)
    np.testing.assert_array_equal(pixels.value, x[rows, positions])
    np.testing.assert_array_equal(np.diff(pixels.first), (x != 0).sum(axis=1))
    assert pixels.first[0] == 0
    assert pixels.value.dtype == x.dtype


@pytest.mark.parametrize(("n", "batch_size"), [(20, 20), (41, 20), (7, 1), (30, 7)])
@pytest.mark.parametrize("skipped", [0, 3])
def test_lists_by_pixel_are_those_of_each_whole_minibatch(n, batch_size, skipped):
    """Also of images that begin in the midst of the lists, as those of a piece do."""
    x = images(n + skipped, 11, "uint8")
    lit = list_lit(list_nonzero(x).rows(skipped, n + skipped), batch_size, 11)
    image, value, counts = [], [], []
    for minibatch in range(n // batch_size):
        batch = x[skipped + minibatch * batch_size :][:batch_size]
        pixel, number = np.nonzero(batch.T)
        image += [*number]
        value += [*batch.T[pixel, number]]
        counts += [*(batch != 0).sum(axis=0)]
    np.testing.assert_array_equal(lit.image, image)
    np.testing.assert_array_equal(lit.value, value)
    np.testing.assert_array_equal(lit.first, np.cumsum([0, *counts]))
