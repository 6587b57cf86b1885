# What people look at: tables and figures, all in the report.


rule make_table:
    input:
        csvs=PLAN.metric_csvs,
        published=f"{CONFIG}/published.csv",
        dampings=PLAN.damping_csvs,
        stale=if_stale("results/{metric}_table.csv"),
    output:
        report(
            "results/{metric}_table.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"metric": "{metric}", "shows": "all methods, all columns (CSV)"},
        ),
    log:
        "logs/make_table/{metric}.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.report_key("table"),
    shell:
        "leaveout table --metric {wildcards.metric} --published {input.published:q} --out {output:q}"
        " {input.csvs:q} --dampings {input.dampings:q} 2> {log:q}"


rule make_cost_table:
    input:
        costs=PLAN.all_scores(".cost.json"),
        stale=if_stale("results/cost_table.csv"),
    output:
        report(
            "results/cost_table.csv",
            caption="../report/cost.rst",
            category="Tables",
            labels={"metric": "cost", "shows": "time and memory (CSV)"},
        ),
    log:
        "logs/make_cost_table.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.cost_key,
    shell:
        "leaveout cost-table --out {output:q} {input.costs:q} 2> {log:q}"


rule make_figure:
    input:
        table="results/{metric}_table.csv",
        csvs=PLAN.metric_csvs,
        stale=if_stale("results/figures/{metric}.svg"),
    output:
        report(
            "results/figures/{metric}.svg",
            caption="../report/figure.rst",
            category="Figures",
            labels={"metric": "{metric}", "shows": "the panel"},
        ),
    log:
        "logs/make_figure/{metric}.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.report_key("figure"),
    shell:
        "leaveout figure --metric {wildcards.metric} --table {input.table:q} --out {output:q} {input.csvs:q} 2> {log:q}"


rule tables:
    input:
        expand("results/{metric}_table.csv", metric=PLAN.metrics),
        PLAN.pages(),
        "results/cost_table.csv",
