"""MSGDClassifier: scikit-learn's own checks, the bytes of ``msgd train``, data of every kind."""

import inspect
import io
import pickle
import re
import subprocess
import sys
import tempfile
import warnings
from ctypes.util import find_library

import conftest
import joblib
import numpy as np
import oracle
import oracle_lenet
import pandas as pd
import pytest
import scipy.sparse
import toy
from sklearn.base import clone
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from msgd.cli import main
from msgd.config import complete_experiment, experiment_schema
from msgd.files import read_json
from msgd.models import CLASSIFIERS, STACKS, UNSUPERVISED, cpu_backend, load_model
from msgd.sklearn import HYPERPARAMETERS, MADE_FOR, MSGDClassifier
from msgd.training.snapshots import load_parameters

# As small as the checks' data sets; filters of one pixel fit images of any number of features.
CHECKED = [
    MSGDClassifier(n_epochs=30),
    MSGDClassifier("logistic_cg", n_epochs=10, floatX="float64"),
    MSGDClassifier("mlp", n_hidden=(8, 8), n_epochs=30, learning_rate=0.1, floatX="float64"),
    MSGDClassifier(
        "lenet",
        nkerns=[2, 3],
        filter_size=1,
        pool_size=1,
        n_hidden=8,
        n_epochs=30,
        batch_size=30,
        floatX="float64",
    ),
]
NETWORKS = [name for name in CLASSIFIERS if not name.startswith("logistic")]
EXPECTED_FAILURES = {}  # of scikit-learn's checks: name -> reason; docs/scikit-learn.md says none


@pytest.mark.filterwarnings("ignore:.*training rows are left out", "ignore:.*it is lowered to")
@parametrize_with_checks(CHECKED[:2], expected_failed_checks=lambda estimator: EXPECTED_FAILURES)
def test_scikit_learn_finds_an_estimator_of_its_own(estimator, check):
    check(estimator)


@pytest.mark.slow  # their kernels of float64 take a minute to compile
@pytest.mark.filterwarnings("ignore:.*training rows are left out", "ignore:.*it is lowered to")
@parametrize_with_checks(CHECKED[2:], expected_failed_checks=lambda estimator: EXPECTED_FAILURES)
def test_scikit_learn_finds_an_estimator_of_its_own_in_networks(estimator, check):
    check(estimator)


def test_the_constructor_takes_every_hyperparameter_of_every_classifier():
    keys = {key for model in CLASSIFIERS for key in experiment_schema(model)["properties"]}
    assert set(HYPERPARAMETERS) == keys - {"seed"}
    parameters = inspect.signature(MSGDClassifier).parameters
    assert list(parameters)[: len(HYPERPARAMETERS)] == list(HYPERPARAMETERS)
    defaults = {parameters[key].default for key in HYPERPARAMETERS}
    assert defaults == {"logistic_regression", None}


@pytest.mark.parametrize("name", UNSUPERVISED)
def test_a_model_that_predicts_no_classes_is_refused(name):
    x, y = conftest.make_dataset(48, shape=toy.SHAPE).split("train")
    with pytest.raises(ValueError, match=f"'{name}', which learns from images without their"):
        MSGDClassifier(name).fit(x, y)
    assert not hasattr(MSGDClassifier(name), "partial_fit")


@pytest.mark.parametrize(
    "name", ["logistic_regression", *(pytest.param(m, marks=pytest.mark.slow) for m in NETWORKS)]
)
def test_what_is_not_given_is_the_default_of_the_model(name):
    x, y = conftest.make_dataset(48, shape=toy.SHAPE).split("train")
    fitted = MSGDClassifier(name, n_epochs=1, **toy.LAYERS.get(name, {})).fit(x, y)
    expected = toy.settings_of(name, n_epochs=1)
    assert fitted.settings_ == {**expected, "batch_size": min(expected["batch_size"], 40)}


# The same as msgd train.


