"""Patches of pixels and blocks of classes: their layout, and operation by operation."""

import numpy as np
import pytest
from exact import dot, fractions, rounding_of_sum
from numba import njit

from msgd.kernels import patches
from msgd.kernels.patches import CLASSES, PATCH, ROW
from msgd.kernels.vectors import LANES, aligned_zeros, load_half, store

FLOATS = [np.float32, np.float64]


def test_images_are_cut_into_patches_and_filled_up():
    images = np.arange(1, 31).reshape(2, 15)
    cut = patches.to_patches(images, (3, 5), (2, 4)).reshape(2, 4, 2, 4)
    np.testing.assert_array_equal(cut[0, 0], [[1, 2, 3, 4], [6, 7, 8, 9]])
    np.testing.assert_array_equal(cut[0, 1], [[5, 0, 0, 0], [10, 0, 0, 0]])
    np.testing.assert_array_equal(cut[1, 2], [[26, 27, 28, 29], [0, 0, 0, 0]])
    np.testing.assert_array_equal(cut[1, 3], [[30, 0, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("shape", [(28, 28), (3, 5), (1, 17), (2, 4), (7, 8), (8, 1)])
@pytest.mark.parametrize("patch", [(1, 1), (2, 4), (1, 8), (8, 1)])
def test_images_come_back_from_patches(shape, patch):
    images = np.random.RandomState(0).randint(0, 256, (3, shape[0] * shape[1])).astype(np.uint8)
    cut = patches.to_patches(images, shape, patch)
    assert cut.dtype == np.uint8
    assert cut.shape[1] % (patch[0] * patch[1]) == 0
    np.testing.assert_array_equal(patches.from_patches(cut, shape, patch), images)


@pytest.mark.parametrize("n_classes", [2, CLASSES - 1, CLASSES, CLASSES + 1, 3 * CLASSES + 1])
def test_weights_and_lanes_lie_as_the_module_says(n_classes):
    weights = np.random.RandomState(0).normal(size=(15, n_classes))
    rows = patches.to_rows(weights, (3, 5), (2, 4))
    blocks = -(-n_classes // CLASSES)
    assert rows.size == blocks * 4 * ROW
    np.testing.assert_array_equal(patches.from_rows(rows, n_classes, (3, 5), (2, 4)), weights)
    for pixel, (patch, j) in {0: (0, 0), 5: (0, 4), 4: (1, 0), 14: (3, 0)}.items():
        for c in range(n_classes):
            at = ((c // CLASSES * 4 + patch) * CLASSES + c % CLASSES) * PATCH + j
            assert rows[at] == weights[pixel, c]
    assert np.count_nonzero(rows) == weights.size

    lanes = patches.to_lanes(weights[0], -np.inf)
    assert lanes.size == blocks * LANES
    np.testing.assert_array_equal(patches.from_lanes(lanes, n_classes), weights[0])
    assert np.isfinite(lanes).sum() == n_classes
    for c in range(n_classes):
        assert lanes[patches.lane_of(c)] == weights[0, c]
        assert patches.class_of(patches.lane_of(c)) == c


@njit
def run(stored, weights, factors, out):
    sums = patches.no_sums(weights)
    for k in range(2):
        patch = load_half(weights, stored, 1 + k * PATCH)
        sums = patches.add_row(patch, weights, 3 + k, sums)
    store(out, 0, patches.totals(sums))
    sums = patches.no_sums(weights)
    for k in range(2):
        patch = load_half(weights, stored, 1 + k * PATCH)
        sums = patches.add_products(patch, factors, 2 + k * CLASSES, sums)
    patches.move_row(factors[0], sums, out, LANES + 1)


@pytest.mark.parametrize("float_x", FLOATS)
@pytest.mark.parametrize("stored_as", ["uint8", "same"])
def test_every_operation(float_x, stored_as):
    random = np.random.RandomState(0)
    stored = random.randint(0, 256, 30).astype(float_x if stored_as == "same" else stored_as)
    weights, factors = random.normal(size=(2, ROW + 10)).astype(float_x)
    out = aligned_zeros(LANES + ROW + 2, float_x)
    out[LANES:] = before = random.normal(size=ROW + 2).astype(float_x)
    run(stored, weights, factors, out)

    patch = stored[1 : 1 + 2 * PATCH]
    rows = np.array([weights[at : at + ROW] for at in (3, 4)]).reshape(2, CLASSES, PATCH)
    for c in range(CLASSES):
        logit, size = dot(patch, rows[:, c].ravel())
        assert abs(fractions(out)[c] - logit) <= rounding_of_sum(2 * PATCH, size, float_x)
    assert (out[CLASSES:LANES] == 0).all()

    factor = factors[2 : 2 + 2 * CLASSES].reshape(2, CLASSES)
    (rate,) = fractions(factors[:1])
    moved, start = fractions(out[LANES + 1 : -1]), fractions(before[1:-1])
    for c, j in np.ndindex(CLASSES, PATCH):
        gradient, size = dot(patch.reshape(2, PATCH)[:, j], factor[:, c])
        place = c * PATCH + j
        bound = rounding_of_sum(4, abs(start[place]) + abs(rate) * size, float_x)
        assert abs(moved[place] - (start[place] + rate * gradient)) <= bound
    np.testing.assert_array_equal(out[[LANES, -1]], before[[0, -1]])
