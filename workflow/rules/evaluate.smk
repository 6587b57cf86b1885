# Scores against ground truth, and self-influence against the flips of labels.


rule evaluate:
    input:
        truth=PLAN.truth,
        scores=PLAN.scores,
        stale=if_stale("results/{setting}/metrics/{metric}/{method}.csv"),
    output:
        "results/{setting}/metrics/{metric}/{method}.csv",
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
        " --truth {input.truth:q} --bootstrap {params.bootstrap} --top-k {params.top_k} --out {output:q} {input.scores:q} 2> {log:q}"
