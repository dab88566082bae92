"""Trainings whose process ends at a moment that a test chooses, and what they must leave equal."""

import itertools

import pytest


class Killed(BaseException):
    """Stands for the end of the process."""


def is_killed(place, name, call, train):
    """Call ``train()``, killed at the ``call``-th call (from 1) of ``place.name``.

    Return whether it came to that call.
    """
    original, calls = getattr(place, name), itertools.count(1)

    def dying(*arguments, **keywords):
        if next(calls) == call:
            raise Killed
        return original(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, dying)
        try:
            train()
        except Killed:
            return True
    return False


def files(folder):
    """Return {name: bytes} of what the run in ``folder``/run leaves but for clock and hardware."""
    paths = [*folder.glob("run/*.npz"), *folder.glob("run/snapshots/*")]
    paths += [folder / "run" / name for name in ("history.csv", "training.json")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