def trained_by_the_program(folder, triple, words, float_x="float32"):
    """Return what ``msgd train`` leaves behind: (parameters, history, training.json)."""
    data, run = folder / "data", folder / "run"
    conftest.save_npz(folder / "data.npz", triple)
    options = ["--floatX", float_x]
    assert main(["unpickle", str(folder / "data.npz"), "--output", str(data), *options]) == 0
    assert main(["train", *words, "--data", str(data), "--run", str(run), *options]) == 0
    parameters = load_parameters(run / "best_parameters.npz")
    return parameters, pd.read_csv(run / "history.csv"), read_json(run / "training.json")


def assert_same_training(fitted, expected):
    parameters, history, outcome = expected
    assert list(fitted.parameters_) == list(parameters)
    for name, array in fitted.parameters_.items():
        assert array.dtype == parameters[name].dtype
        assert array.tobytes() == parameters[name].tobytes()
    text = pd.DataFrame(fitted.history_).to_csv(index=False)
    assert text == history.to_csv(index=False)
    share = outcome["validation_errors"] / outcome["validation_examples"]
    assert fitted.best_validation_error_ == share
    assert fitted.n_iter_ == outcome["epochs_run"]
    assert fitted.best_epoch_ == outcome["best_epoch"]
    assert fitted.stopped_by_ == outcome["stopped_by"]


# A deep belief network differs from the other stack in its layers alone.
SLOW = [pytest.param(n, marks=pytest.mark.slow) if n == "dbn" else n for n in CLASSIFIERS]


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("seed", [None, 7])
def test_the_bytes_are_those_of_msgd_train(tmp_path, name, seed):
    dataset = conftest.make_dataset(66, 20, 20, shape=toy.SHAPE)
    changes = {"batch_size": 10, "n_epochs": 4, "l2": 0.01}
    seeds = {} if seed is None else {"seed": seed}
    triple = [dataset.split(split) for split in ("train", "valid", "test")]
    words = toy.words_of(name, **changes, **seeds)
    expected = trained_by_the_program(tmp_path, triple, words)
    estimator = MSGDClassifier(
        name, **toy.LAYERS.get(name, {}), **changes, random_state=seed, shuffle=False
    )
    estimator.fit(*dataset.split("train"), X_val=dataset.valid_x, y_val=dataset.valid_y)
    assert_same_training(estimator, expected)


def test_the_last_sixth_validates_as_in_msgd_unpickle(tmp_path):
    dataset = conftest.make_dataset(65, 1, 20, pixels="float64")
    triple = {"train": dataset.split("train"), "test": dataset.split("test")}
    arrays = {f"{s}_{p}": a for s, pair in triple.items() for p, a in zip("xy", pair, strict=True)}
    np.savez(tmp_path / "data.npz", **arrays)
    data, run = tmp_path / "data", tmp_path / "run"
    floats = ["--floatX", "float64"]
    words = toy.words_of("logistic_regression", batch_size=5, n_epochs=3)
    assert main(["unpickle", str(tmp_path / "data.npz"), "--output", str(data), *floats]) == 0
    assert main(["train", *words, "--data", str(data), "--run", str(run), *floats]) == 0
    estimator = MSGDClassifier(batch_size=5, n_epochs=3, shuffle=False, floatX="float64")
    fitted = estimator.fit(*dataset.split("train"))
    found = load_parameters(run / "best_parameters.npz")
    assert {k: a.tobytes() for k, a in fitted.parameters_.items()} == {
        k: a.tobytes() for k, a in found.items()
    }


def test_a_pass_of_partial_fit_is_an_epoch_of_training():
    dataset = conftest.make_dataset(40, shape=toy.SHAPE)
    settings = toy.settings_of("mlp", batch_size=8)
    initial = load_model("mlp").initial_parameters(dataset, settings, np.float32)
    backend = toy.make_backend("cpu", dataset, settings, initial)
    estimator = MSGDClassifier("mlp", **toy.LAYERS["mlp"], batch_size=8)
    for epoch in range(3):
        backend.train(5 * epoch, 5 * epoch + 5)
        estimator.partial_fit(dataset.train_x, dataset.train_y, classes=[0, 1, 2])
        expected = backend.get_parameters()
        for name, array in estimator.parameters_.items():
            assert array.tobytes() == expected[name].tobytes()
    assert estimator.n_iter_ == 3


