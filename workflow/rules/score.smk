# REQUIRED INPUTS
#   results/data/<dataset>/*, results/runs/<experiment>/<run>/best_parameters.npz
# OUTPUTS
#   results/runs/<experiment>/<run>/score.json, test_predictions.npz
#   results/test_scores.{csv,md,html}, results/published.{csv,md,html}


rule score:
    """Apply a run's best parameters to the test set, once."""
    input:
        arrays=ancient(ARRAYS),  # their hashes are in dataset.json
        dataset=f"{DATA}/dataset.json",
        best=ancient("results/runs/{experiment}/{run}/best_parameters.npz"),
        training="results/runs/{experiment}/{run}/training.json",
        provenance="results/runs/{experiment}/{run}/provenance.json",
    output:
        score="results/runs/{experiment}/{run}/score.json",
        predictions="results/runs/{experiment}/{run}/test_predictions.npz",
    log:
        "results/logs/score/{experiment}/{run}.log",
    benchmark:
        "results/benchmarks/score/{experiment}/{run}.tsv"
    threads: THREADS
    resources:
        gpu=gpus,
    params:
        code=training_code,
        scoring=code_of("evaluation/score.py"),
        data=subpath(input.dataset, parent=True),
        folder=subpath(output.score, parent=True),
        backend=config["backend"],
        chunk_batches=yaml_scalar(config["device_chunk_batches"]),
    message:
        "score {wildcards.experiment}/{wildcards.run} on the test set"
    shell:
        "msgd score --log {log} --data {params.data:q} --run {params.folder:q} --threads {threads}"
        " --backend {params.backend} --device-chunk-batches {params.chunk_batches}"


rule tabulate:
    """Write the table of all runs with their test scores."""
    input:
        training=expand("results/runs/{run}/training.json", run=RUNS),
        scores=expand("results/runs/{run}/score.json", run=RUNS),
    output:
        csv="results/test_scores.csv",
        md="results/test_scores.md",
        html=report(
            "results/test_scores.html",
            caption="../report/test_scores.rst",
            category="Scores",
            labels={"table": "test scores"},
        ),
    log:
        "results/logs/tabulate.log",
    benchmark:
        "results/benchmarks/tabulate.tsv"
    localrule: True
    params:
        code=code_of("evaluation/tables.py"),
        runs=folders_of_runs,
    message:
        "table of scores"
    shell:
        "msgd tabulate --log {log} --output results {params.runs:q}"


rule compare_published:
    """Write the table that holds the runs against the published figures."""
    input:
        training=expand("results/runs/{run}/training.json", run=RUNS),
        provenance=expand("results/runs/{run}/provenance.json", run=RUNS),
        scores=expand("results/runs/{run}/score.json", run=RUNS),
    output:
        csv="results/published.csv",
        md="results/published.md",
        html=report(
            "results/published.html",
            caption="../report/published.rst",
            category="Scores",
            labels={"table": "published and reproduced"},
        ),
    log:
        "results/logs/compare_published.log",
    benchmark:
        "results/benchmarks/compare_published.tsv"
    localrule: True
    params:
        code=code_of("evaluation/tables.py", "evaluation/published.yaml"),
        runs=folders_of_runs,
    message:
        "table of published and reproduced figures"
    shell:
        "msgd compare-published --log {log} --output results {params.runs:q}"
