"""The configuration: defaults, and what is said of keys and values that cannot be used."""

import copy
import re

import pytest
import yaml
from conftest import ROOT, needs_shipped_config

from msgd import config, config_file
from msgd.errors import UserError
from msgd.models import CLASSIFIERS, MODELS, STACKS, UNSUPERVISED


def minimal(**settings):
    return {"experiments": {"lr": {"model": "logistic_regression", **settings}}}


def test_defaults_are_filled_in():
    complete = config.complete_config(minimal())
    assert complete["dataset"] == "mnist"
    assert complete["plots"]["dpi"] == 110
    assert complete["experiments"]["lr"]["learning_rate"] == 0.13
    assert complete["experiments"]["lr"]["validation_frequency"] is None


def test_the_given_configuration_is_not_changed():
    given = minimal()
    complete = config.complete_config(given)
    complete["experiments"]["lr"]["seed"] = 5
    assert given == minimal()


def test_a_schema_belongs_to_whoever_asked_for_it():
    """Though its file is parsed once: experiment_schema, for one, adds and deletes keys."""
    first = config.load_schema(), config.experiment_schema("lenet")
    kept = copy.deepcopy(first)
    for schema in first:
        schema["properties"].clear()
    first[0]["$defs"]["experiment"]["properties"].clear()
    assert (config.load_schema(), config.experiment_schema("lenet")) == kept
    lists = config.experiment_schema("lenet")["properties"]["nkerns"]["default"]
    lists.append(7)
    assert config.experiment_schema("lenet") == kept[1]


@needs_shipped_config
def test_config_yaml_shows_the_defaults():
    """The first experiment shows every key, and no stale values; the others cut epochs."""
    shown = yaml.safe_load((ROOT / "config.yaml").read_text())
    models = {"logistic_regression": {"model": "logistic_regression"}}
    expected = config.complete_config({"experiments": models})
    assert shown["experiments"].pop("logistic_regression") == (
        expected["experiments"].pop("logistic_regression")
    )
    assert {name: set(run) for name, run in shown.pop("experiments").items()} == {
        "mlp": {"model", "n_epochs"},
        "lenet": {"model", "n_epochs"},
        "auto_encoder": {"model", "n_hidden", "n_epochs"},
    }
    del expected["experiments"]
    assert shown == expected


def test_the_tutorial_configuration_is_the_published_one():
    shown = yaml.safe_load((ROOT / "config" / "tutorial.yaml").read_text())
    for name, run in shown["experiments"].items():
        assert run == {"model": name}
    assert set(shown["experiments"]) == set(CLASSIFIERS) - set(STACKS)
    config.complete_config(shown)


