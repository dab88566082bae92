"""An unpickler that can build NumPy arrays and nothing else.

A pickle is a program. The one here may call a handful of names, and none of them is NumPy's own:
each is replaced by a stand-in that keeps a description (dtype, shape, raw bytes), turned into an
array after its sizes have been checked. So neither foreign code nor NumPy's internals are in the
pickle's reach. Before it is run at all, its instructions are counted, and what it may allocate is
limited, so that a small file cannot fill the memory. Pickles of Python 2 and 3, protocols 0 to 5,
are read.
"""

import math
import pickle
import pickletools
import re

import numpy as np

from msgd.errors import UserError, shown

STACK_HINT = "; numpy.stack(...) makes one array of a list of arrays, numpy.array(...) of numbers"


MAX_AXES = 32


def _is_length(value):
    return type(value) is int and 0 <= value < 2**63


def _shown(value):
    """Return ``value`` for a message in a few letters, whatever a pickle made of it."""
    is_short = type(value) in (str, bytes) and len(value) <= 40
    return repr(value) if is_short else f"of Python type {type(value).__name__}"


class _DType:
    """A numeric dtype as a pickle describes it: a kind with its size, then the byte order."""

    def __init__(self, spec, align=False, copy=False):
        spec = spec.decode("ascii") if isinstance(spec, bytes) else spec
        if not isinstance(spec, str) or spec not in _NUMERIC:
            is_object = isinstance(spec, str) and spec.startswith("O")
            raise pickle.UnpicklingError(
                f"an array of dtype {_shown(spec)}, not of numbers"
                + (STACK_HINT if is_object else "")
            )
        self.dtype = np.dtype(spec)

    def __setstate__(self, state):
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"a dtype of byte order {_shown(order)}")
        if any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("an array of structured dtype")
        self.dtype = self.dtype.newbyteorder(order)


_NUMERIC = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"f2", "f4", "f8", "b1"}


class _Array:
    """An array as a pickle describes it; ``value`` is the NumPy array, read-only."""

    value = None

    def __setstate__(self, state):
        _version, shape, dtype, is_fortran, data = state
        self.value = _array(data, dtype, shape, "F" if is_fortran else "C")


def _array(data, dtype, shape, order):
    if isinstance(data, str):  # Python 2 wrote its byte strings as text
        data = data.encode("latin-1")
    if not isinstance(dtype, _DType) or not isinstance(data, (bytes, bytearray)):
        raise pickle.UnpicklingError("an array that is not raw numbers")
    # Before anything is computed of it: a shape may hold a text, and a number that multiplies it.
    if type(shape) is not tuple or len(shape) > MAX_AXES or not all(map(_is_length, shape)):
        raise pickle.UnpicklingError("an array whose shape is no short tuple of whole numbers")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"an array of shape {shape} with {len(data)} bytes of data")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays; what they are made from may take ``limit`` bytes in all."""

    def __init__(self, stream, limit):
        super().__init__(stream, encoding="latin-1")
        self.remaining = limit
        self.allowed = {
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _DType,
            ("numpy.core.multiarray", "_reconstruct"): self._reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): self._reconstruct,
            ("numpy.core.numeric", "_frombuffer"): self._frombuffer,
            ("numpy._core.numeric", "_frombuffer"): self._frombuffer,
            ("_codecs", "encode"): self._encode,
            ("__builtin__", "bytes"): self._empty_bytes,
        }

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            hint = STACK_HINT if name == "scalar" and module.startswith("numpy.") else ""
            raise pickle.UnpicklingError(
                f"a foreign object, {shown(f'{module}.{name}')}; only NumPy arrays are read, "
                f"nothing was run{hint}"
            )
        return self.allowed[module, name]

    def _reconstruct(self, subtype, shape, typecode):
        """Stand for numpy's _reconstruct: an empty array whose state follows."""
        return _Array()

    def _frombuffer(self, buffer, dtype, shape, order, axis_order=None):
        """Stand for numpy's _frombuffer, which protocol 5 calls.

        ``order`` "K" is that of an array whose axes were permuted: it lies in memory as ``shape``
        in C order says, and ``axis_order`` are the axes of that in the order of the array's own.
        """
        array = _Array()
        if order != "K":
            if order not in ("C", "F") or axis_order is not None:
                raise pickle.UnpicklingError(f"an array in order {_shown(order)}")
            array.value = _array(buffer, dtype, shape, order)
            return array
        value = _array(buffer, dtype, shape, "C")
        is_order = type(axis_order) in (tuple, list) and all(map(_is_length, axis_order))
        if not is_order or sorted(axis_order) != [*range(value.ndim)]:
            raise pickle.UnpicklingError(f"an array of shape {shape} with its axes in no order")
        array.value = value.transpose(axis_order)
        return array

    def _encode(self, text, encoding):
        """Stand for _codecs.encode, by which Python 3 writes bytes in protocols 0 to 2."""
        if encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError(f"bytes written as {_shown(encoding)}")
        self.remaining -= len(text)
        if self.remaining < 0:
            raise pickle.UnpicklingError("more bytes than the file can hold")
        return text.encode("latin-1")

    def _empty_bytes(self):
        """Stand for bytes, by which protocols 0 to 2 write the data of an empty array."""
        return b""


