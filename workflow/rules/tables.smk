# What people look at: tables of numbers, all in the report.


rule table:
    input:
        unpack(reads("table", "csvs", "published", "dampings", "draws")),
    output:
        report(
            "<place>/{metric}_table.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"metric": "{metric}", "shows": "all methods, all columns (CSV)"},
        ),
    log:
        log("table"),
    conda:
        ENVIRONMENT
    params:
        command=command("table"),
    shell:
        JOB


rule cost_table:
    input:
        unpack(reads("cost_table", "costs", "quality")),
    output:
        report(
            "<place>/cost_table.csv",
            caption="../report/cost.rst",
            category="Tables",
            labels={"metric": "cost", "shows": "time and memory, and what they buy (CSV)"},
        ),
    log:
        log("cost_table"),
    conda:
        ENVIRONMENT
    params:
        command=command("cost_table"),
    shell:
        JOB


rule tidy_table:
    input:
        unpack(reads("tidy_table", "csvs", "draws", "dampings")),
    output:
        report(
            "<place>/tidy.csv",
            caption="../report/tidy.rst",
            category="Tables",
            labels={"metric": "all", "shows": "every value, a row each (CSV)"},
        ),
    log:
        log("tidy_table"),
    conda:
        ENVIRONMENT
    params:
        command=command("tidy_table"),
    shell:
        JOB


rule rank_table:
    input:
        unpack(reads("rank_table", "csvs", "draws")),
    output:
        report(
            "<place>/rank_table.csv",
            caption="../report/rank.rst",
            category="Tables",
            labels={"metric": "all", "shows": "which methods differ (CSV)"},
        ),
    log:
        log("rank_table"),
    conda:
        ENVIRONMENT
    params:
        command=command("rank_table"),
    shell:
        JOB


rule published_table:
    input:
        unpack(reads("published_table", "csvs", "published", "causes")),
    output:
        report(
            "<place>/published_table.csv",
            caption="../report/published.rst",
            category="Tables",
            labels={"metric": "all", "shows": "ours and the published values (CSV)"},
        ),
    log:
        log("published_table"),
    conda:
        ENVIRONMENT
    params:
        command=command("published_table"),
    shell:
        JOB
