"""Multilayer perceptron on the CPU: loops over the formulas of ``model.py``.

The layers lie one after the other in flat arrays, laid out as ``kernels/dense.py`` says; a table
(``layers``) says where each starts. The hidden units are cut into blocks, and a task owns a block:
it takes the block's errors from those of the next layer, updates the weights that leave it, and at
once goes forward with the next minibatch. What a block adds to the next layer's sums is kept apart
for each block and added in order. So a step of a network with one hidden layer is a single parallel
loop, and logits and loss, which are short, between two of them; every further hidden layer adds a
loop backward and one forward. No sum is shared between tasks, so the bits are the same for any
number of threads.

The first layer has most of the weights, more than the caches near a core hold, and a step is over
sooner than they are read and written. So minibatches form groups, after each of which they are
updated. After k minibatches of a group the weights would be

    s^k W + X' P,    s = 1 - 2 learning_rate l2,

W being those before the group, X the images of the k minibatches, and P the steps of their errors,
-learning_rate times each, shrunk by s with every minibatch after their own. A minibatch's sums are
therefore s^k times its images' products with W, which are taken for the whole group at once, while
its block of W is in the cache, plus their products with the images before them (Gram, the same
in every epoch) times P. That is the arithmetic of updates after every minibatch, summed in another
order. The same holds for the l2 penalty that enters the cost: with P_k, the steps of minibatch k
alone, and Z_k = X_k W_k its sums,

    |W_{k+1}|^2 = s^2 |W_k|^2 + <2 s Z_k + X_k X_k' P_k, P_k>.

A call ends its last group where it ends itself: that is where W is looked at.
"""

import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.cpu import (
    activate,
    activation_slope,
    element,
    first_argmax,
    ordered_sum,
    set_element,
    softmax_cross_entropy_row,
)
from msgd.kernels.dense import (
    BLOCK,
    PANEL,
    add_block,
    dot_block,
    from_panels,
    from_rows,
    multiply_block,
    n_blocks,
    penalise_panel,
    scaled_block,
    store_block,
    to_panels,
    to_rows,
    update_block,
    weighted_block,
    weighted_panel,
)
from msgd.kernels.formulas import ACTIVATIONS
from msgd.kernels.sparse import SPARE, scale
from msgd.kernels.vectors import (
    LANES,
    add,
    aligned,
    aligned_empty,
    aligned_zeros,
    fma,
    lane_sum,
    load,
    splat,
    store,
)
from msgd.models.cpu_backend import CpuBackend

# The columns of ``layers``, (L, 6) int64: a row per layer.
N_IN = 0  # its inputs: pixels, or the units of the layer before rounded up to whole blocks
N_OUT = 1  # its units
WIDTH = 2  # its units rounded up to whole blocks; those of the last layer to whole vectors
WEIGHTS = 3  # where its weights start in the flat weights
UNITS = 4  # where its units start in the flat biases; times B, in the flat activations and errors
SUMS = 5  # times B, where the blocks of the layer before leave their sums; none for the first layer

GROUP_IMAGES = 80  # at most, if more than one minibatch: a block of P fits the smallest cache
PREDICTION_IMAGES = 32  # that go through the network together


