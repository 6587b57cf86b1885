"""What a run will ask for, before anything is submitted: jobs, time, GPUs, memory and disk.

Everything comes from the configuration, by :mod:`leaveout.workflow.costs`; what already lies in
``results`` is not looked at. Evaluation, tables and figures, a few short jobs for each method, are
left out.
Where a stated chunk size makes jobs too long, or many too short ones, the plan proposes another.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leaveout.config import MAX_CHUNKS, ConfigError, Method, Setting, load_yaml
from leaveout.config.damping import damped
from leaveout.config.metric_names import truth_of
from leaveout.workflow import costs
from leaveout.workflow.costs import LAYERS, Job, Layer, Network, Workload

MOST_JOBS, MOST_MINUTES = 2000, 60
"""What a queue, and a scheduler's usual limits, bear with; the plan says where it is more."""

SHORT_SECONDS, MANY_JOBS = 30, 20
"""More jobs than so many, each shorter than so long, are better fewer and longer ones."""

COLUMNS = (
    "setting",
    "layer",
    "jobs",
    "minutes_shortest",
    "minutes_longest",
    "core_hours",
    "gpu_hours",
    "gpus_per_job",
    "memory_mb",
    "disk_mb",
)


@dataclass(frozen=True)
class Row:
    """One layer of one setting.

    Attributes:
        setting: Name of the setting.
        layer: ``data``, ``full``, ``half``, ``lds``, ``loo``, ``pbrf``, ``truth``, ``features``,
            ``scores``, ``self_influence``, ``brittleness``.
        jobs: What its jobs take.
        proposal: Another chunk size for it, in words; empty where the stated one will do.
    """

    setting: str
    layer: str
    jobs: Sequence[Job]
    proposal: str = ""

    def values(self) -> dict[str, Any]:
        """Return the columns of the plan; minutes, MB (10^6 bytes) and, of all jobs, hours."""
        minutes = [job.seconds / 60 for job in self.jobs]
        hours = {
            gpu: sum(job.seconds for job in self.jobs if bool(job.gpus) == gpu) / 3600
            for gpu in (False, True)
        }
        return {
            "setting": self.setting,
            "layer": self.layer,
            "jobs": len(self.jobs),
            "minutes_shortest": min(minutes),
            "minutes_longest": max(minutes),
            "core_hours": hours[False],
            "gpu_hours": hours[True],
            "gpus_per_job": max(job.gpus for job in self.jobs),
            "memory_mb": max(job.memory for job in self.jobs) / 1e6,
            "disk_mb": sum(job.disk for job in self.jobs) / 1e6,
        }


def setting_rows(
    setting: Setting,
    methods: Iterable[Method],
    metrics: Sequence[str] = ("lds", "loo"),
    removing: Sequence[str] | None = None,
) -> list[Row]:
    """Return the plan of one setting.

    Args:
        setting: The setting.
        methods: Which methods score it; half models are trained if one needs them.
        metrics: Which metrics are made, of those the setting has.
        removing: The methods whose most helpful samples it is trained without, if ``brittleness``
            is among the metrics; by default all.
    """
    methods, work = list(methods), costs.workload(setting)
    wanted = {"full", *map(truth_of, metrics)} | {
        kind for method in methods for kind in method.needs
    }
    points = [(m, point) for m in methods for point in m.grid]
    more = {}
    if set(metrics) - {"auc"}:
        more["scores"] = [costs.score_job(work, *point) for point in points]
    if "lds" in metrics:  # one score matrix more
        more["damping"] = [costs.score_job(work, m, m.grid[0]) for m in methods if damped(m)]
    if "auc" in metrics and setting.dataset.label_noise:
        more["self_influence"] = [costs.self_influence_job(work, *point) for point in points]
    if "brittleness" in metrics and setting.brittleness:
        count = sum(removing is None or method.name in removing for method in methods)
        more["brittleness"] = [costs.brittleness_job(setting)] * count
    return _rows(work, [layer for layer in LAYERS if layer in wanted], more)


def _rows(work: Workload, layers: Sequence[Layer], more: dict[str, list[Job]]) -> list[Row]:
    truths = [costs.truth_job(work, layer) for layer in layers if layer in ("lds", "loo", "pbrf")]
    found: dict[str, Sequence[Job]] = {
        "data": [costs.data_job(work)],
        **{layer: [*costs.chunk_jobs(work, layer).values()] for layer in layers},
        "truth": truths,
        **more,
    }
    proposals: dict[str, str] = {layer: _proposal(work, layer) for layer in layers}
    return [
        Row(work.name, layer, jobs, proposals.get(layer, ""))
        for layer, jobs in found.items()
        if jobs
    ]


