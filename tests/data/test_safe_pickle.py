"""The unpickler: builds arrays from every kind of pickle, and refuses everything else."""

import io
import pickle
import pickletools
import time

import numpy as np
import pytest

from msgd.data import safe_pickle
from msgd.data.safe_pickle import LimitedReader, load_arrays
from msgd.errors import UserError


def load(data):
    return load_arrays(lambda: LimitedReader(io.BytesIO(data), 2**20, "some.pkl"), "some.pkl")


ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "int64": np.array([3, 1, 2]),
    "uint8 images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "big-endian": np.arange(4, dtype=">f8"),
    "Fortran order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "not contiguous": np.arange(12.0).reshape(3, 4)[:, ::2],
    "bool": np.array([True, False]),
    "transposed": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(1, 0, 2),
    "transposed to the end": np.arange(24).reshape(4, 2, 3).transpose(1, 2, 0),
    "transposed, big-endian": np.arange(24, dtype=">i2").reshape(4, 2, 3).transpose(0, 2, 1),
    "Fortran order, three axes": np.asfortranarray(np.arange(24).reshape(2, 3, 4)),
    "one of all axes reversed": np.arange(24).reshape(2, 3, 4).T,
    "backwards": np.arange(6.0)[::-1],
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_every_protocol_come_back(name, protocol):
    array = ARRAYS[name]
    ((first, second),) = load(pickle.dumps(((array, array),), protocol))
    for found in (first, second):
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def python2_pickle(array):
    """Return the pickle that Python 2's cPickle wrote of ((array,),), protocol 2: byte strings."""
    data = array.tobytes()
    shape = b"".join(b"K" + bytes([n]) for n in array.shape)
    return (
        b"\x80\x02((cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01(" + shape + b"tcnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + len(data).to_bytes(4, "little") + data + b"tbtt."
    )


def test_a_pickle_of_python_2_comes_back():
    array = np.array([[1.5, -2.0], [250.25, 1e-20]], np.float32)
    data = python2_pickle(array)
    assert "BINSTRING" in {opcode.name for opcode, _, _ in pickletools.genops(data)}
    ((found,),) = load(data)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


