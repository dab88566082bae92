"""The configuration: checked against ``config.schema.yaml``, completed with its defaults.

Used twice: by the Snakefile, before any job starts, and by ``msgd train``, which gets one run's
hyperparameters as ``key=value`` words. An experiment in which a hyperparameter is a list of values
is a grid: the product of the lists gives its runs.
"""

import copy
import difflib
import itertools
import math
import re
from collections import Counter
from functools import cache
from pathlib import Path

import jsonschema
import yaml

from msgd.errors import UserError, shown
from msgd.files import expand_home
from msgd.models import MODELS

SCHEMA_FILE = Path(__file__).with_name("config.schema.yaml")
MODELS_FOLDER = Path(__file__).with_name("models")

# More is taken for a mistake or an attack, and is refused before it takes time or memory.
MOST_RUNS = 10_000  # of all experiments
MOST_FINDINGS = 30  # that are shown
MOST_LETTERS = 200  # of the name of a run, a folder: file systems allow 255 bytes
LARGEST_INTEGER = 2**53  # whole numbers up to it are the same as floats


@cache
def _parsed(file):
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _read(file):
    """Return what a YAML file of the package holds: the caller's own, though it is parsed once.

    A schema takes longer to parse than a run's settings to check, and a grid asks for each run.
    """
    return copy.deepcopy(_parsed(file))


def load_schema():
    """Return the schema of the whole configuration (dict), without the models' own keys."""
    return _read(SCHEMA_FILE)


def experiment_schema(model):
    """Return the schema of an experiment with ``model`` (dict): shared keys and the model's own."""
    schema = load_schema()["$defs"]["experiment"]
    for key, changes in _read(MODELS_FOLDER / model / "hyperparameters.yaml").items():
        if changes is None:  # a shared key that means nothing to this model
            del schema["properties"][key]
            continue
        schema["properties"][key] = {**schema["properties"].get(key, {}), **changes}
    return schema


def complete_config(config):
    """Return a checked copy of ``config`` in which every key stands, defaults filled in.

    ``config`` is what config.yaml holds (dict); it is not changed. The lists of grids stay, for
    expand_grid; a ~ in ``dataset`` is expanded. Raises UserError with a line per finding: the key,
    its value, and what is allowed.
    """
    schema = load_schema()
    findings = _findings(config, schema)
    experiments, n_runs = config.get("experiments"), 0
    for name, settings in experiments.items() if isinstance(experiments, dict) else ():
        if not isinstance(name, str):
            findings.append(_name_finding(name))
        if isinstance(settings, dict) and "model" in settings:
            n_runs += _n_runs(settings)
            if n_runs > MOST_RUNS:  # which would take long to be looked at
                total = f"with {dotted(('experiments', name))} there are {n_runs:,} runs"
                findings.append(f"{total}; allowed: at most {MOST_RUNS:,}")
                break
            findings += _grid_findings(settings, ("experiments", name))
    findings += _unknown_colormap(config, schema)
    raise_findings(findings, "configuration")
    complete = _with_defaults({**config, "experiments": {}}, schema)
    complete["dataset"] = expand_home(complete["dataset"])
    complete["experiments"] = {name: _complete(run) for name, run in experiments.items()}
    check_layers(complete["experiments"])
    check_arithmetic(complete["experiments"], complete["backend"], complete["floatX"])
    return complete


def check_plot_settings(settings):
    """Raise UserError unless ``settings`` (dict) are allowed under the key ``plots``."""
    schema = load_schema()
    findings = _findings(settings, schema["properties"]["plots"])
    raise_findings(findings + _unknown_colormap({"plots": settings}, schema), "figure")


def complete_experiment(settings):
    """Return a checked copy of one run's ``settings`` (dict), defaults filled in.

    Raises UserError as complete_config does.
    """
    findings = [] if "model" in settings else [f"model is missing{_written_as('model', settings)}"]
    raise_findings(findings or _experiment_findings(settings), "hyperparameters")
    complete = _complete(settings)
    check_layers({"": complete})
    return complete


def _complete(settings):
    return _with_defaults(settings, experiment_schema(settings["model"]))


def varied_hyperparameters(settings):
    """Return the grid of an experiment's ``settings``: dict of key -> list of values, schema order.

    A list is a grid, unless it is itself a value of its key: ``nkerns: [20, 50]`` is one network of
    two layers, ``nkerns: [[20, 50], [10, 20]]`` a grid of two networks.
    """
    return {
        key: settings[key]
        for key, schema in experiment_schema(settings["model"])["properties"].items()
        if _is_grid(settings.get(key), schema)
    }


