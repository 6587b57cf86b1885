# Raw data -> prepared split.


rule prepare:
    input:
        unpack(reads("prepare")),
    output:
        "results/{setting}/data.safetensors",
    log:
        log("prepare"),
    conda:
        ENVIRONMENT
    resources:
        **asks("prepare"),
    params:
        command=command("prepare"),
    shell:
        JOB
