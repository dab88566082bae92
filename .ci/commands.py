"""The commands that README and docs show: all of them known here, and run as they are shown.

    python .ci/commands.py check          every command shown is listed in .ci/commands.yaml, and
                                          every one listed is shown
    python .ci/commands.py run NAME       run those of the environment NAME, in this one

.ci/run makes each environment afresh, with what the text asks for and nothing more.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "results/README.md", "config/README.md", "docs/*.md")
PROGRAMS = (
    "snakemake|msgd|pip|pytest|python|ruff|snakefmt|uv|bash|squeue|scancel|for|cp|cd|mkdir"
    "|sphinx-build|tensorboard|export|echo"
)
SETTING = r"[A-Z_]+=\S+ "
BLOCK = re.compile(rf"^    ((?:{SETTING})*(?:{PROGRAMS})(?: .+)?)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)  # code, not commands
CODE = {"python", "yaml"}  # what may be fenced; commands are indented, where they are found
# Between backquotes a program's bare name is a name.
INLINE = re.compile(rf"`((?:{SETTING})+(?:{PROGRAMS})(?: [^`]+)?|(?:{PROGRAMS}) [^`]+)`")


def shown():
    """Return {command: page} of every command in a block or between backquotes on a page."""
    found = {}
    for pattern in PAGES:
        for page in sorted(ROOT.glob(pattern)):
            text = FENCED.sub("", page.read_text(encoding="utf-8")).replace("\\\n", " ")
            for command in [*BLOCK.findall(text), *INLINE.findall(text)]:
                # A remark after the command, and the lines of a long one, are the page's.
                command = " ".join(re.sub(r"\s{2,}#.*", "", command).split())
                found.setdefault(command, page.relative_to(ROOT).as_posix())
    return found


def listed():
    """Return the entries of commands.yaml: {environment: {command: what to do}}."""
    return yaml.safe_load((ROOT / ".ci" / "commands.yaml").read_text(encoding="utf-8"))


def fenced_otherwise():
    """Yield (page, language) of each fenced block that is not code, and might hide commands."""
    for pattern in PAGES:
        for page in sorted(ROOT.glob(pattern)):
            for block in FENCED.findall(page.read_text("utf-8")):
                language = block.partition("\n")[0].strip("`")
                if language not in CODE:
                    yield page.relative_to(ROOT).as_posix(), language


def check():
    """Return the exit code: 1 if the pages and the list differ, or a block is fenced otherwise."""
    on_pages = shown()
    in_list = {command for entries in listed().values() for command in entries}
    for command in sorted(set(on_pages) - in_list):
        print(f"{on_pages[command]} shows a command that .ci/commands.yaml lacks: {command}")
    for command in sorted(in_list - set(on_pages)):
        print(f".ci/commands.yaml lists a command that no page shows: {command}")
    hidden = [*fenced_otherwise()]
    for page, language in hidden:
        print(f"{page} has a block fenced as {language!r}, whose commands would not be found")
    return int(in_list != set(on_pages) or bool(hidden))


def run(environment):
    """Run the commands of ``environment``; return the exit code of the first that fails, else 0.

    An entry's value is "run", or the shorter form to run in its place (``run: ...``), or the reason
    why it is not run (``not run: ...``), which is printed.
    """
    for number, (command, what) in enumerate(listed()[environment].items()):
        verb, _, rest = what.partition(": ")
        if verb == "not run":
            print(f"--- not run: {command}\n    because {rest}", flush=True)
            continue
        shell = rest or command
        print(f"--- {shell}", flush=True)
        started = time.monotonic()
        folder = f"{os.environ.get('SCRATCH', 'build')}/junit"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", shell],
            cwd=ROOT,
            check=False,
            # For docs/trust.py, where the command is one of tests.
            env={**os.environ, "PYTEST_ADDOPTS": f"--junitxml={folder}/{environment}-{number}.xml"},
        )
        print(f"--- exit code {done.returncode}, {time.monotonic() - started:.0f} s", flush=True)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(check() if sys.argv[1] == "check" else run(sys.argv[2]))
