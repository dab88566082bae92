"""LeNet on CUDA: loops over the formulas of ``model.py``.

A span of minibatches is one cooperative launch. Each minibatch passes through phases, after each of
which the whole grid waits: pixels; every layer forward; loss; the errors of every layer, from the
last to the first; partial gradients of the filters; update. Every sum is taken by one thread in a
fixed order: no atomics on floats, and the same bits for any number of blocks. All errors are known
before the first parameter changes.

Activations of all layers lie in one flat array ``h``, their errors in ``error``, the parameters in
``parameters``, the convolutions before pooling in ``pixels``; tables say where each layer starts.
Within a layer the order is that of ``model.py``: (image, map, row, column), C order.

Threads lie in two dimensions: x counts columns, units or classes; y counts images, or images times
maps. Loops over threads are ``while`` loops: ``range`` with a variable step divides for its count,
and with a dozen such loops in one kernel the registers run out.

Legend, beyond that of ``model.py``: B images of a minibatch, P chunks of it.
"""

import itertools

import numpy as np
from numba import cuda

from msgd.kernels import options
from msgd.kernels.cuda import (
    activate,
    activation_slope,
    launch_shape,
    ordered_sum,
    penalty,
    penalty_gradient,
    softmax_cross_entropy,
)
from msgd.kernels.formulas import ACTIVATIONS, like
from msgd.models.cuda_backend import CudaBackend
from msgd.models.lenet.model import conv_shapes, dense_sizes

CHUNKS = 32  # of a minibatch, each with a filter gradient of its own
PREDICTED_TOGETHER = 500  # images that pass through the layers at a time, at least

# Columns of conv_table: sizes (SQUARES of AREA pixels in a map; TAPS numbers in a patch), then
# where the layer starts in the flat arrays, the last three in ``index``:
# TAP: where the input of each weight is, counted from the patch's corner
# POSITION: where the patch of each pixel has its corner, in the order of ``pixels``
# ORDER: the place in ``pixels`` of each pixel of a map, row by row
IN_MAPS, IN_HEIGHT, IN_WIDTH, IN_SIZE, MAPS, FILTER, TAPS = range(7)
SQUARES, AREA, HEIGHT, WIDTH = range(7, 11)
CONV_WEIGHTS, CONV_BIAS, CONV_IN, CONV_OUT, PIXELS, PARTIAL, TAP, POSITION, ORDER = range(11, 20)
# Columns of dense_table.
N_IN, N_OUT, WEIGHTS, BIAS, IN, OUT = range(6)
# Columns of penalty_table, with a row per layer: where its weights start, as a matrix of so many
# rows and columns, and where the penalties of its rows go.
FIRST, N_ROWS, N_COLUMNS, FIRST_ROW = range(4)

# The phases, in the order a minibatch meets them.
LOAD, PENALTY, CONV_FORWARD, DENSE_FORWARD, LOSS, DENSE_ERROR = range(6)
UNPOOL, PARTIAL_GRADIENT, CONV_ERROR, CONV_UPDATE, DENSE_UPDATE, COST = range(6, 12)


