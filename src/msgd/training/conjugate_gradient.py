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
from msgd.models import load_stages
from msgd.models.interface import n_evaluated
from msgd.training.checkpoint import State
from msgd.training.loop import StageRun, Training
from msgd.training.progress import progress_bar
from msgd.training.snapshots import is_due

log = logging.getLogger(__name__)

GRADIENT_TOLERANCE = 1e-5  # the published default: the largest entry of the gradient


def train(backend, dataset, settings, checkpoint):
    """Minimise the cost over all minibatches; return a Training whose iterations are CG's.

    Arguments, result and errors are those of msgd.training.loop.train; the backend must also offer
    msgd.models.interface.FullGradient.
    """
    cap = settings["n_epochs"]
    (stage,) = load_stages(settings)
    # An iteration sees every minibatch, so it is an epoch of one iteration.
    result = Training([StageRun(stage.name, n_train_batches=1)])
    result.validation_examples = n_evaluated(len(dataset.valid_x), settings["batch_size"])
    backend.begin(stage)
    with progress_bar(checkpoint.title, total=cap, unit="iteration") as bar:
        fit = _Fit(backend, checkpoint, result, bar, checkpoint.load(cap))
        outcome = minimize(
            fit.cost_and_gradient,
            _flatten(fit.template),
            jac=True,
            method="CG",
            callback=fit.after_iteration,
            options={"maxiter": cap, "gtol": GRADIENT_TOLERANCE},
        )
        if not result.history:
            if not outcome.success:
                raise UserError(f"conjugate gradients made no iteration: {outcome.message}")
            fit.validate(0, outcome)  # the gradient vanishes where it begins: nothing is better
    fit.save_state(outcome.x)
    result.stage.iterations_run = result.history[-1]["iteration"]
    result.stopped_by = "n_epochs" if outcome.nit >= cap else "convergence"
    backend.set_parameters(_unflatten(outcome.x, fit.template))
    checkpoint.save_snapshot(result.stage.iterations_run, backend.get_parameters())
    log.info("stopped by %s: %s", result.stopped_by, outcome.message)
    return result


class _Fit:
    """What SciPy's minimiser calls, and what has come of it so far.

    The minimiser cannot be stopped and continued, but it asks for the same costs in the same order:
    a state holds all answers so far, and a resumed run gives them again.
    """

    def __init__(self, backend, checkpoint, result, bar, state):
        self.backend, self.checkpoint, self.result, self.bar = backend, checkpoint, result, bar
        self.template = backend.get_parameters()
        self.costs, self.gradients = [], []
        if state:
            self.costs, self.gradients = [*state.arrays["costs"]], [*state.arrays["gradients"]]
            result.history, result.seconds = state.history, state.seconds
            result.best_parameters = state.best_parameters
        else:
            checkpoint.save_snapshot(0, self.template)
        self.known = iter([*zip(self.costs, self.gradients, strict=True)])
        self.n_resumed = len(result.history)
        self.iterations = itertools.count(1)
        self.started = time.perf_counter() - (result.seconds[-1] if state else 0)

    def cost_and_gradient(self, theta):
        """Return the cost and its gradient, (n,) float64, at the parameters theta (n,)."""
        cost, gradient = next(self.known, None) or self._compute(theta)
        return cost, gradient.view(_InOrder)

    def _compute(self, theta):
        self.backend.set_parameters(_unflatten(theta, self.template))
        cost, gradient = self.backend.cost_and_gradient()
        self.costs.append(cost)
        self.gradients.append(_flatten(gradient))
        return cost, self.gradients[-1]

    def after_iteration(self, intermediate_result):
        """Validate unless a resumed state has done so; the argument's name is SciPy's."""
        self.bar.update()
        iteration = next(self.iterations)
        if iteration > self.n_resumed:
            self.validate(iteration, intermediate_result)

    def validate(self, iteration, outcome):
        """Count the validation errors at outcome.x, keep the best parameters, and save."""
        backend, history = self.backend, self.result.history
        backend.set_parameters(_unflatten(outcome.x, self.template))
        cost, errors = float(outcome.fun), backend.count_errors("valid")
        last = history[-1] if history else {"best_validation_errors": np.inf}
        is_best = errors < last["best_validation_errors"]
        if is_best:
            self.result.best_parameters = backend.get_parameters()
        seconds = time.perf_counter() - self.started
        self.result.record(
            *(iteration, cost, seconds),
            errors=errors,
            best_errors=errors if is_best else last["best_validation_errors"],
            best_iteration=iteration if is_best else last["best_iteration"],
        )
        self.bar.set_postfix_str(f"validation {history[-1]['validation_error_percent']:.2f} %")
        log.info("iteration %d: cost %.6f, validation errors %d", iteration, cost, errors)
        if iteration and is_due(iteration):
            self.checkpoint.save_snapshot(iteration, backend.get_parameters())
        if self.checkpoint.is_state_due():
            self.save_state(outcome.x)

    def save_state(self, theta):
        """Save what a resumed run needs: all answers given, and the last and best parameters."""
        arrays = {"costs": np.array(self.costs), "gradients": np.array(self.gradients)}
        result = self.result
        state = State(
            *(result.history[-1]["iteration"], result.history, result.seconds),
            *(_unflatten(theta, self.template), result.best_parameters),
            arrays=arrays,
        )
        self.checkpoint.save(state)


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
