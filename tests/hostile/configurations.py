"""Bad configurations, as text: what YAML makes of them, and what the schema lets through."""

import json

import yaml
from cases import CANARY, Case, npz_of_toy

from msgd.data.unpickle import unpickle

# The keys of hidden units, by model, and what stands beside them in a configuration.
SIZES = {
    "mlp": ("n_hidden", 10**8),
    "mlp in layers": ("n_hidden", [10**8, 10]),
    "lenet": ("n_hidden", 10**8),
    "lenet's kernels": ("nkerns", [10**8]),
    "da": ("n_hidden", 10**8),
    "ca": ("n_hidden", 10**8),
    "rbm": ("n_hidden", 10**8),
    "sda": ("n_hidden", [10**8]),
    "dbn": ("n_hidden", [10**8]),
}
A = "experiments:\n  a: {model: logistic_regression, batch_size: 10}\n"


def config(name, text, says, kind="bad configuration"):
    """Return the Case of a configuration of ``text`` (str or bytes), FOLDER in it replaced."""

    def make(folder):
        (folder / "toy.npz").write_bytes(npz_of_toy())
        data = text if isinstance(text, bytes) else text.replace("FOLDER", str(folder)).encode()
        (folder / "config.yaml").write_bytes(data)
        return ["check-config", "config.yaml"]

    return Case(name, kind, make, says, "")


def of(value):
    """Return the text of a configuration with the data set toy.npz and what ``value`` says."""
    return yaml.safe_dump({"dataset": "toy.npz", **value}, sort_keys=False)


def one(**settings):
    model = {"model": "logistic_regression", "batch_size": 10}
    return of({"experiments": {"a": {**model, **settings}}})


def named(name):
    return of({"experiments": {name: {"model": "logistic_regression", "batch_size": 10}}})


def multiplied(first, item, last):
    """Return YAML in which nine anchors stand ten times each in the next one."""
    lines = [f"l0: &l0 {first}"]
    for n in range(1, 10):
        items = ", ".join(item.format(key=key, anchor=f"*l{n - 1}") for key in "abcdefghij")
        opening, closing = ("{", "}") if ":" in item else ("[", "]")
        lines.append(f"l{n}: &l{n} {opening}{items}{closing}")
    return "\n".join([*lines, last, ""])


