"""What a training saves on its way: snapshots to look at, and states to go on from.

A state holds all that the rest of the training depends on, so a run that was killed ends with the
same bytes as one that was not. States live outside the run's folder, which Snakemake empties when a
job fails or starts again: in ``<states>/<key>``, where the key is a hash of everything that shapes
the result but the cap on epochs, so raising ``n_epochs`` of a finished run continues it, and two
runs with equal keys write equal bytes. The two latest states are kept; a torn one is told by its
hash, and the one before it takes its place.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import llvmlite
import numba
import numpy as np
import scipy

from msgd.errors import UserError
from msgd.files import atomic_path, sha256_of_file, write_json
from msgd.source import sha256_of_source, training_source
from msgd.training.snapshots import save_parameters, snapshot_path

log = logging.getLogger(__name__)

GENERATIONS = 2
SHA256_BYTES = 32
PACKAGES = (np, scipy, numba, llvmlite)  # another version may round differently


@dataclass
class State:
    """Where a training stands after the latest row of its history.

    iteration: minibatches trained until then, in all stages together; history and seconds: as in
    msgd.training.loop.Training; parameters and best_parameters (empty: none yet): dicts of name ->
    floatX array; backend: what the Backend's get_state returned; record and arrays: what else the
    trainer needs, for JSON and as arrays.
    """

    iteration: int
    history: list[dict]
    seconds: list[float]
    parameters: dict[str, np.ndarray]
    best_parameters: dict[str, np.ndarray]
    backend: dict[str, np.ndarray] = field(default_factory=dict)
    record: dict = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def to_bytes(self):
        """Return the state as a SHA-256 and the .npz file that it is of."""
        groups = {name: getattr(self, name) for name in self.ARRAY_GROUPS}
        members = {f"{g}.{n}": a for g, arrays in groups.items() for n, a in arrays.items()}
        text = json.dumps([self.iteration, self.history, self.seconds, self.record])
        members["json"] = np.frombuffer(text.encode(), np.uint8)
        stream = io.BytesIO()
        np.savez(stream, **members)
        return hashlib.sha256(stream.getbuffer()).digest() + stream.getvalue()

    @classmethod
    def from_bytes(cls, content):
        """Return the state that to_bytes made ``content`` of, or None if it is damaged."""
        digest, stream = content[:SHA256_BYTES], io.BytesIO(content[SHA256_BYTES:])
        if hashlib.sha256(stream.getbuffer()).digest() != digest:
            return None
        groups = {name: {} for name in cls.ARRAY_GROUPS}
        with np.load(stream, allow_pickle=False) as members:
            iteration, history, seconds, record = json.loads(members["json"].tobytes())
            for member in members.files:
                group, _, name = member.partition(".")
                if group in groups:
                    groups[group][name] = members[member]
        return cls(iteration, history, seconds, record=record, **groups)


State.ARRAY_GROUPS = ("parameters", "best_parameters", "backend", "arrays")


class Checkpoint:
    """The snapshots and states of one training.

    snapshots: the run's folder of snapshots; folder: where its states are kept, None for nowhere;
    seconds_between: how long the latest state must be old before another is written; title: names
    the run to people.
    """

    def __init__(self, snapshots, folder=None, seconds_between=0.0, title=""):
        self.title = title
        self.snapshots = Path(snapshots)
        self.folder = folder and Path(folder)
        self.seconds_between = seconds_between
        self.last_saved = time.monotonic()
        self.taken = {}  # the SHA-256 of each snapshot so far, by its iteration

    def save_snapshot(self, iteration, parameters):
        """Keep ``parameters`` as they are after ``iteration`` minibatches, of all stages."""
        path = snapshot_path(self.snapshots, iteration)
        save_parameters(path, parameters)
        self.taken[iteration] = sha256_of_file(path)
        if self.folder:
            with atomic_path(self.folder / "snapshots" / path.name) as copy:
                shutil.copyfile(path, copy)

    def is_state_due(self):
        """Return whether the latest state is old enough to save another."""
        return bool(self.folder) and time.monotonic() - self.last_saved >= self.seconds_between

    def save(self, state):
        """Write ``state`` and drop all but the two latest; do nothing if there are later ones."""
        if not self.folder:
            return
        self.last_saved = time.monotonic()
        state.record |= {"run": self.folder.name, "snapshots": sorted(self.taken.items())}
        iterations = [iteration for iteration, _ in self._states()]
        if sum(iteration > state.iteration for iteration in iterations) >= GENERATIONS:
            return  # of a longer run, which n_epochs cut short now
        with atomic_path(self.folder / f"iteration_{state.iteration:09d}.state") as temporary:
            temporary.write_bytes(state.to_bytes())
        for _, path in self._states()[GENERATIONS:]:
            path.unlink(missing_ok=True)

    def load(self, last_iteration):
        """Return the latest State that is whole and not beyond ``last_iteration``, or None.

        The snapshots that were due until then come back into the run's folder.
        """
        for iteration, path in self._states():
            if iteration > last_iteration:
                continue
            state = State.from_bytes(path.read_bytes())
            if state and state.record.get("run") != self.folder.name:
                raise UserError(
                    f"{path} is a state of another run, of other data, settings or source; remove "
                    f"{self.folder} to train this one from the start"
                )
            if state and self._restore_snapshots(state):
                os.utime(self.folder)  # in use: see clean_states
                log.info("going on from the state after iteration %d", iteration)
                return state
            log.warning("%s is damaged; falling back to the state before it", path)
            path.unlink(missing_ok=True)
        return None

    def _states(self):
        """Return (iteration, path) of every state, latest first."""
        paths = sorted(self.folder.glob("iteration_*.state"), reverse=True) if self.folder else []
        return [(int(path.stem.removeprefix("iteration_")), path) for path in paths]

    def _restore_snapshots(self, state):
        """Copy the snapshots taken until ``state``; return whether all were there, and whole."""
        taken = dict(state.record["snapshots"])
        for iteration, sha256 in taken.items():
            kept = snapshot_path(self.folder / "snapshots", iteration)
            if not kept.exists() or sha256_of_file(kept) != sha256:
                return False
            shutil.copyfile(kept, snapshot_path(self.snapshots, iteration))
        self.taken = taken
        return True


def state_folder(states, settings, device, float_x, dataset):
    """Return the folder below ``states`` for the states of a run; make it and its run.json.

    settings: completed hyperparameters of the run; device: one of msgd.models.DEVICES; float_x:
    "float32" or "float64"; dataset: msgd.data.dataset.Dataset. Its name is the hash of run.json:
    everything that shapes the result, the cap on epochs excepted.
    """
    shapes_the_result = {
        "settings": {key: value for key, value in settings.items() if key != "n_epochs"},
        "device": device,
        "floatX": float_x,
        "data": dataset.sha256,
        "code": sha256_of_source(training_source(settings["model"], device)),
        "packages": {package.__name__: package.__version__ for package in PACKAGES},
    }
    text = json.dumps(shapes_the_result, sort_keys=True)
    folder = Path(states) / hashlib.sha256(text.encode()).hexdigest()[:32]
    write_json(folder / "run.json", shapes_the_result)
    return folder


def clean_states(states, unused_days):
    """Remove the states below ``states`` that no run has used for ``unused_days``; count them.

    Raises UserError if ``states`` holds anything but states.
    """
    folders = list(Path(states).iterdir()) if Path(states).exists() else []
    strangers = [path for path in folders if not (path / "run.json").exists()]
    if strangers:
        raise UserError(f"{strangers[0]} is not a state of a run; nothing was removed")
    oldest = time.time() - unused_days * 86400
    unused = [path for path in folders if path.stat().st_mtime <= oldest]
    for path in unused:
        shutil.rmtree(path)
    return len(unused)
