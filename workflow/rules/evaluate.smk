# Scores against ground truth.


rule evaluate:
    input:
        truth="results/{setting}/truth/{metric}.safetensors",
        scores=PLAN.scores,
    output:
        "results/{setting}/metrics/{metric}/{method}.csv",
    params:
        key=PLAN.evaluate_key,
    log:
        "logs/evaluate/{setting}-{metric}-{method}.log",
    resources:
        mem_mb=4000,
        runtime=30,
    shell:
        "leaveout evaluate --setting " + SETTING + " --metric {wildcards.metric} --method {wildcards.method}"
        " --truth {input.truth:q} --bootstrap {PLAN.config.bootstrap} --out {output:q} {input.scores:q} 2> {log:q}"
