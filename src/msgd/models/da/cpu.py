"""The denoising auto-encoder on the CPU, fast; ``reference.py`` computes the same in plain loops.

What a step consists of is in ``tied_layer.py``; here are its schedule and its two parallel loops.
"""

from typing import NamedTuple

import numba
import numpy as np
from numba import njit, prange

from msgd.kernels import options
from msgd.kernels.cpu import ordered_sum
from msgd.kernels.dense_layer import BLOCK, Activations, new_activations, padded
from msgd.kernels.formulas import SIGMOID
from msgd.kernels.sparse import CSR, DCSC
from msgd.kernels.uniform import Position
from msgd.models.cpu_backend import CpuBackend
from msgd.models.da.corrupted import Masks, corrupt, new_corrupted
from msgd.models.da.model import mask_draws
from msgd.models.da.tied_layer import (
    IMAGES,
    Parts,
    TiedLayer,
    forward_block,
    get_tied_layer,
    new_parts,
    new_tied_layer,
    train_block,
    train_chunk,
)
from msgd.models.unsupervised_backend import NO_DRAWS, RandomNumbers


class Images(NamedTuple):
    """The training images, as they are stored and as lists of their nonzero pixels."""

    x: np.ndarray  # (N, D)
    by_image: CSR
    by_pixel: DCSC  # of the minibatches


class Network(NamedTuple):
    """The layer and what it computes."""

    layer: TiedLayer
    units: Activations  # y and e
    pixels: Activations  # x and d
    parts: Parts


class Backend(CpuBackend):
    """The CPU twin, and that of the contractive one; see msgd.models.interface.Backend."""

    def allocate(self):
        """Make room for a minibatch; start the threads, as LeNet's Backend does."""
        numba.get_num_threads()
        n_images, n_features = self.batch_size, self.dataset.n_features
        self.share = self.float_x(1 - self.settings.get("corruption", 0))
        draws = mask_draws(n_features, self.settings) if self.share < 1 else NO_DRAWS
        self.random_numbers = RandomNumbers(draws)
        self.mask = np.ones(n_images * n_features, np.uint8)

    def train_span(self, first, last, costs):
        """Train minibatches first..last-1 and write their costs, (last - first,) floatX."""
        self._train_tied(first, last, costs, np.empty_like(costs))

    def _train_tied(self, first, last, costs, jacobians):
        """As train_span; jacobians: as costs, overwritten with |J|^2 / B of a contractive one."""
        lists = self._lists("train")
        images = Images(self.dataset.train_x, lists.by_image, lists.by_pixel)
        indices = lists.by_image.indices.dtype, lists.by_pixel.indices.dtype
        corrupted = tuple(
            new_corrupted(self.batch_size, self.dataset.n_features, indices, self.float_x)
            for _ in range(2)
        )
        masks = Masks(self.share, self.mask, self.random_numbers.span(first, last))
        _train(
            *(images, masks, self.minibatches, self.descent, first, self.network, corrupted),
            *(costs, jacobians),
        )

    def get_parameters(self):
        """See msgd.models.interface.Backend.get_parameters."""
        arrays = get_tied_layer(self.network.layer, self.dataset.n_features, self.n_hidden)
        return dict(zip(self.expected, arrays, strict=True))

    def keep_parameters(self, parameters):
        """See msgd.models.cpu_backend.CpuBackend."""
        layer = new_tied_layer(*parameters.values())
        self.n_hidden = len(parameters["hidden_bias"])
        n_images = padded(self.batch_size, IMAGES)
        units, pixels = (
            new_activations(n_images, len(bias), SIGMOID, self.float_x)
            for bias in (layer.bias, layer.visible_bias)
        )
        parts = new_parts(layer, n_images, self.settings.get("contraction"))
        self.network = Network(layer, units, pixels, parts)


@njit(**options.CPU_ENTRY)
def _train(images, masks, minibatches, descent, first, network, corrupted, costs, jacobians):
    """Train a span of minibatches, the first of which is iteration ``first``.

    images: Images; masks: Masks; minibatches: Minibatches; descent: Descent; network: Network,
    changed; corrupted: two Corrupted, scratch; costs, jacobians: (minibatches of the span,) floatX,
    overwritten with the cost and |J|^2 / B of each before its step.
    """
    per_epoch, (now, following) = minibatches.per_epoch, corrupted
    _begin(first % per_epoch, images, masks, minibatches, descent, network, now)
    for step in range(costs.shape[0]):
        after = (first + step + 1) % per_epoch if step + 1 < costs.shape[0] else np.int64(-1)
        image = (first + step) % per_epoch * minibatches.size
        _train_chunks(image, after, images, masks, minibatches, descent, network, following)
        cost = ordered_sum(network.parts.costs) * minibatches.inverse_size
        _train_blocks(after, minibatches, descent, network, now, following)
        jacobians[step] = ordered_sum(network.parts.jacobians)
        costs[step] = cost + network.parts.contraction * jacobians[step]
        now, following = following, now


@njit(**options.CPU)
def _begin(minibatch, images, masks, minibatches, descent, network, corrupted):
    """Overwrite a Corrupted and the units with those of the first minibatch of a span."""
    lists = images.by_image, images.by_pixel
    corrupt(minibatch, lists, minibatches.pixel_scale, tuple(masks), corrupted)
    for block in range(network.layer.bias.shape[0] // BLOCK):
        layer, units, parts = network.layer, network.units, network.parts
        forward_block(block, corrupted.by_image, minibatches, descent, layer, units, parts)


@njit(**options.CPU_PARALLEL_INNER)
def _train_chunks(image, after, images, masks, minibatches, descent, network, following):
    """Take a minibatch, whose first image is ``image``, forward and back through the pixels.

    after: the number of the next minibatch in the epoch, or -1; following: its Corrupted,
    overwritten; the others: as in _train.
    """
    # A parallel loop takes NamedTuples, but none that hold others. Numba must see what they are.
    x, by_image, by_pixel = images.x, CSR(*images.by_image), DCSC(*images.by_pixel)
    share, mask, position = masks.share, masks.mask, Position(*masks.position)
    to_images, to_pixels = CSR(*following.by_image), DCSC(*following.by_pixel)
    layer, parts = TiedLayer(*network.layer), Parts(*network.parts)
    units, pixels = Activations(*network.units), Activations(*network.pixels)
    n_chunks = parts.costs.shape[0]
    for index in prange(n_chunks + 1):
        task = np.int64(index)
        if task < n_chunks:
            train_chunk(task, image, x, minibatches, descent, layer, units, pixels, parts)
        elif after >= 0:
            lists, places = (by_image, by_pixel), (to_images, to_pixels)
            corrupt(after, lists, minibatches.pixel_scale, (share, mask, position), places)


@njit(**options.CPU_PARALLEL_INNER)
def _train_blocks(after, minibatches, descent, network, now, following):
    """Take a minibatch back through the units, and the next one forward to them.

    now, following: the Corrupted of either; the others: as in _train_chunks.
    """
    by_pixel, by_image = DCSC(*now.by_pixel), CSR(*following.by_image)
    layer, units, parts = (
        TiedLayer(*network.layer),
        Activations(*network.units),
        Parts(*network.parts),
    )
    for index in prange(layer.bias.shape[0] // BLOCK):
        block = np.int64(index)
        train_block(block, by_pixel, minibatches, descent, layer, units, parts)
        if after >= 0:
            forward_block(block, by_image, minibatches, descent, layer, units, parts)
