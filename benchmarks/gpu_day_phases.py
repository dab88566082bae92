"""Time of each phase of a minibatch, where one kernel does them all: each is repeated alone.

A phase is followed by a wait of the grid, as in training; so the sum is that of a minibatch, if the
phases do not help or hinder each other through the caches.
"""

import numpy as np
from gpu_day_common import median_seconds

FEW, MANY = 2, 22


def microseconds_each(run):
    """Return the time of one repetition of what ``run(n)`` repeats n times."""
    few, many = (median_seconds(lambda n=n: run(n), 3) for n in (FEW, MANY))
    return (many - few) / (MANY - FEW) * 1e6


def repeated(phase):
    """Return a kernel (times, arguments) that repeats a device function on the whole grid."""
    from numba import cuda

    @cuda.jit
    def kernel(times, arguments):
        grid = cuda.cg.this_grid()
        for _ in range(times):
            phase(*arguments)
            grid.sync()

    return kernel


def time_phases(phases, shape):
    """Return {name: us} of phases {name: (device function, arguments)}; shape: of the launches."""
    found = {}
    for name, (phase, arguments) in phases.items():
        kernel = repeated(phase)
        found[name] = microseconds_each(lambda n, k=kernel, s=shape, a=arguments: k[s](n, a))
    return found


def logistic_regression(backend):
    """Return {phase: us} of a minibatch."""
    from numba import cuda

    from msgd.kernels.cuda import Images, cost_phase, launch_shape, loss_phase, penalty_phase
    from msgd.models.logistic_regression import cuda_plain as model

    x, y = backend.shared.splits["train"]
    weights, bias = backend.parameters["weights"], backend.parameters["bias"]
    images = Images(x, 0, backend.batch_size, backend.pixel_scale)
    inverse = backend.float_x(1 / backend.batch_size)
    loss = y, 0, inverse, backend.logits, backend.error, backend.example_nll
    costs = cuda.device_array(1, backend.float_x)
    cost = backend.descent, inverse, backend.example_nll, backend.row_penalty, costs, 0
    update = images, backend.descent, backend.error, weights, bias
    phases = {
        "forward": (model._forward_phase, (images, weights, bias, backend.logits)),
        "loss": (loss_phase, loss),
        "penalty": (penalty_phase, (backend.descent, weights, backend.row_penalty)),
        "update": (model._update_phase, update),
        "cost, by one thread": (cost_phase, cost),
    }
    shape = launch_shape(max(backend.batch_size, len(backend.row_penalty) + 1))
    return time_phases(phases, shape)


def mlp(backend):
    """Return {phase: us} of a minibatch of a network with one hidden layer."""
    from numba import cuda

    from msgd.kernels.cuda import Images, cost_phase, loss_phase
    from msgd.models.mlp import cuda_plain as model

    x, y = backend.shared.splits["train"]
    b, h, error = backend.batch_size, backend.h, backend.error
    network = model.Network(backend.layers, backend.weights, backend.bias)
    activations = model.Activations(h, error)
    images, inverse = Images(x, 0, b, backend.pixel_scale), backend.float_x(1 / b)
    hidden = int(backend.layers_on_host[1, model.FIRST_UNIT]) * b
    logits, logits_error = (flat[hidden:].reshape((b, backend.n_classes)) for flat in (h, error))
    kind, descent = backend.activation, backend.descent
    second = h, 0, b, 1, model.NO_ACTIVATION, network, h, hidden
    costs = cuda.device_array(1, backend.float_x)
    cost = descent, inverse, backend.example_nll, backend.row_penalty, costs, 0
    phases = {
        "forward 1": (model._first_forward_phase, (images, kind, network, h)),
        "forward 2": (model._next_forward_phase, second),
        "penalty 1": (model._penalty_phase, (0, 0, descent, network, backend.row_penalty)),
        "loss": (loss_phase, (y, 0, inverse, logits, logits_error, backend.example_nll)),
        "error 1": (model._error_phase, (0, b, kind, network, activations)),
        "update 1": (model._update_phase, (images, 0, descent, network, activations)),
        "update 2": (model._update_phase, (images, 1, descent, network, activations)),
        "cost, by one thread": (cost_phase, cost),
    }
    return time_phases(phases, backend._training_shape())


def lenet(backend):
    """Return {phase and layer: us} of a minibatch: its kernel reads the phases from a table."""
    from numba import cuda

    from msgd.models.lenet import cuda_plain as model

    names = ("LOAD", "PENALTY", "CONV_FORWARD", "DENSE_FORWARD", "LOSS", "DENSE_ERROR", "UNPOOL")
    names += ("CONV_GRADIENT", "CONV_ERROR", "CONV_UPDATE", "DENSE_UPDATE", "COST")
    phases = {getattr(model, name): name for name in names}
    program, found = backend.program.copy_to_host(), {}
    x, y = backend.shared.splits["train"]
    costs = cuda.device_array(1, backend.float_x)

    def run(times, row):
        backend.program = cuda.to_device(np.repeat(row[None], times, axis=0))
        backend.launch_train(x, y, 0, costs)

    for row in program:
        row[model.GRID_WAITS] = 1
        name = f"{phases[row[model.PHASE]]} of layer {row[model.LAYER] + 1}"
        found[name] = microseconds_each(lambda times, r=row: run(times, r))
    backend.program = cuda.to_device(program)
    return found


PHASES = {"logistic_regression": logistic_regression, "mlp": mlp, "lenet": lenet}
