"""msgd in scikit-learn: ``MSGDClassifier`` trains arrays in memory as ``msgd train`` trains files.

The extra ``sklearn`` brings scikit-learn. docs/scikit-learn.md shows how to use the estimator, and
says what is the same as ``msgd train`` and what is not.
"""

import contextlib
import math
import re
import sys
import threading
import warnings
from collections.abc import Iterable
from numbers import Real

import numpy as np

from msgd.config import (
    check_arithmetic,
    check_split_sizes,
    complete_config,
    complete_experiment,
    resolve_batch_size,
)
from msgd.data.dataset import BYTE_SCALE, Dataset
from msgd.errors import UserError
from msgd.models import (
    CLASSIFIERS,
    MODELS,
    UNSUPERVISED,
    load_model,
    load_stages,
    load_trainer,
)

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import train_test_split
    from sklearn.utils import gen_batches
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import check_classification_targets, unique_labels
    from sklearn.utils.validation import check_is_fitted, validate_data
except ModuleNotFoundError as error:
    if error.name != "sklearn":
        raise
    raise ModuleNotFoundError(
        "scikit-learn is missing: pip install -c constraints.txt -e '.[sklearn]' installs it",
        name="sklearn",
    ) from error

# The constructor's parameters that are hyperparameters of a run, by the same names in config.yaml;
# there the seed is one more, here random_state gives it.
HYPERPARAMETERS = (
    *("model", "learning_rate", "batch_size", "n_epochs", "l1", "l2", "lp", "p"),
    *("patience", "patience_increase"),
    *("improvement_threshold", "improvement_test", "improvement_alpha", "validation_frequency"),
    *("n_hidden", "activation", "nkerns", "filter_size", "pool_size", "maxpool_ties"),
    *("arithmetic", "pretraining_epochs", "pretraining_learning_rate", "pretraining_batch_size"),
    *("corruption", "persistent", "gibbs_steps"),
)
# Words of config.yaml in an error, and the estimator's own in their place.
WORDS = {"seed": "random_state", "null": "None"}
# Those that say where and how precisely to compute, with the defaults of config.yaml.
RUN_OPTIONS = ("backend", "threads", "floatX")

MOST_UNUSED = 0.1  # the share of the training rows above which leaving them out is worth a warning
NO_LABELS = "no_validation"  # in the place of y; the word is scikit-learn's
# Hyperparameters that fitted parameters belong to; the shapes of the arrays do not tell them all.
MADE_FOR = ("model", "n_hidden", "activation", "nkerns", "filter_size", "pool_size")
MOST_OF_SHARES = 2.0  # pixels that are shares of the brightest one do not come near it
SEEN_ROWS = 1000  # in which the largest number is looked for
PREDICTED_ROWS = 256  # at a time: a LeNet's convolution of so many images takes some 60 MB


def _trains_by_minibatch(estimator):
    """Return whether the estimator's model can be trained a pass at a time."""
    return estimator.model in CLASSIFIERS and MODELS[estimator.model] == "loop"


