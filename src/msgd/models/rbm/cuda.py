"""The restricted Boltzmann machine on CUDA, as plain as CUDA can be: loops over the formulas.

A minibatch is one cooperative launch. It passes through phases: s(x W + b); for each step of the
chains the visible and the hidden units; gradient and update, and the cost.
After each the whole grid waits. One thread computes each sum, in a fixed order: no atomics on
floats, and the same bits for any number of blocks. Each unit of each image has its own random
numbers, too.

Legend: N images in all, B of a minibatch, D pixels of an image, H hidden units. What a phase
computes has numbers, row by row, and the threads take them in turn: see thread_of_grid. Five
arguments in a row, states to more, are a msgd.kernels.uniform.Position of device arrays, whose
elements are taken to the next draw.
"""

from typing import NamedTuple

import numpy as np
from numba import cuda

from msgd.kernels import options
from msgd.kernels.cuda import (
    ALL_REGISTERS,
    Images,
    activate,
    dot,
    launch_shape_of_tasks,
    ordered_sum,
    sgd_step,
    sigmoid_cross_entropy,
    thread_of_grid,
    times_column,
)
from msgd.kernels.cuda_uniform import draw_sample, to_device
from msgd.kernels.formulas import SIGMOID, like
from msgd.kernels.uniform import Position
from msgd.models.cuda_backend import CudaBackend, translate_device_errors
from msgd.models.rbm.gibbs import GibbsNumbers, PersistentChain


class Machine(NamedTuple):
    """The parameters."""

    weights: object  # W (D, H) floatX
    hidden_bias: object  # b (H,) floatX
    visible_bias: object  # c (D,) floatX


class Activations(NamedTuple):
    """What a minibatch computes; all arrays are floatX."""

    positive: object  # (B, H): s(x W + b)
    v: object  # (B, D), samples
    negative: object  # (B, H): s(v W + b)
    h: object  # (B, H), samples of it
    cost_terms: object  # (B, H) of PCD, (B, D) of CD: the costs are made of their sums
    image_costs: object  # (B,)


