# A metric by class of the test sample, and by how sure the full models are of it.


rule subgroups:
    input:
        unpack(reads("subgroups", "truth", "data", "predictions", "csvs", "scores")),
    output:
        "<place>/subgroups/{setting}/{metric}.csv",
    log:
        log("subgroups"),
    conda:
        ENVIRONMENT
    resources:
        **asks("subgroups"),
    params:
        command=command("subgroups"),
    shell:
        JOB


rule subgroups_table:
    input:
        unpack(reads("subgroups_table", "csvs")),
    output:
        report(
            "<place>/subgroups_table.csv",
            caption="../report/subgroups.rst",
            category="Tables",
            labels={
                "metric": "subgroups",
                "shows": "by class, and by how sure the models are (CSV)",
            },
        ),
    log:
        log("subgroups_table"),
    conda:
        ENVIRONMENT
    params:
        command=command("subgroups_table"),
    shell:
        JOB
