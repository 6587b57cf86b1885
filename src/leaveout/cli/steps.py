"""The commands of the workflow's steps, made from the registry: what a rule runs, by hand.

Each command reads and writes the files it is given and nothing else. What it is told apart from
files, such as a setting's name, is looked up in the configuration folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from leaveout import devices
from leaveout.config import Method, Setting, load_methods, load_setting, nearest
from leaveout.config.metric_names import PANELS
from leaveout.errors import LeaveoutError
from leaveout.workflow.step import Job, Step

HELP = {
    "setting": "the setting, such as mnist_lr",
    "chunk": "which chunk: 0, 1, ... or, of a run, 0-0, 0-1, ...",
    "kind": "which models",
    "truth": "which ground truth",
    "metric": "the metric",
    "method": "the method, such as grad_dot",
    "params": "hyper-parameters, such as damping=0.01",
    "table": "which table: a metric, cost, ...",
}
CHOICES = {
    "kind": ("full", "half"),
    "truth": ("lds", "loo", "pbrf"),
    "metric": (*PANELS, "lds_variance"),
}


def add(parser: argparse.ArgumentParser, step: Step, device: str) -> None:
    """Add a step's options to the parser of its command.

    Args:
        parser: The command's parser.
        step: The step.
        device: Where it computes unless it is told.
    """
    for name in step.names:
        default = {"default": "default"} if name == "params" else {"required": True}
        parser.add_argument(_flag(name), help=HELP[name], choices=CHOICES.get(name), **default)
    for name, put in step.inputs.items():
        parser.add_argument(
            _flag(name),
            type=Path,
            nargs=("*" if put.optional else "+") if put.many else None,
            default=[] if put.many and put.optional else None,
            required=not put.optional,
            help=put.help,
        )
    for name, option in step.options.items():
        parser.add_argument(
            _flag(name),
            type=option.kind,
            nargs="+" if option.many else None,
            default=option.default,
            required=option.many,
            help=option.help,
        )
    others = [*step.outputs][1:]
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    for name in others:
        parser.add_argument(_flag(name), type=Path, help=f"where to write the {name}, if wanted")
    if step.device:
        parser.add_argument("--device", type=_device, default=device, help="cpu or cuda")
        parser.add_argument("--threads", type=_count, default=1, help="CPU threads (default 1)")
    parser.add_argument("--plan", help="what the run that this job belongs to was planned with")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _device(text: str) -> str:
    try:
        return devices.check(text)
    except ValueError as error:  # whose words argparse would not show
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads; 1 at least")
    return int(text)


def do(step: Step, folder: Path) -> Callable[[argparse.Namespace], None]:
    """Return what a step's command does.

    Args:
        step: The step.
        folder: Holds the configuration.
    """

    def command(args: argparse.Namespace) -> None:
        from leaveout.workflow.planned import load
        from leaveout.workflow.run import run

        if step.device:
            import torch

            torch.set_num_threads(args.threads)
        outputs = {
            name: path
            for k, name in enumerate(step.outputs)
            if (path := args.out if k == 0 else getattr(args, name)) is not None
        }
        job = _job(step, args, outputs, folder)
        planned = load(args.plan) if args.plan is not None else None
        run(job, outputs, planned, lambda: _job(step, args, outputs, folder))

    return command


def _job(step: Step, args: argparse.Namespace, outputs: dict[str, Path], folder: Path) -> Job:
    """Return the job that a command line names, with the configuration as it is now."""
    given = vars(args)
    found: dict[str, Setting] = {}

    def setting(name: str) -> Setting:
        if name not in found:
            found[name] = load_setting(folder / "settings" / f"{name}.yaml")
        return found[name]

    def files(name: str) -> tuple[str, ...]:
        value = given[name]
        listed = value if isinstance(value, list) else [value] if value is not None else []
        return tuple(map(str, listed))

    return Job(
        step=step,
        names={name: given[name] for name in step.names},
        options={name: given[name] for name in step.options},
        load=setting,
        method=method(folder, given["method"]) if "method" in step.names else None,
        inputs={name: files(name) for name in step.inputs},
        outputs={name: str(path) for name, path in outputs.items()},
        device=given.get("device", "cpu"),
    )


def method(folder: Path, name: str) -> Method:
    """Return a method by its name.

    Raises:
        LeaveoutError: There is none of that name.
    """
    methods = load_methods(folder / "methods.yaml")
    if name not in methods:
        raise LeaveoutError(f"unknown method {name!r}{nearest(name, list(methods))}")
    return methods[name]
