"""The auto-encoders on CUDA, as plain as CUDA can be: loops over the formulas of ``model.py``.

A minibatch is two launches: its corruption, whose random numbers would take the registers of the
rest; and a cooperative one, which passes through phases: hidden units; reconstruction; errors;
gradient and update, and the cost. After each the whole grid waits. One thread computes each sum, in
a fixed order: no atomics on floats, and the same bits for any number of blocks. Each pixel has its
own random numbers, too.

The contractive auto-encoder, ``ca``, is trained by the same kernel: its model.py has the formulas
of what stands here below ``is_contractive``.

Legend: N images in all, B of a minibatch, D pixels of an image, H hidden units. Threads lie in two
dimensions: ``lane`` counts units, ``row`` counts images or pixels.
"""

from typing import NamedTuple

from numba import cuda

from msgd.kernels import options
from msgd.kernels.cuda import (
    Images,
    activate,
    activation_slope,
    launch_shape,
    ordered_sum,
    sgd_step,
    sigmoid_cross_entropy,
)
from msgd.kernels.cuda_uniform import draw_mask, to_device
from msgd.kernels.formulas import SIGMOID, like
from msgd.kernels.uniform import Position
from msgd.models.cuda_backend import CudaBackend, translate_device_errors
from msgd.models.da.model import mask_draws
from msgd.models.unsupervised_backend import NO_DRAWS, RandomNumbers


class Layer(NamedTuple):
    """The parameters."""

    weights: object  # W (D, H) floatX
    hidden_bias: object  # b (H,) floatX
    visible_bias: object  # b' (D,) floatX


class Activations(NamedTuple):
    """What a minibatch computes; all arrays are floatX."""

    corrupted: object  # x~ (B, D)
    y: object  # (B, H)
    d: object  # (B, D)
    e: object  # (B, H)
    pixel_costs: object  # (B, D)
    image_costs: object  # (B,)


class Contraction(NamedTuple):
    """The contraction and what a minibatch computes for it."""

    factor: float  # 2 c / B
    squares: object  # C (H,) floatX
    slopes: object  # (H,) floatX: the sum over the images of y'^2


class Backend(CudaBackend):
    """The CUDA twin, and that of the contractive one; see msgd.models.interface.Backend."""

    def allocate(self):
        """Make the scratch arrays of training."""
        n_features, n_hidden = self.expected["weights"][0]
        self.share = self.float_x(1 - self.settings.get("corruption", 0))
        draws = mask_draws(n_features, self.settings) if self.share < 1 else NO_DRAWS
        self.random_numbers = RandomNumbers(draws, to_device)
        widths = n_features, n_hidden, n_features, n_hidden, n_features
        shapes = [*((self.batch_size, width) for width in widths), self.batch_size]
        self.scratch = [cuda.device_array(shape, self.float_x) for shape in shapes]
        self.contraction = self.settings.get("contraction")
        self.for_contraction = [cuda.device_array(n_hidden, self.float_x) for _ in range(2)]

    @translate_device_errors
    def train(self, first, last):
        """See msgd.models.interface.Backend.train."""
        self.position = self.random_numbers.span(first, last)
        self.jacobians, self.n_done = cuda.device_array(last - first, self.float_x), 0
        return super().train(first, last)

    def launch_train(self, x, y, minibatch, costs):
        """Train len(costs) minibatches of x from number ``minibatch`` on; y: their labels."""
        blocks, threads = launch_shape(max(self.batch_size, x.shape[1] + 1))
        jacobians = self.jacobians[self.n_done : self.n_done + len(costs)]
        self.n_done += len(costs)
        for step in range(len(costs)):
            start = (minibatch + step) * self.batch_size
            _corrupt[blocks, threads, self.shared.stream](
                x, start, self.pixel_scale, self.share, *self.position, self.scratch[0]
            )
            _train[blocks, threads, self.shared.stream](
                x,
                start,
                self.pixel_scale,
                self.descent,
                *self.parameters.values(),
                *self.scratch,
                self.contraction is not None,
                self.float_x(self.contraction or 0),
                *self.for_contraction,
                step,
                costs,
                jacobians,
            )