def test_partial_fit_goes_on_from_a_fit_and_knows_classes_it_has_not_seen():
    dataset = conftest.make_dataset(48)
    seen = dataset.train_y != 2
    estimator = MSGDClassifier(batch_size=5, learning_rate=0.5)
    with pytest.raises(ValueError, match="first call of partial_fit must be given classes"):
        estimator.partial_fit(dataset.train_x, dataset.train_y)
    estimator.partial_fit(dataset.train_x[seen], dataset.train_y[seen], classes=[2, 1, 0])
    assert estimator.predict_proba(dataset.valid_x).shape == (20, 3)
    with pytest.raises(ValueError, match="y has the label 7, which is none of the classes"):
        estimator.partial_fit(dataset.train_x, np.full(48, 7))
    with pytest.raises(ValueError, match="in the first call they were"):
        estimator.partial_fit(dataset.train_x, dataset.train_y, classes=[0, 1])
    estimator.fit(dataset.train_x, dataset.train_y)
    before = estimator.parameters_["weights"].copy()
    estimator.partial_fit(dataset.train_x, dataset.train_y)
    assert 0 < np.abs(estimator.parameters_["weights"] - before).max() < 0.5
    assert not hasattr(MSGDClassifier("logistic_cg"), "partial_fit")


# Numbers that are no pixels.


def oracle_of(name, settings):
    """Return the oracle's (logits, cost, gradients), functions as tests/oracle.py's train wants."""
    penalties, kind = oracle.penalties_of(settings), settings.get("activation", "sigmoid")
    if name == "lenet":
        shape = (-1, *toy.SHAPE)
        return (
            lambda p, x: oracle_lenet.forward(p, x.reshape(shape), settings)[2],
            lambda p, x, y: oracle_lenet.cost(p, x.reshape(shape), y, settings),
            lambda p, x, y: oracle_lenet.gradients(p, x.reshape(shape), y, settings),
        )
    return (
        lambda p, x: oracle.mlp_forward(p, x, kind)[0][-1],
        lambda p, x, y: oracle.mlp_cost(p, x, y, kind, **penalties),
        lambda p, x, y: oracle.mlp_gradients(p, x, y, kind, **penalties),
    )


SCALES = {"standardised": (1, 0), "large": (1000, 0), "negative": (1, -5), "tiny": (1e-3, 0)}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", toy.SGD_MODELS)
def test_features_of_any_sign_and_size_train_as_the_oracle_does(name, scale):
    """A network of no hidden layer is logistic regression, so the oracle's MLP serves all.

    Stacks are fine-tuned alone: to be reconstructed, features would have to be between 0 and 1.
    """
    factor, offset = SCALES[scale]
    random = np.random.RandomState(3)
    y = np.arange(80) % 3
    x = (random.normal(size=(80, 49)) + 0.5 * y[:, None]) * factor + offset
    x[random.uniform(size=x.shape) < 0.3] = 0
    # Steps so small that roundings do not grow from one to the next.
    rate = 0.02 / (1 + offset**2)
    rate = rate / factor**2 if name == "logistic_regression" else rate
    changes = {"batch_size": 4, "n_epochs": 4, "l1": 1e-3, "learning_rate": rate}
    changes |= {"pretraining_epochs": 0} if name in STACKS else {}
    estimator = MSGDClassifier(
        name, **{**toy.LAYERS.get(name, {}), **changes}, floatX="float64", shuffle=False
    ).fit(x[:60], y[:60], X_val=x[60:], y_val=y[60:])

    settings = toy.settings_of(name, **changes)
    dataset = conftest.make_dataset(shape=toy.SHAPE)
    initial = load_model(name).initial_parameters(dataset, settings, np.float64)
    logits, cost, gradients = oracle_of(name, settings)
    data = {"train": (x[:60], y[:60]), "valid": (x[60:], y[60:])}
    expected = oracle.train(
        *([*initial.values()], gradients, lambda p, x: logits(p, x).argmax(axis=1), cost),
        *(data, settings),
    )
    counts = [row["validation_errors"] for row in estimator.history_]
    assert counts == expected["counts"]
    costs = [row["cost"] for row in estimator.history_]
    np.testing.assert_allclose(costs, expected["costs"], rtol=1e-7)
    found, right = (
        np.concatenate([array.ravel() for array in arrays])
        for arrays in (estimator.parameters_.values(), expected["best_parameters"])
    )
    assert np.linalg.norm(found - right) <= 1e-7 * np.linalg.norm(right)
    proba = oracle.softmax(logits(expected["best_parameters"], x))
    np.testing.assert_allclose(estimator.predict_proba(x), proba, atol=1e-6)


