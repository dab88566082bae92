"""The restricted Boltzmann machine on the CPU, fast; ``reference.py`` has the same in plain loops.

A minibatch is two parallel loops: over its images, each of which runs its own chain through all
steps (``chains.py``), and over panels of hidden units, which are updated.

Two products are saved. s(v_k W + b) is what h_k was drawn from. And flipping a pixel changes what
goes into the hidden units by one row of W. No sum is shared between tasks, so the bits are the same
for any number of threads.
"""

from typing import NamedTuple

import numba
import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.cpu import element, ordered_sum
from msgd.kernels.formulas import like
from msgd.kernels.sigmoid import sigmoid_cross_entropy
from msgd.kernels.sparse import CSR
from msgd.kernels.tiles import no_dots
from msgd.kernels.uniform import Position
from msgd.kernels.vectors import (
    HALF,
    LANES,
    add,
    add_at,
    aligned_zeros,
    fma,
    fma_at,
    in_a_row,
    lane_max,
    lane_sum,
    load,
    load_at,
    splat,
    store,
    store_at,
    transpose,
)
from msgd.models.cpu_backend import CpuBackend
from msgd.models.rbm.chains import (
    PANEL,
    VECTORS,
    Units,
    draw_units,
    get_weights,
    list_ones,
    mean_given,
    n_panels,
    new_units,
    sample_given,
    set_weights,
    sum_ones,
    take_sigmoids,
)
from msgd.models.rbm.gibbs import GibbsNumbers, PersistentChain


class Work(NamedTuple):
    """Scratch of a minibatch of B images: where they differ from the end of their chains."""

    positive: np.ndarray  # flat (B, stride of the hidden units) floatX: s(x W + b)
    pixels: np.ndarray  # flat (B, stride of the visible units) floatX: x, of CD
    costs: np.ndarray  # (B,) floatX
    # By pixel, the images where it is not 0: in x, with its values, and in the chain's last sample.
    n_images: np.ndarray  # (D,) int64
    images: np.ndarray  # flat (D, B) int64
    values: np.ndarray  # flat (D, B) floatX
    n_samples: np.ndarray  # (D,) int64
    samples: np.ndarray  # flat (D, B) int64


class Backend(PersistentChain, CpuBackend):
    """The CPU twin; see msgd.models.interface.Backend."""

    def allocate(self):
        """Make the scratch arrays; start the threads, as the MLP's Backend does."""
        numba.get_num_threads()
        self.numbers = GibbsNumbers(self.dataset.n_features, self.settings)
        hidden, visible = self.hidden, self.visible
        size, float_x = self.batch_size, self.float_x
        self.work = Work(
            positive=aligned_zeros(size * hidden.stride, float_x),
            pixels=aligned_zeros(size * visible.stride, float_x),
            costs=np.zeros(size, float_x),
            n_images=np.zeros(visible.n, np.int64),
            images=np.zeros(visible.n * size, np.int64),
            values=np.zeros(visible.n * size, float_x),
            n_samples=np.zeros(visible.n, np.int64),
            samples=np.zeros(visible.n * size, np.int64),
        )

    def _list_for_training(self, lists):
        """See CpuBackend._list_for_training: the images alone serve."""

    def train_span(self, first, last, costs):
        """Train minibatches first..last-1 and write their costs, (last - first,) floatX."""
        images = self._lists("train").by_image
        sampling = self.numbers.span(first, last)
        n_tasks = min(self.batch_size, numba.get_num_threads())
        layers = self.visible, self.hidden
        _train(
            images,
            self.minibatches,
            self.descent,
            first,
            layers,
            sampling,
            self.work,
            n_tasks,
            costs,
        )

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        hidden, visible = self.hidden, self.visible
        arrays = (
            get_weights(hidden, visible.n),
            hidden.bias[: hidden.n].copy(),
            visible.bias[: visible.n].copy(),
        )
        return dict(zip(self.expected, arrays, strict=True))

    def keep_parameters(self, parameters):
        """See msgd.models.cpu_backend.CpuBackend. The chain stays where it is."""
        weights, hidden_bias, visible_bias = parameters.values()
        if not hasattr(self, "hidden"):
            (n_visible, n_hidden), size = weights.shape, self.batch_size
            self.hidden = new_units(size, n_hidden, n_visible, self.float_x)
            self.visible = new_units(size, n_visible, n_hidden, self.float_x)
        set_weights(self.hidden, weights)
        set_weights(self.visible, weights.T)
        self.hidden.bias[: self.hidden.n] = hidden_bias
        self.visible.bias[: self.visible.n] = visible_bias

    def fetch_chain(self):
        """See msgd.models.rbm.gibbs.PersistentChain."""
        return self._chain().copy()

    def keep_chain(self, chain):
        """See msgd.models.rbm.gibbs.PersistentChain."""
        self._chain()[:] = chain

    def _chain(self):
        """Return h, (B, H) uint8, a view."""
        marks = self.hidden.marks[: self.batch_size * self.hidden.stride]
        return marks.reshape(self.batch_size, -1)[:, : self.hidden.n]


