# REQUIRED INPUTS
#   results/data/<dataset>/*, results/runs/<experiment>/<run>/best_parameters.npz
# OUTPUTS
#   results/runs/<experiment>/<run>/score.json, test_predictions.npz
#   results/test_scores.{csv,md,html}, results/published.{csv,md,html}


SCORE = (
    "msgd score --log {log} --data {params.data:q} --run {params.folders:q} --threads {threads}"
    " --backend {params.backend} --device-chunk-batches {params.chunk_batches}"
)


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
    wildcard_constraints:
        experiment=one_of(
            name for name in EXPERIMENTS if name not in [*GRIDS, *UNLABELLED]
        ),
    threads: THREADS
    resources:
        gpu=gpus,
    params:
        code=training_code,
        scoring=code_of("evaluation/score.py"),
        data=subpath(input.dataset, parent=True),
        folders=folders_of_runs,
        backend=config["backend"],
        chunk_batches=yaml_scalar(config["device_chunk_batches"]),
    message:
        "score {wildcards.experiment}/{wildcards.run} on the test set"
    shell:
        SCORE


for batch, runs in SCORED_TOGETHER.items():
    experiment, _, number = batch.rpartition("_")

    # Many runs in a job: to start Python and load the kernels takes twenty times as long as to score
    # logistic regression. Wildcards cannot list a grid's runs, so each batch has a rule of its own.
    rule:
        """Apply the best parameters of each of some runs of a grid to the test set, once."""
        name:
            f"score_{batch}"
        input:
            arrays=ancient(ARRAYS),
            dataset=f"{DATA}/dataset.json",
            best=ancient(expand("results/runs/{run}/best_parameters.npz", run=runs)),
            training=expand("results/runs/{run}/training.json", run=runs),
            provenance=expand("results/runs/{run}/provenance.json", run=runs),
        output:
            scores=expand("results/runs/{run}/score.json", run=runs),
            predictions=expand("results/runs/{run}/test_predictions.npz", run=runs),
        log:
            f"results/logs/score/{experiment}/batch_{number}.log",
        benchmark:
            f"results/benchmarks/score/{experiment}/batch_{number}.tsv"
        threads: THREADS
        resources:
            gpu=gpus_of(RUNS[runs[0]]["model"]),
        params:
            code=code_of_training(RUNS[runs[0]]["model"]),
            scoring=code_of("evaluation/score.py"),
            data=subpath(input.dataset, parent=True),
            folders=folders_of_runs,
            backend=config["backend"],
            chunk_batches=yaml_scalar(config["device_chunk_batches"]),
        message:
            f"score {len(runs)} runs of {experiment} on the test set"
        shell:
            SCORE


rule tabulate:
    """Write the table of all runs with their test scores."""
    input:
        training=expand("results/runs/{run}/training.json", run=SCORED),
        scores=expand("results/runs/{run}/score.json", run=SCORED),
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
        scores=expand("results/runs/{run}/score.json", run=SCORED),
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