def test_bytes_are_shares_of_256_and_other_numbers_are_taken_as_they_are():
    dataset = conftest.make_dataset(40)
    x, y = dataset.split("train")

    def fitted(x):
        return MSGDClassifier(batch_size=8, n_epochs=3).fit(x, y)

    as_bytes, as_floats = fitted(x), fitted(x / 256)
    for name, array in as_bytes.parameters_.items():
        np.testing.assert_allclose(array, as_floats.parameters_[name], rtol=1e-4, atol=1e-6)
    probabilities = as_bytes.predict_proba(x)
    np.testing.assert_array_equal(as_bytes.predict_proba(x / 256), probabilities)
    as_numbers = fitted(x.astype(int))
    assert np.abs(as_numbers.parameters_["weights"]).max() > 1
    expected = fitted(x.astype(np.float32))
    np.testing.assert_array_equal(
        as_numbers.parameters_["weights"], expected.parameters_["weights"]
    )
    with_floats = MSGDClassifier(batch_size=8, n_epochs=3).fit(x, y, X_val=x / 256, y_val=y)
    with_bytes = MSGDClassifier(batch_size=8, n_epochs=3).fit(x / 256, y, X_val=x, y_val=y)
    assert with_floats.history_ == with_bytes.history_


# Labels, shapes, predictions.


OF_BYTES = "uint8, of which k stands for k/256"


def test_numbers_of_another_kind_than_those_fitted_to_are_warned_of():
    x, y = conftest.make_dataset(40).split("train")
    fitted = MSGDClassifier(n_epochs=2, batch_size=8).fit(x, y)
    for other in (x.astype(float), x.astype(int), x.tolist()):
        with pytest.warns(UserWarning, match=OF_BYTES):
            fitted.predict(other)
    with pytest.warns(UserWarning, match="what was fitted to is uint8"):
        fitted.partial_fit(x.astype(float), y)
    with pytest.warns(UserWarning, match="X_val is not, and goes up to 2"):
        MSGDClassifier(n_epochs=2, batch_size=8).fit(x, y, X_val=x.astype(float), y_val=y)
    of_numbers = MSGDClassifier(n_epochs=2, batch_size=8).fit(x.astype(float), y)
    with pytest.warns(UserWarning, match="X is uint8.*what was fitted to is not"):
        of_numbers.predict(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.predict(x)
        fitted.predict(x / 256)
        of_numbers.predict(x.astype(float))
        MSGDClassifier(n_epochs=2, batch_size=8).fit(x / 255, y).predict(x)
        fitted.fit(x.astype(float), y, X_val=x.astype(float), y_val=y)  # anew, to other numbers


def test_what_parameters_are_made_for_are_hyperparameters():
    assert set(MADE_FOR) <= set(HYPERPARAMETERS)


def test_after_partial_fit_nothing_tells_of_other_parameters():
    x, y = conftest.make_dataset(40).split("train")
    fitted = MSGDClassifier(n_epochs=2, batch_size=8).fit(x, y)
    of_fit = ("history_", "best_validation_error_", "best_epoch_", "stopped_by_")
    assert all(hasattr(fitted, name) for name in of_fit)
    fitted.partial_fit(x, y)
    assert not any(hasattr(fitted, name) for name in of_fit)
    assert fitted.n_iter_ == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"activation": "sigmoid"}, "activation is 'sigmoid', but .* fitted with 'tanh'"),
        ({"n_hidden": 5}, "n_hidden is 5, but .* fitted with 4; call fit"),
        ({"floatX": "float64"}, "floatX is 'float64', but the parameters are float32; call fit"),
    ],
)
def test_partial_fit_goes_on_with_the_same_network_only(changed, message):
    x, y = conftest.make_dataset(40).split("train")
    fitted = MSGDClassifier("mlp", n_hidden=4, n_epochs=1, batch_size=8, floatX="float32")
    fitted.fit(x, y).set_params(**changed)
    before = fitted.predict(x)
    with pytest.raises(ValueError, match=message):
        fitted.partial_fit(x, y)
    assert (fitted.predict(x) == before).all()
    fitted.set_params(learning_rate=0.5, activation="tanh", n_hidden=4, floatX="float32")
    fitted.partial_fit(x, y)


