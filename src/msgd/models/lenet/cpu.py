"""LeNet on the CPU: in which order its layers do the work of a minibatch.

What a layer does is in ``kernels/conv_layer.py`` and ``kernels/dense_layer.py``; the formulas are
in ``model.py``. Images pass in tiles of TILE. Each line of ``_train`` and ``_forward`` that names a
layer is a parallel loop over tasks that do not depend on each other. How many tasks there are
follows from sizes alone, so the bits are the same for any number of threads. All parameters are
updated after the last tile of a minibatch.

All layers of one kind have one type, so the loops are compiled once for any number of layers.
"""

import itertools
from typing import NamedTuple

import numba
import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.conv_layer import (
    CHUNKS,
    ConvLayer,
    backward_image,
    convolve_image,
    get_filters,
    image_gradient,
    maps_first,
    maps_last,
    new_conv_layer,
    new_marks,
    set_filters,
    update_filter,
)
from msgd.kernels.cpu import first_argmax, ordered_sum
from msgd.kernels.dense_layer import (
    LOGITS,
    Activations,
    DenseLayer,
    add_bias_gradient,
    add_gradient,
    apply_bias_gradient,
    backward_panels,
    forward_panel,
    get_dense_parameters,
    loss,
    n_input_panels,
    n_unit_panels,
    new_activations,
    new_dense_layer,
    set_dense_parameters,
    update_panels,
    with_copy,
)
from msgd.kernels.formulas import ACTIVATIONS
from msgd.models.cpu_backend import CpuClassifier
from msgd.models.lenet.model import conv_shapes, dense_sizes

TILE = 256  # T, images that pass through the network together
TASK_PANELS = 2  # panels of a dense layer's inputs whose weights are one task


class Network(NamedTuple):
    """The layers, and what a tile of images fills."""

    conv_layers: tuple[ConvLayer, ...]
    is_maximum: tuple[np.ndarray, ...]  # of the convolution layers, see conv_layer.new_marks
    dense_layers: tuple[DenseLayer, ...]
    # The pixels, then the units of every layer: layer k, from 0, has below k and above k + 1.
    activations: tuple[Activations, ...]


def new_network(shapes, sizes, settings, float_x):
    """Return a Network whose parameters are all 0.

    shapes, sizes: of the layers, see msgd.models.lenet.model.conv_shapes and dense_sizes.
    """
    first_only, kind = settings["maxpool_ties"] == "first", ACTIVATIONS[settings["activation"]]
    conv_layers = [new_conv_layer(shape, first_only, float_x) for shape in shapes]
    is_maximum = [new_marks(layer, TILE) for layer in conv_layers]
    dense_layers = [
        with_copy(new_dense_layer(*pair, float_x)) for pair in itertools.pairwise(sizes)
    ]
    n_pixels = shapes[0].in_height * shapes[0].in_width
    n_conv_units = [shape.out_height * shape.out_width * shape.out_maps for shape in shapes]
    *n_hidden, n_classes = n_conv_units + sizes[1:]
    activations = [
        new_activations(TILE, n_pixels, LOGITS, float_x, has_error=False),
        *(new_activations(TILE, n_units, kind, float_x) for n_units in n_hidden),
        new_activations(TILE, n_classes, LOGITS, float_x),
    ]
    return Network(*map(tuple, (conv_layers, is_maximum, dense_layers, activations)))


