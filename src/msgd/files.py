"""Files that appear whole or not at all, and their hashes."""

import errno
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from msgd.errors import UserError

PARTIAL = ".partial-"  # how the names of files begin that are not whole yet
ROOM = 1 << 20  # bytes to be written where it is asked whether there is room


@contextmanager
def atomic_path(path):
    """Yield a temporary path beside ``path``; on success flush it and rename it to ``path``.

    On any exception the temporary file is removed and ``path`` is left as it was. An OSError names
    ``path``.
    """
    path = Path(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The real suffix comes last: writers such as matplotlib choose the format by it. The name
        # is known before there is a file, so that a signal between the two leaves none.
        temporary = path.parent / f"{PARTIAL}{os.urandom(8).hex()}{path.suffix}"
        try:
            with _reason_kept(temporary):
                yield temporary
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def _naming(path):
    """Let an OSError be of ``path``: most of writing name no file, others the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise OSError(errno.EIO, str(error), str(path)) from error
        if error.filename is None or PARTIAL in f"{error.filename} {error.filename2}":
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def _reason_kept(path):
    """Let an OSError say why ``path`` was not written.

    NumPy and Pillow write through C and say only that less was written than asked for. Where that
    was for want of room, a plain write fails, too, and says so.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None and path.exists():
            with path.open("ab") as stream:
                stream.write(bytes(ROOM))
                os.fsync(stream.fileno())
        raise


def expand_home(path):
    """Return ``path`` (str or Path) as text, a leading ~ or ~user replaced by the home folder.

    Any other path stays as it is written: ./mnist is a folder, mnist a keyword.
    """
    text = str(path)
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:  # no such user, or no home: then the name begins with a tilde
        return text


def remove_partial(folder, below=False):
    """Remove what processes that were killed have left of files in ``folder``, or ``below`` it."""
    for path in Path(folder).glob(("**/" if below else "") + PARTIAL + "*"):
        path.unlink(missing_ok=True)


def write_text(path, text):
    """Write ``text`` (str) to ``path`` atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Write ``value`` as indented JSON to ``path`` atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path):
    """Return the value held by the JSON file ``path``; UserError if it holds no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # the latter of a thousand brackets
        raise UserError(f"{path} is damaged: it is not JSON ({error})") from error


def readable(name):
    """Return ``name``, a part of a path (str), as text that can be written and shown.

    Where the locale knows no UTF-8, Python keeps the bytes of other letters as halves of
    surrogates, which no file takes.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def sha256_of_file(path):
    """Return the SHA-256 of the bytes of ``path``, as 64 hexadecimal digits."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_hashes(hashes):
    """Return one SHA-256 for files of these ``hashes``: dict of name -> SHA-256, in order."""
    return hashlib.sha256(json.dumps([*hashes.items()]).encode()).hexdigest()


def empty_folder(path):
    """Make ``path`` an empty folder, removing whatever an earlier run left there."""
    path = Path(path)
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path
