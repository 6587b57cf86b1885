# What people look at: tables and figures, all in the report.


rule make_table:
    input:
        csvs=PLAN.metric_csvs,
        published=f"{CONFIG}/published.csv",
        dampings=PLAN.damping_csvs,
        draws=PLAN.draws,
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
        csvs=PLAN.all_metric_csvs(),
        stale=if_stale("results/cost_table.csv"),
    output:
        report(
            "results/cost_table.csv",
            caption="../report/cost.rst",
            category="Tables",
            labels={"metric": "cost", "shows": "time and memory, and what they buy (CSV)"},
        ),
    log:
        "logs/make_cost_table.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.shown_key("table", "cost"),
    shell:
        "leaveout cost-table --out {output:q} {input.costs:q} --quality {input.csvs:q} 2> {log:q}"


rule make_tidy_table:
    input:
        csvs=PLAN.all_metric_csvs(),
        draws=PLAN.all_draws(),
        dampings=PLAN.all_damping_csvs(),
        stale=if_stale("results/tidy.csv"),
    output:
        report(
            "results/tidy.csv",
            caption="../report/tidy.rst",
            category="Tables",
            labels={"metric": "all", "shows": "every value, a row each (CSV)"},
        ),
    log:
        "logs/make_tidy_table.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.shown_key("tidy", "all"),
    shell:
        "leaveout tidy-table --out {output:q} {input.csvs:q} --dampings {input.dampings:q} 2> {log:q}"


rule make_rank_table:
    input:
        csvs=PLAN.all_metric_csvs(),
        draws=PLAN.all_draws(),
        stale=if_stale("results/rank_table.csv"),
    output:
        report(
            "results/rank_table.csv",
            caption="../report/rank.rst",
            category="Tables",
            labels={"metric": "all", "shows": "which methods differ (CSV)"},
        ),
    log:
        "logs/make_rank_table.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.shown_key("ranks", "all"),
    shell:
        "leaveout rank-table --out {output:q} {input.csvs:q} 2> {log:q}"


rule make_published_table:
    input:
        csvs=PLAN.all_metric_csvs(),
        published=f"{CONFIG}/published.csv",
        causes=f"{CONFIG}/causes.yaml",
        stale=if_stale("results/published_table.csv"),
    output:
        report(
            "results/published_table.csv",
            caption="../report/published.rst",
            category="Tables",
            labels={"metric": "all", "shows": "ours and the published values (CSV)"},
        ),
    log:
        "logs/make_published_table.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.shown_key("published", "all"),
    shell:
        "leaveout published-table --published {input.published:q} --causes {input.causes:q} --out {output:q}"
        " {input.csvs:q} 2> {log:q}"


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
        TABLES,
