"""Steps that draw figures."""

from __future__ import annotations

from leaveout.config import objective_identity
from leaveout.workflow.plan import Plan
from leaveout.workflow.step import Input, Names, Step
from leaveout.workflow.steps.measuring import metric_files
from leaveout.workflow.steps.tables import CSVS, DAMPINGS, REMOVALS, every_metric, if_any, paths
from leaveout.workflow.steps.training import DATA

PANEL = Input("the panel's table", "<place>/{metric}_table.csv")

FIGURE = Step(
    name="figure",
    help="draw a panel",
    outputs={"out": "<place>/figures/{metric}.svg"},
    inputs={"table": PANEL, "csvs": CSVS},
    every=every_metric,
    compute="leaveout.reporting.figures:panel_figure",
    call=lambda job: {"metric": job["metric"], **paths(job, "table", "csvs")},
    shown="figure",
)
GRID_FIGURE = Step(
    name="grid_figure",
    help="draw a metric along every grid",
    outputs={"out": "<place>/figures/{metric}_grids.svg"},
    inputs={"csvs": CSVS},
    every=lambda plan: [{"metric": m} for m in plan.metrics if plan.has_choice(m)],
    compute="leaveout.reporting.figures:grid_figure",
    call=lambda job: {"metric": job["metric"], **paths(job, "csvs")},
    shown="figure",
)
QUALITY_FIGURE = Step(
    name="quality_figure",
    help="draw a metric against the time of scoring",
    outputs={"out": "<place>/figures/quality_cost_{metric}.svg"},
    inputs={"table": PANEL, "costs": Input("the table of costs", "<place>/cost_table.csv")},
    every=every_metric,
    compute="leaveout.reporting.quality:quality_figure",
    call=lambda job: {"metric": job["metric"], **paths(job, "table", "costs")},
    shown="figure",
)
DAMPING_FIGURE = Step(
    name="damping_figure",
    help="draw how a metric goes with the damping",
    outputs={"out": "<place>/figures/damping_{metric}.svg"},
    inputs={
        "csvs": Input(
            "the metrics of the methods that have a damping to choose",
            lambda plan, names: [
                path
                for setting in plan.settings
                for method in plan.damped(setting, names["metric"])
                for path in plan.files(
                    "evaluate", setting=setting, metric=names["metric"], method=method
                )
            ],
            many=True,
        ),
        "dampings": DAMPINGS,
    },
    every=lambda plan: [{"metric": m} for m in plan.metrics if plan.files("damping", metric=m)],
    compute="leaveout.reporting.dampings:damping_figure",
    call=lambda job: {"metric": job["metric"], **paths(job, "dampings", "csvs")},
    shown="figure",
)
BRITTLENESS_FIGURE = Step(
    name="brittleness_figure",
    help="draw how many predictions flip",
    outputs={"out": "<place>/figures/brittleness.svg"},
    inputs={"csvs": REMOVALS},
    every=if_any("evaluate_brittleness"),
    compute="leaveout.reporting.brittleness:brittleness_figure",
    call=lambda job: paths(job, "csvs"),
    shown="figure",
)
WIDTH_FIGURE = Step(
    name="width_figure",
    help="draw how an LDS's interval goes with subsets and runs",
    outputs={"out": "<place>/figures/{setting}_lds_width.svg"},
    inputs={"table": Input("from lds-width", "<place>/{setting}/lds_width.csv")},
    every=lambda plan: plan.names("lds_width"),
    compute="leaveout.reporting.widths:width_figure",
    call=lambda job: paths(job, "table"),
    shown="figure",
)


def _example_truth(plan: Plan, names: Names) -> list[str]:
    """Return the ground truth whose losses choose test samples: the best that can be drawn."""
    truths = plan.truths_of(names["setting"])
    first = next(truth for truth in ("loo", "pbrf", "lds") if truth in truths)
    return plan.files("merge_truth", setting=names["setting"], truth=first)


def _example_csvs(plan: Plan, names: Names) -> list[str]:
    """Return the metrics that choose the hyper-parameters of the methods pictured."""
    setting = names["setting"]
    measured = plan.metrics_of(setting)
    metric = next(metric for metric in ("lds", "loo", "pbrf") if metric in measured)
    return _pictured(plan, "evaluate", setting, metric=metric)


def _pictured(plan: Plan, step: str, setting: str, **known: str) -> list[str]:
    return [
        path
        for method in plan.pictured
        for path in plan.files(step, setting=setting, method=method, **known)
    ]


EXAMPLES_FIGURE = Step(
    name="examples_figure",
    help="draw test samples with their strongest supporters and opponents",
    outputs={"out": "<place>/figures/{setting}_examples.svg"},
    inputs={
        "data": DATA,
        "truth": Input("a ground truth; it is drawn if it is LOO", _example_truth),
        "csvs": Input("the metrics that choose hyper-parameters", _example_csvs, many=True),
        "scores": Input(
            "the methods' scores",
            lambda plan, names: _pictured(plan, "attribute", names["setting"]),
            many=True,
        ),
    },
    every=lambda plan: [
        {"setting": setting}
        for setting in plan.settings
        if plan.pictured and {"lds", "loo", "pbrf"} & {*plan.metrics_of(setting)}
    ],
    compute="leaveout.reporting.examples:examples_figure",
    call=lambda job: {
        "setting": job["setting"],
        "likely": not objective_identity(job.setting.objective),
        **paths(job, "data", "truth", "csvs", "scores"),
    },
    decides=lambda job: objective_identity(job.setting.objective),
    shown="figure",
)
SELF_INFLUENCE_FIGURE = Step(
    name="self_influence_figure",
    help="draw the most self-influential training samples",
    outputs={"out": "<place>/figures/{setting}_self_influence.svg"},
    inputs={
        "data": DATA,
        "csvs": Input(
            "the AUCs that choose hyper-parameters",
            lambda plan, names: [
                path
                for method in plan.pictured
                for path in metric_files(
                    plan, metric="auc", setting=names["setting"], method=method
                )
            ],
            many=True,
        ),
        "scores": Input(
            "the methods' self-influence",
            lambda plan, names: _pictured(plan, "self_influence", names["setting"]),
            many=True,
        ),
    },
    every=lambda plan: [
        {"setting": setting}
        for setting in plan.settings
        if plan.pictured and "auc" in plan.metrics_of(setting)
    ],
    compute="leaveout.reporting.examples:self_influence_figure",
    call=lambda job: {"setting": job["setting"], **paths(job, "data", "csvs", "scores")},
    shown="figure",
)

STEPS = (
    FIGURE,
    GRID_FIGURE,
    QUALITY_FIGURE,
    DAMPING_FIGURE,
    BRITTLENESS_FIGURE,
    WIDTH_FIGURE,
    EXAMPLES_FIGURE,
    SELF_INFLUENCE_FIGURE,
)
