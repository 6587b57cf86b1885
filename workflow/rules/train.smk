# Models that methods attribute: full ones, with their trajectories, and ones trained on random halves.


rule train:
    input:
        unpack(reads("train", "data")),
    output:
        "results/{setting}/models/{kind}/{chunk}.safetensors",
    log:
        log("train"),
    conda:
        ENVIRONMENT
    resources:
        **asks("train"),
    params:
        command=command("train"),
    shell:
        JOB


rule models:
    input:
        PLAN.files("train"),
