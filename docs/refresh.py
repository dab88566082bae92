"""Bring the README's picture and table, the page on performance and the code on pages up to date.

The README's table holds the runs in full: those of results/, after `snakemake --cores all`, and the
committed ones of docs/published, with a word on whether today's source made them; the tables of the
other pages are made of benchmarks/results. Functions that a page shows are copied from the source.
The pictures and costs of models that learn without labels are renewed where results/ has those of
config/unsupervised.yaml and config/pretraining.yaml. The speeds by which `backend: auto` decides
are taken from benchmarks/results too. The picture of the rules is drawn of what Snakemake says of
them. With --check files are only compared, the committed runs and golden trajectories that another
source made are named, and the exit code is 1 if a page is out of date.
"""

import argparse
import ast
import re
import shutil
import statistics
import sys
import textwrap
from pathlib import Path

import pandas as pd
import yaml
from PIL import Image

from msgd.backends import SPEEDS_FILE
from msgd.files import read_json
from msgd.models import MODELS
from msgd.provenance import device_of, is_made_by_this_source

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
from gpu_estimate_table import KERNELS  # noqa: E402
from rule_graph import draw, rules_and_needs  # noqa: E402

README = ROOT / "README.md"
PICTURE = "logistic_regression/default/weights.png"
# Those of config/unsupervised.yaml: name in docs/images, figure.
PICTURES = {
    "filters_da.png": "da/default/weights.png",
    "filters_da_uncorrupted.png": "da_uncorrupted/default/weights.png",
    "reconstructions_da.png": "da/default/reconstructions.png",
    "filters_rbm.png": "rbm/default/weights.png",
    "samples_rbm.png": "rbm/default/samples.png",
}
UNLABELLED = ["da", "da_uncorrupted", "ca", "rbm"]
# The log pseudo-likelihood of each epoch in the chapter on restricted Boltzmann machines.
PUBLISHED_RBM = [
    *(-90.65, -81.24, -74.91, -73.02, -68.41, -63.27, -66.00, -68.12, -68.32),
    *(-64.29, -61.52, -61.65, -63.55, -63.38, -62.76),
]
SHOWN = ["experiment", "quantity", "published", "reproduced", "equal", "trained by", "source"]
PERFORMANCE = ROOT / "docs" / "performance.md"
READING = ROOT / "docs" / "reading-the-kernels.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"
UNSUPERVISED = ROOT / "docs" / "unsupervised.md"
RULES = ROOT / "docs" / "images" / "rules.svg"
USING = ROOT / "docs" / "using-a-model.md"
GPU_DAY = ROOT / "docs" / "gpu-day.md"
TRUST = ROOT / "docs" / "trust.md"
MEASURED = ROOT / "benchmarks" / "results"
PUBLISHED = ROOT / "docs" / "published"


def table_of_full_runs():
    """Return the Markdown table of published figures and those of runs that were not cut."""
    frames = []
    for folder, runs in ((ROOT / "results", ROOT / "results" / "runs"), (PUBLISHED, PUBLISHED)):
        frame = pd.read_csv(folder / "published.csv", dtype=str)
        names = frame["experiment"] + "/" + frame["run"]
        frame["trained by"] = [made_by(runs / name / "provenance.json") for name in names]
        frames.append(frame)
    frame = pd.concat(frames)
    shown = frame.loc[frame["epochs"] == "in full", SHOWN]
    return shown.to_markdown(index=False, disable_numparse=True) + "\n"


TODAYS = "today's code"


def made_by(path):
    """Return in a few words which code made the run whose provenance.json is at ``path``."""
    record = read_json(path)
    model, device = record["settings"]["model"], device_of(record["device"])
    if is_made_by_this_source(record["code"], model, device):
        return TODAYS
    return f"the code of {(record['code']['commit'] or 'no commit')[:12]}"


def outdated():
    """Return what is committed and was made by another source than today's: a line for each."""
    lines = []
    for path in sorted(PUBLISHED.glob("*/*/provenance.json")):
        if (words := made_by(path)) != TODAYS:
            lines.append(f"{path.parent.relative_to(ROOT)} was made by {words}; train it anew")
    for path in sorted((ROOT / "tests" / "golden").glob("*.json")):
        record = read_json(path)
        if not is_made_by_this_source(record["code"], record["model"], record["device"]):
            name = path.relative_to(ROOT)
            lines.append(f"{name} was made by an earlier source; see make.py there")
    return lines


