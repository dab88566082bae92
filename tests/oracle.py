"""The oracle: everything the kernels and the training loop compute, naively, in float64 NumPy.

Shares no code with msgd. Plain formulas, whole arrays, no chunks; the early-stopping rule as the
tutorials publish it, with its iteration counting from 0 and its float comparisons.
"""

import numpy as np


def pixels(x):
    """Stored pixels as float64: a byte k stands for k/256."""
    return x / 256.0 if x.dtype == np.uint8 else x.astype(np.float64)


def softmax(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def mean_nll(logits, y):
    """The mean negative log-likelihood of labels, also where a probability is too small to store.

    -log softmax(z)_y = log(sum_c exp(z_c - max z)) - (z_y - max z).
    """
    z = logits - logits.max(axis=1, keepdims=True)
    return (np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]).mean()


def onehot(y, n_classes):
    return np.eye(n_classes)[y]


def penalty(weights, l1=0.0, l2=0.0, lp=0.0, p=2.0):
    return l1 * np.abs(weights).sum() + l2 * (weights**2).sum() + lp * (np.abs(weights) ** p).sum()


def penalty_gradient(weights, l1=0.0, l2=0.0, lp=0.0, p=2.0):
    slope = lp * p * np.abs(weights) ** (p - 1) * np.sign(weights)
    return l1 * np.sign(weights) + 2 * l2 * weights + slope


def penalties_of(settings):
    """The arguments of penalty that an experiment's settings hold."""
    return {name: settings[name] for name in ("l1", "l2", "lp", "p")}


def logistic_regression_cost(parameters, x, y, **penalties):
    """Mean negative log-likelihood plus penalties, from parameters (weights, bias)."""
    weights, bias = parameters
    return mean_nll(x @ weights + bias, y) + penalty(weights, **penalties)


def logistic_regression_gradients(parameters, x, y, **penalties):
    weights, bias = parameters
    error = (softmax(x @ weights + bias) - onehot(y, len(bias))) / len(y)
    return x.T @ error + penalty_gradient(weights, **penalties), error.sum(axis=0)


def logistic_regression_predict(parameters, x):
    weights, bias = parameters
    return (x @ weights + bias).argmax(axis=1)


def numerical_gradients(cost, parameters, step=1e-6):
    """Central differences of cost(parameters) in every entry of every array."""
    gradients = []
    for array in parameters:
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + step
            above = cost(parameters)
            array[index] = kept - step
            below = cost(parameters)
            array[index] = kept
            gradient[index] = (above - below) / (2 * step)
        gradients.append(gradient)
    return gradients


