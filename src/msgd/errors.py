"""What a user is meant to read: the one exception, its words, the level of messages on results."""

RESULT = 25  # above INFO, below WARNING: shown on the terminal, one line for what a command came to


class UserError(Exception):
    """What was wrong, where, and what to do; the ``msgd`` program prints it and exits with 1."""


def shown(value, at_most=80):
    """Return ``value``, which a stranger's file holds, for an error: one short line of text.

    Only text and numbers are written out: of a container a few bytes may make any number of copies.
    """
    if not isinstance(value, (str, int, float, type(None))):
        return f"a {type(value).__name__}"
    text = str(value)
    cut = text if len(text) <= at_most else f"{text[:at_most]}…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)