@pytest.mark.parametrize("names", [["two", "one", "three"], [-5, 100, 3], [2.0, 0.0, 1.0]])
def test_labels_of_any_kind(names):
    dataset = conftest.make_dataset(60)
    estimator = MSGDClassifier(batch_size=5, n_epochs=20, learning_rate=0.5, shuffle=False)
    y = np.array(names)[dataset.train_y]
    estimator.fit(dataset.train_x, y)
    assert list(estimator.classes_) == sorted(names)
    assert estimator.score(dataset.train_x, y) > 0.7
    best = estimator.predict_proba(dataset.train_x).argmax(axis=1)
    np.testing.assert_array_equal(estimator.predict(dataset.train_x), estimator.classes_[best])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_predictions_are_those_of_the_kernels(name):
    dataset = conftest.make_dataset(60, 300, shape=toy.SHAPE)
    estimator = MSGDClassifier(
        name, **toy.LAYERS.get(name, {}), batch_size=5, n_epochs=8, shuffle=False
    )
    estimator.fit(*dataset.split("train"), X_val=dataset.valid_x, y_val=dataset.valid_y)
    settings = toy.settings_of(name, batch_size=5)
    backend = toy.make_backend("cpu", dataset, settings, estimator.parameters_)
    np.testing.assert_array_equal(estimator.predict(dataset.valid_x), backend.predict("valid"))
    score = estimator.score(dataset.valid_x, dataset.valid_y)
    assert score == pytest.approx(1 - estimator.best_validation_error_)


def test_images_may_have_their_own_axes():
    dataset = conftest.make_dataset(48, shape=(9, 8))
    settings = {**toy.LAYERS["lenet"], "batch_size": 5, "n_epochs": 2}
    as_images = MSGDClassifier("lenet", **settings)
    as_images.fit(dataset.train_x.reshape(-1, 9, 8), dataset.train_y)
    as_rows = MSGDClassifier("lenet", **settings, image_shape=(9, 8))
    as_rows.fit(dataset.train_x, dataset.train_y)
    assert as_images.image_shape_ == as_rows.image_shape_ == (9, 8)
    assert as_images.n_features_in_ == as_rows.n_features_in_ == 72
    expected = as_rows.predict_proba(dataset.valid_x)
    found = as_images.predict_proba(dataset.valid_x.reshape(-1, 9, 8))
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"images of shape \(8, 9\); those fitted to: \(9, 8\)"):
        as_images.predict(dataset.valid_x.reshape(-1, 8, 9))
    # 72 is no square number, so these are taken for rows of pixels
    with pytest.raises(ValueError, match=r"filter_size is 2; allowed: at most 1 .*1 x 72"):
        MSGDClassifier("lenet", **settings).fit(dataset.train_x, dataset.train_y)
    with pytest.raises(ValueError, match=r"image_shape is \(8, 8\); allowed: .* = 72"):
        MSGDClassifier("lenet", image_shape=(8, 8)).fit(dataset.train_x, dataset.train_y)
    with pytest.raises(ValueError, match=r"but X has images of shape \(9, 8\)"):
        MSGDClassifier(image_shape=(8, 9)).fit(dataset.train_x.reshape(-1, 9, 8), dataset.train_y)


