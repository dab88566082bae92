# REQUIRED INPUTS
#   results/data/<dataset>/*
# OUTPUTS
#   results/runs/<experiment>/<run>/: history.csv, timings.csv, training.json, provenance.json,
#   best_parameters.npz, snapshots/
# BESIDE THEM, so that a run that was killed goes on (msgd clean-states removes them)
#   results/states/


rule train:
    """Train one run of an experiment and keep its best parameters."""
    input:
        arrays=ancient(ARRAYS),  # their hashes are in dataset.json
        dataset=f"{DATA}/dataset.json",
    output:
        history="results/runs/{experiment}/{run}/history.csv",
        timings="results/runs/{experiment}/{run}/timings.csv",
        training="results/runs/{experiment}/{run}/training.json",
        provenance="results/runs/{experiment}/{run}/provenance.json",
        best="results/runs/{experiment}/{run}/best_parameters.npz",
        snapshots=directory("results/runs/{experiment}/{run}/snapshots"),
    log:
        "results/logs/train/{experiment}/{run}.log",
    benchmark:
        "results/benchmarks/train/{experiment}/{run}.tsv"
    threads: THREADS
    resources:
        gpu=gpus,
    params:
        code=training_code,
        data=subpath(input.dataset, parent=True),
        folder=subpath(output.training, parent=True),
        backend=config["backend"],
        chunk_batches=yaml_scalar(config["device_chunk_batches"]),
        floatX=config["floatX"],
        hyperparameters=hyperparameters,
    message:
        "train {wildcards.experiment}/{wildcards.run}"
    shell:  # exec, so that Snakemake itself has started what is to end with it
        "exec msgd train --end-with $PPID --log {log} --data {params.data:q} --run {params.folder:q}"
        " --threads {threads} --states results/states --backend {params.backend} --floatX {params.floatX}"
        " --device-chunk-batches {params.chunk_batches} {params.hyperparameters:q}"