def test_pretraining_is_all_that_differs_where_it_is_said_to():
    shown = config.complete_config(
        yaml.safe_load((ROOT / "config" / "pretraining.yaml").read_text())
    )
    without, with_it = config.expand_grid(shown["experiments"]["deep"]).values()
    assert without.pop("pretraining_epochs") == 0
    assert with_it.pop("pretraining_epochs") > 0
    assert without == with_it
    page = (ROOT / "docs" / "unsupervised.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"```yaml\n(experiments:\n  deep:.*?)```", page, re.DOTALL)
    assert config.complete_config(yaml.safe_load(told))["experiments"] == shown["experiments"]


def test_the_configuration_without_labels_is_the_published_one():
    shown = yaml.safe_load((ROOT / "config" / "unsupervised.yaml").read_text())
    models = {run["model"] for run in shown["experiments"].values()}
    assert models == {*UNSUPERVISED, *STACKS}
    for name, run in shown["experiments"].items():
        published = config.complete_experiment({"model": run["model"]})
        if name == "da_uncorrupted":
            published["corruption"] = 0.0
        assert config.complete_experiment(run) == published
    config.complete_config(shown)


def test_the_page_of_keys_is_up_to_date():
    page = (ROOT / "config" / "README.md").read_text()
    assert page == config.describe_config(), "run msgd describe-config --output config/README.md"


def test_the_page_of_keys_says_where_models_differ():
    """The units of a hidden layer may be a list in some models; epochs are a cap in some."""
    rows = [line.split(" | ") for line in config.describe_config().splitlines()]
    allowed, meaning = {row[0]: row[-2:] for row in rows if len(row) > 3}["| `n_hidden`"]
    assert allowed == (
        "mlp, lenet, sda, dbn: a whole number >= 1 and <= 1000000 or a list of a whole number >= 1 "
        "and <= 1000000 (at most 100); da, ca, rbm: a whole number >= 1 and <= 1000000"
    )
    assert meaning.startswith("mlp, lenet, sda, dbn: Units of the hidden layer, or a list")


def test_every_key_is_described():
    schema = config.load_schema()
    groups = [schema, schema["properties"]["plots"], *map(config.experiment_schema, MODELS)]
    for group in groups:
        assert group["additionalProperties"] is False
        for key, value in group["properties"].items():
            assert len(value["description"]) > 20, key


def named(name):
    """Return a configuration of an experiment whose name stands in the file without quotes."""
    return yaml.safe_load(f"experiments: {{{name}: {{model: mlp}}}}")


BAD = {
    "misspelt key": (
        minimal(learning_rte=0.1),
        r"experiments\.lr\.learning_rte is not a known key \(did you mean learning_rate\?\)",
    ),
    "misspelt top key": ({**minimal(), "backnd": "cpu"}, r"backnd is not .*did you mean backend"),
    "unknown plot key": ({**minimal(), "plots": {"dip": 3}}, r"plots\.dip is not a known key"),
    "no experiments": ({"backend": "cpu"}, r"experiments is missing"),
    "empty experiments": ({"experiments": {}}, r"experiments is \{\}; allowed: .*not empty"),
    "an experiment of nothing": ({"experiments": {"a": None}}, r"experiments\.a is None; allowed"),
    "no model": ({"experiments": {"a": {}}}, r"experiments\.a\.model is missing"),
    "unknown model": (
        minimal(model="perceptron"),
        r"experiments\.lr\.model is 'perceptron'; allowed: logistic_regression",
    ),
    "negative rate": (
        minimal(learning_rate=-0.1),
        r"experiments\.lr\.learning_rate is -0\.1; allowed: a number > 0",
    ),
    "zero rate": (minimal(learning_rate=0), r"learning_rate is 0; allowed: a number > 0"),
    "rate as text": (
        minimal(learning_rate="1e-3"),
        r"is '1e-3'; .*YAML reads 1e-3 as text; write 0\.001",
    ),
    "rate nan": (minimal(learning_rate=float("nan")), r"learning_rate is nan; .*finite"),
    "infinite penalty": (minimal(l2=float("inf")), r"l2 is inf; allowed: a finite number"),
    "negative penalty": (minimal(l1=-1e-4), r"l1 is -0\.0001; allowed: a number >= 0"),
    "zero patience": (minimal(patience=0), r"patience is 0; allowed: a whole number >= 1"),
    "fractional batch": (minimal(batch_size=0.5), r"batch_size is 0\.5; allowed: a whole number"),
    "zero batch": (minimal(batch_size=0), r"batch_size is 0; allowed: a whole number >= 1"),
    "a truth for a number": (minimal(n_epochs=True), r"n_epochs is True; allowed: a whole number"),
    "threshold above 1": (
        minimal(improvement_threshold=1.2),
        r"improvement_threshold is 1\.2; allowed: a number > 0 and <= 1",
    ),
    "shrinking patience": (minimal(patience_increase=0.5), r"patience_increase is 0\.5"),
    "zero frequency": (
        minimal(validation_frequency=0),
        r"validation_frequency is 0; allowed: a whole number >= 1 or null",
    ),
    "a bad value in a grid": (minimal(l1=[0, -1]), r"lr\.l1 is -1; allowed: a number >= 0"),
    "a value twice": (minimal(batch_size=[20, 20.0]), r"lr\.batch_size lists 20 twice"),
    "a grid of nothing": (minimal(l1=[]), r"l1 is an empty list; allowed: .*or a list of these"),
    "a list of models": (minimal(model=["mlp", "lenet"]), r"model is \['mlp', 'lenet'\]; allowed"),
    "unknown backend": ({**minimal(), "backend": "gpu"}, r"is 'gpu'; allowed: auto or cpu or cuda"),
    "unknown float": ({**minimal(), "floatX": "float16"}, r"floatX is 'float16'; allowed: float32"),
    "a truth in quotes": ({**minimal(), "tensorboard": "yes"}, r"is 'yes'; allowed: true or false"),
    "unknown arithmetic": (
        {**minimal(model="lenet", arithmetic="tf23"), "backend": "cuda"},
        r"lr\.arithmetic is 'tf23'; allowed: float32 or tf32",
    ),
    "arithmetic of a model that has none": (
        {**minimal(arithmetic="tf32"), "backend": "cuda"},
        r"lr\.arithmetic is not a known key",
    ),
    "unknown colours": (
        {**minimal(), "plots": {"colormap": "RdBu_q"}},
        r"plots\.colormap is 'RdBu_q'; .*did you mean RdBu",
    ),
    "a year for a name": (
        {"experiments": {2010: {"model": "mlp"}}},
        r"name is not text: YAML reads it as 2010 \(a number\); write it in quotes",
    ),
    "nothing for a name": (named("null"), r"YAML reads it as null \(nothing\); write it in quotes"),
    "a truth for a name": (named("yes"), r"YAML reads it as true \(a truth\); write it in quotes"),
    "a date for a name": (named("2024-01-01"), r"YAML reads it as 2024-01-01 \(a date\); write"),
    "a moment for a name": (named("2024-01-01 10:00:00"), r"as 2024-01-01 10:00:00 \(a date\)"),
    "a misspelt model": (
        {"experiments": {"a": {"modell": "mlp"}}},
        r"experiments\.a\.model is missing \(there is modell; did you mean model\?\); it must be",
    ),
    "misspelt experiments": (
        {"experiment": {"a": {"model": "mlp"}}},
        r"experiments is missing \(there is experiment; did you mean experiments\?\); it says: ",
    ),
    "a name that is a path": (
        {"experiments": {"../x": {"model": "logistic_regression"}}},
        r"experiment name '\.\./x' is not allowed",
    ),
}


@pytest.mark.parametrize("finding", BAD)
def test_what_cannot_be_used_is_reported(finding):
    given, message = BAD[finding]
    with pytest.raises(UserError, match=message):
        config.complete_config(given)


IN_THE_FILE = "it is text here, by its quotes or by --config; write {} in the file, without quotes"
AS_TEXT = "YAML reads {} as text; write {} without quotes"
# A key, text in the place of its value, and the hint at what may have been meant.
TEXTS = [
    ("learning_rate", "1e-3", AS_TEXT.format("1e-3", "0.001")),
    ("learning_rate", "0,1", AS_TEXT.format("0,1", "0.1")),
    ("learning_rate", "0.1", IN_THE_FILE.format("0.1")),
    ("n_epochs", "1e3", AS_TEXT.format("1e3", "1000")),
    ("n_epochs", "110", IN_THE_FILE.format("110")),
    ("batch_size", "20", IN_THE_FILE.format("20")),
    ("n_hidden", "8,8", AS_TEXT.format("8,8", "[8, 8]")),
    ("n_hidden", "[8,8]", IN_THE_FILE.format("[8, 8]")),
    ("n_hidden", "8", IN_THE_FILE.format("8")),
    ("validation_frequency", "null", IN_THE_FILE.format("null")),
    ("corruption", "0,1", AS_TEXT.format("0,1", "0.1")),
    ("corruption", "0,0.1", AS_TEXT.format("0,0.1", "[0, 0.1]")),
    # Where nothing that is allowed was meant.
    *(("learning_rate", text, None) for text in ("nan", ".inf", "-0,1", "fast", "", "1e999")),
    *(("n_epochs", text, None) for text in ("1,5", "0", "8,8", "1e300")),
    *(("n_hidden", text, None) for text in ("8,a", "8,,8", "[]")),
]


@pytest.mark.parametrize(("key", "text", "hint"), TEXTS)
def test_what_text_may_have_meant_is_said(key, text, hint):
    given = {"experiments": {"a": {"model": "sda" if key == "corruption" else "mlp", key: text}}}
    with pytest.raises(UserError) as raised:
        config.complete_config(given)
    (finding,) = str(raised.value).splitlines()[1:]
    assert f"{key} is '{text}'; allowed: " in finding
    if hint:
        assert finding.endswith(f" ({hint})")
    assert hint or "write" not in finding


def test_what_config_on_the_command_line_makes_text_is_hinted_at():
    given = {**minimal(), "plots": {"dpi": "110", "all_runs": "true"}, "tensorboard": "false"}
    with pytest.raises(UserError) as raised:
        config.complete_config(given)
    for value in ("110", "true", "false"):
        assert f"({IN_THE_FILE.format(value)})" in str(raised.value)


TWICE = {
    "an experiment": (
        "experiments:\n  a: {model: mlp}\n  b: {model: mlp}\n  a: {model: lenet}\n",
        "experiments.a is given in line 2 and in line 4; keep one",
    ),
    "a hyperparameter": (
        "experiments:\n  a:\n    model: mlp\n    l1: 0.1\n    l1: 0.2\n",
        "experiments.a.l1 is given in line 4 and in line 5; keep one",
    ),
    "in a list, and as JSON": (
        '{"other": [1, {"x": 1,\n"x": 2}]}',
        "other.1.x is given in line 1 and in line 2; keep one",
    ),
}


@pytest.mark.parametrize("kind", TWICE)
def test_what_is_given_twice_is_reported(kind, tmp_path):
    text, finding = TWICE[kind]
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        config_file.read_file(tmp_path / "config.yaml")
    assert str(caught.value).splitlines()[1:] == [f"- {finding}"]


def test_what_is_given_once_may_stand_in_many_places(tmp_path):
    """A hundred million copies are too many, though the file is small."""
    lines = [
        "a: &a {x: 1}",
        "b: {<<: *a, <<: *a, y: 2}",
        "c: {x: 1}",
        "l0: &l0 [1]",
    ]
    lists = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 9)]
    path = tmp_path / "config.yaml"
    path.write_text("\n".join(lines + lists[:4]))
    assert len(config_file.read_file(path)["l4"]) == 10
    path.write_text("\n".join(lines + lists))
    with pytest.raises(UserError, match=r"more than 100,000 values where its anchors are written"):
        config_file.read_file(path)
    path.write_text('{\n\t"experiments": {"a": {"model": "mlp"}}\n}')  # JSON, which has tabs
    assert config_file.read_file(path) == {"experiments": {"a": {"model": "mlp"}}}


