"""The ``msgd`` program: one subcommand per Snakemake rule, each a thin door to a function.

Errors meant for the user go to standard error and to the log file, and the exit code is 1.
"""

import argparse
import contextlib
import ctypes
import gc
import logging
import math
import os
import signal
import sys
import threading
from pathlib import Path

from msgd.config import check_plot_settings, load_schema
from msgd.errors import RESULT, UserError, shown
from msgd.models import DEVICES
from msgd.output import standard_output
from msgd.wording import times

log = logging.getLogger("msgd")

# Objects between two searches for garbage. Imports make a million that stay, and Python's 700 would
# have them gone through again and again: a twentieth of the start.
GARBAGE_IS_RARE = 50_000

# The exit codes that a shell shows of programs that the signals SIGPIPE and SIGTERM ended.
READER_LEFT = 128 + 13
TERMINATED = 128 + 15

DESCRIPTION = "The msgd program: one subcommand per step of the workflow."


def main(arguments=None):
    """Run the program with ``arguments`` (sys.argv's by default); return its exit code."""
    gc.set_threshold(GARBAGE_IS_RARE)
    options = _parser().parse_args(arguments)
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        _set_up_logging(options.log)
        return options.function(options) or 0
    except UserError as error:
        log.error("msgd %s: error: %s", options.command, error)
        return 1
    except BrokenPipeError:  # of a pipe that is read to its end no more (| head): nothing to say
        return READER_LEFT
    except OSError as error:
        path = error.filename2 or error.filename or "a file"  # of two, that which is written
        where = shown(str(path), 300)
        log.error("msgd %s: error: %s: %s", options.command, where, error.strerror or error)
        return 1
    except MemoryError as error:  # NumPy says how much, and for which shape
        what = str(error) or "an array does not fit"
        log.error("msgd %s: error: not enough memory: %s", options.command, what)
        return 1
    except KeyboardInterrupt:
        log.error("msgd %s: interrupted", options.command)
        return 130
    except Terminated:
        log.error("msgd %s: ended by the signal SIGTERM", options.command)
        return TERMINATED
    except Exception:
        log.exception("msgd %s: failed where it should not; please report this", options.command)
        return 1


class Terminated(BaseException):
    """SIGTERM has come: what is half-written is removed on the way out, as after Ctrl-C."""


