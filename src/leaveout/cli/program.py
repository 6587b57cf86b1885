"""The command line: every step of the workflow, to be run by hand just as the workflow runs it.

A setting is named by its file in the configuration folder (``config``, or the environment variable
LEAVEOUT_CONFIG); the device is ``cpu`` unless --device or LEAVEOUT_DEVICE says otherwise. Heavy
modules are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from leaveout import devices
from leaveout.cli import steps
from leaveout.config import load_setting
from leaveout.config.metric_names import TRUTHS
from leaveout.errors import LeaveoutError
from leaveout.workflow.steps import STEPS, load_plan

if TYPE_CHECKING:
    from leaveout.workflow.plan import Plan

LIBRARIES = ("dattri", "kronfluence")
CONFIG = Path(os.environ.get("LEAVEOUT_CONFIG", "config"))
DEVICE = os.environ.get("LEAVEOUT_DEVICE", "cpu")


def _workflow(args: argparse.Namespace) -> Plan:
    from leaveout.config import load_yaml

    return load_plan(load_yaml(args.configfile or CONFIG / "config.yaml"), CONFIG)


def _restore(args: argparse.Namespace) -> None:
    from leaveout.workflow.sharing import restore

    wanted = _workflow(args)
    pulled, compute = restore(wanted.jobs, args.targets or wanted.shown())
    print(
        f"pulled {len(pulled)} files; Snakemake would compute {len(compute)}", *compute, sep="\n  "
    )


def _publish(args: argparse.Namespace) -> None:
    from leaveout.config import load_yaml
    from leaveout.workflow import confirm
    from leaveout.workflow.sharing import publish

    confirm.check()
    files = args.configfile or [CONFIG / "config.yaml", CONFIG / "all.yaml"]
    plans = [load_plan(load_yaml(file), CONFIG) for file in files]
    jobs = {job.makes: job for plan in plans for job in plan.jobs}
    new = publish([*jobs.values()], args.remote, args.message)
    print("published" if new else "nothing new: what is published is what lies here")


def _plan(args: argparse.Namespace) -> None:
    from leaveout.config import load_methods, load_yaml, parse_config, select_methods
    from leaveout.workflow import forecast

    if args.workloads:
        rows = forecast.workload_rows(args.workloads)
    else:
        file = args.configfile or CONFIG / "config.yaml"
        config = parse_config(load_yaml(file), file)
        names = args.settings or list(config.settings)
        if names == ["all"]:
            names = sorted(path.stem for path in (CONFIG / "settings").glob("*.yaml"))
        methods = load_methods(CONFIG / "methods.yaml")
        settings = [load_setting(CONFIG / "settings" / f"{name}.yaml") for name in names]
        rows = [
            row
            for setting in settings
            for row in forecast.setting_rows(
                setting,
                select_methods(config, methods, setting),
                config.metrics_of(setting.name),
                config.brittleness,
            )
        ]
    print(forecast.as_csv(rows) if args.csv else forecast.as_text(rows), end="")


def _confirm(args: argparse.Namespace) -> None:
    from leaveout.workflow import confirm

    if args.check:
        confirm.check()
        print("every step and method is as it was confirmed")
    else:
        print(confirm.confirm(), end="")


def _explain(args: argparse.Namespace) -> None:
    from leaveout.explain import explain
    from leaveout.explain.text import as_text

    answer = explain(
        args.table,
        args.row,
        args.column,
        folder=CONFIG,
        configfile=args.configfile,
        check=args.check,
    )
    print(json.dumps(answer, indent=1) + "\n" if args.json else as_text(answer), end="")
    if answer["broken"]:
        raise LeaveoutError(f"the chain is broken: {answer['broken'][0]}")
    if args.check and answer["check"]["done"] and not answer["check"]["same"]:
        raise LeaveoutError(f"{answer['column']} comes out as {answer['check']['again']}")


def _export(args: argparse.Namespace) -> None:
    from leaveout.interop.transfer import export

    print(*export(args.to, args.files, args.out, args.run_number), sep="\n")


def _import(args: argparse.Namespace) -> None:
    from leaveout.interop.transfer import import_truth

    setting = load_setting(CONFIG / "settings" / f"{args.setting}.yaml")
    import_truth(args.origin, args.metric, setting, args.data, args.folder, args.out)


def _schema(args: argparse.Namespace) -> None:
    from leaveout.config import Setting

    schema = Setting.model_json_schema()
    schema["properties"].pop("name")
    schema["required"].remove("name")
    print(json.dumps(schema, indent=2))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="leaveout", description="A reproducible benchmark of training-data attribution."
    )
    top.add_argument("--version", action="version", version=f"leaveout {version('leaveout')}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    for step in STEPS.values():
        steps.add(command(step.command, steps.do(step, CONFIG), step.help), step, DEVICE)
    sub = command("restore", _restore, "pull what is needed to make some files, and no more")
    sub.add_argument("targets", nargs="*", help="files; by default tables, pages and figures")
    sub.add_argument("--configfile", type=Path, help="by default the folder's config.yaml")
    sub = command("publish", _publish, "record today's results in DVC, push and commit them")
    text = "of what is published; by default the folder's config.yaml and all.yaml"
    sub.add_argument("--configfile", type=Path, nargs="+", help=text)
    sub.add_argument("--remote", default="embedded", help="DVC remote (default embedded)")
    sub.add_argument("--message", default="Publish results", help="of the commit")
    sub = command("plan", _plan, "say what a run takes: jobs, hours, GPUs, memory, disk")
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--settings", nargs="+", help="which settings, or all of the folder")
    what.add_argument("--workloads", type=Path, help="a file of config/workloads instead")
    sub.add_argument("--configfile", type=Path, help="default: config.yaml of the folder")
    sub.add_argument("--csv", action="store_true", help="print CSV, without totals")
    text = "show that edited code gives the same numbers, and bring earlier results back"
    sub = command("confirm", _confirm, text)
    text = "compute nothing; fail if any code is not as it was confirmed"
    sub.add_argument("--check", action="store_true", help=text)
    sub = command("explain", _explain, "say where a number in a table comes from")
    sub.add_argument("table", type=Path, help="such as results/lds_table.csv")
    sub.add_argument("--row", help="which: method=if_cg, setting=...,method=..., or its number")
    sub.add_argument("--column", help="which column (default: the main one)")
    sub.add_argument("--check", action="store_true", help="compute it again and compare")
    sub.add_argument("--json", action="store_true", help="print JSON, with all there is to say")
    sub.add_argument("--configfile", type=Path, help="default: the folder's that made the table")
    sub = command("export", _export, "write ground truths and models as another library's files")
    sub.add_argument("--to", choices=LIBRARIES, required=True, help="whose")
    sub.add_argument("--out", type=Path, required=True, help="the folder to write in")
    sub.add_argument(
        "--run", type=int, dest="run_number", help="one run of a ground truth (default: the mean)"
    )
    sub.add_argument("files", type=Path, nargs="+", help="ground truths; for dattri also models")
    sub = command("import", _import, "make a ground truth of another library's files")
    sub.add_argument("--setting", required=True, help="the setting, such as mnist_lr")
    sub.add_argument("--data", type=Path, required=True, help="the setting's data artefact")
    sub.add_argument("--out", type=Path, required=True, help="the file to write")
    sub.add_argument("--metric", choices=TRUTHS, required=True)
    sub.add_argument("--from", choices=LIBRARIES, required=True, dest="origin", help="whose")
    sub.add_argument("folder", type=Path, help="where the files lie")
    command("schema", _schema, "print the JSON schema of a setting, for editors")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments; by default those of the process.

    Returns:
        Exit status: 0, or 1 with a message on standard error.
    """
    args = parser().parse_args(argv)
    threads = str(getattr(args, "threads", 1))
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, threads)  # read when the libraries are imported, below
    try:
        if getattr(args, "device", None) == "cuda" and (gpu := devices.claim(os.environ)):
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when torch is imported, below
        args.run(args)
    except LeaveoutError as error:
        print(f"leaveout {args.command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
