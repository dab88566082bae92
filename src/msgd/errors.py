"""What a user is meant to read: the one exception, and the level of log messages on results."""

RESULT = 25  # above INFO, below WARNING: shown on the terminal, one line for what a command came to


class UserError(Exception):
    """What was wrong, where, and what to do; the ``msgd`` program prints it and exits with 1."""
