"""leaveout: a reproducible benchmark of training-data attribution."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leaveout.banks.pbrf import retrain_pbrf
    from leaveout.banks.retrain import retrain_lds, retrain_loo
    from leaveout.banks.truth import (
        calculate_lds_ground_truth,
        calculate_loo_ground_truth,
        calculate_pbrf_ground_truth,
    )
    from leaveout.config.sections import Recipe
    from leaveout.curvature.ekfac import ihvp_ekfac
    from leaveout.data.label_noise import flip_label
    from leaveout.data.split import Split
    from leaveout.doors.attribute import attribute
    from leaveout.doors.banks import truth_of_bank
    from leaveout.doors.benchmark import Benchmark
    from leaveout.interop.benchmark import load_benchmark
    from leaveout.problem.objective import Objective
    from leaveout.problem.samples import Samples
    from leaveout.tracing.tracincp import TracInCP, TracInCPFast, TracInCPFastRandProj

__version__ = "0.1.0"

__all__ = [
    "Benchmark",
    "Objective",
    "Recipe",
    "Samples",
    "Split",
    "TracInCP",
    "TracInCPFast",
    "TracInCPFastRandProj",
    "attribute",
    "calculate_lds_ground_truth",
    "calculate_loo_ground_truth",
    "calculate_pbrf_ground_truth",
    "flip_label",
    "ihvp_ekfac",
    "load_benchmark",
    "retrain_lds",
    "retrain_loo",
    "retrain_pbrf",
    "truth_of_bank",
]

_HOMES = {
    "Benchmark": "leaveout.doors.benchmark",
    "Objective": "leaveout.problem.objective",
    "Recipe": "leaveout.config.sections",
    "Samples": "leaveout.problem.samples",
    "Split": "leaveout.data.split",
    "TracInCP": "leaveout.tracing.tracincp",
    "TracInCPFast": "leaveout.tracing.tracincp",
    "TracInCPFastRandProj": "leaveout.tracing.tracincp",
    "attribute": "leaveout.doors.attribute",
    "calculate_lds_ground_truth": "leaveout.banks.truth",
    "calculate_loo_ground_truth": "leaveout.banks.truth",
    "calculate_pbrf_ground_truth": "leaveout.banks.truth",
    "flip_label": "leaveout.data.label_noise",
    "ihvp_ekfac": "leaveout.curvature.ekfac",
    "load_benchmark": "leaveout.interop.benchmark",
    "retrain_lds": "leaveout.banks.retrain",
    "retrain_loo": "leaveout.banks.retrain",
    "retrain_pbrf": "leaveout.banks.pbrf",
    "truth_of_bank": "leaveout.doors.banks",
}
"""Where the public names live: loaded when asked for, since most of them load torch."""


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names too."""
    return sorted({*globals(), *__all__})
