"""One look for all figures, and the one way they are saved."""

import os
import textwrap
import warnings
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from msgd.files import atomic_path, readable

INK = "#222222"
BLUE = "#2f6db5"
ORANGE = "#d9731a"
GREY = "#8a8a8a"
# Lines side by side. Orange is left out: it marks what is best.
LINES = (BLUE, "#1f9a8a", "#8457ad", "#b8405e", "#8a8420", INK)
# A picture is drawn at most so many times wider than high, or higher than wide.
LONGEST_PICTURE = 5

LOOK = {
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "grid.color": "#e6e6e6",
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "font.size": 9.5,
}
# If Matplotlib was imported before msgd, its settings may be anything: all are set anew.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", mpl.MatplotlibDeprecationWarning)
    mpl.rcParams.update(
        {key: value for key, value in mpl.rcParamsDefault.items() if key != "backend"} | LOOK
    )


def run_title(run_folder):
    """Return the name of the run in ``run_folder`` (.../experiment/run) as titles show it."""
    folder = Path(os.path.abspath(run_folder))  # noqa: PTH100  # . and .. are no names, a link is
    varied = "" if folder.name == "default" else f" {folder.name.replace('+', ', ')}"
    return plain(folder.parent.name + varied)


def plain(text):
    """Return ``text``, a part of a path, as a figure can show it: no formula between dollars."""
    return readable(text).replace("$", r"\$")


def whole_numbers(most="auto"):
    """Return a locator of ticks, ``most`` intervals at most, of an axis that counts something.

    Of an axis that is shorter than 1 it has the one whole number there, and no fractions.
    """
    return MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1)


def set_title(figure, text):
    """Write ``text`` above all of ``figure``, in as many lines as its width asks for."""
    letters = int(figure.get_figwidth() * 72 / 7.2)  # of 12 points, 7.2 wide on average
    lines = textwrap.wrap(text, letters, break_on_hyphens=False)
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=12)


def save_figure(figure, path, dpi):
    """Write ``figure`` to the PNG file ``path`` atomically and close it."""
    with atomic_path(path) as temporary, letters_without_a_picture():
        figure.savefig(temporary, dpi=dpi, format="png")
    plt.close(figure)


@contextmanager
def letters_without_a_picture():
    """Let a letter that the font lacks be drawn as a box, and nothing said about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield


def height_over_width(height, width):
    """Return how high an image of so many pixels is drawn, divided by how wide.

    Its pixels are squares unless it is much wider than high or higher than wide: a row of 784
    pixels would be thinner than a hair.
    """
    return min(max(height / width, 1 / LONGEST_PICTURE), LONGEST_PICTURE)


def picture(axes, image, **options):
    """Draw a (height, width) ``image`` on ``axes`` without ticks or frame."""
    height, width = image.shape
    aspect = height_over_width(height, width) * width / height
    axes.imshow(image, interpolation="nearest", aspect=aspect, **options)
    axes.set_xticks([])
    axes.set_yticks([])
    without_frame(axes)


def without_frame(axes):
    """Take away the lines around and across ``axes``."""
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
