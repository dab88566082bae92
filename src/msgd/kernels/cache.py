"""Numba's files of compiled kernels, each with its hash: a damaged one counts as not there.

Numba reads a file as it is. One that lost its end in a power cut would stop every training with a
traceback, and one with a changed bit would run as other code. And where a file cannot be written,
Numba gives up the training for it.
"""

import hashlib
import io
import logging
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

DIGEST_BYTES = hashlib.sha256().digest_size


def check_files(caching):
    """Let ``caching``, Numba's module of that name or numba-cuda's, use whole files alone.

    For functions that are compiled after this call. The hash stands at the end of a file, where
    Numba, which reads a pickle, does not look.
    """

    class CheckedFile(caching.IndexDataCacheFile):
        @contextmanager
        def _open_for_write(self, filepath):
            content = io.BytesIO()
            yield content
            with super()._open_for_write(filepath) as file:
                file.write(content.getbuffer())
                file.write(hashlib.sha256(content.getbuffer()).digest())

        def _load_index(self):
            return super()._load_index() if is_whole(self._index_path) else {}

        def _load_data(self, name):
            if not is_whole(self._data_path(name)):
                raise FileNotFoundError(name)  # which Numba takes for a function to be compiled
            return super()._load_data(name)

        def save(self, key, data):
            try:
                super().save(key, data)
            except OSError as error:
                log.info("a compiled kernel could not be kept: %s", error)

    caching.IndexDataCacheFile = CheckedFile


def is_whole(path):
    """Return whether the file ``path`` can be read and ends with the hash of what is before."""
    try:
        content = memoryview(Path(path).read_bytes())
    except OSError:
        return False
    before, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    return hashlib.sha256(before).digest() == digest