class MSGDClassifier(ClassifierMixin, BaseEstimator):
    """A classifier trained by minibatch stochastic gradient descent under the patience rule (MSGD).

    X is (N, D) or, for images, (N, height, width): uint8, of which k stands for k/256, or any other
    numbers, which are taken as they are, negative ones too. Labels y (N,) are of any kind that
    scikit-learn takes for classes. Sparse X is refused.

    Parameters, all by name but the first; None is the default of the model or of ``config.yaml``:

    - ``model``: "logistic_regression", "logistic_cg", "mlp", "lenet", "sda" or "dbn"
    - ``learning_rate``, ``batch_size``, ``n_epochs``, ``l1``, ``l2``, ``lp``, ``p``, ``patience``,
      ``patience_increase``, ``improvement_threshold``, ``improvement_test``,
      ``improvement_alpha``, ``validation_frequency``; of networks ``n_hidden`` and ``activation``;
      of LeNet ``nkerns``, ``filter_size``, ``pool_size``, ``maxpool_ties`` and ``arithmetic``; of
      stacks ``pretraining_epochs``, ``pretraining_learning_rate`` and ``pretraining_batch_size``,
      of SdA ``corruption``, of DBN ``persistent`` and ``gibbs_steps``: hyperparameters, described
      in config/README.md. Only those that the model has may be given. A ``batch_size`` above the
      number of training rows becomes that number.
    - ``random_state``: the seed of the initial parameters and of ``shuffle``: a whole number, or a
      RandomState from which one is drawn. None is the model's own seed, so that runs repeat.
    - ``validation_fraction``: the share of the rows that is set aside for validation, unless fit is
      given ``X_val`` and ``y_val``; with the classes in the same proportions where there are rows
      enough for it and ``shuffle`` is true.
    - ``shuffle``: whether the rows are put into random order, once, before training. If false, the
      last rows are those set aside, and minibatches are made of the others as they stand.
    - ``image_shape``: (height, width) of the images in the rows of X. By default that of X, or a
      square where D is a square number, or one row of D pixels. LeNet alone computes by it.
    - ``backend``, ``threads``, ``floatX``: as in ``config.yaml``
    - ``verbose``: whether a terminal shows a progress bar

    Attributes: ``classes_``, ``n_features_in_``, ``feature_names_in_``, ``image_shape_``;
    ``parameters_``, dict of name -> floatX array, those of the fewest validation errors or of the
    last ``partial_fit``;
    ``settings_``, the hyperparameters in full; ``device_``; ``n_iter_``, the epochs run;
    ``loss_``, the mean cost since the validation before the last. Of ``fit`` alone, for what
    ``partial_fit`` makes of the parameters is not validated: ``history_``, a dict per validation
    with the columns of history.csv; ``best_validation_error_``, a share; ``best_epoch_``;
    ``stopped_by_``, "patience", "n_epochs", "divergence" or "convergence".
    """

    def __init__(
        self,
        model="logistic_regression",
        *,
        learning_rate=None,
        batch_size=None,
        n_epochs=None,
        l1=None,
        l2=None,
        lp=None,
        p=None,
        patience=None,
        patience_increase=None,
        improvement_threshold=None,
        improvement_test=None,
        improvement_alpha=None,
        validation_frequency=None,
        n_hidden=None,
        activation=None,
        nkerns=None,
        filter_size=None,
        pool_size=None,
        maxpool_ties=None,
        arithmetic=None,
        pretraining_epochs=None,
        pretraining_learning_rate=None,
        pretraining_batch_size=None,
        corruption=None,
        persistent=None,
        gibbs_steps=None,
        random_state=None,
        validation_fraction=1 / 6,
        shuffle=True,
        image_shape=None,
        backend=None,
        threads=None,
        floatX=None,
        verbose=False,
    ):
        self.model = model
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.l1 = l1
        self.l2 = l2
        self.lp = lp
        self.p = p
        self.patience = patience
        self.patience_increase = patience_increase
        self.improvement_threshold = improvement_threshold
        self.improvement_test = improvement_test
        self.improvement_alpha = improvement_alpha
        self.validation_frequency = validation_frequency
        self.n_hidden = n_hidden
        self.activation = activation
        self.nkerns = nkerns
        self.filter_size = filter_size
        self.pool_size = pool_size
        self.maxpool_ties = maxpool_ties
        self.arithmetic = arithmetic
        self.pretraining_epochs = pretraining_epochs
        self.pretraining_learning_rate = pretraining_learning_rate
        self.pretraining_batch_size = pretraining_batch_size
        self.corruption = corruption
        self.persistent = persistent
        self.gibbs_steps = gibbs_steps
        self.random_state = random_state
        self.validation_fraction = validation_fraction
        self.shuffle = shuffle
        self.image_shape = image_shape
        self.backend = backend
        self.threads = threads
        self.floatX = floatX
        self.verbose = verbose

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def fit(self, X, y, *, X_val=None, y_val=None):
        """Train until patience or epochs are exhausted; keep the best parameters; return self.

        X (N, D) or (N, height, width), y (N,); X_val and y_val, both or none, likewise: rows that
        validate, in place of a share of X. Raises ValueError for data or hyperparameters that
        cannot be used, and if training diverges before its first validation. Warns if it diverges
        later (ConvergenceWarning), of a batch_size that is too large, and of training rows that
        fill no whole minibatch and are left out, if they are many (UserWarning).
        """
        with _value_errors():
            settings, options = _asked_of(self)
            x, y, image_shape = self._checked(X, y, options["floatX"], min_samples=2)
            classes, labels = np.unique(y, return_inverse=True)
            if len(classes) < 2:
                raise UserError(f"y has one class only, {classes[0]}; a classifier needs two")
            if X_val is None and y_val is None:
                train, valid = self._split(x, labels, settings["seed"])
            elif X_val is None or y_val is None:
                raise UserError("X_val and y_val belong together: give both or none")
            else:
                floats = options["floatX"]
                valid_x, valid_y, _ = self._checked(X_val, y_val, floats, image_shape=image_shape)
                _warn_of_other_numbers(_kind_of_numbers(x), valid_x, "X_val", "X")
                valid = valid_x, _encoded(valid_y, classes, "y_val")
                train = self._shuffled(x, labels, settings["seed"])
            dataset = _dataset(train, valid, len(classes), image_shape)
            settings = self._fitting(settings, len(dataset.train_x))
            with _terminal(self.verbose), _backend(dataset, settings, options) as (kernels, device):
                train_model = load_trainer(settings["model"])
                result = train_model(kernels, dataset, settings, _NoFiles())
        self.classes_, self.image_shape_ = classes, image_shape
        self._fitted_to = _kind_of_numbers(x)
        self.parameters_, self.settings_, self.device_ = result.best_parameters, settings, device
        self._keep_outcome(result)
        return self

    @available_if(_trains_by_minibatch)
    def partial_fit(self, X, y, classes=None):
        """Train one pass over X and y, from the parameters as they are; return self.

        X (N, D) or (N, height, width); y (N,); classes: all labels there will be, which the first
        call must be given. No rows are shuffled or set aside: there is no validation, and the last
        parameters are kept. A stack is fine-tuned, not pre-trained. Raises ValueError as fit does,
        and if training diverges. Not there for "logistic_cg", which has no minibatches.
        """
        with _value_errors():
            settings, options = _asked_of(self)
            is_first = not hasattr(self, "parameters_")
            if not is_first:
                self._check_made_for(settings, options["floatX"])
            known = self._known_classes(classes, is_first)
            shape = None if is_first else self.image_shape_
            x, y, image_shape = self._checked(X, y, options["floatX"], image_shape=shape)
            if not is_first:
                _warn_of_other_numbers(self._fitted_to, x, "X", "what was fitted to")
            train = x, _encoded(y, known, "y")
            dataset = _dataset(train, train, len(known), image_shape)
            settings = self._fitting(settings, len(x))
            start = None if is_first else self.parameters_
            backend = _backend(dataset, settings, options, start)
            with _terminal(self.verbose), backend as (kernels, device):
                n_batches = len(x) // settings["batch_size"]
                kernels.begin(load_stages(settings)[-1])
                cost = float(np.mean(kernels.train(0, n_batches), dtype=np.float64))
                parameters = kernels.get_parameters()
            if not all(np.isfinite(a).all() for a in (cost, *parameters.values())):
                raise UserError(f"training diverged; {_SMALLER_STEPS}")
        self.classes_, self.image_shape_ = known, image_shape
        self.parameters_, self.settings_, self.device_ = parameters, settings, device
        if is_first:
            self._fitted_to = _kind_of_numbers(x)
        for name in ("history_", "best_validation_error_", "best_epoch_", "stopped_by_"):
            vars(self).pop(name, None)  # they are those of other parameters
        self.n_iter_ = 1 if is_first else self.n_iter_ + 1
        self.loss_ = cost
        return self

    def predict_proba(self, X):
        """Return the probability of each class for each row of X, (N, C) float64, as classes_."""
        check_is_fitted(self, "parameters_")
        float_x = next(iter(self.parameters_.values())).dtype
        with _value_errors():
            x, _, shape = self._checked(X, NO_LABELS, float_x, image_shape=self.image_shape_)
        _warn_of_other_numbers(self._fitted_to, x, "X", "what was fitted to")
        model = load_model(self.settings_["model"])
        scale = 1 / BYTE_SCALE if x.dtype == np.uint8 else 1.0
        found = [
            model.probabilities(
                self.parameters_, x[rows].astype(np.float64) * scale, self.settings_, shape
            )
            for rows in gen_batches(len(x), PREDICTED_ROWS)
        ]
        return np.concatenate(found)

    def predict(self, X):
        """Return the most probable class of each row of X, (N,); the first of equal ones."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def _checked(self, X, y, float_x, *, image_shape=None, min_samples=1):
        """Return (x, y, image_shape): pixels (N, D), uint8 or float_x, labels (N,), their shape.

        y: labels, or NO_LABELS; image_shape: that of the images fitted to, None where X and the
        parameter image_shape say it. Raises ValueError or UserError if X or y cannot be used.
        """
        shape = None
        if getattr(X, "ndim", None) == 3:
            X = np.asarray(X)
            shape = X.shape[1:]
            X = X.reshape(len(X), math.prod(shape))
        options = {
            "dtype": [np.dtype(float_x), np.dtype(np.uint8)],  # all but bytes become the first
            "order": "C",
            "reset": image_shape is None,
            "ensure_min_samples": min_samples,
        }
        if y is NO_LABELS:
            x = validate_data(self, X, **options)
        else:
            x, y = validate_data(self, X, y, **options)
            check_classification_targets(y)
        if image_shape is None:
            image_shape = _image_shape(self.image_shape, shape, x.shape[1])
        elif shape not in (None, image_shape):
            raise UserError(f"X has images of shape {shape}; those fitted to: {image_shape}")
        return x, y, image_shape

    def _check_made_for(self, settings, float_x):
        """Raise UserError unless the fitted parameters are of a network as in ``settings``."""
        for name in MADE_FOR:
            of_fit, now = self.settings_.get(name), settings.get(name)
            if of_fit != now:
                raise UserError(
                    f"{name} is {now!r}, but the parameters were fitted with {of_fit!r}; call fit "
                    f"to begin anew, or set {name} back"
                )
        fitted = next(iter(self.parameters_.values())).dtype
        if fitted != float_x:
            raise UserError(f"floatX is {float_x!r}, but the parameters are {fitted}; call fit")

    def _split(self, x, labels, seed):
        """Return (x, labels) of the rows to train on, and those of the rows to validate on."""
        fraction, n = self.validation_fraction, len(x)
        if not isinstance(fraction, Real) or not 0 < fraction < 1:
            raise UserError(f"validation_fraction is {fraction!r}; allowed: a number > 0 and < 1")
        whole = math.floor(round(fraction * n, 6))  # a sixth of 18 is 3, however 1/6 is rounded
        n_valid = min(max(1, whole), n - 1)
        if not self.shuffle:
            rows = [slice(0, n - n_valid), slice(n - n_valid, n)]
        else:
            counts = np.bincount(labels)
            can_stratify = counts.min() >= 2 and len(counts) <= min(n_valid, n - n_valid)
            rows = train_test_split(
                np.arange(n),
                test_size=n_valid,
                random_state=seed,
                stratify=labels if can_stratify else None,
            )
        return [(x[part], labels[part]) for part in rows]

    def _shuffled(self, x, labels, seed):
        """Return (x, labels), in random order if ``shuffle`` says so."""
        if not self.shuffle:
            return x, labels
        order = np.random.RandomState(seed).permutation(len(x))
        return x[order], labels[order]

    def _fitting(self, settings, n_train):
        """Return ``settings`` with a batch size for ``n_train`` rows; warn of what is left out."""
        settings = resolve_batch_size(settings, n_train)
        batch_size = min(settings["batch_size"], n_train)
        if self.batch_size is not None and batch_size < settings["batch_size"]:
            warnings.warn(
                f"batch_size is {settings['batch_size']}, but there are {n_train} training rows; "
                f"it is lowered to {batch_size}",
                stacklevel=3,
            )
        unused = n_train % batch_size
        if unused > MOST_UNUSED * n_train:
            warnings.warn(
                f"{unused} of {n_train} training rows are left out: they fill no minibatch of "
                f"{batch_size}; choose a batch_size that leaves fewer",
                stacklevel=3,
            )
        settings = {**settings, "batch_size": batch_size}
        check_split_sizes({"": settings}, n_train)
        return settings

    def _known_classes(self, classes, is_first):
        """Return the classes of a partial_fit, (C,): those it is given or those known already."""
        if classes is None:
            if is_first:
                raise UserError("the first call of partial_fit must be given classes")
            return self.classes_
        classes = unique_labels(classes)
        if not is_first and not np.array_equal(classes, self.classes_):
            raise UserError(f"classes are {classes}; in the first call they were {self.classes_}")
        if len(classes) < 2:
            raise UserError(f"classes hold one class only, {classes[0]}; a classifier needs two")
        return classes

    def _keep_outcome(self, result):
        """Set the attributes that tell of ``result``, a msgd.training.loop.Training."""
        outcome = result.summary()
        self.history_ = result.history
        self.n_iter_ = outcome["epochs_run"]
        self.best_epoch_ = outcome["best_epoch"]
        self.best_validation_error_ = outcome["validation_errors"] / outcome["validation_examples"]
        self.stopped_by_ = outcome["stopped_by"]
        self.loss_ = result.history[-1]["cost"]
        if self.stopped_by_ == "divergence":
            warnings.warn(
                f"training diverged after {outcome['iterations_run']} minibatches; the parameters "
                f"of the best validation before are kept. To train further, {_SMALLER_STEPS}",
                ConvergenceWarning,
                stacklevel=3,
            )


_SMALLER_STEPS = "lower learning_rate, or scale X to numbers of about -1 to 1"


class _NoFiles:
    """In the place of msgd.training.checkpoint.Checkpoint: keeps neither snapshots nor states."""

    title = "MSGDClassifier"

    def save_snapshot(self, iteration, parameters):
        """Keep no snapshot."""

    def load(self, last_iteration):
        """Find nothing to go on from."""

    def is_state_due(self):
        """Ask for no state."""
        return False

    def save(self, state):
        """Keep no state."""


@contextlib.contextmanager
def _value_errors():
    """Turn a UserError into the ValueError that callers of an estimator expect."""
    try:
        yield
    except UserError as error:
        raise ValueError(str(error)) from error


def _asked_of(estimator):
    """Return the settings of a run and the options of where and how to compute it, both dicts."""
    settings, options = _settings_of(estimator), _run_options_of(estimator)
    check_arithmetic({"": settings}, options["backend"], options["floatX"])
    return settings, options


def _settings_of(estimator):
    """Return the completed hyperparameters of a run; UserError if they cannot be used."""
    given = {name: _plain(getattr(estimator, name)) for name in HYPERPARAMETERS}
    if given["model"] in UNSUPERVISED:
        raise UserError(
            f"model is {given['model']!r}, which learns from images without their labels and "
            f"predicts no classes; allowed: {' or '.join(CLASSIFIERS)}"
        )
    given["seed"] = _plain(estimator.random_state)
    if isinstance(given["seed"], np.random.RandomState):
        given["seed"] = given["seed"].randint(np.iinfo(np.int32).max)
    try:
        return complete_experiment({k: value for k, value in given.items() if value is not None})
    except UserError as error:
        raise UserError(_in_own_words(str(error))) from error


def _in_own_words(message):
    """Return the configuration's ``message``, each key by the name of the estimator's parameter.

    What stands in quotes is somebody's value and stays.
    """
    quoted_or_word = rf"'[^'\n]*'|\b({'|'.join(WORDS)})\b"
    return re.sub(quoted_or_word, lambda found: WORDS.get(found[1], found[0]), message)


def _run_options_of(estimator):
    """Return backend, threads and floatX (dict); UserError if they cannot be used."""
    given = {name: _plain(getattr(estimator, name)) for name in RUN_OPTIONS}
    given = {key: value for key, value in given.items() if value is not None}
    complete = complete_config({**given, "experiments": {"any": {"model": CLASSIFIERS[0]}}})
    return {name: complete[name] for name in RUN_OPTIONS}


def _plain(value):
    """Return ``value`` as YAML would have it: NumPy's numbers and arrays, and tuples, as Python's.

    Searches over hyperparameters hand in NumPy's, scikit-learn's layers are tuples.
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _image_shape(wanted, given, n_features):
    """Return (height, width) of images of ``n_features`` pixels.

    wanted: the parameter image_shape; given: the shape of the images themselves; None for neither.
    Raises UserError if they contradict each other.
    """
    if wanted is None:
        side = math.isqrt(n_features)
        return given or ((side, side) if side * side == n_features else (1, n_features))
    shape = tuple(_plain(wanted)) if isinstance(wanted, Iterable) else wanted
    is_shape = isinstance(shape, tuple) and len(shape) == 2 and all(type(n) is int for n in shape)
    if not is_shape or min(shape) < 1 or math.prod(shape) != n_features:
        what = f"(height, width) with height x width = {n_features}, the features of X"
        raise UserError(f"image_shape is {wanted!r}; allowed: {what}")
    if given not in (None, shape):
        raise UserError(f"image_shape is {wanted!r}, but X has images of shape {given}")
    return shape


