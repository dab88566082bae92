"""LeNet on the CPU: loops over the formulas of ``model.py``.

Images pass in tiles of TILE. A tile goes through a sequence of phases, each a parallel loop over
tasks that do not depend on each other: convolutions, by chunks of images; dense layers forward, by
blocks of units; loss, by chunks; dense layers backward, by blocks of inputs; convolutions backward,
by chunks, each of which has gradients of its own. After the last tile the chunks' gradients are
added in order, and all parameters are updated. The number of tasks follows from sizes alone, so the
bits are the same for any number of threads.

Legend, beyond that of ``model.py``: T images of a tile, K chunks, V vectors of LANES numbers, S
squares that pooling reduces. Arrays that vectors are loaded from are flat:

- activations ``h`` and their ``error``: (T, row_step); an image of a convolution layer lies in the
  order (row, column, map), so that a row of a patch is one run of f M_in numbers. A row ends with
  padding, because vectors reach beyond the last number; what they read or write there is not used.
- ``forward_weights`` of a convolution layer: (f run, width), a row for each number of a patch; of a
  dense layer: panels of LANES units, (V, n_rows, LANES)
- ``backward_weights`` of a convolution layer: (M, f, padded_run), a patch's rows, each padded with
  zeros to whole vectors; of a dense layer: panels of LANES inputs, (V, n_out, LANES)
- filters are stored flipped, so that the true convolution becomes a sum over the patch in order

All layers' arrays lie in three flat buffers, and a table says where: so the kernels are compiled
once for any number of layers.

Max-pooling's gradient goes to one pixel in four (p = 2, no ties), so backward convolutions walk
over lists of those pixels instead of multiplying zeros; but for the weights' gradient of a layer
whose patches are short, as the first one's are (see _is_listed).
"""

import itertools
from typing import NamedTuple

import numba
import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.arguments import Descent
from msgd.kernels.cpu import (
    activate,
    activation_slope,
    element,
    first_argmax,
    ordered_sum,
    penalty,
    penalty_gradient,
    set_element,
    softmax_cross_entropy,
)
from msgd.kernels.formulas import ACTIVATIONS
from msgd.kernels.vectors import (
    CACHE_LINE,
    HALF,
    LANES,
    add,
    add_outer,
    aligned,
    append_marked,
    fma,
    load,
    load_half,
    load_sums,
    maximum,
    multiply,
    splat,
    store,
    store_equal,
    store_sums,
)
from msgd.models.cpu_backend import CpuBackend
from msgd.models.lenet.model import conv_shapes, dense_sizes

TILE = 256  # images; a multiple of GROUP
CHUNKS = 16  # of a tile's images
GROUP = 4  # rows of a product computed together
TWO, THREE = (0, 0), (0, 0, 0)  # panels of so many vectors of HALF: kernels are compiled for each
TAPS = 128  # of a patch whose weights pass at a time, so that they stay in the cache
INPUT_BLOCK = 32  # inputs of a dense layer whose weights are one task; a multiple of LANES

# The phases, and what a task of each is.
CONV_FORWARD = 0  # a chunk of images
DENSE_FORWARD = 1  # LANES units
LOSS = 2  # a chunk of images
DENSE_BACKWARD = 3  # LANES inputs
DENSE_GRADIENT = 4  # INPUT_BLOCK inputs
CONV_BACKWARD = 5  # a chunk of images
CONV_GRADIENT = 6  # a chunk of images
CONV_UPDATE = 7  # a map
DENSE_UPDATE = 8  # INPUT_BLOCK inputs


class ConvLayer(NamedTuple):
    """What the kernels know of a convolution layer, in the order of a row of its table."""

    maps: int
    width: int  # maps rounded up to whole vectors of HALF, two at least
    filter_size: int
    run: int  # numbers of a patch's row: f M_in
    padded_run: int  # run rounded up to whole vectors
    in_step: int  # from a row of the input to the next, in numbers: w M_in
    in_row_step: int  # from an image of the input to the next
    row_step: int  # from an image of the output to the next
    pool_size: int
    out_height: int
    out_width: int
    first_only: int  # 1 if of tied maxima only the first gets the gradient
    is_listed: int  # 1 if the weights' gradient goes over lists of pixels, see _is_listed
    position: np.ndarray  # (S p^2,) where all patches start, square by square
    strip_position: np.ndarray  # (p^2 a row of squares, filled up to GROUP,) the same of one row
    tap: np.ndarray  # (f run, filled up to GROUP,) where a patch's numbers are
    vector_tap: np.ndarray  # (f padded_run / LANES,) where its vectors start
    list_position: np.ndarray  # (K, S p^2), scratch of listed layers, see _list_map
    unit: np.ndarray  # (K, S p^2 M + 8), scratch: see _list_units; not for the first layer
    unit_start: np.ndarray  # (K, S p^2 + 1), scratch
    forward_weights: np.ndarray  # flat (f run, width)
    backward_weights: np.ndarray  # flat (M, f, padded_run)
    bias: np.ndarray  # (width,)
    # Zeros between minibatches, but for taps and maps that fill up, which mean nothing:
    weights_gradient: np.ndarray  # (K, M f padded_run) if listed, or (K, taps of ``tap``, width)
    bias_gradient: np.ndarray  # (K, width)
    x: np.ndarray  # flat (T, in_row_step), h of the layer below or the pixels
    x_error: np.ndarray  # flat (T, in_row_step), the error of the layer below; empty for the first
    h: np.ndarray  # flat (T, row_step)
    error: np.ndarray  # flat (T, row_step)
    strip: np.ndarray  # (K, pixels of a row of squares times width), scratch
    list_value: np.ndarray  # (K, S p^2), the same
    is_maximum: np.ndarray  # (T, S p^2 M + HALF) uint8, HALF more for vectors


