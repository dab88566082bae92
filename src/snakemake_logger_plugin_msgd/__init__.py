"""What Snakemake writes on the terminal while this workflow runs: a line or two for each job.

Snakemake finds log handlers by the names of packages that begin like this one; the default profile
asks for it with ``logger: msgd``. ``-p`` shows the commands as well, ``--verbose`` all of a job.
"""

import logging
import os
import re
import sys

from snakemake.logging import DefaultFormatter, get_event, show_logs
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

CLEAR = "\r\033[K"  # of a terminal's line, where a training's progress bar may stand


class LogHandler(LogHandlerBase):
    """Writes what its formatter makes of a record; Snakemake filters by ``--quiet`` and ``-p``."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = False
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self):
        settings = self.common_settings
        form = PlanFormatter if settings.dryrun else ShortFormatter
        if settings.verbose or settings.debug_dag:
            form = LongFormatter
        self.setFormatter(form(settings.quiet, settings.show_failed_logs))
        self.stream = sys.stdout if settings.stdout else sys.stderr

    def emit(self, record):
        """Write the record's line; nothing where the formatter has none."""
        try:
            text = self.format(record)
            if text and text != "None":
                print(CLEAR * self.stream.isatty() + text, file=self.stream, flush=True)
        except BrokenPipeError:  # nobody reads any more, as after ``snakemake -n | head``
            self.stream = open(os.devnull, "w")  # noqa: SIM115, PTH123
        except Exception:
            self.handleError(record)


class LongFormatter(DefaultFormatter):
    """Snakemake's own long form, with the command of every job."""

    def format_job_info(self, message):
        """Return all there is to know of a job; its title alone would hide the rest."""
        text = super().format_job_info({**message, "rule_msg": None})
        return f"{text}\n    command: {message['shellcmd']}" if message["shellcmd"] else text


# What is said of every run, whatever it does: no news to anybody.
PREAMBLE = (
    *("Assuming unrestricted shared filesystem", "Building DAG of jobs", "Using shell"),
    *("Select jobs to execute", "Execute ", "Conda environments: ignored"),
    # Nor how to have files of changed settings taken for good.
    *("Some jobs were triggered by provenance information", "Rules with provenance triggered"),
)


# What Snakemake says at the end when a job failed or was interrupted, and what to add.
NOT_ALL = "At least one job did not complete successfully"
GOES_ON = "What is finished stays. The same command goes on from there."


class PlanFormatter(DefaultFormatter):
    """What would run, and why: the long form without the preamble, paths and dates."""

    def format(self, record):
        """Return the text of ``record``, "" for what is not shown."""
        is_preamble = record.levelno <= logging.INFO and str(record.msg).startswith(PREAMBLE)
        if is_preamble or get_event(record) in (LogEvent.WORKFLOW_STARTED, LogEvent.RESOURCES_INFO):
            return ""
        return super().format(record)

    def format_run_info(self, message):
        """Return the table of jobs; a plan ends with the same table, which is left out."""
        table, self.has_table = "" if self.has_table else message["msg"], True
        return table

    has_table = False

    def format_job_info(self, message):
        """Return the title of a job, and why it would run."""
        return f"{_title(message)}\n    {_what_changed(message['reason'])}"


class ShortFormatter(PlanFormatter):
    """A line when a job starts, and one when it has ended, with its number and its time."""

    def __init__(self, quiet=None, show_failed_logs=False):
        super().__init__(quiet, show_failed_logs)
        self.running = {}  # job number: (title, when it began)
        self.ended = []  # titles and seconds of jobs that have ended, not yet shown

    def format(self, record):
        """Return the text of ``record``; of a failed job the lines FAILED say all there is."""
        if get_event(record) == LogEvent.ERROR and "CalledProcessError" in str(record.msg):
            return ""
        text = super().format(record)
        is_end = get_event(record) == LogEvent.ERROR and NOT_ALL in str(record.msg)
        return f"{text}\n{GOES_ON}" if is_end else text

    def format_run_info(self, message):
        """Return how many jobs of which rule there are, on one line."""
        counts = {rule: n for rule, n in message["stats"].items() if rule not in ("total", "all")}
        listed = ", ".join(rule if n == 1 else f"{n} {rule}" for rule, n in counts.items())
        total = message["stats"]["total"]
        return f"{total} job{'s' * (total != 1)}: {listed}"

    def format_job_info(self, message):
        """Return the title of a job that begins, "" for one that only waits for others."""
        title = _title(message)
        self.running[message["jobid"]] = title, message["created"]
        return f"  {title}" if message["shellcmd"] else ""

    def format_job_finished(self, message):
        """Keep the job's title and time for the line on progress that follows."""
        title, began = self.running.pop(message["job_id"], ("", message["created"]))
        if title:
            self.ended.append(f"{title}, {message['created'] - began:.0f} s")
        return ""

    def format_progress(self, message):
        """Return the line of the jobs that have ended: how many of how many, which, how long."""
        ended, self.ended = self.ended, []
        width = len(str(message["total"]))
        return "\n".join(f"[{message['done']:{width}} of {message['total']}] {e}" for e in ended)

    def format_job_error(self, message):
        """Return which job failed, and where its messages are."""
        title, _ = self.running.pop(message["jobid"], (message["rule_name"], None))
        lines = [f"FAILED: {title}"]
        if message["rule_msg"]:  # of the error, not the rule's
            lines.append(f"    {message['rule_msg']}")
        if message["log"]:
            lines.append(f"    what it said: {', '.join(message['log'])}")
        if self.show_failed_logs:
            lines += show_logs(message["log"])
        return "\n".join(lines)


def _what_changed(reason):
    """Return Snakemake's ``reason`` for a job; of changed parameters only what differs."""
    lists = re.fullmatch(r"Params have changed .*? before: (.*?) now: (.*)", reason, re.DOTALL)
    if not lists:
        return re.sub(r"(?<=: )[^\s,;]+(?:, [^\s,;]+)+", _first_files, reason)
    before, now = (re.findall(r"'([^']*)'", text) for text in lists.groups())
    gone, new = ([w for w in a if w not in b] for a, b in ((before, now), (now, before)))
    words = [", ".join(w for w in side if not SHA256.fullmatch(w)) for side in (gone, new)]
    what = f"settings have changed: {' -> '.join(words)}" if any(words) else ""
    if any(map(SHA256.fullmatch, new)):
        what += "; " * bool(what) + "the source or the data set behind it has changed"
    return what or reason


SHA256 = re.compile("[0-9a-f]{64}")
FILES_NAMED = 3  # of those that are a reason: a grid has hundreds


def _first_files(match):
    """Return the first of the files of a ``match``, listed with commas, and how many more."""
    files = sorted(match[0].split(", "))
    more = len(files) - FILES_NAMED
    return ", ".join(files[:FILES_NAMED]) + (f" and {more} more" if more > 0 else "")


def _title(message):
    """Return what a job does and for which run: the message of its rule, else the rule's name."""
    return message["rule_msg"] or message["rule_name"]
