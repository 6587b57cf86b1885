# The report's pages: the one it opens with, each table to be sorted and searched, and what made all of it.


rule table_page:
    input:
        unpack(reads("table_page", "csv")),
    output:
        report(
            "<place>/pages/{table}.html",
            caption="../report/page.rst",
            category="Tables",
            labels={"metric": "{table}", "shows": "to sort and search"},
        ),
    log:
        log("table_page"),
    conda:
        ENVIRONMENT
    params:
        command=command("table_page"),
    shell:
        JOB


rule start_page:
    input:
        unpack(reads("start_page", "tables", "ranks", "brittleness")),
    output:
        report(
            "<place>/pages/start.html",
            caption="../report/start.rst",
            category="Overview",
            labels={"page": "what was measured, and who wins"},
        ),
    log:
        log("start_page"),
    conda:
        ENVIRONMENT
    params:
        command=command("start_page"),
    shell:
        JOB


rule setup_page:
    input:
        unpack(reads("setup_page", "costs", "made")),
    output:
        report(
            "<place>/pages/setup.html",
            caption="../report/setup.rst",
            category="Overview",
            labels={"page": "versions, hardware, configuration"},
        ),
    log:
        log("setup_page"),
    conda:
        ENVIRONMENT
    params:
        command=command("setup_page"),
    shell:
        JOB
