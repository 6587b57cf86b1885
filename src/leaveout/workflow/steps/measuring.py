"""Steps that compare scores with ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from leaveout.config.metric_names import truth_of
from leaveout.config.subset_file import subset_size
from leaveout.workflow import costs
from leaveout.workflow.plan import Plan
from leaveout.workflow.step import Input, Job, Names, Option, Step
from leaveout.workflow.steps.scoring import HALF
from leaveout.workflow.steps.training import DATA, FULL, problem_identity, training_identity

BOOTSTRAP = Option("bootstrap draws", lambda plan, names: plan.config.bootstrap, int, default=1000)


def _evaluation(job: Job) -> costs.Job:
    """Return what an evaluation takes: most of it is the bootstrap, and memory is bounded."""
    return costs.Job(seconds=600, memory=2e9, disk=1e5)


def _made(step: str, output: str = "") -> Any:
    """Return an input function: what one method says of a setting, one file a grid point."""

    def paths(plan: Plan, names: Names) -> list[str]:
        return plan.files(step, output, setting=names["setting"], method=names["method"])

    return paths


SCORES = Input("scores, one file a grid point, in grid order", _made("attribute"), many=True)
OUTPUTS = {
    "out": "<home>/{setting}/metrics/{metric}/{method}.csv",
    "draws": "<home>/{setting}/metrics/{metric}/{method}.draws.safetensors",
    "costs": "<home>/{setting}/metrics/{metric}/{method}.costs.json",
}


def _every(plan: Plan) -> Iterator[Names]:
    for setting in plan.settings:
        for metric in plan.metrics_of(setting):
            if metric != "auc":
                for method in plan.methods:
                    yield {"setting": setting, "metric": metric, "method": method}


def _call(job: Job) -> dict[str, Any]:
    return {
        "truth": job.file("truth"),
        "scores": job.files("scores"),
        "costs": job.files("cost"),
        "setting": job["setting"],
        "method": job["method"],
        "root_seed": job.setting.seed,
        "bootstrap": job.options["bootstrap"],
    }


EVALUATE = Step(
    name="evaluate",
    help="measure the scores of one method against a ground truth",
    outputs=OUTPUTS,
    inputs={
        "truth": Input(
            "the ground truth",
            lambda plan, names: plan.files(
                "merge_truth", setting=names["setting"], truth=truth_of(names["metric"])
            ),
        ),
        "scores": SCORES,
        "cost": Input("what the scores took", _made("attribute", "cost"), many=True, optional=True),
    },
    every=_every,
    compute="leaveout.metrics.evaluate:evaluate",
    call=lambda job: {
        **_call(job),
        "metric": job["metric"],
        "top_k": job.options["top_k"] or 10,
    },
    decides=lambda job: {"seed": job.setting.seed},
    options={
        "bootstrap": BOOTSTRAP,
        "top_k": Option(
            "how many samples loo_topk looks at (default 10)",
            lambda plan, names: plan.config.top_k if names["metric"] == "loo_topk" else None,
            int,
        ),
    },
    takes=_evaluation,
)
EVALUATE_AUC = Step(
    name="evaluate_auc",
    help="measure how well self-influence finds flipped labels",
    outputs={name: path.replace("{metric}", "auc") for name, path in OUTPUTS.items()},
    inputs={
        "truth": Input("the data artefact, which names the flipped samples", DATA.paths),
        "scores": Input(
            "self-influence, one file a grid point", _made("self_influence"), many=True
        ),
        "cost": Input(
            "what the scores took", _made("self_influence", "cost"), many=True, optional=True
        ),
    },
    every=lambda plan: [
        {"setting": setting, "metric": "auc", "method": method}
        for setting in plan.settings
        if "auc" in plan.metrics_of(setting)
        for method in plan.methods
    ],
    compute="leaveout.metrics.auc:evaluate_auc",
    call=_call,
    decides=lambda job: {"seed": job.setting.seed, "metric": "auc"},
    options={"bootstrap": BOOTSTRAP},
    takes=_evaluation,
)


def metric_files(plan: Plan, output: str = "", **known: str) -> list[str]:
    """Return the files of all methods' metrics: by metric, then setting, then method."""
    wanted = [known["metric"]] if "metric" in known else plan.metrics
    found: list[str] = []
    for metric in wanted:
        step = "evaluate_auc" if metric == "auc" else "evaluate"
        found += plan.files(step, output, **{**known, "metric": metric})
    return found


def _damping_identity(job: Job) -> dict[str, Any]:
    setting = job.setting
    own = setting.lds.own
    return {
        "seed": setting.seed,
        **problem_identity(setting),
        "recipe": setting.recipe.identity(),
        "limits": setting.attribution.model_dump(),
        "subsets": list(own.digests)
        if own
        else subset_size(setting.dataset.n_train, setting.lds.ratio),
    }


DAMPING = Step(
    name="damping",
    help="choose a method's damping without retrained models",
    outputs={"out": "<home>/{setting}/damping/{metric}/{method}.csv"},
    inputs={"data": DATA, "full": FULL, "half": HALF, "scores": SCORES},
    every=lambda plan: [
        {"setting": setting, "metric": metric, "method": method}
        for setting in plan.settings
        for metric in plan.metrics_of(setting)
        for method in plan.damped(setting, metric)
    ],
    compute="leaveout.scoring.damping:choose_damping",
    call=lambda job: {
        "setting": job.setting,
        "metric": job["metric"],
        "method": job.scored,
        "data_path": job.file("data"),
        "full_paths": job.files("full"),
        "half_paths": job.files("half"),
        "score_paths": job.files("scores"),
        "device": job.device,
    },
    decides=_damping_identity,
    # one score matrix more
    takes=lambda job: costs.score_job(costs.workload(job.setting), job.scored, job.scored.grid[0]),
    device=True,
    uses_method=True,
)
PREDICTIONS = Input("from predict", "results/{setting}/predictions.safetensors")