# Three pairs of arrays take some 150 instructions.
MAX_INSTRUCTIONS = 10_000
# A few bytes make a tuple that holds another one twice, which holds a third one twice, and so on.
# Whoever walks through it never ends; Python does, to hash the key of a dict. So the instruction
# that doubles is refused, and containers may be referred to a few times only: once for a split that
# is used as two.
REFUSED = ("DUP", "LONG4")
MAX_REFERENCES = 24  # 3**8 ways through at most
PUTS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
GETS = ("GET", "BINGET", "LONG_BINGET")
# What makes an object that holds no others of the pickle's: names, stand-ins, texts, numbers.
MAKES_NO_CONTAINER = re.compile(
    "GLOBAL|STACK_GLOBAL|REDUCE|BUILD|NONE|NEWTRUE|NEWFALSE|.*(STRING|UNICODE|BYTES|INT|LONG|FLOAT).*"
)


def _check_instructions(stream):
    """Raise UnpicklingError for a pickle that does more than pickles of arrays do."""
    containers, n_cells, references, last, frame_end = set(), 0, 0, "", 0
    for number, (opcode, argument, start) in enumerate(pickletools.genops(stream)):
        frame_end = _end_of_frame(opcode, argument, start, stream.tell(), frame_end)
        is_put = opcode.name in PUTS
        if is_put:
            cell = n_cells if opcode.name == "MEMOIZE" else argument
            n_cells += 1
            if not MAKES_NO_CONTAINER.fullmatch(last):
                containers.add(cell)
        references += opcode.name in GETS and argument in containers
        is_huge = isinstance(argument, int) and abs(argument) >= 2**63
        if number > MAX_INSTRUCTIONS or (is_put and cell > MAX_INSTRUCTIONS):
            raise pickle.UnpicklingError("more instructions than arrays need" + STACK_HINT)
        if opcode.name in REFUSED or is_huge or references > MAX_REFERENCES:
            raise pickle.UnpicklingError("instructions that arrays do not need")
        last = opcode.name


def _end_of_frame(opcode, argument, start, end, frame_end):
    """Return where the frame of an instruction from ``start`` to ``end`` ends; 0 for none, so far.

    Raises UnpicklingError where an instruction leaves its frame, or a frame holds another: there
    the unpickler, which forgets the rest of the frame, would read other instructions than these.
    """
    is_inside = start < frame_end
    if is_inside and (end > frame_end or opcode.name == "FRAME"):
        raise pickle.UnpicklingError("an instruction that leaves its frame")
    return end + argument if opcode.name == "FRAME" else frame_end


class LimitedReader:
    """A binary stream that raises UserError once more than ``limit`` bytes are asked of it."""

    def __init__(self, stream, limit, name):
        self.stream, self.remaining, self.limit, self.name = stream, limit, limit, name

    def _spend(self, count):
        self.remaining -= count
        if self.remaining < 0:
            raise UserError(
                f"{self.name} unpacks to more than {self.limit:,} bytes, far beyond what its size "
                "suggests (a decompression bomb?); store real data of that kind uncompressed"
            )

    def expect(self, count):
        """Raise UserError if ``count`` more bytes would be more than the limit."""
        if count > self.remaining:
            self._spend(count)

    def tell(self):
        """Return how many bytes have been read."""
        return self.limit - self.remaining

    def read(self, count):
        """Return at most ``count`` bytes."""
        self.expect(count)
        data = self.stream.read(count)
        self._spend(len(data))
        return data

    def readline(self):
        """Return the bytes up to and with the next newline."""
        line = self.stream.readline(self.remaining + 1)
        self._spend(len(line))
        return line

    def expect_end(self):
        """Raise UserError unless the stream ends here; a gzip's checksum is verified by that."""
        if self.stream.read(1):
            raise UserError(f"{self.name} goes on after its data: it is not whole, or not one file")


def load_arrays(open_reader, name):
    """Return what a pickle holds: arrays in tuples in a tuple, or in a dict.

    open_reader: called twice, returns a LimitedReader at the pickle's beginning; the pickle must
    end where the stream does. ``name`` (str) names the file in errors. Raises UserError for a
    pickle that is truncated, malformed, or builds anything but containers, numbers, text and
    numeric arrays.
    """
    try:
        _check_instructions(open_reader())
        reader = open_reader()
        arrays = _unwrap(_ArrayUnpickler(reader, reader.limit).load(), depth=2)
        reader.expect_end()
    except UserError:
        raise
    except EOFError as error:
        raise UserError(f"{name} is truncated: {error or 'the pickle ends too early'}") from error
    except pickle.UnpicklingError as error:
        message = shown(str(error), 500)
        if "truncated" in message:
            raise UserError(f"{name} is truncated: {message}") from error
        raise UserError(f"{name} was refused, it holds {message}") from error
    except Exception as error:  # a malformed pickle may raise anything
        if "exhausted before" in str(error) or "not enough data" in str(error):
            raise UserError(f"{name} is truncated: {error}") from error
        raise UserError(f"{name} is not a pickle of arrays: {shown(repr(error))}") from error
    return arrays


def _unwrap(value, depth):
    """Replace array descriptions by arrays in containers nested at most ``depth`` deep.

    Lists become tuples.

    Deeper values are left alone: a pickle of a few bytes can nest one tuple in itself so that
    walking all of it would never end.
    """
    if isinstance(value, _Array):
        if value.value is None:
            raise pickle.UnpicklingError("an array without data")
        return value.value
    if isinstance(value, (tuple, list)) and depth > 0:
        return tuple(_unwrap(item, depth - 1) for item in value)
    if isinstance(value, dict) and depth > 0:
        return {key: _unwrap(item, depth - 1) for key, item in value.items()}
    return value