def compared_hyperparameters(settings):
    """Return the hyperparameters over which the runs of an experiment are compared (list).

    Those of its grid with more than one value, as far as ``compared_of`` leaves them.
    """
    grid = varied_hyperparameters(settings)
    return compared_of([key for key, values in grid.items() if len(values) > 1])


def compared_of(varying):
    """Return those of the ``varying`` hyperparameters (list) over which runs are compared (list).

    Seeds are the spread of the others, and compared only where nothing else varies.
    """
    return [key for key in varying if key != "seed"] or varying


def expand_grid(settings):
    """Return the runs of an experiment: dict of run name -> settings without grids.

    settings: as complete_config returns them. The name says what varies, as in
    ``learning_rate=0.1+seed=1``, or "default" where nothing does. It has no comma: Snakemake cuts
    wildcards at commas when it hands a job to a cluster. The order is that of the values, the last
    key varying fastest.
    """
    grid = varied_hyperparameters(settings)
    runs = {}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        run = _complete({**settings, **chosen})
        name = "+".join(f"{key}={_word(run[key])}" for key in grid)
        runs[name or "default"] = run
    return runs


def _n_runs(settings):
    """Return how many runs an experiment's ``settings``, not checked yet, would make."""
    if settings["model"] not in [*MODELS]:
        return 1
    return math.prod(len(values) or 1 for values in varied_hyperparameters(settings).values())


def _is_grid(value, schema):
    takes_lists = "array" in schema.get("type", "")
    return isinstance(value, list) and (
        not takes_lists or any(isinstance(entry, list) for entry in value)
    )


def _word(value):
    """Return ``value`` as it stands in a run's name: short, and without what a path cannot hold."""
    if isinstance(value, list):
        return "-".join(map(_word, value))
    if value is None or isinstance(value, bool):
        return yaml_scalar(value)
    return str(value)


def resolve_batch_size(settings, n_train):
    """Return ``settings`` with batch size "all" replaced by ``n_train``, the training examples."""
    return {**settings, "batch_size": n_train} if settings["batch_size"] == "all" else settings


def check_split_sizes(experiments, n_train):
    """Raise UserError if an experiment's settings cannot work with ``n_train`` training examples.

    ``experiments``: dict of name -> completed settings; the name "" stands for a run on its own.
    """
    raise_findings(split_size_findings(experiments, n_train), "configuration")


def split_size_findings(experiments, n_train):
    """Return what ``check_split_sizes`` raises, a list of str."""
    findings = {}  # a dict for its order: runs of a grid may share a finding
    for name, settings in experiments.items():
        key = f"experiments.{name}." if name else ""
        for run in expand_grid(settings).values():
            finding = _split_size_finding(resolve_batch_size(run, n_train), n_train)
            if finding:
                findings[key + finding] = True
    return [*findings]


def check_layers(experiments):
    """Raise UserError if an experiment gives each layer a corruption, and not as many as layers.

    experiments: as in check_split_sizes.
    """
    findings = {}  # a dict for its order: runs of a grid may share a finding
    for name, settings in experiments.items():
        if "corruption" not in settings:
            continue
        key = f"experiments.{name}." if name else ""
        for run in expand_grid(settings).values():
            shares, units = run["corruption"], run.get("n_hidden")
            n_layers = len(units) if isinstance(units, list) else 1
            if isinstance(shares, list) and len(shares) != n_layers:
                layers = "1 layer" if n_layers == 1 else f"{n_layers} layers"
                finding = f"{key}corruption is {yaml_scalar(shares)}, but n_hidden has {layers}"
                findings[f"{finding}; allowed: a share for each, or one for all"] = True
    raise_findings([*findings], "configuration")


def check_arithmetic(experiments, backend, float_x):
    """Raise UserError if an experiment asks for TF32 where it cannot be had: nothing stands in.

    experiments: as in check_split_sizes; backend, float_x: the keys ``backend`` and ``floatX``.
    """
    if backend == "cuda" and float_x == "float32":
        return
    findings = []
    for name, settings in experiments.items():
        asked = settings.get("arithmetic")
        if "tf32" in (asked if isinstance(asked, list) else [asked]):
            key = f"experiments.{name}." if name else ""
            findings.append(
                f"{key}arithmetic is tf32, which only a GPU computes, and in float32; allowed with "
                f"backend: cuda and floatX: float32, not with {backend} and {float_x}"
            )
    raise_findings(findings, "configuration")


