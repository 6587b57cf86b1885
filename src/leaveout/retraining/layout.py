"""The dims of the ground truth artefacts."""

from __future__ import annotations

LDS_DIMS = {
    "target": ("subset", "run", "test"),
    "mask": ("subset", "train"),
    "subset_id": ("subset",),
    "train_id": ("train",),
    "test_id": ("test",),
}
PBRF_DIMS = {
    "target": ("point", "run", "test"),
    "full_target": ("run", "test"),
    "point_id": ("point",),
    "initial_norm": ("point",),
    "gradient_norm": ("point",),
    "steps": ("point",),
    "converged": ("point",),
    "replicate_target": ("replicate_point", "replicate_run", "test"),
    "replicate_full_target": ("replicate_run", "test"),
    "replicate_point_id": ("replicate_point",),
    "replicate_initial_norm": ("replicate_point",),
    "replicate_gradient_norm": ("replicate_point",),
    "replicate_steps": ("replicate_point",),
    "replicate_converged": ("replicate_point",),
    "train_id": ("train",),
    "test_id": ("test",),
}
LOO_DIMS = {
    "target": ("removed", "run", "test"),
    "removed_id": ("removed",),
    "full_target": ("run", "test"),
    "replicate_target": ("replicate_removed", "replicate_run", "test"),
    "replicate_removed_id": ("replicate_removed",),
    "replicate_full_target": ("replicate_run", "test"),
    "train_id": ("train",),
    "test_id": ("test",),
}
TRUTH_DIMS = {"lds": LDS_DIMS, "loo": LOO_DIMS, "pbrf": PBRF_DIMS}