def test_all_findings_are_listed_at_once():
    with pytest.raises(UserError) as caught:
        config.complete_config({**minimal(patience=0, l1=-1), "backend": "gpu"})
    assert str(caught.value).count("\n- ") == 3


def test_sizes_are_checked_against_the_training_set():
    experiments = config.complete_config(minimal(batch_size=51))["experiments"]
    config.check_split_sizes(experiments, 51)
    with pytest.raises(UserError, match=r"lr\.batch_size is 51; allowed: at most 50, the number"):
        config.check_split_sizes(experiments, 50)


@pytest.mark.parametrize("arithmetic", ["tf32", ["float32", "tf32"]])
@pytest.mark.parametrize(
    "where",
    [
        *[{"backend": backend} for backend in ("auto", "cpu", "reference")],
        {"backend": "cuda", "floatX": "float64"},
    ],
)
def test_tf32_is_refused_where_nothing_computes_it(where, arithmetic):
    given = {"experiments": {"a": {"model": "mlp"}, "b": {"model": "lenet"}}}
    given["experiments"]["b"]["arithmetic"] = arithmetic
    found = f"not with {where['backend']} and {where.get('floatX', 'float32')}"
    with pytest.raises(UserError, match=rf"\n- experiments\.b\.arithmetic is tf32, .*{found}$"):
        config.complete_config({**given, **where})
    config.complete_config({**given, "backend": "cuda"})
    given["experiments"]["b"]["arithmetic"] = "float32"
    config.complete_config({**given, **where})