def _split_size_finding(settings, n_train):
    """Return what of one run's ``settings`` cannot work with ``n_train`` examples, or None."""
    for key in ("pretraining_batch_size", "batch_size"):
        batch_size = settings.get(key, 1)
        if batch_size > n_train:
            return (
                f"{key} is {batch_size}; allowed: at most {n_train}, "
                "the number of training examples"
            )
    frequency = settings.get("validation_frequency")
    if frequency is None:
        return None
    iterations = settings["n_epochs"] * (n_train // batch_size)
    last_iteration = min(iterations, settings["patience"] + 1)
    if frequency <= last_iteration:
        return None
    return (
        f"validation_frequency is {frequency}; allowed: at most {last_iteration}, "
        "or the run would end before its first validation"
    )


def hyperparameter_words(settings):
    """Return ``settings`` as the words ``key=value`` that ``msgd train`` takes, in schema order."""
    keys = experiment_schema(settings["model"])["properties"]
    return [f"{key}={yaml_scalar(settings[key])}" for key in keys]


def parse_hyperparameter_words(words):
    """Return the dict that ``hyperparameter_words`` was given; the values are read as YAML.

    Raises UserError for a word without ``=`` or a key given twice.
    """
    settings = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"hyperparameter {word!r}: write key=value, e.g. learning_rate=0.13")
        if key in settings:
            raise UserError(f"hyperparameter {key!r} is given twice")
        try:
            settings[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            fault = shown(" ".join(str(getattr(error, "problem", None) or error).split()), 200)
            word = shown(word)
            raise UserError(f"hyperparameter {word} is not readable as YAML: {fault}") from error
    return settings


def yaml_scalar(value):
    """Return ``value`` as YAML on one line: text that parse_hyperparameter_words reads back."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("...").removesuffix("\n")


def describe_config():
    """Return the Markdown page that describes every key: config/README.md is this text."""
    properties = load_schema()["properties"]
    top = {key: value for key, value in properties.items() if "properties" not in value}
    lines = [
        "# Configuration",
        "",
        "Written by `msgd describe-config` from `src/msgd/config.schema.yaml` and the models'",
        "`hyperparameters.yaml`; do not edit. Unknown keys and values that are not allowed stop a",
        "run before its first job.",
        *("", "## Top level", ""),
        *_table({"default": top}, top),
        *("", "## Each experiment", "", "Defaults by model; – where a model has no such key."),
        "A list of values in place of one makes a grid: the product of all lists gives the runs.",
        "Where a value is itself a list, a grid is a list of lists: `nkerns: [[20, 50], [10]]`.",
        "",
    ]
    by_model = {model: experiment_schema(model)["properties"] for model in MODELS}
    union = {key: value for keys in by_model.values() for key, value in keys.items()}
    plots = properties["plots"]["properties"]
    lines += [*_table(by_model, union), "", "## `plots`", "", *_table({"default": plots}, plots)]
    return "\n".join(lines) + "\n"


def _table(columns, keys):
    """Return the lines of a table of ``keys``, with a column of defaults per entry of columns."""
    lines = [f"| key | {' | '.join(columns)} | allowed | meaning |"]
    lines += ["| --- |" + " --- |" * (len(columns) + 2)]
    for key in keys:
        defaults = [_default(column, key) for column in columns.values()]
        allowed = " or ".join(MODELS) if key == "model" else _by_column(columns, key, _allowed)
        description = _by_column(columns, key, lambda one: " ".join(one["description"].split()))
        lines.append(f"| `{key}` | {' | '.join(defaults)} | {allowed} | {description} |")
    return lines


def _by_column(columns, key, text):
    """Return ``text`` of a key's schema; where columns differ in it each, after their names."""
    found = {}
    for name, properties in columns.items():
        if key in properties:
            found.setdefault(text(properties[key]), []).append(name)
    if len(found) == 1:
        return next(iter(found))
    parts = (f"{', '.join(names)}: {one.removesuffix('.')}" for one, names in found.items())
    return "; ".join(parts) + ("." if next(iter(found)).endswith(".") else "")


def _default(properties, key):
    if key not in properties:
        return "–"
    return f"`{yaml_scalar(properties[key]['default'])}`" if "default" in properties[key] else ""


def _whole_pattern(validator, pattern, instance, schema):
    """Check ``pattern`` against all of a text: its $ alone would let an end of line pass."""
    if validator.is_type(instance, "string") and not re.fullmatch(pattern, instance):
        yield jsonschema.ValidationError(f"does not match {pattern}")


def _sane_type(validator, types, instance, schema):
    """Check ``type``; that a whole number is one that fits into an integer of the kernels, too."""
    standard = jsonschema.Draft202012Validator.VALIDATORS["type"]
    yield from standard(validator, types, instance, schema)
    is_whole = "integer" in types and validator.is_type(instance, "integer")
    if is_whole and abs(instance) > LARGEST_INTEGER:
        yield jsonschema.ValidationError("is too large")


_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator, {"pattern": _whole_pattern, "type": _sane_type}
)


