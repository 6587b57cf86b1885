"""Steps that run attribution methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from leaveout.config import label
from leaveout.workflow import costs
from leaveout.workflow.plan import Plan
from leaveout.workflow.step import Input, Job, Names, Step
from leaveout.workflow.steps.training import DATA, FULL, problem_identity


def _half(plan: Plan, names: Names) -> list[str]:
    setting, method = names["setting"], names["method"]
    if "half" not in plan.grids[setting][method].needs:
        return []
    return plan.files("train", setting=setting, kind="half")


HALF = Input("half models, if the method needs them", _half, many=True, optional=True)


def needed(plan: Plan, setting: str) -> dict[str, bool]:
    """Return which of a method's scores a setting's metrics need."""
    return {
        "attribute": bool(plan.truths_of(setting) or plan.removing(setting)),
        "self_influence": "auc" in plan.metrics_of(setting),
    }


def _every(step: str) -> Callable[[Plan], Iterator[Names]]:
    def every(plan: Plan) -> Iterator[Names]:
        for setting, methods in plan.grids.items():
            if needed(plan, setting)[step]:
                for name, method in methods.items():
                    for point in method.grid:
                        yield {"setting": setting, "method": name, "params": label(point)}

    return every


def _call(job: Job) -> dict[str, Any]:
    return {
        "setting": job.setting,
        "method": job.scored,
        "params": job.params,
        "data_path": job.file("data"),
        "full_paths": job.files("full"),
        "half_paths": job.files("half"),
        "device": job.device,
    }


def _decides(job: Job) -> dict[str, Any]:
    setting = job.setting
    return {
        "seed": setting.seed,
        **problem_identity(setting),
        "recipe": setting.recipe.identity(),
        "limits": setting.attribution.model_dump(),
        "params": job.params,
    }


ATTRIBUTE = Step(
    name="attribute",
    help="score all training samples by one method",
    outputs={
        "out": "results/{setting}/scores/{method}/{params}.safetensors",
        "cost": "results/{setting}/scores/{method}/{params}.cost.json",
    },
    inputs={"data": DATA, "full": FULL, "half": HALF},
    every=_every("attribute"),
    compute="leaveout.scoring.run:run_method",
    call=_call,
    decides=_decides,
    takes=lambda job: costs.score_job(costs.workload(job.setting), job.scored, job.params),
    device=True,
    uses_method=True,
)
SELF_INFLUENCE = Step(
    name="self_influence",
    help="score each training sample on itself",
    outputs={
        "out": "results/{setting}/self_influence/{method}/{params}.safetensors",
        "cost": "results/{setting}/self_influence/{method}/{params}.cost.json",
    },
    inputs={"data": DATA, "full": FULL, "half": HALF},
    every=_every("self_influence"),
    compute="leaveout.scoring.self_influence:run_self_influence",
    call=_call,
    decides=_decides,
    takes=lambda job: costs.self_influence_job(costs.workload(job.setting), job.scored, job.params),
    device=True,
    uses_method=True,
)

STEPS = (ATTRIBUTE, SELF_INFLUENCE)
