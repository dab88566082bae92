"""A dense layer on the CPU: forward, backward, gradient and update, cut into independent tasks.

For a layer of weights W (n_in, n_out) and bias b (n_out,), with h_0 (B, n_in) the activations below
it, h_1 (B, n_out) its own, e_0 and e_1 their errors and s the activation, the formulas are::

    h_1      = s(h_0 W + b)            forward_panel; or sum_block, then add_sums, activate_all
    e_0      = (e_1 W^T) s'(h_0)       backward_panels
    dcost/dW = h_0^T e_1               add_gradient
    W       -= rate dcost/dW           update_panels
    b       -= rate sum_i e_1          add_bias_gradient, apply_bias_gradient

Inputs and units are cut into panels of LANES. The weights are stored by panels of inputs, and so is
their gradient: a task has some panels of inputs, (start, stop), and does all that concerns their
weights. Tasks write to different places and may run in parallel. No sum is shared between tasks, so
the bits do not depend on threads.

Only h_0 W sums over inputs, and there are two ways:

- Of many images, ``forward_panel`` computes a panel of units. It needs the weights by panels of
  units: a second copy, which ``update_panels`` keeps up to date (``with_copy``).
- Of few images, ``sum_block`` writes what a block of inputs adds to all units, and ``add_sums``
  adds the blocks' sums in order (``with_sums``). A second copy would take longer than the products.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.cpu import (
    activate,
    activation_slope,
    element,
    is_l2_alone,
    l2_factor,
    penalty,
    penalty_gradient,
    set_element,
    sgd_step,
    softmax_cross_entropy,
)
from msgd.kernels.products import GROUP, TWO_VECTORS, Factor, Panel, add_product
from msgd.kernels.vectors import (
    LANES,
    add,
    aligned_zeros,
    fma,
    lane_sum,
    load,
    multiply_add,
    splat,
    store,
)

BLOCK = 4 * LANES  # inputs whose part of a product is summed on its own
LOGITS = -1  # the kind of Activations that no activation was applied to


class Activations(NamedTuple):
    """What a layer computes for T images, or the pixels of T images.

    Image i's units are h[i stride : + n_units]. The row ends with padding, because vectors reach
    beyond the last unit. The padding of ``error`` is 0 as long as that of the weights is.
    """

    kind: int  # of activation that made h: TANH, SIGMOID, or LOGITS for none
    stride: int  # from a row to the next
    h: np.ndarray  # flat (T, stride) floatX
    error: np.ndarray  # flat (T, stride) floatX: derivatives of the cost by the activation's input


class DenseLayer(NamedTuple):
    """The parameters of a dense layer and their gradients; all arrays are floatX.

    Inputs and units are cut into panels of LANES. Padding of the weights is 0 and stays 0.
    """

    n_in: int
    n_out: int
    n_rows: int  # n_out rounded up to a multiple of GROUP
    weights: np.ndarray  # flat (panels in whole blocks, n_rows, LANES): W^T, by panels of inputs
    gradient: np.ndarray  # as weights; zeros between minibatches
    bias: np.ndarray  # (width,): n_out rounded up to a multiple of LANES
    bias_gradient: np.ndarray  # (width,); zeros between minibatches
    copy: np.ndarray  # flat (width / LANES, n_in, LANES): W, by panels of units; or empty
    sums: np.ndarray  # (blocks, T width), scratch: what a block's inputs add to units; or empty


# In NumPy: run once per Backend, or per snapshot.


def padded(n, multiple=LANES):
    """Return ``n`` rounded up to a multiple of ``multiple``."""
    return -(-n // multiple) * multiple


def new_activations(n_images, n_units, kind, float_x, has_error=True):
    """Return Activations, all 0, for tiles of up to n_images; without errors for pixels."""
    # A vector of padding at least. An odd number of vectors, because rows a power of two apart
    # would share few lines of the cache.
    n_vectors = padded(n_units) // LANES + 1
    stride = (n_vectors + 1 - n_vectors % 2) * LANES
    size = padded(n_images, GROUP) * stride
    h, error = aligned_zeros(size, float_x), aligned_zeros(size if has_error else 0, float_x)
    return Activations(kind, stride, h, error)


def new_dense_layer(n_in, n_out, float_x):
    """Return a DenseLayer whose parameters are all 0, with neither copy nor sums."""
    n_rows, width = padded(n_out, GROUP), padded(n_out)
    return DenseLayer(
        n_in=n_in,
        n_out=n_out,
        n_rows=n_rows,
        weights=aligned_zeros(padded(n_in, BLOCK) * n_rows, float_x),
        gradient=aligned_zeros(padded(n_in, BLOCK) * n_rows, float_x),
        bias=aligned_zeros(width, float_x),
        bias_gradient=aligned_zeros(width, float_x),
        copy=aligned_zeros(0, float_x),
        sums=aligned_zeros(0, float_x).reshape(0, 0),
    )


def with_copy(layer):
    """Return ``layer``, whose weights are 0, with a second copy of them."""
    return layer._replace(copy=aligned_zeros(len(layer.bias) * layer.n_in, layer.bias.dtype))


def with_sums(layer, n_images):
    """Return ``layer`` with room for the sums of all blocks of inputs, of up to n_images."""
    n_blocks = -(-layer.n_in // BLOCK)
    sums = aligned_zeros(n_blocks * n_images * len(layer.bias), layer.bias.dtype)
    return layer._replace(sums=sums.reshape(n_blocks, -1))


def set_dense_parameters(layer, weights, bias):
    """Copy weights (n_in, n_out) and bias (n_out,) into ``layer``."""
    panels = _to_panels(weights.T, layer.n_rows)
    layer.weights[: len(panels)] = panels
    if layer.copy.size > 0:
        layer.copy[:] = _to_panels(weights, layer.n_in)
    layer.bias[: layer.n_out] = bias


def get_dense_parameters(layer):
    """Return copies of the layer's weights (n_in, n_out) and bias (n_out,)."""
    panels = layer.weights.reshape(-1, layer.n_rows, LANES)
    weights = panels.transpose(0, 2, 1).reshape(-1, layer.n_rows)[: layer.n_in, : layer.n_out]
    return weights.copy(), layer.bias[: layer.n_out].copy()  # of one input it would be a view


