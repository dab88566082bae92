"""Fuzzing: files that are mutated or made of odd parts are read, or refused by a UserError.

    python tests/hostile/fuzz.py --cases 1000000 --processes 2 --output tests/hostile/fuzzed.json

gives every reader its share of the cases, and adds to the record how many there were. Nothing but a
UserError of one short line may come of a file, and its reading takes no more than MEMORY. Should a
case do anything else, hypothesis makes it as small as it can and prints it: then it belongs to the
corpus.
"""

import argparse
import gzip
import io
import json
import multiprocessing
import os
import pickle
import resource
import struct
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from archives import zipped  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from msgd.config import complete_config, experiment_schema, load_schema  # noqa: E402
from msgd.config_file import read_file  # noqa: E402
from msgd.data.readers import open_idx, read_splits  # noqa: E402
from msgd.data.safe_pickle import LimitedReader, load_arrays  # noqa: E402
from msgd.data.unpickle import _check_pair  # noqa: E402
from msgd.errors import UserError  # noqa: E402
from msgd.models import MODELS  # noqa: E402

MEMORY = 2**30  # beyond what the process has before its first case
LONGEST = 800  # letters of a line of an error
BATCH = 10  # cases of one example of hypothesis, which takes longer than most of them


class Target(NamedTuple):
    """A reader under test: what it does with bytes, and what cases are made of.

    read(data, folder): reads the bytes, from a file in ``folder`` if it must; bases: valid files
    that are mutated; tokens: bytes that mean something in them; made: strategy of whole files;
    share: of all cases.
    """

    read: object
    bases: list
    tokens: list
    made: object
    share: float


# Mutations.

EDGES = [(1 << n) + d for n in (0, 7, 8, 15, 16, 31, 32, 62, 63, 64) for d in (-1, 0, 1)]
NUMBERS = [
    n.to_bytes(size, order)
    for n in EDGES
    for size in (1, 2, 4, 8)
    for order in ("little", "big")
    if 0 <= n < 1 << (8 * size)
]


def mutated(target):
    """Return the strategy of files of ``target`` with one to six edits."""
    places = st.integers(0, 2**16)
    parts = st.one_of(
        st.binary(max_size=8), st.sampled_from(target.tokens), st.sampled_from(NUMBERS)
    )
    edit = st.tuples(st.sampled_from(sorted(EDITS)), places, places, parts)
    edits = st.lists(edit, min_size=1, max_size=6)
    return st.builds(_edited, st.sampled_from(target.bases), edits)


def _edited(data, edits):
    for name, first, second, part in edits:
        place = first % (len(data) + 1)
        data = EDITS[name](data, place, second, part)
    return data


def _flip(data, place, second, part):
    if place == len(data):
        return data
    return data[:place] + bytes([data[place] ^ (1 << second % 8)]) + data[place + 1 :]


def _cut(data, place, second, part):
    return data[:place] + data[place + second % 64 :]


def _end(data, place, second, part):
    return data[:place]


def _insert(data, place, second, part):
    return data[:place] + part + data[place:]


def _replace(data, place, second, part):
    return data[:place] + part + data[place + len(part) :]


def _splice(data, place, second, part):
    start = second % (len(data) + 1)
    return data[:place] + data[start : start + 40] + data[place:]


EDITS = {f.__name__: f for f in (_flip, _cut, _end, _insert, _replace, _splice)}


# The unpickler.


def read_pickle(data, folder):
    found = load_arrays(lambda: LimitedReader(io.BytesIO(data), 2**20, "fuzzed"), "fuzzed")
    for pair in found if isinstance(found, tuple) else ():
        if isinstance(pair, tuple) and len(pair) == 2:
            _check_pair("fuzzed", "train", *pair)


