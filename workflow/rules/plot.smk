# REQUIRED INPUTS
#   results/runs/<experiment>/<run>/*, results/data/<dataset>/*
# OUTPUTS
#   results/plots/<experiment>/<run>/: learning_curve.png, weights.png, weights.gif,
#   confusion.png, mistakes.png
#   of an experiment with a grid: results/plots/<experiment>/validation_error_over_<hyperparameter>.png


rule plot_learning_curve:
    input:
        history="results/runs/{experiment}/{run}/history.csv",
        training="results/runs/{experiment}/{run}/training.json",
        provenance="results/runs/{experiment}/{run}/provenance.json",
    output:
        report(
            "results/plots/{experiment}/{run}/learning_curve.png",
            caption="../report/learning_curve.rst",
            category="Training",
            subcategory="{experiment}",
            labels={"run": "{run}", "figure": "learning curve"},
        ),
    log:
        "results/logs/plot_learning_curve/{experiment}/{run}.log",
    benchmark:
        "results/benchmarks/plot_learning_curve/{experiment}/{run}.tsv"
    conda:
        "../envs/msgd.yaml"
    params:
        code=code_of("plots/learning_curve.py"),
        folder=drawn_run_folder,
        dpi=config["plots"]["dpi"],
    message:
        "learning curve of {wildcards.experiment}/{wildcards.run}"
    shell:
        "msgd plot learning_curve --log {log} --run {params.folder:q}"
        " --output {output:q} --dpi {params.dpi}"


rule plot_weights:
    input:
        snapshots=ancient("results/runs/{experiment}/{run}/snapshots"),
        training="results/runs/{experiment}/{run}/training.json",
        dataset=f"{DATA}/dataset.json",
    output:
        report(
            "results/plots/{experiment}/{run}/weights.png",
            caption="../report/weights.rst",
            category="Weights",
            subcategory="{experiment}",
            labels={"run": "{run}", "figure": "weight images"},
        ),
    log:
        "results/logs/plot_weights/{experiment}/{run}.log",
    benchmark:
        "results/benchmarks/plot_weights/{experiment}/{run}.tsv"
    conda:
        "../envs/msgd.yaml"
    params:
        code=drawing_code("plots/weights.py"),
        data=data_folder,
        folder=drawn_run_folder,
        dpi=config["plots"]["dpi"],
        colormap=config["plots"]["colormap"],
    message:
        "weight images of {wildcards.experiment}/{wildcards.run}"
    shell:
        "msgd plot weights --log {log} --run {params.folder:q} --data {params.data:q}"
        " --output {output:q} --dpi {params.dpi} --colormap {params.colormap:q}"


rule animate_weights:
    input:
        snapshots=ancient("results/runs/{experiment}/{run}/snapshots"),
        training="results/runs/{experiment}/{run}/training.json",
        dataset=f"{DATA}/dataset.json",
    output:
        report(
            "results/plots/{experiment}/{run}/weights.gif",
            caption="../report/weights.rst",
            category="Weights",
            subcategory="{experiment}",
            labels={"run": "{run}", "figure": "weight images growing"},
        ),
    log:
        "results/logs/animate_weights/{experiment}/{run}.log",
    benchmark:
        "results/benchmarks/animate_weights/{experiment}/{run}.tsv"
    conda:
        "../envs/msgd.yaml"
    params:
        code=drawing_code("plots/weights.py"),
        data=data_folder,
        folder=drawn_run_folder,
        dpi=config["plots"]["dpi"],
        colormap=config["plots"]["colormap"],
        frames_per_second=config["plots"]["frames_per_second"],
    message:
        "weight images of {wildcards.experiment}/{wildcards.run}, growing"
    shell:
        "msgd plot weights_animation --log {log} --run {params.folder:q} --data {params.data:q}"
        " --output {output:q} --dpi {params.dpi} --colormap {params.colormap:q}"
        " --frames-per-second {params.frames_per_second}"


rule plot_confusion:
    input:
        predictions="results/runs/{experiment}/{run}/test_predictions.npz",
        dataset=f"{DATA}/dataset.json",
    output:
        report(
            "results/plots/{experiment}/{run}/confusion.png",
            caption="../report/confusion.rst",
            category="Mistakes",
            subcategory="{experiment}",
            labels={"run": "{run}", "figure": "confusion matrix"},
        ),
    log:
        "results/logs/plot_confusion/{experiment}/{run}.log",
    benchmark:
        "results/benchmarks/plot_confusion/{experiment}/{run}.tsv"
    conda:
        "../envs/msgd.yaml"
    params:
        code=code_of("plots/mistakes.py"),
        data=data_folder,
        folder=drawn_run_folder,
        dpi=config["plots"]["dpi"],
    message:
        "confusion matrix of {wildcards.experiment}/{wildcards.run}"
    shell:
        "msgd plot confusion --log {log} --run {params.folder:q} --data {params.data:q}"
        " --output {output:q} --dpi {params.dpi}"


rule plot_mistakes:
    input:
        predictions="results/runs/{experiment}/{run}/test_predictions.npz",
        best=ancient("results/runs/{experiment}/{run}/best_parameters.npz"),
        training="results/runs/{experiment}/{run}/training.json",
        provenance="results/runs/{experiment}/{run}/provenance.json",
        dataset=f"{DATA}/dataset.json",
    output:
        report(
            "results/plots/{experiment}/{run}/mistakes.png",
            caption="../report/mistakes.rst",
            category="Mistakes",
            subcategory="{experiment}",
            labels={"run": "{run}", "figure": "worst mistakes"},
        ),
    log:
        "results/logs/plot_mistakes/{experiment}/{run}.log",
    benchmark:
        "results/benchmarks/plot_mistakes/{experiment}/{run}.tsv"
    conda:
        "../envs/msgd.yaml"
    params:
        code=drawing_code("plots/mistakes.py"),
        data=data_folder,
        folder=drawn_run_folder,
        dpi=config["plots"]["dpi"],
        n_mistakes=config["plots"]["n_mistakes"],
    message:
        "worst mistakes of {wildcards.experiment}/{wildcards.run}"
    shell:
        "msgd plot mistakes --log {log} --run {params.folder:q} --data {params.data:q}"
        " --output {output:q} --dpi {params.dpi} --n-mistakes {params.n_mistakes}"


rule plot_validation_error_over:
    input:
        training=expand("results/runs/{run}/training.json", run=compared_runs),
        provenance=expand("results/runs/{run}/provenance.json", run=compared_runs),
    output:
        report(
            "results/plots/{experiment}/validation_error_over_{hyperparameter}.png",
            caption="../report/validation_error_over.rst",
            category="Comparison",
            subcategory="{experiment}",
            labels={"over": "{hyperparameter}", "figure": "validation error"},
        ),
    log:
        "results/logs/plot_validation_error_over/{experiment}/{hyperparameter}.log",
    benchmark:
        "results/benchmarks/plot_validation_error_over/{experiment}/{hyperparameter}.tsv"
    conda:
        "../envs/msgd.yaml"
    params:
        code=code_of("plots/comparison.py"),
        runs=tabulated_run_folders,
        dpi=config["plots"]["dpi"],
    message:
        "validation error of {wildcards.experiment} over {wildcards.hyperparameter}"
    shell:
        "msgd plot validation_error_over --log {log} --over {wildcards.hyperparameter:q}"
        " --output {output:q} --dpi {params.dpi} --runs {params.runs:q}"