def measured_speeds():
    """Return the text of measured_speeds.yaml: its remarks, and a row per model of the GPU day."""
    lines = SPEEDS_FILE.read_text(encoding="utf-8").splitlines(keepends=True)
    head = "".join(line for line in lines if line.startswith("#"))
    if not (MEASURED / "gpu_day.json").exists():
        return head + "[]\n"
    day = read_measured("gpu_day")
    rows = [
        {
            "model": model,
            "gpu": day["hardware"]["gpu"].partition(",")[0],  # its name
            "cuda": speed["cuda"]["epochs_per_second"],
            "cpu": speed["cpu"]["epochs_per_second"],
            "commit": commit_of_speed(day),
        }
        for model, speed in day["steps"].get("speed", {}).items()
        if isinstance(speed, dict) and {"cuda", "cpu"} <= set(speed)
    ]
    return head + yaml.safe_dump(rows, sort_keys=False)


def commit_of_speed(day):
    """Return the commit that a GPU day's speeds are of: an earlier one's where they were kept."""
    kept = day["outcome"].get("speed", {}).get("commit")
    return kept or day["code"]["commit"]


def read_measured(name):
    """Return what a benchmark found: benchmarks/results/``name``.json."""
    return read_json(MEASURED / f"{name}.json")


def as_markdown(rows, results, more=""):
    """Return a Markdown table of ``rows`` and the line that says what they were measured on."""
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    hardware = results["hardware"]
    where = f"{hardware['processor']}, {hardware['cores']} cores; {more}"
    commit = (results["code"]["commit"] or "of no clone")[:12]
    return f"{table}\n\nMeasured on {where}commit {commit}.\n"


def table_of_comparison(name, *more):
    """Return the Markdown table of speeds in a comparison, and the ratios of others, ``more``."""
    results, again = read_measured(name), [*map(read_measured, more)]
    unit = results.get("unit", "epochs")
    libraries = [*dict.fromkeys(name for runs in results["models"].values() for name in runs)]
    rows = []
    for model, runs in results["models"].items():
        row = {f"{unit}/s": model}
        for library in libraries:
            run = runs.get(library)
            row[library] = "–"
            if run:
                low, high = run["spread"]
                several = len(run[f"{unit}_per_second"]) > 1
                spread = f" ({in_digits(low)}–{in_digits(high)})" if several else ""
                row[library] = f"{in_digits(run['median'])}{spread}"
        ours = runs["msgd"]
        row["msgd / best other"] = f"{ours['ratio_to_best']:.2f} ({ours['best_competitor']})"
        if "target" in ours:
            reached = "reached" if ours["is_reached"] else "not reached"
            row["aimed at"] = f"{ours['target']}, {reached}"
        if again:
            ratios = (run["models"][model]["msgd"]["ratio_to_best"] for run in again)
            commit, processor = again[0]["code"]["commit"][:7], again[0]["hardware"]["processor"]
            row[f"at {commit}, {processor}"] = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        rows.append(row)
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return as_markdown(rows, results, f"{versions}; ")


def in_digits(rate):
    """Return ``rate`` with three digits, or as a whole number if that has more."""
    return f"{rate:.3g}" if rate < 1000 else f"{rate:,.0f}"


def comparison_without_labels():
    """Return the same of the models without labels, and its picture."""
    name = "compare_unsupervised"
    if not (MEASURED / f"{name}.json").exists():
        return "Nothing has been measured yet.\n"
    picture = f"![Minibatches per second of each library](images/{name}.png)"
    return f"{table_of_comparison(name)}\n{picture}\n"


def range_of(numbers, median):
    """Return the median of ``numbers`` and, in brackets, the least and the greatest of them."""
    return f"{median:.0f} ({min(numbers):.0f}–{max(numbers):.0f})"


def ratio_by_turns(run, smallest):
    """Return the median over turns of what an example of ``run`` costs beside its ``smallest``."""
    pairs = zip(run["nanoseconds_per_example"], smallest[run["model"]], strict=True)
    return statistics.median(nanoseconds / fewest for nanoseconds, fewest in pairs)


def table_of_scale():
    """Return the Markdown table of cost per example and memory by size."""
    results = read_measured("scale")
    smallest = {}  # each model's run over the fewest images, which comes first
    for run in results["runs"]:
        smallest.setdefault(run["model"], run["nanoseconds_per_example"])
    rows = [
        {
            "model": run["model"],
            "images": f"{run['images']:,}",
            "ns per example": range_of(run["nanoseconds_per_example"], run["median"]),
            "turn by turn": f"{ratio_by_turns(run, smallest):.2f}",
            "listing, ns per example": f"{run['listing_nanoseconds_per_example']:.0f}",
            "peak memory, MB": str(run["peak_resident_megabytes"]),
        }
        for run in results["runs"]
    ]
    return as_markdown(rows, results)


