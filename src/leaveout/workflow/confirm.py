"""Show that edited code gives the numbers it gave before, and bring earlier results back.

A small fixed sample (``sample/``) runs every step and every method on each family of models, in a
few minutes. What it gives is kept in ``steps.lock``, as a few numbers for each file, beside the
version and the digest of the code that gave it. After an edit the sample is computed again. Where
the numbers are the same to rounding, the new digests are written into the lock, and everything made
before the edit is valid again. Where they differ on purpose, raise the step's ``version`` or the
method's ``VERSION`` first: then the new numbers are kept, and what was made before is stale.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from leaveout.config import load_methods, load_yaml
from leaveout.errors import LeaveoutError
from leaveout.store import artefacts
from leaveout.workflow import lock
from leaveout.workflow.plan import Plan
from leaveout.workflow.run import run
from leaveout.workflow.step import Job
from leaveout.workflow.steps import STEPS, load_plan

SAMPLE = Path(__file__).with_name("sample")

CLOSE = 1e-4
"""Numbers are the same if they differ by less, relative to the size of the array they are of."""
CLOSE_TEXT = 1e-3
"""The same for numbers in text, a column at a time: rounded, and some are of ranks."""

NUMBER = re.compile(r"(?<![\w.+-])[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?![\w.])|\bnan\b")
MADE_BY = re.compile(r"\b(?:[0-9a-f]{12,64}|unknown)(?:-dirty)?\b|(?<=\d)\+[0-9a-f]{16}\b")
"""Commits and digests in text: which code made something is no number."""
PIXELS = re.compile(r"base64,[\w+/=\s]+")

Print = dict[str, Any]
"""What is kept of one file."""


def check() -> None:
    """See to it that all code is as it was confirmed. Nothing is computed.

    Raises:
        LeaveoutError: It is not; names the steps and methods.
    """
    if edited := _edited(lock.entries(STEPS.values(), _methods())):
        raise LeaveoutError(
            f"{len(edited)} steps or methods are not as they were confirmed: "
            f"{', '.join(edited[:8])}{', ...' if len(edited) > 8 else ''}. Run `leaveout confirm`."
        )


def confirm() -> str:
    """Compute the sample, compare it with what is kept, and lock today's code.

    Returns:
        What was found, in words.

    Raises:
        LeaveoutError: Numbers differ whose versions are the same.
    """
    before, now = lock.locked(), lock.entries(STEPS.values(), _methods())
    edited = _edited(now)
    plan = load_plan(load_yaml(SAMPLE / "config.yaml"), SAMPLE)
    sample = _digest_of(sorted(path for path in SAMPLE.rglob("*") if path.is_file()))
    kept: Mapping[str, Print] = before.get("prints", {})
    if kept and before.get("sample") != sample and edited:
        raise LeaveoutError(
            f"{SAMPLE}: the sample itself was edited, and so was code ({', '.join(edited[:8])}). "
            "Confirm the code with the old sample first, then edit the sample."
        )
    prints = compute(plan)
    expected = _expected(plan, before, now) if before.get("sample") == sample else set(prints)
    other = {
        path: why
        for path, made in prints.items()
        if path not in expected and (why := difference(kept.get(path), made))
    }
    if other:
        lines = [f"  {path}: {why}\n" for path, why in list(other.items())[:20]]
        more = f"  and {len(other) - 20} more\n" if len(other) > 20 else ""
        raise LeaveoutError(
            f"{len(other)} of {len(prints)} files of the sample differ:\n{''.join(lines)}{more}If "
            "that is meant, raise the `version` of the step (leaveout/workflow/steps) or the "
            "VERSION of the method, and run this again. Nothing was locked."
        )
    lock.write({**now, "sample": sample, "prints": {**prints}})
    words = ", ".join(edited[:8]) + (", ..." if len(edited) > 8 else "")
    return (
        f"{len(prints)} files of the sample are as before"
        f"{f', {len(expected & set(prints))} of them new on purpose' if expected else ''}; "
        f"locked: {words or 'nothing was edited'}\n"
    )


def _methods() -> list[Any]:
    return [*load_methods(SAMPLE / "methods.yaml").values()]


def _edited(now: lock.Lock) -> list[str]:
    """Return the steps and methods that are not as locked, by name."""
    before = lock.locked()
    return [
        name
        for kind in ("steps", "methods")
        for name, entry in now[kind].items()
        if before.get(kind, {}).get(name) != entry
    ]


def _expected(plan: Plan, before: lock.Lock, now: lock.Lock) -> set[str]:
    """Return the files that may differ: made by another version, or from such files."""

    def raised(kind: str, name: str) -> bool:
        known = before.get(kind, {}).get(name)
        return known is None or known["version"] != now[kind][name]["version"]

    found: set[str] = set()
    for job in plan.jobs:
        own = raised("steps", job.step.name) or (
            job.step.uses_method and raised("methods", job.scored.module)
        )
        if own or found.intersection(job.reads):
            found.update(job.makes)
    return found


def _digest_of(paths: Iterable[Path]) -> str:
    text = "\n".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def compute(plan: Plan) -> dict[str, Print]:
    """Compute the sample in a temporary folder, a process for each core.

    Returns:
        What is kept of each file.
    """
    counts = dict.fromkeys(("", *plan.settings), 0)
    for job in plan.jobs:
        counts["" if job.step.shown else job.names.get("setting", "")] += 1
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Print] = {}
        workers = min(len(plan.settings), os.cpu_count() or 1)
        with (
            ProcessPoolExecutor(workers, get_context("spawn")) as pool,
            tqdm(total=sum(counts.values()), desc="sample", unit="job", ascii=True) as bar,
        ):
            # each setting by itself, the longest first; then what shows several of them
            parts = {pool.submit(_do, folder, name): name for name in reversed(plan.settings)}
            for part in as_completed(parts):
                found |= part.result()
                bar.update(counts[parts[part]])
            found |= pool.submit(_do, folder, "").result()
            bar.update(counts[""])
        return found


def _do(folder: str, name: str) -> dict[str, Print]:
    """Do one setting's jobs, or those of all settings, and return the prints of their files."""
    import torch

    torch.set_num_threads(1)
    plan = load_plan(load_yaml(SAMPLE / "config.yaml"), SAMPLE)
    found: dict[str, Print] = {}
    quiet = contextlib.redirect_stderr(io.StringIO())  # warnings of models so small are no news
    with contextlib.chdir(folder), quiet:
        for job in plan.jobs:
            alone = "" if job.step.shown else job.names.get("setting", "")
            if alone == name:
                run(job, {key: Path(path) for key, path in job.outputs.items()})
                for key, path in job.outputs.items():
                    found[path] = fingerprint(Path(path), _volatile(job, key))
    return found