def _terminate(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process at once
    raise Terminated


def _parser():
    parser = argparse.ArgumentParser(prog="msgd", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, function, description):
        subparser = commands.add_parser(name, help=description, description=description)
        subparser.add_argument("--log", type=_path, help="file that keeps the messages")
        subparser.set_defaults(function=function)
        return subparser

    download = command("download", _download, "bring mnist.pkl.gz here, checked by SHA-256")
    download.add_argument("path", type=_path, help="where the file shall be")

    unpickle = command("unpickle", _unpickle, "read a data set, check it, write six .npy files")
    unpickle.add_argument("path", type=_path, help=".pkl.gz or .npz file, or folder of IDX files")
    unpickle.add_argument("--output", type=_path, required=True, help="folder of the six arrays")
    unpickle.add_argument("--floatX", dest="float_x", default="float32", choices=FLOATS)
    unpickle.add_argument("--expect-mnist", action="store_true", help="accept MNIST only")

    train = command("train", _train, "train one run")
    train.add_argument("hyperparameters", nargs="+", metavar="key=value")
    _add_run_options(train)
    train.add_argument("--floatX", dest="float_x", default="float32", choices=FLOATS)

    train.add_argument("--states", type=_path, help="folder of states, to go on from after a kill")
    train.add_argument(
        "--end-with", type=int, metavar="PID", help="end when this process does, which started it"
    )
    train.add_argument(
        "--seconds-between-states",
        type=_number_of("seconds", 0),
        default=5.0,
        metavar="S",
        help="default: 5",
    )

    clean = command("clean-states", _clean_states, "remove the states of runs no longer in use")
    clean.add_argument("states", type=_path, help="folder of states, results/states")
    clean.add_argument(
        "--unused-days",
        type=_number_of("days", 0),
        default=0.0,
        metavar="D",
        help="keep younger ones; default: 0",
    )

    score = command("score", _score, "apply each run's best parameters to the test set, once")
    _add_run_options(score, several=True)

    sample = command("sample", _sample, "let a run's model draw samples")
    sample.add_argument("--data", type=_path, required=True, help="folder of the six arrays")
    sample.add_argument("--run", type=_path, required=True, help="folder of the run")
    sample.add_argument("--threads", type=_positive, default=1, help="of the CPU")

    tabulate = command("tabulate", _tabulate, "write the score table of all runs")
    compare = command("compare-published", _compare, "hold the runs against the published rows")
    for subparser in (tabulate, compare):
        subparser.add_argument("runs", nargs="+", type=_path, help="folders of scored runs")
        subparser.add_argument("--output", type=_path, required=True, help="folder of the tables")

    select = command("select", _select, "keep the best model of all runs, and write its card")
    select.add_argument("runs", nargs="+", type=_path, help="folders of scored runs")
    select.add_argument("--data", type=_path, required=True, help="folder of the six arrays")
    select.add_argument("--output", type=_path, required=True, help="folder of model and card")

    predict = command("predict", _predict, "say which class pictures of digits are of")
    predict.add_argument("images", nargs="+", type=_path, metavar="IMAGE", help="PNG, JPEG, ...")
    predict.add_argument("--json", action="store_true", help="print JSON instead of a table")
    predict.add_argument("--show", type=_path, metavar="FILE.png", help="draw what the network saw")

    export = command("export", _export, "write the model in a form that other programs run")
    export.add_argument("--onnx", type=_path, required=True, metavar="FILE", help="file to write")
    for subparser in (predict, export):
        subparser.add_argument(
            "--model", type=_path, default=BEST_MODEL, help=f"model file; default: {BEST_MODEL}"
        )

    report = command("report", _report, "tell the story of the runs on one HTML page")
    report.add_argument(
        "runs", nargs="+", type=_path, help="folders of scored runs, and of runs without labels"
    )
    report.add_argument("--data", type=_path, required=True, help="folder of the six arrays")
    report.add_argument("--output", type=_path, required=True, help="HTML file to write")
    report.add_argument("--configuration", metavar="FILE", help="what the page says to edit")
    report.add_argument("--made-by", metavar="COMMAND", help="what it says to give again")

    plot = command("plot", _plot, "draw a figure from saved files")
    plot.add_argument("figure", choices=sorted(FIGURES))
    drawn = plot.add_mutually_exclusive_group()
    drawn.add_argument("--run", type=_path, help="folder of the run")
    drawn.add_argument(
        "--best-of",
        type=_path,
        nargs="+",
        metavar="RUN",
        help="in place of --run: folders of runs, that of the lowest validation error is drawn",
    )
    plot.add_argument("--data", type=_path, help="folder of the six arrays")
    plot.add_argument("--runs", type=_path, nargs="+", help="folders of the runs to be compared")
    plot.add_argument("--over", metavar="KEY", help="the hyperparameter they are compared over")
    plot.add_argument("--output", type=_path, required=True, help="PNG or GIF file to write")
    for key, schema in _plot_settings().items():
        option = f"--{key.replace('_', '-')}"
        number = {"integer": int, "number": float, "string": str}[schema["type"]]
        plot.add_argument(
            option, type=number, default=schema["default"], help=schema["description"]
        )

    events = command("tensorboard", _tensorboard, "write a run as an event file for TensorBoard")
    events.add_argument("--run", type=_path, required=True, help="folder of the run")
    events.add_argument("--output", type=_path, required=True, help="folder of the event file")

    watch = command("watch", _watch, "show all runs, training and finished, in a live table")
    watch.add_argument("results", nargs="?", type=_path, default="results", help="default: results")
    watch.add_argument("--once", action="store_true", help="show the table once and end")
    watch.add_argument(
        "--every",
        type=_number_of("seconds", 0.1, 86400),
        default=2.0,
        metavar="S",
        help="seconds between looks; default: 2",
    )

    verify = command("verify", _verify, "check every hash of results, and count every error anew")
    verify.add_argument(
        "results", nargs="?", type=_path, default="results", help="default: results"
    )
    verify.add_argument("--backend", default="auto", choices=("auto", *DEVICES))
    verify.add_argument("--threads", type=_positive, default=1, help="of the CPU backend")

    check = command("check-config", _check_config, "say whether a configuration can be used")
    check.add_argument("file", type=_path, help="YAML or JSON; nothing that it holds is executed")

    describe = command("describe-config", _describe_config, "write the table of configuration keys")
    describe.add_argument("--output", type=_path, help="Markdown file; standard output by default")
    return parser


def _plot_settings():
    """Return the schema of each key of ``plots`` in the configuration that shapes a figure."""
    keys = load_schema()["properties"]["plots"]["properties"]
    return {key: schema for key, schema in keys.items() if schema["type"] != "boolean"}


FLOATS = ("float32", "float64")
BEST_MODEL = Path("results") / "best_model.npz"


def _add_run_options(parser, several=False):
    runs = (
        {"nargs": "+", "help": "folders of the runs"} if several else {"help": "folder of the run"}
    )
    parser.add_argument("--data", type=_path, required=True, help="folder of the six arrays")
    parser.add_argument("--run", type=_path, required=True, **runs)
    parser.add_argument("--backend", default="auto", choices=("auto", *DEVICES))
    parser.add_argument("--threads", type=_positive, default=1, help="of the CPU backend")
    parser.add_argument(
        "--device-chunk-batches",
        dest="chunk_batches",
        type=_positive_or_null,
        metavar="N",
        help="training minibatches a CUDA device holds at a time; all of them by default",
    )


def _path(text):
    """Return the Path; an empty one would be the current folder, which nobody means by it."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; is a variable of the shell not set?")
    return Path(text)


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number >= 1")
    return int(text)


def _number_of(what, lowest, highest=math.inf):
    """Return the function that reads a finite number of ``what`` from ``lowest`` to ``highest``."""
    allowed = f">= {lowest}" if highest == math.inf else f"from {lowest} to {highest}"

    def read(text):
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not lowest <= number <= highest or math.isinf(number):
            raise argparse.ArgumentTypeError(f"{text} is not a number of {what} {allowed}")
        return number

    return read


def _positive_or_null(text):
    return None if text == "null" else _positive(text)


class _LogFile(logging.FileHandler):
    """A log file that may end early: where the disk is full, what was computed is of more worth."""

    def handleError(self, record):  # noqa: N802  # logging's name
        """Say nothing; the file that is to hold a result says that there is no room."""


def _set_up_logging(path):
    """Send results, warnings and errors to standard error; if ``path`` is given, everything to it.

    Without ``path`` everything goes to standard error.
    """
    logging.addLevelName(RESULT, "RESULT")
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(RESULT if path else logging.INFO)
    clear = "\r\033[K" if sys.stderr.isatty() else ""  # another training's progress bar
    terminal.setFormatter(logging.Formatter(clear + "%(message)s"))
    logger = logging.getLogger("msgd")
    for handler in logger.handlers:  # of a call before, in the same process
        handler.close()
    logger.handlers[:] = [terminal]
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _LogFile(path, "w", encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(file)
    logger.setLevel(logging.INFO)


# Each function imports what it needs: drawing a plot does not load Numba.


def _download(options):
    from msgd.data.download import download_mnist

    download_mnist(options.path)


def _unpickle(options):
    from msgd.data.unpickle import unpickle

    unpickle(options.path, options.output, options.float_x, options.expect_mnist)


PR_SET_PDEATHSIG = 1  # of prctl(2)


def _end_with(process):
    """Let Linux kill this process when the one that started it ends: ``process``, its number.

    If another program stands between the two, the end of that one counts. A training that outlives
    its Snakemake would write into the same folder as the next one of that run. Killed at once it
    does no more than states are kept for; asked to end, it would first clean up what may already be
    the next one's.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(PermissionError):
        try:
            os.kill(process, 0)  # asks whether it is there, for it may have ended before
        except ProcessLookupError:
            reason = f"process {process}, with which this one is to end, has ended"
            raise UserError(reason) from None


def _train(options):
    if options.end_with is not None:
        _end_with(options.end_with)
    import msgd.kernels.options  # noqa: F401  # before Numba, whose settings it checks
    from msgd.config import check_arithmetic, complete_experiment, parse_hyperparameter_words
    from msgd.data.content import check_images
    from msgd.data.dataset import SPLITS, load_dataset
    from msgd.network_size import check_memory
    from msgd.training.run import run_training

    dataset = load_dataset(options.data)
    check_images(dataset, SPLITS)
    settings = complete_experiment(parse_hyperparameter_words(options.hyperparameters))
    check_arithmetic({"": settings}, options.backend, options.float_x)
    check_memory(settings, dataset, options.float_x)
    _log_start(settings, options.float_x, dataset)
    run_training(
        options.data,
        options.run,
        settings,
        options.backend,
        options.float_x,
        options.threads,
        options.chunk_batches,
        options.states,
        options.seconds_between_states,
    )


def _log_start(settings, float_x, dataset):
    """Let the log begin with what is trained, by which it can be followed (msgd watch)."""
    from msgd.config import resolve_batch_size
    from msgd.models import load_stages
    from msgd.models.interface import n_evaluated
    from msgd.training_log import describe_start

    n_train, n_valid = len(dataset.train_x), len(dataset.valid_x)
    stages = load_stages(resolve_batch_size(settings, n_train))
    n_counted = sum(n_evaluated(n_valid, s.batch_size) for s in stages if s.is_validated)
    for line in describe_start(settings, float_x, n_train, n_valid, n_counted):
        log.info("%s", line)


def _clean_states(options):
    from msgd.training.checkpoint import clean_states

    if not options.states.is_dir():
        raise UserError(f"{options.states} is not a folder; give the one that holds the states")
    count = clean_states(options.states, options.unused_days)
    log.info("removed %d states from %s", count, options.states)


def _score(options):
    import msgd.kernels.options  # noqa: F401  # before Numba, whose settings it checks
    from msgd.evaluation.score import score_run

    for run in options.run:
        score_run(options.data, run, options.backend, options.threads, options.chunk_batches)


def _sample(options):
    import msgd.kernels.options  # noqa: F401  # before Numba, whose settings it checks
    from msgd.evaluation.samples import sample_run

    sample_run(options.data, options.run, options.threads)


def _tabulate(options):
    from msgd.evaluation.tables import write_score_table

    write_score_table(options.runs, options.output)


def _compare(options):
    from msgd.evaluation.tables import write_published_table

    write_published_table(options.runs, options.output)


def _select(options):
    from msgd.evaluation.model_card import write_best_model

    write_best_model(options.runs, options.data, options.output)


def _tensorboard(options):
    from msgd.evaluation.tensorboard import write_event_file

    log.info("wrote %s", write_event_file(options.run, options.output))


def _watch(options):
    from msgd.evaluation.watch import watch

    watch(options.results, options.every, options.once)


def _verify(options):
    from msgd.evaluation.verify import HINT, verify

    findings = verify(options.results, options.backend, options.threads)
    for finding in findings:
        log.error("msgd verify: error: %s", finding)
    if findings:
        log.error("msgd verify: %s", HINT)
    return 1 if findings else 0


def _predict(options):
    from msgd.inference.model_file import load_model_file
    from msgd.inference.predict import as_json, as_table, draw_seen, predict_pictures

    if options.show and options.show.suffix.lower() != ".png":
        raise UserError(f"--show is {options.show}; what the network saw is drawn as a .png")
    model = load_model_file(options.model)
    predictions, faults = predict_pictures(model, options.images)
    if predictions and options.show:
        draw_seen(model, predictions, options.show)
    if predictions or options.json:
        _print(as_json(predictions) if options.json else as_table(predictions))
    for fault in faults:  # the others were used
        log.error("msgd predict: error: %s", fault)
    return 1 if faults else 0


def _export(options):
    from msgd.inference.export import write_onnx
    from msgd.inference.model_file import load_model_file

    write_onnx(load_model_file(options.model), options.onnx)


def _print(text):
    """Write a result to standard output: in UTF-8, as files are, whatever the locale."""
    with standard_output():
        sys.stdout.buffer.write(text.encode())


def _report(options):
    from msgd.report.page import write_report
    from msgd.report.sections import HOW

    given = {"configuration": options.configuration, "command": options.made_by}
    how = HOW._replace(**{key: text for key, text in given.items() if text})
    write_report(options.runs, options.data, options.output, how)


def _check_config(options):
    from msgd.config import complete_config
    from msgd.config_file import read_file
    from msgd.data.unpickle import known_sizes
    from msgd.network_size import check_sizes

    config = complete_config(read_file(options.file))
    check_sizes(config["experiments"], known_sizes(config["dataset"]))
    log.log(RESULT, "%s can be used", options.file)


def _describe_config(options):
    from msgd.config import describe_config
    from msgd.files import write_text

    if options.output:
        write_text(options.output, describe_config())
    else:
        _print(describe_config())


def _plot(options):
    function, needed, suffix = FIGURES[options.figure]
    if options.output.suffix.lower() != suffix:
        raise UserError(f"--output is {options.output}; the figure {options.figure} is a {suffix}")
    check_plot_settings({key: getattr(options, key) for key in _plot_settings()})
    if options.best_of:
        from msgd.evaluation.selection import best_run

        options.run = best_run(options.best_of)
        log.info("the best of %s: %s", times(len(options.best_of), "run"), options.run)
    missing = [f"--{name}" for name in needed if getattr(options, name) is None]
    if missing:
        raise UserError(f"the figure {options.figure} needs {' and '.join(missing)}")
    function(options)


def _plot_learning_curve(options):
    from msgd.plots.learning_curve import plot_learning_curve

    plot_learning_curve(options.run, options.output, options.dpi)


def _plot_learning_curve_so_far(options):
    from msgd.plots.learning_curve import plot_learning_curve_so_far

    plot_learning_curve_so_far(options.run, options.output, options.dpi)


def _plot_weights(options):
    from msgd.plots.weights import plot_weights

    plot_weights(options.data, options.run, options.output, options.dpi, options.colormap)


def _animate_weights(options):
    from msgd.plots.weights import animate_weights

    animate_weights(
        options.data,
        options.run,
        options.output,
        options.dpi,
        options.colormap,
        options.frames_per_second,
    )


def _plot_confusion(options):
    from msgd.plots.mistakes import plot_confusion

    plot_confusion(options.data, options.run, options.output, options.dpi)


def _plot_mistakes(options):
    from msgd.plots.mistakes import plot_mistakes

    plot_mistakes(options.data, options.run, options.output, options.dpi, options.n_mistakes)


def _plot_reconstructions(options):
    from msgd.plots.reconstructions import plot_reconstructions

    plot_reconstructions(options.data, options.run, options.output, options.dpi)


def _plot_samples(options):
    from msgd.plots.samples import plot_samples

    plot_samples(options.data, options.run, options.output, options.dpi)


def _plot_validation_error_over(options):
    from msgd.plots.comparison import plot_validation_error_over

    plot_validation_error_over(options.runs, options.over, options.output, options.dpi)


# Each figure: the function that draws it, the options it cannot do without, the kind of file.
FIGURES = {
    "learning_curve": (_plot_learning_curve, ["run"], ".png"),
    "learning_curve_so_far": (_plot_learning_curve_so_far, ["run"], ".png"),
    "weights": (_plot_weights, ["run", "data"], ".png"),
    "weights_animation": (_animate_weights, ["run", "data"], ".gif"),
    "confusion": (_plot_confusion, ["run", "data"], ".png"),
    "mistakes": (_plot_mistakes, ["run", "data"], ".png"),
    "reconstructions": (_plot_reconstructions, ["run", "data"], ".png"),
    "samples": (_plot_samples, ["run", "data"], ".png"),
    "validation_error_over": (_plot_validation_error_over, ["runs", "over"], ".png"),
}

if __name__ == "__main__":
    sys.exit(main())
