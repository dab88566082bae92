"""Lists of nonzero by_image, against NumPy."""

import numpy as np
import pytest
from numba import njit

from msgd.kernels.sparse import (
    SPARE,
    TASKS,
    share_of_columns,
    to_csr,
    to_dcsc,
    to_gram,
)


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
    by_image = to_csr(x)
    rows, positions = np.nonzero(x)
    np.testing.assert_array_equal(by_image.indices, [*positions, *[0] * SPARE])
    np.testing.assert_array_equal(by_image.data, [*x[rows, positions], *[0] * SPARE])
    np.testing.assert_array_equal(np.diff(by_image.indptr), (x != 0).sum(axis=1))
    assert by_image.indptr[0] == 0
    assert by_image.data.dtype == x.dtype


@pytest.mark.parametrize("n", [1, TASKS - 1, TASKS, TASKS + 1, 150])
@pytest.mark.parametrize("share_of_zeros", [0, 0.8, 0.95, 1])
def test_patches_by_image_are_those_with_a_nonzero_pixel(n, share_of_zeros):
    x = images(n, 24, "uint8", share_of_zeros)
    by_image = to_csr(x, 4)
    patches = x.reshape(n, 6, 4)
    rows, positions = np.nonzero(patches.any(axis=2))
    np.testing.assert_array_equal(by_image.indices, [*positions, *[0] * SPARE])
    np.testing.assert_array_equal(by_image.data, [*patches[rows, positions].flat, *[0] * SPARE])
    np.testing.assert_array_equal(np.diff(by_image.indptr), patches.any(axis=2).sum(axis=1))


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(("n", "group_size"), [(20, 20), (41, 20), (7, 1), (30, 7), (600, 300)])
@pytest.mark.parametrize("skipped", [0, 3])
@pytest.mark.parametrize("share_of_zeros", [0, 0.8, 1])
def test_lists_by_pixel_are_those_of_each_group(n, group_size, skipped, share_of_zeros, size):
    """Also of images that begin in the midst of the lists, as those of a piece do."""
    x = images(n + skipped, 11 * size, "uint8", share_of_zeros)
    by_pixel = to_dcsc(to_csr(x, size).images(skipped, n + skipped), group_size, 11, size)
    pixel, entry, image, value, rows = [], [0], [], [], []
    for start in range(skipped, n + skipped, group_size):
        group = x[start : start + group_size].reshape(-1, 11, size)
        rows.append(0)
        for d in range(11):
            numbers = np.flatnonzero(group[:, d].any(axis=1))[:: 1 - d % 2 * 2]
            if len(numbers):
                pixel.append(d)
                image += [*numbers]
                value += [*group[numbers, d].flat]
                entry.append(len(image))
                rows[-1] += 1
    zeros = [0] * SPARE
    np.testing.assert_array_equal(by_pixel.groups, np.cumsum([0, *rows]))
    np.testing.assert_array_equal(by_pixel.pixel, [*pixel, *zeros])
    np.testing.assert_array_equal(by_pixel.indptr, entry)
    np.testing.assert_array_equal(by_pixel.indices, [*image, *zeros])
    np.testing.assert_array_equal(by_pixel.data, [*value, *zeros])


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("float_x", [np.float32, np.float64])
@pytest.mark.parametrize("skipped", [0, 3])
@pytest.mark.parametrize(
    ("n", "batch_size", "group_size"),
    [(1, 1, 4), (8, 1, 4), (12, 2, 6), (10, 2, 6), (20, 5, 5), (21, 7, 7)],
)
def test_products_are_those_of_the_images_of_a_group(
    n, batch_size, group_size, skipped, float_x, dtype
):
    x = images(n + skipped, 784, dtype)
    scale = float_x(1 / 256)
    by_image = to_csr(x).images(skipped, n + skipped)
    (products,) = to_gram(by_image, batch_size, group_size, 784, scale)
    assert products.dtype == float_x
    products = products.reshape(n, group_size)
    gram = x[skipped:].astype(np.float64) @ x[skipped:].T.astype(np.float64) / 256**2
    for i in range(n):
        start, stop = i // group_size * group_size, i // batch_size * batch_size + batch_size
        found, expected = products[i, : stop - start], gram[i, start:stop].astype(float_x)
        np.testing.assert_allclose(found, expected, rtol=8 * np.finfo(float_x).eps)


@njit
def share(by_pixel, minibatch, task, n_tasks):
    return share_of_columns(by_pixel, minibatch, task, n_tasks)


@pytest.mark.parametrize("share_of_zeros", [0, 0.8, 1])
@pytest.mark.parametrize("n_tasks", [1, 4, 50])
def test_tasks_share_a_minibatchs_rows(share_of_zeros, n_tasks):
    by_pixel = to_dcsc(to_csr(images(40, 11, "uint8", share_of_zeros)), 20, 11)
    for minibatch in range(2):
        shares = [share(by_pixel, minibatch, task, n_tasks) for task in range(n_tasks)]
        begins = [start for start, _ in shares]
        assert begins == [by_pixel.groups[minibatch], *[stop for _, stop in shares[:-1]]]
        assert shares[-1][1] == by_pixel.groups[minibatch + 1]
