"""Digests of code: which modules are behind a step, and whether their code has changed.

The modules are found by following imports inside the package (for a module of a user's own, inside
that module's package or folder too). They are read and never executed, so that parsing the workflow
loads none of them. Comments, docstrings and layout do not count, and neither does the version of
Python that reads the code.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

from leaveout.config.own import source_of

PACKAGE = "leaveout"

LEFT_OUT = {
    f"{PACKAGE}": "loads public names when they are asked for",
    f"{PACKAGE}.__main__": "starts the command line",
    f"{PACKAGE}.cli": "what it was told is in the key",
    f"{PACKAGE}.config": "the values that a step reads are in its key",
    f"{PACKAGE}.errors": "messages",
    f"{PACKAGE}.devices": "chooses a GPU",
    f"{PACKAGE}.retraining.items": "the trainings of a chunk are in its key",
    f"{PACKAGE}.data.identity": "what it returns is in the key",
    f"{PACKAGE}.store.leftovers": "removes what killed jobs left",
    f"{PACKAGE}.store.stamps": "says what a file was made from",
    f"{PACKAGE}.workflow": "finds files, keys and what is stale",
}
"""Modules, with all below them, that decide no number that is not in the key already; and why."""

COUNTED = (f"{PACKAGE}.workflow.run", f"{PACKAGE}.workflow.steps")
"""Exceptions to that: what calls a step's function, and with which arguments."""


def _below(module: str, tops: Any) -> bool:
    return any(module == top or (top != PACKAGE and module.startswith(f"{top}.")) for top in tops)


def left_out(module: str) -> bool:
    """Return whether a module's code counts for no step."""
    return _below(module, LEFT_OUT) and not _below(module, COUNTED)


def _find(folder: Path, parts: list[str]) -> Path | None:
    base = folder.joinpath(*parts)
    for candidate in (base / "__init__.py", base.with_suffix(".py") if parts else base):
        if candidate.is_file():
            return candidate
    return None


@cache
def path_of(module: str) -> Path | None:
    """Return a module's file, or None: a library's own code is no part of ours."""
    top, *parts = module.split(".")
    if top == PACKAGE:
        return _find(Path(__file__).parents[1], parts)
    if top in sys.stdlib_module_names:
        return None
    path = source_of(module)
    return None if path is None or {"site-packages", "dist-packages"} & {*path.parts} else path


_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _shape(node: Any, imports: list[ast.Import | ast.ImportFrom]) -> Any:
    """Return a syntax tree as nested tuples, without its docstrings and empty fields.

    ``ast.dump`` differs between versions of Python: they add fields, empty in older code, and
    changed whether it prints empty ones.

    Args:
        node: The tree.
        imports: Where the import statements in it are added; every start of the workflow reads all
            modules, so they are walked through once.
    """
    if isinstance(node, ast.AST):
        if isinstance(node, _WITH_DOCSTRING):
            node.body = [statement for statement in node.body if not _is_docstring(statement)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
        fields = ((name, _shape(value, imports)) for name, value in ast.iter_fields(node))
        return (type(node).__name__, *(field for field in fields if field[1] not in (None, ())))
    if isinstance(node, list):
        return tuple([_shape(item, imports) for item in node])
    return None if node is None else repr(node)


def _identity(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


_READ: dict[str, tuple[tuple[int, ...], str, frozenset[str]]] = {}


def _read(module: str) -> tuple[str, frozenset[str]]:
    """Return a module's digest and the modules of its own and of this package it imports.

    A file is read again if it has changed: a job looks twice, at its start and before it writes.
    """
    path = path_of(module)
    assert path is not None, module
    identity = _identity(path)
    known = _READ.get(module)
    if known is None or known[0] != identity:
        known = _READ[module] = (identity, *_parsed(module, path))
    return known[1], known[2]


def _parsed(module: str, path: Path) -> tuple[str, frozenset[str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imports: list[ast.Import | ast.ImportFrom] = []
    text = repr(_shape(tree, imports))
    imported: set[str] = set()
    for node in imports:
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        else:
            name = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            imported.add(name)
            imported.update(f"{name}.{alias.name}" for alias in node.names)
    if _is_ours(module):
        inside = {name for name in imported if _is_ours(name)}
    else:  # a user's module can have helpers of the user's, and packages that are run before them
        inside = {part for name in (module, *imported) for part in _parents(name)} - {module}
    return hashlib.sha256(text.encode()).hexdigest(), frozenset(m for m in inside if path_of(m))


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == PACKAGE


def _parents(module: str) -> list[str]:
    """Return a module and, but for those of this package, the packages that it lies in."""
    parts = module.split(".")
    return [module] if _is_ours(module) else [".".join(parts[: k + 1]) for k in range(len(parts))]


def modules_behind(*modules: str) -> list[str]:
    """Return the modules and all of the package that they import, directly or not, sorted."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found and not left_out(module):
            found.add(module)
            waiting.extend(_read(module)[1])
    return sorted(found)


def code_digest(*modules: str) -> str:
    """Return one digest over the code that the given modules run, 16 hex digits."""
    lines = [f"{module} {_read(module)[0]}" for module in modules_behind(*modules)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def own_digest(*modules: str) -> str:
    """Return one digest over modules of the user's, and those of the user's that they import.

    What they import of this package is behind every step that runs them, and guarded there.
    """
    behind = [module for module in modules_behind(*modules) if not _is_ours(module)]
    lines = [f"{module} {_read(module)[0]}" for module in behind]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
