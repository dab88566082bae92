"""The one exception a user is meant to read."""


class UserError(Exception):
    """What was wrong, where, and what to do; the ``msgd`` program prints it and exits with 1."""
