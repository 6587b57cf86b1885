"""Methods: what their files say of them, their grids, and the labels of grid points."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from leaveout.config.loading import NAME, NAME_RULE, Closed, ConfigError, load_yaml, nearest
from leaveout.config.own import source_of

Scalar = bool | int | float | str


class Method(Closed):
    """A method: one file in leaveout.attribution, and the hyper-parameters to try."""

    name: str
    """The entry's name."""
    module: str
    """The Python module that implements it."""
    grid: tuple[dict[str, Scalar], ...]
    """Every combination of hyper-parameters, in the order of the file."""
    needs: tuple[str, ...] = ("full",)
    """Which models it uses: `full`, `half`; the module's NEEDS."""
    version: int = 1
    """Of what it computes: the module's VERSION, raised where its numbers change on purpose."""


class _Signature(NamedTuple):
    """What a method's file says of it.

    Attributes:
        takes: The keyword-only parameters of its ``attribute``, name -> (type, has a default).
        needs: Its ``NEEDS``.
        version: Its ``VERSION``.
    """

    takes: dict[str, tuple[str, bool]]
    needs: tuple[str, ...]
    version: int


@cache
def _signature(module: str) -> _Signature:
    """Return what a method's file says of it, without importing it (and torch with it)."""
    path = source_of(module)
    if path is None:
        raise ModuleNotFoundError(module)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ConfigError(f"{path}: line {error.lineno}: {error.msg}") from error
    needs = _constant(tree, "NEEDS", ("full",))
    if not isinstance(needs, tuple | list) or (unknown := {*needs} - {"full", "half"}):
        odd = sorted(unknown) if isinstance(needs, tuple | list) else repr(needs)
        raise ConfigError(f"{path}: NEEDS: unknown {odd}. Valid: full, half")
    version = _constant(tree, "VERSION", 1)
    if type(version) is not int or version < 1:
        raise ConfigError(f"{path}: VERSION: a whole number from 1, not {version!r}")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "attribute":
            takes = {
                arg.arg: (
                    ast.unparse(arg.annotation) if arg.annotation else "str",
                    value is not None,
                )
                for arg, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            }
            return _Signature(takes, tuple(needs), version)
    raise ConfigError(f"{path}: defines no function 'attribute'; see the README, add a method")


def _constant(tree: ast.Module, name: str, default: Any) -> Any:
    """Return what a module sets a name to; the text where that is no literal."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not any(isinstance(target, ast.Name) and target.id == name for target in targets):
            continue
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            try:
                default = ast.literal_eval(node.value)
            except ValueError:
                default = ast.unparse(node.value)
    return default


def _coerce(value: Any, kind: str, where: str) -> Scalar:
    """Convert a YAML scalar to the type a method declares (YAML reads 1e-3 as text)."""
    types: dict[str, type] = {"float": float, "int": int, "str": str, "bool": bool}
    wanted = types.get(kind, str)
    try:
        if isinstance(value, bool) != (wanted is bool) or isinstance(value, list | dict):
            raise ValueError
        converted = wanted(value)
        if wanted is int and converted != float(value):
            raise ValueError
        if wanted is float and not math.isfinite(converted):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: expected {kind}, got {value!r}") from error
    return converted  # type: ignore[no-any-return]


def load_methods(path: Path | str) -> dict[str, Method]:
    """Load the methods and expand their grids.

    An entry is ``NAME: {hyper-parameter: value or list of values}``; the code is
    ``leaveout.attribution.NAME`` unless the entry names a ``module``.

    Raises:
        ConfigError: A module is missing, or a hyper-parameter is not one its ``attribute`` takes.
    """
    path = Path(path)
    methods = {}
    for name, entry in load_yaml(path).items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ConfigError(f"{path}: {name}: a method's name has {NAME_RULE}")
        values = hyper_parameters(entry, f"{path}: {name}")
        module = values.pop("module", f"leaveout.attribution.{name}")
        try:
            takes, needs, version = _signature(module)
        except (ImportError, ValueError, AttributeError) as error:  # not there, or no module's name
            hint = "" if "module" in (entry or {}) else nearest(name, _known_methods())
            raise ConfigError(f"{path}: {name}: no module {module}{hint}") from error
        for key in values:
            if key not in takes:
                raise ConfigError(
                    f"{path}: {name}.{key}: unknown key{nearest(key, ['module', *takes])}"
                )
        grid = make_grid(module, values, f"{path}: {name}")
        methods[name] = Method(name=name, module=module, grid=grid, needs=needs, version=version)
    return methods


def hyper_parameters(entry: Any, where: str) -> dict[str, Any]:
    """Return the hyper-parameters of an entry.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(entry, dict | None):
        raise ConfigError(f"{where}: expected hyper-parameters, got {entry!r}")
    return {str(key): value for key, value in (entry or {}).items()}