def _to_panels(matrix, n_rows):
    """Return a matrix (n, m) as flat panels (ceil(m / LANES), n_rows, LANES), padded with zeros."""
    n, m = matrix.shape
    rows = np.zeros((n_rows, padded(m)), matrix.dtype)
    rows[:n, :m] = matrix
    return rows.reshape(n_rows, -1, LANES).transpose(1, 0, 2).ravel()


# How many panels there are.


@njit(**options.CPU)
def n_unit_panels(layer):
    """Return how many panels of LANES the units of a DenseLayer fill."""
    return layer.bias.shape[0] // LANES


@njit(**options.CPU)
def n_input_panels(layer):
    """Return how many panels of LANES the inputs of a DenseLayer fill."""
    return (layer.n_in + LANES - 1) // LANES


# Kernels. layer: DenseLayer; below, above: Activations of its inputs and of its units; n: images,
# of which padded(n, GROUP) must fit into the Activations; panels: (start, stop), of inputs.


@njit(**options.CPU)
def forward_panel(layer, below, above, n, panel):
    """Overwrite above.h of n images, units ``panel`` LANES up to the next panel, from the copy."""
    unit, n_grouped = panel * LANES, _grouped(n)
    bias = load(layer.bias, unit)
    for i in range(n_grouped):
        store(above.h, i * above.stride + unit, bias)
    add_product(
        Factor(below.h, 0, below.stride, 1),
        n_grouped,
        layer.n_in,
        Panel(layer.copy, unit * layer.n_in, LANES),
        Panel(above.h, unit, above.stride),
        TWO_VECTORS,
    )
    if above.kind != LOGITS:
        for i in range(n):
            at = i * above.stride + unit
            activate_all(above.h[at : at + LANES], above.kind)


