"""The auto-encoders on CUDA, as plain as CUDA can be: loops over the formulas of ``model.py``.

Many minibatches are corrupted in one launch, and then trained in a cooperative one. Each passes
through phases: hidden units; reconstruction; errors; gradient and update, and the cost. After each
the whole grid waits. One thread computes each sum, in a fixed order: no atomics on floats, and the
same bits for any number of blocks. Each pixel has its own random numbers, too.

The contractive auto-encoder, ``ca``, is trained by the same kernel: its model.py has the formulas
of what stands here below ``is_contractive``.

Legend: N images in all, B of a minibatch, D pixels of an image, H hidden units. What a phase
computes has numbers, row by row, and the threads take them in turn: see thread_of_grid.
"""

from typing import NamedTuple

from numba import cuda

from msgd.kernels import options
from msgd.kernels.cuda import (
    ALL_REGISTERS,
    Images,
    activate,
    activation_slope,
    dot,
    launch_shape_of_tasks,
    ordered_sum,
    sgd_step,
    sigmoid_cross_entropy,
    thread_of_grid,
    times_column,
)
from msgd.kernels.cuda_uniform import drawn_together, launch_draw, sample, to_device
from msgd.kernels.formulas import SIGMOID, like
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
        n_together = drawn_together(self.batch_size * n_features, self.shared.n_train_batches)
        by_pixel, by_unit = (self.batch_size, n_features), (self.batch_size, n_hidden)
        self.corrupted = cuda.device_array((n_together, *by_pixel), self.float_x)
        shapes = by_unit, by_pixel, by_unit, by_pixel, self.batch_size
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
        """Train len(costs) minibatches of x from number ``minibatch`` on; y: not looked at."""
        n_together = len(self.corrupted)
        for done in range(0, len(costs), n_together):
            self._launch_together(x, minibatch + done, costs[done : done + n_together])

    def _launch_together(self, x, minibatch, costs):
        """Train len(costs) minibatches, as many as are corrupted together at most."""
        stream, corrupted = self.shared.stream, self.corrupted[: len(costs)]
        if self.share < 1:
            launch_draw(self.position, corrupted, stream)
        blocks, threads = launch_shape_of_tasks(corrupted.size)
        start = minibatch * self.batch_size
        _corrupt[blocks, threads, stream](x, start, self.pixel_scale, self.share, corrupted)
        n_hidden, n_features = len(self.parameters["hidden_bias"]), x.shape[1]
        blocks, threads = launch_shape_of_tasks(n_features * max(self.batch_size, n_hidden))
        jacobians = self.jacobians[self.n_done : self.n_done + len(costs)]
        self.n_done += len(costs)
        _train[blocks, threads, stream](
            x,
            start,
            self.pixel_scale,
            self.descent,
            *self.parameters.values(),
            corrupted,
            *self.scratch,
            self.contraction is not None,
            self.float_x(self.contraction or 0),
            *self.for_contraction,
            costs,
            jacobians,
        )


@cuda.jit(**options.CUDA_ENTRY)
def _corrupt(
    x,  # (N, D) uint8 or floatX
    start,  # the first image
    pixel_scale,  # floatX, what a stored pixel is multiplied by
    share,  # 1 - corruption, floatX
    corrupted,  # (minibatches, B, D) floatX: uniform numbers if share < 1; overwritten with x~
):
    """Corrupt several minibatches: one thread per pixel."""
    thread, n_threads = thread_of_grid()
    _, n_images, n_features = corrupted.shape
    for task in range(thread, corrupted.size, n_threads):
        image, k = task // n_features, task % n_features
        step, i = image // n_images, image % n_images
        pixel = x[start + image, k] * pixel_scale
        if share < like(share, 1):
            pixel *= sample(corrupted[step, i, k], share)
        corrupted[step, i, k] = pixel


@cuda.jit(device=True, **options.CUDA)
def _hidden_phase(layer, activations):
    """Overwrite y: one thread per image and unit. layer: Layer; activations: Activations."""
    thread, n_threads = thread_of_grid()
    y, n_hidden = activations.y, activations.y.shape[1]
    for task in range(thread, y.size, n_threads):
        i, h = task // n_hidden, task % n_hidden
        total = layer.hidden_bias[h] + times_column(activations.corrupted[i], layer.weights, h)
        y[i, h] = activate(total, SIGMOID)


@cuda.jit(device=True, **options.CUDA)
def _reconstruction_phase(images, inverse_batch_size, layer, activations):
    """Overwrite d and the pixels' costs: one thread per image and pixel.

    images: msgd.kernels.cuda.Images; inverse_batch_size: 1/B, floatX; layer: Layer; activations:
    Activations.
    """
    thread, n_threads = thread_of_grid()
    d, n_features = activations.d, activations.d.shape[1]
    for task in range(thread, d.size, n_threads):
        i, k = task // n_features, task % n_features
        a = layer.visible_bias[k] + dot(activations.y[i], layer.weights[k])
        pixel = images.x[images.start + i, k] * images.pixel_scale
        activations.pixel_costs[i, k] = sigmoid_cross_entropy(a, pixel)
        d[i, k] = (activate(a, SIGMOID) - pixel) * inverse_batch_size


