# Ground truth the honest way: leave data out, train again, look.


rule retrain_lds:
    input:
        if_needed(
            "results/{setting}/retrain/lds/{chunk}.safetensors",
            data="results/{setting}/data.safetensors",
        ),
        stale=if_stale("results/{setting}/retrain/lds/{chunk}.safetensors"),
    output:
        "results/{setting}/retrain/lds/{chunk}.safetensors",
    log:
        "logs/retrain_lds/{setting}-{chunk}.log",
    benchmark:
        "benchmarks/retrain_lds/{setting}-{chunk}.tsv"
    conda:
        "../envs/leaveout.yaml"
    threads: 1
    resources:
        gpu=GPUS,
        mem_mb=PLAN.mem_mb("lds"),
        runtime=PLAN.runtime("lds"),
    params:
        key=PLAN.train_key("lds"),
    shell:
        "leaveout retrain-lds --setting {wildcards.setting} --data {input.data:q} --chunk {wildcards.chunk}"
        " --out {output:q} --threads {threads} 2> {log:q}"


rule retrain_loo:
    input:
        if_needed(
            "results/{setting}/retrain/loo/{chunk}.safetensors",
            data="results/{setting}/data.safetensors",
        ),
        stale=if_stale("results/{setting}/retrain/loo/{chunk}.safetensors"),
    output:
        "results/{setting}/retrain/loo/{chunk}.safetensors",
    log:
        "logs/retrain_loo/{setting}-{chunk}.log",
    benchmark:
        "benchmarks/retrain_loo/{setting}-{chunk}.tsv"
    priority: 1  # the longest layer: started first, so that no core idles at the end
    conda:
        "../envs/leaveout.yaml"
    threads: 1
    resources:
        gpu=GPUS,
        mem_mb=PLAN.mem_mb("loo"),
        runtime=PLAN.runtime("loo"),
    params:
        key=PLAN.train_key("loo"),
    shell:
        "leaveout retrain-loo --setting {wildcards.setting} --data {input.data:q} --chunk {wildcards.chunk}"
        " --out {output:q} --threads {threads} 2> {log:q}"


rule retrain_pbrf:
    input:
        if_needed(
            "results/{setting}/retrain/pbrf/{chunk}.safetensors",
            data="results/{setting}/data.safetensors",
            full=PLAN.base_model,
        ),
        stale=if_stale("results/{setting}/retrain/pbrf/{chunk}.safetensors"),
    output:
        "results/{setting}/retrain/pbrf/{chunk}.safetensors",
    log:
        "logs/retrain_pbrf/{setting}-{chunk}.log",
    benchmark:
        "benchmarks/retrain_pbrf/{setting}-{chunk}.tsv"
    conda:
        "../envs/leaveout.yaml"
    threads: 1
    resources:
        gpu=GPUS,
        mem_mb=PLAN.mem_mb("pbrf"),
        runtime=PLAN.runtime("pbrf"),
    params:
        key=PLAN.train_key("pbrf"),
    shell:
        "leaveout retrain-pbrf --setting {wildcards.setting} --data {input.data:q} --full {input.full:q}"
        " --chunk {wildcards.chunk} --out {output:q} --threads {threads} 2> {log:q}"


rule merge_truth:
    input:
        if_needed("results/{setting}/truth/{metric}.safetensors", chunks=PLAN.retrained),
        stale=if_stale("results/{setting}/truth/{metric}.safetensors"),
    output:
        "results/{setting}/truth/{metric}.safetensors",
    log:
        "logs/merge_truth/{setting}-{metric}.log",
    wildcard_constraints:
        metric="lds|loo|pbrf",
    conda:
        "../envs/leaveout.yaml"
    resources:
        mem_mb=PLAN.mem_mb("truth"),
        runtime=PLAN.runtime("truth"),
    params:
        key=PLAN.truth_key,
    shell:
        "leaveout merge-truth --kind {wildcards.metric} --setting {wildcards.setting} --out {output:q} {input.chunks:q} 2> {log:q}"


rule truths:
    input:
        PLAN.truths(),
