r"""LeNet: parameters, initialisation, formulas.

Legend of dimension letters, here and in the twins: M feature maps of a layer (its input has M_in),
f filter_size, p pool_size, (h, w) height and width of a layer's input, C classes.

Convolution layers l = 1..K (one per number of ``nkerns``), then dense layers l = K+1..L whose last
has C units. Parameters, in order of the layers::

    weights_l  (M, M_in, f, f)  floatX   of a convolution layer: the filters
    weights_l  (n_in, n_out)    floatX   of a dense layer; rows in the order (map, row, column)
    bias_l     (M,) or (n_out,) floatX, zeros

All weights but the last layer's, which are zeros, are drawn layer by layer from
``numpy.random.RandomState(seed)``, uniform between -r and r with r = sqrt(6 / (fan_in + fan_out)),
in float64 and then rounded to floatX; for the sigmoid they are then multiplied by 4. A dense layer
has fan_in = n_in and fan_out = n_out, a convolution layer fan_in = M_in f^2 and
fan_out = M f^2 // p^2, rounded down.

For an image x = h_0 with label y, activation s, and pixels counted from 0; W, b, a, z and d are
those of layer l::

    a[m, r, c]   = sum_{k, i, j} W[m, k, f-1-i, f-1-j] h_{l-1}[k, r+i, c+j]    true convolution
    z[m, r, c]   = max_{i, j < p} a[m, p r + i, p c + j]                       max-pooling
    h_l[m, r, c] = s(z[m, r, c] + b[m])                                        for l <= K
    h_l          = s(h_{l-1} W_l + b_l)                                        for K < l < L
    P(Y | x)     = softmax(h_{L-1} W_L + b_L)
    cost         = -(1/B) sum_i log P(Y = y_i | x_i)  +  sum_l (l1 sum |W_l| + l2 sum W_l^2)

a is (M, h-f+1, w-f+1); z drops the rows and columns that do not fill a square of p x p. The errors
e_l are the derivatives of the cost by what goes into the activation, s' = 1 - h^2 for tanh and
h (1 - h) for the sigmoid::

    e_L             = (P - onehot(y)) / B
    e_l             = (e_{l+1} W_{l+1}^T) s'(h_l)                                from a dense layer
    d[m, r, c]      = e_l[m, r // p, c // p] where a[m, r, c] is the maximum of its square, else 0
    dcost/dW_l[m, k, f-1-i, f-1-j] = sum_{r, c} d[m, r, c] h_{l-1}[k, r+i, c+j]
    e_{l-1}[k, r, c] = s'(h_{l-1}[k, r, c]) sum_{m, i, j} W_l[m, k, f-1-i, f-1-j] d[m, r-i, c-j]
    dcost/db_l[m]   = sum_{r, c} e_l[m, r, c]

with d = 0 outside its shape, and gradients summed over the images of the minibatch; the dense
gradients are the multilayer perceptron's. With maxpool_ties ``all`` every pixel equal to the
maximum gets the whole error, with ``first`` only the first in row-major order. A step of SGD sets
W_l to W_l - learning_rate dcost/dW_l, and b_l likewise; all gradients are taken at the old
parameters. The penalties (and lp sum |W_l|^p, where p is the setting of that name) add their
gradients to all weights, filters too; they are neither averaged over the batch nor applied to
biases.

Source: the "Convolutional Neural Networks (LeNet)" chapter and ``convolutional_mlp.py`` of the
lisa-lab deep-learning tutorials.

Deviations from the published code:

- Validation errors are compared as integer counts, not as means of means in float64.
- The test set is scored once, with the best parameters, which are saved; the published code keeps
  none.
- Other numbers of layers, the sigmoid and penalties are the tutorials' formulas applied again; the
  published code has two convolution layers and one hidden layer of tanh, and no penalty.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from msgd.errors import UserError


class ConvShape(NamedTuple):
    """The sizes of a convolution layer with its pooling."""

    in_maps: int
    in_height: int
    in_width: int
    out_maps: int
    filter_size: int
    pool_size: int

    @property
    def out_height(self):
        """Rows of a map after pooling."""
        return (self.in_height - self.filter_size + 1) // self.pool_size

    @property
    def out_width(self):
        """Columns of a map after pooling."""
        return (self.in_width - self.filter_size + 1) // self.pool_size


def conv_shapes(image_shape, settings):
    """Return the ConvShape of every convolution layer, first layer first.

    image_shape: (height, width); settings: nkerns, filter_size, pool_size. Raises UserError if a
    layer has no output.
    """
    shapes = []
    in_maps, (height, width) = 1, image_shape
    for layer, out_maps in enumerate(settings["nkerns"], start=1):
        sizes = settings["filter_size"], settings["pool_size"]
        shape = ConvShape(in_maps, height, width, out_maps, *sizes)
        _check_shape(shape, layer, image_shape)
        shapes.append(shape)
        in_maps, height, width = out_maps, shape.out_height, shape.out_width
    return shapes


def _check_shape(shape, layer, image_shape):
    smallest = min(shape.in_height, shape.in_width)
    where = (
        f"convolution layer {layer}, whose input is {shape.in_height} x {shape.in_width} pixels "
        f"(the images are {image_shape[0]} x {image_shape[1]})"
    )
    if shape.filter_size > smallest:
        raise UserError(
            f"filter_size is {shape.filter_size}; allowed: at most {smallest} in {where}, "
            "or fewer layers in nkerns"
        )
    room = smallest - shape.filter_size + 1
    if shape.pool_size > room:
        raise UserError(
            f"pool_size is {shape.pool_size}; allowed: at most {room} in {where}: its filters of "
            f"filter_size {shape.filter_size} leave {room}; or fewer layers in nkerns"
        )


def dense_sizes(shapes, settings, n_classes):
    """Return [n_in, ..., C], the units below, between and at the end of the dense layers.

    shapes: the ConvShape of every convolution layer; settings: n_hidden.
    """
    last, n_hidden = shapes[-1], settings["n_hidden"]
    n_in = last.out_maps * last.out_height * last.out_width
    return [n_in, *(n_hidden if isinstance(n_hidden, list) else [n_hidden]), n_classes]


def initial_parameters(dataset, settings, float_x):
    """Return the parameters training starts from: dict of name -> array.

    dataset: msgd.data.dataset.Dataset, for the image shape and C; settings: nkerns, n_hidden,
    filter_size, pool_size, activation, seed; float_x: np.float32 or np.float64. Raises UserError if
    the images are too small for the layers.
    """
    random = np.random.RandomState(settings["seed"])
    shapes = conv_shapes(dataset.image_shape, settings)
    sizes = dense_sizes(shapes, settings, dataset.n_classes)
    factor = float_x(4 if settings["activation"] == "sigmoid" else 1)
    arrays = []
    for shape in shapes:
        area = shape.filter_size**2
        fans = shape.in_maps * area, shape.out_maps * area // shape.pool_size**2
        size = (shape.out_maps, shape.in_maps, shape.filter_size, shape.filter_size)
        arrays.append(_draw(random, fans, size).astype(float_x) * factor)
    for fans in itertools.pairwise(sizes[:-1]):
        arrays.append(_draw(random, fans, fans).astype(float_x) * factor)
    arrays.append(np.zeros(sizes[-2:], float_x))
    parameters = {}
    for layer, weights in enumerate(arrays, start=1):
        units = weights.shape[0] if layer <= len(shapes) else weights.shape[1]
        parameters[f"weights_{layer}"] = weights
        parameters[f"bias_{layer}"] = np.zeros(units, float_x)
    return parameters


def _draw(random, fans, size):
    bound = np.sqrt(6.0 / sum(fans))
    return random.uniform(-bound, bound, size)


def probabilities(parameters, images, settings, image_shape):
    """Return P(Y | x) of every image, (len(images), C) float64.

    images: (n, D) pixels of ``image_shape``; settings: nkerns, pool_size, activation. For plots of
    a few images, in plain NumPy; training and scores use the kernels.
    """
    arrays = [array.astype(np.float64) for array in parameters.values()]
    layers = list(zip(arrays[::2], arrays[1::2], strict=True))
    n_conv = len(settings["nkerns"])
    h = images.reshape(-1, 1, *image_shape)
    for weights, bias in layers[:n_conv]:
        pooled = _max_pool(_convolve(h, weights), settings["pool_size"])
        h = _activate(pooled + bias[:, None, None], settings["activation"])
    h = h.reshape(len(images), math.prod(h.shape[1:]))
    for weights, bias in layers[n_conv:-1]:
        h = _activate(h @ weights + bias, settings["activation"])
    weights, bias = layers[-1]
    logits = h @ weights + bias
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _convolve(h, filters):
    """Return the true convolution (n, M, h-f+1, w-f+1) of h (n, M_in, h, w) with the filters."""
    windows = np.lib.stride_tricks.sliding_window_view(h, filters.shape[2:], axis=(2, 3))
    return np.einsum("nkrcij,mkij->nmrc", windows, filters[:, :, ::-1, ::-1], optimize=True)


def _max_pool(a, p):
    n, maps, height, width = a.shape
    squares = a[:, :, : height // p * p, : width // p * p]
    return squares.reshape(n, maps, height // p, p, width // p, p).max(axis=(3, 5))


def _activate(z, activation):
    return np.tanh(z) if activation == "tanh" else expit(z)


def weight_images(parameters, image_shape):
    """Return one picture per filter of the first layer, as stored (not flipped): (M, f, f)."""
    return parameters["weights_1"][:, 0]
