"""Multilayer perceptron on the CPU, fast; ``reference.py`` computes the same in plain loops.

The first layer's inputs are images, most of whose pixels are zero (``first_layer.py``), and its
weights are updated once for a group of minibatches (``deferred.py``). All later layers are dense
(``later_layers.py``). The schedule is in ``_train``; each parallel loop is a function.

No sum is shared between tasks, so the bits are the same for any number of threads.
"""

from typing import NamedTuple

import numba
import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.cpu import first_argmax, ordered_sum
from msgd.kernels.dense_layer import LOGITS, Activations, new_activations
from msgd.kernels.formulas import ACTIVATIONS
from msgd.kernels.sparse import CSR, DCSC
from msgd.kernels.vectors import aligned_empty
from msgd.models.cpu_backend import CpuBackend
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
)
from msgd.models.mlp.later_layers import (
    DenseLayer,
    activate_units,
    add_blocks,
    error_block,
    get_dense_layer,
    loss,
    multiply_block,
    new_dense_layer,
    update_bias,
    update_block,
)

TILE = 128  # images that are predicted together
CHUNK = 32  # images of a tile that are one task


class Network(NamedTuple):
    """The layers: n_1 units over the images, then dense ones, the last of which has the logits."""

    first: FirstLayer
    dense: tuple[DenseLayer, ...]  # layers 2..L
    units: tuple[Activations, ...]  # of layers 1..L


class TrainingImages(NamedTuple):
    """The training images, both ways."""

    by_image: CSR
    by_pixel: DCSC  # of the groups of minibatches


class Backend(CpuBackend):
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
        first, *dense = self.network.first, *self.network.dense
        n_units = [layer.n_out for layer in dense]
        layers = [get_first_layer(first, self.n_hidden[0])]
        layers += map(get_dense_layer, dense, [self.n_hidden[0], *n_units])
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
            new_dense_layer(weights[k], biases[k], n_images, units[k].kind)
            for k in range(1, len(weights))
        ]
        first = new_first_layer(weights[0], biases[0], kind)
        self.network = Network(first, tuple(dense), tuple(units))


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
        for d in range(last):
            _forward(dense[d], units[d + 1], dense[d + 1], size)
        labels = minibatches.y[group.first_image : group.first_image + size]
        cost = loss(dense[last], units[last + 1], labels, minibatches.inverse_size)
        for d in range(last, 0, -1):
            cost += _backward(dense[d], descent, units[d], units[d + 1], size)
        following = group_of(step + 1, n_steps, first, minibatches, descent, deferred.size)
        cost += _turn(group, following, images, minibatches, descent, network, deferred)
        costs[step] = cost
        if group.n_left == 1:
            for back in range(group.n_pending + 1):
                costs[step - back] += ordered_sum(deferred.penalty[:, group.k - back])
        group = following


@njit(**options.CPU)
def _begin(group, by_image, minibatches, network, deferred):
    """Take the first minibatch of a span forward through the first layer; see _turn."""
    layer, units = network.first, network.units[0]
    for block in range(layer.bias.shape[0] // BLOCK):
        begin_group(block, group, by_image, minibatches, layer, deferred)
        forward_block(block, group, minibatches, layer, deferred, units)
        multiply_block(block, network.dense[0], units, (np.int64(0), minibatches.size))


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
        error_block(block, above, units, units_above, size)
        penalty[block] = update_block(block, above, descent, units, units_above, size)
        update_bias(layer.bias, descent, units, (block * BLOCK, (block + 1) * BLOCK), size)
        defer_steps(block, group, minibatches, descent, deferred, units)
        if group.n_left == 1:
            end_group(block, group, by_pixel, minibatches, descent, layer, deferred)
        if following.n_left > 0:
            if following.n_pending == 0:
                begin_group(block, following, by_image, minibatches, layer, deferred)
            forward_block(block, following, minibatches, layer, deferred, units)
            multiply_block(block, above, units, (np.int64(0), size))
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
        error_block(block, layer, below, above, n)
        penalty[block] = update_block(block, layer, descent, below, above, n)
    update_bias(layer.bias, descent, above, (np.int64(0), layer.bias.shape[0]), n)
    return ordered_sum(penalty)


@njit(**options.CPU_PARALLEL_INNER)
def _forward(layer, above, next_layer, n):
    """Overwrite the units of a hidden DenseLayer, and what they add to the next layer's sums.

    above: Activations of the units; n: images.
    """
    for index in prange(next_layer.sums.shape[0]):
        block = np.int64(index)
        units = (block * BLOCK, (block + 1) * BLOCK)
        add_blocks(layer, above, units, n)
        activate_units(above, units, n)
        multiply_block(block, next_layer, above, (np.int64(0), n))


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
        for d in range(last):
            _forward(dense[d], units[d + 1], dense[d + 1], n)
        add_blocks(dense[last], logits, (np.int64(0), dense[last].bias.shape[0]), n)
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
        multiply_block(block, above, units, rows)


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
