"""A setting as it is used: with its defaults filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leaveout.config.setting import Setting


def resolved(setting: Setting) -> dict[str, Any]:
    """Return a setting with its defaults, without where its data come from: it decides nothing."""
    values = setting.model_dump(mode="json", exclude_none=True, exclude={"name"})
    values["dataset"].pop("source", None)
    if not setting.grids:
        del values["grids"]
    if own := setting.lds.own:
        values["lds"]["subsets"] = f"{len(own)} of {Path(own.file).name}"
    return values
