# Scores, on test samples and of each training sample on itself: one job a method and grid point. A new method needs no
# new rule.


rule attribute:
    input:
        if_needed(
            "results/{setting}/scores/{method}/{params}.safetensors",
            data="results/{setting}/data.safetensors",
            full=PLAN.full_models,
            half=PLAN.half_models,
        ),
        stale=if_stale("results/{setting}/scores/{method}/{params}.safetensors"),
        stale_cost=if_stale("results/{setting}/scores/{method}/{params}.cost.json"),
    output:
        score="results/{setting}/scores/{method}/{params}.safetensors",
        cost="results/{setting}/scores/{method}/{params}.cost.json",
    log:
        "logs/attribute/{setting}-{method}-{params}.log",
    benchmark:
        "benchmarks/attribute/{setting}-{method}-{params}.tsv"
    conda:
        "../envs/leaveout.yaml"
    threads: 1
    resources:
        gpu=GPUS,
        mem_mb=PLAN.mem_mb("attribute"),
        runtime=PLAN.runtime("attribute"),
    params:
        key=PLAN.attribute_key,
    shell:
        "leaveout attribute --setting {wildcards.setting}"
        " --method {wildcards.method} --params {wildcards.params:q} --data {input.data:q}"
        " --full {input.full:q} --half {input.half:q} --out {output.score:q} --cost {output.cost:q}"
        " --threads {threads} 2> {log:q}"


rule self_influence:
    input:
        if_needed(
            "results/{setting}/self_influence/{method}/{params}.safetensors",
            data="results/{setting}/data.safetensors",
            full=PLAN.full_models,
            half=PLAN.half_models,
        ),
        stale=if_stale("results/{setting}/self_influence/{method}/{params}.safetensors"),
        stale_cost=if_stale("results/{setting}/self_influence/{method}/{params}.cost.json"),
    output:
        score="results/{setting}/self_influence/{method}/{params}.safetensors",
        cost="results/{setting}/self_influence/{method}/{params}.cost.json",
    log:
        "logs/self_influence/{setting}-{method}-{params}.log",
    benchmark:
        "benchmarks/self_influence/{setting}-{method}-{params}.tsv"
    conda:
        "../envs/leaveout.yaml"
    threads: 1
    resources:
        gpu=GPUS,
        mem_mb=PLAN.mem_mb("self_influence"),
        runtime=PLAN.runtime("self_influence"),
    params:
        key=PLAN.self_influence_key,
    shell:
        "leaveout self-influence --setting {wildcards.setting}"
        " --method {wildcards.method} --params {wildcards.params:q} --data {input.data:q}"
        " --full {input.full:q} --half {input.half:q} --out {output.score:q} --cost {output.cost:q}"
        " --threads {threads} 2> {log:q}"


rule scores:
    input:
        PLAN.all_scores(),