class Attack:
    """Pickles as a call of ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_foreign_call_is_refused_and_not_made(protocol, tmp_path):
    import os

    trace = tmp_path / "trace"
    data = pickle.dumps(((Attack(os.mkdir, str(trace)), 0),), protocol)
    with pytest.raises(UserError, match=r"some\.pkl was refused.*foreign object.*mkdir"):
        load(data)
    assert not trace.exists()


@pytest.mark.parametrize(
    "function", [eval, exec, getattr, np.load, np.fromfile, np.frombuffer, np.zeros]
)
def test_builtins_and_numpy_functions_are_foreign_too(function):
    with pytest.raises(UserError, match="foreign object"):
        load(pickle.dumps(((Attack(function, "x"), 0),)))


def test_other_objects_are_refused():
    for value in (np.array([object()]), np.array(["text"]), np.zeros(2, "f4,i4"), {1, 2}.union):
        with pytest.raises(UserError, match=r"refused|not a pickle of arrays"):
            load(pickle.dumps(((value, value),)))


def test_an_array_longer_than_its_data_is_refused():
    data = pickle.dumps(((np.arange(6, dtype=np.float32), 0),), 2)
    forged = data.replace(b"K\x06\x85", b"K\x60\x85")
    assert forged != data
    with pytest.raises(UserError, match=r"shape \(96,\) with 24 bytes"):
        load(forged)


@pytest.mark.parametrize("protocol", range(6))
def test_truncation_is_reported(protocol):
    data = pickle.dumps(((np.arange(1000.0), np.arange(3)),), protocol)
    for length in (0, 1, 10, len(data) // 2, len(data) - 1):
        with pytest.raises(UserError, match=r"some\.pkl (is|was)"):
            load(data[:length])


def test_noise_is_not_a_pickle():
    random = np.random.RandomState(7)
    for _ in range(200):
        with pytest.raises(UserError, match=r"some\.pkl"):
            load(random.bytes(60) + b"?")


DOUBLED = b")" + b"2\x86" * 60  # each DUP and TUPLE2 doubles its size
REFERRED = b")q\x00" + b"".join(
    b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60)
)  # the same through the memo
FROMBUFFER = b"cnumpy._core.numeric\n_frombuffer\n"
BYTE = b"cnumpy\ndtype\nU\x02i1\x85R"


def huge(n_bytes):
    return b"\x8b" + n_bytes.to_bytes(4, "little") + b"\x7f" * n_bytes


@pytest.mark.parametrize(
    "data",
    [
        DOUBLED,
        REFERRED,
        b"}" + DOUBLED + b"Ns",  # as a dict's key, which is hashed
        b"}" + REFERRED + b"Ns",
        b"cnumpy\ndtype\n" + REFERRED + b"\x85R",  # as text for messages
        FROMBUFFER + b"(U\x01x" + BYTE + b"K\x01\x85" + REFERRED + b"tR",
        FROMBUFFER + b"(U\x01x" + BYTE + b"K\x01\x85U\x01K" + REFERRED + b"tR",
        FROMBUFFER + b"(U\x01x" + BYTE + b"(" + huge(10**6) * 2 + b"tU\x01CtR",
        FROMBUFFER + b"(U\x01x" + BYTE + b"(J\xff\xff\xff\x7fU\x10" + b"x" * 16 + b"tU\x01CtR",
    ],
)
def test_few_bytes_that_would_never_end_are_refused_at_once(data):
    started = time.monotonic()
    with pytest.raises(UserError) as refusal:
        load(b"\x80\x02" + data + b".")
    assert len(str(refusal.value)) < 300
    assert time.monotonic() - started < 5


def test_a_split_may_be_used_twice():
    pair = (np.zeros((3, 4), np.float32), np.arange(3))
    loaded = load(pickle.dumps((pair, pair, pair)))
    assert len(loaded) == 3
    np.testing.assert_array_equal(loaded[2][1], [0, 1, 2])


def test_few_bytes_cannot_fill_the_memory():
    text = b"x" * 2**19
    pickled = b"X" + len(text).to_bytes(4, "little") + text
    encoded = b"c_codecs\nencode\nh\x00U\x06latin1\x86R"
    bombs = {
        "a memory cell far out": b"\x80\x02Nr" + (300_000_000).to_bytes(4, "little") + b".",
        "a million empty lists": b"\x80\x02(" + b"]" * 10**6 + b"t.",
        "one text encoded again and again": b"\x80\x02(" + pickled + b"q\x00" + encoded * 3 + b"t.",
    }
    for data in bombs.values():
        with pytest.raises(UserError, match=r"more (instructions|bytes) than"):
            load(data)


def frombuffer_of(unpickler):
    return unpickler.find_class("numpy._core.numeric", "_frombuffer")


def unpickler_of(data=b""):
    reader = LimitedReader(io.BytesIO(data), 100, "some.pkl")
    return safe_pickle._ArrayUnpickler(reader, 100)


def test_axes_in_another_order_are_only_numbers():
    unpickler = unpickler_of()
    build, dtype = frombuffer_of(unpickler), unpickler.find_class("numpy", "dtype")("i1")
    array = build(bytes(range(6)), dtype, (2, 3), "K", (1, 0)).value
    np.testing.assert_array_equal(array, np.arange(6).reshape(2, 3).T)
    assert not array.flags.writeable


@pytest.mark.parametrize(
    "axis_order",
    [(0,), (0, 0), (1, 2), (-1, 0), (0, 1, 2), (), None, "10", (1.0, 0.0), (True, False), 5],
)
def test_axes_in_no_order_are_refused(axis_order):
    unpickler = unpickler_of()
    build, dtype = frombuffer_of(unpickler), unpickler.find_class("numpy", "dtype")("i1")
    with pytest.raises(pickle.UnpicklingError, match="axes in no order"):
        build(bytes(6), dtype, (2, 3), "K", axis_order)


@pytest.mark.parametrize(("order", "axis_order"), [("A", None), ("C", (1, 0)), (b"C", None)])
def test_other_orders_are_refused(order, axis_order):
    unpickler = unpickler_of()
    build, dtype = frombuffer_of(unpickler), unpickler.find_class("numpy", "dtype")("i1")
    with pytest.raises(pickle.UnpicklingError, match="in order"):
        build(bytes(6), dtype, (2, 3), order, axis_order)


def test_an_array_of_permuted_axes_longer_than_its_data_is_refused():
    data = pickle.dumps(((np.zeros((2, 3, 5), "u1").transpose(1, 0, 2), 0),), 5)
    forged = data.replace(b"K\x02K\x03K\x05\x87", b"K\x02K\x7fK\x05\x87")
    assert forged != data
    with pytest.raises(UserError, match="with 30 bytes of data"):
        load(forged)


def test_the_error_for_lists_says_how_they_become_arrays():
    many = [np.zeros(3, np.float32) for _ in range(2000)]
    numbers = list(range(20_000))
    objects = np.array([np.zeros(2), None], dtype=object)
    for value in (many, numbers, objects, [np.float32(1)]):
        with pytest.raises(UserError, match=r"some\.pkl was refused.*numpy\.stack"):
            load(pickle.dumps(((value, value),)))


def test_dicts_of_arrays_come_back():
    found = load(pickle.dumps({"x_train": np.arange(3), "classes": 3}, 2))
    assert found["classes"] == 3
    np.testing.assert_array_equal(found["x_train"], np.arange(3))


def test_the_reader_refuses_before_it_reads():
    class Untouchable:
        def read(self, count):
            raise AssertionError("the stream was read")

    with pytest.raises(UserError, match="more than 10 bytes"):
        LimitedReader(Untouchable(), 10, "some.gz").read(11)


def test_the_reader_stops_at_its_limit():
    reader = LimitedReader(io.BytesIO(bytes(100)), 10, "some.gz")
    assert reader.read(8) == bytes(8)
    with pytest.raises(UserError, match=r"some\.gz unpacks to more than 10 bytes"):
        reader.read(3)
