"""What others set for other programs: same results and figures, or one line that says what to do.

In processes of their own, as a person or Snakemake starts them.
"""

import json
import shutil
import subprocess
import sys
from ctypes.util import find_library

import pytest
from conftest import as_triple, environment, error_lines, make_dataset, save_npz

WORDS = ["model=logistic_regression", "batch_size=10", "n_epochs=3", "learning_rate=0.5"]
RESULTS = ["history.csv", "best_parameters.npz", "test_predictions.npz"]
# Everything that would be seen in a figure, and what would stop it from being drawn.
RC = """\
text.usetex: True
image.origin: lower
image.interpolation: bicubic
image.cmap: gray
figure.autolayout: True
figure.facecolor: black
figure.figsize: 2, 2
savefig.dpi: 20
savefig.bbox: tight
savefig.transparent: True
savefig.facecolor: black
axes.facecolor: black
axes.formatter.use_locale: True
axes.prop_cycle: cycler('color', 'rgb')
axes.unicode_minus: False
axes.xmargin: 0.4
font.family: serif
font.weight: bold
lines.linewidth: 5
lines.marker: x
xtick.direction: in
path.simplify: False
agg.path.chunksize: 3
backend: TkAgg
"""
BROKEN_RC = b"no.such.key: 1\nlines.linewidth: very\nno colon\n" + b"\xff\xfe\n"


# Runs msgd's main for every list of words, in one process: a start takes a second.
PROGRAM = """\
import json, sys
{first}
from msgd.cli import main
sys.exit(max([main(words) for words in json.loads(sys.argv[1])]))
"""


def msgd(*commands, cwd=None, first="", unset=(), **changes):
    """Run the msgd program with each of ``commands`` (lists of words) in one process; return it.

    first: Python to run before msgd is imported; changes: of the environment.
    """
    variables = {k: v for k, v in environment(NUMBA_ENABLE_CUDASIM="0").items() if k not in unset}
    words = json.dumps([[str(word) for word in command] for command in commands])
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(first=first), words],
        cwd=cwd,
        env=variables | changes,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


class Plain:
    """A data set, and its run and figures in the environment of the tests."""

    def __init__(self, folder):
        self.data, self.run, self.figures = folder / "arrays", folder / "toy" / "default", folder
        save_npz(folder / "toy.npz", as_triple(make_dataset(60, 30, 30, (4, 4), 3)))
        read = ("unpickle", folder / "toy.npz", "--output", self.data)
        done = msgd(read, *self.training(self.run), *self.drawing(folder))
        assert done.returncode == 0, done.stderr

    def training(self, run):
        """Return the commands that train and score the run in the folder ``run``."""
        where = ("--data", self.data, "--run", run, "--backend", "cpu")
        return [("train", *where, *WORDS), ("score", *where)]

    def drawing(self, folder):
        """Return the commands that draw the run into ``folder``."""
        where = ("--data", self.data, "--run", self.run, "--output")
        return [("plot", figure, *where, folder / name) for figure, name in FIGURES.items()]


FIGURES = {
    "learning_curve": "learning_curve.png",
    "weights": "weights.png",
    "weights_animation": "weights.gif",
    "confusion": "confusion.png",
    "mistakes": "mistakes.png",
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return Plain(tmp_path_factory.mktemp("plain"))


def draws_the_same(plain, folder, **how):
    """Draw the run's figures in an environment; check their bytes, and that nothing was said."""
    done = msgd(*plain.drawing(folder), **how)
    assert (done.returncode, done.stderr) == (0, "")
    for name in FIGURES.values():
        assert (folder / name).read_bytes() == (plain.figures / name).read_bytes(), name


def gives_the_same(plain, folder, **how):
    """Train and score in an environment; check the bytes of the results; return what was said."""
    run = folder / "toy" / "default"
    done = msgd(*plain.training(run), **how)
    assert done.returncode == 0, done.stderr
    for name in RESULTS:
        assert (run / name).read_bytes() == (plain.run / name).read_bytes(), name
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        {"MPLBACKEND": "nonsense", "PYTHONWARNINGS": "error"},
        {"MPLBACKEND": "TkAgg", "MPLCONFIGDIR": "/proc/nowhere", "TMPDIR": "/nonexistent"},
        {"FREETYPE_PROPERTIES": "truetype:interpreter-version=35", "PYTHONHASHSEED": "7"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONOPTIMIZE": "2"},
    ],
)
def test_figures_are_those_of_everyone(plain, tmp_path, changes):
    draws_the_same(plain, tmp_path, **changes)


