"""Numbers and their nouns, as sentences and titles have them."""


def times(n, noun, plural=None):
    """Return ``n`` with ``noun``, in the plural unless ``n`` is 1: ``1 run``, ``1,200 runs``."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def unbroken(text):
    """Return ``text`` with spaces at which no line ends."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")
