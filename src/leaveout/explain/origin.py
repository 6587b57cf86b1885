"""Whether a file came with the published results or was made here, as far as that is known.

DVC's record (``dvc.lock``) has the md5 of what is published; Snakemake keeps a record of each file
that a job of it made here. Neither is a result, and both may be missing.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path

import yaml

STORES = (Path(".dvc/cache"), Path("data/published"))
"""Where the listing of a published folder may lie: DVC's cache, and the embedded remote."""

RECORDS = Path(".snakemake/metadata")


def published() -> dict[str, str] | None:
    """Return the md5 of every published file by path; None where nothing is on record.

    The files of a folder whose listing is not here have an empty md5, and the folder's path with a
    slash at the end.
    """
    try:
        lock = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    found: dict[str, str] = {}
    for stage in lock["stages"].values():
        for out in stage["outs"]:
            md5, path = str(out["md5"]), str(out["path"])
            if not md5.endswith(".dir"):
                found[path] = md5
                continue
            places = [store / "files" / "md5" / md5[:2] / md5[2:] for store in STORES]
            listing = next((place for place in places if place.is_file()), None)
            if listing is None:
                found[f"{path}/"] = ""
                continue
            entries = json.loads(listing.read_text(encoding="utf-8"))
            found |= {f"{path}/{entry['relpath']}": entry["md5"] for entry in entries}
    return found


def in_published(path: str, known: Mapping[str, str]) -> bool:
    """Return whether a file is among what is published."""
    folders = (f"{parent}/" for parent in Path(path).parents)
    return path in known or any(folder in known for folder in folders)


def recorded_here(path: str) -> bool:
    """Return whether Snakemake has a record of a job that made a file here."""
    return (RECORDS / urlsafe_b64encode(path.encode()).decode()).is_file()


def origin(path: str, known: Mapping[str, str] | None) -> str:
    """Say in words where a file came from, or where it could be had.

    Args:
        path: The file.
        known: What is published, as :func:`published` gives it.
    """
    there = Path(path).is_file()
    listed = known is not None and in_published(path, known)
    if not there:
        if known is None:
            return "not here"
        return "not here, but published" if listed else "not here: left out of what is published"
    made = recorded_here(path)
    md5 = (known or {}).get(path)
    if not md5:
        return "made here" if made else "here; no record of where it was made"
    with Path(path).open("rb") as file:
        same = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    if same.hexdigest() == md5:
        return "made here, and published" if made else "as published (dvc pull)"
    return f"{'made here' if made else 'no record of where it was made'}; published is another"
