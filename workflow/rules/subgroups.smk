# A metric by class of the test sample, and by how sure the full models are of it.


rule subgroups:
    input:
        if_needed(
            "results/{setting}/subgroups/{metric}.csv",
            truth="results/{setting}/truth/{metric}.safetensors",
            data="results/{setting}/data.safetensors",
            predictions="results/{setting}/predictions.safetensors",
            csvs=PLAN.grouped_csvs,
            scores=PLAN.grouped_scores,
        ),
        stale=if_stale("results/{setting}/subgroups/{metric}.csv"),
    output:
        "results/{setting}/subgroups/{metric}.csv",
    log:
        "logs/subgroups/{setting}-{metric}.log",
    conda:
        "../envs/leaveout.yaml"
    resources:
        mem_mb=PLAN.mem_mb("evaluate"),
        runtime=PLAN.runtime("evaluate"),
    params:
        key=PLAN.subgroups_key,
        methods=list(PLAN.methods),
        bootstrap=PLAN.config.bootstrap,
    shell:
        "leaveout subgroups --setting {wildcards.setting} --metric {wildcards.metric} --truth {input.truth:q}"
        " --data {input.data:q} --predictions {input.predictions:q} --bootstrap {params.bootstrap} --out {output:q}"
        " {input.csvs:q} {input.scores:q} --methods {params.methods} 2> {log:q}"


rule make_subgroups_table:
    input:
        csvs=PLAN.subgroup_csvs,
        stale=if_stale("results/subgroups_table.csv"),
    output:
        report(
            "results/subgroups_table.csv",
            caption="../report/subgroups.rst",
            category="Tables",
            labels={
                "metric": "subgroups",
                "shows": "by class, and by how sure the models are (CSV)",
            },
        ),
    log:
        "logs/make_subgroups_table.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.shown_key("subgroups_table", "subgroups"),
    shell:
        "leaveout subgroups-table --out {output:q} {input.csvs:q} 2> {log:q}"