class Task(NamedTuple):
    """A minibatch of training."""

    first_image: int
    size: int  # B
    flipped: int  # j, the pixel of the pseudo-likelihood
    pixel_scale: np.floating  # what a stored pixel is multiplied by to become floatX


@njit(**options.CPU_ENTRY)
def _train(images, minibatches, descent, first, layers, sampling, work, n_tasks, costs):
    """Train a span of minibatches, the first of which is iteration ``first``.

    images: CSR of the training images; minibatches: Minibatches; descent: Descent; layers: Units
    (visible, hidden), changed; sampling: gibbs.Sampling; work: Work, scratch; n_tasks: how many
    parts the images of a minibatch are cut into; costs: (minibatches of the span,) floatX,
    overwritten.
    """
    visible, hidden = layers
    for i in range(minibatches.size):
        list_ones(hidden, i)  # by the marks, which are what is saved
    for step in range(costs.shape[0]):
        iteration = first + step
        start = iteration % minibatches.per_epoch * minibatches.size
        task = Task(start, minibatches.size, iteration % visible.n, minibatches.pixel_scale)
        _run_chains(images, task, layers, sampling, work, n_tasks)
        costs[step] = ordered_sum(work.costs) * minibatches.inverse_size
        _list_by_pixel(images, task, visible, work)
        _update(layers, work, descent, minibatches)


@njit(**options.CPU_PARALLEL_INNER)
def _run_chains(images, task, layers, sampling, work, n_tasks):
    """Run the chains of all images; overwrite work.positive and work.costs. See _train."""
    # A parallel loop takes NamedTuples, but none that hold others. Numba must see what they are.
    by_image, scratch = CSR(*images), Work(*work)
    visible, hidden = Units(*layers[0]), Units(*layers[1])
    positive = Position(*sampling.positive)
    of_visible, of_hidden = Position(*sampling.visible), Position(*sampling.hidden)
    is_persistent, n_steps = sampling.is_persistent, sampling.n_steps
    for index in prange(n_tasks):
        part = np.int64(index)
        rows = part * task.size // n_tasks, (part + 1) * task.size // n_tasks
        _begin_positive(by_image, task, rows, hidden, scratch)
        if is_persistent:
            _pseudo_likelihood(by_image, task, rows, visible, hidden, scratch.costs)
        else:
            for i in range(rows[0], rows[1]):
                draw_units(hidden, positive, scratch.positive, i)
        for _ in range(n_steps - 1):
            sample_given(visible, hidden, of_visible, rows)
            sample_given(hidden, visible, of_hidden, rows)
        _last_step(by_image, task, rows, visible, hidden, scratch, is_persistent)
        for i in range(rows[0], rows[1]):
            draw_units(visible, of_visible, visible.means, i)
        mean_given(hidden, visible, rows)
        if is_persistent or n_steps > 1:
            for i in range(rows[0], rows[1]):
                draw_units(hidden, of_hidden, hidden.means, i)


# rows: (start, stop), images of the minibatch; by_image: CSR of the training images.


@njit(**options.CPU)
def _begin_positive(by_image, task, rows, hidden, work):
    """Overwrite work.positive with s(x W + b)."""
    for panel in range(n_panels(hidden)):
        first = panel * hidden.n_rows * PANEL
        for i in range(rows[0], rows[1]):
            sums = load_at(hidden.bias, panel * PANEL, in_a_row(VECTORS))
            image = task.first_image + i
            for entry in range(by_image.indptr[image], by_image.indptr[image + 1]):
                row = first + np.int64(by_image.indices[entry]) * PANEL
                x = _pixel(by_image, entry, task)
                sums = fma_at(x, hidden.weights, row, in_a_row(VECTORS), sums)
            at = i * hidden.stride + panel * PANEL
            store_at(work.positive, at, in_a_row(VECTORS), sums)
    take_sigmoids(work.positive, rows[0] * hidden.stride, rows[1] * hidden.stride)


