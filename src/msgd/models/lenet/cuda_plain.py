"""LeNet on CUDA, as plain as CUDA can be: loops over the formulas of ``model.py``.

Several minibatches are trained in one cooperative launch. Each passes through phases, after most of
which the whole grid waits: load (the pixels); every layer forward; loss; the errors of every layer,
from the last to the first, with partial gradients of the filters; update. One thread computes each
sum, in a fixed order: no atomics on floats, and the same bits for any number of blocks. All errors
are known before the first parameter changes.

The arrays of all layers lie in flat arrays, and tables say where each layer's start. Within a layer
the order is that of ``model.py``: (image, map, row, column), C order.

Loops over threads are ``while`` loops: ``range`` with a variable step divides for its count, and
with a dozen such loops in one kernel the registers run out.

Legend, beyond that of ``model.py``: N images in all, n of them together, B of a minibatch, P chunks
of a minibatch. A square is the p x p pixels of a map that pooling reduces to one; a tap is one
of the M_in f^2 weights of a map. Layers are numbered from 0 here, convolution layers and dense
layers each by themselves. Threads lie in two dimensions: ``lane`` counts columns, squares, taps,
units or classes; ``row`` counts images, images times maps, or inputs.
"""

import itertools
from typing import NamedTuple

import numpy as np
from numba import cuda

from msgd.kernels import options
from msgd.kernels.cuda import (
    Images,
    activate,
    activation_slope,
    cost_phase,
    launch_shape,
    penalty,
    penalty_gradient,
    sgd_step,
    softmax_cross_entropy,
)
from msgd.kernels.formulas import ACTIVATIONS, like
from msgd.models.cuda_backend import CudaClassifier
from msgd.models.lenet.model import conv_shapes, dense_sizes

CHUNKS = 32  # P, of a minibatch, each with a filter gradient of its own
PREDICTED_TOGETHER = 500  # images that pass through the layers at a time, at least

# Columns of ``convs`` and of ``denses``, tables with a row per layer: where its numbers start.
FIRST_WEIGHT = 0  # its weights, (M, M_in, f, f) or (n_in, n_out), in ``parameters``
FIRST_BIAS = 1  # its biases, (M,) or (n_out,), in ``parameters``
FIRST_IN = 2  # its input, (n, M_in, h, w) or (n, n_in), in ``h``; its error in ``error``
FIRST_OUT = 3  # its output, (n, M, squares) or (n, n_out), in ``h``; its error in ``error``
# More columns of ``denses``.
N_IN = 4  # n_in, units of the layer before it
N_OUT = 5  # n_out, its own units
# More columns of ``convs``: sizes.
M_IN = 4  # M_in, maps of its input
IN_HEIGHT = 5  # h, rows of a map of its input
IN_WIDTH = 6  # w, columns of a map of its input
IN_SIZE = 7  # numbers of an image of its input: M_in h w
M = 8  # its own maps
F = 9  # f, rows and columns of a filter
TAPS = 10  # weights of a map: M_in f^2
SQUARES = 11  # squares of a map, so pixels after pooling
AREA = 12  # pixels of a square: p^2
HEIGHT = 13  # rows of a map before pooling that lie in squares
WIDTH = 14  # columns of a map before pooling that lie in squares
# More columns of ``convs``: where its numbers start in arrays that dense layers do without.
FIRST_PIXEL = 15  # its convolution, (n, M, squares, area), in ``pixels``
FIRST_PARTIAL = 16  # its gradients, of the weights and then the biases, in a row of ``partial``
FIRST_TAP = 17  # its taps in ``positions``, (M_in, f, f): which number of a patch a weight meets
FIRST_CORNER = 18  # its corners there, (squares, area): where a pixel's patch starts in an image
FIRST_ORDER = 19  # its order there, (height, width): which number of ``pixels`` a pixel is
CONV_COLUMNS, DENSE_COLUMNS = FIRST_ORDER + 1, N_OUT + 1

# Columns of ``matrices``, with a row per layer of either kind: the weights as the penalty reads
# them. They start at FIRST_WEIGHT.
N_ROWS = 1  # M or n_in
N_COLUMNS = 2  # M_in f^2 or n_out
FIRST_ROW = 3  # where the penalties of the rows start in ``row_penalty``