def _chosen_by(plan: Plan, names: Names) -> Sequence[str]:
    """Return the LDS that chooses which of a method's scores count, if it has a choice."""
    setting, method = names["setting"], names["method"]
    if "lds" not in plan.metrics_of(setting) or len(plan.grids[setting][method].grid) == 1:
        return []
    return plan.files("evaluate", setting=setting, metric="lds", method=method)


def _every_removal(plan: Plan) -> list[Names]:
    return [
        {"setting": setting, "method": method}
        for setting in plan.settings
        for method in plan.removing(setting)
    ]


RETRAIN_BRITTLENESS = Step(
    name="retrain_brittleness",
    help="retrain without the samples a method calls most helpful",
    outputs={"out": "<home>/{setting}/retrain/brittleness/{method}.safetensors"},
    inputs={
        "data": DATA,
        "predictions": PREDICTIONS,
        "scores": SCORES,
        "chosen_by": Input(
            "the method's LDS, which chooses among its scores (default: the first)",
            _chosen_by,
            optional=True,
        ),
    },
    every=_every_removal,
    compute="leaveout.retraining.brittleness:retrain_brittleness",
    call=lambda job: {
        "setting": job.setting,
        "method": job["method"],
        "data_path": job.file("data"),
        "predictions_path": job.file("predictions"),
        "scores": job.files("scores"),
        "chosen_by": job.file("chosen_by"),
        "device": job.device,
    },
    decides=lambda job: {
        **training_identity(job.setting),
        "brittleness": job.setting.brittleness and job.setting.brittleness.model_dump(),
    },
    takes=lambda job: costs.brittleness_job(job.setting),
    device=True,
)
EVALUATE_BRITTLENESS = Step(
    name="evaluate_brittleness",
    help="measure what retraining without a method's most helpful samples changed",
    outputs={"out": "<home>/{setting}/metrics/brittleness/{method}.csv"},
    inputs={
        "retrained": Input(
            "from retrain-brittleness",
            "<home>/{setting}/retrain/brittleness/{method}.safetensors",
        )
    },
    every=_every_removal,
    compute="leaveout.metrics.brittleness:evaluate_brittleness",
    call=lambda job: {
        "retrained": job.file("retrained"),
        "setting": job["setting"],
        "method": job["method"],
        "root_seed": job.setting.seed,
        "bootstrap": job.options["bootstrap"],
    },
    decides=lambda job: {"seed": job.setting.seed},
    options={"bootstrap": BOOTSTRAP},
    takes=_evaluation,
)
SUBGROUPS = Step(
    name="subgroups",
    help="measure a metric by class of the test sample, and by how sure the models are",
    outputs={"out": "<place>/subgroups/{setting}/{metric}.csv"},
    inputs={
        "truth": Input("the ground truth", "results/{setting}/truth/{metric}.safetensors"),
        "data": DATA,
        "predictions": PREDICTIONS,
        "csvs": Input(
            "a metric's CSV of each method, in order",
            lambda plan, names: plan.files(
                "evaluate", setting=names["setting"], metric=names["metric"]
            ),
            many=True,
        ),
        "scores": Input(
            "their scores",
            lambda plan, names: plan.files("attribute", setting=names["setting"]),
            many=True,
        ),
    },
    every=lambda plan: [
        {"setting": setting, "metric": metric}
        for setting in plan.settings
        for metric in plan.grouped(setting)
    ],
    compute="leaveout.metrics.subgroups:subgroups",
    call=lambda job: {
        "metric": job["metric"],
        **{name: job.file(name) for name in ("truth", "data", "predictions")},
        **{name: job.files(name) for name in ("csvs", "scores")},
        "setting": job["setting"],
        "methods": job.options["methods"],
        "root_seed": job.setting.seed,
        "bootstrap": job.options["bootstrap"],
    },
    decides=lambda job: {"seed": job.setting.seed},
    options={
        "methods": Option("which, in order", lambda plan, names: list(plan.methods), many=True),
        "bootstrap": BOOTSTRAP,
    },
    takes=_evaluation,
)
LDS_WIDTH = Step(
    name="lds_width",
    help="measure how two methods' LDS and its interval go with subsets and runs",
    outputs={"out": "<place>/{setting}/lds_width.csv"},
    inputs={
        "truth": Input("the LDS ground truth", "results/{setting}/truth/lds.safetensors"),
        "scores": Input(
            "scores of both, each in grid order",
            lambda plan, names: [
                path
                for method in plan.compared
                for path in plan.files("attribute", setting=names["setting"], method=method)
            ],
            many=True,
        ),
    },
    every=lambda plan: [
        {"setting": setting}
        for setting in plan.settings
        if plan.compared and "lds" in plan.metrics_of(setting)
    ],
    compute="leaveout.metrics.width:lds_width",
    call=lambda job: {
        "truth": job.file("truth"),
        "scores": job.files("scores"),
        "setting": job["setting"],
        "compare": job.options["compare"],
        "root_seed": job.setting.seed,
        "bootstrap": job.options["bootstrap"],
    },
    decides=lambda job: {"seed": job.setting.seed},
    options={
        "compare": Option("which two", lambda plan, names: list(plan.compared), many=True),
        "bootstrap": BOOTSTRAP,
    },
    takes=_evaluation,
    shown="table",
)

STEPS = (
    EVALUATE,
    EVALUATE_AUC,
    DAMPING,
    RETRAIN_BRITTLENESS,
    EVALUATE_BRITTLENESS,
    SUBGROUPS,
    LDS_WIDTH,
)
