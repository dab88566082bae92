"""The kind of a file, recognised by its first bytes: its name may be wrong, they are not.

A gzip is looked into, so what is said of a file holds for it packed and unpacked.
"""

import gzip
import zlib
from dataclasses import dataclass

from msgd.errors import UserError

HEAD_BYTES = 512  # the mark of a tar archive is the last to come, at byte 257

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

_SAVEZ = "store its arrays with numpy.savez(path, train_x=..., train_y=..., test_x=..., test_y=...)"
_FETCH_AGAIN = "fetch the file itself again"

# What is no data set, though it may lie where one is expected: where its mark begins, the mark,
# what it is, and what to do.
_FOREIGN = (
    (0, b"version https://git-lfs", "a Git LFS pointer to the file", "run git lfs pull there"),
    (0, b"/annex/objects/", "a git-annex pointer to the file", "run git annex get there"),
    (0, b"\x93NUMPY", "a single array (.npy)", f"gather all of them: {_SAVEZ}"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", f"read it with h5py and {_SAVEZ}"),
    (0, b"MATLAB ", "a MATLAB file", f"read it with scipy.io.loadmat and {_SAVEZ}"),
    (0, b"PAR1", "a Parquet file", f"read it with pandas and {_SAVEZ}"),
    (0, b"BZh", "packed by bzip2", "unpack it with bunzip2"),
    (0, b"\xfd7zXZ\0", "packed by xz", "unpack it with unxz"),
    (0, b"\x28\xb5\x2f\xfd", "packed by zstd", "unpack it with unzstd"),
    (0, b"\x04\x22\x4d\x18", "packed by lz4", "unpack it with unlz4"),
    (0, b"\x1f\x9d", "packed by compress (.Z)", "unpack it with uncompress"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it with 7z x"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unpack it with unrar x"),
    (257, b"ustar", "a tar archive", "unpack it with tar xf, and name what was in it"),
    (0, b"\x89PNG", "a PNG picture", f"read all pictures with Pillow and {_SAVEZ}"),
    (0, b"\xff\xd8\xff", "a JPEG picture", f"read all pictures with Pillow and {_SAVEZ}"),
)

_GZIP = b"\x1f\x8b"
_PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"(", b"]", b"}")


@dataclass(frozen=True)
class Sniffed:
    """kind: "pickle", "zip", "idx", or None if unknown; packed: by gzip; head: its first bytes."""

    kind: str | None
    packed: bool
    head: bytes


def sniff(path):
    """Return what the file ``path`` (Path) is, as Sniffed.

    Raises UserError if it is empty, cannot be read, or is of a known kind that is no data set.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    packed = head.startswith(_GZIP)
    if packed:
        head = _packed_head(path)
    if not head:
        raise UserError(f"{path} {'unpacks to nothing' if packed else 'is empty'}; {_FETCH_AGAIN}")
    _refuse_foreign(path, head, packed)
    return Sniffed(_kind(head), packed, head)


def _packed_head(path):
    try:
        with gzip.open(path, "rb") as stream:
            return stream.read(HEAD_BYTES)
    except EOFError as error:
        raise UserError(f"{path} is truncated: {error}") from error
    except (OSError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file: {error}") from error


def _refuse_foreign(path, head, packed):
    where = f"{path} is" if not packed else f"{path} is a gzip file, and in it is"
    for offset, mark, what, remedy in _FOREIGN:
        if head.startswith(mark, offset):
            raise UserError(f"{where} {what}, not a data set that is read; {remedy}")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        raise UserError(
            f"{where} a web page (HTML), not data: a server answered with a page of its own, an "
            f"error or a login; {_FETCH_AGAIN}"
        )
    if packed and head.startswith(_GZIP):
        raise UserError(f"{path} is packed twice; unpack it once with gunzip")
    if packed and head.startswith(b"PK"):
        raise UserError(f"{where} a zip archive (.npz); unpack it with gunzip")


def _kind(head):
    """Return "pickle", "zip", "idx" or None.

    Pickles of protocol 2 and later begin with their protocol, older ones with what they build: a
    tuple, list or dict.
    """
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if is_idx(head):
        return "idx"
    return "pickle" if head.startswith(_PICKLE) else None


def is_idx(head):
    """Return whether ``head`` begins as an IDX file of an array does: 0, 0, type, axes."""
    return len(head) >= 4 and head[:2] == b"\0\0" and head[2] in IDX_TYPES and head[3] > 0