def _proposal(work: Workload, layer: Layer) -> str:
    """Return another chunk size for a layer, in words; nothing where the stated one will do."""
    stated, proposed = dict(work.chunk).get(layer), costs.proposed_size(work, layer)
    if stated is None or proposed == stated:
        return ""
    jobs = costs.chunk_jobs(work, layer)
    longest = max(job.seconds for job in jobs.values())
    too_long = longest > 60 * MOST_MINUTES and proposed < stated
    too_short = longest < SHORT_SECONDS and len(jobs) > MANY_JOBS and proposed > stated
    better = costs.chunk_jobs(replace(work, chunk=((layer, proposed),)), layer)
    if not (too_long or too_short) or len(better) > MAX_CHUNKS:
        return ""
    minutes = max(job.seconds for job in better.values()) / 60
    return f"{layer}.chunk: {proposed} ({_short(minutes)} min a job, {len(better)} jobs)"


def load_workloads(path: Path) -> list[tuple[Workload, int, int]]:
    """Read workloads: settings as far as their costs go, whether or not the package can train them.

    Returns:
        For each what its costs depend on, the dimension gradients are projected to, and the number
        of score matrices.

    Raises:
        ConfigError: The file is missing or has other keys than a workload.
    """
    found = []
    for name, entry in load_yaml(path).items():
        try:
            values = dict(entry)
            projection, scores = values.pop("projection"), values.pop("scores")
            for layer in ("loo", "pbrf"):
                values[layer] = tuple(values.get(layer, ()))
            net = Network(**values.pop("network"))
            found.append((Workload(name=name, network=net, **values), projection, scores))
        except (TypeError, KeyError, ValueError) as error:
            raise ConfigError(f"{path}: {name}: {error}") from error
        if values["hardware"] not in costs.HARDWARE:
            raise ConfigError(f"{path}: {name}.hardware: cpu or gpu, not {values['hardware']!r}")
    return found


def workload_rows(path: Path) -> list[Row]:
    """Return the plan of a file of workloads, such as ``config/workloads/published.yaml``."""
    rows = []
    for work, projection, scores in load_workloads(path):
        layers = [layer for layer in LAYERS if costs.parts(work, layer)]
        features = costs.feature_jobs(work, projection)
        matrix = costs.product_job(work, projection)
        rows += _rows(work, layers, {"features": features, "scores": [matrix] * scores})
    return rows


def as_csv(rows: Sequence[Row]) -> str:
    """Return the plan as CSV, without totals."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = row.values()
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()})
    return out.getvalue()


def as_text(rows: Sequence[Row]) -> str:
    """Return the plan as a table to read, with totals; below it what is too much, and proposals."""
    values = [row.values() for row in rows]
    total: dict[str, Any] = {"setting": "total", "layer": ""}
    joined: tuple[tuple[Callable[[Iterable[Any]], Any], str], ...] = (
        (sum, "jobs core_hours gpu_hours disk_mb"),
        (max, "minutes_longest gpus_per_job memory_mb"),
        (min, "minutes_shortest"),
    )
    for join, columns in joined:
        total |= {column: join(v[column] for v in values) for column in columns.split()}
    header = ["setting", "layer", "jobs", "min a job", "core-h", "GPU-h", "GPUs", "memory", "disk"]
    lines = [header, *(_cells(v) for v in values), _cells(total)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ""
    for number, line in enumerate(lines):
        padded = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        if number in (1, len(lines) - 1):
            text += "-" * (sum(widths) + 2 * len(widths) - 2) + "\n"
        text += "  ".join(padded).rstrip() + "\n"
    notes = _warnings(values, total)
    notes += [f"proposed: {row.setting}: {row.proposal}" for row in rows if row.proposal]
    return text + "".join(f"{note}\n" for note in notes)


def _cells(values: dict[str, Any]) -> list[str]:
    shortest, longest = (_short(values[f"minutes_{end}"]) for end in ("shortest", "longest"))
    return [
        values["setting"],
        values["layer"],
        str(values["jobs"]),
        longest if shortest == longest else f"{shortest}-{longest}",
        _short(values["core_hours"]),
        _short(values["gpu_hours"]),
        str(values["gpus_per_job"]),
        _bytes(values["memory_mb"]),
        _bytes(values["disk_mb"]),
    ]


def _short(number: float) -> str:
    return "0" if number == 0 else f"{number:.2f}" if number < 0.995 else f"{number:.1f}"


def _bytes(megabytes: float) -> str:
    for unit, size in (("TB", 1e6), ("GB", 1e3)):
        if megabytes >= size:
            return f"{megabytes / size:.1f} {unit}"
    return f"{megabytes:.0f} MB" if megabytes >= 1 else "<1 MB"


def _warnings(values: Sequence[dict[str, Any]], total: dict[str, Any]) -> list[str]:
    found = []
    long = [f"{v['setting']} {v['layer']}" for v in values if v["minutes_longest"] > MOST_MINUTES]
    if long:
        found.append(f"warning: jobs of more than {MOST_MINUTES} minutes: {', '.join(long)}")
    if total["jobs"] > MOST_JOBS:
        found.append(f"warning: {total['jobs']} jobs; more than {MOST_JOBS} flood most queues")
    return found
