"""Bad pictures, as they may be given to msgd predict."""

import io
import os
import struct
import zlib

import numpy as np
from cases import CANARY, Case
from networks import model_file

NO_IMAGE = "it is no image of a kind that is read"
BROKEN = "cannot be read|is damaged|no image of a kind|too many pixels|is blank"


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, rows=b"", colour=0, depth=8, before=()):
    """Return a PNG that says to be of a size; rows: its packed data."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *before, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def blank(width, height, colour, channels):
    """Return a whole PNG of zeros, small as a file."""
    return lambda f: png(
        width, height, zlib.compress(bytes(height * (1 + width * channels)), 9), colour
    )


def saved(kind, **options):
    """Return a picture of noise as a file of ``kind``."""
    from PIL import Image

    noise = np.random.RandomState(1).randint(0, 256, (40, 40)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, kind, **options)
    return stream.getvalue()


def cut(kind, share):
    data = saved(kind)
    return data[: int(len(data) * share)]


def flipped(kind, place):
    data = bytearray(saved(kind))
    data[place] ^= 0xFF
    return bytes(data)


def postscript(folder):
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
        + f"(%pipe%touch {folder / CANARY}) (w) file\n".encode()
    )


def tiff(*entries):
    """Return a TIFF of one directory of ``entries``, (tag, type, count, value)."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4)


SIZED = ((256, 4, 1, 9), (257, 4, 1, 9), (258, 3, 1, 8), (262, 3, 1, 1))
PICTURES = {
    "89 megapixels with transparency": (blank(12_000, 7400, 6, 4), "is blank"),
    "89 megapixels of two bytes": (
        lambda f: png(12_000, 7400, zlib.compress(bytes(7400 * 24_001), 9), 0, 16),
        "is blank",
    ),
    "89 megapixels of grey": (blank(12_000, 7400, 0, 1), "is blank"),
    "400 megapixels": (blank(20_000, 20_000, 0, 1), "too many pixels"),
    "2 ** 62 pixels": (png(2**31 - 1, 2**31 - 1), "too many pixels"),
    "a line of 2 ** 26 pixels": (blank(2**26, 1, 0, 1), "too long for its width"),
    "no pixels": (png(0, 0), BROKEN),
    "a header without a picture": (png(100, 100), BROKEN),
    "a chunk of 2 GB": (b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"IHDR", BROKEN),
    "a text that is a bomb": (
        lambda f: png(9, 9, before=[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28), 9))]),
        BROKEN,
    ),
    "a profile that is a bomb": (
        lambda f: png(9, 9, before=[chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**28), 9))]),
        BROKEN,
    ),
    "a chunk with a wrong checksum": (png(9, 9)[:-3] + b"abc", BROKEN),
    "half a PNG": (cut("PNG", 0.5), BROKEN),
    "half a JPEG": (cut("JPEG", 0.5), BROKEN),
    "half a GIF": (cut("GIF", 0.5), BROKEN),
    "half a BMP": (cut("BMP", 0.5), BROKEN),
    "half a TIFF": (cut("TIFF", 0.5), BROKEN),
    "half a WebP": (cut("WEBP", 0.5), BROKEN),
    "a JPEG with its start alone": (b"\xff\xd8\xff", NO_IMAGE),
    "a PNG with a flipped header": (flipped("PNG", 18), BROKEN),
    "a BMP of 2 ** 31 rows": (
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 99, 0, 54, 40, 9, 2**31 - 1, 1, 24, *[0] * 6),
        BROKEN,
    ),
    "a GIF of 65,535 squared": (b"GIF89a" + b"\xff" * 4 + b"\x80\0\0" + bytes(6) + b",", BROKEN),
    "a PPM of 10 ** 12 pixels": (b"P5 1000000 1000000 255\n", BROKEN),
    "a PPM of 9,000 digits": (b"P5 " + b"9" * 9000 + b" 9 255\n", BROKEN),
    "a TIFF whose strips lie far out": (
        tiff(*SIZED, (273, 4, 1, 2**32 - 1), (278, 4, 1, 9), (279, 4, 1, 81)),
        BROKEN,
    ),
    "a TIFF with 2 ** 32 strips": (tiff(*SIZED, (273, 4, 2**32 - 1, 8)), BROKEN),
    "a TIFF whose directory is itself": (b"II*\0\x08\0\0\0\0\0\x08\0\0\0", BROKEN),
    "PostScript that calls": (postscript, NO_IMAGE),
    "a PDF": (b"%PDF-1.7\n1 0 obj\n", NO_IMAGE),
    "an SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="1e9" height="1e9"/>', NO_IMAGE),
    "text": (b"P6 all is well", BROKEN),
    "nothing": (b"", NO_IMAGE),
    "zeros": (bytes(10**6), NO_IMAGE),
}


def drawing(name, content, says, file="one.png"):
    """Return the Case of a picture of the bytes ``content``, or of what that function returns."""

    def make(folder):
        (folder / "model.npz").write_bytes(model_file())
        data = content(folder) if callable(content) else content
        if data is not None:
            (folder / file).write_bytes(data)
        return ["predict", "--model", "model.npz", file]

    return Case(name, "picture", make, says)


CASES = [
    *(drawing(name, *case) for name, case in PICTURES.items()),
    drawing("a pipe", lambda f: os.mkfifo(f / "pipe.png"), "no file|neither", "pipe.png"),
    drawing("a device without end", lambda f: None, NO_IMAGE + "|neither|no file", "/dev/zero"),
    drawing("a folder", lambda f: (f / "folder.png").mkdir(), "directory", "folder.png"),
    drawing("a name of 5,000 letters", lambda f: None, "too long", "a" * 5000)._replace(
        names="aaa"
    ),
    drawing("a name of two lines", lambda f: None, "No such file", "a\n\x1b[2J")._replace(
        names="a"
    ),
]
