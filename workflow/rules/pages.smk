# The report's pages: the one it opens with, each table to be sorted and searched, and what all of it was made by.


rule make_page:
    input:
        table="results/{table}_table.csv",
        stale=if_stale("results/pages/{table}.html"),
    output:
        report(
            "results/pages/{table}.html",
            caption="../report/page.rst",
            category="Tables",
            labels={"metric": "{table}", "shows": "to sort and search"},
        ),
    log:
        "logs/make_page/{table}.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.page_key,
    shell:
        "leaveout table-page --name {wildcards.table} --table {input.table:q} --out {output:q} 2> {log:q}"


rule make_start:
    input:
        tables=PLAN.panels,
        ranks="results/rank_table.csv",
        brittleness=PLAN.brittleness_tables,
        stale=if_stale("results/pages/start.html"),
    output:
        report(
            "results/pages/start.html",
            caption="../report/start.rst",
            category="Overview",
            labels={"page": "what was measured, and who wins"},
        ),
    log:
        "logs/make_start.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.start_key,
        settings=list(PLAN.settings),
        metrics=PLAN.metrics,
        brittleness=lambda wildcards, input: " ".join(
            f"--brittleness {quote(path)}" for path in input.brittleness
        ),
    shell:
        "leaveout start-page --settings {params.settings} --metrics {params.metrics} --tables {input.tables:q}"
        " --ranks {input.ranks:q} {params.brittleness} --out {output:q} 2> {log:q}"


rule make_setup:
    input:
        costs="results/cost_table.csv",
        made=PLAN.made,
        stale=if_stale("results/pages/setup.html"),
    output:
        report(
            "results/pages/setup.html",
            caption="../report/setup.rst",
            category="Overview",
            labels={"page": "versions, hardware, configuration"},
        ),
    log:
        "logs/make_setup.log",
    conda:
        "../envs/leaveout.yaml"
    params:
        key=PLAN.setup_key,
        settings=list(PLAN.settings),
    shell:
        "leaveout setup-page --settings {params.settings} --costs {input.costs:q} --out {output:q} {input.made:q}"
        " 2> {log:q}"
