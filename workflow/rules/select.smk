# REQUIRED INPUTS
#   results/data/<dataset>/dataset.json,
#   results/runs/<experiment>/<run>/: training.json, provenance.json, best_parameters.npz, score.json
# OUTPUTS
#   results/best_model.npz, results/model_card.{md,html}


rule select:
    """Keep the model of the lowest validation error of all runs, and describe it on a card."""
    input:
        training=expand("results/runs/{run}/training.json", run=SCORED),
        provenance=expand("results/runs/{run}/provenance.json", run=SCORED),
        best=ancient(expand("results/runs/{run}/best_parameters.npz", run=SCORED)),
        scores=expand("results/runs/{run}/score.json", run=SCORED),
        dataset=f"{DATA}/dataset.json",
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
    localrule: True
    params:
        code=code_of("evaluation/model_card.py"),
        data=subpath(input.dataset, parent=True),
        runs=folders_of_runs,
    message:
        "best model and its card"
    shell:
        "msgd select --log {log} --data {params.data:q} --output results {params.runs:q}"