def test_a_run_that_would_end_before_its_first_validation_is_reported():
    settings = {"batch_size": 10, "n_epochs": 2, "validation_frequency": 11}
    experiments = config.complete_config(minimal(**settings))["experiments"]
    config.check_split_sizes(experiments, 60)
    with pytest.raises(UserError, match=r"validation_frequency is 11; allowed: at most 10"):
        config.check_split_sizes(experiments, 50)


def test_a_validation_at_the_last_possible_minibatch_is_allowed():
    experiments = config.complete_config(minimal(patience=20, validation_frequency=21))[
        "experiments"
    ]
    config.check_split_sizes(experiments, 50_000)
    experiments["lr"]["validation_frequency"] = 22
    with pytest.raises(UserError, match=r"validation_frequency is 22; allowed: at most 21"):
        config.check_split_sizes(experiments, 50_000)


def test_all_means_the_whole_training_set():
    experiments = config.complete_config(minimal(batch_size="all"))["experiments"]
    assert config.resolve_batch_size(experiments["lr"], 70)["batch_size"] == 70
    config.check_split_sizes(experiments, 70)
    with pytest.raises(UserError, match=r"batch_size is 'some'; allowed: .*>= 1 or all"):
        config.complete_config(minimal(batch_size="some"))


def test_whole_numbers_written_as_floats_become_whole():
    settings = config.complete_config(minimal(batch_size=600.0))["experiments"]["lr"]
    assert type(settings["batch_size"]) is int


