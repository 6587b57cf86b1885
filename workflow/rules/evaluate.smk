# Scores against ground truth, and self-influence against the flips of labels.


# both make metrics/auc/METHOD.csv by their patterns; of self-influence, this one does
ruleorder: evaluate_auc > evaluate


rule evaluate:
    input:
        unpack(reads("evaluate", "truth", "scores", "cost")),
    output:
        out="<home>/{setting}/metrics/{metric}/{method}.csv",
        draws="<home>/{setting}/metrics/{metric}/{method}.draws.safetensors",
        costs="<home>/{setting}/metrics/{metric}/{method}.costs.json",
    log:
        log("evaluate"),
    conda:
        ENVIRONMENT
    resources:
        **asks("evaluate"),
    params:
        command=command("evaluate"),
    shell:
        JOB


rule evaluate_auc:
    input:
        unpack(reads("evaluate_auc", "truth", "scores", "cost")),
    output:
        out="<home>/{setting}/metrics/auc/{method}.csv",
        draws="<home>/{setting}/metrics/auc/{method}.draws.safetensors",
        costs="<home>/{setting}/metrics/auc/{method}.costs.json",
    log:
        log("evaluate_auc"),
    conda:
        ENVIRONMENT
    resources:
        **asks("evaluate_auc"),
    params:
        command=command("evaluate_auc"),
    shell:
        JOB


rule damping:
    input:
        unpack(reads("damping", "data", "full", "half", "scores")),
    output:
        "<home>/{setting}/damping/{metric}/{method}.csv",
    log:
        log("damping"),
    conda:
        ENVIRONMENT
    resources:
        **asks("damping"),
    params:
        command=command("damping"),
    shell:
        JOB


rule lds_width:
    input:
        unpack(reads("lds_width", "truth", "scores")),
    output:
        report(
            "<place>/{setting}/lds_width.csv",
            caption="../report/width.rst",
            category="Tables",
            labels={
                "metric": "lds",
                "shows": "{setting}: subsets and runs needed (CSV)",
            },
        ),
    log:
        log("lds_width"),
    conda:
        ENVIRONMENT
    resources:
        **asks("lds_width"),
    params:
        command=command("lds_width"),
    shell:
        JOB
