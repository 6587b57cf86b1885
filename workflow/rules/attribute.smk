# Scores, on test samples and of each training sample on itself: one job a method and grid point. A new method needs no new rule.


rule attribute:
    input:
        unpack(reads("attribute", "data", "full", "half")),
    output:
        out="results/{setting}/scores/{method}/{params}.safetensors",
        cost="results/{setting}/scores/{method}/{params}.cost.json",
    log:
        log("attribute"),
    conda:
        ENVIRONMENT
    resources:
        **asks("attribute"),
    params:
        command=command("attribute"),
    shell:
        JOB


rule self_influence:
    input:
        unpack(reads("self_influence", "data", "full", "half")),
    output:
        out="results/{setting}/self_influence/{method}/{params}.safetensors",
        cost="results/{setting}/self_influence/{method}/{params}.cost.json",
    log:
        log("self_influence"),
    conda:
        ENVIRONMENT
    resources:
        **asks("self_influence"),
    params:
        command=command("self_influence"),
    shell:
        JOB


rule scores:
    input:
        PLAN.files("attribute"),
        PLAN.files("self_influence"),