@cuda.jit(**options.CUDA_ENTRY)
def _corrupt(
    x,  # (N, D) uint8 or floatX
    start,  # the first image
    pixel_scale,  # floatX, what a stored pixel is multiplied by
    share,  # 1 - corruption, floatX; where it is 1 nothing is drawn
    states,  # these five: msgd.kernels.uniform.Position, of device arrays, taken to the next draw
    size,
    n_longer,
    n_more,
    more,
    corrupted,  # (B, D) floatX, overwritten
):
    """Overwrite ``corrupted`` with x~ of a minibatch: one thread per pixel."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    position = Position(states, size, n_longer, n_more, more)
    n_images, n_features = corrupted.shape
    for i in range(row, n_images, rows):
        for k in range(lane, n_features, lanes):
            pixel = x[start + i, k] * pixel_scale
            if share < like(share, 1):
                pixel *= draw_mask(position, i * n_features + k, share)
            corrupted[i, k] = pixel


@cuda.jit(device=True, **options.CUDA)
def _hidden_phase(layer, activations):
    """Overwrite y: one thread per image and unit. layer: Layer; activations: Activations."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    corrupted, y = activations.corrupted, activations.y
    for i in range(row, y.shape[0], rows):
        for h in range(lane, y.shape[1], lanes):
            total = layer.hidden_bias[h]
            for k in range(corrupted.shape[1]):
                total += corrupted[i, k] * layer.weights[k, h]
            y[i, h] = activate(total, SIGMOID)


@cuda.jit(device=True, **options.CUDA)
def _reconstruction_phase(images, inverse_batch_size, layer, activations):
    """Overwrite d and the pixels' costs: one thread per image and pixel.

    images: msgd.kernels.cuda.Images; inverse_batch_size: 1/B, floatX; layer: Layer; activations:
    Activations.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    y, d = activations.y, activations.d
    for i in range(row, d.shape[0], rows):
        for k in range(lane, d.shape[1], lanes):
            a = layer.visible_bias[k]
            for h in range(y.shape[1]):
                a += y[i, h] * layer.weights[k, h]
            pixel = images.x[images.start + i, k] * images.pixel_scale
            activations.pixel_costs[i, k] = sigmoid_cross_entropy(a, pixel)
            d[i, k] = (activate(a, SIGMOID) - pixel) * inverse_batch_size


@cuda.jit(device=True, **options.CUDA)
def _contraction_phase(layer, activations, contraction):
    """Overwrite C and the sums of y'^2: one thread per unit, of the first row.

    layer: Layer; activations: Activations; contraction: Contraction.
    """
    lane, row = cuda.grid(2)
    lanes, _ = cuda.gridsize(2)
    y = activations.y
    if row == 0:
        for h in range(lane, y.shape[1], lanes):
            square = slopes = like(y[0, h], 0)
            for k in range(layer.weights.shape[0]):
                square += layer.weights[k, h] * layer.weights[k, h]
            for i in range(y.shape[0]):
                slope = activation_slope(y[i, h], SIGMOID)
                slopes += slope * slope
            contraction.squares[h] = square
            contraction.slopes[h] = slopes


@cuda.jit(device=True, **options.CUDA)
def _error_phase(layer, activations, is_contractive, contraction):
    """Overwrite e and the images' costs: one thread per image and unit.

    layer: Layer; activations: Activations; contraction: Contraction.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    y, d = activations.y, activations.d
    for i in range(row, y.shape[0], rows):
        for h in range(lane, y.shape[1], lanes):
            total = like(y[i, h], 0)
            for k in range(d.shape[1]):
                total += d[i, k] * layer.weights[k, h]
            slope = activation_slope(y[i, h], SIGMOID)
            error = total * slope
            if is_contractive:
                bend = contraction.factor * slope * slope * (like(slope, 1) - y[i, h] - y[i, h])
                error += bend * contraction.squares[h]
            activations.e[i, h] = error
        if lane == 0:
            activations.image_costs[i] = ordered_sum(activations.pixel_costs[i])


