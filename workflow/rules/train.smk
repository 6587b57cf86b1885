# Models that methods attribute: full ones, with their trajectories, and ones trained on random halves.


rule train_full:
    input:
        data="results/{setting}/data.safetensors",
    output:
        "results/{setting}/models/full/{chunk}.safetensors",
    params:
        key=PLAN.train_key("full"),
    log:
        "logs/train_full/{setting}-{chunk}.log",
    benchmark:
        "benchmarks/train_full/{setting}-{chunk}.tsv"
    threads: 1
    resources:
        gpu=GPUS,
        mem_mb=2000,
        runtime=60,
    shell:
        "leaveout train --kind full --setting " + SETTING + " --data {input.data:q} --chunk {wildcards.chunk}"
        " --out {output:q} --device {DEVICE} --threads {threads} 2> {log:q}"


use rule train_full as train_half with:
    output:
        "results/{setting}/models/half/{chunk}.safetensors",
    params:
        key=PLAN.train_key("half"),
    log:
        "logs/train_half/{setting}-{chunk}.log",
    benchmark:
        "benchmarks/train_half/{setting}-{chunk}.tsv"


rule models:
    input:
        PLAN.all_models(),
