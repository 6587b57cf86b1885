# Retraining without the samples a method calls most helpful to a test sample: does its prediction flip?


rule predict:
    input:
        unpack(reads("predict", "data", "full")),
    output:
        "results/{setting}/predictions.safetensors",
    log:
        log("predict"),
    conda:
        ENVIRONMENT
    resources:
        **asks("predict"),
    params:
        command=command("predict"),
    shell:
        JOB


rule retrain_brittleness:
    input:
        unpack(reads("retrain_brittleness", "data", "predictions", "scores", "chosen_by")),
    output:
        "<home>/{setting}/retrain/brittleness/{method}.safetensors",
    log:
        log("retrain_brittleness"),
    conda:
        ENVIRONMENT
    resources:
        **asks("retrain_brittleness"),
    params:
        command=command("retrain_brittleness"),
    shell:
        JOB


rule evaluate_brittleness:
    input:
        unpack(reads("evaluate_brittleness", "retrained")),
    output:
        "<home>/{setting}/metrics/brittleness/{method}.csv",
    log:
        log("evaluate_brittleness"),
    conda:
        ENVIRONMENT
    resources:
        **asks("evaluate_brittleness"),
    params:
        command=command("evaluate_brittleness"),
    shell:
        JOB


rule brittleness_table:
    input:
        unpack(reads("brittleness_table", "csvs")),
    output:
        report(
            "<place>/brittleness_table.csv",
            caption="../report/brittleness.rst",
            category="Tables",
            labels={"metric": "brittleness", "shows": "predictions that flip (CSV)"},
        ),
    log:
        log("brittleness_table"),
    conda:
        ENVIRONMENT
    params:
        command=command("brittleness_table"),
    shell:
        JOB


rule brittleness_figure:
    input:
        unpack(reads("brittleness_figure", "csvs")),
    output:
        report(
            "<place>/figures/brittleness.svg",
            caption="../report/brittleness.rst",
            category="Figures",
            labels={"metric": "brittleness", "shows": "predictions that flip"},
        ),
    log:
        log("brittleness_figure"),
    conda:
        ENVIRONMENT
    params:
        command=command("brittleness_figure"),
    shell:
        JOB