def _kind_of_numbers(x):
    """Return whether pixels x (N, D) are bytes, and about how large the largest is."""
    is_bytes = x.dtype == np.uint8
    return is_bytes, 1.0 if is_bytes else float(np.abs(x[:SEEN_ROWS]).max())


def _warn_of_other_numbers(kind, x, name, other):
    """Warn if of x and what was fitted to one are bytes, the other numbers far beyond 1.

    kind: _kind_of_numbers of what is called ``other``; x: (N, D) pixels, called ``name``.
    """
    (was_bytes, was_largest), (is_bytes, largest) = kind, _kind_of_numbers(x)
    if was_bytes != is_bytes and max(was_largest, largest) > MOST_OF_SHARES:
        bytes_, numbers = (other, name) if was_bytes else (name, other)
        warnings.warn(
            f"{bytes_} is uint8, of which k stands for k/256; {numbers} is not, and goes up to "
            f"{max(was_largest, largest):g}, taken as it is; pixels are to be uint8 in both",
            stacklevel=3,
        )


def _encoded(y, classes, name):
    """Return the labels y (N,) as places in ``classes`` (C,); UserError if one is not there."""
    is_known = np.isin(y, classes)
    if not is_known.all():
        unknown = y[~is_known][0]
        what = f"the label {_plain(unknown)!r}, which is none of the classes {_plain(classes)}"
        raise UserError(f"{name} has {what}")
    return np.searchsorted(classes, y)


