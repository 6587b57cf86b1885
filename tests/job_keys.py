"""The keys of single jobs, for tests of what lies below the workflow."""

from __future__ import annotations

from leaveout.config import Config, Layer, Setting
from leaveout.workflow.plan import Plan
from leaveout.workflow.steps import STEPS


def _key(setting: Setting, step: str, **names: str) -> str:
    plan = Plan(
        Config(settings=(setting.name,)), {setting.name: setting}, {setting.name: {}}, STEPS
    )
    return plan.job(step, {"setting": setting.name, **names}).key


def prepare_key(setting: Setting) -> str:
    """Return the key of a setting's data."""
    return _key(setting, "prepare")


def train_key(setting: Setting, layer: Layer, name: str) -> str:
    """Return the key of a chunk of trainings."""
    if layer in ("full", "half"):
        return _key(setting, "train", kind=layer, chunk=name)
    return _key(setting, f"retrain_{layer}", chunk=name)