# Columns of ``program``, with a row per phase of a minibatch.
PHASE = 0  # one of those below
LAYER = 1  # number of the layer, among the convolution layers, the dense ones, or all
IMAGES = 2  # how many: B
GRID_WAITS = 3  # 1 if the grid waits after it

# The phases of a minibatch, in order.
PENALTY = 0  # of each row of the weights
LOAD = 1  # pixels into h
CONV_FORWARD = 2
DENSE_FORWARD = 3
LOSS = 4  # and the error of the last layer
DENSE_ERROR = 5  # of the layer before a dense layer
UNPOOL = 6  # errors after pooling to errors before it
CONV_GRADIENT = 7  # of each chunk of the minibatch
CONV_ERROR = 8  # of the layer before a convolution layer
COST = 9
CONV_UPDATE = 10
DENSE_UPDATE = 11


class Network(NamedTuple):
    """All layers with their parameters."""

    convs: object  # (K, CONV_COLUMNS) int64
    denses: object  # (L - K, DENSE_COLUMNS) int64
    positions: object  # flat int64: taps, corners and order of each convolution layer in turn
    parameters: object  # flat floatX: weights and biases of each layer in turn


class Activations(NamedTuple):
    """What n images have at the units of each layer in turn, at FIRST_IN and FIRST_OUT."""

    h: object  # flat floatX: pixels, then the activations of each layer; the logits of the last
    error: object  # flat floatX: the derivatives of the cost by what is activated
    pixels: object  # flat floatX: convolutions before pooling, square by square; then their errors


class Backend(CudaClassifier):
    """The plain CUDA twin; see msgd.models.interface.Backend."""

    def keep_parameters(self, parameters):
        """See msgd.models.cuda_backend.CudaBackend."""
        self.shapes = {name: array.shape for name, array in parameters.items()}
        flat = np.concatenate([array.ravel() for array in parameters.values()])
        self.parameters = cuda.to_device(flat)

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        flat = self.parameters.copy_to_host()
        parameters = {}
        start = 0
        for name, shape in self.shapes.items():
            stop = start + int(np.prod(shape))
            parameters[name] = flat[start:stop].reshape(shape).copy()
            start = stop
        return parameters

    def allocate(self):
        """Make the tables and the scratch arrays of training and prediction."""
        settings, dataset = self.settings, self.shared.dataset
        shapes = conv_shapes(dataset.image_shape, settings)
        sizes = dense_sizes(shapes, settings, dataset.n_classes)
        self.n_images = max(self.batch_size, PREDICTED_TOGETHER)
        tables, used = _tables(shapes, sizes, self.n_images)
        self.convs, self.denses, self.matrices, self.positions = map(cuda.to_device, tables)
        self.n_convs, self.n_denses = len(tables[0]), len(tables[1])
        self.program = cuda.to_device(_program(self.n_convs, self.n_denses, self.batch_size))
        self.h = cuda.device_array(used["h"], self.float_x)
        self.error = cuda.device_array(used["h"], self.float_x)
        self.pixels = cuda.device_array(used["pixels"], self.float_x)
        self.partial = cuda.device_array((CHUNKS, used["partial"]), self.float_x)
        self.row_penalty = cuda.device_array(used["row_penalty"], self.float_x)
        self.example_nll = cuda.device_array(self.batch_size, self.float_x)
        self.kind = ACTIVATIONS[settings["activation"]]
        self.first_only = int(settings["maxpool_ties"] == "first")
        self.n_rows = self.batch_size * max(shape.out_maps for shape in shapes)

    def launch_train(self, x, y, minibatch, costs):
        """Train len(costs) minibatches of x and y from number ``minibatch`` on."""
        blocks, threads = launch_shape(self.n_rows)
        _train[blocks, threads, self.shared.stream](
            x,
            y,
            self.pixel_scale,
            self.descent,
            minibatch,
            self.kind,
            self.first_only,
            self.program,
            self.matrices,
            *self._network(),
            *self._activations(),
            self.partial,
            self.row_penalty,
            self.example_nll,
            costs,
        )

    def launch_logits(self, x, logits):
        """Overwrite logits (n, C) with those of the images x (n, D), some images at a time."""
        for start in range(0, len(x), self.n_images):
            stop = min(start + self.n_images, len(x))
            self._launch_forward(x[start:stop], logits[start:stop])

    def _launch_forward(self, x, logits):
        n = len(x)
        shape = launch_shape(n)
        _load[shape](x, self.pixel_scale, self.h)
        network, activations = self._network(), self._activations()
        for number in range(self.n_convs):
            _convolve[launch_shape(self.n_rows)](n, number, self.kind, *network, *activations)
        for number in range(self.n_denses):
            is_hidden = int(number + 1 < self.n_denses)
            _dense[shape](n, number, self.kind, is_hidden, *network, *activations)
        _copy_logits[shape](self.denses, self.h, logits)

    def _network(self):
        return Network(self.convs, self.denses, self.positions, self.parameters)

    def _activations(self):
        return Activations(self.h, self.error, self.pixels)


