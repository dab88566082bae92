r"""Logistic regression: parameters, initialisation, formulas.

Images x are the B rows of a minibatch, (B, D): D pixels each; y are their labels, C the classes.
Parameters, in order::

    weights  (D, C)  floatX, zeros
    bias     (C,)    floatX, zeros

With i for the images and c for the classes::

    P(Y = c | x_i) = softmax(x_i W + b)_c = exp(x_i W_c + b_c) / sum_k exp(x_i W_k + b_k)
    cost           = -(1/B) sum_i log P(Y = y_i | x_i)
                     + l1 sum |W|  +  l2 sum W^2  +  lp sum |W|^p
    error_i        = (P(Y | x_i) - onehot(y_i)) / B
    dcost/dW       = x^T error  +  l1 sign(W)  +  2 l2 W  +  lp p |W|^(p-1) sign(W)
    dcost/db       = sum_i error_i
    prediction     = the first c of largest P(Y = c | x_i)

A step of SGD sets W to W - learning_rate dcost/dW, and b likewise.

Source: the "Classifying MNIST digits using Logistic Regression" chapter and ``logistic_sgd.py`` of
the lisa-lab deep-learning tutorials.

Deviations from the published code:

- Validation errors are compared as integer counts, not as means of means in float64.
- The test set is scored once, with the best parameters, after training.
- The best parameters are saved as arrays, not as a pickled graph.
"""

import numpy as np


def initial_parameters(dataset, settings, float_x):
    """Return the parameters training starts from: zeros; nothing is drawn.

    dataset: msgd.data.dataset.Dataset, for D and C; settings is not used; float_x: np.float32 or
    np.float64. Returns a dict of name -> array.
    """
    return {
        "weights": np.zeros((dataset.n_features, dataset.n_classes), float_x),
        "bias": np.zeros(dataset.n_classes, float_x),
    }


def probabilities(parameters, images, settings, image_shape):
    """Return P(Y | x) of every image, (len(images), C) float64; images: (n, D) pixels.

    For plots of a few images, in plain NumPy; training and scores use the kernels.
    """
    logits = images @ parameters["weights"].astype(np.float64) + parameters["bias"]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def weight_images(parameters, image_shape):
    """Return one picture per class, the weights of its pixels: (C, height, width)."""
    return parameters["weights"].T.reshape(-1, *image_shape)
