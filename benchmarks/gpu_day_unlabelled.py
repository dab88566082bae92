"""The step of a GPU day about the models that learn without labels."""

import hashlib
import time

import numpy as np
from gpu_day_common import make_backend

MINIBATCHES = {"da": 250, "ca": 250, "rbm": 50}  # compared with the CPU twin; sums differ in order
ENOUGH = 3  # seconds after which no more minibatches are timed


def unlabelled(found, day):
    """Costs beside the CPU twin's, whether two runs give the same bytes, epochs per second."""
    dataset = day.dataset()
    n_compared = {"da": 2} if day.is_rehearsal else MINIBATCHES
    for model, count in n_compared.items():
        costs, same = {}, []
        for device in ("cuda", "cuda", "cpu"):
            backend, n = make_backend(model, device, dataset, is_toy=day.is_rehearsal)
            costs[device] = backend.train(0, count)
            if device == "cuda":
                same.append(hash_of(backend))
        off = np.abs(costs["cuda"] / costs["cpu"] - 1).max()
        found[model] = {"costs off the CPU twin's": float(off), "same": len(set(same)) == 1}
        for device in ("cuda", "cpu"):
            backend, n = make_backend(model, device, dataset, is_toy=day.is_rehearsal)
            rate = epochs_per_second(backend, n)
            found[model] = {**found[model], device: {"epochs_per_second": rate}}
        found[model]["times the CPU twin"] = (
            found[model]["cuda"]["epochs_per_second"] / found[model]["cpu"]["epochs_per_second"]
        )
    found["summary"] = ", ".join(
        f"{model}: {part['times the CPU twin']:.3g} times the CPU twin, same bytes: {part['same']}"
        for model, part in found.items()
    )


def hash_of(backend):
    """Return a hash of the parameters and the state."""
    arrays = [*backend.get_parameters().values(), *backend.get_state().values()]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def epochs_per_second(backend, n_batches):
    """Return how many epochs ``backend`` trains in a second, the first minibatches not counted."""
    done = at_once = min(n_batches, 50)
    backend.train(0, done)
    started, seconds = time.perf_counter(), 0
    while seconds < ENOUGH:
        backend.train(done, done + at_once)
        done, seconds = done + at_once, time.perf_counter() - started
    return (done - at_once) / n_batches / seconds
