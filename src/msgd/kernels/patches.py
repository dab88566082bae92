"""Patches of eight pixels and the weights of ten classes, multiplied at once: CPU kernels.

Nonzero pixels lie together: of the eight pixels of a patch of MNIST in which one is not zero, five
are. So a patch's products with a class's weights are one vector operation and few of them are in
vain. The sums of ten classes, a vector each, stay in registers; more classes are cut into blocks
of ten. Weights are a flat array, which numbers class c of block b, pixel j of patch p as
((b P + p) CLASSES + c) PATCH + j: the weights that a patch asks for lie in a row. A pixel that
fills up a patch at the edge of the images is zero, its weight is zero, and so is that of a class
that fills up a block. What there is of each class, such as logits, is an array of L lanes, LANES
for each block, of which the first CLASSES are classes.

Inside ``njit`` functions, as in ``kernels/vectors.py``; patch is a vector of HALF numbers:

- ``no_sums(like)``: the sums of a block, all 0, in the type of the array ``like``
- ``add_row(patch, weights, i, sums)``: sums[c] + patch weights[i + c PATCH + (0..PATCH-1)]
- ``add_products(patch, array, i, sums)``: sums[c] + patch array[i + c]
- ``totals(sums)``: the vector of LANES whose lane c is the sum of the lanes of sums[c], or 0
- ``move_row(rate, sums, weights, i)``: weights[i + c PATCH + (0..PATCH-1)] += rate sums[c]
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from msgd.kernels.vectors import (
    HALF,
    LANES,
    Sums,
    Vector,
    aligned_empty,
    build_address,
    build_fma,
    build_load,
    build_places,
    build_shuffle,
    build_splat,
    build_store,
    llvm_vector,
)

PATCH = HALF  # pixels
CLASSES = 10  # of a block: their sums and what is added to them fit the sixteen registers of AVX2
ROW = CLASSES * PATCH  # the weights of a patch and a block


def patch_shape(image_shape):
    """Return the (height, width) of patches of images of the given (height, width)."""
    if 1 in image_shape:
        return (1, PATCH) if image_shape[0] == 1 else (PATCH, 1)
    return 2, PATCH // 2


def to_patches(images, image_shape, shape):
    """Return flat ``images`` (n, D) patch after patch, (n, P height width).

    shape: a patch's (height, width); images are filled up with zeros to whole patches.
    """
    missing = [-length % side for length, side in zip(image_shape, shape, strict=True)]
    images = images.reshape(-1, *image_shape)
    if any(missing):
        images = np.pad(images, [(0, 0), *[(0, n) for n in missing]])
    n_images, height, width = images.shape
    cut = images.reshape(n_images, height // shape[0], shape[0], width // shape[1], shape[1])
    return cut.swapaxes(2, 3).reshape(n_images, -1)


def from_patches(patches, image_shape, shape):
    """Return the flat images (n, D) that to_patches rearranged as ``patches``."""
    n_down, n_across = [-(-n // side) for n, side in zip(image_shape, shape, strict=True)]
    cut = patches.reshape(-1, n_down, n_across, *shape).swapaxes(2, 3)
    images = cut.reshape(-1, n_down * shape[0], n_across * shape[1])
    return images[:, : image_shape[0], : image_shape[1]].reshape(len(images), -1)


def n_blocks(n_classes):
    """Return how many blocks ``n_classes`` classes need."""
    return -(-n_classes // CLASSES)


@register_jitable
def lane_of(class_):
    """Return the lane of a class."""
    return class_ // CLASSES * LANES + class_ % CLASSES


@register_jitable
def class_of(lane):
    """Return the class of a lane."""
    return lane // LANES * CLASSES + lane % LANES


def to_lanes(array, padding):
    """Return ``array`` (C,) in L lanes, ``padding`` in those that are no class's."""
    blocks = n_blocks(len(array))
    lanes = aligned_empty(blocks * LANES, array.dtype)
    lanes[:] = padding
    lanes[[lane_of(c) for c in range(len(array))]] = array
    return lanes


def from_lanes(lanes, n_classes):
    """Return the (C,) array that to_lanes laid out as ``lanes``."""
    return lanes.reshape(-1, LANES)[:, :CLASSES].ravel()[:n_classes].copy()


