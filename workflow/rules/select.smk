# REQUIRED INPUTS
#   results/data/<dataset>/dataset.json,
#   results/runs/<experiment>/<run>/: training.json, provenance.json, best_parameters.npz, score.json
# OUTPUTS
#   results/best_model.npz, results/model_card.{md,html}


rule select:
    input:
        training=expand("results/runs/{run}/training.json", run=RUNS),
        provenance=expand("results/runs/{run}/provenance.json", run=RUNS),
        best=expand("results/runs/{run}/best_parameters.npz", run=RUNS),
        scores=expand("results/runs/{run}/score.json", run=RUNS),
        dataset=f"{DATA}/dataset.json",
        code=source_files(
            "evaluation/selection.py",
            "evaluation/tables.py",
            "evaluation/model_card.py",
        ),
    output:
        best="results/best_model.npz",
        md="results/model_card.md",
        html=report(
            "results/model_card.html",
            caption="../report/model_card.rst",
            category="Scores",
            labels={"table": "model card"},
        ),
    log:
        "results/logs/select.log",
    benchmark:
        "results/benchmarks/select.tsv"
    conda:
        "../envs/msgd.yaml"
    params:
        data=data_folder,
        runs=tabulated_run_folders,
    shell:
        "msgd select --log {log} --data {params.data:q} --output results {params.runs:q}"
