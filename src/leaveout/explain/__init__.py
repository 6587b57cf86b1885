"""From a number in a table back to raw data: what it was made from, and how to make it again.

:func:`explain` returns all there is to say as plain JSON, and :func:`leaveout.explain.text.as_text`
says it in words. Nothing is written, and no torch is loaded; ``check`` computes the number again
from scores and truth where they lie here.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leaveout.config import load_yaml
from leaveout.errors import LeaveoutError
from leaveout.explain.cells import Cell, names, pick_column, pick_row
from leaveout.explain.chain import File, key_difference, walk
from leaveout.explain.origin import in_published, origin, published
from leaveout.explain.streams import streams
from leaveout.explain.tables import Origin, Table, table_of
from leaveout.reporting.tables import read_costs, read_csv
from leaveout.store import stamps
from leaveout.workflow.lock import method_version, step_version
from leaveout.workflow.review import CACHE, Digests, wanted_specs
from leaveout.workflow.step import Job
from leaveout.workflow.steps import STEPS, load_plan


def explain(
    table: Path,
    row: str | None,
    column: str | None,
    *,
    folder: Path,
    configfile: Path | None = None,
    check: bool = False,
) -> dict[str, Any]:
    """Explain one number.

    Args:
        table: The table, a path from the folder that the workflow runs in.
        row: Which row: ``column=value,...`` or its number; None where there is one only.
        column: Which column; by default the table's main one.
        folder: Configuration folder.
        configfile: The configuration that the table was made with; by default the one of the
            folder's that makes it.
        check: Whether to compute the number again.

    Returns:
        What docs/explain.md describes, JSON-able.

    Raises:
        LeaveoutError: The table is unknown or missing, or row or column name no number.
    """
    table = _inside(table)
    kind = table_of(table)
    rows = read_csv(table, ())
    number = pick_row(table, rows, kind.identify, row)
    cell = Cell(
        table, number + 1, rows[number], pick_column(table, rows[number], column or kind.value)
    )
    used, jobs, note = _jobs(cell, folder, configfile)
    inputs = _inputs(table, jobs)
    found = kind.origin(cell, inputs)
    through = tuple(path for path in found.through if path in inputs) or tuple(inputs)
    files = walk(
        str(table), {str(table): through, **found.beyond}, jobs, wanted_specs(jobs), Digests(CACHE)
    )
    order = {path: k for k, job in enumerate(jobs) for path in job.makes}
    made = sorted(files.values(), key=lambda file: order.get(file.path, -1))
    known = published()
    answer: dict[str, Any] = {
        "table": str(table),
        "row": cell.number,
        "names": names(cell.row, kind.identify),
        "column": cell.column,
        "cell": cell.text,
        "cells": {name: text for name, text in cell.row.items() if text},
        "says": list(found.says),
        **found.facts,
        "chosen": found.chosen,
        "config": str(used),
        "config_note": note,
        "files": [_file(file, known, found) for file in files.values()],
        "seeds": streams((file.key, file.job) for file in made if file.key),
        "code": _code(made),
        "machine": _machine(files, found.chosen),
        "remake": _remake(table, used, made),
        "broken": [
            *found.faults,
            *(f"{file.path}: {fault}" for file in files.values() for fault in file.faults),
        ],
    }
    if check:
        answer["check"] = _check(kind, cell, files)
    return answer


def _inside(table: Path) -> Path:
    """Return a table's path as the workflow names it."""
    here = Path.cwd()
    whole = Path(os.path.normpath(here / table))  # results may be a link, and stay one
    if not whole.is_relative_to(here):
        raise LeaveoutError(f"{table}: lies outside {here}. Go to the folder it was made in.")
    return whole.relative_to(here)


def _inputs(table: Path, jobs: Sequence[Job]) -> list[str]:
    """Return what a table was made from: as its stamp says or, if it does not, today's plan."""
    stamp = stamps.read(table)
    if stamp is not None and stamp.inputs:
        return list(stamp.inputs)
    return [name for job in jobs if str(table) in job.makes for name in job.reads]


def _jobs(cell: Cell, folder: Path, configfile: Path | None) -> tuple[Path, list[Job], str]:
    """Find the configuration that made a table, and all its jobs.

    It is the one whose plan gives the table the very spec that it has. If there is none, code or
    configuration were edited since, or values were given on the command line. Then it is the
    nearest: the first that makes the table, of files of the same names if one does, and the row's
    setting.

    Returns:
        The file, its jobs (none if no configuration has the row's setting), and what is to be
        known.
    """
    if configfile is not None:
        return configfile, load_plan(load_yaml(configfile), folder).jobs, ""
    first = folder / "config.yaml"
    table, stamp = str(cell.table), stamps.read(cell.table)
    nearest: tuple[int, Path, list[Job]] = (0, first, [])
    for path in (first, *sorted(path for path in folder.glob("*.yaml") if path != first)):
        try:
            plan = load_plan(load_yaml(path), folder)
        except LeaveoutError:  # another kind of file, or a broken one that is not asked about
            continue
        jobs = plan.jobs
        job = next((job for job in jobs if table in job.makes), None)
        if job and stamp and wanted_specs(jobs)[table] == stamp.spec:
            return path, jobs, ""
        same = job is not None and stamp is not None and tuple(stamp.inputs) == job.reads
        rank = 4 * same + 2 * (cell.row.get("setting") in plan.settings) + (job is not None)
        if rank > nearest[0]:
            nearest = (rank, path, jobs)
    rank, path, jobs = nearest
    if rank < 3:
        note = f"no configuration of {folder} makes this row; name the one that does: --configfile"
        return path, jobs, note
    return path, jobs, "no configuration makes this very table today; this one is the nearest"


