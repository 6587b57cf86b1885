"""Where an artefact comes from: what leads from a number back to raw data."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import leaveout
from leaveout import stamps
from leaveout.artefacts import Artefact, CorruptArtefactError
from leaveout.config import Setting


@cache
def _commit() -> str:
    """Return the git commit of the code (``-dirty`` with changes), ``unknown`` outside git."""
    here = Path(__file__).parent
    try:
        commit, changes = (
            subprocess.run(
                ["git", *arguments],
                cwd=here,
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "."])
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}-dirty" if changes else commit


def setting_hash(setting: Setting) -> str:
    """Return the sha256 of a setting's configuration, defaults filled in."""
    return hashlib.sha256(setting.model_dump_json().encode()).hexdigest()


def provenance(
    setting: Setting, key: str, inputs: Mapping[str, Artefact], device: str = "cpu"
) -> dict[str, Any]:
    """Return the provenance entries of a header, the artefact's stamp among them.

    Nothing in them depends on the clock, so that the same code on the same inputs writes the same
    bytes.

    Args:
        setting: The setting.
        key: What decides the output, see :mod:`leaveout.plan`.
        inputs: The artefacts read, by name, in the order of the command line.
        device: Where it was computed.
    """
    return {
        "setting": setting.name,
        "setting_sha256": setting_hash(setting),
        "seed": setting.seed,
        **stamps.entries(key, {name: _source(artefact) for name, artefact in inputs.items()}),
        "device": device,
        "commit": _commit(),
        "versions": {
            "leaveout": leaveout.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "torch", "scipy")},
        },
    }


def _source(artefact: Artefact) -> stamps.Source:
    if "spec" not in artefact.meta:
        raise CorruptArtefactError(artefact.path, "its header has no spec")
    return stamps.Source(artefact.meta["spec"], artefact.sha256)


def by_name(read: Iterable[Artefact]) -> dict[str, Artefact]:
    """Name artefacts by their path, for :func:`provenance`."""
    return {str(artefact.path): artefact for artefact in read}
