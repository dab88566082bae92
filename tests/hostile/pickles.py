"""Bad pickles: programs that call something, that never end, that fill the memory."""

import gzip
import pickle
import struct

import numpy as np
from cases import CANARY, TOY, data_set
from conftest import as_triple

TRIPLE = as_triple(TOY)
FOREIGN = r"was refused, it holds a foreign object"
REFUSED = r"was refused, it holds|is not a pickle of arrays|is truncated"


def text(value):
    """Return the instruction that puts ``value`` (str) on the stack."""
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def global_(module, name):
    return f"c{module}\n{name}\n".encode()


def call(module, name, *arguments):
    """Return a pickle that is the result of a call, of texts and of instructions (bytes)."""
    words = b"".join(a if isinstance(a, bytes) else text(a) for a in arguments)
    return b"\x80\x02" + global_(module, name) + b"(" + words + b"tR."


def touch(folder):
    return f"touch {folder / CANARY}"


def in_python(folder):
    return f"open({str(folder / CANARY)!r}, 'w')"


# {what is called: its pickle, of the folder}
CALLS = {
    "os.system": lambda f: call("os", "system", touch(f)),
    "posix.system": lambda f: call("posix", "system", touch(f)),
    "os.mkdir": lambda f: call("os", "mkdir", str(f / CANARY)),
    "os.execv": lambda f: call("os", "execv", "/bin/sh", b"(X\x02\x00\x00\x00shl"),
    "subprocess.Popen": lambda f: call("subprocess", "Popen", b"(" + text("touch") + b"l"),
    "subprocess.check_output": lambda f: call("subprocess", "check_output", touch(f)),
    "pty.spawn": lambda f: call("pty", "spawn", "/bin/sh"),
    "builtins.eval": lambda f: call("builtins", "eval", in_python(f)),
    "__builtin__.eval": lambda f: call("__builtin__", "eval", in_python(f)),
    "builtins.exec": lambda f: call("builtins", "exec", in_python(f)),
    "builtins.compile": lambda f: call("builtins", "compile", in_python(f), "a", "exec"),
    "builtins.open": lambda f: call("builtins", "open", str(f / CANARY), "w"),
    "builtins.__import__": lambda f: call("builtins", "__import__", "antigravity"),
    "builtins.getattr": lambda f: call("builtins", "getattr", global_("os", "path"), "os"),
    "builtins.breakpoint": lambda f: call("builtins", "breakpoint"),
    "builtins.input": lambda f: call("builtins", "input"),
    "builtins.bytearray of 4 GB": lambda f: call("builtins", "bytearray", b"\x8a\x05\0\0\0\0\1"),
    "importlib.import_module": lambda f: call("importlib", "import_module", "antigravity"),
    "runpy.run_path": lambda f: call("runpy", "run_path", "/etc/hostname"),
    "code.interact": lambda f: call("code", "interact"),
    "timeit.timeit": lambda f: call("timeit", "timeit", in_python(f)),
    "webbrowser.open": lambda f: call("webbrowser", "open", "about:blank"),
    "socket.create_connection": lambda f: call("socket", "create_connection"),
    "shutil.rmtree": lambda f: call("shutil", "rmtree", str(f / "nothing")),
    "pickle.loads": lambda f: call("pickle", "loads", "nothing"),
    "marshal.loads": lambda f: call("marshal", "loads", "nothing"),
    "types.FunctionType": lambda f: call("types", "FunctionType"),
    "functools.partial": lambda f: call("functools", "partial", global_("os", "system")),
    "operator.attrgetter": lambda f: call("operator", "attrgetter", "__class__"),
    "copyreg._reconstructor": lambda f: call("copyreg", "_reconstructor"),
    "numpy.load": lambda f: call("numpy", "load", "/etc/passwd"),
    "numpy.fromfile": lambda f: call("numpy", "fromfile", "/etc/passwd", "u1"),
    "numpy.memmap": lambda f: call("numpy", "memmap", str(f / CANARY), "u1", "w+"),
    "numpy.save": lambda f: call("numpy", "save", str(f / CANARY), "x"),
    "numpy.zeros of 8 TB": lambda f: call("numpy", "zeros", b"\x8a\x06\0\0\0\0\0\1"),
    "numpy's ndarray.tofile": lambda f: call("numpy", "ndarray.tofile", str(f / CANARY)),
    "numpy.testing runstring": lambda f: call(
        "numpy.testing._private.utils", "runstring", in_python(f), b"}"
    ),
    "numpy's scalar": lambda f: call("numpy._core.multiarray", "scalar", "f4", "data"),
    "pandas.read_pickle": lambda f: call("pandas", "read_pickle", "/etc/passwd"),
    "msgd's own functions": lambda f: call("msgd.files", "write_text", str(f / CANARY), "x"),
    "the class of a stand-in": lambda f: call("numpy", "ndarray.__class__", "x"),
    "what a stand-in's method has": lambda f: call(
        "numpy._core.multiarray", "_reconstruct.__globals__"
    ),
}


