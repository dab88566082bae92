# REQUIRED INPUTS
#   none for dataset: mnist, else the file or folder that `dataset` names
# OUTPUTS
#   results/downloads/mnist.pkl.gz
#   results/data/<dataset>/{train,valid,test}_{x,y}.npy and dataset.json


rule download:
    output:
        "results/downloads/mnist.pkl.gz",
    log:
        "results/logs/download.log",
    benchmark:
        "results/benchmarks/download.tsv"
    conda:
        "../envs/msgd.yaml"
    message:
        "fetch mnist.pkl.gz"
    shell:
        "msgd download --log {log} {output}"


rule unpickle:
    input:
        files=ancient(DATASET_FILES),  # their content decides: params.content
    output:
        arrays=ARRAYS,
        summary=f"{DATA}/dataset.json",
    log:
        "results/logs/unpickle.log",
    benchmark:
        "results/benchmarks/unpickle.tsv"
    conda:
        "../envs/msgd.yaml"
    params:
        code=code_of("data/unpickle.py", "data/sources.yaml"),
        content=dataset_content,
        source=dataset_source,
        folder=run_folder,
        floatX=config["floatX"],
        expect="--expect-mnist" if IS_MNIST else "",
    message:
        "read and check {params.source}"
    shell:
        "msgd unpickle --log {log} {params.source:q} --output {params.folder:q}"
        " --floatX {params.floatX} {params.expect}"
