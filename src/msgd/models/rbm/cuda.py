"""The restricted Boltzmann machine on CUDA, as plain as CUDA can be: loops over the formulas.

A minibatch is a launch for s(x W + b), two for each step of the chains, one for the costs and one
for the update. One thread computes each sum, in a fixed order: no atomics on floats, and the same
bits for any number of blocks. Each unit of each image has its own random numbers, too.

Legend: N images in all, B of a minibatch, D pixels of an image, H hidden units. Threads lie in two
dimensions: ``lane`` counts units, ``row`` counts images or pixels. Five arguments in a row, states
to more, are a msgd.kernels.uniform.Position of device arrays, whose elements are taken to the next
draw.
"""

import numpy as np
from numba import cuda

from msgd.kernels import options
from msgd.kernels.cuda import (
    Images,
    activate,
    launch_shape,
    ordered_sum,
    sgd_step,
    sigmoid_cross_entropy,
)
from msgd.kernels.cuda_uniform import draw_mask, to_device
from msgd.kernels.formulas import SIGMOID, like
from msgd.kernels.uniform import Position
from msgd.models.cuda_backend import CudaBackend, translate_device_errors
from msgd.models.rbm.gibbs import GibbsNumbers, PersistentChain


class Backend(PersistentChain, CudaBackend):
    """The CUDA twin; see msgd.models.interface.Backend."""

    def allocate(self):
        """Make the scratch arrays of training, and the chains."""
        n_features, n_hidden = self.expected["weights"][0]
        self.numbers = GibbsNumbers(n_features, self.settings, to_device)

        def array(*shape):
            return cuda.device_array(shape, self.float_x)

        size = self.batch_size
        self.positive, self.negative = array(size, n_hidden), array(size, n_hidden)
        self.rounded, self.visible_sums = array(size, n_hidden), array(size, n_features)
        self.v, self.image_costs = array(size, n_features), array(size)
        self.h = cuda.to_device(np.zeros((size, n_hidden), self.float_x))

    @translate_device_errors
    def train(self, first, last):
        """See msgd.models.interface.Backend.train."""
        self.sampling, self.next_iteration = self.numbers.span(first, last), first
        return super().train(first, last)

    def launch_train(self, x, y, minibatch, costs):
        """Train len(costs) minibatches of x from number ``minibatch`` on; y: not looked at."""
        for step in range(len(costs)):
            self._launch_step(x, (minibatch + step) * self.batch_size, costs, step)
            self.next_iteration += 1

    def _launch_step(self, x, start, costs, step):
        """Train the minibatch that begins with image ``start``."""
        weights, hidden_bias, visible_bias = self.parameters.values()
        sampling, stream = self.sampling, self.shared.stream
        is_persistent, n_steps = sampling.is_persistent, sampling.n_steps
        by_image = (*launch_shape(self.batch_size), stream)
        by_pixel = (*launch_shape(x.shape[1] + 1), stream)
        images = x, start, self.pixel_scale
        _begin[by_image](
            *images,
            weights,
            hidden_bias,
            is_persistent,
            *sampling.positive,
            *(self.positive, self.rounded, self.h),
        )
        is_drawn = is_persistent or n_steps > 1
        for _ in range(n_steps):
            _draw_visible[by_image](
                self.h, weights, visible_bias, *sampling.visible, self.visible_sums, self.v
            )
            _draw_hidden[by_image](
                self.v, weights, hidden_bias, is_drawn, *sampling.hidden, self.negative, self.h
            )
        _evaluate[by_image](
            *images,
            weights,
            visible_bias,
            is_persistent,
            self.next_iteration % x.shape[1],
            *(self.rounded, self.visible_sums, self.image_costs),
        )
        _train[by_pixel](
            *images,
            self.descent,
            *(weights, hidden_bias, visible_bias),
            *(self.positive, self.v, self.negative, self.image_costs),
            *(step, costs),
        )

    @translate_device_errors
    def fetch_chain(self):
        """See msgd.models.rbm.gibbs.PersistentChain."""
        return self.h.copy_to_host().astype(np.uint8)

    @translate_device_errors
    def keep_chain(self, chain):
        """See msgd.models.rbm.gibbs.PersistentChain."""
        self.h.copy_to_device(chain.astype(self.float_x))


