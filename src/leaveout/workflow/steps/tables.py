"""Steps that put numbers together: tables, and the report's pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leaveout.config import Setting, objective_identity, resolved
from leaveout.workflow.plan import Plan
from leaveout.workflow.step import Input, Job, Names, Option, Step
from leaveout.workflow.steps.measuring import metric_files

ONE: list[Names] = [{}]


def every_metric(plan: Plan) -> list[Names]:
    """Return one job for each panel."""
    return [{"metric": metric} for metric in plan.metrics]


def measured(output: str = "") -> Callable[[Plan, Names], list[str]]:
    """Return an input function: one output of all evaluations, of the job's metric or of all."""
    return lambda plan, names: metric_files(
        plan, output, **({"metric": names["metric"]} if "metric" in names else {})
    )


CSVS = Input("the methods' metrics, in order", measured(), many=True)
DRAWS = Input("their bootstrap draws, in the same order", measured("draws"), many=True)
DAMPINGS = Input(
    "from damping",
    lambda plan, names: [
        path
        for metric in ([names["metric"]] if "metric" in names else plan.metrics)
        for path in plan.files("damping", metric=metric)
    ],
    many=True,
    optional=True,
)
PUBLISHED = Input("published values", lambda plan, names: [f"{plan.folder}/published.csv"])
SETTINGS = Option("what is shown, in order", lambda plan, names: list(plan.settings), many=True)


def paths(job: Job, *names: str) -> dict[str, Any]:
    """Return a job's input files as arguments of the same names."""
    return {
        name: job.files(name) if job.step.inputs[name].many else job.file(name) for name in names
    }


TABLE = Step(
    name="table",
    help="make the table of a panel",
    outputs={"out": "<place>/{metric}_table.csv"},
    inputs={"csvs": CSVS, "published": PUBLISHED, "dampings": DAMPINGS, "draws": DRAWS},
    every=every_metric,
    compute="leaveout.reporting.tables:panel_table",
    call=lambda job: {
        "metric": job["metric"],
        **paths(job, "csvs", "published", "dampings", "draws"),
    },
    shown="table",
)
COST_TABLE = Step(
    name="cost_table",
    help="make the table of costs",
    outputs={"out": "<place>/cost_table.csv"},
    inputs={
        "costs": Input("what the methods took, in order", measured("costs"), many=True),
        "quality": CSVS,
    },
    every=lambda plan: ONE,
    compute="leaveout.reporting.tables:cost_table",
    call=lambda job: paths(job, "costs", "quality"),
    shown="table",
)
TIDY_TABLE = Step(
    name="tidy_table",
    help="put all metrics in one long table",
    outputs={"out": "<place>/tidy.csv"},
    inputs={"csvs": CSVS, "draws": DRAWS, "dampings": DAMPINGS},
    every=lambda plan: ONE,
    compute="leaveout.reporting.tidy:tidy_table",
    call=lambda job: paths(job, "csvs", "draws", "dampings"),
    shown="table",
)
RANK_TABLE = Step(
    name="rank_table",
    help="say which methods really differ",
    outputs={"out": "<place>/rank_table.csv"},
    inputs={"csvs": CSVS, "draws": DRAWS},
    every=lambda plan: ONE,
    compute="leaveout.reporting.ranks:rank_table",
    call=lambda job: paths(job, "csvs", "draws"),
    shown="table",
)
PUBLISHED_TABLE = Step(
    name="published_table",
    help="put our values beside the published ones",
    outputs={"out": "<place>/published_table.csv"},
    inputs={
        "csvs": CSVS,
        "published": PUBLISHED,
        "causes": Input(
            "why values differ (YAML)", lambda plan, names: [f"{plan.folder}/causes.yaml"]
        ),
    },
    every=lambda plan: ONE,
    compute="leaveout.reporting.published:published_table",
    call=lambda job: paths(job, "csvs", "published", "causes"),
    shown="table",
)


def if_any(step: str) -> Callable[[Plan], list[Names]]:
    """Return one job, if a step has any."""
    return lambda plan: ONE if plan.names(step) else []