class Backend(CpuBackend):
    """The CPU twin; see msgd.models.interface.Backend."""

    def allocate(self):
        """Choose the way penalties are taken, and the size of groups."""
        self.activation = ACTIVATIONS[self.settings["activation"]]
        # l2 alone is part of the update's arithmetic; beside another, all take the long way.
        _, l1, l2, lp, _ = self.penalties
        self.has_penalties = bool(l1 or lp)
        l2 = self.float_x(0) if self.has_penalties else l2
        shrink = self.float_x(1) - (self.learning_rate + self.learning_rate) * l2
        self.rates = self.learning_rate, l2, shrink
        # The penalties that take the long way change the weights by other than their own multiple.
        self.group_batches = 1 if self.has_penalties else max(1, GROUP_IMAGES // self.batch_size)

    def _list_for_training(self, lists):
        """See CpuBackend._list_for_training."""
        super()._list_for_training(lists)
        n_images = self.n_train_batches * self.batch_size if self.group_batches > 1 else 0
        lists.add_gram(n_images, self.batch_size, self.pixel_scale)

    def train_span(self, first, last, costs):
        """Train minibatches first..last-1 and write their costs, (last - first,) floatX."""
        lists = self._lists("train")
        _train(
            lists.by_image,
            lists.by_pixel,
            lists.gram.products,
            self.dataset.train_y,
            self.pixel_scale,
            self.batch_size,
            self.group_batches,
            self.rates,
            self.has_penalties,
            self.penalties,
            self.activation,
            first,
            self.n_train_batches,
            self.layers,
            self.weights,
            self.bias,
            costs,
        )

    def predict_rows(self, split, start, stop, predicted):
        """Write the classes of images start..stop-1 of ``split`` into predicted, int32."""
        by_image = self._lists(split).by_image.images(start, stop)
        network = self.layers, self.weights, self.bias
        _predict(by_image, self.pixel_scale, self.activation, *network, predicted)

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        parameters = {}
        starts = [*self.layers[1:, WEIGHTS], len(self.weights)]
        for number, (n_in, n_out) in enumerate(self.shapes, start=1):
            first_weight, first_unit = self.layers[number - 1, [WEIGHTS, UNITS]]
            from_flat = from_panels if number == 1 else from_rows
            flat = self.weights[first_weight : starts[number - 1]]
            parameters[f"weights_{number}"] = from_flat(flat, n_in, n_out)
            parameters[f"bias_{number}"] = self.bias[first_unit : first_unit + n_out].copy()
        return parameters

    def keep_parameters(self, parameters):
        """See msgd.models.cpu_backend.CpuBackend."""
        weights = [array for array in parameters.values() if array.ndim == 2]
        biases = [array for array in parameters.values() if array.ndim == 1]
        self.shapes = [array.shape for array in weights]
        self.layers = layer_table(self.shapes)
        self.weights = aligned([to_panels(weights[0]), *map(to_rows, weights[1:])])
        self.bias = aligned_zeros(self.layers[:, WIDTH].sum(), self.float_x)
        self.bias[self.layers[-1, UNITS] :] = -np.inf  # for the last layer's padding: softmax 0
        for first_unit, array in zip(self.layers[:, UNITS], biases, strict=True):
            self.bias[first_unit : first_unit + len(array)] = array


def layer_table(shapes):
    """Return ``layers`` for dense layers whose weights have ``shapes`` (n_in, n_out), in order."""
    layers = np.zeros((len(shapes), 6), np.int64)
    first_weight = first_unit = first_sum = 0
    for number, (n_in, n_out) in enumerate(shapes):
        width = n_blocks(n_out) * BLOCK
        if number == len(shapes) - 1:
            width = -(-n_out // LANES) * LANES
        if number:
            n_in = layers[number - 1, WIDTH]
        layers[number] = n_in, n_out, width, first_weight, first_unit, first_sum
        first_weight += n_in * (n_out if number else width)
        first_unit += width
        first_sum += n_in // BLOCK * width if number else 0
    return layers


@njit(**options.CPU)
def _n_sums(layers):
    """Return how many sums of blocks there are for each image."""
    last = layers[-1]
    return last[SUMS] + last[N_IN] // BLOCK * last[WIDTH]


@njit(**options.CPU_PARALLEL)
def _train(
    by_image,  # CSR of the training images
    by_pixel,  # DCSC of their groups
    products,  # (N group_size,), ``products`` of Gram; not read if a group is one minibatch
    y,  # (N,) int32
    pixel_scale,
    batch_size,
    group_batches,  # minibatches of a group; an epoch's last group may have fewer
    rates,  # (learning rate, l2, 1 - 2 learning rate l2)
    has_penalties,
    penalties,  # (l1, l2, lp, p); used instead of the l2 of rates if has_penalties
    activation,
    first,  # the iteration of the span's beginning
    n_train_batches,
    layers,  # (L, 6)
    weights,  # flat, changed
    bias,  # flat, changed
    costs,  # one for each minibatch of the span, overwritten
):
    dtype = weights.dtype
    n_layers = layers.shape[0]
    n_steps = costs.shape[0]
    first_layer = np.int64(0)
    group_size = group_batches * batch_size
    n_first_blocks = layers[0, WIDTH] // BLOCK
    h = aligned_zeros(bias.shape[0] * batch_size, dtype)  # activations of all layers
    error = aligned_zeros(bias.shape[0] * batch_size, dtype)  # and their errors
    sums = aligned_zeros(_n_sums(layers) * batch_size, dtype)
    # Of a group, block by block, and image by image: the first layer's products, and P of the top.
    z = aligned_zeros(layers[0, WIDTH] * group_size, dtype)
    pending = aligned_zeros(layers[0, WIDTH] * group_size, dtype)
    growth = np.zeros(n_first_blocks * group_batches, dtype)  # of |W|^2, a minibatch's
    group_penalty = np.zeros(n_first_blocks * group_batches, dtype)
    block_penalty = np.zeros(bias.shape[0] // BLOCK, dtype)
    every = np.arange(max(group_size, bias.shape[0]))  # the list of all images, or of all units
    mean_nll = dtype.type(0)
    n_pending, shrunk = 0, dtype.type(1)  # minibatches of the group that are behind; s^n_pending

    for step in range(-1, n_steps):  # backward with minibatch ``step``, forward with the next
        minibatch = (first + step) % n_train_batches
        following = (first + step + 1) % n_train_batches
        is_backward, is_forward = step >= 0, step + 1 < n_steps
        begins = is_forward and (following % group_batches == 0 or not is_backward)
        ends = is_backward and (following % group_batches == 0 or not is_forward)
        place, place_after = minibatch % group_batches, following % group_batches
        if is_backward:
            n_pending += 1
            shrunk *= rates[2]
            for layer in range(n_layers - 2, 0, -1):
                for index in prange(layers[layer, WIDTH] // BLOCK):
                    block_penalty[layers[layer, UNITS] // BLOCK + index] = _backward(
                        layer,
                        np.int64(index),
                        batch_size,
                        activation,
                        rates,
                        has_penalties,
                        penalties,
                        every,
                        layers,
                        weights,
                        bias,
                        h,
                        error,
                    )
        for index in prange(n_first_blocks):
            block = np.int64(index)
            if is_backward:
                block_penalty[block] = _backward(
                    first_layer,
                    block,
                    batch_size,
                    activation,
                    rates,
                    has_penalties,
                    penalties,
                    every,
                    layers,
                    weights,
                    bias,
                    h,
                    error,
                )
                growth[place * n_first_blocks + block] = _postpone(
                    block,
                    place,
                    minibatch * batch_size,
                    batch_size,
                    group_size,
                    rates,
                    ends,
                    every,
                    layers,
                    products,
                    error,
                    z,
                    pending,
                )
            if ends:
                _update_first(
                    by_pixel,
                    minibatch // group_batches,
                    pixel_scale,
                    block,
                    group_size,
                    place,
                    n_pending,
                    shrunk,
                    rates,
                    has_penalties,
                    penalties,
                    layers,
                    weights,
                    pending,
                    growth,
                    group_penalty,
                )
            if begins:
                n_left = min(n_train_batches - following, n_steps - step - 1)
                n_images = min(group_batches - place_after, n_left) * batch_size
                at = (block * group_size + place_after * batch_size) * BLOCK
                pending[block * group_size * BLOCK : (block + 1) * group_size * BLOCK] = 0
                image = following * batch_size
                _forward_first(
                    by_image, image, pixel_scale, block, n_images, layers, weights, z, at
                )
            if is_forward:
                _update_sums(
                    block,
                    place_after,
                    following * batch_size,
                    batch_size,
                    group_size,
                    dtype.type(1) if begins else shrunk,
                    every,
                    layers,
                    products,
                    bias,
                    pending,
                    z,
                    h,
                )
                _finish(first_layer, block, batch_size, activation, layers, weights, h, sums)
        if is_backward:
            costs[step] = mean_nll + ordered_sum(block_penalty)
        if ends:
            for k in range(n_pending):
                row = (place - k) * n_first_blocks
                costs[step - k] += ordered_sum(group_penalty[row : row + n_first_blocks])
            n_pending, shrunk = 0, dtype.type(1)
        if is_forward:
            for layer in range(1, n_layers - 1):
                for index in prange(layers[layer, WIDTH] // BLOCK):
                    block = np.int64(index)
                    unit = block * BLOCK
                    _add_sums(layer, unit, unit + BLOCK, batch_size, layers, bias, sums, h)
                    _finish(layer, block, batch_size, activation, layers, weights, h, sums)
            mean_nll = _loss(y, following * batch_size, batch_size, layers, bias, sums, h, error)
            last, start, stop = n_layers - 1, np.int64(0), layers[-1, WIDTH]
            _update_bias(last, start, stop, batch_size, rates[0], layers, error, bias)


@njit(**options.CPU)
def _forward_first(by_image, first_image, pixel_scale, block, n_images, layers, weights, z, at):
    """Overwrite z[at:], (n_images, BLOCK), with the block's products of images and weights."""
    n_in = layers[0, N_IN]
    value = aligned_empty(n_in + SPARE, weights.dtype)
    for panel in range(0, BLOCK, PANEL):
        first_weight = (block * BLOCK + panel) * n_in
        for i in range(n_images):
            first = by_image.indptr[first_image + i]
            count = by_image.indptr[first_image + i + 1] - first
            scale(by_image.data, first, count, pixel_scale, value)
            left, right = weighted_panel(
                by_image.indices, first, value, count, weights, first_weight
            )
            to = at + i * BLOCK + panel
            store(z, to, left)
            store(z, to + LANES, right)


@njit(**options.CPU)
def _update_sums(
    block,
    place,  # of the minibatch in its group
    first_image,
    batch_size,
    group_size,
    shrunk,  # what the minibatches before have multiplied the weights by
    every,
    layers,
    products,
    bias,
    pending,
    z,
    h,
):
    """Turn a block's products in z into those with the weights of now; overwrite h, with bias."""
    width = layers[0, WIDTH]
    one = bias.dtype.type(1)
    top = block * group_size * BLOCK
    n_before = place * batch_size
    for i in range(batch_size):
        row = (first_image + i) * group_size
        moved = weighted_block(every, 0, products, row, 1, n_before, pending, top, BLOCK)
        at = top + (n_before + i) * BLOCK
        products_now = add_block(moved, shrunk, z, at)
        store_block(z, at, products_now)
        unit = block * BLOCK
        store_block(h, i * width + unit, add_block(products_now, one, bias, unit))


@njit(**options.CPU)
def _postpone(
    block,
    place,
    first_image,
    batch_size,
    group_size,
    rates,
    ends,  # whether the group's update is next: then how |W|^2 grows is not asked
    every,
    layers,
    products,
    error,
    z,
    pending,
):
    """Add a minibatch's steps, -learning_rate errors, to ``pending``; return how |W|^2 grows."""
    rate, l2, shrink = rates
    width = layers[0, WIDTH]
    top = block * group_size * BLOCK
    steps = top + place * batch_size * BLOCK
    zero = splat(pending, 0)
    for at in range(top, steps, LANES):
        store(pending, at, fma(shrink, load(pending, at), zero))
    for i in range(batch_size):
        for u in range(0, BLOCK, LANES):
            step = fma(-rate, load(error, i * width + block * BLOCK + u), zero)
            store(pending, steps + i * BLOCK + u, step)
    growth = zero
    if l2 != 0 and not ends:
        for i in range(batch_size):
            row = (first_image + i) * group_size + place * batch_size
            moved = weighted_block(every, 0, products, row, 1, batch_size, pending, steps, BLOCK)
            moved = add_block(moved, shrink + shrink, z, steps + i * BLOCK)
            growth = multiply_block(moved, pending, steps + i * BLOCK, growth)
    return lane_sum(growth)


@njit(**options.CPU)
def _finish(layer, block, n_images, activation, layers, weights, h, sums):
    """Apply the activation to a block, and overwrite what it adds to the next layer's sums."""
    width, first_unit = layers[layer, WIDTH], layers[layer, UNITS]
    n_in, n_out, width_after, first_weight, _, first_sum = layers[layer + 1]
    for i in range(n_images):
        at = first_unit * n_images + i * width + block * BLOCK
        for u in range(BLOCK):
            set_element(h, at + u, activate(element(h, at + u), activation))
        to = (first_sum + block * width_after) * n_images + i * width_after
        for k in range(n_out):
            weight = first_weight + k * n_in + block * BLOCK
            set_element(sums, to + k, dot_block(h, at, weights, weight))


@njit(**options.CPU)
def _add_sums(layer, start, stop, n_images, layers, bias, sums, h):
    """Overwrite units start..stop-1 of a later layer in h: bias and what the blocks before add."""
    n_in, _, width, _, first_unit, first_sum = layers[layer]
    for i in range(n_images):
        for u in range(start, stop, LANES):
            total = load(bias, first_unit + u)
            for before in range(n_in // BLOCK):
                at = (first_sum + before * width) * n_images + i * width + u
                total = add(total, load(sums, at))
            store(h, first_unit * n_images + i * width + u, total)


@njit(**options.CPU)
def _loss(y, first_image, batch_size, layers, bias, sums, h, error):
    """Overwrite the errors of the logits; return the mean negative log-likelihood."""
    layer = layers.shape[0] - 1
    width, first_unit = layers[layer, WIDTH], layers[layer, UNITS]
    dtype = h.dtype
    inverse_batch_size = dtype.type(1) / dtype.type(batch_size)
    _add_sums(layer, np.int64(0), width, batch_size, layers, bias, sums, h)
    nll = np.empty(batch_size, dtype)
    for i in range(batch_size):
        at = first_unit * batch_size + i * width
        for u in range(at, at + width, LANES):
            store(error, u, load(h, u))
        nll[i] = softmax_cross_entropy_row(error, at, width, y[first_image + i], inverse_batch_size)
    return ordered_sum(nll) * inverse_batch_size


@njit(**options.CPU)
def _backward(
    layer,
    block,
    batch_size,
    activation,
    rates,
    has_penalties,
    penalties,
    every,
    layers,
    weights,
    bias,
    h,
    error,
):
    """Overwrite a hidden block's errors, update its bias and what leaves it; return the penalty."""
    width, first_unit = layers[layer, WIDTH], layers[layer, UNITS]
    n_in, n_out, width_after, first_weight, unit_after, _ = layers[layer + 1]
    after = unit_after * batch_size
    leaving = first_weight + block * BLOCK
    at = first_unit * batch_size + block * BLOCK
    for i in range(batch_size):
        total = weighted_block(
            every, 0, error, after + i * width_after, 1, n_out, weights, leaving, n_in
        )
        to = at + i * width
        store_block(error, to, total)
        for u in range(BLOCK):
            slope = activation_slope(element(h, to + u), activation)
            set_element(error, to + u, slope * element(error, to + u))
    unit = block * BLOCK
    _update_bias(layer, unit, unit + BLOCK, batch_size, rates[0], layers, error, bias)
    taken = weights.dtype.type(0)
    squares = splat(weights, 0)
    for k in range(n_out):
        gradient = weighted_block(every, 0, error, after + k, width_after, batch_size, h, at, width)
        row = leaving + k * n_in
        if has_penalties:
            taken += penalise_panel(weights, row, rates[0], penalties)
            taken += penalise_panel(weights, row + PANEL, rates[0], penalties)
        step = scaled_block(-rates[0], gradient, weights)
        squares = add(squares, update_block(weights, row, row + PANEL, step, rates[2]))
    return taken + rates[1] * lane_sum(squares)


@njit(**options.CPU)
def _update_first(
    by_pixel,
    group,
    pixel_scale,
    block,
    group_size,
    place,  # of the last minibatch that is pending
    n_pending,
    shrunk,
    rates,
    has_penalties,
    penalties,
    layers,
    weights,
    pending,
    growth,
    group_penalty,
):
    """Update a block of the first layer; overwrite the penalties before its minibatches."""
    n_in = layers[0, N_IN]
    rate, l2, shrink = rates
    column, last_row = by_pixel.groups[group], by_pixel.groups[group + 1]
    value = aligned_empty(group_size + SPARE, weights.dtype)
    taken = weights.dtype.type(0)
    squares = splat(weights, 0)
    top = block * group_size * BLOCK
    for d in range(n_in):
        entry, count = by_pixel.indptr[column], 0
        if column < last_row and by_pixel.pixel[column] == d:
            column += 1
            count = by_pixel.indptr[column] - entry
        scale(by_pixel.data, entry, count, pixel_scale, value)
        step = weighted_block(by_pixel.indices, entry, value, 0, 1, count, pending, top, BLOCK)
        left = block * BLOCK * n_in + d * PANEL
        right = left + n_in * PANEL
        if has_penalties:
            taken += penalise_panel(weights, left, rate, penalties)
            taken += penalise_panel(weights, right, rate, penalties)
        squares = add(squares, update_block(weights, left, right, step, shrunk))
    square = lane_sum(squares)
    n_blocks = layers[0, WIDTH] // BLOCK
    for k in range(place + 1 - n_pending, place + 1):
        group_penalty[k * n_blocks + block] = taken + l2 * square
        square = shrink * shrink * square + growth[k * n_blocks + block]


@njit(**options.CPU)
def _update_bias(layer, start, stop, batch_size, rate, layers, error, bias):
    """Update the biases of units start..stop-1 of a layer."""
    width, first_unit = layers[layer, WIDTH], layers[layer, UNITS]
    for u in range(start, stop, LANES):
        gradient = splat(bias, 0)
        for i in range(batch_size):
            gradient = add(gradient, load(error, first_unit * batch_size + i * width + u))
        at = first_unit + u
        store(bias, at, fma(-rate, gradient, load(bias, at)))


@njit(**options.CPU_PARALLEL)
def _predict(by_image, pixel_scale, activation, layers, weights, bias, predicted):
    """Overwrite predicted (N,) int32 with the class of every image."""
    n_examples = predicted.shape[0]
    n_layers = layers.shape[0]
    n_classes, width, first_unit = layers[-1, N_OUT], layers[-1, WIDTH], layers[-1, UNITS]
    n_sums = _n_sums(layers)
    # There are no minibatches before these images, so neither products nor steps.
    zero, one, none, every = np.int64(0), weights.dtype.type(1), bias[:0], np.empty(0, np.int64)
    for index in prange((n_examples + PREDICTION_IMAGES - 1) // PREDICTION_IMAGES):
        start = np.int64(index) * PREDICTION_IMAGES
        n = min(PREDICTION_IMAGES, n_examples - start)
        h = aligned_zeros(bias.shape[0] * n, weights.dtype)
        sums = aligned_zeros(n_sums * n, weights.dtype)
        z = aligned_empty(layers[0, WIDTH] * n, weights.dtype)
        for layer in range(n_layers):
            if layer > 0:
                _add_sums(layer, np.int64(0), layers[layer, WIDTH], n, layers, bias, sums, h)
            if layer < n_layers - 1:
                for block in range(layers[layer, WIDTH] // BLOCK):
                    if layer == 0:
                        at = block * n * BLOCK
                        _forward_first(
                            by_image, start, pixel_scale, block, n, layers, weights, z, at
                        )
                        _update_sums(
                            block, zero, zero, n, n, one, every, layers, none, bias, none, z, h
                        )
                    _finish(layer, block, n, activation, layers, weights, h, sums)
        for i in range(n):
            at = first_unit * n + i * width
            predicted[start + i] = first_argmax(h[at : at + n_classes])