class Call:
    """Pickles as a call of os.system."""

    def __init__(self, folder):
        self.words = touch(folder)

    def __reduce__(self):
        import os

        return os.system, (self.words,)


def every_protocol():
    for protocol in range(6):
        yield data_set(
            f"os.system by protocol {protocol}",
            "pickle that calls",
            lambda f, p=protocol: pickle.dumps(((Call(f), 0),) * 3, p),
            FOREIGN,
        )


def older(opcodes):
    return lambda f: opcodes.replace(b"COMMAND", touch(f).encode())


DOUBLED = b"2\x86" * 60
REFERRED = b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60))
ARRAY = global_("numpy", "ndarray")
RECONSTRUCT = global_("numpy.core.multiarray", "_reconstruct")
DTYPE = global_("numpy", "dtype")
FROMBUFFER = global_("numpy._core.numeric", "_frombuffer")
BYTE = DTYPE + b"U\x02i1\x85R"
FLOAT = DTYPE + b"U\x02f4\x85R"
EMPTY = RECONSTRUCT + b"(" + ARRAY + b"K\x00\x85U\x01btR"


def array_of(shape, data=b"abcd", dtype=BYTE, order=b"\x89"):
    """Return a pickle of one array; shape: instructions."""
    return EMPTY + b"(K\x01" + shape + dtype + order + b"U" + bytes([len(data)]) + data + b"tb"


def three_pairs(array):
    return b"\x80\x02" + b"((" + (array + array + b"\x86") * 3 + b"tt."


