"""Multilayer perceptron on the CPU, fast; ``reference.py`` computes the same in plain loops.

The first layer's inputs are images, most of whose pixels are zero (``first_layer.py``), and its
weights are updated once for a group of minibatches (``deferred.py``). All later layers are dense
(``kernels/dense_layer.py``). The schedule is in ``_train``; each parallel loop is a function.

No sum is shared between tasks, so the bits are the same for any number of threads.
"""

from typing import NamedTuple

import numba
import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.cpu import first_argmax, ordered_sum
from msgd.kernels.dense_layer import (
    LOGITS,
    Activations,
    DenseLayer,
    activate_all,
    add_gradient,
    add_sums,
    backward_panels,
    get_dense_parameters,
    n_input_panels,
    new_activations,
    new_dense_layer,
    set_dense_parameters,
    sum_block,
    update_panels,
    with_sums,
)
from msgd.kernels.formulas import ACTIVATIONS, like
from msgd.kernels.softmax import softmax_cross_entropy_row
from msgd.kernels.sparse import CSR, DCSC
from msgd.kernels.vectors import LANES, aligned_empty, load, store
from msgd.models.cpu_backend import CpuClassifier
from msgd.models.mlp.deferred import (
    begin_group,
    defer_steps,
    end_group,
    forward_block,
    group_of,
    largest_group,
    new_deferred,
)
from msgd.models.mlp.first_layer import (
    BLOCK,
    FirstLayer,
    activate_block,
    get_first_layer,
    multiply_images,
    n_blocks,
    new_first_layer,
    update_bias,
)

TILE = 128  # images that are predicted together
CHUNK = 32  # images of a tile that are one task


class Network(NamedTuple):
    """The layers: n_1 units over the images, then dense ones, the last of which has the logits."""

    first: FirstLayer
    dense: tuple[DenseLayer, ...]  # layers 2..L
    hidden: tuple[DenseLayer, ...] | None  # layers 2..L-1, or None if there are none
    units: tuple[Activations, ...]  # of layers 1..L


class TrainingImages(NamedTuple):
    """The training images, both ways."""

    by_image: CSR
    by_pixel: DCSC  # of the groups of minibatches


class Backend(CpuClassifier):
    """The CPU twin; see msgd.models.interface.Backend."""

    def allocate(self):
        """Say how many minibatches make a group; start the threads, as LeNet's Backend does."""
        numba.get_num_threads()
        self.group_batches = largest_group(self.batch_size, self.descent)

    def _list_for_training(self, lists):
        """See CpuBackend._list_for_training."""
        super()._list_for_training(lists)
        n_images = self.n_train_batches * self.batch_size if self.group_batches > 1 else 0
        lists.add_gram(n_images, self.batch_size, self.pixel_scale)

    def train_span(self, first, last, costs):
        """Train minibatches first..last-1 and write their costs, (last - first,) floatX."""
        lists = self._lists("train")
        images = TrainingImages(lists.by_image, lists.by_pixel)
        n_units = len(self.network.first.bias)
        deferred = new_deferred(lists.gram.products, self.batch_size, self.group_batches, n_units)
        _train(images, self.minibatches, self.descent, first, self.network, deferred, costs)

    def predict_rows(self, split, start, stop, predicted):
        """Write the classes of images start..stop-1 of ``split`` into predicted, int32."""
        by_image = self._lists(split).by_image.images(start, stop)
        _predict(by_image, self.pixel_scale, self.network, predicted)

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        layers = [
            get_first_layer(self.network.first, self.n_hidden[0]),
            *map(get_dense_parameters, self.network.dense),
        ]
        parameters = {}
        for number, (weights, bias) in enumerate(layers, start=1):
            parameters |= {f"weights_{number}": weights, f"bias_{number}": bias}
        return parameters

    def keep_parameters(self, parameters):
        """See msgd.models.cpu_backend.CpuBackend."""
        weights, biases = list(parameters.values())[::2], list(parameters.values())[1::2]
        self.n_hidden = [len(bias) for bias in biases[:-1]]
        n_images = max(self.batch_size, TILE)
        kind = ACTIVATIONS[self.settings["activation"]]
        units = [
            new_activations(n_images, n_blocks(n) * BLOCK, kind, self.float_x)
            for n in self.n_hidden
        ]
        units.append(new_activations(n_images, len(biases[-1]), LOGITS, self.float_x))
        dense = [
            _dense_layer(*pair, n_images) for pair in zip(weights[1:], biases[1:], strict=True)
        ]
        dense[-1].bias[len(biases[-1]) :] = -np.inf  # the padding of the logits: its softmax is 0
        first, hidden = new_first_layer(weights[0], biases[0]), tuple(dense[:-1]) or None
        self.network = Network(first, tuple(dense), hidden, tuple(units))