def _dataset(train, valid, n_classes, image_shape):
    """Return the Dataset of two pairs (x, labels); its test set is the validation set, unused."""
    if train[0].dtype != valid[0].dtype:  # bytes beside floats
        train, valid = ((_as_floats(x, train, valid), y) for x, y in (train, valid))
    splits = [_frozen(x, labels) for x, labels in (train, valid, valid)]
    arrays = [array for split in splits for array in split]
    known = {"n_classes": n_classes, "image_shape": image_shape, "is_mnist": False}
    return Dataset(*arrays, **known, sha256={}, folder=None)


def _as_floats(x, *pairs):
    """Return the pixels x, if they are bytes, in the type that those of one of ``pairs`` have."""
    float_x = next(other.dtype.type for other, _ in pairs if other.dtype != np.uint8)
    return x.astype(float_x) / float_x(BYTE_SCALE) if x.dtype == np.uint8 else x


def _frozen(x, labels):
    """Return both arrays as ``msgd train`` has them: read-only, for which kernels are compiled."""
    arrays = np.ascontiguousarray(x).view(np.ndarray), labels.astype(np.int32)
    for array in arrays:
        array.flags.writeable = False
    return arrays


@contextlib.contextmanager
def _backend(dataset, settings, options, parameters=None):
    """Give a Backend that begins with ``parameters``, the initial ones if None, and its device.

    Numba's number of threads is that of ``options`` only as long as this holds.
    """
    import msgd.kernels.options  # noqa: F401  # before Numba, whose settings it checks
    from msgd.backends import choose_device
    from msgd.training.run import build_backend

    import numba  # isort: skip

    device = choose_device(options["backend"], settings["model"])
    float_x = np.dtype(options["floatX"]).type
    if parameters is None:
        parameters = load_model(settings["model"]).initial_parameters(dataset, settings, float_x)
    n_threads = numba.get_num_threads()
    # Without OpenMP or TBB on the machine Numba ends the process where two threads run kernels.
    alone = numba.threading_layer() == "workqueue"
    how = device, options["floatX"], options["threads"], None
    with _turns if alone else contextlib.nullcontext():
        try:
            yield build_backend(dataset, parameters, settings, *how), device
        finally:
            numba.set_num_threads(n_threads)


_turns = threading.Lock()


_silence = {"lock": threading.Lock(), "depth": 0, "stderr": None}


@contextlib.contextmanager
def _terminal(is_shown):
    """Unless ``is_shown``, let standard error say that it is no terminal: then no bar is drawn.

    What is written there goes there all the same. Several threads may fit at a time.
    """
    if is_shown:
        yield
        return
    with _silence["lock"]:
        _silence["depth"] += 1
        if _silence["depth"] == 1:
            _silence["stderr"] = sys.stderr
            sys.stderr = _NoTerminal(sys.stderr)
    try:
        yield
    finally:
        with _silence["lock"]:
            _silence["depth"] -= 1
            if _silence["depth"] == 0:
                sys.stderr = _silence["stderr"]


class _NoTerminal:
    """A stream that says it is no terminal, and is the stream it was made of in all else."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def isatty(self):
        """Return False."""
        return False
