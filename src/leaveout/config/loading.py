"""Reading configuration files: YAML with unique keys, closed schemas, errors that name the key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Tag, ValidationError

from leaveout.errors import LeaveoutError

NAME = re.compile(r"[a-z][a-z0-9_]*")
"""The names of settings, methods and configurations, which become parts of paths and commands."""

NAME_RULE = "lower-case letters, digits and _ only, and begins with a letter"

RESERVED = ("figures", "pages")
"""Folders of results, which no setting and no configuration may be called."""

_M = TypeVar("_M", bound=BaseModel)


class ConfigError(LeaveoutError):
    """A configuration that does not fit the schema."""


class Closed(BaseModel):
    """A section of the configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def checked_names(names: Iterable[str]) -> None:
    """Refuse what can be no part of a path or a command, and a name that is given twice.

    Raises:
        ValueError: A name does not match ``NAME``, or stands there twice.
    """
    names = list(names)
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name: a name has {NAME_RULE}")
    if len(set(names)) != len(names):
        raise ValueError(f"{', '.join(names)}: a name stands there twice")


def nearest(word: str, valid: Sequence[str], cutoff: float = 0.5) -> str:
    """Return the end of an error that says what might be meant, and what there is.

    Args:
        word: What is unknown.
        valid: What there is.
        cutoff: How alike the nearest must be to be named: 0 for always, 1 for equal.
    """
    close = difflib.get_close_matches(word, valid, n=1, cutoff=cutoff)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Valid: {', '.join(valid) or 'none'}"


OWN, SHIPPED = "own module", "shipped"
"""Tags of the two forms of a section: a module of the user's, or what has a name here."""


def _forms(annotation: Any, tag: str = "") -> list[tuple[str, type[BaseModel]]]:
    """Return the sections that a key can hold, each with its tag."""
    if get_origin(annotation) is Annotated:
        inner, *notes = get_args(annotation)
        own = next((note.tag for note in notes if isinstance(note, Tag)), tag)
        return _forms(inner, own)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(tag, annotation)]
    return [found for part in get_args(annotation) for found in _forms(part, tag)]


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Follow a pydantic error location down the schema and list the keys valid there."""
    current: type[BaseModel] | None = model
    for step, after in zip(location, (*location[1:], None), strict=False):
        field = current.model_fields.get(str(step)) if current else None
        if field is None:
            if step in _TAGS:
                continue
            return []
        forms = _forms(field.annotation)
        current = next(
            (form for tag, form in forms if tag == after), forms[0][1] if forms else None
        )
    return list(current.model_fields) if current else []


_TAGS = (
    OWN, SHIPPED, "linear", "mlp", "cnn", "resnet9", "gpt", "cross_entropy", "token_cross_entropy",
    "squared_error", "binary_cross_entropy", "multi_label",
    "count", "file", "every", "names", "entries", "by_setting",
)  # fmt: skip
"""Alternatives that pydantic names in a location, though no file has them as keys."""


def _explain(
    error: ValidationError, model: type[BaseModel], where: Path | str, implied: Collection[str]
) -> ConfigError:
    lines = []
    for item in error.errors():
        location = item["loc"]
        key = ".".join(str(step) for step in location if step not in _TAGS)
        if item["type"] == "extra_forbidden":
            valid = _fields_at(model, location[:-1])
            if len(location) == 1:
                valid = [name for name in valid if name not in implied]
            text = f"{key}: unknown key{nearest(str(location[-1]), valid)}"
        elif item["type"] == "literal_error" and isinstance(item["input"], str):
            valid = re.findall(r"'([^']*)'", item["ctx"]["expected"])
            text = f"{key}: unknown value {item['input']!r}{nearest(item['input'], valid)}"
        elif item["type"] == "union_tag_invalid":
            valid = [v for v in re.findall(r"'([^']*)'", item["ctx"]["expected_tags"]) if v != OWN]
            tag = item["ctx"]["tag"]
            text = f"{key}.name: unknown value {tag!r}{nearest(tag, valid)}. Or a `module` of yours"
        elif item["type"] == "union_tag_not_found":
            text = f"{key}: expected a `name`, or a `module` of yours (got {item['input']!r})"
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
            text = f"{key}: {message}" if key else message
        else:
            text = f"{key}: {item['msg']} (got {item['input']!r})"
        lines.append(text)
    return ConfigError(f"{where}: " + f"\n{where}: ".join(dict.fromkeys(lines)))


def validate(
    model: type[_M],
    values: Mapping[str, Any],
    where: Path | str,
    folder: Path | None = None,
    implied: Collection[str] = (),
) -> _M:
    """Check values against a schema.

    Args:
        model: The schema.
        values: What the file says.
        where: The file, for errors.
        folder: The configuration folder, which files named in it are relative to.
        implied: Keys that are no part of the file, and that no error names as valid.

    Raises:
        ConfigError: The values do not fit; names every key that does not.
    """
    try:
        return model.model_validate(values, context={"folder": folder} if folder else None)
    except ValidationError as error:
        raise _explain(error, model, where, implied) from error


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error; by itself the last one wins, silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, refusing repeated keys."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a file of keys and values, refusing repeated keys.

    Raises:
        ConfigError: The file is missing, or is something else.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        others = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise ConfigError(f"{path}: no such file{nearest(path.stem, others)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values