class Backend(CudaBackend):
    """The CUDA twin; see msgd.models.interface.Backend."""

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
        convs = conv_shapes(dataset.image_shape, settings)
        sizes = dense_sizes(convs, settings, dataset.n_classes)
        self.n_images = max(self.batch_size, PREDICTED_TOGETHER)
        tables, used = _tables(convs, sizes, self.n_images)
        self.conv_table, self.dense_table, self.penalty_table, self.index = map(
            cuda.to_device, tables
        )
        self.n_convs, self.n_denses = len(tables[0]), len(tables[1])
        self.program = cuda.to_device(_program(self.n_convs, self.n_denses, self.batch_size))
        self.h = cuda.device_array(used["h"], self.float_x)
        self.error = cuda.device_array(used["h"], self.float_x)
        self.pixels = cuda.device_array(used["pixels"], self.float_x)
        self.partial = cuda.device_array((CHUNKS, used["partial"]), self.float_x)
        self.row_penalty = cuda.device_array(used["penalty"], self.float_x)
        self.example_nll = cuda.device_array(self.batch_size, self.float_x)
        self.kind = ACTIVATIONS[settings["activation"]]
        self.first_only = int(settings["maxpool_ties"] == "first")
        self.n_rows = self.batch_size * max(shape.out_maps for shape in convs)

    def launch_train(self, x, y, minibatch, costs):
        """Train len(costs) minibatches of x and y from number ``minibatch`` on."""
        blocks, threads = launch_shape(self.n_rows)
        _train[blocks, threads, self.shared.stream](
            x,
            y,
            self.pixel_scale,
            self.batch_size,
            self.learning_rate,
            self.penalties,
            minibatch,
            self.kind,
            self.first_only,
            self.program,
            self.penalty_table,
            self.conv_table,
            self.dense_table,
            self.index,
            self.parameters,
            self.h,
            self.error,
            self.pixels,
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
        network = self.parameters, self.h
        for layer in range(self.n_convs):
            _convolve[launch_shape(self.n_rows)](
                n, layer, self.kind, self.conv_table, self.index, *network, self.pixels
            )
        for layer in range(self.n_denses):
            is_hidden = int(layer + 1 < self.n_denses)
            _dense[shape](n, layer, self.kind, is_hidden, self.dense_table, *network)
        _copy_logits[shape](self.dense_table, self.h, logits)


def _tables(convs, sizes, n_images):
    """Return [conv_table, dense_table, penalty_table, index] and the flat arrays' lengths."""
    used = {"parameters": 0, "pixels": 0, "partial": 0, "penalty": 0, "index": 0}
    used["h"] = n_images * convs[0].in_height * convs[0].in_width

    def place(buffer, size):
        used[buffer] += size
        return used[buffer] - size

    below = 0
    conv_rows, dense_rows, penalty_rows, index = [], [], [], []
    for shape in convs:
        in_maps, in_height, in_width, maps, f, p = shape
        height, width = shape.out_height * p, shape.out_width * p
        taps, squares = in_maps * f * f, shape.out_height * shape.out_width
        weights = place("parameters", maps * taps)
        places = [weights, place("parameters", maps), below]
        below = place("h", n_images * maps * squares)
        places += [below, place("pixels", n_images * maps * height * width)]
        places += [place("partial", maps * taps + maps)]
        orders = _index_tables(shape)
        places += [place("index", len(order)) for order in orders]
        index += orders
        in_size = in_maps * in_height * in_width
        size = [in_maps, in_height, in_width, in_size, maps, f, taps, squares, p * p, height, width]
        conv_rows.append(size + places)
        penalty_rows.append([weights, maps, taps, place("penalty", maps)])
    for n_in, n_out in itertools.pairwise(sizes):
        weights = place("parameters", n_in * n_out)
        places = [weights, place("parameters", n_out), below]
        below = place("h", n_images * n_out)
        dense_rows.append([n_in, n_out, *places, below])
        penalty_rows.append([weights, n_in, n_out, place("penalty", n_in)])
    tables = [np.array(rows, np.int64) for rows in (conv_rows, dense_rows, penalty_rows)]
    return [*tables, np.concatenate(index)], used


def _index_tables(shape):
    """Return the tables TAP, POSITION and ORDER of a layer, int64."""
    in_maps, in_height, in_width, _, f, p = shape
    k, u, v = np.ogrid[:in_maps, :f, :f]  # the filter runs backwards over the patch
    tap = (k * in_height + f - 1 - u) * in_width + f - 1 - v
    row, column = np.mgrid[: shape.out_height * p, : shape.out_width * p]

    def by_square(table):
        squares = table.reshape(shape.out_height, p, shape.out_width, p)
        return squares.transpose(0, 2, 1, 3).ravel()

    position = by_square(row * in_width + column)
    order = np.argsort(by_square(row * shape.out_width * p + column))
    return [table.ravel().astype(np.int64) for table in (tap, position, order)]


def _program(n_convs, n_denses, batch_size):
    """Return the phases of a minibatch, (phases, 4) int64: phase, layer, B, whether the grid waits.

    The kernel reads B (and the filter size, and so on) from memory where it needs it: an argument
    would be hoisted out of all loops with everything computed from it, and registers run out. The
    grid need not wait after a phase whose results the next one does not read.
    """
    convs, denses = range(n_convs), range(n_denses)
    program = [(PENALTY, layer, 0) for layer in range(n_convs + n_denses)]
    program += [(LOAD, 0, 1)]
    program += [(CONV_FORWARD, layer, 1) for layer in convs]
    program += [(DENSE_FORWARD, layer, 1) for layer in denses]
    program += [(LOSS, 0, 1)]
    program += [(DENSE_ERROR, layer, 1) for layer in reversed(denses)]
    for layer in reversed(convs):
        program += [(UNPOOL, layer, 1), (PARTIAL_GRADIENT, layer, layer == 0)]
        program += [(CONV_ERROR, layer, 1)] if layer > 0 else []
    program += [(COST, 0, 0)]
    program += [(CONV_UPDATE, layer, 0) for layer in convs]
    program += [(DENSE_UPDATE, layer, layer == n_denses - 1) for layer in denses]
    return np.array([(*step[:2], batch_size, step[2]) for step in program], np.int64)


@cuda.jit(device=True, **options.CUDA)
def _load_phase(x, start, n, pixel_scale, h):
    """Write the pixels of n images of x, from ``start`` on, to the beginning of h."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    n_features = x.shape[1]
    i = row
    while i < n:
        d = lane
        while d < n_features:
            h[i * n_features + d] = x[start + i, d] * pixel_scale
            d += lanes
        i += rows


@cuda.jit(device=True, **options.CUDA)
def _conv_phase(n, layer, kind, conv_table, index, parameters, h, pixels):
    """Convolve, pool and activate n images: one thread per square of a map."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    t = conv_table[layer]
    image_map = row
    while image_map < n * t[MAPS]:
        i = image_map // t[MAPS]
        m = image_map - i * t[MAPS]
        square = lane
        while square < t[SQUARES]:
            at = image_map * t[SQUARES] + square
            highest = _convolve_square(t, i, m, square, at, index, parameters, h, pixels)
            bias = parameters[t[CONV_BIAS] + m]
            h[t[CONV_OUT] + at] = activate(highest + bias, kind)
            square += lanes
        image_map += rows


@cuda.jit(device=True, **options.CUDA)
def _convolve_square(t, i, m, square, at, index, parameters, h, pixels):
    """Write the convolution at a square's pixels to ``pixels``; return the maximum."""
    first = t[PIXELS] + at * t[AREA]
    highest = like(h[0], 0)
    for k in range(t[AREA]):
        corner = t[CONV_IN] + i * t[IN_SIZE] + index[t[POSITION] + square * t[AREA] + k]
        weights = t[CONV_WEIGHTS] + m * t[TAPS]
        total = like(h[0], 0)
        for w in range(t[TAPS]):
            total += parameters[weights + w] * h[corner + index[t[TAP] + w]]
        pixels[first + k] = total
        if k == 0 or total > highest:
            highest = total
    return highest


@cuda.jit(device=True, **options.CUDA)
def _dense_phase(n, layer, kind, is_hidden, dense_table, parameters, h):
    """Overwrite h of a dense layer for n images: one thread per unit."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    t = dense_table[layer]
    n_in, n_out = t[N_IN], t[N_OUT]
    i = row
    while i < n:
        u = lane
        while u < n_out:
            total = parameters[t[BIAS] + u]
            for d in range(n_in):
                total += h[t[IN] + i * n_in + d] * parameters[t[WEIGHTS] + d * n_out + u]
            if is_hidden:
                total = activate(total, kind)
            h[t[OUT] + i * n_out + u] = total
            u += lanes
        i += rows


@cuda.jit(device=True, **options.CUDA)
def _loss_phase(y, start, n, inverse_batch_size, dense_table, h, error, example_nll):
    """Overwrite example_nll (B,) and the error of the last layer: one thread per image."""
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    t = dense_table[dense_table.shape[0] - 1]
    if lane == 0:
        i = row
        while i < n:
            first = t[OUT] + i * t[N_OUT]
            last = first + t[N_OUT]
            example_nll[i] = softmax_cross_entropy(
                h[first:last], y[start + i], inverse_batch_size, error[first:last]
            )
            i += rows


@cuda.jit(device=True, **options.CUDA)
def _dense_error_phase(n, layer, kind, dense_table, parameters, h, error):
    """Overwrite the error below a dense layer: one thread per unit below."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    t = dense_table[layer]
    n_in, n_out = t[N_IN], t[N_OUT]
    i = row
    while i < n:
        d = lane
        while d < n_in:
            total = like(parameters[0], 0)
            for u in range(n_out):
                weight = parameters[t[WEIGHTS] + d * n_out + u]
                total += error[t[OUT] + i * n_out + u] * weight
            at = t[IN] + i * n_in + d
            error[at] = total * activation_slope(h[at], kind)
            d += lanes
        i += rows


@cuda.jit(device=True, **options.CUDA)
def _unpool_phase(n, layer, first_only, conv_table, error, pixels):
    """Overwrite ``pixels`` of a layer with their errors: the square's where it is the maximum."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    t = conv_table[layer]
    image_map = row
    while image_map < n * t[MAPS]:
        square = lane
        while square < t[SQUARES]:
            at = image_map * t[SQUARES] + square
            first = t[PIXELS] + at * t[AREA]
            _unpool_square(first, t[AREA], first_only, error[t[CONV_OUT] + at], pixels)
            square += lanes
        image_map += rows


@cuda.jit(device=True, **options.CUDA)
def _unpool_square(first, area, first_only, error, pixels):
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
def _conv_error_phase(n, layer, kind, conv_table, index, parameters, h, error, pixels):
    """Overwrite the error below a convolution layer: one thread per number below."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    t = conv_table[layer]
    image_map = row
    while image_map < n * t[IN_MAPS]:
        i = image_map // t[IN_MAPS]
        k = image_map - i * t[IN_MAPS]
        for r in range(t[IN_HEIGHT]):
            c = lane
            while c < t[IN_WIDTH]:
                total = _sum_of_errors(t, i, k, r, c, index, parameters, pixels)
                at = t[CONV_IN] + (image_map * t[IN_HEIGHT] + r) * t[IN_WIDTH] + c
                error[at] = total * activation_slope(h[at], kind)
                c += lanes
        image_map += rows


@cuda.jit(device=True, **options.CUDA)
def _sum_of_errors(t, i, k, r, c, index, parameters, pixels):
    """Return the sum of weight times error over all pixels whose patch holds (k, r, c)."""
    f, width = t[FILTER], t[WIDTH]
    total = like(parameters[0], 0)
    for m in range(t[MAPS]):
        first = t[PIXELS] + (i * t[MAPS] + m) * t[HEIGHT] * width
        # The filter runs backwards: weight f-1-a, f-1-b belongs to the patch's row a, column b.
        last = t[CONV_WEIGHTS] + (m * t[IN_MAPS] + k + 1) * f * f - 1
        for q in range(max(r - f + 1, 0), min(r + 1, t[HEIGHT])):
            weight = last - (r - q) * f - c
            for s in range(max(c - f + 1, 0), min(c + 1, width)):
                total += parameters[weight + s] * pixels[first + index[t[ORDER] + q * width + s]]
    return total


@cuda.jit(device=True, **options.CUDA)
def _partial_phase(n, layer, conv_table, index, h, error, pixels, partial):
    """Overwrite one layer's columns of partial (P, filters and biases of all layers).

    One thread per chunk of images and parameter sums over the chunk's images and the map's pixels.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    t = conv_table[layer]
    item = row
    while item < CHUNKS * t[MAPS]:
        chunk = item // t[MAPS]
        m = item - chunk * t[MAPS]
        first, last = chunk * n // CHUNKS, (chunk + 1) * n // CHUNKS
        w = lane
        while w < t[TAPS]:
            gradient = _filter_gradient(t, first, last, m, w, index, h, pixels)
            partial[chunk, t[PARTIAL] + m * t[TAPS] + w] = gradient
            w += lanes
        if lane == 0:
            at = t[PARTIAL] + t[MAPS] * t[TAPS] + m
            partial[chunk, at] = _bias_gradient(t, first, last, m, error)
        item += rows


@cuda.jit(device=True, **options.CUDA)
def _filter_gradient(t, first, last, m, w, index, h, pixels):
    """Return the gradient of weight w of map m over images first..last-1."""
    n_pixels = t[SQUARES] * t[AREA]
    total = like(h[0], 0)
    for i in range(first, last):
        at = t[PIXELS] + (i * t[MAPS] + m) * n_pixels
        corner = t[CONV_IN] + i * t[IN_SIZE] + index[t[TAP] + w]
        for k in range(n_pixels):
            total += pixels[at + k] * h[corner + index[t[POSITION] + k]]
    return total


@cuda.jit(device=True, **options.CUDA)
def _bias_gradient(t, first, last, m, error):
    """Return the gradient of the bias of map m over images first..last-1."""
    total = like(error[0], 0)
    for i in range(first, last):
        at = t[CONV_OUT] + (i * t[MAPS] + m) * t[SQUARES]
        for k in range(at, at + t[SQUARES]):
            total += error[k]
    return total


@cuda.jit(device=True, **options.CUDA)
def _penalty_phase(layer, penalties, penalty_table, parameters, row_penalty):
    """Overwrite a layer's part of row_penalty: one thread per row of its weights."""
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    t = penalty_table[layer]
    if lane == 0:
        r = row
        while r < t[N_ROWS]:
            total = like(penalties[0], 0)
            for w in range(t[FIRST] + r * t[N_COLUMNS], t[FIRST] + (r + 1) * t[N_COLUMNS]):
                total += penalty(parameters[w], penalties)
            row_penalty[t[FIRST_ROW] + r] = total
            r += rows


@cuda.jit(device=True, **options.CUDA)
def _conv_update_phase(layer, learning_rate, penalties, conv_table, parameters, partial):
    """Update a convolution layer from the chunks' gradients: one thread per parameter."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    t = conv_table[layer]
    n_columns = t[TAPS]
    n_weights = t[MAPS] * n_columns
    m = row
    while m < t[MAPS]:
        # The last column of a map is its bias, which stands behind all weights.
        column = lane
        while column < n_columns + 1:
            is_weight = column < n_columns
            k = m * n_columns + column if is_weight else n_weights + m
            gradient = partial[0, t[PARTIAL] + k]
            for chunk in range(1, CHUNKS):
                gradient += partial[chunk, t[PARTIAL] + k]
            old = parameters[t[CONV_WEIGHTS] + k]
            if is_weight:
                gradient += penalty_gradient(old, penalties)
            parameters[t[CONV_WEIGHTS] + k] = old - learning_rate * gradient
            column += lanes
        m += rows


@cuda.jit(device=True, **options.CUDA)
def _dense_update_phase(n, layer, learning_rate, penalties, dense_table, parameters, h, error):
    """Update a dense layer: one thread per parameter. Row n_in of the grid is the bias."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    t = dense_table[layer]
    n_in, n_out = t[N_IN], t[N_OUT]
    d = row
    while d < n_in + 1:
        u = lane
        while u < n_out:
            gradient = like(learning_rate, 0)
            if d < n_in:
                for i in range(n):
                    gradient += h[t[IN] + i * n_in + d] * error[t[OUT] + i * n_out + u]
                weight = parameters[t[WEIGHTS] + d * n_out + u]
                gradient += penalty_gradient(weight, penalties)
                parameters[t[WEIGHTS] + d * n_out + u] = weight - learning_rate * gradient
            else:
                for i in range(n):
                    gradient += error[t[OUT] + i * n_out + u]
                parameters[t[BIAS] + u] -= learning_rate * gradient
            u += lanes
        d += rows


@cuda.jit(**options.CUDA_ENTRY)
def _train(
    x,  # (N, D) uint8 or floatX
    y,  # (N,) int32
    pixel_scale,
    batch_size,
    learning_rate,
    penalties,  # (l1, l2, lp, p)
    minibatch,  # number of the first one
    kind,  # of activation
    first_only,  # 1: of tied maxima only the first gets the gradient
    program,  # (phases, 4)
    penalty_table,
    conv_table,
    dense_table,
    index,  # flat int64
    parameters,  # flat, changed
    h,  # flat, scratch
    error,  # flat, scratch
    pixels,  # flat, scratch
    partial,  # (P, filters and their biases), scratch
    row_penalty,  # (rows of all weights,), scratch
    example_nll,  # (B,), scratch
    costs,  # one per minibatch, overwritten
):
    grid = cuda.cg.this_grid()
    lane, row = cuda.grid(2)
    inverse_batch_size = like(learning_rate, 1) / like(learning_rate, batch_size)
    for step in range(costs.shape[0]):
        start = (minibatch + step) * batch_size
        for k in range(program.shape[0]):
            phase, layer, n = program[k, 0], program[k, 1], program[k, 2]
            if phase == LOAD:
                _load_phase(x, start, n, pixel_scale, h)
            elif phase == PENALTY:
                _penalty_phase(layer, penalties, penalty_table, parameters, row_penalty)
            elif phase == CONV_FORWARD:
                _conv_phase(n, layer, kind, conv_table, index, parameters, h, pixels)
            elif phase == DENSE_FORWARD:
                is_hidden = layer + 1 < dense_table.shape[0]
                _dense_phase(n, layer, kind, is_hidden, dense_table, parameters, h)
            elif phase == LOSS:
                _loss_phase(y, start, n, inverse_batch_size, dense_table, h, error, example_nll)
            elif phase == DENSE_ERROR:
                _dense_error_phase(n, layer, kind, dense_table, parameters, h, error)
            elif phase == UNPOOL:
                _unpool_phase(n, layer, first_only, conv_table, error, pixels)
            elif phase == PARTIAL_GRADIENT:
                _partial_phase(n, layer, conv_table, index, h, error, pixels, partial)
            elif phase == CONV_ERROR:
                _conv_error_phase(n, layer, kind, conv_table, index, parameters, h, error, pixels)
            elif phase == CONV_UPDATE:
                _conv_update_phase(layer, learning_rate, penalties, conv_table, parameters, partial)
            elif phase == DENSE_UPDATE:
                _dense_update_phase(
                    n, layer, learning_rate, penalties, dense_table, parameters, h, error
                )
            elif phase == COST and lane == 0 and row == 0:
                mean_nll = ordered_sum(example_nll) * inverse_batch_size
                costs[step] = mean_nll + ordered_sum(row_penalty)
            if program[k, 3]:
                grid.sync()


@cuda.jit(**options.CUDA_ENTRY)
def _load(x, pixel_scale, h):
    """Write the pixels of all images of x (n, D) to the beginning of h."""
    _load_phase(x, 0, x.shape[0], pixel_scale, h)


@cuda.jit(**options.CUDA_ENTRY)
def _convolve(n, layer, kind, conv_table, index, parameters, h, pixels):
    """Overwrite h of a convolution layer for n images."""
    _conv_phase(n, layer, kind, conv_table, index, parameters, h, pixels)


@cuda.jit(**options.CUDA_ENTRY)
def _dense(n, layer, kind, is_hidden, dense_table, parameters, h):
    """Overwrite h of a dense layer for n images."""
    _dense_phase(n, layer, kind, is_hidden, dense_table, parameters, h)


@cuda.jit(**options.CUDA_ENTRY)
def _copy_logits(dense_table, h, logits):
    """Overwrite logits (n, C) with h of the last layer."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    first = dense_table[dense_table.shape[0] - 1, OUT]
    i = row
    while i < logits.shape[0]:
        c = lane
        while c < logits.shape[1]:
            logits[i, c] = h[first + i * logits.shape[1] + c]
            c += lanes
        i += rows