def table_of_processes():
    """Return the Markdown table of start-up and of runs side by side."""
    results = read_measured("processes")
    rows = [
        {
            "model": model,
            "warm, s": run["warm_seconds"],
            "cold, s": run["cold_seconds"],
            "two side by side / one": run["side_by_side_ratio"],
        }
        for model, run in results["models"].items()
    ]
    return as_markdown(rows, results)


def table_of_reference():
    """Return the Markdown table of what a minibatch costs in plain loops and in fast kernels."""
    results = read_measured("reference")
    rows = []
    for model, run in results["models"].items():
        seconds = run["seconds_per_minibatch"]
        rows.append(
            {
                "model": model,
                "batch size": run["batch_size"],
                "plain loops, ms": f"{1000 * seconds['reference']:.3g}",
                "fast, one thread, ms": f"{1000 * seconds['one_thread']:.3g}",
                "times as fast": f"{run['ratio_on_one_thread']:.1f}",
                "fast, all cores, ms": f"{1000 * seconds['all_cores']:.3g}",
            }
        )
    return as_markdown(rows, results)


def table_of_gpu():
    """Return the Markdown table of epochs per second on a GPU, and the line that says on which."""
    if not (MEASURED / "gpu_day.json").exists():
        return "Nothing has been measured on a GPU yet.\n"
    day = read_measured("gpu_day")
    speeds, others = (day["steps"].get(name, {}) for name in ("speed", "torch"))
    rows = []
    for model in MODELS:
        speed, torch = speeds.get(model, {}), others.get(model, {})
        cuda, cpu = speed.get("cuda", {}), speed.get("cpu", {})
        threads = f" ({cpu['threads']} threads)" if cpu else ""
        row = {
            "epochs/s": model,
            "numba.cuda": rate(cuda.get("epochs_per_second")),
            "its training alone": rate(cuda.get("training_epochs_per_second")),
            "our CPU kernels there": rate(cpu.get("epochs_per_second")) + threads,
        }
        row |= {f"PyTorch {way}": rate(torch.get(way)) for way in ("eager", "graph", "compile")}
        rows += [row] if speed or torch else []
        if tf32 := speed.get("cuda TF32"):
            ours = {
                "epochs/s": f"{model}, arithmetic: tf32",
                "numba.cuda": rate(tf32["epochs_per_second"]),
                "its training alone": rate(tf32["training_epochs_per_second"]),
            }
            rows.append({name: ours.get(name, "") for name in row})
    gpu = (day["hardware"]["gpu"] or "no GPU").partition(",")[0]
    versions = ", ".join(f"{name} {day['packages'].get(name)}" for name in ("numba-cuda", "torch"))
    measured = {**day, "code": {"commit": commit_of_speed(day)}}
    return as_markdown(rows, measured, f"{gpu}; {versions}; ")


def rate(number):
    """Return ``number`` with three digits, or a dash for None."""
    return "–" if number is None else f"{float(f'{number:.3g}'):g}"


def table_of_designs():
    """Return the Markdown table of what drafts of faster CUDA kernels took."""
    rows = []
    for draft in read_measured("gpu_designs")["designs"]:
        epochs = 1e6 / draft["us_per_step"] / draft["minibatches"]
        rows.append(
            {
                "model": draft["model"],
                "draft": draft["design"],
                "µs a minibatch": rate(draft["us_per_step"]),
                "epochs/s": rate(epochs),
            }
        )
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True) + "\n"


def table_of_estimates():
    """Return the Markdown table of the accepted estimates beside what was measured."""
    estimates, day = read_measured("gpu_estimate"), read_measured("gpu_day")
    rows = []
    for kernel in KERNELS:
        estimate = estimates["kernels"].get(kernel.name)
        if estimate is None:
            continue
        longest = max(estimate["phases"], key=estimate["phases"].get)
        share = estimate["phases"][longest] / estimate["us_per_step"]
        rows.append(
            {
                "kernel": kernel.name,
                "µs a minibatch": rate(estimate["us_per_step"]),
                "longest phase": f"{longest} ({share:.0%})",
                "epochs/s": rate(estimate["epochs_per_second"]),
                "measured": measured_epochs(kernel, day),
            }
        )
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    compilers = ", ".join(f"{name} {version}" for name, version in estimates["compilers"].items())
    commit = commit_of_speed(day)[:12]
    return f"{table}\n\nCompiled by {compilers}; measured at commit {commit}.\n"


