# How the intervals of two methods' LDS, and of its difference, narrow with subsets and runs.


rule lds_width:
    input:
        if_needed(
            "results/{setting}/metrics/lds_width.csv",
            truth="results/{setting}/truth/lds.safetensors",
            scores=PLAN.compared_scores,
        ),
        stale=if_stale("results/{setting}/metrics/lds_width.csv"),
    output:
        report(
            "results/{setting}/metrics/lds_width.csv",
            caption="../report/width.rst",
            category="Tables",
            labels={"metric": "lds", "shows": "{setting}: subsets and runs needed (CSV)"},
        ),
    log:
        "logs/lds_width/{setting}.log",
    conda:
        "../envs/leaveout.yaml"
    resources:
        mem_mb=PLAN.mem_mb("evaluate"),
        runtime=PLAN.runtime("evaluate"),
    params:
        key=PLAN.width_key,
        compare=list(PLAN.compared),
        bootstrap=PLAN.config.bootstrap,
    shell:
        "leaveout lds-width --setting {wildcards.setting} --truth {input.truth:q} --compare {params.compare}"
        " --bootstrap {params.bootstrap} --out {output:q} {input.scores:q} 2> {log:q}"


rule width_figure:
    input:
        table="results/{setting}/metrics/lds_width.csv",
        stale=if_stale("results/figures/{setting}_lds_width.svg"),
    output:
        report(
            "results/figures/{setting}_lds_width.svg",
            caption="../report/width.rst",
            category="Figures",
            labels={"metric": "lds", "shows": "{setting}: subsets and runs needed"},
        ),
    log:
        "logs/width_figure/{setting}.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.picture_key("width_figure"),
    shell:
        "leaveout width-figure --setting {wildcards.setting} --table {input.table:q} --out {output:q} 2> {log:q}"
