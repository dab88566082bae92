"""The package's own source: the files that shape a result, and their hash."""

import hashlib
import re
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def source_files(*rooms):
    """Return the sorted Python and YAML files of ``rooms``: files or folders below the package.

    source_files("kernels", "data/dataset.py"), for instance; without rooms, of the whole package.
    """
    found = []
    for room in rooms or (".",):
        path = PACKAGE / room
        inside = [path] if path.is_file() else path.rglob("*")
        found += [file for file in inside if file.suffix in (".py", ".yaml")]
    return sorted(set(found))


def model_rooms(model):
    """Return the rooms ``models/<name>`` of ``model`` and of every model it is built on."""
    rooms, waiting = set(), {model}
    while waiting:
        name = waiting.pop()
        rooms.add(f"models/{name}")
        for file in source_files(f"models/{name}"):
            imported = set(re.findall(r"from msgd\.models\.(\w+)", file.read_text()))
            folders = {n for n in imported if (PACKAGE / "models" / n).is_dir()}
            waiting |= {n for n in folders if f"models/{n}" not in rooms}
    return sorted(rooms)


def training_source(model):
    """Return the source files that shape what a training of ``model`` computes."""
    shared = ("__init__.py", "interface.py", "cpu_backend.py")
    return source_files(
        *("kernels", "training", "data/dataset.py"),
        *(f"models/{name}" for name in shared),
        *model_rooms(model),
    )


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