def _findings(instance, schema, path=()):
    """Return what is wrong with ``instance``, which stands at ``path`` of the configuration."""
    validator = _Validator(schema)
    errors = sorted(validator.iter_errors(instance), key=lambda error: dotted(error.absolute_path))
    findings = [finding for error in errors for finding in _describe(error, path)]
    return findings + _non_finite(instance, path)


def _grid_findings(settings, path):
    """Return what is wrong with an experiment whose keys may hold lists of values."""
    if settings["model"] not in [*MODELS]:
        return _experiment_findings(settings, path)
    schema = experiment_schema(settings["model"])
    grid, length = varied_hyperparameters(settings), 0
    findings = _findings({k: v for k, v in settings.items() if k not in grid}, schema, path)
    for key, values in grid.items():
        name = dotted([*path, key])
        if not values:
            allowed = _allowed(schema["properties"][key])
            findings.append(f"{name} is an empty list; allowed: {allowed}, or a list of these")
        for value in values:
            findings += _findings({"model": settings["model"], key: value}, schema, path)
        words = [_word(_with_defaults(value, schema["properties"][key])) for value in values]
        twice = sorted(word for word, count in Counter(words).items() if count > 1)
        findings += [f"{name} lists {shown(word)} twice" for word in twice]
        length += len(f"{key}={max(words, key=len, default='')}+")
    if length > MOST_LETTERS:
        findings.append(
            f"{dotted(path)} has runs with names of {length} letters, for the values of its grid "
            f"name them; allowed: {MOST_LETTERS}"
        )
    return findings


def _experiment_findings(settings, path=()):
    if settings["model"] not in [*MODELS]:
        key, model = dotted([*path, "model"]), settings["model"]
        return [f"{key} is {shown(repr(model))}; allowed: {' or '.join(MODELS)}"]
    return _findings(settings, experiment_schema(settings["model"]), path)


def raise_findings(findings, where):
    """Raise UserError, with a line for each of ``findings`` (list of str), if there are any."""
    if findings:
        lines = [*dict.fromkeys(f"- {finding}" for finding in findings)]  # each once
        if len(lines) > MOST_FINDINGS:
            lines[MOST_FINDINGS:] = [f"- and {len(lines) - MOST_FINDINGS} more"]
        raise UserError("\n".join([f"the {where} cannot be used:", *lines]))