def _tables(shapes, sizes, n_images):
    """Return [convs, denses, matrices, positions] and the lengths of the flat arrays.

    shapes: the ConvShape of every convolution layer; sizes: [n_in, ..., C], the units below,
    between and at the end of the dense layers; n_images: how many pass through the layers together.
    """
    used = {"parameters": 0, "pixels": 0, "partial": 0, "row_penalty": 0, "positions": 0}
    used["h"] = n_images * shapes[0].in_height * shapes[0].in_width

    def reserve(array, size):
        """Return where the next ``size`` numbers of a flat array start."""
        used[array] += int(size)
        return used[array] - int(size)

    first_in = 0
    convs, denses, matrices, positions = [], [], [], []
    for shape in shapes:
        conv, lists = _conv_row(shape), _position_lists(shape)
        n_weights, n_outputs = conv[M] * conv[TAPS], n_images * conv[M] * conv[SQUARES]
        conv[FIRST_WEIGHT] = reserve("parameters", n_weights)
        conv[FIRST_BIAS] = reserve("parameters", conv[M])
        conv[FIRST_IN] = first_in
        conv[FIRST_OUT] = first_in = reserve("h", n_outputs)
        conv[FIRST_PIXEL] = reserve("pixels", n_outputs * conv[AREA])
        conv[FIRST_PARTIAL] = reserve("partial", n_weights + conv[M])
        for column, numbers in zip((FIRST_TAP, FIRST_CORNER, FIRST_ORDER), lists, strict=True):
            conv[column] = reserve("positions", len(numbers))
        convs.append(conv)
        positions += lists
        row = conv[FIRST_WEIGHT], conv[M], conv[TAPS], reserve("row_penalty", conv[M])
        matrices.append(row)
    for n_in, n_out in itertools.pairwise(sizes):
        dense = np.zeros(DENSE_COLUMNS, np.int64)
        dense[N_IN], dense[N_OUT] = n_in, n_out
        dense[FIRST_WEIGHT] = reserve("parameters", n_in * n_out)
        dense[FIRST_BIAS] = reserve("parameters", n_out)
        dense[FIRST_IN] = first_in
        dense[FIRST_OUT] = first_in = reserve("h", n_images * n_out)
        denses.append(dense)
        matrices.append((dense[FIRST_WEIGHT], n_in, n_out, reserve("row_penalty", n_in)))
    tables = [np.array(rows, np.int64) for rows in (convs, denses, matrices)]
    return [*tables, np.concatenate(positions)], used


def _conv_row(shape):
    """Return a row of ``convs`` with the sizes of a layer, from its ConvShape; the rest is 0."""
    conv = np.zeros(CONV_COLUMNS, np.int64)
    M_in, h, w, conv[M], f, p = shape  # noqa: N806
    conv[M_IN], conv[IN_HEIGHT], conv[IN_WIDTH], conv[IN_SIZE] = M_in, h, w, M_in * h * w
    conv[F], conv[TAPS] = f, M_in * f * f
    conv[SQUARES], conv[AREA] = shape.out_height * shape.out_width, p * p
    conv[HEIGHT], conv[WIDTH] = shape.out_height * p, shape.out_width * p
    return conv


