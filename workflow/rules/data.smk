# REQUIRED INPUTS
#   none for dataset: mnist, else the file or folder that `dataset` names
# OUTPUTS
#   results/downloads/mnist.pkl.gz
#   results/data/<dataset>/{train,valid,test}_{x,y}.npy and dataset.json


rule download:
    """Fetch mnist.pkl.gz from the first of several sources that has it, checked by SHA-256."""
    output:
        "results/downloads/mnist.pkl.gz",
    log:
        "results/logs/download.log",
    benchmark:
        "results/benchmarks/download.tsv"
    localrule: True
    message:
        "fetch mnist.pkl.gz"
    shell:
        "msgd download --log {log} {output}"


rule unpickle:
    """Read the data set, check it, and write its six arrays for training."""
    input:
        files=ancient(DATASET_FILES),  # their content decides: params.content
    output:
        arrays=ARRAYS,
        summary=f"{DATA}/dataset.json",
    log:
        "results/logs/unpickle.log",
    benchmark:
        "results/benchmarks/unpickle.tsv"
    params:
        code=code_of("data/unpickle.py", "data/sources.yaml"),
        content=dataset_content,
        source=dataset_source,
        folder=subpath(output.summary, parent=True),
        floatX=config["floatX"],
        expect="--expect-mnist" if IS_MNIST else "",
    message:
        "read and check {params.source}"
    shell:
        "msgd unpickle --log {log} {params.source:q} --output {params.folder:q}"
        " --floatX {params.floatX} {params.expect}"