def _describe(error, path):
    """Yield a finding or more for one jsonschema error: key, value, what is allowed."""
    path = [*path, *error.absolute_path]
    schema = error.schema
    if error.validator == "additionalProperties":
        allowed = list(schema["properties"])
        for unknown in sorted(set(error.instance) - set(allowed), key=str):
            close = difflib.get_close_matches(str(unknown), allowed, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            name = dotted([*path, unknown])
            yield f"{name} is not a known key{hint}; allowed: {', '.join(allowed)}"
    elif error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        for name in missing:
            hint = _written_as(name, error.instance)
            yield f"{dotted([*path, name])} is missing{hint}; {_meaning(schema, name)}"
    elif "propertyNames" in error.absolute_schema_path:
        yield (
            f"the experiment name {shown(repr(error.instance))} is not allowed: it names a folder; "
            "allowed: letters, digits, '_', '-' and '.', starting with a letter or digit, "
            f"at most {schema['maxLength']} of them"
        )
    else:
        value = shown(repr(error.instance))
        text = f"{dotted(path)} is {value}; allowed: {_allowed(schema)}"
        yield text + _text_hint(error)


def _written_as(name, instance):
    """Return a hint at the key of ``instance`` that may have been meant to be ``name``."""
    keys = [key for key in instance if isinstance(key, str)]
    close = difflib.get_close_matches(name, keys, n=1)
    return f" (there is {shown(close[0])}; did you mean {name}?)" if close else ""


def _name_finding(name):
    """Return what is wrong with the name of an experiment that is not text (str)."""
    kinds = {bool: "a truth", int: "a number", float: "a number", type(None): "nothing"}
    kind = kinds.get(type(name), "a date")  # of which there are two types
    read = shown(yaml_scalar(name))
    return f"an experiment name is not text: YAML reads it as {read} ({kind}); write it in quotes"


def _unknown_colormap(config, schema):
    default = schema["properties"]["plots"]["properties"]["colormap"]["default"]
    plots = config.get("plots")
    name = plots.get("colormap") if isinstance(plots, dict) else None
    if not isinstance(name, str) or name == default:
        return []  # Matplotlib takes half a second to load
    from msgd.plots import matplotlib  # as imported there: kept from others' settings

    colormaps = matplotlib.colormaps
    close = difflib.get_close_matches(name, list(colormaps), n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    allowed = "the name of a Matplotlib colour map"
    if name in colormaps:
        return []
    return [f"plots.colormap is {shown(repr(name))}; allowed: {allowed}{hint}"]


def _meaning(schema, name):
    description = schema.get("properties", {}).get(name, {}).get("description", "")
    return f"it says: {description}" if description else "it must be given"


def _text_hint(error):
    """Return a hint where text stands for an allowed value: 1e-3 without a dot, 0,1, quotes."""
    if error.validator == "type" and error.message == "is too large":
        return f", at most {LARGEST_INTEGER}"
    text = error.instance
    if not isinstance(text, str):
        return ""
    meant = [_meant(text.replace(",", "."))]
    if "," in text or "[" in text:
        meant.append([_meant(item) for item in text.strip("[]").split(",")])
    meant = [*filter(_Validator(error.schema).is_valid, meant)]
    if not meant:
        return ""
    written = f"write {' or '.join(map(yaml_scalar, meant))}"
    if yaml_scalar(text) == text:
        return f" (YAML reads {shown(text)} as text; {written} without quotes)"
    return (
        f" (it is text here, by its quotes or by --config; {written} in the file, without quotes)"
    )


def _meant(text):
    """Return the number, truth or None that ``text`` would be without quotes, or ``text``."""
    words = {"true": True, "false": False, "null": None}
    try:
        number = float(text)
    except ValueError:
        return words.get(text, text)
    if not math.isfinite(number):
        return text
    is_whole = number.is_integer() and abs(number) <= LARGEST_INTEGER
    return int(number) if is_whole else number


def _allowed(schema):
    """Return in words what ``schema`` allows: type, choice, range."""
    if "enum" in schema:
        return " or ".join(str(choice) for choice in schema["enum"])
    types = schema.get("type", "value")
    names = {
        "array": "a list",
        "integer": "a whole number",
        "number": "a number",
        "string": "text",
        "object": "a mapping of keys to values",
        "boolean": "true or false",
        "null": "null",
    }
    words = [names.get(name, name) for name in ([types] if isinstance(types, str) else types)]
    if "items" in schema:
        most = f" (at most {schema['maxItems']})" if "maxItems" in schema else ""
        items = f"a list of {_allowed(schema['items'])}{most}"
        words = [w if w != "a list" else items for w in words]
    if "pattern" in schema:
        words = [schema["pattern"].strip("^$") if w == "text" else w for w in words]
    lower = {"minimum": ">=", "exclusiveMinimum": ">"}
    bounds = {**lower, "maximum": "<=", "exclusiveMaximum": "<"}
    ranges = [f"{sign} {schema[bound]}" for bound, sign in bounds.items() if bound in schema]
    if ranges:
        words[0] += " " + " and ".join(ranges)
    if schema.get("minProperties") or schema.get("minLength"):
        words[0] += ", not empty"
    return " or ".join(words)


def _non_finite(value, path):
    """Return a finding for every nan or infinity: JSON Schema's ranges let nan pass."""
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{dotted(path)} is {value}; allowed: a finite number"]
    if isinstance(value, dict):
        return [finding for key in value for finding in _non_finite(value[key], (*path, key))]
    if isinstance(value, list):
        return [finding for one in value for finding in _non_finite(one, path)]
    return []


def dotted(path):
    """Return the name of the place ``path`` (keys) in a configuration, as in experiments.a.seed."""
    return ".".join(shown(part) for part in path) or "the configuration"


def _canonical(value, types):
    """Return ``value`` in the one form that equal numbers have: 0 as 0.0 where fractions may be."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return copy.deepcopy(value)
    if "integer" in types:
        return int(value)
    return float(value) if "number" in types else value


def _with_defaults(instance, schema):
    """Return a deep copy of valid ``instance`` with every default of ``schema`` filled in."""
    if not isinstance(instance, dict):
        return _canonical(instance, schema.get("type", ""))
    properties = schema.get("properties", {})
    complete = {}
    for key, subschema in properties.items():
        if key in instance or "default" in subschema:
            value = instance.get(key, subschema.get("default"))
            complete[key] = _with_defaults(value, subschema)
    return complete
