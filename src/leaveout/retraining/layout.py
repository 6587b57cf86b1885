"""The dims of the ground truth artefacts."""

from __future__ import annotations

LDS_DIMS = {
    "target": ("subset", "run", "test"),
    "mask": ("subset", "train"),
    "subset_id": ("subset",),
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