@njit(**options.CPU_INLINE)
def _pixel(by_image, entry, task):
    """Return the pixel of an entry, floatX."""
    return like(task.pixel_scale, by_image.data[entry]) * task.pixel_scale


@njit(**options.CPU)
def _pseudo_likelihood(by_image, task, rows, visible, hidden, costs):
    """Overwrite costs (B,) with D log s(F(r') - F(r)) of each image.

    Overwrites the lists of ones of v with those of r, and the means of h.
    """
    is_one = np.empty(rows[1] - rows[0], np.bool_)
    for i in range(rows[0], rows[1]):
        image, count, is_one[i - rows[0]] = task.first_image + i, 0, False
        for entry in range(by_image.indptr[image], by_image.indptr[image + 1]):
            if _pixel(by_image, entry, task) > like(task.pixel_scale, 0.5):
                pixel = np.int64(by_image.indices[entry])
                visible.ones[i * visible.stride + count] = pixel
                is_one[i - rows[0]] |= pixel == task.flipped
                count += 1
        visible.n_ones[i] = count
    sum_ones(hidden, visible.ones, visible.n_ones, visible.stride, rows, hidden.means)
    for i in range(rows[0], rows[1]):
        change = like(task.pixel_scale, -1 if is_one[i - rows[0]] else 1)
        energy = change * visible.bias[task.flipped] + _energy_change(i, change, task, hidden)
        # As a vector: of the C library's log1p the last bit may be another on the next machine.
        lost = lane_max(_softplus(splat(costs, energy), costs))
        costs[i] = -like(energy, visible.n) * lost


@njit(**options.CPU)
def _energy_change(i, change, task, hidden):
    """Return sum softplus(r' W + b) - softplus(r W + b) of image i; hidden.means: r W + b."""
    total = splat(hidden.means, 0)
    for panel in range(n_panels(hidden)):
        row = (panel * hidden.n_rows + task.flipped) * PANEL
        for k in range(0, PANEL, LANES):
            a = load(hidden.means, i * hidden.stride + panel * PANEL + k)
            flipped = fma(change, load(hidden.weights, row + k), a)
            before = fma(-1, _softplus(a, hidden.means), total)
            total = add(before, _softplus(flipped, hidden.means))
    return lane_sum(total)


@njit(**options.CPU_INLINE)
def _softplus(a, array):
    """Return log(1 + exp(a)) of a vector, of the type of ``array``."""
    return sigmoid_cross_entropy(a, splat(array, 0), array)[1]


@njit(**options.CPU)
def _last_step(by_image, task, rows, visible, hidden, work, is_persistent):
    """Take the first half of the chains' last step: overwrite v, and of CD the costs."""
    sum_ones(visible, hidden.ones, hidden.n_ones, hidden.stride, rows, visible.means)
    if not is_persistent:
        for i in range(rows[0], rows[1]):
            _fill_pixels(by_image, task, i, visible, work.pixels)
            work.costs[i] = _log_likelihood(i, visible, work.pixels)
    take_sigmoids(visible.means, rows[0] * visible.stride, rows[1] * visible.stride)


@njit(**options.CPU)
def _fill_pixels(by_image, task, i, visible, pixels):
    """Overwrite row i of pixels (B, stride) with image i; the padding stays 0."""
    start, image = i * visible.stride, task.first_image + i
    pixels[start : start + visible.n] = 0
    for entry in range(by_image.indptr[image], by_image.indptr[image + 1]):
        pixels[start + by_image.indices[entry]] = _pixel(by_image, entry, task)


@njit(**options.CPU)
def _log_likelihood(i, visible, pixels):
    """Return sum_d (x log s(a) + (1 - x) log(1 - s(a))) of image i; visible.means: a."""
    total = splat(pixels, 0)
    for at in range(i * visible.stride, (i + 1) * visible.stride, LANES):
        x = load(pixels, at)
        total = add(total, sigmoid_cross_entropy(load(visible.means, at), x, pixels)[1])
    return -lane_sum(total)


