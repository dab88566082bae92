"""Training by nonlinear conjugate gradients on the whole training set, through SciPy.

The other way to train, beside the minibatch loop: same backends, same files. There is no patience:
it ends when the gradient vanishes, when no step improves, or at the cap on iterations.
"""

import itertools
import logging
import time

import numpy as np
from scipy.optimize import minimize

from msgd.errors import UserError
from msgd.models.interface import n_evaluated
from msgd.training.checkpoint import State
from msgd.training.loop import Training
from msgd.training.progress import progress_bar
from msgd.training.snapshots import is_due

log = logging.getLogger(__name__)

GRADIENT_TOLERANCE = 1e-5  # the published default: the largest entry of the gradient


def train(backend, dataset, settings, checkpoint):
    """Minimise the cost over all minibatches; return a Training whose iterations are CG's.

    Arguments, result and errors are those of msgd.training.loop.train; the backend must also offer
    msgd.models.interface.FullGradient.

    SciPy's minimiser cannot be stopped and continued, but it asks the same questions in the same
    order: a state holds all answers so far, and a resumed run gives them again.
    """
    template = backend.get_parameters()
    # An iteration sees every minibatch, so it is an epoch of one iteration.
    result = Training(1, n_evaluated(len(dataset.valid_x), settings["batch_size"]))
    costs, gradients = [], []
    state = checkpoint.load(settings["n_epochs"])
    if state:
        costs, gradients = [*state.arrays["costs"]], [*state.arrays["gradients"]]
        result.history, result.seconds = state.history, state.seconds
        result.best_parameters = state.best_parameters
    else:
        checkpoint.save_snapshot(0, template)
    n_resumed, answers = len(result.history), iter([*zip(costs, gradients, strict=True)])
    started = time.perf_counter() - (result.seconds[-1] if state else 0)
    iterations = itertools.count(1)

    def cost(theta):
        answer = next(answers, None)
        if answer is None:
            backend.set_parameters(_unflatten(theta, template))
            value, gradient = backend.cost_and_gradient()
            answer = value, _flatten(gradient)
            costs.append(answer[0])
            gradients.append(answer[1])
        return answer[0], answer[1].view(_InOrder)

    def save(theta):
        arrays = {"costs": np.array(costs), "gradients": np.array(gradients)}
        now, best = _unflatten(theta, template), result.best_parameters
        checkpoint.save(State(result.history, result.seconds, now, best, arrays=arrays))

    def after_iteration(intermediate_result):
        bar.update()
        iteration = next(iterations)
        if iteration > n_resumed:
            validate(iteration, intermediate_result)

    def validate(iteration, intermediate_result):
        theta = intermediate_result.x
        backend.set_parameters(_unflatten(theta, template))
        value, errors = float(intermediate_result.fun), backend.count_errors("valid")
        best = result.history[-1]["best_validation_errors"] if result.history else None
        is_best = best is None or errors < best
        if is_best:
            result.best_parameters = backend.get_parameters()
        result.record(
            iteration,
            value,
            errors,
            patience=None,
            best_errors=errors if is_best else best,
            best_iteration=iteration if is_best else result.history[-1]["best_iteration"],
            seconds=time.perf_counter() - started,
        )
        bar.set_postfix_str(f"validation {result.history[-1]['validation_error_percent']:.2f} %")
        log.info("iteration %d: cost %.6f, validation errors %d", iteration, value, errors)
        if iteration and is_due(iteration):
            checkpoint.save_snapshot(iteration, backend.get_parameters())
        if checkpoint.is_state_due():
            save(theta)

    with progress_bar(checkpoint.title, total=settings["n_epochs"], unit="iteration") as bar:
        outcome = minimize(
            cost,
            _flatten(template),
            jac=True,
            method="CG",
            callback=after_iteration,
            options={"maxiter": settings["n_epochs"], "gtol": GRADIENT_TOLERANCE},
        )
    if not result.history:
        if not outcome.success:
            raise UserError(f"conjugate gradients made no iteration: {outcome.message}")
        validate(0, outcome)  # the gradient vanishes where it begins: nothing is better
    save(outcome.x)
    result.iterations_run = result.history[-1]["iteration"]
    result.stopped_by = "n_epochs" if outcome.nit >= settings["n_epochs"] else "convergence"
    backend.set_parameters(_unflatten(outcome.x, template))
    checkpoint.save_snapshot(result.iterations_run, backend.get_parameters())
    log.info("stopped by %s: %s", result.stopped_by, outcome.message)
    return result


class _InOrder(np.ndarray):
    """A gradient whose products SciPy takes by NumPy's sum and not by BLAS.

    BLAS sums in an order of its own on every kind of processor, NumPy in the same on all. SciPy's
    directions are made of gradients, and so are of this class too.
    """

    def __array_function__(self, function, types, arguments, more):
        if function is np.dot and not more:
            left, right = map(np.asarray, arguments)
            return np.add.reduce(left * right)
        if function is np.linalg.norm and not more and len(arguments) == 1:
            return np.sqrt(np.dot(arguments[0], arguments[0]))
        return super().__array_function__(function, types, arguments, more)


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
