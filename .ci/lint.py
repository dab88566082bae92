"""snakemake --lint without its wish for a conda environment or a container in every rule.

The whole package is installed with pip, as README says, so no rule has an environment of its own.
"""

from snakemake.cli import main
from snakemake.linting.rules import RuleLinter

del RuleLinter.lint_missing_software_definition
main(["--lint"])
