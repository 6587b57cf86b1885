"""What a setting costs, on paper: time, memory and disk of every job, from the configuration alone.

Estimates inform: they size what a scheduler is asked for, and `leaveout plan` shows them and
proposes chunk sizes by them. They decide no file and no key. Nothing here looks at the machine it
runs on, or at a clock: a setting names the *nominal* hardware (``hardware``), and the model turns
floating-point operations and a few overheads into seconds there. docs/scale.md has the formulas,
and the estimates beside measured times.
"""

from leaveout.config import LAYERS, Layer
from leaveout.workflow.costs.networks import CPU, GPU, HARDWARE, Hardware, Network, network
from leaveout.workflow.costs.scoring import (
    HELD,
    OWN_SELF_INFLUENCE,
    curvature_flops,
    feature_jobs,
    product_job,
    score_job,
    self_influence_job,
)
from leaveout.workflow.costs.trainings import (
    MOST,
    PASSES,
    SHORTEST,
    SIZES,
    Job,
    Workload,
    brittleness_job,
    chunk_job,
    chunk_jobs,
    chunk_size,
    data_job,
    item_seconds,
    parts,
    proposed_size,
    proximal_seconds,
    stack_size,
    timed_size,
    training_seconds,
    truth_job,
    workload,
)

__all__ = [
    "CPU",
    "GPU",
    "HARDWARE",
    "HELD",
    "LAYERS",
    "MOST",
    "OWN_SELF_INFLUENCE",
    "PASSES",
    "SHORTEST",
    "SIZES",
    "Hardware",
    "Job",
    "Layer",
    "Network",
    "Workload",
    "brittleness_job",
    "chunk_job",
    "chunk_jobs",
    "chunk_size",
    "curvature_flops",
    "data_job",
    "feature_jobs",
    "item_seconds",
    "network",
    "parts",
    "product_job",
    "proposed_size",
    "proximal_seconds",
    "score_job",
    "self_influence_job",
    "stack_size",
    "timed_size",
    "training_seconds",
    "truth_job",
    "workload",
]
