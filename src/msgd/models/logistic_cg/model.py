r"""Logistic regression by conjugate gradients: the same model, fitted to all minibatches at once.

Parameters, initialisation, probabilities and pictures are those of logistic regression. The cost is
the mean over the whole minibatches of the training set::

    f(W, b) = (1/M) sum_{m=1..M} cost(minibatch m)

so the batch size only says how the data are cut up (and which tail is dropped). Nonlinear conjugate
gradients (Polak-Ribiere, as in SciPy) minimise f from zeros; after each of their iterations the
validation errors are counted, and the parameters of the fewest are kept.

Source: ``logistic_cg.py`` of the lisa-lab deep-learning tutorials, which publish no score for it.

Deviations from the published code:

- Validation errors are compared as integer counts; the test set is scored once, at the end.
- The best parameters are saved; the published code keeps none.
- Cost and gradient are computed in floatX, the search itself in float64.
"""

from msgd.models.logistic_regression.model import (
    initial_parameters,
    probabilities,
    weight_images,
)

__all__ = ["initial_parameters", "probabilities", "weight_images"]
