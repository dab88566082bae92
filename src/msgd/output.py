"""What commands write to standard output, which may be a pipe that nobody reads to its end."""

import contextlib
import os
import sys


@contextlib.contextmanager
def standard_output():
    """Flush standard output after the block that writes to it.

    Raises OSError, which names standard output, where it cannot be written: BrokenPipeError where
    its reader has left (``| head``). Python then has nothing left to complain of when it ends.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        error.filename = "standard output"
        raise