class Backend(CpuClassifier):
    """The CPU twin; see msgd.models.interface.Backend."""

    def __init__(self, dataset, parameters, settings, float_x, chunk_batches=None):
        shapes = conv_shapes(dataset.image_shape, settings)
        sizes = dense_sizes(shapes, settings, dataset.n_classes)
        # The parameters live in the layers, so these come first.
        self.network = new_network(shapes, sizes, settings, float_x)
        super().__init__(dataset, parameters, settings, float_x, chunk_batches)

    def allocate(self):
        """Start the threads; all arrays are in the network.

        Numba starts its threads when it loads a parallel function. It forgets to for a function
        that calls one, if it was compiled when the parallel one came from the cache; the next
        process to load it would crash. Asking for their number starts them.
        """
        numba.get_num_threads()

    def train_span(self, first, last, costs):
        """Train minibatches first..last-1 and write their costs, (last - first,) floatX."""
        train_x = self.dataset.train_x
        _train(train_x, self.minibatches, self.descent, first, self.network, costs)

    def predict_rows(self, split, start, stop, predicted):
        """Write the classes of images start..stop-1 of ``split`` into predicted, int32."""
        x = self.dataset.split(split)[0][start:stop]
        _predict(x, self.pixel_scale, self.network, predicted)

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        pairs = [
            *map(get_filters, self.network.conv_layers),
            *map(get_dense_parameters, self.network.dense_layers),
        ]
        n_convs = len(self.network.conv_layers)
        weights, bias = pairs[n_convs]
        pairs[n_convs] = maps_first(weights, self.network.conv_layers[-1]), bias
        return {
            f"{name}_{number}": array
            for number, pair in enumerate(pairs, start=1)
            for name, array in zip(("weights", "bias"), pair, strict=True)
        }

    def keep_parameters(self, parameters):
        """See msgd.models.cpu_backend.CpuBackend."""
        arrays = list(parameters.values())
        pairs = list(zip(arrays[::2], arrays[1::2], strict=True))
        n_convs = len(self.network.conv_layers)
        weights, bias = pairs[n_convs]
        pairs[n_convs] = maps_last(weights, self.network.conv_layers[-1]), bias
        for layer, pair in zip(self.network.conv_layers, pairs[:n_convs], strict=True):
            set_filters(layer, *pair)
        for layer, pair in zip(self.network.dense_layers, pairs[n_convs:], strict=True):
            set_dense_parameters(layer, *pair)


@njit(**options.CPU_ENTRY)
def _train(x, minibatches, descent, first, network, costs):
    """Train a span of minibatches, the first of which is number ``first`` of the run.

    x: (N, D) uint8 or floatX, the pixels of all training images; minibatches: Minibatches; descent:
    Descent; network: Network, changed; costs: one for each minibatch of the span, overwritten.
    """
    convs, is_maximum, dense, activations = network
    logits = activations[-1]
    for k in range(costs.shape[0]):
        start = (first + k) % minibatches.per_epoch * minibatches.size
        nll = costs.dtype.type(0)
        for done in range(0, minibatches.size, TILE):
            n = min(TILE, minibatches.size - done)
            labels = minibatches.y[start + done : start + done + n]
            _copy_pixels(x, start + done, n, minibatches.pixel_scale, activations[0])
            _forward(network, n)
            nll += _loss(logits, dense[-1].n_out, labels, minibatches.inverse_size)
            for layer in range(len(dense) - 1, -1, -1):
                at = len(convs) + layer
                _dense_backward(dense[layer], activations[at], activations[at + 1], n)
            for layer in range(len(convs) - 1, -1, -1):
                below, above = activations[layer], activations[layer + 1]
                _conv_backward(convs[layer], is_maximum[layer], below, above, n)
        cost = nll * minibatches.inverse_size
        for layer in range(len(convs)):
            cost += _update_conv(convs[layer], descent)
        for layer in range(len(dense)):
            cost += _update_dense(dense[layer], descent)
        costs[k] = cost


@njit(**options.CPU_ENTRY)
def _predict(x, pixel_scale, network, predicted):
    """Overwrite predicted (N,) int32 with the classes of images x (N, D), uint8 or floatX."""
    pixels, logits = network.activations[0], network.activations[-1]
    n_classes = network.dense_layers[-1].n_out
    for start in range(0, x.shape[0], TILE):
        n = min(TILE, x.shape[0] - start)
        _copy_pixels(x, start, n, pixel_scale, pixels)
        _forward(network, n)
        for i in range(n):
            row = i * logits.stride
            predicted[start + i] = first_argmax(logits.h[row : row + n_classes])


@njit(**options.CPU)
def _copy_pixels(x, start, n, pixel_scale, pixels):
    """Overwrite h of ``pixels``, Activations, with images start..start+n-1 of x (N, D)."""
    for i in range(n):
        row = pixels.h[i * pixels.stride : i * pixels.stride + x.shape[1]]
        for d in range(x.shape[1]):
            row[d] = x[start + i, d] * pixel_scale


@njit(**options.CPU)
def _forward(network, n):
    """Overwrite h of all layers for the n images whose pixels are in network.activations[0]."""
    convs, is_maximum, dense, activations = network
    for layer in range(len(convs)):
        below, above = activations[layer], activations[layer + 1]
        _conv_forward(convs[layer], is_maximum[layer], below, above, n)
    for layer in range(len(dense)):
        at = len(convs) + layer
        _dense_forward(dense[layer], activations[at], activations[at + 1], n)


