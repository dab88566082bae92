"""A dense layer on the CPU: forward, backward, gradient and update, cut into independent tasks.

For a layer of weights W (n_in, n_out) and bias b (n_out,), with h_0 (B, n_in) the activations below
it, h_1 (B, n_out) its own, e_0 and e_1 their errors and s the activation, the formulas are::

    h_1      = s(h_0 W + b)            forward_panel:   a task computes LANES units
    e_0      = (e_1 W^T) s'(h_0)       backward_panel:  a task computes LANES inputs
    dcost/dW = h_0^T e_1               block_gradient:  a task computes INPUT_BLOCK inputs' weights
    W       -= rate dcost/dW           update_block:    a task updates INPUT_BLOCK inputs' weights

The tasks of one line write to different places and may run in parallel: forward_panel for panel <
n_unit_panels(layer), backward_panel for panel < n_input_panels(layer), the others for block <
n_input_blocks(layer). No sum is shared between tasks, so the bits do not depend on threads.

The weights are stored twice, because forward walks over them by units and backward by inputs.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from msgd.kernels import options
from msgd.kernels.cpu import (
    activate,
    activation_slope,
    element,
    penalty,
    penalty_gradient,
    set_element,
    sgd_step,
    softmax_cross_entropy,
)
from msgd.kernels.products import GROUP, TWO_VECTORS, Factor, Panel, add_product
from msgd.kernels.vectors import (
    LANES,
    aligned_zeros,
    fma,
    lane_sum,
    load,
    multiply,
    multiply_add,
    splat,
    store,
)

INPUT_BLOCK = 32  # inputs of a dense layer whose weights are one task; a multiple of LANES
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
    n_rows: int  # n_in rounded up to a multiple of GROUP
    n_out: int
    width: int  # n_out rounded up to a multiple of LANES
    forward_weights: np.ndarray  # flat (width / LANES, n_rows, LANES): panels of units
    backward_weights: np.ndarray  # flat (ceil(n_in / LANES), n_out, LANES): panels of inputs
    bias: np.ndarray  # (width,)
    weights_gradient: np.ndarray  # as forward_weights; zeros between minibatches
    bias_gradient: np.ndarray  # (width,); zeros between minibatches


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
    """Return a DenseLayer whose parameters are all 0."""
    n_rows, width = padded(n_in, GROUP), padded(n_out)
    return DenseLayer(
        n_in=n_in,
        n_rows=n_rows,
        n_out=n_out,
        width=width,
        forward_weights=aligned_zeros(n_rows * width, float_x),
        backward_weights=aligned_zeros(padded(n_in) * n_out, float_x),
        bias=aligned_zeros(width, float_x),
        weights_gradient=aligned_zeros(n_rows * width, float_x),
        bias_gradient=aligned_zeros(width, float_x),
    )


def set_dense_parameters(layer, weights, bias):
    """Copy weights (n_in, n_out) and bias (n_out,) into ``layer``."""
    layer.forward_weights[:] = _to_panels(weights, layer.n_rows)
    layer.backward_weights[:] = _to_panels(weights.T, layer.n_out)
    layer.bias[: layer.n_out] = bias


def get_dense_parameters(layer):
    """Return copies of the layer's weights (n_in, n_out) and bias (n_out,)."""
    panels = layer.forward_weights.reshape(-1, layer.n_rows, LANES)
    weights = panels.transpose(1, 0, 2).reshape(layer.n_rows, layer.width)
    weights = weights[: layer.n_in, : layer.n_out].copy()  # of a single panel it is a view
    return weights, layer.bias[: layer.n_out].copy()


def _to_panels(weights, n_rows):
    """Return weights (n_in, n_out) as flat panels (V, n_rows, LANES), padded with zeros."""
    n_in, n_out = weights.shape
    rows = np.zeros((n_rows, padded(n_out)), weights.dtype)
    rows[:n_in, :n_out] = weights
    return rows.reshape(n_rows, -1, LANES).transpose(1, 0, 2).ravel()


# How many tasks there are.


@njit(**options.CPU)
def n_unit_panels(layer):
    """Return how many panels of LANES the units of a DenseLayer fill."""
    return layer.width // LANES


@njit(**options.CPU)
def n_input_panels(layer):
    """Return how many panels of LANES the inputs of a DenseLayer fill."""
    return (layer.n_in + LANES - 1) // LANES


@njit(**options.CPU)
def n_input_blocks(layer):
    """Return how many blocks of INPUT_BLOCK the inputs of a DenseLayer fill."""
    return (layer.n_in + INPUT_BLOCK - 1) // INPUT_BLOCK


# Kernels. layer: DenseLayer; below, above: Activations of its inputs and of its units; n: images,
# of which padded(n, GROUP) must fit into the Activations.


@njit(**options.CPU)
def forward_panel(layer, below, above, n, panel):
    """Overwrite above.h of n images, units ``panel`` LANES up to the next panel."""
    unit, n_grouped = panel * LANES, _grouped(n)
    bias = load(layer.bias, unit)
    for i in range(n_grouped):
        store(above.h, i * above.stride + unit, bias)
    add_product(
        Factor(below.h, 0, below.stride, 1),
        n_grouped,
        layer.n_in,
        Panel(layer.forward_weights, unit * layer.n_rows, LANES),
        Panel(above.h, unit, above.stride),
        TWO_VECTORS,
    )
    if above.kind != LOGITS:
        for i in range(n):
            at = i * above.stride + unit
            activate_all(above.h[at : at + LANES], above.kind)


