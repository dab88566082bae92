# REQUIRED INPUTS
#   results/runs/<experiment>/<run>/*, results/data/<dataset>/*
# OUTPUTS
#   results/plots/<experiment>/<run>/: learning_curve.png, weights.png, weights.gif,
#   confusion.png, mistakes.png; of auto-encoders reconstructions.png,
#   of the Boltzmann machine samples.png
#   of an experiment with a grid: results/plots/<experiment>/validation_error_over_<hyperparameter>.png
#
# <run> is a run's name, or `best`: then all runs of a grid are inputs, and the command picks the one
# of the lowest validation error, which nobody knows before they are trained.
#
# The first rule is whole. The others say what differs, and keep the params that they do not name;
# `localrule` is not passed on.


rule plot_learning_curve:
    """Draw a run's validation errors, cost and patience over its training."""
    input:
        history=of_drawn("history.csv"),
        training=of_drawn("training.json"),
        provenance=of_drawn("provenance.json"),
    output:
        run_figure("learning_curve.png", "Training", "learning curve"),
    log:
        "results/logs/plot_learning_curve/{experiment}/{run}.log",
    benchmark:
        "results/benchmarks/plot_learning_curve/{experiment}/{run}.tsv"
    localrule: True
    params:
        code=drawing_code("plots/learning_curve.py"),
        figure="learning_curve",
        of=drawn,
        folders=folders_of_runs,
        options=plot_options("dpi"),
    message:
        "learning curve of {wildcards.experiment}/{wildcards.run}"
    shell:
        "msgd plot {params.figure} --log {log} --output {output:q} {params.options:q}"
        " --{params.of} {params.folders:q}"


use rule plot_learning_curve as plot_weights with:
    """Draw the first layer's weights as images, before, during and after training."""
    input:
        snapshots=ancient(of_drawn("snapshots")),
        training=of_drawn("training.json"),
        provenance=of_drawn("provenance.json"),
        dataset=f"{DATA}/dataset.json",
    output:
        run_figure("weights.png", "Weights", "weight images"),
    log:
        "results/logs/plot_weights/{experiment}/{run}.log",
    benchmark:
        "results/benchmarks/plot_weights/{experiment}/{run}.tsv"
    localrule: True
    params:
        code=drawing_code("plots/weights.py", asks_model=True),
        figure="weights",
        options=plot_options("dpi", "colormap", data=DATA),
    message:
        "weight images of {wildcards.experiment}/{wildcards.run}"


use rule plot_weights as animate_weights with:
    """Draw the first layer's weights as an animation that grows with training."""
    output:
        run_figure("weights.gif", "Weights", "weight images growing"),
    log:
        "results/logs/animate_weights/{experiment}/{run}.log",
    benchmark:
        "results/benchmarks/animate_weights/{experiment}/{run}.tsv"
    localrule: True
    params:
        figure="weights_animation",
        options=plot_options("dpi", "colormap", "frames_per_second", data=DATA),
    message:
        "weight images of {wildcards.experiment}/{wildcards.run}, growing"


use rule plot_learning_curve as plot_confusion with:
    """Draw the labels of the test set against what the model says."""
    input:
        predictions=predicted_by_drawn,
        training=of_drawn("training.json"),
        provenance=of_drawn("provenance.json"),
        dataset=f"{DATA}/dataset.json",
    output:
        run_figure("confusion.png", "Mistakes", "confusion matrix"),
    log:
        "results/logs/plot_confusion/{experiment}/{run}.log",
    benchmark:
        "results/benchmarks/plot_confusion/{experiment}/{run}.tsv"
    localrule: True
    params:
        code=drawing_code("plots/mistakes.py"),
        figure="confusion",
        options=plot_options("dpi", data=DATA),
    message:
        "confusion matrix of {wildcards.experiment}/{wildcards.run}"


use rule plot_confusion as plot_mistakes with:
    """Draw the test images on which the model is most wrong."""
    input:
        predictions=predicted_by_drawn,
        best=ancient(of_drawn("best_parameters.npz")),
        training=of_drawn("training.json"),
        provenance=of_drawn("provenance.json"),
        dataset=f"{DATA}/dataset.json",
    output:
        run_figure("mistakes.png", "Mistakes", "worst mistakes"),
    log:
        "results/logs/plot_mistakes/{experiment}/{run}.log",
    benchmark:
        "results/benchmarks/plot_mistakes/{experiment}/{run}.tsv"
    localrule: True
    params:
        code=drawing_code("plots/mistakes.py", asks_model=True),
        figure="mistakes",
        options=plot_options("dpi", "n_mistakes", data=DATA),
    message:
        "worst mistakes of {wildcards.experiment}/{wildcards.run}"


use rule plot_confusion as plot_reconstructions with:
    """Draw test images, corrupted as in training, and what an auto-encoder makes of them."""
    input:
        best=ancient(of_drawn("best_parameters.npz")),
        training=of_drawn("training.json"),
        provenance=of_drawn("provenance.json"),
        dataset=f"{DATA}/dataset.json",
    output:
        run_figure("reconstructions.png", "Weights", "reconstructions"),
    log:
        "results/logs/plot_reconstructions/{experiment}/{run}.log",
    benchmark:
        "results/benchmarks/plot_reconstructions/{experiment}/{run}.tsv"
    localrule: True
    params:
        code=drawing_code("plots/reconstructions.py", asks_model=True),
        figure="reconstructions",
    message:
        "reconstructions of {wildcards.experiment}/{wildcards.run}"


use rule plot_reconstructions as plot_samples with:
    """Draw the samples of chains that begin with test images."""
    input:
        samples=of_drawn("samples.npz"),
        training=of_drawn("training.json"),
        provenance=of_drawn("provenance.json"),
        dataset=f"{DATA}/dataset.json",
    output:
        run_figure("samples.png", "Weights", "samples"),
    log:
        "results/logs/plot_samples/{experiment}/{run}.log",
    benchmark:
        "results/benchmarks/plot_samples/{experiment}/{run}.tsv"
    localrule: True
    params:
        code=drawing_code("plots/samples.py"),
        figure="samples",
    message:
        "samples of {wildcards.experiment}/{wildcards.run}"


use rule plot_learning_curve as plot_validation_error_over with:
    """Draw the validation error of an experiment's runs over a hyperparameter of its grid."""
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
    localrule: True
    params:
        code=code_of("plots/comparison.py"),
        figure="validation_error_over",
        of="runs",
        folders=folders_of_runs,
        options=plot_options("dpi", over="{hyperparameter}"),
    message:
        "validation error of {wildcards.experiment} over {wildcards.hyperparameter}"