def measured_epochs(kernel, day):
    """Return epochs/s that a GPU day measured of a Kernel of the table of estimates, as text.

    Of one that it did not measure, those of a draft, or a dash.
    """
    if kernel.measured_at == commit_of_speed(day)[:12]:
        speed = day["steps"].get("speed", {}).get(kernel.model, {}).get(kernel.speed, {})
        return rate(speed.get("training_epochs_per_second"))
    for draft in read_measured("gpu_designs")["designs"]:
        if draft["design"] == kernel.draft:
            return f"a draft: {rate(1e6 / draft['us_per_step'] / kernel.minibatches)}"
    return rate(None)


def table_of_predict():
    """Return the Markdown table of the shares of digits recognised in pictures of several forms."""
    results = read_measured("predict")
    n = results["digits"]
    rows = []
    for form, counts in results["recognised"].items():
        row = {f"of {n} digits, recognised": form}
        refused = counts.pop("refused", 0)
        rows.append(row | {name: f"{count / n:.1%}" for name, count in counts.items()})
        if refused:
            rows[-1][next(iter(row))] += f" ({refused} found blank)"
    return as_markdown(rows, results)


def table_of_fits():
    """Return the Markdown table of fits on MNIST, ours beside scikit-learn's own classifiers."""
    results = read_measured("sklearn_fit")
    rows = [
        {
            "fit": name,
            "s, first in a process": f"{fit['median_seconds_first']:.3g}",
            "s, again": f"{fit['median_seconds']:.3g}",
            "test error": f"{fit['median_test_error_percent']:.2f} %",
            "epochs or iterations": fit["turns"][0]["n_iter"],
        }
        for name, fit in results["fits"].items()
    ]
    return as_markdown(rows, results)


def table_of_fits_compared():
    """Return the Markdown table of how many times faster our fits are than as good ones."""
    results = read_measured("sklearn_fit")
    rows = [
        {
            "fit": name,
            "fastest that is as good": found["fastest_as_good"],
            "times faster, first": f"{found['times_faster_first']:.1f}",
            "again": f"{found['times_faster']:.1f}",
        }
        for name, found in results["comparison"].items()
        if found["fastest_as_good"]
    ]
    return as_markdown(rows, results)


def table_of_sweep():
    """Return the Markdown table of what a run of a grid costs, by what it is spent on."""
    results = read_measured("sweep")
    by_command, n = results["by_command"], results["runs"]
    spent = {name: by_command[name]["cpu_seconds"] for name in ("train", "score")}
    others = (cost for name, cost in by_command.items() if name not in spent)
    spent["all figures, tables and pages"] = sum(cost["cpu_seconds"] for cost in others)
    spent["Snakemake and shells"] = results["snakemake_and_shells"]
    spent["all"] = results["cpu_seconds"]
    rows = [{f"of {n} runs": name, "CPU s per run": f"{s / n:.2f}"} for name, s in spent.items()]
    return as_markdown(rows, results)


def tables_of_trust():
    """Return {mark: what was counted} of docs/trust.md: a table by chapter, and where and when."""
    if not TRUST.with_suffix(".json").exists():
        return {}
    counted = read_json(TRUST.with_suffix(".json"))
    tables, total = {}, {"cases": 0, "tests": 0, "skipped": 0}
    for mark, promises in counted["promises"].items():
        rows = []
        for row in promises:
            skipped = f", {row['skipped']} skipped" if row["skipped"] else ""
            cases, tests = f"{row['cases']:,}", f"{row['tests']:,}{skipped}"
            rows.append({"promised": row["promise"], "cases": cases, "tests": tests})
            total = {name: number + row[name] for name, number in total.items()}
        table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
        tables[mark] = f"{table}\n"
    hardware, commit = counted["hardware"], (counted["code"]["commit"] or "of no clone")[:12]
    versions = ", ".join(f"{name} {version}" for name, version in counted["versions"].items())
    tables["counted"] = (
        f"In all {total['cases']:,} cases in {total['tests']:,} tests passed, and none failed. "
        f"Skipped, for what the machine lacks: {total['skipped']}. Run on {counted['date']} on "
        f"{hardware['processor']}, {hardware['cores']} cores; {versions}; commit {commit}.\n"
    )
    return tables


def table_of_costs():
    """Return the Markdown table of costs by epoch of config/unsupervised.yaml's runs.

    None where results/ does not have them all.
    """
    runs = {name: ROOT / "results" / "runs" / name / "default" for name in UNLABELLED}
    if not all((run / "provenance.json").exists() for run in runs.values()):
        return None
    columns = {name: pd.read_csv(run / "history.csv")["cost"] for name, run in runs.items()}
    columns["rbm, published"] = pd.Series(PUBLISHED_RBM)
    table = pd.DataFrame({name: costs.map("{:.2f}".format) for name, costs in columns.items()})
    table.index = pd.RangeIndex(1, len(table) + 1, name="epoch")
    return table.fillna("").to_markdown(disable_numparse=True, stralign="right") + "\n"