REMOVALS = Input(
    "from evaluate-brittleness, in order",
    lambda plan, names: plan.files("evaluate_brittleness"),
    many=True,
)
BRITTLENESS_TABLE = Step(
    name="brittleness_table",
    help="make the table of retraining without the most helpful samples",
    outputs={"out": "<place>/brittleness_table.csv"},
    inputs={"csvs": REMOVALS},
    every=if_any("evaluate_brittleness"),
    compute="leaveout.reporting.brittleness:brittleness_table",
    call=lambda job: paths(job, "csvs"),
    shown="table",
)
SUBGROUPS_TABLE = Step(
    name="subgroups_table",
    help="put metrics by subgroup together",
    outputs={"out": "<place>/subgroups_table.csv"},
    inputs={
        "csvs": Input(
            "from subgroups, in order", lambda plan, names: plan.files("subgroups"), many=True
        )
    },
    every=if_any("subgroups"),
    compute="leaveout.reporting.subgroups:subgroups_table",
    call=lambda job: paths(job, "csvs"),
    shown="table",
)


def paged(plan: Plan) -> list[str]:
    """Return the tables that have a page each, by name."""
    more = [name for name in ("brittleness", "subgroups") if plan.names(f"{name}_table")]
    return [*plan.metrics, "rank", "published", "cost", *more]


TABLE_PAGE = Step(
    name="table_page",
    help="write a table as a page",
    outputs={"out": "<place>/pages/{table}.html"},
    inputs={"csv": Input("the table's file", "<place>/{table}_table.csv")},
    every=lambda plan: [{"table": name} for name in paged(plan)],
    compute="leaveout.reporting.pages:table_page",
    call=lambda job: {"name": job["table"], "table": job.file("csv")},
    shown="page",
)


def _about(setting: Setting) -> dict[str, Any]:
    return {
        "dataset": {
            "name": setting.dataset.name,
            **setting.dataset.model_dump(
                include={"n_train", "n_test", "label_noise"}, exclude_none=True
            ),
        },
        "model": setting.model.name,
        **objective_identity(setting.objective),
    }


def _shown_settings(job: Job) -> list[Setting]:
    return [job.load(name) for name in job.options["settings"]]


START_PAGE = Step(
    name="start_page",
    help="write the page that the report opens with",
    outputs={"out": "<place>/pages/start.html"},
    inputs={
        "tables": Input(
            "the panels' tables, one a metric", lambda plan, names: plan.files("table"), many=True
        ),
        "ranks": Input("the table of ranks", "<place>/rank_table.csv", optional=True),
        "brittleness": Input(
            "the table of brittleness",
            lambda plan, names: plan.files("brittleness_table"),
            optional=True,
        ),
    },
    every=lambda plan: ONE,
    compute="leaveout.reporting.start:start_page",
    call=lambda job: {
        "settings": _shown_settings(job),
        "tables": dict(zip(job.options["metrics"], job.files("tables"), strict=True)),
        **paths(job, "ranks", "brittleness"),
    },
    decides=lambda job: {"about": [_about(setting) for setting in _shown_settings(job)]},
    options={
        "settings": SETTINGS,
        "metrics": Option("in order", lambda plan, names: list(plan.metrics), many=True),
    },
    shown="page",
)


def _made(plan: Plan, names: Names) -> list[str]:
    """Return artefacts that say what made them: such as are published, of all settings."""
    return [*plan.files("merge_truth"), *metric_files(plan, "draws")]


SETUP_PAGE = Step(
    name="setup_page",
    help="write the page of versions, hardware and configuration",
    outputs={"out": "<place>/pages/setup.html"},
    inputs={
        "costs": Input("the table of costs", "<place>/cost_table.csv"),
        "made": Input("artefacts whose headers say what made them", _made, many=True),
    },
    every=lambda plan: ONE,
    compute="leaveout.reporting.setup:setup_page",
    call=lambda job: {"settings": _shown_settings(job), **paths(job, "made", "costs")},
    decides=lambda job: {"resolved": [resolved(setting) for setting in _shown_settings(job)]},
    options={"settings": SETTINGS},
    shown="page",
)

STEPS = (
    TABLE,
    COST_TABLE,
    TIDY_TABLE,
    RANK_TABLE,
    PUBLISHED_TABLE,
    BRITTLENESS_TABLE,
    SUBGROUPS_TABLE,
    TABLE_PAGE,
    START_PAGE,
    SETUP_PAGE,
)