EXECUTES = f"open('FOLDER/{CANARY}', 'w')"
# {what is odd about the text: (text, what is said)}
YAML = {
    "an experiment twice": (A + "  a: {model: mlp}\n", "given in line 2 and in line 3"),
    "a key twice": (one() + "floatX: float32\nfloatX: float64\n", "floatX is given in line"),
    "all experiments twice": (A + A, "experiments is given in line 1 and in line 3"),
    "a key twice, once in quotes": (A + '"floatX": float32\nfloatX: float64\n', "is given in line"),
    "a key twice in JSON": ('{"experiments": {"a": {"model": "mlp", "model": "da"}}}', "given in"),
    "lists that multiply": (
        multiplied("[x]", "{anchor}", "experiments: *l9"),
        "anchors",
    ),
    "mappings that multiply": (
        multiplied("{x: 1}", "{key}: {anchor}", "experiments: {a: *l9}"),
        "anchors",
    ),
    "merges that multiply": (
        "\n".join(
            ["l0: &l0 {x: 1}"]
            + [f"l{n}: &l{n} {{<<: [{', '.join([f'*l{n - 1}'] * 10)}]}}" for n in range(1, 10)]
            + [A]
        ),
        "anchors",
    ),
    "a list within itself": ("experiments: &a [*a]\n", "anchors"),
    "a mapping within itself": ("experiments: &a {model: *a}\n", "anchors"),
    "an anchor that is not there": ("experiments: *a\n", "not YAML that can be read"),
    "5,000 lists, each in another": ("experiments: " + "[" * 5000, "nested too deeply"),
    "300 lists, each in another": ("experiments: " + "[" * 300 + "]" * 300, "experiments is"),
    "20,000 lists in JSON": ('{"experiments": ' + "[" * 20_000, "nested too deeply"),
    "a call by a tag": (
        f'experiments: !!python/object/apply:eval ["{EXECUTES}"]\n',
        "python/object/apply",
    ),
    "os.system by a tag": (
        f"experiments: !!python/object/apply:os.system ['touch FOLDER/{CANARY}']\n",
        "python/object/apply",
    ),
    "a new object by a tag": (
        f"experiments: !!python/object/new:os.system ['touch FOLDER/{CANARY}']\n",
        "python/object/new",
    ),
    "a name by a tag": ("experiments: !!python/name:os.system ''\n", "python/name"),
    "an expression of YTE": (
        f"__use_yte__: true\ndataset: ?{EXECUTES}.name\n" + A,
        "__use_yte__",
    ),
    "a definition of YTE": (
        f"__use_yte__: true\n__definitions__:\n  - {EXECUTES}\n" + A,
        "__use_yte__",
    ),
    "an unknown tag": ("experiments: !secret {a: 1}\n", "!secret"),
    "binary data": ("experiments: !!binary aGVsbG8=\n", "experiments is"),
    "a set": ("experiments: !!set {a, b}\n", "experiments is"),
    "nothing": ("", "holds no keys"),
    "a comment": ("# nothing\n", "holds no keys"),
    "a number": ("5\n", "holds no keys"),
    "a list": ("- experiments\n", "holds no keys"),
    "two documents": (A + "---\n" + A, "not YAML that can be read"),
    "a bracket that stays open": ("experiments: {a: {model: mlp}\n", "not YAML that can be read"),
    "a tab": ("experiments:\n\ta: {model: mlp}\n", "line 2, column 1: found character"),
    "a null byte": (A.encode() + b"\0", "not YAML that can be read"),
    "a control character": (A.encode() + b"floatX: \x1b[2J\n", "not YAML that can be read"),
    "latin-1": (A.encode() + b"# \xe9\n", "not YAML that can be read"),
    "UTF-16": (A.encode("utf-16"), "not YAML that can be read"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "not YAML that can be read"),
    "random bytes": (bytes(i * i % 251 for i in range(4000)), "not YAML that can be read"),
    "an octal number": (one() + "threads: 010\n", "written 010, which YAML reads as 8"),
    "a number of minutes": (
        A.replace("10}", "10, n_epochs: 1:30}"),
        "written 1:30, which YAML reads as 90",
    ),
    "a fraction of minutes": (
        A.replace("10}", "10, learning_rate: 1:30.5}"),
        "written 1:30.5, which YAML reads as 90.5",
    ),
    "a hexadecimal number": (one() + "threads: 0x10\n", "written 0x10, which YAML reads as 16"),
    "a binary number": (one() + "threads: 0b11\n", "written 0b11, which YAML reads as 3"),
    "a date for a number": (A.replace("10}", "2010-01-14}"), "batch_size is"),
    "a number as text": (A.replace("10}", "'10'}"), "batch_size is '10'"),
    "a number in another notation": (A.replace("10}", "10, l2: 1e-1}"), "YAML reads 1e-1 as text"),
    "a decimal comma": (A.replace("10}", "10, learning_rate: '0,1'}"), "learning_rate is '0,1'"),
    "a truth for a name": ("experiments:\n  no: {model: mlp}\n", "is not text"),
    "a number for a name": ("experiments:\n  2010: {model: mlp}\n", "is not text"),
    "nothing for a name": ("experiments:\n  ~: {model: mlp}\n", "is not text"),
    "a fraction for a name": ("experiments:\n  0.1: 0\n", "is not text"),
    "a list for a name": ("experiments:\n  ? [a]\n  : {model: mlp}\n", "not YAML that can be read"),
    "a merge of text": ("experiments:\n  a: {<<: text, model: mlp}\n", "not YAML that can be read"),
    "a number of 5,000 digits": (A.replace("10}", "9" * 5000 + "}"), "digits"),
    "a key of 10,000 letters": (A + f"? {'x' * 10_000}\n: 1\n", "not a known key"),
    "a text of 10,000 letters": (A + f"backend: {'x' * 10_000}\n", "backend is"),
    "a key of two lines": (A + '"a\\nall is well \\e[2J": 1\n', "not a known key"),
    "a text of two lines": (A + 'backend: "cpu\\nall is well \\e[2J"\n', "backend is"),
    "a name of two lines": (
        'experiments:\n  "a\\nall is well": {model: mlp}\n',
        "experiment name .* is not allowed",
    ),
}
INFINITE, NAN = float("inf"), float("nan")
# {what is wrong with what is read: (text, what is said)}
VALUES = {
    "a name that climbs": (named("../a"), "experiment name '../a' is not allowed"),
    "a name that is a path": (named("a/b"), "experiment name 'a/b' is not allowed"),
    "an absolute name": (named("/a"), "experiment name '/a' is not allowed"),
    "a name of dots": (named(".."), "experiment name '..' is not allowed"),
    "a hidden name": (named(".a"), "experiment name '.a' is not allowed"),
    "a name like an option": (named("-a"), "experiment name '-a' is not allowed"),
    "a name with a null": (named("a\0"), "experiment name .* is not allowed"),
    "a name with an end of line": (named("a\n"), "experiment name .* is not allowed"),
    "a name with a wildcard": (named("{a}"), "experiment name .* is not allowed"),
    "a name with a command": (named("$(touch canary)"), "experiment name .* is not allowed"),
    "an empty name": (named(""), "experiment name '' is not allowed"),
    "a name of 300 letters": (named("a" * 300), "experiment name .* is not allowed|letters"),
    "a grid whose names are too long": (
        of({"experiments": {"a": {"model": "mlp", "n_hidden": [[7] * 200, [8] * 200]}}}),
        "letters|layers|items",
    ),
    "no experiments": (of({"experiments": {}}), "not empty"),
    "experiments of null": (of({"experiments": None}), "experiments is None"),
    "a list of experiments": (of({"experiments": [{"model": "mlp"}]}), "experiments is"),
    "an experiment of text": (of({"experiments": {"a": "mlp"}}), "experiments.a is 'mlp'"),
    "an unknown model": (one(model="../mlp"), "model is '../mlp'"),
    "a model of null": (one(model=None), "model is None"),
    "a model that is a mapping": (one(model={"a": 1}), "model is"),
    "an unknown key": (one(learning_rte=1), "did you mean learning_rate"),
    "a key of another model": (one(n_hidden=3), "n_hidden is not a known key"),
    "a learning rate that is infinite": (one(learning_rate=INFINITE), "a finite number"),
    "a learning rate that is NaN": (one(learning_rate=NAN), "a finite number"),
    "a NaN in a grid": (one(l1=[0.1, NAN]), "a finite number"),
    "a NaN in a list": (
        of({"experiments": {"a": {"model": "sda", "n_hidden": [3, 3], "corruption": [NAN, 0.1]}}}),
        "a finite number",
    ),
    "a NaN of the plots": (
        of({**yaml.safe_load(A), "plots": {"frames_per_second": NAN}}),
        "a finite number",
    ),
    "a picture that stands for years": (
        of({**yaml.safe_load(A), "plots": {"frames_per_second": 1e-300}}),
        "frames_per_second is",
    ),
    "a batch of all and more": (one(batch_size="all\n"), "batch_size is"),
    "a batch of more than there are": (one(batch_size=10**6), "at most 30"),
    "epochs of 30 digits": (one(n_epochs=10**30), "n_epochs is .*allowed"),
    "epochs as a large float": (one(n_epochs=1e300), "n_epochs is .*allowed"),
    "a patience of 30 digits": (one(patience=10**30), "patience is .*allowed"),
    "threads of 30 digits": (of({**yaml.safe_load(A), "threads": 10**30}), "threads is .*allowed"),
    "a seed of 33 bits": (one(seed=2**32), "seed is"),
    "a seed below zero": (one(seed=-1), "seed is"),
    "a grid of 10 ** 8 runs": (
        one(**{k: [i / 100 for i in range(1, 101)] for k in ("l1", "l2", "lp", "learning_rate")}),
        "100,000,000 runs",
    ),
    "a grid of 20,000 seeds": (
        json.dumps(
            {
                "dataset": "toy.npz",
                "experiments": {
                    "a": {
                        "model": "logistic_regression",
                        "batch_size": 10,
                        "seed": [*range(20_000)],
                    }
                },
            }
        ),
        "20,000 runs",
    ),
    "a file of two megabytes": (one() + "#" * 2**21, "2,097,"),
    "a grid of nothing": (one(l1=[]), "is an empty list"),
    "a grid of grids": (one(l1=[[0.1], [0.2]]), "allowed: a number"),
    "a thousand layers": (
        of({"experiments": {"a": {"model": "mlp", "n_hidden": [2] * 1000}}}),
        "n_hidden is .*allowed",
    ),
    "a thousand layers of kernels": (
        of({"experiments": {"a": {"model": "lenet", "nkerns": [2] * 1000}}}),
        "nkerns is .*allowed",
    ),
    "a data set with a null": (of({**yaml.safe_load(A), "dataset": "a\0b"}), "does not exist"),
    "a data set of 5,000 letters": (of({**yaml.safe_load(A), "dataset": "a" * 5000}), "too long"),
    "a data set with a wildcard": (of({**yaml.safe_load(A), "dataset": "{a}.npz"}), "without the"),
    "a data set that is a device": (of({**yaml.safe_load(A), "dataset": "/dev/zero"}), "neither"),
    "a data set of nothing": (of({**yaml.safe_load(A), "dataset": ""}), "not empty"),
    "a data set that is a number": (of({**yaml.safe_load(A), "dataset": 5}), "dataset is 5"),
    "a data set of two lines": (of({**yaml.safe_load(A), "dataset": "a\nb"}), "does not exist"),
    "a colour map by a path": (
        of({**yaml.safe_load(A), "plots": {"colormap": "../viridis"}}),
        "colormap is",
    ),
}


