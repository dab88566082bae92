# REQUIRED INPUTS
#   results/data/<dataset>/*, results/runs/<experiment>/<run>/best_parameters.npz
# OUTPUTS
#   results/runs/<experiment>/<run>/samples.npz, of models that draw samples


rule sample:
    """Let a run's model draw samples, in chains that begin with test images."""
    input:
        arrays=ancient(ARRAYS),  # their hashes are in dataset.json
        dataset=f"{DATA}/dataset.json",
        best=ancient("results/runs/{experiment}/{run}/best_parameters.npz"),
        training="results/runs/{experiment}/{run}/training.json",
        provenance="results/runs/{experiment}/{run}/provenance.json",
    output:
        "results/runs/{experiment}/{run}/samples.npz",
    log:
        "results/logs/sample/{experiment}/{run}.log",
    benchmark:
        "results/benchmarks/sample/{experiment}/{run}.tsv"
    threads: THREADS
    params:
        code=sampling_code,
        data=subpath(input.dataset, parent=True),
        folder=subpath(output[0], parent=True),
    message:
        "samples of {wildcards.experiment}/{wildcards.run}"
    shell:
        "msgd sample --log {log} --data {params.data:q} --run {params.folder:q} --threads {threads}"