class DenseLayer(NamedTuple):
    """What the kernels know of a dense layer."""

    n_in: int
    n_rows: int  # n_in rounded up to GROUP
    n_out: int
    width: int  # n_out rounded up to whole vectors
    in_row_step: int
    row_step: int
    in_position: np.ndarray  # (T,) where the images of the input start
    position: np.ndarray  # (T,) where the images of the output start
    unit: np.ndarray  # (n_rows or n_out, the larger,) 0, 1, 2, ...
    forward_weights: np.ndarray  # flat (V, n_rows, LANES)
    backward_weights: np.ndarray  # flat (V, n_out, LANES)
    bias: np.ndarray  # (width,)
    weights_gradient: np.ndarray  # as forward_weights, zeros between minibatches
    bias_gradient: np.ndarray  # (width,), zeros between minibatches
    x: np.ndarray  # flat (T, in_row_step), h of the layer below
    x_error: np.ndarray  # flat (T, in_row_step), the error of the layer below
    h: np.ndarray  # flat (T, row_step); the logits of the last layer
    error: np.ndarray  # flat (T, row_step)


class Backend(CpuBackend):
    """The CPU twin; see msgd.models.interface.Backend."""

    def __init__(self, dataset, parameters, settings, float_x, chunk_batches=None):
        shapes = conv_shapes(dataset.image_shape, settings)
        sizes = dense_sizes(shapes, settings, dataset.n_classes)
        # The parameters live in the network's buffers, so these come first.
        self.network = _build(shapes, sizes, settings["maxpool_ties"] == "first", float_x)
        self.convs = [_conv_layer(*self.network, layer) for layer in range(len(shapes))]
        self.denses = [_dense_layer(*self.network, layer) for layer in range(len(sizes) - 1)]
        super().__init__(dataset, parameters, settings, float_x, chunk_batches)

    def allocate(self):
        """List the phases, start the threads; the scratch arrays are in the network's buffers.

        Numba starts its threads when it loads a parallel function. It forgets to for a function
        that calls one, if it was compiled when the parallel one came from the cache; the next
        process to load it would crash. Asking for their number starts them.
        """
        numba.get_num_threads()
        self.kind = ACTIVATIONS[self.settings["activation"]]
        self.program, self.n_forward = _program(len(self.convs), len(self.denses))

    def train_span(self, first, last, costs):
        """Train minibatches first..last-1 and write their costs, (last - first,) floatX."""
        _train(
            self.dataset.train_x,
            self.dataset.train_y,
            self.pixel_scale,
            self.batch_size,
            self.n_train_batches,
            self.learning_rate,
            self.penalties,
            self.kind,
            self.program,
            first,
            last,
            *self.network,
            costs,
        )

    def predict_rows(self, split, start, stop, predicted):
        """Write the classes of images start..stop-1 of ``split`` into predicted, int32."""
        x = self.dataset.split(split)[0][start:stop]
        program = self.program[: self.n_forward]
        _predict(x, self.pixel_scale, self.kind, program, *self.network, predicted)

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        arrays = [(_filters(layer), layer.bias[: layer.maps].copy()) for layer in self.convs]
        for number, layer in enumerate(self.denses):
            weights = _from_panels(layer.forward_weights, layer.n_rows, layer.n_in, layer.n_out)
            if number == 0:
                weights = _reorder(weights, self.convs[-1], to_maps_first=True)
            arrays.append((weights, layer.bias[: layer.n_out].copy()))
        return {
            f"{name}_{number}": array
            for number, pair in enumerate(arrays, start=1)
            for name, array in zip(("weights", "bias"), pair, strict=True)
        }

    def keep_parameters(self, parameters):
        """See msgd.models.cpu_backend.CpuBackend."""
        arrays = list(parameters.values())
        pairs = list(zip(arrays[::2], arrays[1::2], strict=True))
        for layer, (filters, bias) in zip(self.convs, pairs, strict=False):
            _set_filters(layer, filters)
            layer.bias[: layer.maps] = bias
        for number, layer in enumerate(self.denses):
            weights, bias = pairs[len(self.convs) + number]
            if number == 0:
                weights = _reorder(weights, self.convs[-1], to_maps_first=False)
            layer.forward_weights[:] = _to_panels(weights, layer.n_rows)
            layer.backward_weights[:] = _to_panels(weights.T, layer.n_out)
            layer.bias[: layer.n_out] = bias


def _program(n_convs, n_denses):
    """Return (program, n_forward): the phases of a minibatch, (phases, 2) int64: phase, layer.

    The first n_forward of them make the logits; those from the first update on come once per
    minibatch, the others once per tile.
    """
    convs, denses = range(n_convs), range(n_denses)
    program = [(CONV_FORWARD, layer) for layer in convs]
    program += [(DENSE_FORWARD, layer) for layer in denses]
    n_forward = len(program)
    program += [(LOSS, n_denses - 1)]
    for layer in reversed(denses):
        program += [(DENSE_BACKWARD, layer), (DENSE_GRADIENT, layer)]
    for layer in reversed(convs):
        program += [(CONV_BACKWARD, layer)] if layer > 0 else []
        program += [(CONV_GRADIENT, layer)]
    program += [(CONV_UPDATE, layer) for layer in convs]
    program += [(DENSE_UPDATE, layer) for layer in denses]
    return np.array(program, np.int64), n_forward


# Layouts, in NumPy: run once per Backend, or per snapshot.


