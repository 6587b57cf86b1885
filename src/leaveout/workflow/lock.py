"""Versions of code, guarded by a lock.

Every step and every method has an integer version, raised whenever its numbers change on purpose.
``steps.lock`` holds, for each, the version and the digest of the code behind it as it was last
confirmed. While the code is the confirmed one, a job's key has the version alone. As soon as it is
edited, the key has version and digest, and what was made before is stale at once, on the machine of
whoever edits. Then either the version is raised, or ``leaveout confirm`` shows that the numbers are
the same and brings all earlier results back (:mod:`leaveout.workflow.confirm`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from leaveout.config.own import Own
from leaveout.errors import LeaveoutError
from leaveout.workflow.digest import code_digest, own_digest, path_of

if TYPE_CHECKING:
    from leaveout.config import Method

LOCK = Path(__file__).with_name("steps.lock")

Entry = dict[str, Any]
Lock = dict[str, Any]
"""``steps`` and ``methods`` by name, each version and code; and what the sample gave."""


class Versioned(Protocol):
    """What the lock knows of a step."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def version(self) -> int:
        """Its version."""

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that do it."""


@cache
def locked() -> Lock:
    """Return what was confirmed.

    Raises:
        LeaveoutError: The lock can't be read, for instance in the middle of a merge.
    """
    if not LOCK.is_file():
        return {"steps": {}, "methods": {}}
    try:
        return dict(json.loads(LOCK.read_text(encoding="utf-8")))
    except ValueError as error:
        raise LeaveoutError(
            f"{LOCK}: not valid JSON ({error}). Take the version of either side of a merge, then "
            "run `leaveout confirm`."
        ) from error


def step_entry(step: Versioned) -> Entry:
    """Return a step's version and the digest of the code behind it, as they are now."""
    return {"version": step.version, "code": code_digest(*step.modules)}


def method_entry(method: Method) -> Entry:
    """Return a method's version and the digest of its code, as they are now."""
    return {"version": method.version, "code": code_digest(method.module)}


def entries(steps: Iterable[Versioned], methods: Iterable[Method]) -> Lock:
    """Return the entries of steps and methods, as they are now."""
    return {
        "steps": {step.name: step_entry(step) for step in steps},
        "methods": {method.module: method_entry(method) for method in methods},
    }


def write(lock: Lock) -> None:
    """Write the lock: a line for each entry, so that a change is easy to read."""
    from leaveout.store.artefacts import atomic_path  # and numpy, which reading does without

    parts = []
    for name, values in lock.items():
        if isinstance(values, dict):
            lines = [
                f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(values.items())
            ]
            parts.append(f'"{name}": {{\n' + ",\n".join(lines) + "\n }")
        else:
            parts.append(f'"{name}": {json.dumps(values)}')
    with atomic_path(LOCK) as temporary:
        temporary.write_text("{\n " + ",\n ".join(parts) + "\n}\n", encoding="utf-8")
    look_again()


def _version(entry: Entry, confirmed: Entry | None) -> str:
    same = confirmed is not None and all(confirmed[name] == entry[name] for name in entry)
    return str(entry["version"]) if same else f"{entry['version']}+{entry['code']}"


_FOUND: dict[tuple[str, str], str] = {}
"""By kind and name what stands for code in keys: each job of a plan asks for it."""


def step_version(step: Versioned) -> str:
    """Return what stands for a step's code in a key: ``2``, or ``2+9f86d081884c7d65`` if edited."""
    name = ("steps", step.name)
    if name not in _FOUND:
        _FOUND[name] = _version(step_entry(step), locked()["steps"].get(step.name))
    return _FOUND[name]


def method_version(method: Method) -> str:
    """Return what stands for a method's code in a key."""
    name = ("methods", method.module)
    if name not in _FOUND:
        _FOUND[name] = _version(method_entry(method), locked()["methods"].get(method.module))
    return _FOUND[name]


def own_code(*sections: Any) -> dict[str, str]:
    """Return what stands for code of the user's that a setting names, for a key; else nothing.

    Args:
        *sections: Of a setting: its data set, model or objective.
    """
    modules = [section.module for section in sections if isinstance(section, Own)]
    if not modules:
        return {}
    name = ("own", " ".join(modules))
    if name not in _FOUND:
        _FOUND[name] = own_digest(*modules)
    return {"own_code": _FOUND[name]}


def look_again() -> None:
    """Forget which versions were found: the next question looks at the files again."""
    locked.cache_clear()
    path_of.cache_clear()
    _FOUND.clear()