SMALL = ((np.arange(6, dtype=np.float32).reshape(2, 3), np.array([0, 1])),) * 3
NAMES = [
    *(b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n", b"c__builtin__\nbytes\n"),
    *(b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy._core.numeric\n_frombuffer\n"),
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\nload\n"),
]
INSTRUCTIONS = [
    bytes([code]) for code in b"()[]}.02abdeilstuoQRNh\x81\x85\x86\x87\x88\x89\x8f\x90\x91"
]
INSTRUCTIONS += [b"\x93", b"\x94", b"\x97", b"\x98"]


def instruction():
    """Return the strategy of one instruction with what follows it."""
    short = st.binary(max_size=6)
    sizes = st.one_of(st.integers(0, 9), st.sampled_from(EDGES))
    return st.one_of(
        st.sampled_from(INSTRUCTIONS),
        st.sampled_from(NAMES),
        st.builds(lambda n: b"K" + bytes([n % 256]), sizes),
        st.builds(lambda n: b"J" + struct.pack("<I", n % 2**32), sizes),
        st.builds(lambda code, n: code + bytes([n % 256]), st.sampled_from([b"q", b"h"]), sizes),
        st.builds(
            lambda code, n: code + struct.pack("<I", n % 2**32),
            st.sampled_from([b"r", b"j"]),
            sizes,
        ),
        st.builds(
            lambda code, part: code + bytes([len(part)]) + part,
            st.sampled_from([b"U", b"C", b"\x8a", b"\x8c"]),
            short,
        ),
        st.builds(
            lambda code, part: code + struct.pack("<I", len(part)) + part,
            st.sampled_from([b"X", b"B", b"T", b"\x8b"]),
            short,
        ),
        st.builds(
            lambda code, part, n: code + struct.pack("<Q", n % 2**64) + part,
            st.sampled_from([b"\x8d", b"\x8e", b"\x96", b"\x95"]),
            short,
            sizes,
        ),
        st.builds(
            lambda code, n: code + str(n).encode() + b"\n",
            st.sampled_from([b"I", b"L", b"p", b"g", b"F"]),
            sizes,
        ),
        st.builds(
            lambda n: b"U\x02" + n, st.sampled_from([b"f4", b"i8", b"u1", b"O8", b"V9", b"b1"])
        ),
    )


def made_pickles():
    whole = st.builds(
        lambda protocol, parts: protocol + b"".join(parts) + b".",
        st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"\x80\x05"]),
        st.lists(instruction(), max_size=14),
    )
    shapes = st.lists(st.sampled_from([0, 1, 2, 4, *EDGES]), max_size=3)
    return st.one_of(whole, st.builds(_array_pickle, shapes, st.binary(max_size=8), instruction()))


def _array_pickle(shape, data, extra):
    """Return a pickle of an array with a shape, data and a dtype that may not fit each other."""
    sizes = b"(" + b"".join(f"L{n}\n".encode() for n in shape) + b"t"
    start = NAMES[4] + b"(" + NAMES[0] + b"K\x00\x85U\x01btR(K\x01"
    dtype = NAMES[1] + b"U\x02u1\x85R" if len(data) % 3 else extra
    return b"\x80\x02" + start + sizes + dtype + b"\x89U" + bytes([len(data)]) + data + b"tb."


# The IDX reader.


def read_idx(data, folder):
    array = open_idx(_written(folder / "fuzzed-idx", data))
    if array.ndim == 1:
        assert array.read().shape == array.shape
    else:
        _check_pair("fuzzed", "train", array, np.zeros(min(len(array), 1000), np.uint8))


def idx_bytes(kind=8, shape=(3, 2, 2), data=bytes(range(12))):
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape) + data


def made_idx():
    sizes = st.one_of(st.integers(0, 9), st.sampled_from([n for n in EDGES if n < 2**32]))
    return st.builds(
        lambda kind, shape, data, axes: (
            idx_bytes(kind, shape, data)[:3] + bytes([axes]) + idx_bytes(kind, shape, data)[4:]
        ),
        st.one_of(st.sampled_from([8, 9, 11, 12, 13, 14]), st.integers(0, 255)),
        st.lists(sizes, max_size=4),
        st.binary(max_size=40),
        st.one_of(st.integers(0, 4), st.integers(0, 255)),
    )


# The .npz reader.


def read_npz(data, folder):
    path = _written(folder / "fuzzed.npz", data)
    for split, (x, y) in read_splits(path).items():
        images, labels = _check_pair(path, split, x, y)
        assert len(images) == len(labels)


