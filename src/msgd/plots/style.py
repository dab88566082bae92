"""One look for all figures, and the one way they are saved."""

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")  # files only: no display is needed

import matplotlib.pyplot as plt

from msgd.files import atomic_path

INK = "#222222"
BLUE = "#2f6db5"
ORANGE = "#d9731a"
GREY = "#8a8a8a"
# Lines side by side. Orange is left out: it marks what is best.
LINES = (BLUE, "#1f9a8a", "#8457ad", "#b8405e", "#8a8420", INK)

mpl.rcParams.update(
    {
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
)


def run_title(run_folder):
    """Return the name of the run in ``run_folder`` (.../experiment/run) as titles show it."""
    folder = Path(run_folder)
    varied = "" if folder.name == "default" else f" {folder.name.replace('+', ', ')}"
    return folder.parent.name + varied


def save_figure(figure, path, dpi):
    """Write ``figure`` to the PNG file ``path`` atomically and close it."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
    plt.close(figure)


def picture(axes, image, **options):
    """Draw a (height, width) ``image`` on ``axes`` without ticks or frame."""
    axes.imshow(image, interpolation="nearest", **options)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