def sizes():
    """Yield a case for every key that says how many units or maps a model has."""
    for name, (key, value) in SIZES.items():
        model = name.split()[0].removesuffix("'s")
        text = of({"experiments": {"a": {"model": model, key: value, "batch_size": 10}}})
        yield config(f"10 ** 8 units: {name}", text, rf"{key}(\.0)? is .*allowed", "huge size")


def trained(name, *words, says):
    """Return the Case of a training with hyperparameters that are too much."""

    def make(folder):
        (folder / "toy.npz").write_bytes(npz_of_toy())
        unpickle(folder / "toy.npz", folder / "data", "float32")
        return ["train", "--data", "data", "--run", "out", "--backend", "cpu", *words]

    return Case(name, "huge training", make, says, "")


def trainings():
    """Yield trainings of networks that are refused by their keys, or for want of memory."""
    for name, (key, value) in SIZES.items():
        model = f"model={name.split()[0].removesuffix(chr(39) + 's')}"
        says = rf"{key}(\.0)? is .*allowed"
        yield trained(f"10 ** 8 units: {name}", model, f"{key}={value}", says=says)
    batch, too_much = "batch_size=10", "parameters, whose training takes"
    units = "n_hidden=[1000000, 1000000]"
    for model in ("mlp", "sda", "dbn"):
        words = batch, f"model={model}", units, *(["corruption=0.1"] if model == "sda" else [])
        yield trained(f"10 ** 12 weights: {model}", *words, says=too_much)
    kernels = "nkerns=[1000000, 1000000]", "filter_size=1", "pool_size=1"
    yield trained("10 ** 12 weights: lenet", batch, "model=lenet", *kernels, says=too_much)


CASES = [
    *trainings(),
    *(config(name, *case, "odd YAML") for name, case in YAML.items()),
    *(config(name, *case) for name, case in VALUES.items()),
    *sizes(),
]