def _file(file: File, known: Mapping[str, str] | None, found: Origin) -> dict[str, Any]:
    """Return what is to be said of a file."""
    head = (file.header or {}).get("meta", {})
    trained = head.get("trainings", {}).get("models", [])
    entry: dict[str, Any] = {
        "path": file.path,
        "there": file.there,
        "source": file.source,
        "published": known is not None and in_published(file.path, known),
        "origin": "" if file.source else origin(file.path, known),
        "sha256": file.sha256,
        "spec": file.spec,
        "faults": list(file.faults),
        "stale": file.stale,
        "differs": key_difference(file) if file.stale else "",
        "key": dict(file.key) if file.key is not None else None,
        "inputs": list(file.inputs),
        "command": file.job.line if file.job else None,
        "made": {name: head[name] for name in ("commit", "device", "versions") if name in head},
        "trainings": len(trained),
    }
    if "source" in head:
        entry["data"] = {name: head[name] for name in ("source", "pixels", "n_classes")}
    if _point(file.path) == found.chosen and file.key and "params" in file.key:
        entry["chosen"] = True
    return entry


def _point(path: str) -> str:
    """Return the grid point that a score or cost file is named by."""
    return Path(path).name.removesuffix(".safetensors").removesuffix(".cost.json")


def _code(files: Sequence[File]) -> list[dict[str, Any]]:
    """Return the code of each step: its version then and today, and the commits headers name."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for file in files:
        if file.key is None or "code" not in file.key:  # a ground truth imported from elsewhere
            continue
        commit = (file.header or {}).get("meta", {}).get("commit")
        step = STEPS.get(file.key["step"])
        module, today = (step.compute.partition(":")[0], step_version(step)) if step else ("", "")
        parts = [(file.key["step"], file.key["code"], module, today)]
        if "method_code" in file.key:
            method = file.job.method if file.job else None
            module, today = (method.module, method_version(method)) if method else ("", "")
            name = f"method {file.key['method']}"
            parts.append((name, file.key["method_code"], module, today))
        for name, version, module, today in parts:
            entry = found.setdefault(
                (name, version),
                {
                    "step": name,
                    "module": module or None,
                    "code": version,
                    "today": today or None,
                    "edited": "+" in today,
                    "commits": [],
                },
            )
            if commit and commit not in entry["commits"]:
                entry["commits"].append(commit)
    return list(found.values())


def _machine(files: Mapping[str, File], chosen: str) -> dict[str, Any]:
    """Return what headers say of versions and devices, and the chosen scores' cost."""
    made: dict[str, dict[str, Any]] = {}
    for file in files.values():
        head = (file.header or {}).get("meta", {})
        if "versions" in head:
            what = {"device": head["device"], **head["versions"]}
            entry = made.setdefault(json.dumps(what, sort_keys=True), {**what, "files": 0})
            entry["files"] += 1
    costs: list[dict[str, Any]] = []
    for file in files.values():
        if file.key and file.key["step"] in ("evaluate", "evaluate_auc"):
            with contextlib.suppress(LeaveoutError):  # a number that is there for information only
                costs += read_costs(Path(file.path).with_name(f"{file.key['method']}.costs.json"))
    cost = next((cost for cost in costs if cost["params"] == chosen), None)
    return {"made": list(made.values()), "cost": cost}


def _remake(table: Path, config: Path, files: Sequence[File]) -> dict[str, Any]:
    """Return the one command that makes a table anew, and each job's own, in order."""
    lines = dict.fromkeys(file.job.line for file in files if file.job)
    return {"command": f"snakemake {table} --configfile {config}", "steps": list(lines)}


def _check(kind: Table, cell: Cell, files: Mapping[str, File]) -> dict[str, Any]:
    """Compute the number again and compare it, and the rest of its row, with what stands there."""
    if kind.again is None:
        return {"done": False, "why": kind.why_not}
    try:
        row, note = kind.again(cell, files)
    except LeaveoutError as error:
        return {"done": False, "why": str(error)}
    differs = {
        name: {"table": cell.row[name], "again": row.get(name, "")}
        for name in cell.row
        if row.get(name, "") != cell.row[name]
    }
    return {
        "done": True,
        "same": cell.column not in differs,
        "again": row.get(cell.column, ""),
        "columns": len(cell.row),
        "differs": differs,
        "note": note,
    }