# Errors and warnings.

WRONG = {
    "learning_rate is -1; allowed: a number > 0": {"learning_rate": -1},
    "nkerns is not a known key; allowed: model, ": {"model": "mlp", "nkerns": [3]},
    "model is 'svm'; allowed: logistic_regression or ": {"model": "svm"},
    "floatX is 'half'; allowed: float32 or float64": {"floatX": "half"},
    "threads is 0; allowed: a whole number >= 1": {"threads": 0},
    "backend is 'tpu'; allowed: auto or cpu": {"backend": "tpu"},
    "- random_state is -1; allowed: a whole number >= 0": {"random_state": -1},
    "- random_state is 'the seed'; allowed: a whole": {"random_state": "the seed"},
    "l1, l2, lp, p, random_state, patience, ": {"activation": "tanh"},
    "validation_frequency is 0; allowed: a whole number >= 1 or None$": {"validation_frequency": 0},
    "validation_fraction is 1; allowed: a number > 0 and < 1": {"validation_fraction": 1},
    "validation_frequency is 99; allowed: at most": {"validation_frequency": 99, "n_epochs": 1},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_parameter_is_named(message):
    x, y = conftest.make_dataset().split("train")
    with pytest.raises(ValueError, match=message):
        MSGDClassifier(**WRONG[message]).fit(x, y)


def test_data_that_cannot_be_used():
    x, y = conftest.make_dataset().split("train")
    estimator = MSGDClassifier(n_epochs=2)
    with pytest.raises(ValueError, match="one class only, 1; a classifier needs two"):
        estimator.fit(x, np.ones(40, int))
    with pytest.raises(ValueError, match="X_val and y_val belong together"):
        estimator.fit(x, y, X_val=x)
    with pytest.raises(ValueError, match="y_val has the label 9, which is none of the classes"):
        estimator.fit(x, y, X_val=x[:2], y_val=[0, 9])
    with pytest.raises(ValueError, match=r"y_val has the label '0', which .* \[0, 1, 2\]"):
        estimator.fit(x, y, X_val=x[:2], y_val=["0", "1"])
    with pytest.raises(ValueError, match="X has 4 features, but MSGDClassifier is expecting 9"):
        estimator.fit(x, y, X_val=x[:, :4], y_val=y)
    with pytest.raises(TypeError, match="Sparse data was passed"):
        estimator.fit(scipy.sparse.csr_array(x), y)


def test_divergence():
    x, y = conftest.make_dataset(48, pixels="float32").split("train")
    mlp = {"model": "mlp", **toy.LAYERS["mlp"], "batch_size": 5, "floatX": "float64"}
    with pytest.raises(ValueError, match="training diverged before its first validation"):
        MSGDClassifier(learning_rate=1e38, l2=1e5, batch_size=5).fit(x * 1e30, y)
    with pytest.raises(ValueError, match="training diverged; lower learning_rate"):
        MSGDClassifier(**mlp, learning_rate=1e307).partial_fit(x * 100, y, classes=[0, 1, 2])
    with pytest.warns(ConvergenceWarning, match="training diverged after .* lower learning_rate"):
        late = MSGDClassifier(
            learning_rate=10, l2=1, batch_size=5, n_epochs=30, validation_frequency=1
        ).fit(x, y)
    assert late.stopped_by_ == "divergence"
    assert np.isfinite(late.predict_proba(x)).all()


def test_a_batch_larger_than_the_data_is_lowered_and_left_over_rows_are_named():
    x, y = conftest.make_dataset(60).split("train")
    default = MSGDClassifier(n_epochs=2).fit(x, y)  # in silence: nobody asked for 600
    assert default.settings_["batch_size"] == 50
    assert MSGDClassifier(n_epochs=2, batch_size="all").fit(x, y).settings_["batch_size"] == 50
    message = "batch_size is 60, but there are 50 training rows; it is lowered to 50"
    with pytest.warns(UserWarning, match=message):
        MSGDClassifier(n_epochs=2, batch_size=60).fit(x, y)
    with pytest.warns(UserWarning, match="20 of 50 training rows are left out.* of 30"):
        MSGDClassifier(n_epochs=2, batch_size=30).fit(x, y)


# In scikit-learn's company.


def test_every_way_of_copying_keeps_the_predictions(tmp_path):
    x, y = load_iris(return_X_y=True)
    settings = {"n_hidden": (5, 4), "n_epochs": 5, "batch_size": 25, "floatX": "float64"}
    estimator = MSGDClassifier("mlp", learning_rate=0.1, **settings)
    fitted = estimator.fit(x, y)
    joblib.dump(fitted, tmp_path / "model.joblib")
    for copy in (pickle.loads(pickle.dumps(fitted)), joblib.load(tmp_path / "model.joblib")):
        np.testing.assert_array_equal(copy.predict_proba(x), fitted.predict_proba(x))
        copy.partial_fit(x[:100], y[:100])
    again = clone(fitted)
    assert not hasattr(again, "parameters_")
    np.testing.assert_array_equal(again.fit(x, y).predict_proba(x), fitted.predict_proba(x))


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_search_over_a_pipeline(n_jobs):
    x, y = load_wine(return_X_y=True)
    pipeline = make_pipeline(
        StandardScaler(), MSGDClassifier(n_epochs=50, batch_size=10, floatX="float64")
    )
    rates = {"msgdclassifier__learning_rate": np.array([0.001, 0.1])}
    networks = {"msgdclassifier__model": ["mlp"], "msgdclassifier__n_hidden": [(5, 4), [9, 4]]}
    grid = [rates, {**rates, **networks}]
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=n_jobs, error_score="raise").fit(x, y)
    assert search.best_score_ > 0.9
    assert search.best_params_["msgdclassifier__learning_rate"] == 0.1
    assert search.cv_results_["mean_test_score"].shape == (6,)