def make_grid(module: str, values: Mapping[str, Any], where: str) -> tuple[dict[str, Scalar], ...]:
    """Expand a grid of hyper-parameters, checked against what a method's ``attribute`` takes.

    Raises:
        ConfigError: It takes something else, or the grid is empty or repeats a point.
    """
    takes = _signature(module).takes
    for key in values:
        if key not in takes:
            raise ConfigError(f"{where}.{key}: unknown key{nearest(key, list(takes))}")
    for key, (_, has_default) in takes.items():
        if key not in values and not has_default:
            raise ConfigError(f"{where}.{key}: missing, {module} needs it")
    axes = [
        [
            (key, _coerce(value, takes[key][0], f"{where}.{key}"))
            for value in (given if isinstance(given, list) else [given])
        ]
        for key, given in values.items()
    ]
    grid = tuple(dict(point) for point in itertools.product(*axes))
    labels = [label(point) for point in grid]
    if len(set(labels)) != len(labels) or not grid:
        raise ConfigError(f"{where}: the grid is empty or repeats a value")
    for odd in (text for text in labels if not re.fullmatch(r"[\w.=+-]+", text)):
        raise ConfigError(
            f"{where}: {odd!r} is to be part of a file's name, and of commands on a "
            "cluster: only letters, digits and _.-+ can stand in a value"
        )
    return grid


def _known_methods() -> list[str]:
    spec = importlib.util.find_spec("leaveout.attribution")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(path.stem for path in folder.glob("*.py"))
    return [name for name in found if _is_method(f"leaveout.attribution.{name}")]


def _is_method(module: str) -> bool:
    try:
        _signature(module)
    except ConfigError:
        return False
    return True


def label(params: Mapping[str, Scalar]) -> str:
    """Return the name of a grid point, as used in paths and tables, e.g. ``damping=0.01``.

    Parameters are joined by ``+``: Snakemake takes a wildcard apart at commas when it hands a job
    to a cluster (``--target-jobs``), and the job fails.
    """
    return "+".join(f"{key}={_text(value)}" for key, value in params.items()) or "default"


def _text(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def grid_point(method: Method, text: str) -> dict[str, Scalar]:
    """Return the hyper-parameters that a label names: of the grid, or any that the method takes.

    A configuration may replace a grid, so that a label is not always one of ``methods.yaml``'s.

    Raises:
        ConfigError: The label is of neither kind.
    """
    for params in method.grid:
        if label(params) == text:
            return params
    parts = [] if text == "default" else split_label(text)
    values: dict[str, Any] = {key: value for key, _, value in (p.partition("=") for p in parts)}
    takes = _signature(method.module).takes
    for key in values:
        if takes.get(key, ("", False))[0] == "bool":
            values[key] = {"True": True, "False": False}.get(values[key], values[key])
    try:
        (params,) = make_grid(method.module, values, method.name)
    except ConfigError as error:
        known = ", ".join(label(params) for params in method.grid)
        raise ConfigError(
            f"{method.name} has no grid point {text!r} ({error}); known: {known}"
        ) from error
    return params


def split_label(text: str) -> list[str]:
    """Take a label apart; a number may have a plus of its own, as in ``damping=1e+06``."""
    return re.split(r"\+(?=[A-Za-z_]\w*=)", text)
