# Models that methods attribute: full ones, with their trajectories, and ones trained on random halves.


rule train_models:
    input:
        if_needed(
            "results/{setting}/models/{kind}/{chunk}.safetensors",
            data="results/{setting}/data.safetensors",
        ),
        stale=if_stale("results/{setting}/models/{kind}/{chunk}.safetensors"),
    output:
        "results/{setting}/models/{kind}/{chunk}.safetensors",
    log:
        "logs/train_models/{setting}-{kind}-{chunk}.log",
    benchmark:
        "benchmarks/train_models/{setting}-{kind}-{chunk}.tsv"
    conda:
        "../envs/leaveout.yaml"
    threads: 1
    resources:
        gpu=GPUS,
        mem_mb=PLAN.mem_mb("models"),
        runtime=PLAN.runtime("models"),
    params:
        key=PLAN.model_key,
    shell:
        "leaveout train --kind {wildcards.kind} --setting {wildcards.setting} --data {input.data:q}"
        " --chunk {wildcards.chunk} --out {output:q} --threads {threads} 2> {log:q}"


rule models:
    input:
        PLAN.all_models(),
