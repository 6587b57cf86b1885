# Raw data -> prepared split.


rule prepare_data:
    output:
        "results/{setting}/data.safetensors",
    log:
        "logs/prepare_data/{setting}.log",
    conda:
        "leaveout"
    params:
        key=PLAN.prepare_key,
    shell:
        "leaveout prepare --setting {wildcards.setting} --out {output:q} 2> {log:q}"