def test_cross_validation_with_a_data_frame():
    frame, y = load_iris(return_X_y=True, as_frame=True)
    estimator = MSGDClassifier(n_epochs=100, batch_size=10, floatX="float64")
    assert cross_val_score(estimator, frame, y, cv=3).mean() > 0.85
    assert list(estimator.fit(frame, y).feature_names_in_) == list(frame.columns)


def test_random_state_is_the_seed_and_chooses_what_validates():
    x, y = conftest.make_dataset(60).split("train")

    def fitted(random_state):
        estimator = MSGDClassifier(n_epochs=3, batch_size=5, random_state=random_state)
        return estimator.fit(x, y)

    assert fitted(None).settings_["seed"] == complete_experiment({"model": "mlp"})["seed"]
    assert fitted(5).settings_["seed"] == fitted(np.int64(5)).settings_["seed"] == 5
    assert fitted(5).history_ == fitted(5).history_ != fitted(6).history_
    drawn = [fitted(state).settings_["seed"] for state in [np.random.RandomState(1)] * 2]
    assert drawn == [fitted(np.random.RandomState(1)).settings_["seed"], drawn[1]]
    assert drawn[0] != drawn[1]


def test_sorted_rows_validate_in_the_proportions_of_the_classes():
    """Without shuffling, the last sixth of iris would be of one class alone."""
    x, y = load_iris(return_X_y=True)
    estimator = MSGDClassifier(floatX="float64", n_epochs=1)
    train, valid = estimator._split(x, y, 0)
    assert np.bincount(train[1]).tolist() == [41, 42, 42]
    assert sorted(np.bincount(valid[1]).tolist()) == [8, 8, 9]
    train, valid = MSGDClassifier(shuffle=False)._split(x, y, 0)
    assert np.unique(valid[1]).tolist() == [2]
    rare = np.where(np.arange(150) == 0, 5, y)  # a class of one row cannot be in both
    assert len(estimator._split(x, rare, 0)[1][1]) == 25