def _position_lists(shape):
    """Return the taps, corners and order of a convolution layer, each flat int64.

    shape: ConvShape. A patch is what one pixel of the convolution is computed from: (M_in, f, f)
    numbers of the input. Taps count from its corner, corners from the first number of the image.
    """
    M_in, h, w, _, f, p = shape  # noqa: N806
    k, u, v = np.ogrid[:M_in, :f, :f]  # the filter runs backwards over the patch
    taps = (k * h + f - 1 - u) * w + f - 1 - v
    row, column = np.mgrid[: shape.out_height * p, : shape.out_width * p]

    def by_square(table):
        squares = table.reshape(shape.out_height, p, shape.out_width, p)
        return squares.transpose(0, 2, 1, 3).ravel()

    corners = by_square(row * w + column)
    order = np.argsort(by_square(row * shape.out_width * p + column))
    return [table.ravel().astype(np.int64) for table in (taps, corners, order)]


def _program(n_convs, n_denses, batch_size):
    """Return the phases of a minibatch, (phases, 4) int64, with the columns PHASE, LAYER, ...

    The kernel reads B (and the filter size, and so on) from memory where it needs it: the compiler
    would compute all that depends on an argument before the loops, and registers run out. The grid
    need not wait after a phase whose results the next one does not read.
    """
    convs, denses = range(n_convs), range(n_denses)
    program = [(PENALTY, layer, 0) for layer in range(n_convs + n_denses)]
    program += [(LOAD, 0, 1)]
    program += [(CONV_FORWARD, layer, 1) for layer in convs]
    program += [(DENSE_FORWARD, layer, 1) for layer in denses]
    program += [(LOSS, 0, 1)]
    program += [(DENSE_ERROR, layer, 1) for layer in reversed(denses)]
    for layer in reversed(convs):
        program += [(UNPOOL, layer, 1), (CONV_GRADIENT, layer, layer == 0)]
        program += [(CONV_ERROR, layer, 1)] if layer > 0 else []
    program += [(COST, 0, 0)]
    program += [(CONV_UPDATE, layer, 0) for layer in convs]
    program += [(DENSE_UPDATE, layer, layer == n_denses - 1) for layer in denses]
    rows = [(phase, layer, batch_size, waits) for phase, layer, waits in program]
    return np.array(rows, np.int64)


@cuda.jit(device=True, **options.CUDA)
def _load_phase(images, h):
    """Overwrite the beginning of h, flat (n, D) floatX, with pixels: one thread per pixel.

    images: msgd.kernels.cuda.Images, n of them.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    n_features = images.x.shape[1]
    i = row
    while i < images.n:
        d = lane
        while d < n_features:
            h[i * n_features + d] = images.x[images.start + i, d] * images.pixel_scale
            d += lanes
        i += rows


@cuda.jit(device=True, **options.CUDA)
def _conv_forward_phase(n, number, kind, network, activations):
    """Convolve, pool and activate n images: one thread per square of a map.

    Overwrites the layer's part of activations.pixels with the convolution and its output in
    activations.h. number: of the convolution layer; kind: int, of the activation (ACTIVATIONS);
    network: Network; activations: Activations.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    conv = network.convs[number]
    image_map = row
    while image_map < n * conv[M]:
        i = image_map // conv[M]
        m = image_map - i * conv[M]
        square = lane
        while square < conv[SQUARES]:
            at = image_map * conv[SQUARES] + square
            highest = _convolve_square(conv, i, m, square, at, network, activations)
            bias = network.parameters[conv[FIRST_BIAS] + m]
            activations.h[conv[FIRST_OUT] + at] = activate(highest + bias, kind)
            square += lanes
        image_map += rows


@cuda.jit(device=True, **options.CUDA)
def _convolve_square(conv, i, m, square, at, network, activations):
    """Return the maximum, floatX, of map m's convolution over a square of image i.

    conv: a row of network.convs; at: the number of the square among those of all images and maps.
    Overwrites the square's part of activations.pixels with the convolution.
    """
    positions, parameters, h = network.positions, network.parameters, activations.h
    first = conv[FIRST_PIXEL] + at * conv[AREA]
    highest = like(h[0], 0)
    for k in range(conv[AREA]):
        corner_at = conv[FIRST_CORNER] + square * conv[AREA] + k
        corner = conv[FIRST_IN] + i * conv[IN_SIZE] + positions[corner_at]
        first_weight = conv[FIRST_WEIGHT] + m * conv[TAPS]
        total = like(h[0], 0)
        for tap in range(conv[TAPS]):
            total += parameters[first_weight + tap] * h[corner + positions[conv[FIRST_TAP] + tap]]
        activations.pixels[first + k] = total
        if k == 0 or total > highest:
            highest = total
    return highest


