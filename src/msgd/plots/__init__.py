"""Figures, drawn from saved files only and never from inside training.

They look the same for everyone: Matplotlib is imported here before any module of this room can, for
on import it reads what was set for other figures.
"""

import os
import tempfile
from contextlib import contextmanager

READ_ON_IMPORT = ("MPLBACKEND", "MATPLOTLIBRC", "FREETYPE_PROPERTIES")


@contextmanager
def _without_settings_of_others():
    """Keep Matplotlib, imported meanwhile, from what was set for other figures.

    It looks for a matplotlibrc in the working directory, where MATPLOTLIBRC says, and in the user's
    folder, where it finds style sheets and a list of fonts too. Any of these may turn a figure
    over, be broken, or be where nothing can be read or written; and MPLBACKEND may name a backend
    that is not installed. So it is imported in an empty folder, which is the user's folder to it.
    Its own fonts are listed in a tenth of a second.
    """
    here = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
    with tempfile.TemporaryDirectory(prefix="msgd-matplotlib-") as folder:
        changes = dict.fromkeys(READ_ON_IMPORT)
        changes |= {"MPLCONFIGDIR": folder, "MPL_IGNORE_SYSTEM_FONTS": "1"}
        before = {name: os.environ.get(name) for name in changes}
        os.chdir(folder)
        try:
            _change_environment(changes)
            yield
        finally:
            _change_environment(before)
            os.fchdir(here)
            os.close(here)


def _change_environment(changes):
    """Set the variables ``changes`` (dict of name -> value), or unset those that are None."""
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


with _without_settings_of_others():
    import matplotlib
    import matplotlib.font_manager  # lists the fonts

matplotlib.use("agg")  # files only: no display is needed