def train(parameters, gradients, predict, cost, data, settings):
    """Train as published; return a dict of the outcome and the validation counts.

    parameters: list of float64 arrays, changed; gradients(parameters, x, y), predict(parameters, x)
    and cost(parameters, x, y) are functions;
    data: dict of split -> (x, y), x as float64 pixels; settings: an experiment's hyperparameters.
    """
    batch = settings["batch_size"]
    (x, y), (valid_x, valid_y) = data["train"], data["valid"]
    n_batches, n_valid_batches = len(x) // batch, len(valid_x) // batch
    patience = settings["patience"]
    frequency = settings["validation_frequency"] or min(n_batches, patience // 2)
    best, best_iteration, best_parameters = np.inf, None, None
    counts, costs, since = [], [], []
    done = False
    epoch = 0
    iteration = -1
    while epoch < settings["n_epochs"] and not done:
        epoch += 1
        for minibatch in range(n_batches):
            iteration = (epoch - 1) * n_batches + minibatch
            rows = slice(minibatch * batch, (minibatch + 1) * batch)
            since.append(cost(parameters, x[rows], y[rows]))
            for array, gradient in zip(
                parameters, gradients(parameters, x[rows], y[rows]), strict=True
            ):
                array -= settings["learning_rate"] * gradient
            if (iteration + 1) % frequency == 0:
                wrong = predict(parameters, valid_x) != valid_y
                losses = [wrong[i * batch : (i + 1) * batch].mean() for i in range(n_valid_batches)]
                loss = np.mean(losses)
                costs.append(np.mean(since))
                since = []
                counts.append(int(wrong[: n_valid_batches * batch].sum()))
                if loss < best:
                    if loss < best * settings["improvement_threshold"]:
                        patience = max(patience, iteration * settings["patience_increase"])
                    best, best_iteration = loss, iteration
                    best_parameters = [array.copy() for array in parameters]
            if patience <= iteration:
                done = True
                break
    return {
        "counts": counts,
        "costs": costs,
        "best_iteration": best_iteration + 1,
        "best_parameters": best_parameters,
        "iterations_run": iteration + 1,
        "epochs_run": epoch,
        "patience": patience,
    }


def activation_and_slope(z, kind):
    """The hidden activation of ``z`` and its derivative, for kind "tanh" or "sigmoid"."""
    if kind == "tanh":
        return np.tanh(z), 1 - np.tanh(z) ** 2
    s = sigmoid(z)
    return s, s * (1 - s)


def mlp_forward(parameters, x, kind):
    """Activations of every layer, x first and logits last, and the slopes of the hidden ones."""
    hs, slopes = [x], []
    for weights, bias in zip(parameters[::2], parameters[1::2], strict=True):
        z = hs[-1] @ weights + bias
        h, slope = activation_and_slope(z, kind)
        hs.append(h)
        slopes.append(slope)
    hs[-1] = z
    return hs, slopes[:-1]


def mlp_cost(parameters, x, y, kind="tanh", **penalties):
    """Mean negative log-likelihood plus penalties; parameters: [weights, bias, weights, ...]."""
    nll = mean_nll(mlp_forward(parameters, x, kind)[0][-1], y)
    return nll + sum(penalty(weights, **penalties) for weights in parameters[::2])


def mlp_gradients(parameters, x, y, kind="tanh", **penalties):
    hs, slopes = mlp_forward(parameters, x, kind)
    error = (softmax(hs[-1]) - onehot(y, hs[-1].shape[1])) / len(y)
    gradients = []
    for layer in range(len(parameters) // 2 - 1, -1, -1):
        weights = parameters[2 * layer]
        gradients = [
            hs[layer].T @ error + penalty_gradient(weights, **penalties),
            error.sum(axis=0),
            *gradients,
        ]
        if layer > 0:
            error = (error @ weights.T) * slopes[layer - 1]
    return gradients


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def jacobian_square(parameters, x):
    """The sum over the images of all squared derivatives of the hidden units, over their number."""
    weights, hidden_bias, _ = parameters
    y = sigmoid(x @ weights + hidden_bias)
    jacobians = (y * (1 - y))[:, None, :] * weights  # (images, pixels, units)
    return (jacobians**2).sum() / len(x)


def autoencoder_cost(parameters, x, corrupted, contraction=0.0):
    """Mean cross-entropy of the images x, reconstructed from corrupted ones, plus the contraction.

    parameters: [weights (D, H), hidden_bias (H,), visible_bias (D,)].
    """
    weights, hidden_bias, visible_bias = parameters
    a = sigmoid(corrupted @ weights + hidden_bias) @ weights.T + visible_bias
    # log s(a) = -log(1 + e^-a) and log(1 - s(a)) = -log(1 + e^a)
    reconstruction = (x * np.logaddexp(0, -a) + (1 - x) * np.logaddexp(0, a)).sum() / len(x)
    if contraction == 0:
        return reconstruction
    return reconstruction + contraction * jacobian_square(parameters, corrupted)


def autoencoder_gradients(parameters, x, corrupted, contraction=0.0):
    weights, hidden_bias, visible_bias = parameters
    y = sigmoid(corrupted @ weights + hidden_bias)
    d = (sigmoid(y @ weights.T + visible_bias) - x) / len(x)
    slope = y * (1 - y)
    squares, factor = (weights**2).sum(axis=0), 2 * contraction / len(x)
    e = (d @ weights) * slope + factor * slope**2 * (1 - 2 * y) * squares
    gradient = corrupted.T @ e + d.T @ y + factor * weights * (slope**2).sum(axis=0)
    return gradient, e.sum(axis=0), d.sum(axis=0)


def rbm_free_energies(parameters, v):
    """F of every row of v; parameters: [weights (D, H), hidden_bias (H,), visible_bias (D,)]."""
    weights, hidden_bias, visible_bias = parameters
    return -v @ visible_bias - np.logaddexp(0, v @ weights + hidden_bias).sum(axis=1)


def rbm_log_pseudo_likelihood(parameters, x, j):
    r = np.rint(x)  # a half to the even number
    flipped = r.copy()
    flipped[:, j] = 1 - r[:, j]
    difference = rbm_free_energies(parameters, flipped) - rbm_free_energies(parameters, r)
    return x.shape[1] * -np.logaddexp(0, -difference).mean()


def rbm_gradients(parameters, x, v):
    """The gradients of mean F(x) - mean F(v), v fixed: the statistics of contrastive divergence."""
    weights, hidden_bias, _ = parameters
    data, model = (sigmoid(images @ weights + hidden_bias) for images in (x, v))
    return (
        -(x.T @ data - v.T @ model) / len(x),
        -(data - model).mean(axis=0),
        -(x - v).mean(axis=0),
    )


def rbm_train(parameters, batches, chain, draw, n_steps, rate):
    """Train on the list ``batches`` of images; return the costs, and v and h after each (lists).

    parameters: list of float64 arrays, changed; chain: the h that persistent chains begin with, or
    None; draw(name): the next numbers of "positive", "visible" or "hidden", whose samples are 1
    where they are below the probability.
    """
    weights, hidden_bias, visible_bias = parameters
    costs, visible, hidden = [], [], []
    for number, x in enumerate(batches):
        h = chain
        if chain is None:
            h = (draw("positive") < sigmoid(x @ weights + hidden_bias)).astype(float)
        for _step in range(n_steps):
            a = h @ weights.T + visible_bias
            v = (draw("visible") < sigmoid(a)).astype(float)
            if chain is not None or n_steps > 1:
                h = (draw("hidden") < sigmoid(v @ weights + hidden_bias)).astype(float)
        if chain is None:
            log_likelihood = -x * np.logaddexp(0, -a) - (1 - x) * np.logaddexp(0, a)
            costs.append(log_likelihood.sum() / len(x))
        else:
            costs.append(rbm_log_pseudo_likelihood(parameters, x, number % x.shape[1]))
            chain = h
        gradients = rbm_gradients(parameters, x, v)
        for array, gradient in zip(parameters, gradients, strict=True):
            array -= rate * gradient
        visible.append(v)
        hidden.append(h)
    return costs, visible, hidden
