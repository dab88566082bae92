"""The bar that shows a training's progress on a terminal."""

from tqdm import tqdm


def progress_bar(title, **options):
    """Return a bar on standard error that vanishes when it ends; none where that is no terminal.

    ``title`` names the run: several may be training at a time. ``options``: of tqdm.
    """
    return tqdm(desc=title, disable=None, dynamic_ncols=True, leave=False, **options)