@cuda.jit(device=True, **options.CUDA)
def _dense_forward_phase(n, number, kind, is_hidden, network, activations):
    """Overwrite a dense layer's output in activations.h for n images: one thread per unit.

    number: of the dense layer; kind: int, of the activation (ACTIVATIONS), which a layer that is
    not hidden does without; network: Network; activations: Activations.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    dense, parameters, h = network.denses[number], network.parameters, activations.h
    n_in, n_out = dense[N_IN], dense[N_OUT]
    i = row
    while i < n:
        u = lane
        while u < n_out:
            total = parameters[dense[FIRST_BIAS] + u]
            for d in range(n_in):
                weight = parameters[dense[FIRST_WEIGHT] + d * n_out + u]
                total += h[dense[FIRST_IN] + i * n_in + d] * weight
            if is_hidden:
                total = activate(total, kind)
            h[dense[FIRST_OUT] + i * n_out + u] = total
            u += lanes
        i += rows


@cuda.jit(device=True, **options.CUDA)
def _loss_phase(y, start, n, inverse_batch_size, network, activations, example_nll):
    """Compute the loss of n = B images and its gradient: one thread per image.

    y: (N,) int32, the labels, whose y[start : start + n] are used; inverse_batch_size: 1/B, floatX;
    network: Network; activations: Activations, whose error of the last layer is overwritten;
    example_nll: (B,) floatX, overwritten with the negative log-likelihood of each label.
    """
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    dense = network.denses[network.denses.shape[0] - 1]
    if lane == 0:
        i = row
        while i < n:
            first = dense[FIRST_OUT] + i * dense[N_OUT]
            last = first + dense[N_OUT]
            logits, error = activations.h[first:last], activations.error[first:last]
            example_nll[i] = softmax_cross_entropy(logits, y[start + i], inverse_batch_size, error)
            i += rows


@cuda.jit(device=True, **options.CUDA)
def _dense_error_phase(n, number, kind, network, activations):
    """Overwrite activations.error below a dense layer for n images: one thread per unit below.

    number: of the dense layer; kind: int, of the activation below (ACTIVATIONS); network: Network;
    activations: Activations.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    dense, h, error = network.denses[number], activations.h, activations.error
    n_in, n_out = dense[N_IN], dense[N_OUT]
    i = row
    while i < n:
        d = lane
        while d < n_in:
            total = like(network.parameters[0], 0)
            for u in range(n_out):
                weight = network.parameters[dense[FIRST_WEIGHT] + d * n_out + u]
                total += error[dense[FIRST_OUT] + i * n_out + u] * weight
            at = dense[FIRST_IN] + i * n_in + d
            error[at] = total * activation_slope(h[at], kind)
            d += lanes
        i += rows


@cuda.jit(device=True, **options.CUDA)
def _unpool_phase(n, number, first_only, network, activations):
    """Turn a layer's part of activations.pixels into errors, for n images: one thread per square.

    A pixel gets the square's error, of activations.error, where it is the maximum and 0 elsewhere.
    number: of the convolution layer; first_only: see _unpool_square; network: Network; activations:
    Activations.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    conv = network.convs[number]
    image_map = row
    while image_map < n * conv[M]:
        square = lane
        while square < conv[SQUARES]:
            at = image_map * conv[SQUARES] + square
            first = conv[FIRST_PIXEL] + at * conv[AREA]
            error = activations.error[conv[FIRST_OUT] + at]
            _unpool_square(first, conv[AREA], first_only, error, activations.pixels)
            square += lanes
        image_map += rows


@cuda.jit(device=True, **options.CUDA)
def _unpool_square(first, area, first_only, error, pixels):
    """Overwrite pixels[first : first + area] with ``error`` at the maximum and 0 elsewhere.

    first_only: 1 if of several equal maxima only the first gets the error, 0 if all do; error:
    floatX; pixels: flat floatX.
    """
    highest = pixels[first]
    for k in range(first + 1, first + area):
        if pixels[k] > highest:
            highest = pixels[k]
    found = 0
    for k in range(first, first + area):
        if pixels[k] == highest and (found == 0 or first_only == 0):
            pixels[k] = error
            found = 1
        else:
            pixels[k] = like(error, 0)


@cuda.jit(device=True, **options.CUDA)
def _conv_error_phase(n, number, kind, network, activations):
    """Overwrite activations.error below a convolution layer for n images: one thread per number.

    number: of the convolution layer, whose activations.pixels are errors already; kind: int, of the
    activation below (ACTIVATIONS); network: Network; activations: Activations.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    conv, h = network.convs[number], activations.h
    image_map = row
    while image_map < n * conv[M_IN]:
        i = image_map // conv[M_IN]
        k = image_map - i * conv[M_IN]
        for r in range(conv[IN_HEIGHT]):
            c = lane
            while c < conv[IN_WIDTH]:
                total = _sum_of_errors(conv, i, k, r, c, network, activations.pixels)
                at = conv[FIRST_IN] + (image_map * conv[IN_HEIGHT] + r) * conv[IN_WIDTH] + c
                activations.error[at] = total * activation_slope(h[at], kind)
                c += lanes
        image_map += rows


