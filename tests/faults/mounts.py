"""Disks that are full or read-only, mounted where the processes of one test alone see them."""

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import environment


class Mounts:
    """A namespace of mounts, which ends with the process that holds it.

    In it every command of ours is root, of the machine or of nothing but the namespace.
    """

    def __init__(self, holder, enter):
        self.holder, self.enter = holder, enter

    def run(self, folder, *words):
        """Run a command in ``folder``, as the namespace has it; return the finished process."""
        inside = ["sh", "-c", 'cd "$0" && exec "$@"', folder]
        return subprocess.run(
            [*map(str, [*self.enter, *inside, *words])],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    def mount(self, *words):
        """Run mount; skip the test where it may not."""
        done = self.run("/", "mount", *words)
        if done.returncode != 0:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")

    def seen(self, folder):
        """Return the path by which this process sees the namespace's ``folder``."""
        return Path(f"/proc/{self.holder.pid}/root") / folder.relative_to("/")


@contextmanager
def own_mounts():
    """Yield a Mounts; skip the test where there can be none."""
    reasons = []
    ways = [[], ["--user"]] if os.geteuid() == 0 else [["--user"]]
    for user in ways:
        words = ["unshare", "--mount", *user, *(["--map-root-user"] if user else [])]
        try:
            holder = subprocess.Popen(
                [*words, "sh", "-c", "echo ready; exec cat"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except FileNotFoundError as error:
            pytest.skip(f"no mounts of our own: {error}")
        with holder:
            if holder.stdout.readline() == "ready\n":
                more = ["--preserve-credentials"] if user else []
                yield Mounts(holder, ["nsenter", "--target", holder.pid, "--mount", *user, *more])
                holder.stdin.close()
                return
            reasons.append(holder.stderr.read().strip())
    pytest.skip(f"no mounts of our own: {'; '.join(reasons)}")