@pytest.mark.parametrize("backend", ["reference", "cuda"])
def test_every_backend_follows_the_one_of_the_cpu(backend):
    dataset = conftest.make_dataset(24, shape=(2, 3))
    settings = {"batch_size": 5, "n_epochs": 2, "shuffle": False}
    expected = MSGDClassifier(**settings).fit(*dataset.split("train"))
    found = MSGDClassifier(**settings, backend=backend).fit(*dataset.split("train"))
    assert (expected.device_, found.device_) == ("cpu", backend)
    for name, array in found.parameters_.items():
        np.testing.assert_allclose(array, expected.parameters_[name], rtol=1e-4, atol=1e-6)


# What a fit leaves alone.


def test_a_fit_writes_no_file_and_leaves_numba_its_threads(tmp_path, monkeypatch):
    import numba

    def refuse(*arguments, **options):
        raise AssertionError("a temporary file")

    for name in ("TemporaryFile", "NamedTemporaryFile", "mkstemp", "TemporaryDirectory"):
        monkeypatch.setattr(tempfile, name, refuse)
    monkeypatch.chdir(tmp_path)
    numba.set_num_threads(2)
    x, y = conftest.make_dataset().split("train")
    for threads in (1, None):
        MSGDClassifier(threads=threads, n_epochs=2).fit(x, y).predict(x)
        assert numba.get_num_threads() == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_rows_larger_than_a_piece_give_the_same_bits(monkeypatch, name):
    """MNIST as float32 is: its lists of nonzero pixels go through files that have no name."""
    x, y = conftest.make_dataset(48, shape=toy.SHAPE).split("train")
    estimator = MSGDClassifier(name, **toy.LAYERS.get(name, {}), batch_size=4, n_epochs=3)
    expected = estimator.fit(x, y).parameters_
    monkeypatch.setattr(cpu_backend, "PIECE_BYTES", 500)
    found = estimator.fit(x, y).parameters_
    assert {k: a.tobytes() for k, a in found.items()} == {
        k: a.tobytes() for k, a in expected.items()
    }


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("verbose", [False, True])
def test_a_terminal_shows_a_bar_only_if_asked(monkeypatch, verbose):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    x, y = conftest.make_dataset().split("train")
    MSGDClassifier(n_epochs=2, verbose=verbose).fit(x, y)
    assert sys.stderr is terminal
    assert ("MSGDClassifier" in terminal.getvalue()) == verbose


@pytest.mark.slow
def test_the_code_of_the_page_runs_as_it_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (conftest.ROOT / "docs" / "scikit-learn.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    names = {}
    for block in blocks:
        exec(compile(block, "docs/scikit-learn.md", "exec"), names)
    assert len(blocks) == 4
    assert names["classifier"].score(names["X_test"], names["y_test"]) > 0.9
    assert names["search"].score(names["X_test"], names["y_test"]) > 0.9


FITS_IN_THREADS = """
from concurrent.futures import ThreadPoolExecutor
import numba, numpy as np
from msgd.sklearn import MSGDClassifier
x, y = np.random.RandomState(0).randint(0, 256, (400, 36)).astype("uint8"), np.arange(400) % 4
fit = lambda seed: MSGDClassifier(n_epochs=300, batch_size=20, random_state=seed).fit(x, y)
with ThreadPoolExecutor(4) as pool:
    print(len([*pool.map(fit, range(8))]), numba.threading_layer())
"""


@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_threads_may_fit_at_a_time(layer):
    if layer == "omp" and not find_library("gomp"):
        pytest.skip("there is no libgomp")
    done = subprocess.run(
        [sys.executable, "-c", FITS_IN_THREADS],
        env=conftest.environment(NUMBA_THREADING_LAYER=layer),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8", layer]
