"""Which samples a setting asks for: what decides its prepared data. Nothing here loads torch."""

from __future__ import annotations

from typing import Any

from leaveout.config import Own, Setting
from leaveout.config.catalogue import DATASETS


def data_identity(setting: Setting) -> dict[str, Any]:
    """Return all of a setting that decides its prepared data, JSON-able.

    Two settings with equal identities share their data, whatever they are called. Where the samples
    come from is no part of it: whichever source they have, they are checked to be the same.

    Args:
        setting: The setting.

    Returns:
        ``dataset``, the samples; of images also ``full_scale``, the largest possible pixel, and
        ``n_classes``.
    """
    wanted = setting.dataset
    dataset = wanted.model_dump(mode="json", exclude={"source"}, exclude_none=True)
    if wanted.label_noise is not None:  # nothing else is drawn
        dataset["label_noise"]["seed"] = setting.seed
    if isinstance(wanted, Own) or (full_scale := DATASETS[wanted.name].full_scale) is None:
        return {"dataset": dataset}
    return {"dataset": dataset, "full_scale": full_scale, "n_classes": wanted.n_classes}