def made_npz():
    texts = st.sampled_from(
        ["'|u1'", "'<f4'", "'|O'", "'<U3'", "'|V0'", "[('a','u1')]", "7", "None", "'>i8'"]
    )
    numbers = st.one_of(st.integers(-1, 9), st.sampled_from(EDGES))
    shapes = st.lists(numbers, max_size=3).map(lambda s: repr(tuple(s)))
    odd = st.sampled_from(["5", "None", "(True,)", "(1.5,)", "'ab'", "(" * 60, "-" * 200 + "1"])
    orders = st.sampled_from(["False", "True", "None", "'C'"])
    header = st.builds(
        "{{'descr': {}, 'fortran_order': {}, 'shape': {}, }}".format,
        texts,
        orders,
        st.one_of(shapes, odd),
    )
    return st.builds(
        _npz_with,
        header,
        st.sampled_from([b"\1\0", b"\2\0", b"\3\0"]),
        st.binary(max_size=40),
        st.sampled_from(sorted(MEMBERS)),
    )


def _npz_with(header, version, data, name):
    text = header.encode("latin-1")
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(text))
    return zipped({**MEMBERS, name: b"\x93NUMPY" + version + size + text + data}.items())


def _member(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


MEMBERS = {
    f"{split}_{part}.npy": _member(array)
    for split in ("train", "test")
    for part, array in (("x", np.arange(6, dtype=np.uint8).reshape(3, 2)), ("y", np.arange(3)))
}


# The configuration.


def read_config(data, folder):
    path = _written(folder / "config.yaml", data)
    complete = complete_config(read_file(path))
    assert complete["experiments"]


def _keys():
    keys = {*load_schema()["properties"]}
    for model in MODELS:
        keys |= {*experiment_schema(model)["properties"]}
    return sorted(keys)


def made_configs():
    scalars = st.one_of(
        st.sampled_from(
            [0, 1, -1, 20, 0.1, 1e-300, 1e300, float("nan"), float("inf"), None, True, *EDGES]
        ),
        st.sampled_from(
            ["all", "mnist", "", "cpu", "float64", "tanh", "1e-3", "a\n", "\0", "../a", *MODELS]
        ),
        st.text(max_size=5),
    )
    values = st.recursive(
        scalars,
        lambda one: st.one_of(
            st.lists(one, max_size=3), st.dictionaries(st.text(max_size=3), one, max_size=2)
        ),
        max_leaves=4,
    )
    keys = st.sampled_from(_keys())
    run = st.builds(
        lambda model, others: {"model": model, **others},
        st.one_of(st.sampled_from([*MODELS]), values),
        st.dictionaries(keys, values, max_size=3),
    )
    experiments = st.dictionaries(
        st.one_of(st.sampled_from(["a", "b"]), scalars.filter(_hashable)),
        st.one_of(run, values),
        max_size=2,
    )
    whole = st.builds(
        lambda top, e: {**top, "experiments": e},
        st.dictionaries(keys, values, max_size=2),
        st.one_of(experiments, values),
    )
    return whole.map(
        lambda config: yaml.dump(config, Dumper=yaml.CSafeDumper).encode("utf-8", "replace")
    )


def _hashable(value):
    return value == value


def _written(path, data):
    path.write_bytes(data)
    return path


CONFIG_TOKENS = [
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!python/name:os.system",
    b"- ",
    b"? ",
    b": ",
    b"\n  ",
    b"{",
    b"}",
    b"[",
    b"]",
    b".nan",
    b".inf",
    b"1e9",
    b"010",
    b"1:30",
    b"---\n",
    b"'",
    b'"',
    b"|",
    b"\t",
    b"\0",
    b"\xff",
    b"__use_yte__: true\n",
    *(key.encode() for key in ("model", "n_hidden", "seed", "l1")),
]
TARGETS = {
    "unpickler": Target(
        read_pickle,
        [pickle.dumps(content, p) for content in (SMALL, dict(enumerate(SMALL))) for p in range(6)],
        [*NAMES, *INSTRUCTIONS],
        made_pickles(),
        0.45,
    ),
    "IDX reader": Target(
        read_idx,
        [idx_bytes(), idx_bytes(13, (3,), bytes(12)), gzip.compress(idx_bytes())],
        [b"\x1f\x8b", b"\0\0\x08", b"PK\3\4"],
        made_idx(),
        0.3,
    ),
    ".npz reader": Target(
        read_npz,
        [zipped(MEMBERS.items()), zipped(MEMBERS.items(), zipfile.ZIP_DEFLATED)],
        [b"PK\1\2", b"PK\3\4", b"PK\5\6", b"\x93NUMPY", b"'shape'", b".npy", b"(", b"|O"],
        made_npz(),
        0.2,
    ),
    "configuration": Target(
        read_config,
        [
            b"experiments:\n  a: &a {model: mlp, n_hidden: [5, 4], seed: [1, 2]}\n"
            b"  b: {<<: *a, l1: 1.0e-3}\n",
            b"dataset: a.npz\nplots: {dpi: 90}\nexperiments:\n  a:\n    model: sda\n"
            b"    corruption: [0.1]\n    n_hidden: [3]\n",
            b'{"experiments": {"a": {"model": "rbm", "persistent": true, "learning_rate": 0.1}}}',
        ],
        CONFIG_TOKENS,
        made_configs(),
        0.05,
    ),
}


def check(target, data, folder):
    """Let ``target`` read ``data``; return whether it did, and fail if anything else came of it."""
    try:
        target.read(data, folder)
    except UserError as error:
        if fault := _fault(str(error)):
            raise AssertionError(f"{data!r}: an error {fault}: {str(error)[:500]!r}") from error
        return False
    except Exception as error:
        raise AssertionError(f"{data!r}: {error!r}") from error
    return True


def _fault(said):
    """Return what an error is that should be short lines, one for each finding, or None."""
    lines = said.split("\n- ")
    if len(lines) > 40 or max(map(len, lines)) > LONGEST:
        return "that is too long"
    if not all(map(str.isprintable, lines)):
        return "of what cannot be printed"
    return "of memory" if "MemoryError" in said else None


def fuzz(name, n_cases, chosen_seed, folder, derandomize=False):
    """Give the target ``name`` n_cases cases at least; return (cases, those that were read)."""
    target, counts = TARGETS[name], [0, 0]

    @settings(
        max_examples=-(-n_cases // BATCH),
        derandomize=derandomize,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[*HealthCheck],
    )
    @given(st.lists(st.one_of(mutated(target), target.made), min_size=BATCH, max_size=BATCH))
    def every(batch):
        for data in batch:
            counts[1] += check(target, data, folder)
            counts[0] += 1

    every = every if derandomize else seed(chosen_seed)(every)
    every()
    return counts


def limit_memory():
    """Let this process take MEMORY more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = MEMORY + pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


ROUND = 10_000  # cases after which hypothesis begins anew, with another seed


def _work(job):
    name, n_cases, chosen_seed = job
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as folder:
        try:
            return name, fuzz(name, n_cases, chosen_seed, Path(folder)), None
        except Exception as error:  # with what hypothesis found, made small
            return name, [0, 0], f"{name}, seed {chosen_seed}: {str(error)[:5000]}"


def jobs(n_cases, first_seed, names):
    """Yield (target, cases, seed) of rounds of the targets ``names`` that come to ``n_cases``."""
    total = sum(TARGETS[name].share for name in names)
    for name in names:
        n = round(n_cases * TARGETS[name].share / total)
        for number in range(-(-n // ROUND)):
            yield name, min(ROUND, n - number * ROUND), first_seed + number


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=1_000_000)
    # Other cases each time, or the record would count the same ones twice. Findings name it.
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first round")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--readers", nargs="+", choices=TARGETS, default=[*TARGETS])
    parser.add_argument("--output", type=Path, help="record that the cases are added to")
    options = parser.parse_args()
    totals = {name: [0, 0] for name in TARGETS}
    started, failures = time.time(), []
    with multiprocessing.Pool(options.processes, limit_memory) as pool:
        for name, counts, found in pool.imap_unordered(
            _work, jobs(options.cases, options.seed, options.readers)
        ):
            totals[name] = [a + b for a, b in zip(totals[name], counts, strict=True)]
            failures += [found] if found else []
            print(found or f"{time.time() - started:.0f} s: {totals}", flush=True)
    if options.output:
        add_to_record(options.output, totals)
    if failures:
        sys.exit(f"{len(failures)} rounds found something")


def add_to_record(path, totals):
    """Add ``totals``, a dict of target -> (cases, those that were read), to the JSON file ``path``.

    Cases of rounds that found something are not among them.
    """
    before = json.loads(path.read_text())["by_reader"] if path.exists() else {}
    by_reader = {}
    for name, (cases, read) in totals.items():
        known = before.get(name, {"cases": 0, "read": 0})
        by_reader[name] = {"cases": known["cases"] + cases, "read": known["read"] + read}
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "cases": sum(one["cases"] for one in by_reader.values()),
        "by_reader": by_reader,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
