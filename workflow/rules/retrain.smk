# Ground truth the honest way: leave data out, train again, look.


rule retrain_lds:
    input:
        data="results/{setting}/data.safetensors",
    output:
        "results/{setting}/retrain/lds/{chunk}.safetensors",
    params:
        key=PLAN.train_key("lds"),
    log:
        "logs/retrain_lds/{setting}-{chunk}.log",
    benchmark:
        "benchmarks/retrain_lds/{setting}-{chunk}.tsv"
    threads: 1
    resources:
        gpu=GPUS,
        mem_mb=2000,
        runtime=60,
    shell:
        "leaveout retrain-lds --setting " + SETTING + " --data {input.data:q} --chunk {wildcards.chunk}"
        " --out {output:q} --device {DEVICE} --threads {threads} 2> {log:q}"


rule retrain_loo:
    input:
        data="results/{setting}/data.safetensors",
    output:
        "results/{setting}/retrain/loo/{chunk}.safetensors",
    params:
        key=PLAN.train_key("loo"),
    log:
        "logs/retrain_loo/{setting}-{chunk}.log",
    benchmark:
        "benchmarks/retrain_loo/{setting}-{chunk}.tsv"
    threads: 1
    priority: 1  # the longest layer: started first, so that no core idles at the end
    resources:
        gpu=GPUS,
        mem_mb=2000,
        runtime=60,
    shell:
        "leaveout retrain-loo --setting " + SETTING + " --data {input.data:q} --chunk {wildcards.chunk}"
        " --out {output:q} --device {DEVICE} --threads {threads} 2> {log:q}"


rule merge_lds:
    input:
        PLAN.retrained("lds"),
    output:
        "results/{setting}/truth/lds.safetensors",
    params:
        key=PLAN.truth_key("lds"),
    log:
        "logs/merge_lds/{setting}.log",
    shell:
        "leaveout merge-truth --kind lds --setting " + SETTING + " --out {output:q} {input:q} 2> {log:q}"


rule merge_loo:
    input:
        PLAN.retrained("loo"),
    output:
        "results/{setting}/truth/loo.safetensors",
    params:
        key=PLAN.truth_key("loo"),
    log:
        "logs/merge_loo/{setting}.log",
    shell:
        "leaveout merge-truth --kind loo --setting " + SETTING + " --out {output:q} {input:q} 2> {log:q}"


rule truths:
    input:
        PLAN.truths(),
