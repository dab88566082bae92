"""Bad .npz files, IDX folders and paths of data sets."""

import gzip
import io
import os
import pickle
import struct
import warnings
import zipfile

import numpy as np
from cases import CANARY, TOY, Case, data_set, npz_of_toy
from conftest import as_triple, save_idx_folder

NOT_WHOLE = r"is not a whole \.npz file"


def zipped(members, compression=zipfile.ZIP_STORED):
    """Return a zip of ``members``, (name, bytes) pairs; names may stand there twice."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that stand there twice
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return stream.getvalue()


def members_of_toy(**changes):
    """Return the (name, bytes) pairs of TOY's .npz; changes: of arrays, bytes or None for none."""
    with zipfile.ZipFile(io.BytesIO(npz_of_toy())) as archive:
        members = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    members.update(changes)
    return [(f"{name}.npy", data) for name, data in members.items() if data is not None]


def npy(header, data=bytes(600), version=1):
    """Return a .npy file with the text ``header`` (str)."""
    text = header.encode("latin-1") + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def described(descr="'|u1'", order="False", shape="(30, 20)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


# {what the header of train_x says: the .npy file}
LYING = {
    "more than there is": npy(described(shape="(31, 20)")),
    "2 ** 62 squared": npy(described(shape=f"({2**62}, {2**62})")),
    "a shape that overflows to 600": npy(described(shape=f"({2**62}, 4, 600)")),
    "below zero": npy(described(shape="(-30, -20)")),
    "numbers of 30 digits": npy(described(shape=f"({10**30}, 20)")),
    "numbers of 9,000 digits": npy(described(shape=f"({'9' * 9000}, 20)")),
    "no axes": npy(described(shape="()")),
    "a shape of fractions": npy(described(shape="(30.0, 20)")),
    "a shape of truths": npy(described(shape="(True, 600)")),
    "a shape of text": npy(described(shape="'30'")),
    "40 axes": npy(described(shape=f"({'1, ' * 40})")),
    "objects": npy(described("'|O'")),
    "objects within a structure": npy(described("[('a', '|O')]")),
    "a structure": npy(described("[('a', '|u1')]")),
    "text": npy(described("'<U4'")),
    "bytes of no size": npy(described("'|S0'")),
    "raw bytes of no size": npy(described("'|V0'", shape="()")),
    "raw bytes of 2 GB": npy(described(f"'|V{2**31 - 1}'")),
    "raw bytes of 2 ** 70": npy(described(f"'|V{2**70}'")),
    "complex numbers": npy(described("'<c8'", shape="(10, 5)")),
    "dates": npy(described("'<M8[s]'", shape="(10, 5)")),
    "an unknown type": npy(described("'<q77'")),
    "a number for a type": npy(described("7")),
    "a type of nested lists": npy(described("[" * 90 + "]" * 90)),
    "a word for the order": npy(described(order="'C'")),
    "another key": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (30, 20), 'x': 1}"),
    "a call": npy("__import__('os').system('touch CANARY')"),
    "a list": npy("[1, 2]"),
    "nothing": npy(""),
    "brackets without end": npy("(" * 9000),
    "signs without end": npy("-" * 9000 + "1"),
    "a header longer than is allowed": npy(described() + " " * 20_000),
    "a header of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    "a header that is cut": b"\x93NUMPY\x01\x00\x76\x00{'descr'",
    "a version to come": b"\x93NUMPY\x09\x00" + npy(described())[8:],
    "no version": b"\x93NUMPY",
}


def lying():
    for name, member in LYING.items():
        data = zipped(members_of_toy(train_x=member))
        yield data_set(
            name, ".npy that lies", data, NOT_WHOLE + "|train images|train has 1 images", "bad.npz"
        )


def central(data, offset, value):
    """Return a zip's bytes with ``value`` at ``offset`` of its first entry in the directory."""
    place = data.index(b"PK\x01\x02") + offset
    return data[:place] + value + data[place + len(value) :]


def overlapping():
    """Return a zip whose thousand members are one and the same, 100 MB packed to 100 kB."""
    one = zipped([("a.npy", bytes(10**8))], zipfile.ZIP_DEFLATED)
    start, end = one.index(b"PK\x01\x02"), one.index(b"PK\x05\x06")
    directory = one[start:end] * 1000
    sizes = struct.pack("<HHII", 1000, 1000, len(directory), start)
    return one[:start] + directory + one[end : end + 8] + sizes + bytes(2)


def objects(folder):
    class Call:
        def __reduce__(self):
            return os.system, (f"touch {folder / CANARY}",)

    return npz_of_toy(train_x=np.array([Call()], object))


# {name: (bytes or function of the folder, what is said)}
ZIPS = {
    "an object array that calls": (objects, "Object arrays"),
    "a pickle as a member": (
        lambda f: zipped(members_of_toy(train_x=pickle.dumps(print))),
        "not an array of numbers",
    ),
    "a bomb of zeros": (
        lambda f: zipped([("train_x.npy", bytes(2**28 + 2**24))], zipfile.ZIP_DEFLATED),
        "bomb",
    ),
    "one member under a thousand names": (lambda f: overlapping(), "bomb"),
    "a size that lies upwards": (
        central(zipped(members_of_toy()), 24, b"\xff\xff\xff\x7f"),
        "bomb|" + NOT_WHOLE,
    ),
    "a size that lies downwards": (
        central(zipped(members_of_toy(), zipfile.ZIP_DEFLATED), 24, struct.pack("<I", 200)),
        NOT_WHOLE,
    ),
    "a place far out": (central(zipped(members_of_toy()), 42, b"\xff\xff\xff\x7f"), NOT_WHOLE),
    "an unknown compression": (central(zipped(members_of_toy()), 10, b"\x63\0"), NOT_WHOLE),
    "an encrypted member": (central(zipped(members_of_toy()), 8, b"\1\0"), NOT_WHOLE),
    "a wrong checksum": (central(zipped(members_of_toy()), 16, b"abcd"), NOT_WHOLE),
    "names that climb out": (zipped([("../" * 9 + "tmp/canary", b"x")]), "no .npz: it holds"),
    "an array that climbs out": (
        zipped([("../train_x.npy", npy(described()))]),
        "lacks train_x",
    ),
    "an absolute name": (zipped([("/tmp/canary.npy", npy(described()))]), "lacks train_x"),
    "a name of two lines": (
        zipped([("a\nall is well \x1b[2J.npy", npy(described()))]),
        "lacks train_x",
    ),
    "a name of 60,000 letters": (zipped([("a" * 60_000 + ".npy", b"x")]), "lacks train_x"),
    "an array twice": (
        zipped([*members_of_toy(), ("train_x.npy", npy(described()))]),
        "mean the same",
    ),
    "two spellings of one array": (
        zipped([*members_of_toy(), ("x_train.npy", npy(described()))]),
        "mean the same",
    ),
    "a member that is no array": (
        zipped(members_of_toy(train_x=b"no array")),
        "not an array of numbers",
    ),
    "a member of nothing": (zipped(members_of_toy(train_x=b"")), "not an array of numbers"),
    "no members": (zipped([]), "it holds nothing"),
    "100,000 members": (lambda f: zipped((f"{n}", b"") for n in range(100_000)), "and 99988 more"),
    "no test set": (zipped(members_of_toy(test_x=None)), "lacks test_x"),
}


def whole_and_damaged():
    """Yield cases of a .npz that was cut, or of which a byte was changed, everywhere."""
    whole = zipped(members_of_toy(), zipfile.ZIP_DEFLATED)
    says = NOT_WHOLE + "|lacks|not a known kind|is empty|no .npz|bomb|not an array|mean the same"
    for share in (0, 0.01, 0.5, 0.99):
        data = whole[: int(len(whole) * share)]
        yield data_set(f"cut at {share:.0%}", "damaged .npz", data, says, "bad.npz")
    places = (30, len(whole) // 3, whole.index(b"PK\x01\x02") + 47, len(whole) - 5)
    for place in places:
        data = bytearray(whole)
        data[place] ^= 0x15
        yield data_set(f"byte {place} flipped", "damaged .npz", bytes(data), says, "bad.npz")


def changed(name, index, value):
    array = dict(zip(("x", "y"), as_triple(TOY)[0], strict=True))[name[-1]].copy()
    array[index] = value
    return npz_of_toy(**{name: array})


X, Y = as_triple(TOY)[0]
VALUES = {
    "a NaN pixel": (changed("train_x", (3, 7), np.nan), r"nan at index \(3, 7\)"),
    "an infinite pixel": (changed("train_x", (0, 0), -np.inf), "-inf at index"),
    "pixels beyond bytes": (npz_of_toy(train_x=np.full(X.shape, 256)), "are bytes, 0 to 255"),
    "pixels below zero": (npz_of_toy(train_x=np.full(X.shape, -1)), "are bytes, 0 to 255"),
    "pixels of 1e300": (
        npz_of_toy(train_x=np.full(X.shape, 1e300)),
        "on one scale",
    ),
    "a label beyond the classes": (changed("train_y", 5, 99), "out of range"),
    "a label below zero": (changed("train_y", 5, -1), "out of range"),
    "a label beyond 32 bits": (changed("train_y", 5, 2**40), "out of range"),
    "a billion classes": (changed("train_y", 5, 10**9), "out of range"),
    "a label with a fraction": (npz_of_toy(train_y=Y + 0.5), "whole numbers"),
    "a label that is NaN": (npz_of_toy(train_y=Y * np.nan), "hold nan"),
    "labels of text": (npz_of_toy(train_y=Y.astype(str)), "not an array of numbers"),
    "one class": (npz_of_toy(train_y=Y * 0), "needs two classes"),
    "no training images": (npz_of_toy(train_x=X[:0], train_y=Y[:0]), r"shape \(0, 20\)"),
    "no test images": (npz_of_toy(test_x=X[:0], test_y=Y[:0]), r"shape \(0, 20\)"),
    "images without pixels": (npz_of_toy(train_x=X[:, :0]), r"shape \(30, 0\)"),
    "more images than labels": (npz_of_toy(train_y=Y[1:]), "30 images but labels"),
    "2 ** 31 labels of no numbers": (
        zipped(members_of_toy(test_y=npy(described(shape=f"({2**31 - 1}, 0)")))),
        "9 images but labels",
    ),
    "no labels of 2 ** 63 numbers": (
        zipped(members_of_toy(test_y=npy(described(shape=f"(0, {2**63})")))),
        "9 images but labels",
    ),
    "labels without axes": (npz_of_toy(train_y=np.array(3)), "30 images but labels"),
    "images of two shapes": (npz_of_toy(train_x=X[:, 1:]), "different shapes"),
    "images of six axes": (npz_of_toy(train_x=X.reshape(30, 1, 2, 2, 5, 1)), "shape"),
}


def idx(name, kind, edit, says):
    """Return the Case of a folder of IDX files after edit(folder)."""

    def make(folder):
        save_idx_folder(folder / "digits", TOY)
        edit(folder / "digits")
        return ["unpickle", "--output", "out", "digits"]

    return Case(name, kind, make, says)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def over(name, place, value):
    """Return a function that writes ``value`` into a file of a folder at ``place``."""

    def edit(folder):
        with (folder / name).open("r+b") as file:
            file.seek(place)
            file.write(value)

    return edit


def instead(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def header(*shape, kind=8):
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape)


def gzipped_images(data, n_zeros=0):
    def edit(folder):
        (folder / IMAGES).unlink()
        (folder / f"{IMAGES}.gz").write_bytes(gzip.compress(data + bytes(n_zeros), 1))

    return edit


IDX = {
    "more images than there are": (over(IMAGES, 4, struct.pack(">I", 31)), "expected"),
    "fewer images than there are": (over(IMAGES, 4, struct.pack(">I", 29)), "expected"),
    "higher images than there are": (over(IMAGES, 8, struct.pack(">I", 5)), "is truncated"),
    "lower images than there are": (over(IMAGES, 8, struct.pack(">I", 3)), "goes on after"),
    "2 ** 32 images": (over(IMAGES, 4, b"\xff" * 4), "bomb"),
    "2 ** 96 pixels": (over(IMAGES, 4, b"\xff" * 12), "bomb"),
    "no images": (instead(IMAGES, header(0, 4, 5)), "shape"),
    "images of no height": (instead(IMAGES, header(30, 0, 5)), "shape"),
    "255 axes": (over(IMAGES, 3, b"\xff"), "255 axes"),
    "no axes": (over(IMAGES, 3, b"\0"), "not an IDX|not a known"),
    "an unknown type": (over(IMAGES, 2, b"\x0a"), "not an IDX|not a known"),
    "pixels as doubles": (over(IMAGES, 2, b"\x0e"), "is truncated"),
    "a header that is cut": (instead(IMAGES, header(30, 4, 5)[:9]), "truncated"),
    "a header alone": (instead(IMAGES, header(30, 4, 5)), "is truncated"),
    "labels for images": (
        lambda f: (f / IMAGES).write_bytes((f / LABELS).read_bytes()),
        "expected",
    ),
    "images for labels": (
        lambda f: (f / LABELS).write_bytes((f / IMAGES).read_bytes()),
        "labels of shape",
    ),
    "a label beyond the classes": (over(LABELS, 8 + 5, b"\xff"), "out of range"),
    "labels that are NaN": (
        instead(LABELS, header(30, kind=0x0D) + b"\x7f\xc0\0\0" * 30),
        "hold nan",
    ),
    "pixels that are NaN": (
        instead(IMAGES, header(30, 4, 5, kind=0x0E) + b"\x7f\xf8\0\0\0\0\0\0" * 600),
        "hold nan",
    ),
    "a bomb": (gzipped_images(header(2**20, 20, 20), 2**28), "bomb"),
    "a bomb behind the images": (
        gzipped_images(header(30, 4, 5), 600 + 2**28),
        "goes on after",
    ),
    "a gzip that is cut": (
        lambda f: (gzipped_images(header(30, 4, 5))(f), os.truncate(f / f"{IMAGES}.gz", 20)),
        "is truncated",
    ),
    "a pickle for images": (instead(IMAGES, pickle.dumps(print)), "not an IDX"),
    "a pipe for images": (
        lambda f: ((f / IMAGES).unlink(), os.mkfifo(f / IMAGES)),
        "holds no file",
    ),
    "a device for images": (
        lambda f: ((f / IMAGES).unlink(), (f / IMAGES).symlink_to("/dev/zero")),
        "holds no file",
    ),
    "a link to itself for images": (
        lambda f: ((f / IMAGES).unlink(), (f / IMAGES).symlink_to(IMAGES)),
        "holds no file",
    ),
    "a name of two lines beside": (
        lambda f: ((f / IMAGES).unlink(), instead("a\nall is well \x1b[2J", b"")(f)),
        "holds no file",
    ),
    "nothing at all": (lambda f: [path.unlink() for path in f.iterdir()], "it holds: nothing"),
}


def path(name, words, says, prepare=None, names=None):
    """Return the Case of a path at which no data set is."""

    def make(folder):
        if prepare:
            prepare(folder)
        return ["unpickle", "--output", "out", words]

    return Case(name, "path", make, says, names)


PATHS = [
    path("a pipe", "pipe", "neither a file", lambda f: os.mkfifo(f / "pipe")),
    path("a device without end", "/dev/zero", "neither a file"),
    path("a link to itself", "loop", "leads nowhere", lambda f: (f / "loop").symlink_to("loop")),
    path("a link to nothing", "gone", "leads nowhere", lambda f: (f / "gone").symlink_to("x")),
    path("a name of 5,000 letters", "a" * 5000, "File name too long", names="aaa"),
    path("a name of two lines", "a\nall is well \x1b[2J", "does not exist", names="all is well"),
    path("a folder of other things", ".", "neither|holds no file", names="."),
    path("a file as a folder", "file/digits", "no folder", lambda f: (f / "file").touch()),
    path("a user who is not", "~nobody-of-that-name/digits", "does not exist"),
    path("an empty file", "empty.npz", "is empty", lambda f: (f / "empty.npz").touch()),
    path("a web address", "https://example.org/digits.npz", "no folder", names="digits.npz"),
]

CASES = [
    *lying(),
    *(data_set(name, "bad zip", *case, "bad.npz") for name, case in ZIPS.items()),
    *whole_and_damaged(),
    *(data_set(name, "bad numbers", *case, "bad.npz") for name, case in VALUES.items()),
    *(idx(name, "bad IDX folder", *case) for name, case in IDX.items()),
    *PATHS,
]