@cuda.jit(device=True, **options.CUDA)
def _is_one(pixel):
    """Return the pixel rounded: 1 above a half, else 0, in its type."""
    return like(pixel, 1) if pixel > like(pixel, 0.5) else like(pixel, 0)


@cuda.jit(**options.CUDA_ENTRY)
def _begin(
    x,  # (N, D) uint8 or floatX
    start,  # the minibatch's first image
    pixel_scale,  # floatX, what a stored pixel is multiplied by
    weights,  # (D, H) floatX
    hidden_bias,  # (H,) floatX
    is_persistent,  # bool: PCD
    states,
    size,
    n_longer,
    n_more,
    more,
    positive,  # (B, H) floatX, overwritten with s(x W + b)
    rounded,  # (B, H) floatX, overwritten with r W + b of the rounded images, of PCD
    h,  # (B, H) floatX, overwritten with samples of s(x W + b), of CD
):
    """Begin a minibatch: one thread per image and hidden unit."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    position = Position(states, size, n_longer, n_more, more)
    for i in range(row, positive.shape[0], rows):
        for u in range(lane, positive.shape[1], lanes):
            total = total_of_rounded = hidden_bias[u]
            for d in range(x.shape[1]):
                pixel = x[start + i, d] * pixel_scale
                total += pixel * weights[d, u]
                total_of_rounded += _is_one(pixel) * weights[d, u]
            positive[i, u] = activate(total, SIGMOID)
            rounded[i, u] = total_of_rounded
            if not is_persistent:
                h[i, u] = draw_mask(position, i * positive.shape[1] + u, positive[i, u])


@cuda.jit(**options.CUDA_ENTRY)
def _draw_visible(
    h,  # (B, H) floatX
    weights,  # (D, H) floatX
    visible_bias,  # (D,) floatX
    states,
    size,
    n_longer,
    n_more,
    more,
    sums,  # (B, D) floatX, overwritten with h W^T + c
    v,  # (B, D) floatX, overwritten with samples of its sigmoid
):
    """Draw v: one thread per image and pixel."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    position = Position(states, size, n_longer, n_more, more)
    for i in range(row, v.shape[0], rows):
        for d in range(lane, v.shape[1], lanes):
            total = visible_bias[d]
            for u in range(h.shape[1]):
                total += h[i, u] * weights[d, u]
            sums[i, d] = total
            v[i, d] = draw_mask(position, i * v.shape[1] + d, activate(total, SIGMOID))