def _padded(n, multiple=LANES):
    return -(-n // multiple) * multiple


def _row_step(n):
    """Return the step between images of n numbers: padded by a vector at least.

    An odd number of vectors, for rows a power of two apart would share few lines of the cache.
    """
    vectors = _padded(n) // LANES + 1
    return (vectors + 1 - vectors % 2) * LANES


class _Buffers:
    """The flat buffers while the layers' arrays are laid out in them, from cache line to line."""

    def __init__(self, float_x):
        self.parts = {np.dtype(kind): [] for kind in (float_x, np.int64, np.uint8)}
        self.used = dict.fromkeys(self.parts, 0)

    def add(self, array):
        """Append ``array``; return (start, stop) of its place."""
        start = self.used[array.dtype]
        n_padding = -array.size % (CACHE_LINE // array.itemsize)
        self.parts[array.dtype] += [array.ravel(), np.zeros(n_padding, array.dtype)]
        self.used[array.dtype] += array.size + n_padding
        return start, start + array.size

    def zeros(self, *shape, dtype):
        """Append zeros; return (start, stop) of their place."""
        return self.add(np.zeros(shape, dtype))


def _build(shapes, sizes, first_only, float_x):
    """Return the network: (conv_table, dense_table, numbers, indices, marks), weights all zeros.

    The tables have a row per layer: its integers, then start and stop of each of its arrays, in the
    order of ConvLayer and DenseLayer.
    """
    buffers = _Buffers(float_x)
    row_step = _row_step(shapes[0].in_height * shapes[0].in_width)
    below = (row_step, buffers.zeros(TILE, row_step, dtype=float_x), (0, 0))
    conv_rows, dense_rows = [], []
    for shape in shapes:
        row, below = _add_conv(buffers, shape, first_only, below, float_x)
        conv_rows.append(row)
    for n_in, n_out in itertools.pairwise(sizes):
        row, below = _add_dense(buffers, n_in, n_out, below, float_x)
        dense_rows.append(row)
    flat = [aligned(parts) for parts in buffers.parts.values()]
    return np.array(conv_rows), np.array(dense_rows), *flat


def _add_conv(buffers, shape, first_only, below, float_x):
    """Lay out a convolution layer; return its row of the table, and what the next stands on."""
    in_maps, _, in_width, maps, f, p = shape
    in_row_step, x, x_error = below
    n_pixels = shape.out_height * shape.out_width * p * p
    run, width, in_step = f * in_maps, max(_padded(maps, HALF), LANES), in_width * in_maps
    row_step = _row_step(shape.out_height * shape.out_width * maps)
    # (out_height, out_width, p, p): where the patch of each pixel starts, square by square
    row, column, i, j = np.ogrid[: shape.out_height, : shape.out_width, :p, :p]
    position = (row * p + i) * in_step + (column * p + j) * in_maps
    strip = _fill_up(position[0].ravel())
    rows = np.arange(f)[:, None] * in_step
    taps = _fill_up((rows + np.arange(run)).ravel()), rows + np.arange(0, _padded(run), LANES)
    n_units = n_pixels * maps if x_error != (0, 0) else 0
    is_listed = _is_listed(shape, run, width)
    weights = maps * f * _padded(run)
    n_gradients = weights if is_listed else len(taps[0]) * width
    h, error = (buffers.zeros(TILE, row_step, dtype=float_x) for _ in range(2))
    places = [
        *(buffers.add(table.astype(np.int64)) for table in (position, strip, *taps)),
        buffers.zeros(CHUNKS, n_pixels, dtype=np.int64),
        buffers.zeros(CHUNKS, n_units + 8, dtype=np.int64),
        buffers.zeros(CHUNKS, n_pixels + 1, dtype=np.int64),
        buffers.zeros(f * run * width, dtype=float_x),
        buffers.zeros(weights, dtype=float_x),
        buffers.zeros(width, dtype=float_x),
        buffers.zeros(CHUNKS, n_gradients, dtype=float_x),
        buffers.zeros(CHUNKS, width, dtype=float_x),
        *(x, x_error, h, error),
        buffers.zeros(CHUNKS, len(strip) * width, dtype=float_x),
        buffers.zeros(CHUNKS, n_pixels, dtype=float_x),
        buffers.zeros(TILE, n_pixels * maps + HALF, dtype=np.uint8),
    ]
    sizes = [maps, width, f, run, _padded(run), in_step, in_row_step, row_step, p]
    sizes += [shape.out_height, shape.out_width, int(first_only), int(is_listed)]
    return [*sizes, *np.ravel(places)], (row_step, h, error)


def _fill_up(positions):
    """Return ``positions`` with the last one repeated up to whole groups."""
    return np.pad(positions, (0, -len(positions) % GROUP), mode="edge")


def _is_listed(shape, run, width):
    """Return whether the gradient of a layer's weights goes over lists of pixels.

    The gradient of a maximum goes to one pixel of a square. Products over all pixels multiply p^2
    times as much, but patches and maps fill their vectors otherwise, and to list costs as much
    again as to multiply. ``shape``: a ConvShape.
    """
    pixels = shape.pool_size**2
    return pixels * run * width > 2 * shape.out_maps * _padded(run)


def _add_dense(buffers, n_in, n_out, below, float_x):
    """Lay out a dense layer; return its row of the table, and what the next stands on."""
    in_row_step, x, x_error = below
    n_rows, width, row_step = _padded(n_in, GROUP), _padded(n_out), _row_step(n_out)
    h, error = (buffers.zeros(TILE, row_step, dtype=float_x) for _ in range(2))
    places = [
        *(buffers.add(np.arange(TILE) * step) for step in (in_row_step, row_step)),
        buffers.add(np.arange(max(n_rows, n_out))),
        buffers.zeros(n_rows * width, dtype=float_x),
        buffers.zeros(_padded(n_in) * n_out, dtype=float_x),
        buffers.zeros(width, dtype=float_x),
        buffers.zeros(n_rows * width, dtype=float_x),
        buffers.zeros(width, dtype=float_x),
        *(x, x_error, h, error),
    ]
    sizes = [n_in, n_rows, n_out, width, in_row_step, row_step]
    return [*sizes, *np.ravel(places)], (row_step, h, error)


@njit(**options.CPU_ENTRY)
def _conv_layer(conv_table, dense_table, numbers, indices, marks, layer):
    """Return the ConvLayer of row ``layer`` of the table; its arrays are views."""
    row = conv_table[layer]
    return ConvLayer(
        row[0],
        row[1],
        row[2],
        row[3],
        row[4],
        row[5],
        row[6],
        row[7],
        row[8],
        row[9],
        row[10],
        row[11],
        row[12],
        indices[row[13] : row[14]],
        indices[row[15] : row[16]],
        indices[row[17] : row[18]],
        indices[row[19] : row[20]],
        indices[row[21] : row[22]].reshape(CHUNKS, -1),
        indices[row[23] : row[24]].reshape(CHUNKS, -1),
        indices[row[25] : row[26]].reshape(CHUNKS, -1),
        numbers[row[27] : row[28]],
        numbers[row[29] : row[30]],
        numbers[row[31] : row[32]],
        numbers[row[33] : row[34]].reshape(CHUNKS, -1),
        numbers[row[35] : row[36]].reshape(CHUNKS, -1),
        numbers[row[37] : row[38]],
        numbers[row[39] : row[40]],
        numbers[row[41] : row[42]],
        numbers[row[43] : row[44]],
        numbers[row[45] : row[46]].reshape(CHUNKS, -1),
        numbers[row[47] : row[48]].reshape(CHUNKS, -1),
        marks[row[49] : row[50]].reshape(TILE, -1),
    )


@njit(**options.CPU_ENTRY)
def _dense_layer(conv_table, dense_table, numbers, indices, marks, layer):
    """Return the DenseLayer of row ``layer`` of the table; its arrays are views."""
    row = dense_table[layer]
    return DenseLayer(
        row[0],
        row[1],
        row[2],
        row[3],
        row[4],
        row[5],
        indices[row[6] : row[7]],
        indices[row[8] : row[9]],
        indices[row[10] : row[11]],
        numbers[row[12] : row[13]],
        numbers[row[14] : row[15]],
        numbers[row[16] : row[17]],
        numbers[row[18] : row[19]],
        numbers[row[20] : row[21]],
        numbers[row[22] : row[23]],
        numbers[row[24] : row[25]],
        numbers[row[26] : row[27]],
        numbers[row[28] : row[29]],
    )


def _to_panels(weights, n_rows):
    """Return weights (n_in, n_out) as flat panels (V, n_rows, LANES), padded with zeros."""
    n_in, n_out = weights.shape
    padded = np.zeros((n_rows, _padded(n_out)), weights.dtype)
    padded[:n_in, :n_out] = weights
    return padded.reshape(n_rows, -1, LANES).transpose(1, 0, 2).ravel()


def _from_panels(flat, n_rows, n_in, n_out):
    """Return the (n_in, n_out) weights of which _to_panels made ``flat``."""
    padded = flat.reshape(-1, n_rows, LANES).transpose(1, 0, 2).reshape(n_rows, -1)
    return padded[:n_in, :n_out].copy()  # of a single panel the rest is a view


def _reorder(weights, layer, to_maps_first):
    """Return dense weights with rows in order (map, row, column), or (row, column, map)."""
    if to_maps_first:
        cube = weights.reshape(layer.out_height, layer.out_width, layer.maps, -1)
        return cube.transpose(2, 0, 1, 3).reshape(weights.shape)
    cube = weights.reshape(layer.maps, layer.out_height, layer.out_width, -1)
    return cube.transpose(1, 2, 0, 3).reshape(weights.shape)


def _filters(layer):
    """Return the filters of a ConvLayer, (M, M_in, f, f), as they are published."""
    f = layer.filter_size
    rows = layer.backward_weights.reshape(layer.maps, f, layer.padded_run)[:, :, : layer.run]
    patches = rows.reshape(layer.maps, f, f, -1)
    return patches[:, ::-1, ::-1].transpose(0, 3, 1, 2).copy()  # of 1x1 filters a view otherwise


def _set_filters(layer, filters):
    f = layer.filter_size
    patches = filters[:, :, ::-1, ::-1].transpose(0, 2, 3, 1)  # (M, f, f, M_in)
    rows = layer.backward_weights.reshape(layer.maps, f, layer.padded_run)
    rows[:, :, : layer.run] = patches.reshape(layer.maps, f, layer.run)
    forward = layer.forward_weights.reshape(f * layer.run, layer.width)
    forward[:, : layer.maps] = patches.reshape(layer.maps, -1).T


# Kernels.


@njit(**options.CPU_ENTRY)
def _train(
    x,  # (N, D) uint8 or floatX
    y,  # (N,) int32
    pixel_scale,
    batch_size,
    n_train_batches,
    learning_rate,
    penalties,  # (l1, l2, lp, p)
    kind,  # of activation
    program,  # (phases, 2)
    first,
    last,
    conv_table,  # the network, see _build: weights and biases changed, the rest scratch
    dense_table,
    numbers,
    indices,
    marks,
    costs,  # (last - first,), overwritten
):
    network = (conv_table, dense_table, numbers, indices, marks)
    lowest = _conv_layer(*network, 0)
    n_updates = conv_table.shape[0] + dense_table.shape[0]
    n_phases = program.shape[0] - n_updates  # of a tile
    inverse_batch_size = costs.dtype.type(1) / costs.dtype.type(batch_size)
    step = (inverse_batch_size, learning_rate)
    labels = np.zeros(TILE, np.int64)
    for iteration in range(first, last):
        start = iteration % n_train_batches * batch_size
        cost = costs.dtype.type(0)
        for done in range(0, batch_size, TILE):
            n = min(TILE, batch_size - done)
            _copy_pixels(x, start + done, n, pixel_scale, lowest.x, lowest.in_row_step)
            for i in range(n):
                labels[i] = y[start + done + i]
            for k in range(n_phases):
                phase, layer = program[k, 0], program[k, 1]
                cost += _run(phase, layer, n, labels, kind, step, penalties, *network)
        cost *= inverse_batch_size  # only LOSS returned something
        for k in range(n_phases, program.shape[0]):
            phase, layer = program[k, 0], program[k, 1]
            cost += _run(phase, layer, 0, labels, kind, step, penalties, *network)
        costs[iteration - first] = cost


@njit(**options.CPU_ENTRY)
def _predict(
    x,  # (N, D) uint8 or floatX
    pixel_scale,
    kind,
    program,  # (phases, 2), the forward ones
    conv_table,
    dense_table,
    numbers,
    indices,
    marks,
    predicted,  # (N,) int32, overwritten
):
    network = (conv_table, dense_table, numbers, indices, marks)
    lowest = _conv_layer(*network, 0)
    logits = _dense_layer(*network, dense_table.shape[0] - 1)
    labels = np.zeros(TILE, np.int64)  # not used by these phases, nor are step and penalties
    step = (pixel_scale, pixel_scale)
    penalties = Descent(pixel_scale, pixel_scale, pixel_scale, pixel_scale, pixel_scale)
    for start in range(0, x.shape[0], TILE):
        n = min(TILE, x.shape[0] - start)
        _copy_pixels(x, start, n, pixel_scale, lowest.x, lowest.in_row_step)
        for k in range(program.shape[0]):
            phase, layer = program[k, 0], program[k, 1]
            _run(phase, layer, n, labels, kind, step, penalties, *network)
        for i in range(n):
            row = i * logits.row_step
            predicted[start + i] = first_argmax(logits.h[row : row + logits.n_out])


@njit(**options.CPU_PARALLEL)
def _run(
    phase,
    layer,
    n,  # images of the tile
    labels,  # (T,) int64
    kind,
    step,  # (1 / B, learning rate)
    penalties,
    conv_table,
    dense_table,
    numbers,
    indices,
    marks,
):
    """Run all tasks of a phase for one layer; return the sum, in order, of what they return."""
    n_tasks = _count_tasks(phase, layer, conv_table, dense_table)
    result = np.empty(n_tasks, numbers.dtype)
    for task in prange(n_tasks):
        result[task] = _task(
            phase,
            layer,
            np.int64(task),  # prange counts in uint64
            n,
            labels,
            kind,
            step,
            penalties,
            conv_table,
            dense_table,
            numbers,
            indices,
            marks,
        )
    return ordered_sum(result)


@njit(**options.CPU)
def _count_tasks(phase, layer, conv_table, dense_table):
    if phase == DENSE_FORWARD:
        return dense_table[layer, 3] // LANES
    if phase == DENSE_BACKWARD:
        return (dense_table[layer, 0] + LANES - 1) // LANES
    if phase in (DENSE_GRADIENT, DENSE_UPDATE):
        return (dense_table[layer, 0] + INPUT_BLOCK - 1) // INPUT_BLOCK
    return conv_table[layer, 0] if phase == CONV_UPDATE else CHUNKS


@njit(**options.CPU)
def _task(
    phase,
    layer,
    task,
    n,
    labels,
    kind,
    step,
    penalties,
    conv_table,
    dense_table,
    numbers,
    indices,
    marks,
):
    """Do one task; return its negative log-likelihood (LOSS), its penalty (updates) or 0."""
    network = (conv_table, dense_table, numbers, indices, marks)
    inverse_batch_size, learning_rate = step
    if phase == CONV_UPDATE:
        return _update_filter(task, learning_rate, penalties, _conv_layer(*network, layer))
    if phase in (CONV_FORWARD, CONV_BACKWARD, CONV_GRADIENT):
        conv = _conv_layer(*network, layer)
        for i in range(task * n // CHUNKS, (task + 1) * n // CHUNKS):
            if phase == CONV_FORWARD:
                _convolve_image(i, kind, conv, task)
            elif phase == CONV_BACKWARD:
                _backward_image(i, kind, conv, task)
            else:
                _image_gradient(i, conv, task)
        return numbers.dtype.type(0)
    dense = _dense_layer(*network, layer)
    if phase == DENSE_FORWARD:
        _forward_panel(task * LANES, n, kind, layer + 1 < dense_table.shape[0], dense)
    elif phase == LOSS:
        return _chunk_loss(task, n, labels, inverse_batch_size, dense)
    elif phase == DENSE_BACKWARD:
        _backward_panel(task * LANES, n, kind, dense)
    elif phase == DENSE_GRADIENT:
        _block_gradient(task * INPUT_BLOCK, n, dense)
    else:
        return _update_block(task * INPUT_BLOCK, learning_rate, penalties, dense)
    return numbers.dtype.type(0)


@njit(**options.CPU)
def _copy_pixels(x, start, n, pixel_scale, pixels, row_step):
    for i in range(n):
        row = pixels[i * row_step : i * row_step + x.shape[1]]
        for d in range(x.shape[1]):
            row[d] = x[start + i, d] * pixel_scale


@njit(**options.CPU)
def _multiply(
    x, x_start, position, first, last, tap, begin, end, w, w_start, w_step, out, to, step, panel
):
    """Add products of numbers with vectors, for GROUP rows of ``out`` at a time.

    out[to + q step : + U] += sum_{begin <= t < end} x[x_start + position[q] + tap[t]] times
    w[w_start + t w_step : + U], for q in first..last-1; last - first is a multiple of GROUP. U is
    HALF for each entry of the tuple ``panel``.
    """
    for q in range(first, last, GROUP):
        rows = (
            x_start + element(position, q),
            x_start + element(position, q + 1),
            x_start + element(position, q + 2),
            x_start + element(position, q + 3),
        )
        sums = load_sums(out, to + q * step, step, rows, panel)
        for t in range(begin, end):
            sums = add_outer(x, rows, element(tap, t), w, w_start + t * w_step, sums)
        store_sums(out, to + q * step, step, rows, sums)


@njit(**options.CPU)
def _multiply_maps(x, x_start, position, n_rows, tap, n_taps, w, out, width):
    """Add to out (n_rows, width) what _multiply says, with w (n_taps, width) in the order of tap.

    The maps are taken in panels of three vectors, whose sums and weights fill the registers best,
    and of two where threes do not go up.
    """
    start = 0
    while start < width:
        left = (width - start) // HALF
        n_vectors = 2 if left in (2, 4) else 3
        for begin in range(0, n_taps, TAPS):
            end = min(begin + TAPS, n_taps)
            where = (x, x_start, position, 0, n_rows, tap, begin, end)
            if n_vectors == 3:
                _multiply(*where, w, start, width, out, start, width, THREE)
            else:
                _multiply(*where, w, start, width, out, start, width, TWO)
        start += n_vectors * HALF


@njit(**options.CPU)
def _convolve_image(i, kind, layer, chunk):
    """Overwrite h and is_maximum of image i: convolve, pool, activate, p rows at a time."""
    strip = layer.strip[chunk]
    row_length = layer.out_width * layer.maps
    for row in range(layer.out_height):
        strip[:] = 0
        _multiply_maps(
            layer.x,
            i * layer.in_row_step + row * layer.pool_size * layer.in_step,
            layer.strip_position,
            layer.strip_position.shape[0],
            layer.tap,
            layer.filter_size * layer.run,
            layer.forward_weights,
            strip,
            layer.width,
        )
        _pool(i, row, strip, layer)
        at = i * layer.row_step + row * row_length
        _activate_all(layer.h[at : at + row_length], kind)


@njit(**options.CPU)
def _pool(i, row, strip, layer):
    """Overwrite h with maximum + bias of every square of a row, image i, from its strip.

    is_maximum is overwritten with 1 where the gradient goes. The last vector of a square's or a
    pixel's maps reaches into the next one's first maps; so squares and pixels go first to last and
    maps last to first, for these to be overwritten by what belongs there.
    """
    per_square = layer.pool_size * layer.pool_size
    for column in range(layer.out_width):
        square = row * layer.out_width + column
        to = square * per_square * layer.maps
        for m in range((layer.maps - 1) // HALF * HALF, -1, -HALF):
            first = column * per_square * layer.width + m
            highest = load_half(strip, strip, first)
            for k in range(1, per_square):
                highest = maximum(highest, load_half(strip, strip, first + k * layer.width))
            for k in range(per_square):
                here = load_half(strip, strip, first + k * layer.width)
                store_equal(layer.is_maximum[i], to + k * layer.maps + m, here, highest)
            at = i * layer.row_step + square * layer.maps + m
            store(layer.h, at, add(highest, load_half(strip, layer.bias, m)))
        if layer.first_only:
            _keep_first(layer.is_maximum[i, to : to + per_square * layer.maps], layer.maps)


@njit(**options.CPU)
def _keep_first(mark, maps):
    """Clear all marks (p^2, M) of a map but the first."""
    for m in range(maps):
        found = 0
        for k in range(m, mark.shape[0], maps):
            mark[k] &= found == 0
            found |= mark[k]


@njit(**options.CPU)
def _forward_panel(unit, n, kind, is_hidden, layer):
    """Overwrite h of LANES units from ``unit`` on."""
    n_grouped = _grouped(n)
    bias = layer.bias[unit : unit + LANES]
    for i in range(n_grouped):
        at = i * layer.row_step + unit
        for u in range(LANES):
            layer.h[at + u] = bias[u]
    _multiply(
        layer.x,
        np.int64(0),
        layer.in_position,
        np.int64(0),
        n_grouped,
        layer.unit,
        np.int64(0),
        layer.n_in,
        layer.forward_weights,
        unit * layer.n_rows,
        np.int64(LANES),
        layer.h,
        unit,
        layer.row_step,
        TWO,
    )
    if is_hidden:
        for i in range(n):
            at = i * layer.row_step + unit
            _activate_all(layer.h[at : at + LANES], kind)


@njit(**options.CPU)
def _grouped(n):
    """Return n rounded up to whole groups; rows of a tile beyond n hold numbers of no meaning."""
    return (n + GROUP - 1) // GROUP * GROUP


@njit(**options.CPU)
def _activate_all(h, kind):
    for k in range(h.shape[0]):
        h[k] = activate(h[k], kind)


@njit(**options.CPU)
def _chunk_loss(chunk, n, labels, inverse_batch_size, layer):
    """Overwrite the error of the last layer for a chunk of images; return their NLL."""
    total = layer.h.dtype.type(0)
    for i in range(chunk * n // CHUNKS, (chunk + 1) * n // CHUNKS):
        at = i * layer.row_step
        logits, error = layer.h[at : at + layer.n_out], layer.error[at : at + layer.n_out]
        total += softmax_cross_entropy(logits, labels[i], inverse_batch_size, error)
    return total


@njit(**options.CPU)
def _backward_panel(first, n, kind, layer):
    """Overwrite the error of LANES units of the layer below, from ``first`` on."""
    h, error = layer.x, layer.x_error
    n_grouped = _grouped(n)
    for i in range(n_grouped):
        at = i * layer.in_row_step + first
        error[at : at + LANES] = 0
    _multiply(
        layer.error,
        np.int64(0),
        layer.position,
        np.int64(0),
        n_grouped,
        layer.unit,
        np.int64(0),
        layer.n_out,
        layer.backward_weights,
        first * layer.n_out,
        np.int64(LANES),
        error,
        first,
        layer.in_row_step,
        TWO,
    )
    for i in range(n):
        at = i * layer.in_row_step + first
        _multiply_by_slope(error[at : at + LANES], h[at : at + LANES], kind)


@njit(**options.CPU)
def _multiply_by_slope(error, h, kind):
    for k in range(error.shape[0]):
        error[k] *= activation_slope(h[k], kind)


@njit(**options.CPU)
def _block_gradient(first, n, layer):
    """Add the gradients of INPUT_BLOCK inputs' weights; the first block adds the biases'."""
    for unit in range(0, layer.width, LANES):
        _multiply(
            layer.x,
            np.int64(0),
            layer.unit,
            first,
            min(first + INPUT_BLOCK, layer.n_rows),
            layer.in_position,
            np.int64(0),
            n,
            layer.error,
            unit,
            layer.row_step,
            layer.weights_gradient,
            unit * layer.n_rows,
            np.int64(LANES),
            TWO,
        )
    if first == 0:
        for i in range(n):
            for unit in range(layer.n_out):
                layer.bias_gradient[unit] += layer.error[i * layer.row_step + unit]


@njit(**options.CPU)
def _image_gradient(i, layer, chunk):
    """Add image i's gradients to those of its chunk."""
    n_squares = layer.out_height * layer.out_width
    for m in range(0, layer.maps, HALF):
        total = load_half(layer.error, layer.error, i * layer.row_step + m)
        for square in range(1, n_squares):
            at = i * layer.row_step + square * layer.maps + m
            total = add(total, load_half(layer.error, layer.error, at))
        bias_gradient = layer.bias_gradient[chunk]
        store(bias_gradient, m, add(load_half(bias_gradient, bias_gradient, m), total))
    if layer.is_listed:
        _add_listed(i, layer, chunk)
    else:
        for row in range(layer.out_height):
            _unpool(i, row, layer.strip[chunk], layer)
            _multiply_maps(
                layer.x,
                i * layer.in_row_step + row * layer.pool_size * layer.in_step,
                layer.tap,
                layer.tap.shape[0],
                layer.strip_position,
                layer.out_width * layer.pool_size * layer.pool_size,
                layer.strip[chunk],
                layer.weights_gradient[chunk],
                layer.width,
            )


@njit(**options.CPU)
def _unpool(i, row, strip, layer):
    """Overwrite the strip of a row of squares, image i, with the error of its pixels."""
    per_square, maps = layer.pool_size * layer.pool_size, layer.maps
    for column in range(layer.out_width):
        square = row * layer.out_width + column
        for k in range(per_square):
            to = (column * per_square + k) * layer.width
            for m in range(0, maps, HALF):
                mark = load_half(strip, layer.is_maximum[i], (square * per_square + k) * maps + m)
                error = load_half(strip, layer.error, i * layer.row_step + square * maps + m)
                store(strip, to + m, multiply(mark, error))


@njit(**options.CPU)
def _add_listed(i, layer, chunk):
    """Add image i's gradient of the weights to that of its chunk, map by map."""
    position, value = layer.list_position[chunk], layer.list_value[chunk]
    start, gradient = i * layer.in_row_step, layer.weights_gradient[chunk]
    for m in range(layer.maps):
        count = _list_map(i, m, layer, position, value)
        to = m * layer.vector_tap.shape[0] * LANES
        _add_patches(layer.x, start, position, value, count, layer.vector_tap, gradient, to)


@njit(**options.CPU)
def _list_map(i, m, layer, position, value):
    """List the pixels of map m that get a gradient; return how many.

    position, value: overwritten from the start with where their patches start and the errors.
    """
    per_square = layer.pool_size * layer.pool_size
    is_maximum = layer.is_maximum[i]
    count = 0
    for square in range(layer.out_height * layer.out_width):
        error = element(layer.error, i * layer.row_step + square * layer.maps + m)
        for k in range(square * per_square, (square + 1) * per_square):
            position[np.uint64(count)] = layer.position[k]
            value[np.uint64(count)] = error
            count += element(is_maximum, k * layer.maps + m)
    return count


@njit(**options.CPU)
def _add_patches(x, start, position, value, count, tap, out, to):
    """Add to the vectors ``tap`` of out[to:] the sum of value[k] times patch k of x, k < count.

    Five vectors at a time: their sums stay in registers while the list passes.
    """
    n_vectors = tap.shape[0]
    whole = n_vectors // 5 * 5
    for v in range(0, whole, 5):
        at = to + v * LANES
        t0, t1, t2, t3, t4 = tap[v], tap[v + 1], tap[v + 2], tap[v + 3], tap[v + 4]
        a0 = load(out, at)
        a1 = load(out, at + LANES)
        a2 = load(out, at + 2 * LANES)
        a3 = load(out, at + 3 * LANES)
        a4 = load(out, at + 4 * LANES)
        for k in range(count):
            patch = start + element(position, k)
            g = element(value, k)
            a0 = fma(g, load(x, patch + t0), a0)
            a1 = fma(g, load(x, patch + t1), a1)
            a2 = fma(g, load(x, patch + t2), a2)
            a3 = fma(g, load(x, patch + t3), a3)
            a4 = fma(g, load(x, patch + t4), a4)
        store(out, at, a0)
        store(out, at + LANES, a1)
        store(out, at + 2 * LANES, a2)
        store(out, at + 3 * LANES, a3)
        store(out, at + 4 * LANES, a4)
    for v in range(whole, n_vectors):
        a0 = load(out, to + v * LANES)
        for k in range(count):
            patch = start + element(position, k)
            a0 = fma(element(value, k), load(x, patch + tap[v]), a0)
        store(out, to + v * LANES, a0)


@njit(**options.CPU)
def _backward_image(i, kind, layer, chunk):
    """Overwrite the error of the layer below for image i."""
    h, error = layer.x, layer.x_error
    unit, start = layer.unit[chunk], layer.unit_start[chunk]
    first, last = i * layer.in_row_step, (i + 1) * layer.in_row_step
    error[first:last] = 0
    _list_units(layer.is_maximum[i], layer.maps, unit, start)
    _spread(i, error, first, layer, unit, start)
    _multiply_by_slope(error[first:last], h[first:last], kind)


@njit(**options.CPU)
def _list_units(is_maximum, maps, unit, start):
    """List the maps that get a gradient, pixel by pixel.

    unit: overwritten with their numbers; those of pixel k stand at start[k]..start[k + 1]-1.
    """
    count = 0
    for k in range(start.shape[0] - 1):
        start[k] = count
        for m in range(0, maps, 8):
            count = append_marked(is_maximum, k * maps + m, min(maps - m, 8), m, unit, count)
    start[start.shape[0] - 1] = count


@njit(**options.CPU)
def _spread(i, error, first, layer, unit, start):
    """Add every listed map's error times its weights to the patch it came from.

    error: flat, the image i from ``first`` on. Vectors are stored in the order of the patch: one
    may reach into the next, to which it then adds zeros. Five at a time, as in _add_patches.
    """
    n_vectors = layer.vector_tap.shape[0]
    whole = n_vectors // 5 * 5
    for v in range(0, whole, 5):
        _spread_five(i, error, first, v, layer, unit, start)
    for v in range(whole, n_vectors):
        _spread_one(i, error, first, v, layer, unit, start)


@njit(**options.CPU)
def _spread_five(i, error, first, v, layer, unit, start):
    tap, weights, source = layer.vector_tap, layer.backward_weights, layer.error
    per_square, length = layer.pool_size * layer.pool_size, layer.filter_size * layer.padded_run
    t0, t1, t2, t3, t4 = tap[v], tap[v + 1], tap[v + 2], tap[v + 3], tap[v + 4]
    for pixel in range(layer.position.shape[0]):
        square = i * layer.row_step + pixel // per_square * layer.maps
        at = first + layer.position[pixel]
        a0 = load(error, at + t0)
        a1 = load(error, at + t1)
        a2 = load(error, at + t2)
        a3 = load(error, at + t3)
        a4 = load(error, at + t4)
        for k in range(start[pixel], start[pixel + 1]):
            m = element(unit, k)
            w = m * length + v * LANES
            g = element(source, square + m)
            a0 = fma(g, load(weights, w), a0)
            a1 = fma(g, load(weights, w + LANES), a1)
            a2 = fma(g, load(weights, w + 2 * LANES), a2)
            a3 = fma(g, load(weights, w + 3 * LANES), a3)
            a4 = fma(g, load(weights, w + 4 * LANES), a4)
        store(error, at + t0, a0)
        store(error, at + t1, a1)
        store(error, at + t2, a2)
        store(error, at + t3, a3)
        store(error, at + t4, a4)


@njit(**options.CPU)
def _spread_one(i, error, first, v, layer, unit, start):
    per_square, length = layer.pool_size * layer.pool_size, layer.filter_size * layer.padded_run
    for pixel in range(layer.position.shape[0]):
        square = i * layer.row_step + pixel // per_square * layer.maps
        at = first + layer.position[pixel] + layer.vector_tap[v]
        a0 = load(error, at)
        for k in range(start[pixel], start[pixel + 1]):
            m = element(unit, k)
            vector = load(layer.backward_weights, m * length + v * LANES)
            a0 = fma(element(layer.error, square + m), vector, a0)
        store(error, at, a0)


@njit(**options.CPU)
def _update_filter(m, learning_rate, penalties, layer):
    """Update map m, clear its gradients; return the penalty of the old weights."""
    total = layer.bias.dtype.type(0)
    for i in range(layer.filter_size):
        row = (m * layer.filter_size + i) * layer.padded_run
        for k in range(layer.run):
            weight = layer.backward_weights[row + k]
            total += penalty(weight, penalties)
            forward = (i * layer.run + k) * layer.width + m
            at = row + k if layer.is_listed else forward
            gradient = ordered_sum(layer.weights_gradient[:, at])
            layer.weights_gradient[:, at] = 0
            weight -= learning_rate * (gradient + penalty_gradient(weight, penalties))
            layer.backward_weights[row + k] = weight
            layer.forward_weights[forward] = weight
    layer.bias[m] -= learning_rate * ordered_sum(layer.bias_gradient[:, m])
    layer.bias_gradient[:, m] = 0
    return total


@njit(**options.CPU)
def _update_block(first, learning_rate, penalties, layer):
    """Update the weights of INPUT_BLOCK inputs, clear their gradients; return the old penalty.

    The first block updates the biases.
    """
    last = min(first + INPUT_BLOCK, layer.n_in)
    if first == 0:
        for unit in range(layer.n_out):
            layer.bias[unit] -= learning_rate * layer.bias_gradient[unit]
            layer.bias_gradient[unit] = 0
    if penalties.l1 == 0 and penalties.l2 == 0 and penalties.lp == 0:
        _step_block(first, last, learning_rate, layer)
        return layer.bias.dtype.type(0)
    total = layer.bias.dtype.type(0)
    for unit in range(layer.n_out):
        panel = unit // LANES * layer.n_rows * LANES + unit % LANES
        for d in range(first, last):
            at = panel + d * LANES
            weight = layer.forward_weights[at]
            total += penalty(weight, penalties)
            gradient = layer.weights_gradient[at] + penalty_gradient(weight, penalties)
            weight -= learning_rate * gradient
            layer.forward_weights[at] = weight
            layer.weights_gradient[at] = 0
            layer.backward_weights[(d // LANES * layer.n_out + unit) * LANES + d % LANES] = weight
    return total


@njit(**options.CPU)
def _step_block(first, last, learning_rate, layer):
    """Update the weights of inputs first..last-1 and clear their gradients; no penalties."""
    weights, gradient = layer.forward_weights, layer.weights_gradient
    for unit in range(0, layer.width, LANES):
        for d in range(first, last):
            at = unit * layer.n_rows + d * LANES
            store(weights, at, fma(-learning_rate, load(gradient, at), load(weights, at)))
            store(gradient, at, splat(gradient, 0))
    for unit in range(layer.n_out):
        for d in range(first, last):
            at = (unit // LANES * layer.n_rows + d) * LANES + unit % LANES
            to = (d // LANES * layer.n_out + unit) * LANES + d % LANES
            set_element(layer.backward_weights, to, element(weights, at))