def to_rows(weights, image_shape, shape):
    """Return ``weights`` (D, C) as the flat array of the module's layout; shape: a patch's."""
    n_classes = weights.shape[1]
    patches = to_patches(weights.T, image_shape, shape)
    padded = np.zeros((n_blocks(n_classes) * CLASSES, patches.shape[1]), weights.dtype)
    padded[:n_classes] = patches
    rows = padded.reshape(-1, CLASSES, patches.shape[1] // PATCH, PATCH).swapaxes(1, 2)
    flat = aligned_empty(rows.size, weights.dtype)
    flat[:] = rows.ravel()
    return flat


def from_rows(flat, n_classes, image_shape, shape):
    """Return the (D, C) weights that to_rows laid out as ``flat``."""
    rows = flat.reshape(n_blocks(n_classes), -1, CLASSES, PATCH).swapaxes(1, 2)
    patches = rows.reshape(n_blocks(n_classes) * CLASSES, -1)[:n_classes]
    return from_patches(patches, image_shape, shape).T.copy()


@intrinsic
def no_sums(typing_context, like):
    """Return sums of zeros, in the type of the array ``like``."""
    sums = Sums(like.dtype, CLASSES)

    def build(context, builder, signature, args):
        return ir.Constant(context.get_value_type(sums), None)

    return sums(like), build


def _build_products(builder, patch, factors, sums):
    """Return ``sums`` with ``patch`` times each class's factor, a vector, added."""
    for c, factor in enumerate(factors):
        term = build_fma(builder, patch, factor, builder.extract_value(sums, c))
        sums = builder.insert_value(sums, term, c)
    return sums


@intrinsic
def add_row(typing_context, patch, weights, i, sums):
    """Return the sums with the products of ``patch`` and a row of weights added."""

    def build(context, builder, signature, args):
        patch, *where, sums = args
        address = build_address(context, builder, signature.args[1:3], where, patch.type)
        factors = (build_load(builder, at) for at in build_places(builder, address, CLASSES))
        return _build_products(builder, patch, factors, sums)

    return sums(patch, weights, i, sums), build


@intrinsic
def add_products(typing_context, patch, array, i, sums):
    """Return the sums with the products of ``patch`` and a number for each class added."""

    def build(context, builder, signature, args):
        patch, *where, sums = args
        number = patch.type.element
        address = build_address(context, builder, signature.args[1:3], where, number)
        places = build_places(builder, address, CLASSES)
        factors = (build_splat(builder, patch.type, builder.load(at)) for at in places)
        return _build_products(builder, patch, factors, sums)

    return sums(patch, array, i, sums), build


@intrinsic
def move_row(typing_context, rate, sums, weights, i):
    """Add ``rate`` times the sums to a row of weights."""

    def build(context, builder, signature, args):
        rate, sums, *where = args
        llvm = llvm_vector(signature.args[1].vector)
        rate = build_splat(builder, llvm, rate)
        address = build_address(context, builder, signature.args[2:], where, llvm)
        for c, place in enumerate(build_places(builder, address, CLASSES)):
            term = builder.extract_value(sums, c)
            build_store(builder, build_fma(builder, rate, term, build_load(builder, place)), place)
        return context.get_dummy_value()

    return types.void(sums.vector.scalar, sums, weights, i), build


@intrinsic
def totals(typing_context, sums):
    """Return the vector of LANES whose lane c is the sum of the lanes of sums[c], or 0.

    The lanes a, b, ... h are summed as ((a + c) + (b + d)) + ((e + g) + (f + h)).
    """

    def build(context, builder, signature, args):
        zero = ir.Constant(llvm_vector(sums.vector), None)
        level = [builder.extract_value(args[0], c) for c in range(CLASSES)]
        level += [zero] * (LANES - CLASSES)
        # Neighbouring vectors are interleaved and their halves added, within each half of a
        # register, until one vector holds a half sum of four classes; then the halves are added.
        for low, high in (
            ((0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)),
            ((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)),
            ((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)),
        ):
            level = [
                builder.fadd(
                    build_shuffle(builder, left, right, low),
                    build_shuffle(builder, left, right, high),
                )
                for left, right in zip(level[::2], level[1::2], strict=True)
            ]
        return build_shuffle(builder, *level, range(LANES))

    return Vector(sums.vector.scalar)(sums), build
