"""What the Snakemake Workflow Catalog asks of a workflow, and what its users do with this one.

The catalog lists a workflow under standardized usage if it has workflow/Snakefile, config/README.md
and .snakemake-workflow-catalog.yml. Its users fetch it with snakedeploy, which copies config/ and
profiles/ into a new folder and writes a Snakefile there that takes the workflow as a module.
"""

import re
import shutil

import pytest
import yaml
from conftest import ROOT, as_triple, make_dataset, needs_shipped_config, run, save_npz

from msgd.config import complete_config

CATALOG = ROOT / ".snakemake-workflow-catalog.yml"
WORKFLOW = ROOT / "workflow"
# The Snakefile that snakedeploy writes, but for a path in the place of a repository's address.
DEPLOYED = f"""
configfile: "config/config.yaml"
module msgd:
    snakefile: "{WORKFLOW}/Snakefile"
    config: config
use rule * from msgd
"""
TOY = {"model": "logistic_regression", "batch_size": 20, "n_epochs": 2}


def usage():
    (key,) = catalog = yaml.safe_load(CATALOG.read_text(encoding="utf-8"))
    assert key == "usage"
    return catalog[key]


def rules():
    """The text of every file of rules, but for what is a remark."""
    files = [WORKFLOW / "Snakefile", *sorted(WORKFLOW.glob("rules/*.smk"))]
    return re.sub(r"#.*", "", "\n".join(path.read_text(encoding="utf-8") for path in files))


def deploy(folder):
    """Do in ``folder`` what snakedeploy does."""
    shutil.copytree(ROOT / "config", folder / "config")
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    (folder / "workflow").mkdir()
    (folder / "workflow" / "Snakefile").write_text(DEPLOYED)


def snakemake(folder, *arguments):
    return run("snakemake", "--directory", folder, "-s", folder / "workflow/Snakefile", *arguments)


def test_the_catalog_finds_what_it_asks_for():
    assert (WORKFLOW / "Snakefile").is_file()
    assert [*WORKFLOW.glob("rules/*.smk")]
    assert "keys" in (ROOT / "config" / "README.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8").lower()
    assert "snakemake" in readme  # by these two words it searches for workflows
    assert "workflow" in readme


def test_the_catalog_knows_every_key():
    keys = usage()
    assert set(keys) == {"mandatory-flags", "software-stack-deployment", "report"}
    assert set(keys["mandatory-flags"]) == {"desc", "flags"}
    assert set(keys["software-stack-deployment"]) == {"conda", "apptainer", "apptainer+conda"}


def test_what_is_said_of_deployment_and_report_holds():
    said = usage()["software-stack-deployment"]
    assert said["conda"] == bool(re.search(r"\bconda:", rules()))
    assert said["apptainer"] == bool(re.search(r"\bcontainer(ized)?:", rules()))
    assert usage()["report"] == bool(re.search(r"^report:", rules(), re.MULTILINE))
    install = re.search(r"pip install [^`]+", usage()["mandatory-flags"]["desc"])[0]
    assert f"    {install} && " in (ROOT / "README.md").read_text(encoding="utf-8")


@needs_shipped_config
def test_a_deployed_workflow_begins_with_the_configuration_of_a_clone(tmp_path):
    deploy(tmp_path)
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    copy = yaml.safe_load((tmp_path / "config/config.yaml").read_text(encoding="utf-8"))
    assert complete_config(copy) == complete_config(config)
    assert not (tmp_path / "config" / "config.yaml").is_symlink()
    planned = snakemake(tmp_path, "-n")
    assert planned.returncode == 0, planned.stderr
    assert re.search(r"^train +4$", planned.stdout + planned.stderr, re.MULTILINE)


@pytest.mark.slow  # the whole workflow once more, as a module
def test_a_deployed_workflow_runs_and_reports(tmp_path):
    deploy(tmp_path)
    save_npz(tmp_path / "toy.npz", as_triple(make_dataset(80, 40, 44, (4, 4), 3)))
    config = {"dataset": "toy.npz", "experiments": {"toy": TOY}}
    (tmp_path / "config" / "config.yaml").write_text(yaml.safe_dump(config))
    done = snakemake(tmp_path, "--cores", "2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "report.html").is_file()
    reported = snakemake(tmp_path, "--report", "everything.zip")
    assert reported.returncode == 0, reported.stderr
    assert (tmp_path / "everything.zip").stat().st_size > 10_000
