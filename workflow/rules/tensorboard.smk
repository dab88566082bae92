# With `tensorboard: true` in the configuration.
#
# REQUIRED INPUTS
#   results/runs/<experiment>/<run>/: history.csv, timings.csv, training.json, provenance.json,
#   score.json
# OUTPUTS
#   results/tensorboard/<experiment>/<run>/events.out.tfevents.0.msgd


rule tensorboard:
    """Write a run as an event file, for `tensorboard --logdir results/tensorboard`."""
    input:
        history="results/runs/{experiment}/{run}/history.csv",
        timings="results/runs/{experiment}/{run}/timings.csv",
        training="results/runs/{experiment}/{run}/training.json",
        provenance="results/runs/{experiment}/{run}/provenance.json",
        score=score_of,
    output:
        f"results/tensorboard/{{experiment}}/{{run}}/{EVENT_FILE}",
    log:
        "results/logs/tensorboard/{experiment}/{run}.log",
    benchmark:
        "results/benchmarks/tensorboard/{experiment}/{run}.tsv"
    localrule: True
    params:
        code=code_of("evaluation/tensorboard.py"),
        run=subpath(input.training, parent=True),
        folder=subpath(output[0], parent=True),
    message:
        "TensorBoard events of {wildcards.experiment}/{wildcards.run}"
    shell:
        "msgd tensorboard --log {log} --run {params.run:q} --output {params.folder:q}"
