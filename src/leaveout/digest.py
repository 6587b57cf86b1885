"""Digests of code: a result depends on the modules behind it, not on when they were saved.

The modules are found by following imports inside the package (for a method of a user's own, inside
that method's package too), read and never executed, so that
parsing the workflow loads none of them. Comments, docstrings and layout do not count, and neither
does the version of Python that reads the code: artefacts made under one are valid under another.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = "leaveout"

# Their outcome is already in a job's key (configuration, chunks), or does not touch numbers.
LEFT_OUT = frozenset(
    f"{PACKAGE}{name}"
    for name in (
        *("", ".config", ".costs", ".errors", ".plan", ".provenance", ".digest", ".stamps"),
        *(".forecast", ".freshness", ".sharing", ".workflow", ".cli", ".data.catalogue"),
        ".subset_file",
    )
)


@cache
def _path(module: str) -> Path | None:
    """Return a module's file: beside this one for the package itself, else as Python finds it."""
    if module == PACKAGE or module.startswith(f"{PACKAGE}."):
        base = Path(__file__).parent.joinpath(*module.split(".")[1:])
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file() and (candidate.name == "__init__.py" or base != candidate):
                return candidate
        return None
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


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


@cache
def _read(module: str) -> tuple[str, frozenset[str]]:
    """Return a module's digest and the modules of its own and of this package it imports."""
    path = _path(module)
    assert path is not None
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
    tops = {PACKAGE, module.split(".")[0]}
    inside = {m for m in imported if m.split(".")[0] in tops and _path(m) is not None}
    return hashlib.sha256(text.encode()).hexdigest(), frozenset(inside)


def modules_behind(*modules: str) -> list[str]:
    """Return the modules and all of the package that they import, directly or not, sorted."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found and module not in LEFT_OUT:
            found.add(module)
            waiting.extend(_read(module)[1])
    return sorted(found)


@cache
def code_digest(*modules: str) -> str:
    """Return one digest over the code that the given modules run, 16 hex digits."""
    lines = [f"{module} {_read(module)[0]}" for module in modules_behind(*modules)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
