# Scores against ground truth, and self-influence against the flips of labels.


rule evaluate:
    input:
        if_needed(
            "results/{setting}/metrics/{metric}/{method}.csv",
            truth=PLAN.truth,
            scores=PLAN.scores,
        ),
        stale=if_stale("results/{setting}/metrics/{metric}/{method}.csv"),
        stale_draws=if_stale("results/{setting}/metrics/{metric}/{method}.draws.safetensors"),
    output:
        csv="results/{setting}/metrics/{metric}/{method}.csv",
        draws="results/{setting}/metrics/{metric}/{method}.draws.safetensors",
    log:
        "logs/evaluate/{setting}-{metric}-{method}.log",
    conda:
        "../envs/leaveout.yaml"
    resources:
        mem_mb=PLAN.mem_mb("evaluate"),
        runtime=PLAN.runtime("evaluate"),
    params:
        key=PLAN.evaluate_key,
        bootstrap=PLAN.config.bootstrap,
        top_k=PLAN.config.top_k,
    shell:
        "leaveout evaluate --setting {wildcards.setting} --metric {wildcards.metric} --method {wildcards.method}"
        " --truth {input.truth:q} --bootstrap {params.bootstrap} --top-k {params.top_k} --out {output.csv:q}"
        " {input.scores:q} 2> {log:q}"