@cuda.jit(**options.CUDA_ENTRY)
def _draw_hidden(
    v,  # (B, D) floatX
    weights,  # (D, H) floatX
    hidden_bias,  # (H,) floatX
    is_drawn,  # bool: whether h is
    states,
    size,
    n_longer,
    n_more,
    more,
    means,  # (B, H) floatX, overwritten with s(v W + b)
    h,  # (B, H) floatX, overwritten with samples of it
):
    """Draw h: one thread per image and hidden unit."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    position = Position(states, size, n_longer, n_more, more)
    for i in range(row, h.shape[0], rows):
        for u in range(lane, h.shape[1], lanes):
            total = hidden_bias[u]
            for d in range(v.shape[1]):
                total += v[i, d] * weights[d, u]
            means[i, u] = activate(total, SIGMOID)
            if is_drawn:
                h[i, u] = draw_mask(position, i * h.shape[1] + u, means[i, u])


@cuda.jit(device=True, **options.CUDA)
def _softplus(a):
    """Return log(1 + exp(a))."""
    return sigmoid_cross_entropy(a, like(a, 0))


@cuda.jit(device=True, **options.CUDA)
def _log_pseudo_likelihood(change, j, weights, visible_bias, rounded):
    """Return D log s(F(r') - F(r)) of an image; rounded: r W + b, (H,); change: r'_j - r_j."""
    energy = change * visible_bias[j]  # F(r) - F(r')
    for u in range(rounded.shape[0]):
        energy += _softplus(rounded[u] + change * weights[j, u]) - _softplus(rounded[u])
    return -like(energy, weights.shape[0]) * _softplus(energy)


@cuda.jit(device=True, **options.CUDA)
def _log_likelihood(images, i, sums):
    """Return sum_d (x log s(a) + (1 - x) log(1 - s(a))) of image i; sums: a, (D,)."""
    total = like(images.pixel_scale, 0)
    for d in range(sums.shape[0]):
        pixel = images.x[images.start + i, d] * images.pixel_scale
        total -= sigmoid_cross_entropy(sums[d], pixel)
    return total


@cuda.jit(**options.CUDA_ENTRY)
def _evaluate(
    x,  # (N, D) uint8 or floatX
    start,  # the minibatch's first image
    pixel_scale,  # floatX
    weights,  # (D, H) floatX
    visible_bias,  # (D,) floatX
    is_persistent,  # bool: PCD
    j,  # the pixel that is flipped
    rounded,  # (B, H) floatX: r W + b
    visible_sums,  # (B, D) floatX: a of the last step
    image_costs,  # (B,) floatX, overwritten
):
    """Overwrite the costs of the images: one thread per image."""
    lane, row = cuda.grid(2)
    _, rows = cuda.gridsize(2)
    images = Images(x, start, image_costs.shape[0], pixel_scale)
    if lane == 0:
        for i in range(row, image_costs.shape[0], rows):
            if is_persistent:
                bit = _is_one(x[start + i, j] * pixel_scale)
                change = like(bit, 1) - bit - bit
                image_costs[i] = _log_pseudo_likelihood(
                    change, j, weights, visible_bias, rounded[i]
                )
            else:
                image_costs[i] = _log_likelihood(images, i, visible_sums[i])


@cuda.jit(**options.CUDA_ENTRY)
def _train(
    x,  # (N, D) uint8 or floatX
    start,  # the minibatch's first image
    pixel_scale,  # floatX
    descent,  # msgd.kernels.arguments.Descent
    weights,  # (D, H) floatX, changed
    hidden_bias,  # (H,) floatX, changed
    visible_bias,  # (D,) floatX, changed
    positive,  # (B, H) floatX: s(x W + b)
    v,  # (B, D) floatX
    negative,  # (B, H) floatX: s(v W + b)
    image_costs,  # (B,) floatX
    step,  # the place of the minibatch's cost
    costs,  # floatX, overwritten there
):
    """Take a step of SGD: a thread per weight and per bias. Row D is b, a lane after the last c."""
    lane, row = cuda.grid(2)
    lanes, rows = cuda.gridsize(2)
    n_images, n_features = v.shape
    n_hidden = positive.shape[1]
    inverse_batch_size = like(pixel_scale, 1) / like(pixel_scale, n_images)
    for d in range(row, n_features + 1, rows):
        for u in range(lane, n_hidden + 1, lanes):
            gradient = like(descent.rate, 0)
            for i in range(n_images):
                if d == n_features and u < n_hidden:
                    gradient += negative[i, u] - positive[i, u]
                elif d < n_features:
                    pixel = x[start + i, d] * pixel_scale
                    if u == n_hidden:
                        gradient += v[i, d] - pixel
                    else:
                        gradient += v[i, d] * negative[i, u] - pixel * positive[i, u]
            gradient *= inverse_batch_size
            if d < n_features and u < n_hidden:
                weights[d, u] = sgd_step(weights[d, u], gradient, descent)
            elif d < n_features:
                visible_bias[d] = sgd_step(visible_bias[d], gradient, descent)
            elif u < n_hidden:
                hidden_bias[u] = sgd_step(hidden_bias[u], gradient, descent)
    if lane == 0 and row == 0:
        costs[step] = ordered_sum(image_costs) * inverse_batch_size