@cuda.jit(device=True, **options.CUDA)
def _contraction_phase(layer, activations, contraction):
    """Overwrite C and the sums of y'^2: one thread per unit.

    layer: Layer; activations: Activations; contraction: Contraction.
    """
    thread, n_threads = thread_of_grid()
    y = activations.y
    for h in range(thread, y.shape[1], n_threads):
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
    thread, n_threads = thread_of_grid()
    y, n_hidden = activations.y, activations.y.shape[1]
    for task in range(thread, y.size, n_threads):
        i, h = task // n_hidden, task % n_hidden
        slope = activation_slope(y[i, h], SIGMOID)
        error = times_column(activations.d[i], layer.weights, h) * slope
        if is_contractive:
            bend = contraction.factor * slope * slope * (like(slope, 1) - y[i, h] - y[i, h])
            error += bend * contraction.squares[h]
        activations.e[i, h] = error
    # By the last threads: most grids have more of them than the units above.
    for i in range(n_threads - 1 - thread, y.shape[0], n_threads):
        activations.image_costs[i] = ordered_sum(activations.pixel_costs[i])


@cuda.jit(device=True, **options.CUDA)
def _update_phase(descent, layer, activations, is_contractive, contraction):
    """Change W, b and b' by a step of SGD: one thread per parameter.

    descent: msgd.kernels.arguments.Descent; layer: Layer; activations: Activations; contraction:
    Contraction.
    """
    thread, n_threads = thread_of_grid()
    corrupted, y, d, e = activations.corrupted, activations.y, activations.d, activations.e
    n_images, n_hidden = y.shape
    for task in range(thread, layer.weights.size, n_threads):
        k, h = task // n_hidden, task % n_hidden
        gradient = like(descent.rate, 0)
        for i in range(n_images):
            gradient += corrupted[i, k] * e[i, h] + d[i, k] * y[i, h]
        if is_contractive:
            gradient += contraction.factor * contraction.slopes[h] * layer.weights[k, h]
        layer.weights[k, h] = sgd_step(layer.weights[k, h], gradient, descent)
    _update_bias(layer.hidden_bias, e, descent)
    _update_bias(layer.visible_bias, d, descent)


@cuda.jit(device=True, **options.CUDA)
def _update_bias(bias, error, descent):
    """Change ``bias`` (n,) by a step of SGD; error: (B, n), the derivatives of the cost."""
    thread, n_threads = thread_of_grid()
    for unit in range(thread, bias.shape[0], n_threads):
        gradient = like(descent.rate, 0)
        for i in range(error.shape[0]):
            gradient += error[i, unit]
        bias[unit] = sgd_step(bias[unit], gradient, descent)


@cuda.jit(device=True, **options.CUDA)
def _jacobian(contraction, inverse_batch_size):
    """Return |J|^2 / B, summed in order, by the calling thread alone; contraction: Contraction."""
    total = like(inverse_batch_size, 0)
    for h in range(contraction.squares.shape[0]):
        total += contraction.slopes[h] * contraction.squares[h]
    return total * inverse_batch_size


@cuda.jit(**ALL_REGISTERS, **options.CUDA_ENTRY)
def _train(
    x,  # (N, D) uint8 or floatX
    start,  # the first image
    pixel_scale,  # floatX, what a stored pixel is multiplied by
    descent,  # msgd.kernels.arguments.Descent
    weights,  # (D, H) floatX, changed
    hidden_bias,  # (H,) floatX, changed
    visible_bias,  # (D,) floatX, changed
    corrupted,  # (minibatches, B, D) floatX: x~
    y,  # these five: Activations; scratch
    d,
    e,
    pixel_costs,
    image_costs,
    is_contractive,  # bool
    c,  # floatX, the contraction
    squares,  # (H,) floatX, scratch
    slopes,  # (H,) floatX, scratch
    costs,  # floatX, one per minibatch, overwritten
    jacobians,  # floatX, overwritten with |J|^2 / B of each minibatch if is_contractive
):
    """Train one minibatch after the other; write the cost of each before its update."""
    grid = cuda.cg.this_grid()
    thread, _ = thread_of_grid()
    n_images = y.shape[0]
    inverse_batch_size = like(pixel_scale, 1) / like(pixel_scale, n_images)
    layer = Layer(weights, hidden_bias, visible_bias)
    contraction = Contraction((c + c) * inverse_batch_size, squares, slopes)
    for step in range(costs.shape[0]):
        images = Images(x, start + step * n_images, n_images, pixel_scale)
        activations = Activations(corrupted[step], y, d, e, pixel_costs, image_costs)
        _hidden_phase(layer, activations)
        grid.sync()
        _reconstruction_phase(images, inverse_batch_size, layer, activations)
        if is_contractive:
            _contraction_phase(layer, activations, contraction)
        grid.sync()
        _error_phase(layer, activations, is_contractive, contraction)
        grid.sync()
        _update_phase(descent, layer, activations, is_contractive, contraction)
        if thread == 0:
            cost = ordered_sum(image_costs) * inverse_batch_size
            if is_contractive:
                jacobians[step] = _jacobian(contraction, inverse_batch_size)
                cost += c * jacobians[step]
            costs[step] = cost
        grid.sync()