@cuda.jit(device=True, **options.CUDA)
def _update_phase(descent, layer, activations, is_contractive, contraction):
    """Change W and b by a step of SGD: one thread per parameter; and b': of the first row.

    descent: msgd.kernels.arguments.Descent; layer: Layer; activations: Activations; contraction:
    Contraction. Row D of the grid is b.
    """
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    corrupted, y, d, e = activations.corrupted, activations.y, activations.d, activations.e
    n_images, n_features = d.shape
    for k in range(row, n_features + 1, rows):
        for h in range(lane, y.shape[1], lanes):
            gradient = like(descent.rate, 0)
            if k == n_features:
                for i in range(n_images):
                    gradient += e[i, h]
                layer.hidden_bias[h] = sgd_step(layer.hidden_bias[h], gradient, descent)
                continue
            for i in range(n_images):
                gradient += corrupted[i, k] * e[i, h] + d[i, k] * y[i, h]
            if is_contractive:
                gradient += contraction.factor * contraction.slopes[h] * layer.weights[k, h]
            layer.weights[k, h] = sgd_step(layer.weights[k, h], gradient, descent)
    if row == 0:
        for k in range(lane, n_features, lanes):
            gradient = like(descent.rate, 0)
            for i in range(n_images):
                gradient += d[i, k]
            layer.visible_bias[k] = sgd_step(layer.visible_bias[k], gradient, descent)


@cuda.jit(device=True, **options.CUDA)
def _jacobian(contraction, inverse_batch_size):
    """Return |J|^2 / B, summed in order, by the calling thread alone; contraction: Contraction."""
    total = like(inverse_batch_size, 0)
    for h in range(contraction.squares.shape[0]):
        total += contraction.slopes[h] * contraction.squares[h]
    return total * inverse_batch_size


@cuda.jit(**options.CUDA_ENTRY)
def _train(
    x,  # (N, D) uint8 or floatX
    start,  # the minibatch's first image
    pixel_scale,  # floatX, what a stored pixel is multiplied by
    descent,  # msgd.kernels.arguments.Descent
    weights,  # (D, H) floatX, changed
    hidden_bias,  # (H,) floatX, changed
    visible_bias,  # (D,) floatX, changed
    corrupted,  # these six: Activations; but for x~, scratch
    y,
    d,
    e,
    pixel_costs,
    image_costs,
    is_contractive,  # bool
    c,  # floatX, the contraction
    squares,  # (H,) floatX, scratch
    slopes,  # (H,) floatX, scratch
    step,  # the place of the minibatch in the next two
    costs,  # floatX, overwritten there with the cost before the update
    jacobians,  # floatX, overwritten there with |J|^2 / B if is_contractive
):
    """Train a minibatch, corrupted already."""
    grid = cuda.cg.this_grid()
    lane, row = cuda.grid(2)
    n_images = y.shape[0]
    inverse_batch_size = like(pixel_scale, 1) / like(pixel_scale, n_images)
    images = Images(x, start, n_images, pixel_scale)
    layer = Layer(weights, hidden_bias, visible_bias)
    activations = Activations(corrupted, y, d, e, pixel_costs, image_costs)
    contraction = Contraction((c + c) * inverse_batch_size, squares, slopes)
    _hidden_phase(layer, activations)
    grid.sync()
    _reconstruction_phase(images, inverse_batch_size, layer, activations)
    if is_contractive:
        _contraction_phase(layer, activations, contraction)
    grid.sync()
    _error_phase(layer, activations, is_contractive, contraction)
    grid.sync()
    _update_phase(descent, layer, activations, is_contractive, contraction)
    if lane == 0 and row == 0:
        cost = ordered_sum(image_costs) * inverse_batch_size
        if is_contractive:
            jacobians[step] = _jacobian(contraction, inverse_batch_size)
            cost += c * jacobians[step]
        costs[step] = cost
