# Damping chosen without retrained models, beside the one chosen on held-out test samples.


rule damping:
    input:
        if_needed(
            "results/{setting}/damping/{metric}/{method}.csv",
            data="results/{setting}/data.safetensors",
            full=PLAN.full_models,
            half=PLAN.half_models,
            scores=PLAN.scores,
        ),
        stale=if_stale("results/{setting}/damping/{metric}/{method}.csv"),
    output:
        "results/{setting}/damping/{metric}/{method}.csv",
    log:
        "logs/damping/{setting}-{metric}-{method}.log",
    conda:
        "../envs/leaveout.yaml"
    threads: 1
    resources:
        gpu=GPUS,
        mem_mb=PLAN.mem_mb("damping"),
        runtime=PLAN.runtime("damping"),
    params:
        key=PLAN.damping_key,
    shell:
        "leaveout damping --setting {wildcards.setting} --metric {wildcards.metric} --method {wildcards.method}"
        " --data {input.data:q} --out {output:q} --threads {threads} {input.scores:q}"
        " --full {input.full:q} --half {input.half:q} 2> {log:q}"


rule damping_figure:
    input:
        dampings=PLAN.damping_csvs,
        csvs=PLAN.damped_csvs,
        stale=if_stale("results/figures/damping_{metric}.svg"),
    output:
        report(
            "results/figures/damping_{metric}.svg",
            caption="../report/damping.rst",
            category="Figures",
            labels={"metric": "{metric}", "shows": "damping"},
        ),
    log:
        "logs/damping_figure/{metric}.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.report_key("damping_figure"),
    shell:
        "leaveout damping-figure --metric {wildcards.metric} --out {output:q} {input.csvs:q}"
        " --dampings {input.dampings:q} 2> {log:q}"
