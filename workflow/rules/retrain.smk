# Ground truth the honest way: leave data out, train again, look.


rule retrain_lds:
    input:
        unpack(reads("retrain_lds", "data")),
    output:
        "results/{setting}/retrain/lds/{chunk}.safetensors",
    log:
        log("retrain_lds"),
    conda:
        ENVIRONMENT
    resources:
        **asks("retrain_lds"),
    params:
        command=command("retrain_lds"),
    shell:
        JOB


rule retrain_loo:
    input:
        unpack(reads("retrain_loo", "data")),
    output:
        "results/{setting}/retrain/loo/{chunk}.safetensors",
    log:
        log("retrain_loo"),
    priority: 1  # the longest layer: started first, so that no core idles at the end
    conda:
        ENVIRONMENT
    resources:
        **asks("retrain_loo"),
    params:
        command=command("retrain_loo"),
    shell:
        JOB


rule retrain_pbrf:
    input:
        unpack(reads("retrain_pbrf", "data", "full")),
    output:
        "results/{setting}/retrain/pbrf/{chunk}.safetensors",
    log:
        log("retrain_pbrf"),
    conda:
        ENVIRONMENT
    resources:
        **asks("retrain_pbrf"),
    params:
        command=command("retrain_pbrf"),
    shell:
        JOB


rule merge_truth:
    input:
        unpack(reads("merge_truth", "chunks")),
    output:
        "results/{setting}/truth/{truth}.safetensors",
    log:
        log("merge_truth"),
    conda:
        ENVIRONMENT
    resources:
        **asks("merge_truth"),
    params:
        command=command("merge_truth"),
    shell:
        JOB


rule truths:
    input:
        PLAN.files("merge_truth"),