def table_of_pretraining():
    """Return the Markdown table of validation errors of config/pretraining.yaml's runs, or None."""
    runs = ROOT / "results" / "runs" / "deep"
    columns = {}
    for folder in sorted(runs.glob("pretraining_epochs=*")):
        history = pd.read_csv(folder / "history.csv")
        errors = history.loc[history["stage"] == "fine_tune", "validation_error_percent"]
        columns[folder.name.replace("=", ": ")] = errors.map("{:.2f}".format).to_numpy()
    if not columns:
        return None
    table = pd.DataFrame(columns)
    table.index = pd.RangeIndex(1, len(table) + 1, name="epoch")
    return table.to_markdown(disable_numparse=True, stralign="right") + "\n"


def copy_pictures():
    """Copy the figures that pages show to docs/images, in few colours, as far as there are any."""
    plots, images = ROOT / "results" / "plots", ROOT / "docs" / "images"
    shutil.copyfile(plots / PICTURE, images / "weights.png")
    for name, figure in PICTURES.items():
        if (plots / figure).exists():
            with Image.open(plots / figure) as picture:
                fewer = picture.convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE)
                fewer.save(images / name, optimize=True)


def with_code(text):
    """Return ``text`` with the source of functions between marks like ``code: FILE NAME``.

    FILE is a path below src/msgd, NAME a function or class of it, or CLASS.METHOD.
    """
    for path, name in re.findall(r"<!-- code: (\S+) (\S+): begin -->", text):
        source = (ROOT / "src" / "msgd" / path).read_text(encoding="utf-8")
        node = ast.parse(source)
        for part in name.split("."):
            (node,) = (inner for inner in node.body if getattr(inner, "name", "") == part)
        first = min([node.lineno, *(line.lineno for line in node.decorator_list)])
        lines = textwrap.dedent("\n".join(source.splitlines()[first - 1 : node.end_lineno]))
        text = refreshed(text, f"code: {path} {name}", f"```python\n{lines}\n```\n")
    return text


def refreshed(text, mark, table):
    """Return ``text`` with ``table`` between its two marks."""
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->\n"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return before + begin + table + end + after


def main():
    """Refresh or check; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    if not (ROOT / "results" / "published.csv").exists():
        print("results/published.csv is not there; run snakemake --cores all first")
        return 1
    tables = [
        (README, "published", table_of_full_runs()),
        (PERFORMANCE, "compare", table_of_comparison("compare", "compare_2", "compare_3")),
        (PERFORMANCE, "compare_unsupervised", comparison_without_labels()),
        (PERFORMANCE, "compare_busy", table_of_comparison("compare_busy")),
        (PERFORMANCE, "scale", table_of_scale()),
        (PERFORMANCE, "processes", table_of_processes()),
        (PERFORMANCE, "gpu", table_of_gpu()),
        (PERFORMANCE, "designs", table_of_designs()),
        (READING, "reference", table_of_reference()),
        (GPU_DAY, "estimates", table_of_estimates()),
        (PERFORMANCE, "fits", table_of_fits()),
        (PERFORMANCE, "fits_compared", table_of_fits_compared()),
        (PERFORMANCE, "sweep", table_of_sweep()),
        (USING, "predict", table_of_predict()),
        *((TRUST, mark, table) for mark, table in tables_of_trust().items()),
    ]
    of_runs = {"costs": table_of_costs(), "pretraining": table_of_pretraining()}
    tables += [(UNSUPERVISED, mark, table) for mark, table in of_runs.items() if table]
    wanted = {
        path: with_code(path.read_text("utf-8")) for path in (READING, TUTORIAL, UNSUPERVISED)
    }
    wanted[SPEEDS_FILE] = measured_speeds()
    wanted[RULES] = draw(rules_and_needs())
    for path, mark, table in tables:
        text = wanted.get(path) or path.read_text(encoding="utf-8")
        wanted[path] = refreshed(text, mark, table)
    out_of_date = 0
    for path, new in wanted.items():
        if new != path.read_text(encoding="utf-8"):
            out_of_date = 1
            if check:
                print(f"{path.relative_to(ROOT)} is out of date; run python docs/refresh.py")
            else:
                path.write_text(new, encoding="utf-8")
    for line in outdated():
        print(line)
    if check:
        return out_of_date
    copy_pictures()
    return 0


if __name__ == "__main__":
    sys.exit(main())