def test_hyperparameter_words_come_back():
    settings = config.complete_config(minimal(learning_rate=1e-7, l2=0.5))["experiments"]["lr"]
    words = config.hyperparameter_words(settings)
    assert "validation_frequency=null" in words
    back = config.complete_experiment(config.parse_hyperparameter_words(words))
    assert back == settings


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["learning_rate"], "write key=value"),
        (["l1=0", "l1=0"], "is given twice"),
        (["n_hidden=[8,8"], "n_hidden=[8,8 is not readable as YAML: expected ',' or ']'"),
        (["seed=*a"], "seed=*a is not readable as YAML: found undefined alias"),
        (["seed=\x01"], "seed=\\x01 is not readable as YAML: unacceptable character"),
        (["seed=2024-13-45"], "seed=2024-13-45 is not readable as YAML: month must be in 1..12"),
        (["seed=" + "9" * 5000], "is not readable as YAML: Exceeds the limit"),
        (["seed=" + "[" * 5000], "is not readable as YAML: maximum recursion depth"),
    ],
)
def test_malformed_words_are_reported(words, fault):
    with pytest.raises(UserError) as raised:
        config.parse_hyperparameter_words(words)
    (line,) = str(raised.value).splitlines()
    assert line.startswith("hyperparameter ")
    assert fault in line
    assert len(line) < 300


def test_a_misspelt_model_among_words_is_told_of():
    with pytest.raises(UserError, match=r"model is missing \(there is modell; did you mean model"):
        config.complete_experiment({"modell": "mlp"})


def runs_of(**settings):
    return config.expand_grid(config.complete_config(minimal(**settings))["experiments"]["lr"])


def test_lists_of_values_make_a_grid():
    runs = runs_of(seed=[2, 1], learning_rate=[0.1, 1e-05], l2=0.5)
    assert list(runs) == [
        "learning_rate=0.1+seed=2",
        "learning_rate=0.1+seed=1",
        "learning_rate=1e-05+seed=2",
        "learning_rate=1e-05+seed=1",
    ]
    run = runs["learning_rate=1e-05+seed=1"]
    assert (run["learning_rate"], run["seed"], run["l2"]) == (1e-05, 1, 0.5)


def test_without_lists_there_is_one_run():
    assert list(runs_of(learning_rate=0.1)) == ["default"]
    assert list(runs_of(learning_rate=[0.1])) == ["learning_rate=0.1"]


def test_a_list_that_is_a_value_is_no_grid():
    assert list(runs_of(model="lenet", nkerns=[20, 50], n_hidden=[9, 8])) == ["default"]
    runs = runs_of(model="lenet", nkerns=[[20, 50], [10]], n_hidden=[[9], [9, 8]])
    assert list(runs) == [
        "nkerns=20-50+n_hidden=9",
        "nkerns=20-50+n_hidden=9-8",
        "nkerns=10+n_hidden=9",
        "nkerns=10+n_hidden=9-8",
    ]


def test_values_in_a_grid_are_completed_and_named_alike():
    runs = runs_of(batch_size=[600.0, "all"], validation_frequency=[None])
    assert list(runs) == [
        "batch_size=600+validation_frequency=null",
        "batch_size=all+validation_frequency=null",
    ]
    assert type(runs["batch_size=600+validation_frequency=null"]["batch_size"]) is int


def compared(**settings):
    complete = config.complete_config(minimal(**settings))
    return config.compared_hyperparameters(complete["experiments"]["lr"])


def test_runs_are_compared_over_what_has_several_values():
    assert compared(seed=[1, 2], l2=[0.0], learning_rate=[0.1, 0.2]) == ["learning_rate"]
    assert compared(model="lenet", nkerns=[[9], [8]], l2=[0, 1]) == ["l2", "nkerns"]
    assert compared(model="lenet", nkerns=[9, 8]) == []


def test_seeds_are_compared_where_nothing_else_varies():
    assert compared(seed=[1, 2], l2=[0.0]) == ["seed"]
    assert compared(seed=[1]) == []


def test_one_run_takes_no_grid():
    with pytest.raises(UserError, match=r"learning_rate is \[0\.1\]; allowed: a number > 0"):
        config.complete_experiment({"model": "logistic_regression", "learning_rate": [0.1]})