@njit(**options.CPU)
def _loss(logits, n_classes, labels, inverse_batch_size):
    """Overwrite the errors of the logits; return the sum of the images' losses, chunk by chunk."""
    n = labels.shape[0]
    total = logits.h.dtype.type(0)
    for chunk in range(CHUNKS):
        first, last = _chunk(chunk, n)
        total += loss(logits, n_classes, labels, inverse_batch_size, first, last)
    return total


@njit(**options.CPU)
def _chunk(chunk, n):
    """Return (first, last): n images cut into CHUNKS, of which one has images first..last-1."""
    return chunk * n // CHUNKS, (chunk + 1) * n // CHUNKS


# The parallel loops. prange counts in uint64, but the tasks' arithmetic is in int64. below, above:
# the layer's Activations; n: images of the tile.


@njit(**options.CPU_PARALLEL_INNER)
def _conv_forward(layer, is_maximum, below, above, n):
    """Overwrite above.h and is_maximum: convolve, pool, activate. A task is a chunk of images."""
    for task in prange(CHUNKS):
        _convolve_chunk(layer, is_maximum, below, above, n, np.int64(task))


@njit(**options.CPU)
def _convolve_chunk(layer, is_maximum, below, above, n, chunk):
    """Overwrite above.h and is_maximum of the images of a chunk."""
    first, last = _chunk(chunk, n)
    for i in range(first, last):
        convolve_image(layer, is_maximum[i], below, above, i)


@njit(**options.CPU_PARALLEL_INNER)
def _dense_forward(layer, below, above, n):
    """Overwrite above.h. A task is LANES units."""
    for task in prange(n_unit_panels(layer)):
        forward_panel(layer, below, above, n, np.int64(task))


@njit(**options.CPU)
def _n_dense_tasks(layer):
    """Return how many tasks of TASK_PANELS panels the inputs of a dense layer are."""
    return (n_input_panels(layer) + TASK_PANELS - 1) // TASK_PANELS


@njit(**options.CPU)
def _panels(layer, task):
    """Return the panels of inputs (start, stop) that are a task."""
    return task * TASK_PANELS, min((task + 1) * TASK_PANELS, n_input_panels(layer))


@njit(**options.CPU_PARALLEL_INNER)
def _dense_backward(layer, below, above, n):
    """Overwrite below.error, and add to the layer's gradients. A task is TASK_PANELS panels."""
    for index in prange(_n_dense_tasks(layer)):
        task = np.int64(index)
        backward_panels(layer, below, above, n, _panels(layer, task))
        add_gradient(layer, below, above, n, _panels(layer, task))
        if task == 0:
            add_bias_gradient(layer, above, n)


@njit(**options.CPU_PARALLEL_INNER)
def _conv_backward(layer, is_maximum, below, above, n):
    """Overwrite below.error, if it has any, and add to the layer's gradients.

    A task is a chunk of images.
    """
    for task in prange(CHUNKS):
        _conv_backward_chunk(layer, is_maximum, below, above, n, np.int64(task))


@njit(**options.CPU)
def _conv_backward_chunk(layer, is_maximum, below, above, n, chunk):
    """Overwrite below.error of the images of a chunk, and add to the gradients of the chunk."""
    first, last = _chunk(chunk, n)
    if below.error.size > 0:
        for i in range(first, last):
            backward_image(layer, is_maximum[i], below, above, i)
    for i in range(first, last):  # apart, so that the gradients stay in the cache
        image_gradient(layer, is_maximum[i], below, above, i, chunk)


@njit(**options.CPU_PARALLEL_INNER)
def _update_conv(layer, descent):
    """Update the parameters; return the penalty of the old ones. A task is a map."""
    penalties = np.empty(layer.maps, layer.bias.dtype)
    for task in prange(layer.maps):
        penalties[task] = update_filter(layer, descent, np.int64(task))
    return ordered_sum(penalties)


@njit(**options.CPU_PARALLEL_INNER)
def _update_dense(layer, descent):
    """Update the parameters; return the penalty of the old ones. A task is TASK_PANELS panels."""
    n_tasks = _n_dense_tasks(layer)
    penalties = np.empty(n_tasks, layer.bias.dtype)
    for index in prange(n_tasks):
        task = np.int64(index)
        penalties[task] = update_panels(layer, descent, _panels(layer, task))
        if task == 0:
            apply_bias_gradient(layer, descent)
    return ordered_sum(penalties)
