"""What a step of the workflow is, said once: paths, inputs, configuration, code, resources.

A *step* is a kind of job, such as ``retrain_lds``; its name is that of its rule and, with dashes,
of its command. A *job* is a step for one setting, chunk, method and so on. The steps are listed in
:mod:`leaveout.workflow.steps`; keys, stamps, commands, the plan and the forecasts all come from
there. Nothing here loads torch or reads a file.

A job's *key* is a JSON text of all that decides its outputs, apart from its input files: its names,
the parts of the configuration that it reads, and the version of its code
(:mod:`leaveout.workflow.lock`).
"""

from __future__ import annotations

import json
import shlex
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaveout.config import Method, Scalar, Setting, grid_point
from leaveout.workflow.lock import method_version, step_version

if TYPE_CHECKING:
    from leaveout.workflow.costs import Job as Cost

Plan = Any
"""A :class:`leaveout.workflow.plan.Plan`, which is made of steps and so knows this module."""

Names = Mapping[str, str]
"""What a path pattern leaves open, by name: setting, chunk, method, ..."""


def fill(pattern: str, folders: Mapping[str, str], names: Names) -> str:
    """Return the path that a pattern stands for.

    Args:
        pattern: Such as ``<home>/{setting}/metrics/{metric}/{method}.csv``.
        folders: What stands for ``<home>`` and ``<place>``, where a configuration's files lie.
        names: What stands for the rest.
    """
    for name, folder in folders.items():
        pattern = pattern.replace(f"<{name}>", folder)
    return pattern.format_map(names)


@dataclass(frozen=True)
class Input:
    """One input of a step.

    Attributes:
        help: What it is, for the command line.
        paths: A pattern, or a function of the plan and the job's names that returns the files.
        many: Whether it can be several files.
        optional: Whether it can be missing.
    """

    help: str
    paths: str | Callable[[Plan, Names], Sequence[str]]
    many: bool = False
    optional: bool = False

    def of(self, plan: Plan, names: Names) -> tuple[str, ...]:
        """Return the files of one job."""
        if isinstance(self.paths, str):
            return (fill(self.paths, plan.folders, names),)
        return tuple(self.paths(plan, names))


@dataclass(frozen=True)
class Option:
    """A value of the top-level configuration that a step reads.

    Attributes:
        help: What it is, for the command line.
        value: Gives it, of the plan and the job's names; None where the job does not read it.
        kind: Its type, or that of its items.
        many: Whether it is a list.
        default: What the command line takes where nothing is given; required if None.
    """

    help: str
    value: Callable[[Plan, Names], Any]
    kind: type = str
    many: bool = False
    default: Any = None


@dataclass(frozen=True)
class Step:
    """A kind of job.

    Attributes:
        name: Of its rule and of its command.
        help: What it does, for the command line and the documentation.
        outputs: Path patterns by name; the first one is the output, the others lie beside it.
        inputs: What it reads, by name, in order.
        every: The names of all jobs there are.
        compute: ``module:function``; it takes what ``call`` gives and returns contents.
        call: The function's arguments.
        decides: The parts of the setting and the method that the function reads, for the key.
        options: What it reads of the top-level configuration, by name.
        takes: What a job should take; None for seconds.
        shown: As what people look at it: ``table``, ``page`` or ``figure``; empty if they do not.
        device: Whether it computes with torch, on a device and some threads.
        uses_method: Whether it runs the code of the job's method.
        version: Raised whenever the step's numbers change on purpose.
    """

    name: str
    help: str
    outputs: Mapping[str, str]
    inputs: Mapping[str, Input]
    every: Callable[[Plan], Iterable[Names]]
    compute: str
    call: Callable[[Job], Mapping[str, Any]]
    decides: Callable[[Job], Mapping[str, Any]] = lambda job: {}
    options: Mapping[str, Option] = field(default_factory=dict)
    takes: Callable[[Job], Cost] | None = None
    shown: str = ""
    device: bool = False
    uses_method: bool = False
    version: int = 1

    @property
    def command(self) -> str:
        """The command's name."""
        return self.name.replace("_", "-")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What tells its jobs apart, such as setting and chunk."""
        fields = (name for _, name, _, _ in string.Formatter().parse(self.pattern) if name)
        return tuple(dict.fromkeys(fields))

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules whose code does it: its function, how it is called, and what calls it."""
        return (self.compute.partition(":")[0], self.call.__module__, "leaveout.workflow.run")

    @property
    def pattern(self) -> str:
        """The path pattern of its first output."""
        return next(iter(self.outputs.values()))


@dataclass(frozen=True)
class Job:
    """A step for certain names.

    Attributes:
        step: The step.
        names: By name, such as setting and chunk.
        options: The values of the top-level configuration that it reads.
        load: Returns a setting by its name.
        method: The method, where the names have one.
        inputs: The files it reads, by name, in order.
        outputs: The files it makes, by name.
        device: ``cpu`` or ``cuda``; decides no more than rounding.
    """

    step: Step
    names: Names
    options: Mapping[str, Any]
    load: Callable[[str], Setting]
    method: Method | None
    inputs: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, str]
    device: str = "cpu"

    def __getitem__(self, name: str) -> str:
        """Return a name's value."""
        return self.names[name]

    @cached_property
    def setting(self) -> Setting:
        """The setting, of a job that has one."""
        return self.load(self.names["setting"])

    @property
    def scored(self) -> Method:
        """The method, of a job that has one."""
        assert self.method is not None, self.step.name
        return self.method

    @cached_property
    def params(self) -> dict[str, Scalar]:
        """The hyper-parameters that the name ``params`` stands for."""
        return grid_point(self.scored, self.names["params"])

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """All input files, in order."""
        return tuple(path for paths in self.inputs.values() for path in paths)

    @cached_property
    def makes(self) -> tuple[str, ...]:
        """All output files."""
        return tuple(self.outputs.values())

    @cached_property
    def key(self) -> str:
        """All that decides the outputs, apart from the input files, as JSON text."""
        entries = {
            "step": self.step.name,
            "code": step_version(self.step),
            **self.names,
            **{name: value for name, value in self.options.items() if value is not None},
            **self.step.decides(self),
        }
        if self.step.uses_method:
            # with its module: two of them can have the same version
            entries["module"] = self.scored.module
            entries["method_code"] = method_version(self.scored)
        return json.dumps(entries, sort_keys=True)

    def file(self, name: str) -> Path | None:
        """Return the one file of an input, None where an optional one is missing."""
        return next(iter(self.files(name)), None)

    def files(self, name: str) -> list[Path]:
        """Return the files of an input, in order."""
        return [Path(path) for path in self.inputs[name]]

    def command(self, *more: str) -> list[str]:
        """Return the command line that does this job, word by word."""
        words = ["leaveout", self.step.command]
        for name in self.step.names:
            words += [f"--{_dashed(name)}", self.names[name]]
        for name, paths in self.inputs.items():
            if paths:
                words += [f"--{_dashed(name)}", *paths]
        for name, option in self.step.options.items():
            value = self.options[name]
            if value is not None:
                words += [f"--{_dashed(name)}", *map(str, value if option.many else [value])]
        first, *others = self.outputs.items()
        words += ["--out", first[1]]
        for name, path in others:
            words += [f"--{_dashed(name)}", path]
        return [*words, *more]

    @property
    def line(self) -> str:
        """The command line as it is typed."""
        return shlex.join(self.command())


def _dashed(name: str) -> str:
    return name.replace("_", "-")
