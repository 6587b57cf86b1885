"""A user's own modules: found and read as text, never imported, so that a plan loads none of them.

A setting names one by ``module:``, for its data, its model or its objective, and an entry of
``config/methods.yaml`` does for a method. They are found as Python finds them (``PYTHONPATH``,
installed packages), and in the folder where the command is run.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, model_validator

from leaveout.config.loading import Closed, nearest


def look_here() -> None:
    """Let Python find modules in the working folder too, after all others.

    A command of an installed program looks beside itself and not in the folder it is run in.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def source_of(module: str) -> Path | None:
    """Return the file of a module; None where there is none, or it is no Python source.

    Only the top package is looked up as Python does it: that loads nothing. What lies in it is
    found by name, so that no ``__init__.py`` is run.
    """
    look_here()
    top, *parts = module.split(".")
    if not all(part.isidentifier() for part in (top, *parts)):
        return None
    try:
        spec = importlib.util.find_spec(top)
        if spec is None:
            importlib.invalidate_caches()  # it may be new
            spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        origin = Path(spec.origin or "")
        return origin if not parts and origin.suffix == ".py" else None
    for folder in spec.submodule_search_locations:  # several, of a package without __init__.py
        base = Path(folder, *parts)
        for found in (base / "__init__.py", base.with_suffix(".py") if parts else base):
            if found.suffix == ".py" and found.is_file():
                return found
    return None


def parsed(module: str) -> tuple[Path, ast.Module]:
    """Read a module's text.

    Raises:
        ValueError: There is no such module, or its text is not Python; says what to do.
    """
    path = source_of(module)
    if path is None:
        raise ValueError(
            f"module: no Python file is found for {module!r}. It is looked for on PYTHONPATH, "
            f"among installed packages and in the folder where the command is run, {Path.cwd()}"
        )
    try:
        return path, ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ValueError(f"module: {path}, line {error.lineno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"module: {path} is no text in UTF-8") from error


def _defined(tree: ast.Module) -> dict[str, ast.stmt]:
    """Return what a module's text defines, by name: the statement that does it."""
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found[name] = node
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found |= {alias.asname or alias.name: node for alias in names}
            case ast.Assign(targets=targets):
                found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
                found[name] = node
    return found


class Own(Closed):
    """A module of your own; keys beside those named here are keyword arguments of its function."""

    model_config = ConfigDict(extra="allow")

    FUNCTIONS: ClassVar[Mapping[str, int]]
    """The function's name, or names of which the first that is there is taken, and how many
    arguments come to it in order, later."""
    GIVEN: ClassVar[tuple[str, ...]] = ()
    """Arguments that it gets where it takes them, whatever the setting says."""

    module: str
    """Its name, such as `my_lab.nets`: on PYTHONPATH, or in the folder where the command is run."""

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return self.module

    @property
    def function(self) -> str:
        """The name of the function that is called."""
        defined = _defined(parsed(self.module)[1])
        return next(name for name in self.FUNCTIONS if name in defined)

    @property
    def keywords(self) -> dict[str, Any]:
        """What the setting gives the function, numbers in text (YAML reads 1e-3 so) converted."""
        given: dict[str, Any] = dict(self.__pydantic_extra__ or {})
        node = _defined(parsed(self.module)[1])[self.function]
        if not isinstance(node, ast.FunctionDef):
            return given
        notes = {arg.arg: ast.unparse(arg.annotation) for arg in _arguments(node) if arg.annotation}
        for key, value in given.items():
            if isinstance(value, str) and notes.get(key) in ("float", "float | None"):
                given[key] = float(value)
        return given

    def identity(self) -> dict[str, Any]:
        """Return what a setting says of it, JSON-able; its code is no part of that."""
        return self.model_dump(mode="json", exclude_none=True)

    @model_validator(mode="after")
    def _function_is_there(self) -> Self:
        path, tree = parsed(self.module)
        defined = _defined(tree)
        name = next((name for name in self.FUNCTIONS if name in defined), None)
        if name is None:
            wanted = " or ".join(f"`{name}`" for name in self.FUNCTIONS)
            raise ValueError(f"module: {path} defines no function {wanted}; define it there")
        given: Mapping[str, Any] = self.__pydantic_extra__ or {}
        _check_values(given)
        node = defined[name]
        if isinstance(node, ast.FunctionDef):  # else its arguments are not known before it runs
            later = tuple(arg.arg for arg in _arguments(node)[: self.FUNCTIONS[name]])
            _check_keywords(node, given, f"{self.module}.{name}", (*self.GIVEN, *later))
        return self


def _arguments(node: ast.FunctionDef) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def _check_values(given: Mapping[str, Any]) -> None:
    """Refuse values that no key could hold.

    Raises:
        ValueError: One is no plain YAML (a date, say), or not finite.
    """
    for key, value in given.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{key}: {value!r} is no plain, finite value; write it as text") from (
                error
            )


def _check_keywords(
    node: ast.FunctionDef, given: Mapping[str, Any], what: str, more: Sequence[str]
) -> None:
    """Refuse keywords that a function does not take, and a call without those that it needs.

    Raises:
        ValueError: Names the key, and the nearest.
    """
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    takes = [arg.arg for arg in [*arguments.args, *arguments.kwonlyargs]]
    if arguments.kwarg is None:
        for key in given:
            if key not in takes:
                valid = [name for name in takes if name not in more]
                raise ValueError(
                    f"{key}: unknown key, {what} does not take it{nearest(key, valid)}"
                )
    needed = [arg.arg for arg in positional[: len(positional) - len(arguments.defaults)]]
    for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if default is None:
            needed.append(arg.arg)
    for name in needed:
        if name not in given and name not in more:
            raise ValueError(f"{name}: missing, {what} needs it")
    notes = {arg.arg: ast.unparse(arg.annotation) for arg in _arguments(node) if arg.annotation}
    for key, value in given.items():
        if notes.get(key) == "float" and isinstance(value, str):
            try:
                finite = math.isfinite(float(value))
            except ValueError:
                finite = False
            if not finite:
                raise ValueError(f"{key}: expected float, got {value!r}")