@njit(**options.CPU_INLINE)
def sum_block(layer, below, images, block):
    """Overwrite the sums of a block of inputs, for images (start, stop).

    A row of sums is an image's, as long as the layer's bias.
    """
    sums, width = layer.sums[block], layer.bias.shape[0]
    start, stop = images
    for i in range(start, stop):
        for k in range(layer.n_out):
            product = _dot(layer, block, k, below.h, i * below.stride + block * BLOCK)
            set_element(sums, i * width + k, product)


@njit(**options.CPU_INLINE)
def _dot(layer, block, k, h, at):
    """Return the dot product of h[at : at + BLOCK] and of unit k's weights of a block of inputs."""
    total = splat(h, 0)
    for panel in range(BLOCK // LANES):
        place = ((block * (BLOCK // LANES) + panel) * layer.n_rows + k) * LANES
        total = multiply_add(load(h, at + panel * LANES), load(layer.weights, place), total)
    return lane_sum(total)


@njit(**options.CPU)
def add_sums(layer, above, units, n):
    """Overwrite above.h for units (start, stop) of n images: the bias and all sums, in order."""
    width = layer.bias.shape[0]
    start, stop = units
    for i in range(n):
        for u in range(start, stop, LANES):
            total = load(layer.bias, u)
            for block in range(layer.sums.shape[0]):
                total = add(total, load(layer.sums[block], i * width + u))
            store(above.h, i * above.stride + u, total)


@njit(**options.CPU_INLINE)
def backward_panels(layer, below, above, n, panels):
    """Overwrite below.error of n images, panels of inputs."""
    n_grouped = _grouped(n)
    for panel in range(panels[0], panels[1]):
        first = panel * LANES
        for i in range(n_grouped):
            store(below.error, i * below.stride + first, splat(below.error, 0))
        add_product(
            Factor(above.error, 0, above.stride, 1),
            n_grouped,
            layer.n_out,
            Panel(layer.weights, first * layer.n_rows, LANES),
            Panel(below.error, first, below.stride),
            TWO_VECTORS,
        )
    for i in range(n):
        at = i * below.stride
        for u in range(at + panels[0] * LANES, at + panels[1] * LANES):
            slope = activation_slope(element(below.h, u), below.kind)
            set_element(below.error, u, slope * element(below.error, u))


@njit(**options.CPU_INLINE)
def add_gradient(layer, below, above, n, panels):
    """Add n images' gradients to those of the weights of panels of inputs."""
    for unit in range(0, layer.n_rows, LANES):  # outermost: the errors are larger than the inputs
        for panel in range(panels[0], panels[1]):
            add_product(
                Factor(above.error, unit, 1, above.stride),  # transposed: a row is a unit
                min(LANES, layer.n_rows - unit),
                n,
                Panel(below.h, panel * LANES, below.stride),
                Panel(layer.gradient, (panel * layer.n_rows + unit) * LANES, LANES),
                TWO_VECTORS,
            )


@njit(**options.CPU)
def add_bias_gradient(layer, above, n):
    """Add n images' gradients to those of the biases."""
    for i in range(n):
        for unit in range(layer.n_out):
            layer.bias_gradient[unit] += above.error[i * above.stride + unit]


@njit(**options.CPU)
def apply_bias_gradient(layer, descent):
    """Update the biases by their gradients, and set these to 0."""
    for unit in range(layer.n_out):
        layer.bias[unit] = sgd_step(layer.bias[unit], layer.bias_gradient[unit], descent)
        layer.bias_gradient[unit] = 0


@njit(**options.CPU_INLINE)
def update_panels(layer, descent, panels):
    """Update the weights of panels of inputs, return their penalty before; zero their gradients.

    descent: msgd.kernels.arguments.Descent.
    """
    _clear_padding(layer, panels)
    if is_l2_alone(descent):
        total = _update_vectors(layer, descent, panels)
    else:
        total = _update_one_by_one(layer, descent, panels)
    if layer.copy.size > 0:
        _refresh_copy(layer, panels)
    return total


@njit(**options.CPU)
def _clear_padding(layer, panels):
    """Set the gradients of inputs beyond the last to 0: there h_0 is anything."""
    for d in range(layer.n_in, panels[1] * LANES):
        for k in range(layer.n_rows):
            layer.gradient[_index(layer, d, k)] = 0


@njit(**options.CPU_INLINE)
def _update_vectors(layer, descent, panels):
    """Update panels of weights as update_panels does, without l1 and lp.

    A step on l2 w^2 multiplies w by one factor. Without l2 the step has one rounding.
    """
    weights, gradient = layer.weights, layer.gradient
    factor = l2_factor(descent)
    # The squares go into two sums, a panel's into either in turn, so that an addition need not wait
    # for the one before it. The sums change their names after each panel.
    due = other = zero = splat(weights, 0)
    for panel in range(panels[0], panels[1]):
        squares = zero
        for at in range(panel * layer.n_rows * LANES, (panel + 1) * layer.n_rows * LANES, LANES):
            old, step = load(weights, at), load(gradient, at)
            squares = multiply_add(old, old, squares)
            if descent.l2 == 0:
                store(weights, at, fma(-descent.rate, step, old))
            else:
                store(weights, at, fma(factor, old, fma(-descent.rate, step, zero)))
            store(gradient, at, zero)
        due, other = other, add(due, squares)
    # Not simply the product: squares may overflow, and 0 times infinity is no number.
    return descent.l2 * lane_sum(add(due, other)) if descent.l2 != 0 else descent.l2


@njit(**options.CPU)
def _update_one_by_one(layer, descent, panels):
    """Update panels of weights as update_panels does, with any penalties."""
    total = layer.bias.dtype.type(0)
    for k in range(layer.n_out):
        for d in range(panels[0] * LANES, min(panels[1] * LANES, layer.n_in)):
            at = _index(layer, d, k)
            weight = layer.weights[at]
            total += penalty(weight, descent)
            gradient = layer.gradient[at] + penalty_gradient(weight, descent)
            layer.weights[at] = sgd_step(weight, gradient, descent)
            layer.gradient[at] = 0
    return total


@njit(**options.CPU)
def _refresh_copy(layer, panels):
    """Overwrite the copy of the weights of panels of inputs."""
    for unit in range(0, layer.n_out, LANES):
        for d in range(panels[0] * LANES, min(panels[1] * LANES, layer.n_in)):
            to, at = (unit // LANES * layer.n_in + d) * LANES, _index(layer, d, unit)
            for k in range(min(LANES, layer.n_out - unit)):
                set_element(layer.copy, to + k, element(layer.weights, at + k * LANES))


@njit(**options.CPU)
def _index(layer, d, k):
    """Return where ``weights`` has the weight of input d and unit k."""
    return (d // LANES * layer.n_rows + k) * LANES + d % LANES


@njit(**options.CPU)
def loss(above, n_classes, labels, inverse_batch_size, first, last):
    """Overwrite above.error of images first..last-1; return the sum of their losses.

    above: Activations of kind LOGITS; labels: (T,) integers, the classes of the images; the loss is
    the negative log-likelihood, the errors are the gradient of its mean over the minibatch.
    """
    total = above.h.dtype.type(0)
    for i in range(first, last):
        row = slice(i * above.stride, i * above.stride + n_classes)
        logits, error = above.h[row], above.error[row]
        total += softmax_cross_entropy(logits, labels[i], inverse_batch_size, error)
    return total


@njit(**options.CPU)
def activate_all(h, kind):
    """Overwrite h (n,), inputs of the activation, with its values."""
    for k in range(h.shape[0]):
        h[k] = activate(h[k], kind)


@njit(**options.CPU)
def multiply_by_slope(error, h, kind):
    """Multiply error (n,) by the activation's derivative where its values are h (n,).

    So derivatives of the cost by h become those by what went into the activation.
    """
    for k in range(error.shape[0]):
        error[k] *= activation_slope(h[k], kind)


@njit(**options.CPU)
def _grouped(n):
    """Return n rounded up to whole groups; rows beyond n hold numbers of no meaning."""
    return (n + GROUP - 1) // GROUP * GROUP