@cuda.jit(device=True, **options.CUDA)
def _sum_of_errors(conv, i, k, r, c, network, pixels):
    """Return the sum, floatX, of weight times error over all patches of image i with (k, r, c).

    conv: a row of network.convs; k, r, c: map, row and column of a number of the input; pixels:
    flat floatX, the errors of the convolution.
    """
    f, width = conv[F], conv[WIDTH]
    total = like(network.parameters[0], 0)
    for m in range(conv[M]):
        first = conv[FIRST_PIXEL] + (i * conv[M] + m) * conv[HEIGHT] * width
        # The filter runs backwards: weight f-1-a, f-1-b belongs to the patch's row a, column b.
        last = conv[FIRST_WEIGHT] + (m * conv[M_IN] + k + 1) * f * f - 1
        for q in range(max(r - f + 1, 0), min(r + 1, conv[HEIGHT])):
            weight = last - (r - q) * f - c
            for s in range(max(c - f + 1, 0), min(c + 1, width)):
                pixel = first + network.positions[conv[FIRST_ORDER] + q * width + s]
                total += network.parameters[weight + s] * pixels[pixel]
    return total


@cuda.jit(device=True, **options.CUDA)
def _conv_gradient_phase(n, number, network, activations, partial):
    """Overwrite a layer's columns of partial (P, filters and biases of all layers) floatX.

    One thread per chunk of the n images and parameter sums over the chunk's images and the map's
    pixels. number: of the convolution layer, whose activations.pixels are errors already; network:
    Network; activations: Activations.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    conv = network.convs[number]
    chunk_map = row
    while chunk_map < CHUNKS * conv[M]:
        chunk = chunk_map // conv[M]
        m = chunk_map - chunk * conv[M]
        first, last = chunk * n // CHUNKS, (chunk + 1) * n // CHUNKS
        tap = lane
        while tap < conv[TAPS]:
            gradient = _filter_gradient(conv, first, last, m, tap, network.positions, activations)
            partial[chunk, conv[FIRST_PARTIAL] + m * conv[TAPS] + tap] = gradient
            tap += lanes
        if lane == 0:
            at = conv[FIRST_PARTIAL] + conv[M] * conv[TAPS] + m
            partial[chunk, at] = _bias_gradient(conv, first, last, m, activations.error)
        chunk_map += rows


@cuda.jit(device=True, **options.CUDA)
def _filter_gradient(conv, first, last, m, tap, positions, activations):
    """Return the gradient, floatX, of weight ``tap`` of map m over images first..last-1.

    conv: a row of Network.convs; positions: see Network; activations: Activations.
    """
    h, pixels = activations.h, activations.pixels
    n_pixels = conv[SQUARES] * conv[AREA]
    total = like(h[0], 0)
    for i in range(first, last):
        at = conv[FIRST_PIXEL] + (i * conv[M] + m) * n_pixels
        corner = conv[FIRST_IN] + i * conv[IN_SIZE] + positions[conv[FIRST_TAP] + tap]
        for k in range(n_pixels):
            total += pixels[at + k] * h[corner + positions[conv[FIRST_CORNER] + k]]
    return total


@cuda.jit(device=True, **options.CUDA)
def _bias_gradient(conv, first, last, m, error):
    """Return the gradient, floatX, of the bias of map m over images first..last-1.

    conv: a row of Network.convs; error: flat floatX, see Activations.
    """
    total = like(error[0], 0)
    for i in range(first, last):
        at = conv[FIRST_OUT] + (i * conv[M] + m) * conv[SQUARES]
        for k in range(at, at + conv[SQUARES]):
            total += error[k]
    return total


@cuda.jit(device=True, **options.CUDA)
def _penalty_phase(number, descent, matrices, parameters, row_penalty):
    """Overwrite a layer's part of row_penalty, floatX: one thread per row of its weights.

    number: of the layer; descent: msgd.kernels.arguments.Descent; matrices: (L, 4) int64;
    parameters: flat floatX.
    """
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    matrix = matrices[number]
    if lane == 0:
        r = row
        while r < matrix[N_ROWS]:
            total = like(descent.rate, 0)
            first = matrix[FIRST_WEIGHT] + r * matrix[N_COLUMNS]
            for w in range(first, first + matrix[N_COLUMNS]):
                total += penalty(parameters[w], descent)
            row_penalty[matrix[FIRST_ROW] + r] = total
            r += rows


@cuda.jit(device=True, **options.CUDA)
def _conv_update_phase(number, descent, network, partial):
    """Change a convolution layer's parameters by a step of SGD: one thread per parameter.

    Each adds the gradients of the P chunks, partial (P, ...) floatX, in order. number: of the
    convolution layer; descent: msgd.kernels.arguments.Descent; network: Network.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    conv, parameters = network.convs[number], network.parameters
    n_columns = conv[TAPS]
    n_weights = conv[M] * n_columns
    m = row
    while m < conv[M]:
        # The last column of a map is its bias, which stands behind all weights.
        column = lane
        while column < n_columns + 1:
            is_weight = column < n_columns
            k = m * n_columns + column if is_weight else n_weights + m
            gradient = partial[0, conv[FIRST_PARTIAL] + k]
            for chunk in range(1, CHUNKS):
                gradient += partial[chunk, conv[FIRST_PARTIAL] + k]
            old = parameters[conv[FIRST_WEIGHT] + k]
            if is_weight:
                gradient += penalty_gradient(old, descent)
            parameters[conv[FIRST_WEIGHT] + k] = sgd_step(old, gradient, descent)
            column += lanes
        m += rows


