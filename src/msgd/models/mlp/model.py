r"""Multilayer perceptron: parameters, initialisation, formulas.

Layer l = 1..L has n_l units; n_0 = D pixels, n_L = C classes; the hidden ones are ``n_hidden``.
Parameters, in order of the layers::

    weights_l  (n_{l-1}, n_l)  floatX
    bias_l     (n_l,)          floatX, zeros

Hidden weights are drawn layer by layer from ``numpy.random.RandomState(seed)``, uniform between
-r and r with r = sqrt(6 / (n_{l-1} + n_l)), in float64 and then rounded to floatX; for the sigmoid
they are then multiplied by 4. The weights of the last layer are zeros.

For a minibatch of B images x = h_0 (B, D) with labels y and the activation s; the rows of h_l and
e_l, (B, n_l), are the images i, and * multiplies number by number::

    h_l          = s(h_{l-1} W_l + b_l)                       for l < L
    P(Y | x)     = softmax(h_{L-1} W_L + b_L)
    cost         = -(1/B) sum_i log P(Y = y_i | x_i)  +  sum_l (l1 sum |W_l| + l2 sum W_l^2)
    e_L          = (P - onehot(y)) / B
    e_l          = (e_{l+1} W_{l+1}^T) * s'(h_l)              for l < L
    dcost/dW_l   = h_{l-1}^T e_l  +  l1 sign(W_l)  +  2 l2 W_l
    dcost/db_l   = sum_i e_l of image i

e_l are the derivatives of the cost by what goes into the activation. s'(h) is the activation's
derivative where its value is h: 1 - h^2 for tanh and h (1 - h) for the sigmoid. lp adds
lp sum |W_l|^p to the cost and lp p |W_l|^(p-1) sign(W_l) to the gradient.
A step of SGD sets W_l to W_l - learning_rate dcost/dW_l, and b_l likewise; all gradients are taken
at the old parameters. The penalties are neither averaged over the batch nor applied to biases.

Source: the "Multilayer Perceptron" chapter and ``mlp.py`` of the lisa-lab deep-learning tutorials.

Deviations from the published code:

- Validation errors are compared as integer counts, not as means of means in float64.
- The test set is scored once, with the best parameters, which are saved; the published code keeps
  none.
- More than one hidden layer, and the sigmoid, are the tutorial's formulas applied again.
"""

import itertools

import numpy as np
from scipy.special import expit


def layer_sizes(n_features, settings, n_classes):
    """Return [n_0, ..., n_L]: the pixels, the hidden units, the classes."""
    n_hidden = settings["n_hidden"]
    return [n_features, *(n_hidden if isinstance(n_hidden, list) else [n_hidden]), n_classes]


def initial_parameters(dataset, settings, float_x):
    """Return the parameters training starts from: dict of name -> array.

    dataset: msgd.data.dataset.Dataset, for D and C; settings: n_hidden, activation, seed; float_x:
    np.float32 or np.float64.
    """
    sizes = layer_sizes(dataset.n_features, settings, dataset.n_classes)
    return dense_parameters(np.random.RandomState(settings["seed"]), sizes, settings, float_x)


def dense_parameters(random, sizes, settings, float_x, first=1):
    """Return weights and biases of dense layers with ``sizes`` units, numbered from ``first``.

    random: numpy.random.RandomState, from which the hidden layers' weights are drawn in order.
    """
    parameters = {}
    last = first + len(sizes) - 2
    for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes), start=first):
        if layer < last:
            bound = np.sqrt(6.0 / (n_in + n_out))
            weights = random.uniform(-bound, bound, (n_in, n_out)).astype(float_x)
            weights *= float_x(4 if settings["activation"] == "sigmoid" else 1)
        else:
            weights = np.zeros((n_in, n_out), float_x)
        parameters[f"weights_{layer}"] = weights
        parameters[f"bias_{layer}"] = np.zeros(n_out, float_x)
    return parameters


def probabilities(parameters, images, settings, image_shape):
    """Return P(Y | x) of every image, (len(images), C) float64; images: (n, D) pixels.

    For plots of a few images, in plain NumPy; training and scores use the kernels.
    """
    return dense_probabilities(list(parameters.values()), images, settings["activation"])


def dense_probabilities(parameters, inputs, activation):
    """Return the softmax of dense layers over ``inputs`` (n, n_0), in float64.

    parameters: [weights, bias, weights, bias, ...]; activation: "tanh" or "sigmoid", of all layers
    but the last.
    """
    h = inputs
    layers = list(zip(parameters[::2], parameters[1::2], strict=True))
    for number, (weights, bias) in enumerate(layers, start=1):
        h = h @ weights.astype(np.float64) + bias
        if number < len(layers):
            h = np.tanh(h) if activation == "tanh" else expit(h)
    exponentials = np.exp(h - h.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def weight_images(parameters, image_shape):
    """Return one picture per unit of the first layer, the weights of its pixels: (n_1, h, w)."""
    return parameters["weights_1"].T.reshape(-1, *image_shape)
