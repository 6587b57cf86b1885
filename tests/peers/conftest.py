from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def peers_python() -> Path:
    """Return the Python of the environment that has the other libraries."""
    default = ROOT / ".venv-peers" / "bin" / "python"
    python = Path(os.environ.get("LEAVEOUT_PEERS_PYTHON", default))
    if not python.is_file():
        pytest.skip(f"no other libraries in {python}; `make peers` sets them up")
    return python
