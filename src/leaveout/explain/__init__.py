"""From a number in a table back to raw data: what it was made from, and how to make it again.

:func:`explain` returns all there is to say as plain JSON, and :func:`leaveout.explain.text.as_text`
says it in words. Nothing is written, and no torch is loaded; ``check`` computes the number again
from scores and truth where they lie here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leaveout import commands, plan, stamps
from leaveout.config import Method, load_yaml
from leaveout.digest import code_digest
from leaveout.errors import LeaveoutError
from leaveout.explain.cells import Cell, names, pick_column, pick_row
from leaveout.explain.chain import File, key_difference, walk
from leaveout.explain.origin import in_published, origin, published
from leaveout.explain.streams import streams
from leaveout.explain.tables import Origin, Table, table_of
from leaveout.freshness import CACHE, Digests, wanted_specs
from leaveout.plan import Step
from leaveout.reporting.tables import read_csv
from leaveout.workflow import Plan


def explain(
    table: Path,
    row: str | None,
    column: str | None,
    *,
    folder: Path,
    configfile: Path | None = None,
    sources: str,
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
        sources: Path of the published values.
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
    used, today, note = _plan(cell, folder, configfile, sources)
    steps = today.steps(sources) if today else []
    inputs = _inputs(table, steps)
    found = kind.origin(cell, inputs)
    through = [path for path in found.through if path in inputs] or list(inputs)
    files = walk(str(table), through, steps, wanted_specs(steps), Digests(CACHE))
    order = {path: k for k, step in enumerate(steps) for path in step.outputs}
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
        "seeds": streams(file.key for file in made if file.key),
        "code": _code(made, today.methods if today else {}),
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


def _inputs(table: Path, steps: Sequence[Step]) -> list[str]:
    """Return what a table was made from: as its stamp says or, without one, today's plan."""
    stamp = stamps.read(table)
    if stamp is not None:
        return list(stamp.inputs)
    return [name for step in steps if str(table) in step.outputs for name in step.inputs]


def _plan(
    cell: Cell, folder: Path, configfile: Path | None, sources: str
) -> tuple[Path, Plan | None, str]:
    """Find the configuration that made a table.

    It is the one whose plan gives the table the very spec that it has; if there is none, code or
    configuration were edited since, and it is the first that makes it from files of the same names,
    or else that makes the row's setting.

    Returns:
        The file, its plan (None if no configuration makes the table), and what is to be known.
    """
    if configfile is not None:
        return configfile, Plan.load(load_yaml(configfile), folder), ""
    first = folder / "config.yaml"
    others = sorted(path for path in folder.glob("*.yaml") if path != first)
    stamp = stamps.read(cell.table)
    best: tuple[int, Path, Plan | None] = (0, first, None)
    for path in (first, *others):
        try:
            today = Plan.load(load_yaml(path), folder)
        except LeaveoutError:  # another kind of file, or a broken one that is not asked about
            continue
        steps = today.steps(sources)
        step = next((step for step in steps if str(cell.table) in step.outputs), None)
        if step is None:
            continue
        if stamp is None:
            rank = 1 + (cell.row.get("setting") in today.settings)
        elif wanted_specs(steps)[str(cell.table)] == stamp.spec:
            return path, today, ""
        else:
            own = cell.row.get("setting") in today.settings
            rank = 3 if tuple(stamp.inputs) == step.inputs else 1 + own
        if rank > best[0]:
            best = (rank, path, today)
    rank, path, plan_ = best
    if rank < 2:
        note = f"no configuration of {folder} makes this row; name the one that does: --configfile"
        return path, plan_, note
    return path, plan_, "no configuration makes this very table today; this one is the nearest"


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
        "command": commands.line(file.step) if file.step else None,
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


def _code(files: Sequence[File], methods: Mapping[str, Method]) -> list[dict[str, Any]]:
    """Return each step's code: digest then and today, and the commits that headers name."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for file in files:
        if file.key is None or "code" not in file.key:  # a ground truth imported from elsewhere
            continue
        step, commit = file.key["step"], (file.header or {}).get("meta", {}).get("commit")
        parts = [(step, file.key["code"], plan.CODE.get(step))]
        if "method_code" in file.key:
            method = methods.get(file.key["method"])
            module = method.module if method else None
            parts.append((f"method {file.key['method']}", file.key["method_code"], module))
        for name, digest, module in parts:
            entry = found.setdefault(
                (name, digest),
                {
                    "step": name,
                    "module": module,
                    "code": digest,
                    "today": code_digest(module) if module else None,
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
    costs = [
        json.loads(cost.read_text(encoding="utf-8"))
        for file in files.values()
        if _point(file.path) == chosen
        and (cost := Path(file.path).with_name(f"{chosen}.cost.json")).is_file()
    ]
    return {"made": list(made.values()), "cost": costs[0] if costs else None}


def _remake(table: Path, config: Path, files: Sequence[File]) -> dict[str, Any]:
    """Return the one command that makes a table anew, and each job's own, in order."""
    lines: dict[str, None] = {}
    for file in files:
        if file.step is not None and (line := commands.line(file.step)) is not None:
            lines[line] = None
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