def test_every_run_of_a_grid_is_checked_against_the_training_set():
    experiments = config.complete_config(minimal(batch_size=[50, 51], seed=[1, 2]))["experiments"]
    config.check_split_sizes(experiments, 51)
    with pytest.raises(UserError, match=r"lr\.batch_size is 51; allowed: at most 50") as caught:
        config.check_split_sizes(experiments, 50)
    assert str(caught.value).count("\n- ") == 1


# Models that learn without labels, as far as they are registered.

WITHOUT_LABELS = [name for name in UNSUPERVISED if name in MODELS]
# {(model, key): {a value that is not allowed: what is said to be}}
BAD_WITHOUT_LABELS = {
    ("da", "corruption"): {1: "a number >= 0 and < 1", -0.1: ">= 0", "much": "a number"},
    ("ca", "contraction"): {-0.1: "a number >= 0"},
    ("rbm", "gibbs_steps"): {0: "a whole number >= 1", 1.5: "a whole number >= 1"},
    ("rbm", "persistent"): {"yes please": "true or false", 1: "true or false"},
}


@pytest.mark.parametrize("model", WITHOUT_LABELS)
def test_what_learns_without_labels_has_one_layer_and_no_patience(model):
    complete = config.complete_experiment({"model": model})
    assert isinstance(complete["n_hidden"], int)
    assert not {"patience", "validation_frequency", "improvement_test"} & set(complete)
    with pytest.raises(UserError, match=r"n_hidden is '?\[?.*allowed: a whole number >= 1"):
        config.complete_experiment({"model": model, "n_hidden": "many"})
    grid = config.complete_config({"experiments": {"a": {"model": model, "n_hidden": [5, 6]}}})
    assert [*config.expand_grid(grid["experiments"]["a"])] == ["n_hidden=5", "n_hidden=6"]
    with pytest.raises(UserError, match="patience is not a known key"):
        config.complete_experiment({"model": model, "patience": 5})


@pytest.mark.parametrize(("model", "key"), [k for k in BAD_WITHOUT_LABELS if k[0] in MODELS])
def test_what_a_key_of_theirs_must_be_is_said(model, key):
    for value, allowed in BAD_WITHOUT_LABELS[model, key].items():
        with pytest.raises(UserError, match=f"{key} is {value!r}; allowed: .*{allowed}"):
            config.complete_experiment({"model": model, key: value})


# Stacks of layers that do.


def test_a_stack_takes_a_corruption_for_all_layers_or_one_of_each():
    for shares, units in ((0.5, [4, 3]), ([0.1, 0.2], [4, 3]), ([0.1], 4), (0.1, 4)):
        run = {"model": "sda", "corruption": shares, "n_hidden": units}
        assert config.complete_experiment(run)["corruption"] == shares
        assert [*config.expand_grid(config.complete_experiment(run))] == ["default"]
    message = r"corruption is \[0.1, 0.2\], but n_hidden has 1 layer; allowed: a share for each"
    with pytest.raises(UserError, match=message):
        config.complete_experiment({"model": "sda", "corruption": [0.1, 0.2], "n_hidden": 4})
    grid = {"model": "sda", "n_hidden": [[4], [4, 3]], "corruption": [[0.1, 0.2], [0.2, 0.3]]}
    with pytest.raises(UserError, match=r"experiments\.a\.corruption is") as caught:
        config.complete_config({"experiments": {"a": grid}})
    assert str(caught.value).count("\n- ") == 2
    with pytest.raises(UserError, match=r"corruption.* is 1; allowed: a number >= 0 and < 1"):
        config.complete_experiment({"model": "sda", "corruption": [0.1, 1, 0.2]})


@pytest.mark.parametrize("model", STACKS)
def test_a_minibatch_of_pretraining_fits_the_data(model):
    settings = config.complete_experiment({"model": model, "pretraining_batch_size": 51})
    config.check_split_sizes({"": settings}, 51)
    with pytest.raises(UserError, match="pretraining_batch_size is 51; allowed: at most 50"):
        config.check_split_sizes({"": settings}, 50)


def test_a_bound_that_is_not_allowed_itself_is_said():
    schema = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    assert config._allowed(schema) == "a number >= 0 and < 1"


def test_truth_values_stand_in_names_and_words_as_in_yaml():
    assert config._word(True) == "true"
    assert config._word([False, None, 3]) == "false-null-3"
    words = ["model=rbm", f"persistent={config.yaml_scalar(False)}"]
    assert config.parse_hyperparameter_words(words) == {"model": "rbm", "persistent": False}
