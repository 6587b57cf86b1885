# Raw data -> prepared split.


rule prepare_data:
    output:
        "results/{setting}/data.safetensors",
    params:
        key=PLAN.prepare_key,
    log:
        "logs/prepare_data/{setting}.log",
    shell:
        "leaveout prepare --setting " + SETTING + " --out {output:q} 2> {log:q}"
