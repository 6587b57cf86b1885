# Retraining without the samples a method calls most helpful to a test sample: does its prediction flip?


rule predict:
    input:
        if_needed(
            "results/{setting}/predictions.safetensors",
            data="results/{setting}/data.safetensors",
            full=PLAN.full_models,
        ),
        stale=if_stale("results/{setting}/predictions.safetensors"),
    output:
        "results/{setting}/predictions.safetensors",
    log:
        "logs/predict/{setting}.log",
    conda:
        "../envs/leaveout.yaml"
    threads: 1
    resources:
        gpu=GPUS,
        mem_mb=PLAN.mem_mb("predict"),
        runtime=PLAN.runtime("predict"),
    params:
        key=PLAN.predict_key,
    shell:
        "leaveout predict --setting {wildcards.setting} --data {input.data:q} --out {output:q} --threads {threads}"
        " --full {input.full:q} 2> {log:q}"


rule retrain_brittleness:
    input:
        if_needed(
            "results/{setting}/retrain/brittleness/{method}.safetensors",
            data="results/{setting}/data.safetensors",
            predictions="results/{setting}/predictions.safetensors",
            scores=PLAN.own_scores,
            chosen_by=PLAN.chosen_by,
        ),
        stale=if_stale("results/{setting}/retrain/brittleness/{method}.safetensors"),
    output:
        "results/{setting}/retrain/brittleness/{method}.safetensors",
    log:
        "logs/retrain_brittleness/{setting}-{method}.log",
    benchmark:
        "benchmarks/retrain_brittleness/{setting}-{method}.tsv"
    conda:
        "../envs/leaveout.yaml"
    threads: 1
    resources:
        gpu=GPUS,
        mem_mb=PLAN.mem_mb("brittleness"),
        runtime=PLAN.runtime("brittleness"),
    params:
        key=PLAN.brittleness_key,
        chosen_by=lambda wildcards, input: " ".join(
            f"--chosen-by {quote(path)}" for path in input.chosen_by
        ),
    shell:
        "leaveout retrain-brittleness --setting {wildcards.setting} --method {wildcards.method} --data {input.data:q}"
        " --predictions {input.predictions:q} --out {output:q} --threads {threads} {input.scores:q}"
        " {params.chosen_by} 2> {log:q}"


rule evaluate_brittleness:
    input:
        if_needed(
            "results/{setting}/metrics/brittleness/{method}.csv",
            retrained="results/{setting}/retrain/brittleness/{method}.safetensors",
        ),
        stale=if_stale("results/{setting}/metrics/brittleness/{method}.csv"),
    output:
        "results/{setting}/metrics/brittleness/{method}.csv",
    log:
        "logs/evaluate_brittleness/{setting}-{method}.log",
    conda:
        "../envs/leaveout.yaml"
    resources:
        mem_mb=PLAN.mem_mb("evaluate"),
        runtime=PLAN.runtime("evaluate"),
    params:
        key=PLAN.flips_key,
        bootstrap=PLAN.config.bootstrap,
    shell:
        "leaveout evaluate-brittleness --setting {wildcards.setting} --method {wildcards.method}"
        " --bootstrap {params.bootstrap} --out {output:q} {input.retrained:q} 2> {log:q}"


rule make_brittleness_table:
    input:
        csvs=PLAN.brittleness_csvs,
        stale=if_stale("results/brittleness_table.csv"),
    output:
        report(
            "results/brittleness_table.csv",
            caption="../report/brittleness.rst",
            category="Tables",
            labels={"metric": "brittleness", "shows": "predictions that flip (CSV)"},
        ),
    log:
        "logs/make_brittleness_table.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.shown_key("brittleness_table", "brittleness"),
    shell:
        "leaveout brittleness-table --out {output:q} {input.csvs:q} 2> {log:q}"


rule make_brittleness_figure:
    input:
        csvs=PLAN.brittleness_csvs,
        stale=if_stale("results/figures/brittleness.svg"),
    output:
        report(
            "results/figures/brittleness.svg",
            caption="../report/brittleness.rst",
            category="Figures",
            labels={"metric": "brittleness", "shows": "predictions that flip"},
        ),
    log:
        "logs/make_brittleness_figure.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.shown_key("brittleness_figure", "brittleness"),
    shell:
        "leaveout brittleness-figure --out {output:q} {input.csvs:q} 2> {log:q}"