def _dense_layer(weights, bias, n_images):
    """Return the DenseLayer of weights (n_in, n_out) and bias (n_out,), for up to n_images."""
    n_in, n_out = weights.shape
    layer = with_sums(new_dense_layer(n_in, n_out, bias.dtype), n_images)
    set_dense_parameters(layer, weights, bias)
    return layer


@njit(**options.CPU_ENTRY)
def _train(images, minibatches, descent, first, network, deferred, costs):
    """Train a span of minibatches, the first of which is iteration ``first``.

    images: TrainingImages; minibatches: Minibatches; descent: Descent; network: Network, changed;
    deferred: Deferred, scratch; costs: (minibatches of the span,) floatX, overwritten with the cost
    of each before its step.
    """
    dense, units = network.dense, network.units
    n_steps, size, last = costs.shape[0], minibatches.size, len(network.dense) - 1
    group = group_of(np.int64(0), n_steps, first, minibatches, descent, deferred.size)
    _begin(group, images.by_image, minibatches, network, deferred)
    for step in range(n_steps):
        _forward_hidden(network.hidden, network, size)
        labels = minibatches.y[group.first_image : group.first_image + size]
        cost = _loss(dense[last], units[last + 1], labels, minibatches.inverse_size)
        cost += _backward_hidden(network.hidden, descent, network, size)
        following = group_of(step + 1, n_steps, first, minibatches, descent, deferred.size)
        cost += _turn(group, following, images, minibatches, descent, network, deferred)
        costs[step] = cost
        if group.n_left == 1:
            for back in range(group.n_pending + 1):
                costs[step - back] += ordered_sum(deferred.penalty[:, group.k - back])
        group = following


# Where ``hidden`` is None, Numba compiles nothing of what stands below ``hidden is not None``: two
# or three seconds less to wait for, with one hidden layer.


@njit(**options.CPU)
def _forward_hidden(hidden, network, n):
    """Take n images forward from the second layer's sums to the last one's; see _forward.

    hidden: that of network, a Network.
    """
    if hidden is not None:
        for d in range(len(hidden)):
            _forward(network.dense[d], network.units[d + 1], network.dense[d + 1], n)


@njit(**options.CPU)
def _backward_hidden(hidden, descent, network, n):
    """Take n images back from the last layer to the second's units; return penalties before.

    hidden: that of network, a Network; descent: Descent. See _backward.
    """
    total = like(descent.rate, 0)
    if hidden is not None:
        for d in range(len(hidden), 0, -1):
            below, above = network.units[d], network.units[d + 1]
            total += _backward(network.dense[d], descent, below, above, n)
    return total