@cuda.jit(device=True, **options.CUDA)
def _dense_update_phase(n, number, descent, network, activations):
    """Change a dense layer's parameters by a step of SGD: one thread per parameter.

    Each sums its gradient over the n = B images in order. number: of the dense layer; descent:
    msgd.kernels.arguments.Descent; network: Network; activations: Activations. Row n_in of the grid
    is the bias.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    dense, parameters = network.denses[number], network.parameters
    h, error = activations.h, activations.error
    n_in, n_out = dense[N_IN], dense[N_OUT]
    d = row
    while d < n_in + 1:
        u = lane
        while u < n_out:
            gradient = like(descent.rate, 0)
            if d < n_in:
                for i in range(n):
                    e = error[dense[FIRST_OUT] + i * n_out + u]
                    gradient += h[dense[FIRST_IN] + i * n_in + d] * e
                w = dense[FIRST_WEIGHT] + d * n_out + u
                gradient += penalty_gradient(parameters[w], descent)
                parameters[w] = sgd_step(parameters[w], gradient, descent)
            else:
                for i in range(n):
                    gradient += error[dense[FIRST_OUT] + i * n_out + u]
                unit = dense[FIRST_BIAS] + u
                parameters[unit] = sgd_step(parameters[unit], gradient, descent)
            u += lanes
        d += rows


@cuda.jit(**options.CUDA_ENTRY)
def _train(
    x,  # (N, D) uint8 or floatX
    y,  # (N,) int32
    pixel_scale,  # floatX, what a stored pixel is multiplied by
    descent,  # msgd.kernels.arguments.Descent
    minibatch,  # number of the first one
    kind,  # of activation, see ACTIVATIONS
    first_only,  # 1: of tied maxima only the first gets the gradient
    program,  # (phases, 4) int64
    matrices,  # (L, 4) int64
    convs,  # (K, CONV_COLUMNS) int64
    denses,  # (L - K, DENSE_COLUMNS) int64
    positions,  # flat int64, see Network
    parameters,  # flat floatX, changed
    h,  # flat floatX, scratch; see Activations
    error,  # flat floatX, scratch
    pixels,  # flat floatX, scratch
    partial,  # (P, filters and their biases) floatX, scratch
    row_penalty,  # (rows of all weights,) floatX, scratch
    example_nll,  # (B,) floatX, scratch
    costs,  # floatX, one per minibatch, overwritten
):
    """Train one minibatch after the other; write the cost of each before its update."""
    grid = cuda.cg.this_grid()
    batch_size = example_nll.shape[0]
    inverse_batch_size = like(pixel_scale, 1) / like(pixel_scale, batch_size)
    network = Network(convs, denses, positions, parameters)
    activations = Activations(h, error, pixels)
    for step in range(costs.shape[0]):
        start = (minibatch + step) * batch_size
        for k in range(program.shape[0]):
            phase, layer, n = program[k, PHASE], program[k, LAYER], program[k, IMAGES]
            if phase == PENALTY:
                _penalty_phase(layer, descent, matrices, parameters, row_penalty)
            elif phase == LOAD:
                _load_phase(Images(x, start, n, pixel_scale), h)
            elif phase == CONV_FORWARD:
                _conv_forward_phase(n, layer, kind, network, activations)
            elif phase == DENSE_FORWARD:
                is_hidden = layer + 1 < denses.shape[0]
                _dense_forward_phase(n, layer, kind, is_hidden, network, activations)
            elif phase == LOSS:
                _loss_phase(y, start, n, inverse_batch_size, network, activations, example_nll)
            elif phase == DENSE_ERROR:
                _dense_error_phase(n, layer, kind, network, activations)
            elif phase == UNPOOL:
                _unpool_phase(n, layer, first_only, network, activations)
            elif phase == CONV_GRADIENT:
                _conv_gradient_phase(n, layer, network, activations, partial)
            elif phase == CONV_ERROR:
                _conv_error_phase(n, layer, kind, network, activations)
            elif phase == CONV_UPDATE:
                _conv_update_phase(layer, descent, network, partial)
            elif phase == DENSE_UPDATE:
                _dense_update_phase(n, layer, descent, network, activations)
            elif phase == COST:
                cost_phase(descent, inverse_batch_size, example_nll, row_penalty, costs, step)
            if program[k, GRID_WAITS]:
                grid.sync()


@cuda.jit(**options.CUDA_ENTRY)
def _load(x, pixel_scale, h):
    """Overwrite the beginning of h, flat (n, D) floatX, with the pixels of all images of x.

    x: (n, D) uint8 or floatX; pixel_scale: floatX.
    """
    _load_phase(Images(x, 0, x.shape[0], pixel_scale), h)


@cuda.jit(**options.CUDA_ENTRY)
def _convolve(n, number, kind, convs, denses, positions, parameters, h, error, pixels):
    """Overwrite the output in h, flat floatX, of a convolution layer for n images.

    number: of the layer; kind: int, of the activation; convs, denses, positions, parameters: see
    Network; h, error, pixels: see Activations, of which pixels are overwritten too.
    """
    network = Network(convs, denses, positions, parameters)
    _conv_forward_phase(n, number, kind, network, Activations(h, error, pixels))


@cuda.jit(**options.CUDA_ENTRY)
def _dense(n, number, kind, is_hidden, convs, denses, positions, parameters, h, error, pixels):
    """Overwrite the output in h, flat floatX, of a dense layer for n images.

    number: of the layer; kind: int, of the activation of a layer that is_hidden; convs, denses,
    positions, parameters: see Network; h, error, pixels: see Activations.
    """
    network = Network(convs, denses, positions, parameters)
    _dense_forward_phase(n, number, kind, is_hidden, network, Activations(h, error, pixels))


@cuda.jit(**options.CUDA_ENTRY)
def _copy_logits(denses, h, logits):
    """Overwrite logits (n, C) floatX with the last layer's output in h, flat floatX.

    denses: (L - K, DENSE_COLUMNS) int64.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    first = denses[denses.shape[0] - 1, FIRST_OUT]
    i = row
    while i < logits.shape[0]:
        c = lane
        while c < logits.shape[1]:
            logits[i, c] = h[first + i * logits.shape[1] + c]
            c += lanes
        i += rows
