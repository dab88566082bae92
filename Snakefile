# The workflow is in workflow/. A plain `include:` would not take over its default target.
workflow.include("workflow/Snakefile", overwrite_default_target=True)
