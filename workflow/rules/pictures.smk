# Pictures beside the panels: grids, quality against cost, and the samples themselves.


rule grid_figure:
    input:
        csvs=PLAN.metric_csvs,
        stale=if_stale("results/figures/{metric}_grids.svg"),
    output:
        report(
            "results/figures/{metric}_grids.svg",
            caption="../report/grids.rst",
            category="Figures",
            labels={"metric": "{metric}", "shows": "every hyper-parameter tried"},
        ),
    log:
        "logs/grid_figure/{metric}.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.report_key("grid_figure"),
    shell:
        "leaveout grid-figure --metric {wildcards.metric} --out {output:q} {input.csvs:q} 2> {log:q}"


rule quality_figure:
    input:
        table="results/{metric}_table.csv",
        costs="results/cost_table.csv",
        stale=if_stale("results/figures/quality_cost_{metric}.svg"),
    output:
        report(
            "results/figures/quality_cost_{metric}.svg",
            caption="../report/quality.rst",
            category="Figures",
            labels={"metric": "{metric}", "shows": "quality against cost"},
        ),
    log:
        "logs/quality_figure/{metric}.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.report_key("quality_figure"),
    shell:
        "leaveout quality-figure --metric {wildcards.metric} --table {input.table:q} --costs {input.costs:q}"
        " --out {output:q} 2> {log:q}"


rule examples_figure:
    input:
        if_needed(
            "results/figures/{setting}_examples.svg",
            data="results/{setting}/data.safetensors",
            truth=PLAN.example_truth,
            csvs=PLAN.example_csvs,
            scores=PLAN.example_scores,
        ),
        stale=if_stale("results/figures/{setting}_examples.svg"),
    output:
        report(
            "results/figures/{setting}_examples.svg",
            caption="../report/examples.rst",
            category="Samples",
            labels={"setting": "{setting}", "shows": "supporters and opponents"},
        ),
    log:
        "logs/examples_figure/{setting}.log",
    conda:
        "../envs/leaveout.yaml"
    resources:
        mem_mb=PLAN.mem_mb("evaluate"),
        runtime=PLAN.runtime("evaluate"),
    params:
        key=PLAN.picture_key("examples_figure"),
    shell:
        "leaveout examples-figure --setting {wildcards.setting} --data {input.data:q} --truth {input.truth:q}"
        " --out {output:q} {input.scores:q} --csvs {input.csvs:q} 2> {log:q}"


rule self_influence_figure:
    input:
        if_needed(
            "results/figures/{setting}_self_influence.svg",
            data="results/{setting}/data.safetensors",
            csvs=PLAN.self_influence_csvs,
            scores=PLAN.self_influence_scores,
        ),
        stale=if_stale("results/figures/{setting}_self_influence.svg"),
    output:
        report(
            "results/figures/{setting}_self_influence.svg",
            caption="../report/self_influence.rst",
            category="Samples",
            labels={"setting": "{setting}", "shows": "the most self-influential"},
        ),
    log:
        "logs/self_influence_figure/{setting}.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.picture_key("self_influence_figure"),
    shell:
        "leaveout self-influence-figure --setting {wildcards.setting} --data {input.data:q} --out {output:q}"
        " {input.scores:q} --csvs {input.csvs:q} 2> {log:q}"