def _volatile(job: Job, output: str) -> bool:
    """Return whether an output differs from run to run: times, memory, versions."""
    timed = ("cost_table", "quality_figure", "setup_page")
    page = job.step.name == "table_page" and job["table"] == "cost"
    return output in ("cost", "costs") or job.step.name in timed or page


def fingerprint(path: Path, volatile: bool = False) -> Print:
    """Return a few numbers that stand for what a file holds.

    Args:
        path: The file.
        volatile: Whether its contents differ from run to run: then only that it is there counts.
    """
    if volatile:
        return {}
    if path.suffix != ".safetensors":
        text = PIXELS.sub("", MADE_BY.sub("", path.read_text(encoding="utf-8")))
        words = hashlib.sha256(NUMBER.sub("#", text).encode()).hexdigest()[:16]
        rows = list(csv.reader(io.StringIO(text))) if path.suffix == ".csv" else [["text"], [text]]
        columns = zip(*rows, strict=True)
        sums = {f"text {name}": _numbers(" ".join(cells)) for name, *cells in columns}
        return {"words": words, **{name: found for name, found in sums.items() if found[0]}}
    artefact = artefacts.read(path)
    why = artefact.meta.get("not_computed")
    found: Print = {"kind": artefact.kind, **({"not_computed": why["reason"]} if why else {})}
    for name, array in sorted(artefact.tensors.items()):
        found[name] = _sums(array)
    return found


def _numbers(text: str) -> list[float]:
    return _sums([float(word) for word in NUMBER.findall(text)])


def _sums(array: Any) -> list[float]:
    """Return size, numbers that are not finite, norm, and a sum with random signs."""
    values = np.asarray(array, dtype=np.float64).reshape(-1)
    finite = np.isfinite(values)
    values = np.where(finite, values, 0.0)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], len(values))
    sums = [float(np.sqrt((values**2).sum())), float(signs @ values)]
    return [len(values), int((~finite).sum()), *(float(f"{value:.7g}") for value in sums)]


def difference(kept: Print | None, made: Print) -> str:
    """Say how two prints differ, nothing if they are the same to rounding."""
    if kept is None:
        return "was not in the sample before"
    if kept.keys() != made.keys():
        return f"has {', '.join(sorted(made))}; had {', '.join(sorted(kept))}"
    for name, now in made.items():
        before = kept[name]
        if not isinstance(now, list):
            if now != before:
                return f"{name}: {before} -> {now}"
            continue
        if now[:2] != before[:2]:
            return f"{name}: {before[0]:g} numbers, {before[1]} not finite -> {now[0]:g}, {now[1]}"
        norm = max(before[2], now[2])
        close = CLOSE_TEXT if name.startswith("text ") else CLOSE
        off = max(abs(a - b) for a, b in zip(before[2:], now[2:], strict=True))
        if off > close * norm:
            return f"{name}: differs by {off / norm:.2g} of its size"
    return ""