# {what is odd about it: the instructions of a whole pickle}; none may be read.
ODD = {
    "INST of protocol 0": older(b"(S'COMMAND'\nios\nsystem\n."),
    "OBJ of protocol 1": older(b"(cos\nsystem\nS'COMMAND'\no."),
    "NEWOBJ": older(b"\x80\x02cos\nsystem\n(S'COMMAND'\nt\x81."),
    "NEWOBJ_EX": older(b"\x80\x04cos\nsystem\n(S'COMMAND'\nt}\x92."),
    "STACK_GLOBAL": older(b"\x80\x04\x8c\x02os\x8c\x06system\x93(S'COMMAND'\ntR."),
    "a name built of pieces": b"\x80\x04\x8c\x02os\x8c\x0bpath.system\x93.",
    "an extension's number": b"\x80\x02\x82\x01.",
    "a persistent id": b"\x80\x02U\x02idQ.",
    "a persistent id in text": b"Pid\n.",
    "a buffer out of band": b"\x80\x05\x97.",
    "a read-only buffer out of band": b"\x80\x05\x97\x98.",
    "a state for a stand-in's function": b"\x80\x02" + RECONSTRUCT + b"}U\x01aK\x01sb.",
    "a state for a stand-in's class": b"\x80\x02" + ARRAY + b"}U\x01aK\x01sb.",
    "attributes of a stand-in": b"\x80\x02" + EMPTY + b"N}U\x05valueK\x01s\x86b.",
    "a state of six parts": b"\x80\x02" + EMPTY + b"(K\x01K\x01K\x01K\x01K\x01K\x01tb.",
    "an array that is its own class": b"\x80\x02" + ARRAY + b".",
    "arrays without data": three_pairs(EMPTY),
    "a dtype of objects": three_pairs(array_of(b"K\x04\x85", dtype=DTYPE + b"U\x02O8\x85R")),
    "a dtype of text": three_pairs(array_of(b"K\x01\x85", dtype=DTYPE + b"U\x02S4\x85R")),
    "a dtype of 10 ** 9 bytes": three_pairs(
        array_of(b"K\x01\x85", dtype=DTYPE + b"U\x0bV1000000000\x85R")
    ),
    "a dtype with fields": three_pairs(
        array_of(b"K\x01\x85", dtype=FLOAT + b"(K\x03U\x01<NU\x01a}NNNtb")
    ),
    "a dtype of another byte order": three_pairs(
        array_of(b"K\x01\x85", dtype=FLOAT + b"(K\x03U\x01!NNNNNNtb")
    ),
    "a shape below zero": three_pairs(array_of(b"J\xff\xff\xff\xff\x85")),
    "a shape beyond 64 bits": three_pairs(array_of(b"\x8a\x09" + bytes(8) + b"\x01\x85")),
    "a shape of 2 ** 62": three_pairs(array_of(b"\x8a\x08" + bytes(7) + b"\x40\x85")),
    "a shape that overflows to 4": three_pairs(
        array_of(b"\x8a\x08\x01" + bytes(6) + b"\x40K\x04\x86")
    ),
    "a shape of 33 axes": three_pairs(array_of(b"(" + b"K\x01" * 33 + b"t", b"a")),
    "a shape of text": three_pairs(array_of(b"U\x014\x85")),
    "a shape that is a number": three_pairs(array_of(b"K\x04")),
    "a shape of a truth": three_pairs(array_of(b"\x88\x85", b"a")),
    "data that is a number": b"\x80\x02" + EMPTY + b"(K\x01K\x04\x85" + BYTE + b"\x89K\x04tb.",
    "doubling without end": b"\x80\x02)" + DOUBLED + b".",
    "doubling through the memo": b"\x80\x02" + REFERRED + b".",
    "a doubled key of a dict": b"\x80\x02}" + REFERRED + b"Ns.",
    "a memory cell far out": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "a memory cell below zero": b"Np-5\n.",
    "a cell that was never filled": b"\x80\x02h\x07.",
    "a million lists": b"\x80\x02(" + b"]" * 10**6 + b"t.",
    "100,000 tuples, each in another": b"\x80\x02)" + b"\x85" * 100_000 + b".",
    "9,000 tuples, each in another": b"\x80\x02)" + b"\x85" * 9000 + b".",
    "a dict's key 9,000 deep": b"\x80\x02})" + b"\x85" * 9000 + b"Ns.",
    "a list within itself": b"\x80\x02]q\x00h\x00a.",
    "a number of a million digits": b"I" + b"9" * 10**6 + b"\n.",
    "a number of a megabyte": b"\x80\x02\x8b\x00\x00\x10\x00" + b"\x7f" * 2**20 + b".",
    "a text of 4 GB": b"\x80\x02X\xff\xff\xff\xffabc.",
    "bytes of 2 ** 63": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc.",
    "a frame of 2 ** 63": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f(t.",
    "an instruction that leaves its frame": b"\x80\x04\x95\3\0\0\0\0\0\0\0B\2\0\0\0\0\0002.",
    # The unpickler would skip the frame's last byte, and read 60 times DUP and TUPLE2.
    "instructions behind a frame's end": b"\x80\x04)\x95\2\0\0\0\0\0\0\0X\x7f"
    + b"\0\0\0\0"
    + b"2\x86" * 60
    + bytes(7)
    + b".",
    "a frame in a frame": b"\x80\x04\x95\x0a" + bytes(7) + b"\x95\1" + bytes(7) + b"N.",
    "a bytearray of 2 ** 40": b"\x80\x05\x96" + bytes(5) + b"\x01\0\0abc.",
    "a protocol of 255": b"\x80\xff(t.",
    "nothing on the stack": b"\x80\x02tR.",
    "a stop at once": b"\x80\x02.",
    "no stop": b"\x80\x02(((((",
    "an unknown instruction": b"\x80\x02(\xfft.",
    "another pickle behind it": pickle.dumps(TRIPLE, 2) * 2,
    "a state of an array with itself": b"\x80\x02" + EMPTY + b"q\x01(K\x01h\x01h\x01h\x01h\x01tb.",
    "one text encoded a thousand times": b"\x80\x02("
    + text("x" * 2**20)
    + b"q\x00"
    + (global_("_codecs", "encode") + b"h\x00U\x06latin1\x86R") * 1000
    + b"t.",
    "an encoding that unpacks": call("_codecs", "encode", "x", "zip"),
}

LONG = "A" * 10**6
# What would be shown in the error if nothing were left out of it.
LOUD = {
    "a name of a megabyte": b"\x80\x02" + global_("os", LONG) + b".",
    "a module of a megabyte": b"\x80\x02" + global_(LONG, "system") + b".",
    "a name of two lines": b"\x80\x04" + text("os\nall is well") + text("\x1b[2Jsystem") + b"\x93.",
    "a key of a megabyte": b"\x80\x02}" + text(LONG) + b"Ns.",
    "a key of two lines": b"\x80\x02}" + text("train_z\nall is well \x1b[2J") + b"Ns.",
    "a key of 8,000 megabytes": b"\x80\x02}" + text(LONG) + b"q\x000(" + b"h\x00" * 8000 + b"tNs.",
    "a key with half a letter": b"\x80\x02}" + text("\udc80") + b"Ns.",
    "a dtype of a megabyte": b"\x80\x02" + DTYPE + text(LONG) + b"\x85R.",
}


def damaged():
    """Yield cases of whole pickles that were cut or changed."""
    whole = pickle.dumps(TRIPLE, 2)
    for share in (0.001, 0.3, 0.999):
        cut = whole[: int(len(whole) * share)]
        yield data_set(f"cut at {share:.1%}", "damaged pickle", cut, REFUSED)
        packed = gzip.compress(whole)
        yield data_set(
            f"packed and cut at {share:.1%}",
            "damaged gzip",
            packed[: int(len(packed) * share)] or b"\x1f",
            "is truncated|not a known kind|not a whole gzip|not a pickle",
            "bad.pkl.gz",
        )
        place = int(len(packed) * share)
        flipped = bytearray(packed)
        flipped[place] ^= 0x55
        yield data_set(
            f"packed, a byte flipped at {share:.1%}",
            "damaged gzip",
            bytes(flipped),
            "not a whole gzip|not a pickle of arrays|CRC|not a known kind|refused|is truncated",
            "bad.pkl.gz",
        )
    wrong_sum = bytearray(gzip.compress(whole))
    wrong_sum[-6] ^= 1
    yield data_set("a wrong checksum", "damaged gzip", bytes(wrong_sum), "CRC", "bad.pkl.gz")


# {name: (bytes at its beginning, the number of zeros that follow, what is said)}
BOMBS = {
    "300 MB of zeros": (b"", 300 * 2**20, "not a known kind|not a pickle"),
    "a text of 600 MB": (b"\x80\x02X\0\0\x80\x25", 600 * 2**20, "bomb"),
    "a million instructions": (b"\x80\x02" + b"N0" * 10**6, 0, "more instructions"),
}


def bombs():
    """Yield cases of small gzips of large files."""
    for name, (start, n_zeros, says) in BOMBS.items():

        def make(folder, start=start, n_zeros=n_zeros):
            return gzip.compress(start + bytes(n_zeros), 1)

        yield data_set(name, "gzip bomb", make, says, "bomb.pkl.gz")
    twice = gzip.compress(gzip.compress(bytes(2**24)))
    yield data_set("a bomb packed twice", "gzip bomb", twice, "packed twice", "bomb.pkl.gz")

    def members(folder):
        return gzip.compress(b"\x80\x02X\xff\xff\xff\x7f") + gzip.compress(bytes(2**26), 9) * 9

    yield data_set("ten members", "gzip bomb", members, "bomb", "bomb.pkl.gz")


def values():
    """Yield cases of arrays whose numbers cannot be used."""
    one = np.zeros((2, 20), np.float32)
    for name, content, says in (
        ("one array", one, "does not hold three pairs"),
        ("two pairs", TRIPLE[:2], "does not hold three pairs"),
        ("a number", 5, "does not hold three pairs"),
        ("nothing", None, "does not hold three pairs"),
        ("lists of numbers", (([[0.0, 1.0]], [0]),) * 3, "are a list of 1, not one array"),
        ("an empty dict", {}, "lacks train_x"),
    ):
        yield data_set(name, "not a data set", pickle.dumps(content, 4), says)


CASES = [
    *(data_set(name, "pickle that calls", make, FOREIGN) for name, make in CALLS.items()),
    *every_protocol(),
    *(
        data_set(
            name,
            "odd pickle",
            content,
            REFUSED + "|three pairs|bomb|more instructions|array|lacks train_x|goes on after",
        )
        for name, content in ODD.items()
    ),
    *(
        data_set(name, "loud pickle", content, REFUSED + "|lacks train_x")
        for name, content in LOUD.items()
    ),
    *damaged(),
    *bombs(),
    *values(),
]