class Backend(PersistentChain, CudaBackend):
    """The CUDA twin; see msgd.models.interface.Backend."""

    def allocate(self):
        """Make the scratch arrays of training, and the chains."""
        n_features, n_hidden = self.expected["weights"][0]
        self.numbers = GibbsNumbers(n_features, self.settings, to_device)

        def array(*shape):
            return cuda.device_array(shape, self.float_x)

        size = self.batch_size
        n_terms = n_hidden if self.settings["persistent"] else n_features
        self.positive, self.negative = array(size, n_hidden), array(size, n_hidden)
        self.v = array(size, n_features)
        self.cost_terms, self.image_costs = array(size, n_terms), array(size)
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
        sampling, n_features = self.sampling, x.shape[1]
        n_tasks = n_features * max(self.batch_size, self.h.shape[1])
        blocks, threads = launch_shape_of_tasks(n_tasks)
        _train[blocks, threads, self.shared.stream](
            *(x, start, self.pixel_scale, self.descent),
            *self.parameters.values(),
            *(sampling.is_persistent, sampling.n_steps, self.next_iteration % n_features),
            *(*sampling.positive, *sampling.visible, *sampling.hidden),
            *(self.positive, self.v, self.negative, self.h, self.cost_terms, self.image_costs),
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


@cuda.jit(device=True, **options.CUDA)
def _softplus(a):
    """Return log(1 + exp(a))."""
    return sigmoid_cross_entropy(a, like(a, 0))


@cuda.jit(device=True, **options.CUDA)
def _change(images, i, j):
    """Return what the flip of pixel j adds to it, where image i is rounded: 1 or -1."""
    one = like(images.pixel_scale, 1)
    return one - _rounded_pixel(images, i, j) - _rounded_pixel(images, i, j)


@cuda.jit(device=True, **options.CUDA)
def _rounded_pixel(images, i, d):
    """Return pixel d of image i, rounded."""
    return _is_one(images.x[images.start + i, d] * images.pixel_scale)


@cuda.jit(device=True, **options.CUDA)
def _begin_phase(images, machine, position, activations, is_persistent, j):
    """Overwrite s(x W + b), and the costs' terms of PCD or h of CD: one thread per image and unit.

    images: msgd.kernels.cuda.Images; machine: Machine; position: that of the CD chains' first
    samples; activations: Activations; j: the pixel that is flipped.
    """
    thread, n_threads = thread_of_grid()
    positive, weights = activations.positive, machine.weights
    n_features, n_hidden = weights.shape
    for task in range(thread, positive.size, n_threads):
        i, u = task // n_hidden, task % n_hidden
        total = rounded = machine.hidden_bias[u]
        for d in range(n_features):
            pixel = images.x[images.start + i, d] * images.pixel_scale
            total += pixel * weights[d, u]
            rounded += _is_one(pixel) * weights[d, u]
        positive[i, u] = activate(total, SIGMOID)
        if is_persistent:  # what the flip takes from the free energy, but for the visible bias
            flipped = rounded + _change(images, i, j) * weights[j, u]
            activations.cost_terms[i, u] = _softplus(flipped) - _softplus(rounded)
        else:
            activations.h[i, u] = draw_sample(position, task, positive[i, u])


@cuda.jit(device=True, **options.CUDA)
def _visible_phase(images, machine, position, activations, is_persistent):
    """Draw v, and overwrite the costs' terms of CD: one thread per image and pixel.

    images: msgd.kernels.cuda.Images; machine: Machine; position: that of v; activations:
    Activations.
    """
    thread, n_threads = thread_of_grid()
    v, n_features = activations.v, activations.v.shape[1]
    for task in range(thread, v.size, n_threads):
        i, d = task // n_features, task % n_features
        a = machine.visible_bias[d] + dot(activations.h[i], machine.weights[d])
        v[i, d] = draw_sample(position, task, activate(a, SIGMOID))
        if not is_persistent:  # log P(x_d = its pixel)
            pixel = images.x[images.start + i, d] * images.pixel_scale
            activations.cost_terms[i, d] = -sigmoid_cross_entropy(a, pixel)


@cuda.jit(device=True, **options.CUDA)
def _hidden_phase(machine, position, activations, is_drawn):
    """Overwrite s(v W + b), and draw h from it if ``is_drawn``: one thread per image and unit.

    machine: Machine; position: that of h; activations: Activations.
    """
    thread, n_threads = thread_of_grid()
    negative, n_hidden = activations.negative, activations.negative.shape[1]
    for task in range(thread, negative.size, n_threads):
        i, u = task // n_hidden, task % n_hidden
        a = machine.hidden_bias[u] + times_column(activations.v[i], machine.weights, u)
        negative[i, u] = activate(a, SIGMOID)
        if is_drawn:
            activations.h[i, u] = draw_sample(position, task, negative[i, u])


@cuda.jit(device=True, **options.CUDA)
def _cost_phase(images, machine, activations, is_persistent, j):
    """Overwrite the costs of the images: one thread per image, of the last threads.

    Of PCD it is D log s(F(r') - F(r)), of the rounded image r and the same with pixel j flipped; of
    CD the log likelihood of the image. images: msgd.kernels.cuda.Images; machine: Machine;
    activations: Activations.
    """
    thread, n_threads = thread_of_grid()
    n_features = machine.weights.shape[0]
    for i in range(n_threads - 1 - thread, images.n, n_threads):
        total = ordered_sum(activations.cost_terms[i])
        if is_persistent:
            energy = total + _change(images, i, j) * machine.visible_bias[j]  # F(r) - F(r')
            total = -like(energy, n_features) * _softplus(energy)
        activations.image_costs[i] = total


@cuda.jit(device=True, **options.CUDA)
def _update_phase(images, descent, inverse_batch_size, machine, activations):
    """Change W, b and c by a step of SGD: one thread per parameter.

    images: msgd.kernels.cuda.Images; descent: msgd.kernels.arguments.Descent; inverse_batch_size:
    1/B, floatX; machine: Machine; activations: Activations.
    """
    thread, n_threads = thread_of_grid()
    v, positive, negative = activations.v, activations.positive, activations.negative
    n_features, n_hidden = machine.weights.shape
    for task in range(thread, machine.weights.size, n_threads):
        d, u = task // n_hidden, task % n_hidden
        gradient = like(descent.rate, 0)
        for i in range(images.n):
            pixel = images.x[images.start + i, d] * images.pixel_scale
            gradient += v[i, d] * negative[i, u] - pixel * positive[i, u]
        gradient *= inverse_batch_size
        machine.weights[d, u] = sgd_step(machine.weights[d, u], gradient, descent)
    for u in range(thread, n_hidden, n_threads):
        gradient = like(descent.rate, 0)
        for i in range(images.n):
            gradient += negative[i, u] - positive[i, u]
        gradient *= inverse_batch_size
        machine.hidden_bias[u] = sgd_step(machine.hidden_bias[u], gradient, descent)
    for d in range(thread, n_features, n_threads):
        gradient = like(descent.rate, 0)
        for i in range(images.n):
            gradient += v[i, d] - images.x[images.start + i, d] * images.pixel_scale
        gradient *= inverse_batch_size
        machine.visible_bias[d] = sgd_step(machine.visible_bias[d], gradient, descent)


@cuda.jit(**ALL_REGISTERS, **options.CUDA_ENTRY)
def _train(
    x,  # (N, D) uint8 or floatX
    start,  # the minibatch's first image
    pixel_scale,  # floatX, what a stored pixel is multiplied by
    descent,  # msgd.kernels.arguments.Descent
    weights,  # (D, H) floatX, changed; these three: Machine
    hidden_bias,  # (H,) floatX, changed
    visible_bias,  # (D,) floatX, changed
    is_persistent,  # bool: PCD
    n_steps,  # k
    j,  # the pixel that is flipped
    states,  # of the first samples of the chains of CD
    size,
    n_longer,
    n_more,
    more,
    v_states,
    v_size,
    v_n_longer,
    v_n_more,
    v_more,
    h_states,
    h_size,
    h_n_longer,
    h_n_more,
    h_more,
    positive,  # these six: Activations; but for h, where PCD's chains stand, scratch
    v,
    negative,
    h,
    cost_terms,
    image_costs,
    step,  # the place of the minibatch's cost
    costs,  # floatX, overwritten there with the cost before the update
):
    """Train a minibatch."""
    grid = cuda.cg.this_grid()
    thread, _ = thread_of_grid()
    inverse_batch_size = like(pixel_scale, 1) / like(pixel_scale, v.shape[0])
    images = Images(x, start, v.shape[0], pixel_scale)
    machine = Machine(weights, hidden_bias, visible_bias)
    activations = Activations(positive, v, negative, h, cost_terms, image_costs)
    first_draws = Position(states, size, n_longer, n_more, more)
    v_draws = Position(v_states, v_size, v_n_longer, v_n_more, v_more)
    h_draws = Position(h_states, h_size, h_n_longer, h_n_more, h_more)
    _begin_phase(images, machine, first_draws, activations, is_persistent, j)
    grid.sync()
    for number in range(n_steps):
        _visible_phase(images, machine, v_draws, activations, is_persistent)
        grid.sync()
        _hidden_phase(machine, h_draws, activations, is_persistent or n_steps > 1)
        if number == n_steps - 1:
            _cost_phase(images, machine, activations, is_persistent, j)
        grid.sync()
    _update_phase(images, descent, inverse_batch_size, machine, activations)
    if thread == 0:
        costs[step] = ordered_sum(image_costs) * inverse_batch_size