@njit(**options.CPU)
def backward_panel(layer, below, above, n, panel):
    """Overwrite below.error of n images, inputs ``panel`` LANES up to the next panel."""
    first, n_grouped = panel * LANES, _grouped(n)
    for i in range(n_grouped):
        store(below.error, i * below.stride + first, splat(below.error, 0))
    add_product(
        Factor(above.error, 0, above.stride, 1),
        n_grouped,
        layer.n_out,
        Panel(layer.backward_weights, first * layer.n_out, LANES),
        Panel(below.error, first, below.stride),
        TWO_VECTORS,
    )
    for i in range(n):
        at = i * below.stride + first
        multiply_by_slope(below.error[at : at + LANES], below.h[at : at + LANES], below.kind)


@njit(**options.CPU)
def block_gradient(layer, below, above, n, block):
    """Add n images' gradients to those of the block's weights; block 0 adds the bias gradients."""
    first = block * INPUT_BLOCK
    n_rows = min(first + INPUT_BLOCK, layer.n_rows) - first
    for unit in range(0, layer.width, LANES):
        add_product(
            Factor(below.h, first, 1, below.stride),  # transposed: a row is an input
            n_rows,
            n,
            Panel(above.error, unit, above.stride),
            Panel(layer.weights_gradient, unit * layer.n_rows + first * LANES, LANES),
            TWO_VECTORS,
        )
    if block == 0:
        for i in range(n):
            for unit in range(layer.n_out):
                layer.bias_gradient[unit] += above.error[i * above.stride + unit]


@njit(**options.CPU)
def update_block(layer, descent, block):
    """Update the block's weights, set their gradients to 0; return their penalty before.

    descent: msgd.kernels.arguments.Descent. Block 0 updates the biases too.
    """
    if block == 0:
        for unit in range(layer.n_out):
            layer.bias[unit] = sgd_step(layer.bias[unit], layer.bias_gradient[unit], descent)
            layer.bias_gradient[unit] = 0
    first = block * INPUT_BLOCK
    last = min(first + INPUT_BLOCK, layer.n_in)
    if descent.l1 == 0 and descent.lp == 0:
        return _update_vectors(layer, descent, first, last)
    return _update_one_by_one(layer, descent, first, last)


@njit(**options.CPU)
def _update_vectors(layer, descent, first, last):
    """Update the weights of inputs first..last-1 as update_block does, without l1 and lp.

    A step on l2 w^2 multiplies w by 1 - 2 rate l2; without l2 that is 1 and changes no bit.
    """
    weights, gradient = layer.forward_weights, layer.weights_gradient
    one = weights.dtype.type(1)
    shrink = splat(weights, one - (descent.rate + descent.rate) * descent.l2)
    squares = splat(weights, 0)
    for unit in range(0, layer.width, LANES):
        for d in range(first, last):
            at = unit * layer.n_rows + d * LANES
            old = load(weights, at)
            squares = multiply_add(old, old, squares)
            store(weights, at, fma(-descent.rate, load(gradient, at), multiply(shrink, old)))
            store(gradient, at, splat(gradient, 0))
    for unit in range(layer.n_out):
        for d in range(first, last):
            at = (unit // LANES * layer.n_rows + d) * LANES + unit % LANES
            set_element(
                layer.backward_weights, _backward_place(layer, unit, d), element(weights, at)
            )
    # Not simply the product: squares may overflow, and 0 times infinity is no number.
    return descent.l2 * lane_sum(squares) if descent.l2 != 0 else descent.l2


@njit(**options.CPU)
def _update_one_by_one(layer, descent, first, last):
    """Update the weights of inputs first..last-1 as update_block does, with any penalties."""
    total = layer.bias.dtype.type(0)
    for unit in range(layer.n_out):
        for d in range(first, last):
            at = (unit // LANES * layer.n_rows + d) * LANES + unit % LANES
            weight = layer.forward_weights[at]
            total += penalty(weight, descent)
            gradient = layer.weights_gradient[at] + penalty_gradient(weight, descent)
            weight = sgd_step(weight, gradient, descent)
            layer.forward_weights[at] = weight
            layer.weights_gradient[at] = 0
            set_element(layer.backward_weights, _backward_place(layer, unit, d), weight)
    return total


@njit(**options.CPU)
def _backward_place(layer, unit, d):
    """Return where backward_weights has the weight of input d and ``unit``."""
    return (d // LANES * layer.n_out + unit) * LANES + d % LANES


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
    """Multiply error (n,) by the activation's derivative where its values are h (n,)."""
    for k in range(error.shape[0]):
        error[k] *= activation_slope(h[k], kind)


@njit(**options.CPU)
def _grouped(n):
    """Return n rounded up to whole groups; rows beyond n hold numbers of no meaning."""
    return (n + GROUP - 1) // GROUP * GROUP
