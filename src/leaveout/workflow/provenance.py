"""Where an artefact comes from: what leads from a number back to raw data."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from leaveout.config import Setting
from leaveout.store import stamps


@cache
def _commit() -> str:
    """Return the git commit of the code (``-dirty`` with changes), ``unknown`` without one.

    A repository that the code merely lies in, an environment's say, has nothing to do with it: git
    has to track this very file.
    """
    here = Path(__file__).parents[1]
    try:
        _, commit, changes = (
            subprocess.run(
                ["git", *arguments],
                cwd=here,
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            ).stdout.strip()
            for arguments in (
                ["ls-files", "--error-unmatch", "--", __file__],
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--", "."],
            )
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}-dirty" if changes else commit


def setting_hash(setting: Setting) -> str:
    """Return the sha256 of a setting's configuration, defaults filled in."""
    return hashlib.sha256(setting.model_dump_json().encode()).hexdigest()


def provenance(
    setting: Setting, key: str, sources: Mapping[str, stamps.Source], device: str = "cpu"
) -> dict[str, Any]:
    """Return the provenance entries of a header, the artefact's stamp among them.

    Nothing in them depends on the clock, so that the same code on the same inputs writes the same
    bytes.

    Args:
        setting: The setting.
        key: The key of the job that makes it.
        sources: What the job read, in order.
        device: Where it was computed.
    """
    return {
        "setting": setting.name,
        "setting_sha256": setting_hash(setting),
        "seed": setting.seed,
        **stamps.entries(key, sources),
        "device": device,
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("leaveout", "numpy", "torch", "scipy")},
        },
    }
