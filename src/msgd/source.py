"""The package's own source: the files that a result depends on, found by their imports, and hashes.

Snakemake sees the command of a rule and not the code behind it. Here the modules that a command
imports are followed from file to file, so that a rule can depend on the hash of exactly these.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent

# Training imports these, but no number it computes comes from them: their outcome is part of what
# names a run's states (its settings, its device), or only describes it. So a run is repeated after
# an edit of them, but from its last state, not from its first minibatch.
SHAPES_NO_NUMBER = (
    *("config.py", "models/__init__.py", "backends.py"),
    *("errors.py", "provenance.py", "source.py"),
)


SUFFIXES = (".py", ".yaml", ".j2")  # Python, settings, the template of the page


def source_files(*rooms):
    """Return the sorted source files of ``rooms``, by SUFFIXES: files or folders of the package.

    source_files("kernels", "data/dataset.py"), for instance; without rooms, of the whole package.
    """
    found = []
    for room in rooms or (".",):
        path = PACKAGE / room
        inside = [path] if path.is_file() else path.rglob("*")
        found += [file for file in inside if file.suffix in SUFFIXES]
    return sorted(set(found))


def closure(*rooms, leaves=()):
    """Return the sorted files of ``rooms`` and of every module of the package they import.

    A module is imported wherever in a file the import stands, in a function too. Modules that are
    chosen by name at run time are not seen: name them among ``rooms``. What the files ``leaves``
    import is not followed.
    """
    found, waiting = set(), set(source_files(*rooms))
    ends = {PACKAGE / name for name in leaves}
    while waiting:
        file = waiting.pop()
        found.add(file)
        if file.suffix == ".py" and file not in ends:
            waiting |= _imported_files(file) - found
    return sorted(found)


@cache
def _imported_files(file):
    """Return the files of the package (set) that importing ``file`` reads, its packages' first."""
    names = {file.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".")}
    for node in _statements(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # ``from package import name``: the name may be a module of the package.
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in names if name.split(".")[0] == PACKAGE.name]
    prefixes = {tuple(part[1:end]) for part in parts for end in range(1, len(part) + 1)}
    return {path for prefix in prefixes if (path := _module_file(prefix))} - {file}


def _statements(tree):
    """Yield the statements in ``tree``, those within others too.

    An import is one. Expressions, which hold none, are most of a file: every training reads it.
    """
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.expr | ast.expr_context):
            yield node
            yield from _statements(node)


def _module_file(prefix):
    """Return the file of the module ``msgd.<prefix>`` (tuple of names), None if there is none."""
    path = PACKAGE.joinpath(*prefix)
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def run_source(model):
    """Return all files that a training of ``model`` imports, on whichever device."""
    from msgd.models import DEVICES

    return sorted(set(_device_independent(model)).union(*(_kernels(model, d) for d in DEVICES)))


def training_source(model, device):
    """Return the files that shape the numbers a training of ``model`` computes on ``device``.

    device: one of msgd.models.DEVICES. The files are what the device's own file in the model's room
    imports, and what every training imports, without the kernels of another device: for describing
    a GPU, training/run.py imports kernels/cuda.py whatever the device.
    """
    from msgd.models import DEVICES

    foreign = {PACKAGE / "kernels" / f"{name}.py" for name in DEVICES}
    files = set(_device_independent(model)) - foreign | set(_kernels(model, device))
    return sorted(files - {PACKAGE / name for name in SHAPES_NO_NUMBER})


def _device_independent(model):
    """Return what a training of ``model`` imports apart from its Backend."""
    from msgd.models import MODELS

    rooms = "training/run.py", f"training/{MODELS[model]}.py", f"models/{model}/model.py"
    return closure(*rooms, leaves=SHAPES_NO_NUMBER)  # config.py imports Matplotlib's room


def _kernels(model, device):
    """Return what the Backend of ``model`` on ``device`` imports."""
    return closure(f"models/{model}/{device}.py", leaves=SHAPES_NO_NUMBER)


def sha256_of_source(files):
    """Return the SHA-256 of ``files`` of the package, names and contents, as 64 hex digits."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@cache
def source_sha256():
    """Return the SHA-256 of the whole package's source, as 64 hexadecimal digits."""
    return sha256_of_source(source_files())
