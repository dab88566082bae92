# REQUIRED INPUTS
#   results/data/<dataset>/*, results/runs/<experiment>/<run>/*
# OUTPUTS
#   results/report.html


rule write_report:
    """Tell the story of the selected run, beside all others, on one page."""
    input:
        training=expand("results/runs/{run}/training.json", run=RUNS),
        provenance=expand("results/runs/{run}/provenance.json", run=RUNS),
        history=expand("results/runs/{run}/history.csv", run=RUNS),
        timings=expand("results/runs/{run}/timings.csv", run=RUNS),
        best=ancient(expand("results/runs/{run}/best_parameters.npz", run=RUNS)),
        snapshots=ancient(expand("results/runs/{run}/snapshots", run=RUNS)),
        scores=expand("results/runs/{run}/score.json", run=SCORED),
        predictions=expand("results/runs/{run}/test_predictions.npz", run=SCORED),
        samples=expand("results/runs/{run}/samples.npz", run=SAMPLED),
        arrays=ancient(ARRAYS),  # their hashes are in dataset.json
        dataset=f"{DATA}/dataset.json",
    output:
        report(
            "results/report.html",
            caption="../report/report.rst",
            category="Scores",
            labels={"table": "the story on one page"},
        ),
    log:
        "results/logs/write_report.log",
    benchmark:
        "results/benchmarks/write_report.tsv"
    localrule: True
    params:
        code=page_code,
        data=subpath(input.dataset, parent=True),
        runs=folders_of_runs,
        configuration=CONFIGURATION,
        made_by=command_again(),
    message:
        "the story on one page"
    shell:
        "msgd report --log {log} --data {params.data:q} --output {output:q} {params.runs:q}"
        " --configuration {params.configuration:q} --made-by {params.made_by:q}"
