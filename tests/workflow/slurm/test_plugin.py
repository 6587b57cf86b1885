"""What Snakemake's plugin for Slurm makes of resources, and of job arrays, in a toy workflow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]

SNAKEFILE = """
rule gpus:
    input: "gpu.txt", "gres.txt"

rule gpu:
    output: "gpu.txt"
    resources: gpu=1
    shell: "echo ${{CUDA_VISIBLE_DEVICES:-none}} > {output}"

rule gres:
    output: "gres.txt"
    resources: gpu=1
    shell: "echo ${{CUDA_VISIBLE_DEVICES:-none}} > {output}"

rule array:
    input: expand("task{i}.txt", i=range(3))

rule task:
    output: "task{i}.txt"
    shell: "touch ran{wildcards.i}; "
           "[[ ${{SLURM_ARRAY_TASK_ID:-none}} != 1 ]]; "
           "echo ${{SLURM_ARRAY_TASK_ID:-none}} > {output}"
"""

pytestmark = pytest.mark.slow


class BrokenArrayError(Exception):
    """One task of an array failed, and the files of others are gone."""


@pytest.fixture
def toy(run: Any) -> Any:
    """A run of a toy workflow under the project's profile."""
    shutil.rmtree(run.clone / "config")
    (run.clone / "workflow" / "Snakefile").write_text(SNAKEFILE)
    return run


def test_a_job_gets_the_gpu_it_asks_for_either_way(toy: Any) -> None:
    # the second as the profile's comment says for clusters that know only --gres
    toy.finish("gpus", "--set-resources", "gres:gpu=0", "gres:gres=gpu:1")
    assert (toy.clone / "gpu.txt").read_text() == "0\n"
    assert (toy.clone / "gres.txt").read_text() == "0\n"


@pytest.mark.xfail(
    strict=True,
    raises=BrokenArrayError,
    reason="the plugin (2.8.0, with jobstep 0.6.1) takes each task of a job array for the first: "
    "when this passes, arrays can be used (docs/cluster.md)",
)
def test_a_failed_task_of_a_job_array_leaves_the_others_alone(toy: Any) -> None:
    # The first task fails. The files of the two others are to stay.
    process = toy.start("array", "--slurm-array-jobs=task", "--retries=0", "--latency-wait=1")
    assert process.wait(timeout=400) == 1, toy.output
    assert len(list(toy.clone.glob("ran?"))) == 3, toy.output
    left = [path.read_text() for path in sorted(toy.clone.glob("task?.txt"))]
    if sorted(left) != ["2\n", "3\n"]:
        raise BrokenArrayError(left)
