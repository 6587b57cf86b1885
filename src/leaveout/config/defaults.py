"""A setting as it is used: with its defaults filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leaveout.config.problem import model_identity, objective_identity
from leaveout.config.setting import Setting


def resolved(setting: Setting) -> dict[str, Any]:
    """Return a setting with its defaults, without where its data come from: it decides nothing."""
    values = setting.model_dump(mode="json", exclude_none=True, exclude={"name", "objective"})
    # without the keys that settings did not always have, where they are as it was then
    values["model"] = model_identity(setting.model)
    recipe = setting.recipe.identity()
    values["recipe"] = {key: value for key, value in recipe.items() if value is not None}
    values |= objective_identity(setting.objective)
    values["dataset"].pop("source", None)
    if not setting.grids:
        del values["grids"]
    if own := setting.lds.own:
        values["lds"]["subsets"] = f"{len(own)} of {Path(own.file).name}"
    return values
