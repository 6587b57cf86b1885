"""The metrics by name: what each compares with, known without loading what computes them."""

from __future__ import annotations

TRUTHS = ("lds", "loo", "pbrf")
"""Ground truths; the metric of the same name is the one of the published tables."""

VARIANTS = {
    "lds_pearson": "lds",
    "lds_kendall": "lds",
    "loo_kendall": "loo",
    "loo_topk": "loo",
}
"""Other ways to compare with a ground truth, and which."""

PANELS = (*TRUTHS, *VARIANTS, "auc")
"""Metrics with a value for each method, and a panel."""


def truth_of(metric: str) -> str:
    """Return which ground truth a metric compares with: itself, if it is no variant."""
    return VARIANTS.get(metric, metric)
