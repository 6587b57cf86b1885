# Figures: the panels, what stands behind them, and the samples themselves.


rule figure:
    input:
        unpack(reads("figure", "table", "csvs")),
    output:
        report(
            "<place>/figures/{metric}.svg",
            caption="../report/figure.rst",
            category="Figures",
            labels={"metric": "{metric}", "shows": "the panel"},
        ),
    log:
        log("figure"),
    conda:
        ENVIRONMENT
    params:
        command=command("figure"),
    shell:
        JOB


rule grid_figure:
    input:
        unpack(reads("grid_figure", "csvs")),
    output:
        report(
            "<place>/figures/{metric}_grids.svg",
            caption="../report/grids.rst",
            category="Figures",
            labels={"metric": "{metric}", "shows": "every hyper-parameter tried"},
        ),
    log:
        log("grid_figure"),
    conda:
        ENVIRONMENT
    params:
        command=command("grid_figure"),
    shell:
        JOB


rule quality_figure:
    input:
        unpack(reads("quality_figure", "table", "costs")),
    output:
        report(
            "<place>/figures/quality_cost_{metric}.svg",
            caption="../report/quality.rst",
            category="Figures",
            labels={"metric": "{metric}", "shows": "quality against cost"},
        ),
    log:
        log("quality_figure"),
    conda:
        ENVIRONMENT
    params:
        command=command("quality_figure"),
    shell:
        JOB


rule damping_figure:
    input:
        unpack(reads("damping_figure", "csvs", "dampings")),
    output:
        report(
            "<place>/figures/damping_{metric}.svg",
            caption="../report/damping.rst",
            category="Figures",
            labels={"metric": "{metric}", "shows": "damping"},
        ),
    log:
        log("damping_figure"),
    conda:
        ENVIRONMENT
    params:
        command=command("damping_figure"),
    shell:
        JOB


rule width_figure:
    input:
        unpack(reads("width_figure", "table")),
    output:
        report(
            "<place>/figures/{setting}_lds_width.svg",
            caption="../report/width.rst",
            category="Figures",
            labels={"metric": "lds", "shows": "{setting}: subsets and runs needed"},
        ),
    log:
        log("width_figure"),
    conda:
        ENVIRONMENT
    params:
        command=command("width_figure"),
    shell:
        JOB


rule examples_figure:
    input:
        unpack(reads("examples_figure", "data", "truth", "csvs", "scores")),
    output:
        report(
            "<place>/figures/{setting}_examples.svg",
            caption="../report/examples.rst",
            category="Samples",
            labels={"setting": "{setting}", "shows": "supporters and opponents"},
        ),
    log:
        log("examples_figure"),
    conda:
        ENVIRONMENT
    params:
        command=command("examples_figure"),
    shell:
        JOB


rule self_influence_figure:
    input:
        unpack(reads("self_influence_figure", "data", "csvs", "scores")),
    output:
        report(
            "<place>/figures/{setting}_self_influence.svg",
            caption="../report/self_influence.rst",
            category="Samples",
            labels={"setting": "{setting}", "shows": "the most self-influential"},
        ),
    log:
        log("self_influence_figure"),
    conda:
        ENVIRONMENT
    params:
        command=command("self_influence_figure"),
    shell:
        JOB
