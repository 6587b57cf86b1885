# Raw data -> prepared split.


rule prepare_data:
    input:
        stale=if_stale("results/{setting}/data.safetensors"),
    output:
        "results/{setting}/data.safetensors",
    log:
        "logs/prepare_data/{setting}.log",
    conda:
        "../envs/leaveout.yaml"
    resources:
        mem_mb=PLAN.mem_mb("prepare"),
        runtime=PLAN.runtime("prepare"),
    params:
        key=PLAN.prepare_key,
    shell:
        "leaveout prepare --setting {wildcards.setting} --out {output:q} 2> {log:q}"
