"""What a computation gives, before it is a file: arrays or text, without header or provenance.

Every step of the workflow is a function that returns contents; one place writes them
(:mod:`leaveout.workflow.run`), with the header that says what they were made from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leaveout.errors import NotComputableError
from leaveout.store.artefacts import Array, Dims, Stream, atomic_path, write


@dataclass(frozen=True)
class Arrays:
    """The contents of an artefact.

    Attributes:
        kind: The kind of artefact, such as ``score``.
        tensors: The arrays by name. A :class:`~leaveout.store.artefacts.Stream` is computed while
            it is written; where it raises :class:`~leaveout.errors.NotComputableError`, the file is
            written without streams, and its header says why (``not_computed``).
        dims: For each array the names of its dimensions.
        facts: What else the header says of the arrays themselves, JSON-able: nothing of which
            code, configuration or files they come from.
    """

    kind: str
    tensors: Mapping[str, Array | Stream]
    dims: Dims
    facts: Mapping[str, Any] = field(default_factory=dict)


Contents = Arrays | str | Callable[[], str]
"""An artefact, text, or text that is known once the outputs before it are written (a cost)."""

Outputs = Contents | Mapping[str, Contents]
"""What a step's function returns: its one output, or several by name, in order of writing."""


def save(
    path: Path | str,
    contents: Contents,
    header: Mapping[str, Any] | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Write contents as a file, whole or not at all.

    Args:
        path: The file to write.
        contents: What it is to hold.
        header: Header entries of an artefact beside ``facts``, such as its provenance; text has
            none.
        check: Called when all is written, before the file takes its place; it may raise.

    Raises:
        LeaveoutError: The file could not be written.
    """
    if not isinstance(contents, Arrays):
        text = contents if isinstance(contents, str) else contents()
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
            if check is not None:
                check()
        return
    meta = {**(header or {}), **contents.facts}
    try:
        write(path, contents.kind, contents.tensors, contents.dims, meta, check)
    except NotComputableError as error:
        kept = {k: v for k, v in contents.tensors.items() if not isinstance(v, Stream)}
        why = {"reason": error.reason, "detail": error.detail}
        dims = {name: contents.dims[name] for name in kept}
        write(path, contents.kind, kept, dims, {**meta, "not_computed": why}, check)