@njit(**options.CPU)
def _panels(layer, block):
    """Return the panels (start, stop) of a dense layer's inputs that are a block of units below."""
    start = block * (BLOCK // LANES)
    return start, min(start + BLOCK // LANES, n_input_panels(layer))


@njit(**options.CPU_INLINE)
def _backward_block(block, layer, descent, below, above, n):
    """Overwrite the errors of a block of inputs, and update its weights; return their penalty.

    layer: DenseLayer; below, above: Activations of its inputs and units; n: images.
    """
    panels = _panels(layer, block)
    backward_panels(layer, below, above, n, panels)
    add_gradient(layer, below, above, n, panels)
    return update_panels(layer, descent, panels)


@njit(**options.CPU)
def _loss(layer, above, labels, inverse_size):
    """Overwrite the last layer's logits and errors; return the minibatch's mean loss.

    layer: DenseLayer; above: Activations of kind LOGITS; labels: (B,) int32; inverse_size: 1/B,
    floatX. See formulas.softmax_cross_entropy.
    """
    n, width = labels.shape[0], layer.bias.shape[0]
    nll = np.empty(n, layer.bias.dtype)
    add_sums(layer, above, (np.int64(0), width), n)
    for i in range(n):
        at = i * above.stride
        for u in range(at, at + width, LANES):
            store(above.error, u, load(above.h, u))
        nll[i] = softmax_cross_entropy_row(above.error, at, width, labels[i], inverse_size)
    return ordered_sum(nll) * inverse_size


@njit(**options.CPU)
def _begin(group, by_image, minibatches, network, deferred):
    """Take the first minibatch of a span forward through the first layer; see _turn."""
    layer, units = network.first, network.units[0]
    for block in range(layer.bias.shape[0] // BLOCK):
        begin_group(block, group, by_image, minibatches, layer, deferred)
        forward_block(block, group, minibatches, layer, deferred, units)
        sum_block(network.dense[0], units, (np.int64(0), minibatches.size), block)


@njit(**options.CPU_PARALLEL_INNER)
def _turn(group, following, images, minibatches, descent, network, deferred):
    """Take a minibatch back through the first layer, and the next one forward through it.

    group, following: the Group of either; the others: as in _train. Updates the first layer and the
    second; returns the penalty of the second's weights before. Both directions are one parallel
    loop: two, one after the other, give the same bits and were slower on a single thread too,
    probably because a block's weights are still in the cache when the next minibatch asks for them.
    """
    # A parallel loop takes NamedTuples, but none that hold others. Numba must see what they are.
    by_image, by_pixel = CSR(*images.by_image), DCSC(*images.by_pixel)
    layer, above = FirstLayer(*network.first), DenseLayer(*network.dense[0])
    units, units_above = Activations(*network.units[0]), Activations(*network.units[1])
    size = minibatches.size
    penalty = np.empty(layer.bias.shape[0] // BLOCK, layer.bias.dtype)
    for index in prange(layer.bias.shape[0] // BLOCK):
        block = np.int64(index)
        penalty[block] = _backward_block(block, above, descent, units, units_above, size)
        update_bias(layer.bias, descent, units, (block * BLOCK, (block + 1) * BLOCK), size)
        defer_steps(block, group, minibatches, descent, deferred, units)
        if group.n_left == 1:
            end_group(block, group, by_pixel, minibatches, descent, layer, deferred)
        if following.n_left > 0:
            if following.n_pending == 0:
                begin_group(block, following, by_image, minibatches, layer, deferred)
            forward_block(block, following, minibatches, layer, deferred, units)
            sum_block(above, units, (np.int64(0), size), block)
    update_bias(above.bias, descent, units_above, (np.int64(0), above.bias.shape[0]), size)
    return ordered_sum(penalty)


@njit(**options.CPU_PARALLEL_INNER)
def _backward(layer, descent, below, above, n):
    """Overwrite the errors of a layer's inputs, and update it; return its penalty before.

    layer: DenseLayer; below, above: Activations of its inputs and units; n: images.
    """
    penalty = np.empty(layer.sums.shape[0], layer.bias.dtype)
    for index in prange(layer.sums.shape[0]):
        block = np.int64(index)
        penalty[block] = _backward_block(block, layer, descent, below, above, n)
    update_bias(layer.bias, descent, above, (np.int64(0), layer.bias.shape[0]), n)
    return ordered_sum(penalty)


@njit(**options.CPU_PARALLEL_INNER)
def _forward(layer, above, next_layer, n):
    """Overwrite the units of a hidden DenseLayer, and what they add to the next layer's sums.

    above: Activations of the units; n: images.
    """
    for index in prange(next_layer.sums.shape[0]):
        block = np.int64(index)
        start, stop = block * BLOCK, min((block + 1) * BLOCK, layer.bias.shape[0])
        add_sums(layer, above, (start, stop), n)
        for i in range(n):
            activate_all(above.h[i * above.stride + start : i * above.stride + stop], above.kind)
        sum_block(next_layer, above, (np.int64(0), n), block)


@njit(**options.CPU_ENTRY)
def _predict(by_image, pixel_scale, network, predicted):
    """Overwrite predicted (N,) int32 with the class of every image of by_image, a CSR.

    network: Network, whose units and sums are overwritten.
    """
    dense, units, last = network.dense, network.units, len(network.dense) - 1
    logits = units[last + 1]
    for start in range(0, predicted.shape[0], TILE):
        n = min(TILE, predicted.shape[0] - start)
        _predict_first(by_image, (start, start + n), pixel_scale, network)
        _forward_hidden(network.hidden, network, n)
        add_sums(dense[last], logits, (np.int64(0), dense[last].bias.shape[0]), n)
        for i in range(n):
            at = i * logits.stride
            predicted[start + i] = first_argmax(logits.h[at : at + dense[last].n_out])


@njit(**options.CPU_PARALLEL_INNER)
def _predict_first(by_image, images, pixel_scale, network):
    """Overwrite the first layer's units for images (start, stop), and what they add to the second.

    by_image: CSR; network: Network.
    """
    layer, above = FirstLayer(*network.first), DenseLayer(*network.dense[0])
    units = Activations(*network.units[0])
    first, n = images[0], images[1] - images[0]
    chunks = (n + CHUNK - 1) // CHUNK
    for index in prange(chunks * (layer.bias.shape[0] // BLOCK)):
        task = np.int64(index)
        block, start = task // chunks, task % chunks * CHUNK
        rows = (start, min(start + CHUNK, n))
        _predict_block(block, by_image, first, rows, pixel_scale, layer, units)
        sum_block(above, units, rows, block)


@njit(**options.CPU)
def _predict_block(block, by_image, first, rows, pixel_scale, layer, units):
    """Overwrite a block of units, rows (start, stop), by images first + start..first + stop - 1.

    by_image: CSR; layer: FirstLayer; units: Activations.
    """
    start, stop = rows
    sums = aligned_empty((stop - start) * BLOCK, layer.bias.dtype)
    multiply_images(
        block, by_image, (first + start, first + stop), pixel_scale, layer, sums, np.int64(0)
    )
    for i in range(start, stop):
        activate_block(block, sums, (i - start) * BLOCK, layer, units, i)