@njit(**options.CPU)
def _list_by_pixel(by_image, task, visible, work):
    """Overwrite the lists of images and of samples by pixel."""
    work.n_images[:] = 0
    work.n_samples[:] = 0
    for i in range(task.size):
        image = task.first_image + i
        for entry in range(by_image.indptr[image], by_image.indptr[image + 1]):
            d = np.int64(by_image.indices[entry])
            at = d * task.size + work.n_images[d]
            work.images[at], work.values[at] = i, _pixel(by_image, entry, task)
            work.n_images[d] += 1
        start = i * visible.stride
        for k in range(start, start + visible.n_ones[i]):
            d = visible.ones[k]
            work.samples[d * task.size + work.n_samples[d]] = i
            work.n_samples[d] += 1


@njit(**options.CPU_PARALLEL_INNER)
def _update(layers, work, descent, minibatches):
    """Take a step of SGD. See _train."""
    visible, hidden, scratch = Units(*layers[0]), Units(*layers[1]), Work(*work)
    size, rate = minibatches.size, descent.rate * minibatches.inverse_size
    for index in prange(n_panels(hidden)):
        panel = np.int64(index)
        _update_weights(panel, visible, hidden, scratch, size, rate)
        _update_hidden_bias(panel, hidden, scratch, size, rate)
    _update_visible_bias(visible, scratch, size, rate)


@njit(**options.CPU)
def _update_weights(panel, visible, hidden, work, size, rate):
    """Update a panel of hidden units of W, and of its copy; rate: learning rate / B."""
    weights, gradient = hidden.weights, aligned_zeros(PANEL, hidden.weights.dtype)
    for first in range(0, hidden.n_rows, HALF):
        for d in range(first, min(first + HALF, visible.n)):
            if work.n_images[d] + work.n_samples[d] > 0:
                _sum_gradient(d, panel, hidden, work, size, gradient)
                row = (panel * hidden.n_rows + d) * PANEL
                for k in range(0, PANEL, LANES):
                    moved = fma(-rate, load(gradient, k), load(weights, row + k))
                    store(weights, row + k, moved)
        _copy_rows(panel, first, visible, hidden)


@njit(**options.CPU_INLINE)
def _sum_gradient(d, panel, hidden, work, size, gradient):
    """Overwrite gradient (PANEL,) with v^T s(v W + b) - x^T s(x W + b) of pixel d and a panel."""
    sums, column = no_dots(gradient, (0,), VECTORS), panel * PANEL
    for k in range(d * size, d * size + work.n_images[d]):
        at = element(work.images, k) * hidden.stride + column
        sums = fma_at(-element(work.values, k), work.positive, at, in_a_row(VECTORS), sums)
    for k in range(d * size, d * size + work.n_samples[d]):
        at = element(work.samples, k) * hidden.stride + column
        sums = add_at(hidden.means, at, in_a_row(VECTORS), sums)
    store_at(gradient, np.int64(0), in_a_row(VECTORS), sums)


@njit(**options.CPU)
def _copy_rows(panel, first, visible, hidden):
    """Copy the weights of HALF pixels from ``first`` on and of a panel of hidden units."""
    row = (panel * hidden.n_rows + first) * PANEL
    block = first // PANEL * visible.n_rows * PANEL + first % PANEL
    for u in range(panel * PANEL, min((panel + 1) * PANEL, visible.n_rows), HALF):
        to = block + u * PANEL
        transpose(hidden.weights, row + u % PANEL, PANEL, visible.weights, to, PANEL)


@njit(**options.CPU)
def _update_hidden_bias(panel, hidden, work, size, rate):
    """Update the biases of a panel of hidden units; rate: learning rate / B."""
    for u in range(panel * PANEL, (panel + 1) * PANEL, LANES):
        total = splat(hidden.bias, 0)
        for at in range(u, u + size * hidden.stride, hidden.stride):
            total = add(total, fma(-1, load(work.positive, at), load(hidden.means, at)))
        store(hidden.bias, u, fma(-rate, total, load(hidden.bias, u)))


@njit(**options.CPU)
def _update_visible_bias(visible, work, size, rate):
    """Update the biases of the visible units; rate: learning rate / B."""
    for d in range(visible.n):
        total = like(rate, work.n_samples[d])
        for k in range(d * size, d * size + work.n_images[d]):
            total -= work.values[k]
        visible.bias[d] -= rate * total
