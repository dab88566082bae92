"""Training by nonlinear conjugate gradients on the whole training set, through SciPy.

The other way to train, beside the minibatch loop: same backends, same files. There is no patience:
it ends when the gradient vanishes, when no step improves, or at the cap on iterations.
"""

import logging
import time

import numpy as np
from scipy.optimize import minimize
from tqdm import tqdm

from msgd.errors import UserError
from msgd.models.interface import n_evaluated
from msgd.training.loop import Training
from msgd.training.snapshots import is_due

log = logging.getLogger(__name__)

GRADIENT_TOLERANCE = 1e-5  # the published default: the largest entry of the gradient


def train(backend, dataset, settings, save_snapshot):
    """Minimise the cost over all minibatches; return a Training whose iterations are CG's.

    Arguments, result and errors are those of msgd.training.loop.train; the backend must also offer
    msgd.models.interface.FullGradient.
    """
    template = backend.get_parameters()
    # An iteration sees every minibatch, so it is an epoch of one iteration.
    result = Training(1, n_evaluated(len(dataset.valid_x), settings["batch_size"]))
    started = time.perf_counter()
    latest = {}

    def cost(theta):
        backend.set_parameters(_unflatten(theta, template))
        value, gradient = backend.cost_and_gradient()
        latest["cost"] = value
        return value, _flatten(gradient)

    def after_iteration(intermediate_result):
        backend.set_parameters(_unflatten(intermediate_result.x, template))
        iteration = len(result.history) + 1
        errors = backend.count_errors("valid")
        best = result.history[-1]["best_validation_errors"] if result.history else None
        is_best = best is None or errors < best
        if is_best:
            result.best_parameters = backend.get_parameters()
        result.record(
            iteration,
            float(intermediate_result.fun),
            errors,
            patience=settings["n_epochs"],
            best_errors=errors if is_best else best,
            best_iteration=iteration if is_best else result.history[-1]["best_iteration"],
            seconds=time.perf_counter() - started,
        )
        bar.update()
        bar.set_postfix_str(f"validation {result.history[-1]['validation_error_percent']:.2f} %")
        log.info("iteration %d: cost %.6f, validation errors %d", iteration, latest["cost"], errors)
        if is_due(iteration):
            save_snapshot(iteration, backend.get_parameters())

    save_snapshot(0, template)
    with tqdm(total=settings["n_epochs"], unit="iteration", disable=None) as bar:
        outcome = minimize(
            cost,
            _flatten(template),
            jac=True,
            method="CG",
            callback=after_iteration,
            options={"maxiter": settings["n_epochs"], "gtol": GRADIENT_TOLERANCE},
        )
    if not result.history:
        raise UserError(f"conjugate gradients made no iteration: {outcome.message}")
    result.iterations_run = len(result.history)
    result.stopped_by = "n_epochs" if outcome.nit >= settings["n_epochs"] else "convergence"
    backend.set_parameters(_unflatten(outcome.x, template))
    save_snapshot(result.iterations_run, backend.get_parameters())
    log.info("stopped by %s: %s", result.stopped_by, outcome.message)
    return result


def _flatten(parameters):
    """Return all parameters in one float64 vector."""
    return np.concatenate([array.ravel() for array in parameters.values()]).astype(np.float64)


def _unflatten(theta, template):
    """Return the vector ``theta`` as parameters of the shapes and dtypes of ``template``."""
    parameters, start = {}, 0
    for name, array in template.items():
        stop = start + array.size
        parameters[name] = theta[start:stop].reshape(array.shape).astype(array.dtype)
        start = stop
    return parameters
