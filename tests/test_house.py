"""The limits of the house, read from the source: short functions, few arguments, one direction.

A kernel with twenty arguments is not read, and one that hangs on the models cannot be shared by
them. docs/ and CONTRIBUTING.md say why; this file holds everyone to it.
"""

import ast
import tomllib

import pytest
import yaml
from conftest import ROOT

PACKAGE = ROOT / "src" / "msgd"
MOST_ARGUMENTS = 9
MOST_LINES = 60
# A table in the form of statements: each option of the program once, with its help.
TABLES = {"cli.py:_parser", "sklearn.py:MSGDClassifier.__init__"}
# What the kernels may import of the package beside each other.
BELOW_THE_KERNELS = {"msgd.errors", "msgd.source"}


def functions(tree, owner=""):
    """Yield (name with its owners', node) of all functions in ``tree``, lambdas among them."""
    for node in ast.iter_child_nodes(tree):
        name = owner
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            name = f"{owner}.{getattr(node, 'name', 'lambda')}".lstrip(".")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield name, node
        yield from functions(node, name)


def decorators(node):
    return [ast.unparse(one) for one in getattr(node, "decorator_list", [])]


def is_launched(node):
    """Whether a function is a CUDA kernel that Python launches: its arguments must be flat."""
    return any("CUDA_ENTRY" in one for one in decorators(node))


def is_compiled(node):
    """Whether a function is one of Numba's."""
    return any(one.startswith(("njit", "cuda.jit")) for one in decorators(node))


def n_arguments(node):
    """Return how many arguments a function takes by position, the object of a method left out."""
    taken = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
    return len(taken) - (taken[:1] in (["self"], ["cls"]))


def n_passed(call):
    """Return how many arguments a call passes by position.

    *names counts as one, for how many it holds is not written there: a function of ours that took
    too many would be found where it is defined.
    """
    return sum(
        len(argument.value.elts)
        if isinstance(argument, ast.Starred) and isinstance(argument.value, ast.Tuple | ast.List)
        else 1
        for argument in call.args
    )


def calls(node):
    """Yield the calls in a function, but not those in a function within it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.Call):
            yield child
        yield from calls(child)


def is_launch(call, kernels):
    """Whether a call is kernel[shape](...) of one of ``kernels``, a set of names."""
    if not isinstance(call.func, ast.Subscript):
        return False
    kernel = call.func.value
    return (kernel.attr if isinstance(kernel, ast.Attribute) else kernel.id) in kernels


def too_many_arguments(trees):
    for file, tree in trees.items():
        for name, node in functions(tree):
            if n_arguments(node) > MOST_ARGUMENTS and not is_launched(node):
                yield f"{file}:{name}"


def too_many_passed(trees):
    found = [node for tree in trees.values() for _, node in functions(tree)]
    kernels = {node.name for node in found if is_launched(node)}
    for file, tree in trees.items():
        for name, node in [("", tree), *functions(tree)]:
            if any(n_passed(c) > MOST_ARGUMENTS and not is_launch(c, kernels) for c in calls(node)):
                yield f"{file}:{name}"


def too_long(trees):
    for file, tree in trees.items():
        for name, node in functions(tree):
            if node.end_lineno - node.lineno >= MOST_LINES and f"{file}:{name}" not in TABLES:
                yield f"{file}:{name}"


def without_docstring(trees):
    for file, tree in trees.items():
        for name, node in functions(tree):
            # The formulas are compiled where they are used.
            is_kernel = is_compiled(node) or file == "kernels/formulas.py"
            if is_kernel and not ast.get_docstring(node):
                yield f"{file}:{name}"


def imported(tree):
    """Return the modules of the package that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            is_package = (PACKAGE.parent / node.module.replace(".", "/")).is_dir()
            names |= {f"{node.module}.{a.name}" if is_package else node.module for a in node.names}
    return {name for name in names if name.split(".")[0] == "msgd"}


def imported_from_above(trees):
    for file, tree in trees.items():
        if file.startswith("kernels/"):
            for name in imported(tree) - BELOW_THE_KERNELS:
                if not name.startswith("msgd.kernels."):
                    yield f"{file}: {name}"


RULES = {
    "no function takes more than nine arguments by position": too_many_arguments,
    "no call passes more than nine arguments by position": too_many_passed,
    "no function is longer than sixty lines": too_long,
    "every kernel has a docstring": without_docstring,
    "kernels import nothing of what is built on them": imported_from_above,
}


@pytest.fixture(scope="module")
def trees():
    """The package's files as syntax trees, by their paths."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {
        file.relative_to(PACKAGE).as_posix(): ast.parse(file.read_text("utf-8")) for file in files
    }


def breaches(rule, trees):
    return set(RULES[rule](trees))


@pytest.mark.parametrize("rule", RULES)
def test_the_source_keeps_to_the_rules(trees, rule):
    assert breaches(rule, trees) == set(), f"broken: {rule}"


PARAMETERS = "a, b, c, d, e, f, g, h, i, j"
BROKEN = {
    f"def wide({PARAMETERS}): pass": "no function takes",
    f"class A:\n    def wide(self, {PARAMETERS}): pass": "no function takes",
    f"key = lambda {PARAMETERS}: a": "no function takes",
    f"@cuda.jit(device=True, **options.CUDA)\ndef wide({PARAMETERS}): 'Doc.'": "no function takes",
    f"call({PARAMETERS})": "no call passes",
    f"def one():\n    return call({PARAMETERS})": "no call passes",
    "call(*[1, 2, 3, 4, 5], 1, 2, 3, 4, 5)": "no call passes",
    f"table[1]({PARAMETERS})": "no call passes",
    "def long():\n" + 60 * "    pass\n": "no function is longer",
    "@njit(**options.CPU)\ndef one(): pass": "every kernel",
    "@cuda.jit(**options.CUDA_ENTRY)\ndef one(): pass": "every kernel",
    "from msgd.models import lists": "kernels import",
    "from msgd import config": "kernels import",
    "def one():\n    import msgd.training.loop": "kernels import",
}
SOUND = [
    "def one(a, b, c, d, e, f, g, h, i, *, j=1): pass",
    "class A:\n    def one(self, a, b, c, d, e, f, g, h, i): pass",
    f"@cuda.jit(**options.CUDA_ENTRY)\ndef one({PARAMETERS}): 'Doc.'\none[2, 3]({PARAMETERS})",
    "call(*values, 1, 2, 3, 4, 5, 6, 7, 8)",
    "def one():\n" + 59 * "    pass\n",
    "from msgd.kernels import options\nfrom msgd.errors import UserError\nimport math",
]


@pytest.mark.parametrize("source", BROKEN)
def test_a_rule_sees_what_breaks_it(source):
    trees = {"kernels/new.py": ast.parse(source)}
    (broken,) = [rule for rule in RULES if breaches(rule, trees)]
    assert broken.startswith(BROKEN[source])


@pytest.mark.parametrize("source", SOUND)
def test_no_rule_minds_what_is_sound(source):
    assert not [rule for rule in RULES if breaches(rule, {"kernels/new.py": ast.parse(source)})]


def test_what_plain_pytest_leaves_out_is_run_by_ci():
    """A marker that the options leave out and no command names would hide its tests for good."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    markers = [marker.partition(":")[0] for marker in options["markers"]]
    left_out = " and ".join(f"not {marker}" for marker in markers)
    assert options["addopts"].endswith(f" -m '{left_out}'")
    commands = yaml.safe_load((ROOT / ".ci" / "commands.yaml").read_text())["contributor"]
    for marker in markers:
        assert commands[f"pytest -m {marker}"] == "run"