@pytest.mark.parametrize("content", [RC.encode(), BROKEN_RC], ids=["other", "broken"])
@pytest.mark.parametrize("place", ["working directory", "variable", "home", "xdg"])
def test_nobody_s_matplotlibrc_is_read(plain, tmp_path, content, place):
    folders = {
        "working directory": tmp_path,
        "variable": tmp_path / "rc",
        "home": tmp_path / ".config" / "matplotlib",
        "xdg": tmp_path / "matplotlib",
    }
    folder = folders[place]
    (folder / "stylelib").mkdir(parents=True)
    (folder / "matplotlibrc").write_bytes(content)
    (folder / "stylelib" / "mine.mplstyle").write_bytes(content)
    changes = {
        "variable": {"MATPLOTLIBRC": str(folder)},
        "home": {"HOME": str(tmp_path)},
        "xdg": {"XDG_CONFIG_HOME": str(tmp_path)},
    }
    draws_the_same(plain, tmp_path / "out", cwd=tmp_path, **changes.get(place, {}))


def test_the_check_of_the_colour_map_reads_nobody_s_settings(tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(BROKEN_RC)
    program = tmp_path / "program.py"
    program.write_text(
        "import os\n"
        "from msgd.config import complete_config\n"
        "toy = {'toy': {'model': 'logistic_regression'}}\n"
        "complete_config({'experiments': toy, 'plots': {'colormap': 'PiYG'}})\n"
        "print(os.getcwd(), os.environ['MPLBACKEND'], 'MPLCONFIGDIR' in os.environ)\n"
    )
    done = subprocess.run(
        [sys.executable, program],
        cwd=tmp_path,
        env=environment(MPLBACKEND="nonsense"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{tmp_path} nonsense False\n", "")


def test_who_imported_matplotlib_before_gets_the_same_figures(plain, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, matplotlib.pyplot as plt\n"
        "plt.style.use('dark_background')\n"
        "plt.rcParams.update({'image.origin': 'lower', 'lines.linewidth': 5})\n"
        "from msgd.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ("plot", "confusion", "--data", plain.data, "--run", plain.run)
    done = subprocess.run([sys.executable, program, *words, "--output", tmp_path / "x.png"])
    assert done.returncode == 0
    assert (tmp_path / "x.png").read_bytes() == (plain.figures / "confusion.png").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"NUMBA_THREADING_LAYER": "workqueue", "PYTHONHASHSEED": "7"},
        {"NUMBA_NUM_THREADS": "1000"},
        {"NUMBA_ENABLE_CUDASIM": "1", "TMPDIR": "/nonexistent"},
        {"PYTHONWARNINGS": "error"},
        {"LANG": "C", "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"HOME": "/nonexistent"},
    ],
)
def test_results_are_those_of_everyone(plain, tmp_path, changes):
    gives_the_same(plain, tmp_path, **changes)


def test_what_openmp_cannot_read_does_no_harm(plain, tmp_path):
    said = gives_the_same(plain, tmp_path, OMP_NUM_THREADS="abc")
    if find_library("gomp"):  # else Numba takes other threads
        assert "OMP_NUM_THREADS" in said  # by the library itself


@pytest.mark.slow
def test_without_docstrings(plain, tmp_path):
    """PYTHONOPTIMIZE=2 takes them out; the help and the card do with what is left."""
    changes = {"PYTHONOPTIMIZE": "2", "PYTHONDONTWRITEBYTECODE": "1"}
    gives_the_same(plain, tmp_path, **changes)
    assert "one subcommand per" in msgd(["--help"], **changes).stdout
    cards = []
    for name, how in (("plain", {}), ("optimised", changes)):
        words = ("--data", plain.data, "--output", tmp_path / name, plain.run)
        done = msgd(("select", *words), **how)
        assert done.returncode == 0, done.stderr
        cards.append((tmp_path / name / "model_card.md").read_bytes())
    assert cards[0] == cards[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NUMBA_THREADING_LAYER": "tbb"}, "unset what the environment has: NUMBA_THREADING_LAYER"),
        ({"NUMBA_THREADING_LAYER": "nonsense"}, "'nonsense' is unknown to Numba"),
        ({"NUMBA_THREADING_LAYER_PRIORITY": "omp"}, "NUMBA_THREADING_LAYER_PRIORITY=omp"),
        ({"NUMBA_DISABLE_JIT": "1"}, "NUMBA_DISABLE_JIT is set"),
        ({"NUMBA_NUM_THREADS": "0"}, "unset what the environment has: NUMBA_NUM_THREADS=0"),
        ({"NUMBA_NUM_THREADS": "abc"}, "'NUMBA_NUM_THREADS' is defined but its associated value"),
        ({"NUMBA_OPT": "abc"}, "NUMBA_OPT=abc"),
        ({"NUMBA_CPU_FEATURES": "nonsense"}, "NUMBA_CPU_FEATURES is 'nonsense'"),
    ],
)
@pytest.mark.parametrize("step", ["train", "score"])
def test_what_numba_cannot_work_with_is_reported_in_a_line(plain, tmp_path, step, changes, message):
    if "tbb" in changes.values() and has_tbb():
        pytest.skip("tbb is installed here")
    run = tmp_path / "toy" / "default"
    shutil.copytree(plain.run, run)
    (command,) = (words for words in plain.training(run) if words[0] == step)
    done = msgd(command, **changes)
    assert done.returncode == 1
    (line,) = error_lines(done.stderr)
    assert line.startswith(f"msgd {step}: error: ")
    assert message in line
    assert "unset" in line


def has_tbb():
    from importlib.util import find_spec

    return find_spec("tbb") is not None


def test_kernels_compiled_by_other_settings_are_kept_apart(tmp_path):
    """Or those of one look for a fault would go on running, checked and slow."""
    program = "from msgd.kernels import options; import numba; print(numba.config.CACHE_DIR)"
    folders = set()
    for changes in ({}, {"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_OPT": "1"}, {"NUMBA_NUM_THREADS": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment(NUMBA_CACHE_DIR=str(tmp_path), **changes),
            capture_output=True,
            text=True,
            check=True,
        )
        folders.add(done.stdout)
    assert len(folders) == 3


@pytest.mark.slow
def test_without_a_home(plain, tmp_path):
    """As in a container whose user has a number and no name: nobody knows a home of theirs.

    Compiles the kernels, for there is no place to keep them.
    """
    first = "import pwd\ndef getpwuid(uid): raise KeyError(uid)\npwd.getpwuid = getpwuid"
    nowhere = ["HOME", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"]
    said = gives_the_same(plain, tmp_path, first=first, unset=nowhere)
    assert "set NUMBA_CACHE_DIR to a folder that can be written" in said
    draws_the_same(plain, tmp_path, first=first, unset=nowhere)


ASCII_ALONE = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_letters_the_locale_does_not_know(plain, tmp_path):
    """Folders with names of all kinds, in a locale that knows ASCII alone; then in UTF-8."""
    name = "größe_実験_$a$"
    outcomes = []
    # The words are given as JSON; a locale without UTF-8 would have them with these halves.
    for number, (locale, inside) in enumerate([(ASCII_ALONE, ascii_with_halves(name)), ({}, name)]):
        folder = tmp_path / str(number)
        shutil.copytree(plain.run, folder / name / "default")
        run, out = folder / inside / "default", folder / "out"
        data, drawn = ("--data", plain.data, "--run", run), ("--output", out / "c.png")
        done = msgd(
            *((*words, "--log", folder / inside / "log") for words in plain.training(run)),
            ("tabulate", "--output", out, run),
            ("select", "--data", plain.data, "--output", out, run),
            ("plot", "confusion", *data, *drawn),
            (
                "plot",
                "validation_error_over",
                "--over=seed",
                "--runs",
                run,
                f"--output={out}/o.png",
            ),
            PYTHONWARNINGS="error",
            **locale,
        )
        assert done.returncode == 0, done.stderr
        assert "Error" not in done.stderr, done.stderr
        outcomes.append([(out / x).read_bytes() for x in ("test_scores.csv", "c.png", "o.png")])
    assert name in outcomes[0][0].decode()
    assert outcomes[0] == outcomes[1]


def ascii_with_halves(name):
    """Return ``name`` as Python reads it from the command line where ASCII is all it knows."""
    return name.encode().decode("ascii", "surrogateescape")


def test_the_page_of_keys_is_utf_8_in_every_locale():
    done = msgd(["describe-config"], **ASCII_ALONE)
    assert done.returncode == 0, done.stderr
    assert "| – |" in done.stdout
