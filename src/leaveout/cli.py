"""The command line: every step of the workflow, to be run by hand just as the workflow runs it.

Each command reads and writes the files it is given and nothing else. A setting is named by its file
in the configuration folder (``config``, or the environment variable LEAVEOUT_CONFIG); the device is
``cpu`` unless --device or LEAVEOUT_DEVICE says otherwise. Heavy modules are imported by the command
that needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from leaveout import __version__, devices, plan
from leaveout.config import Method, Scalar, Setting, grid_point, load_methods, load_setting
from leaveout.damping import damped
from leaveout.errors import LeaveoutError
from leaveout.metric_names import PANELS as METRICS
from leaveout.metric_names import TRUTHS

if TYPE_CHECKING:
    from leaveout.workflow import Plan

LIBRARIES = ("dattri", "kronfluence")
CONFIG = Path(os.environ.get("LEAVEOUT_CONFIG", "config"))
PUBLISHED = str(CONFIG / "published.csv")
DEVICE = os.environ.get("LEAVEOUT_DEVICE", "cpu")


def _settings(names: Sequence[str]) -> list[Setting]:
    return [load_setting(CONFIG / "settings" / f"{name}.yaml") for name in names]


def _setting(args: argparse.Namespace) -> Setting:
    return _settings([args.setting])[0]


def _stamped(out: Path, key: str, inputs: Sequence[Path], make: Callable[[], None]) -> None:
    """Make a file that can't carry its own stamp, and write the stamp beside it."""
    from leaveout import stamps

    read = stamps.sources(inputs)  # before they are read: what was altered by hand is refused
    make()
    stamps.write(out, key, read)


def _prepare(args: argparse.Namespace) -> None:
    from leaveout.data.prepare import prepare

    prepare(_setting(args), args.out)


def _train(args: argparse.Namespace) -> None:
    from leaveout.retraining.models import train_models

    _use_threads(args.threads)
    train_models(_setting(args), args.kind, args.chunk, args.data, args.out, args.device)


def _retrain_lds(args: argparse.Namespace) -> None:
    from leaveout.retraining.lds import retrain_lds

    _use_threads(args.threads)
    retrain_lds(_setting(args), args.chunk, args.data, args.out, args.device)


def _retrain_loo(args: argparse.Namespace) -> None:
    from leaveout.retraining.loo import retrain_loo

    _use_threads(args.threads)
    retrain_loo(_setting(args), args.chunk, args.data, args.out, args.device)


def _retrain_pbrf(args: argparse.Namespace) -> None:
    from leaveout.retraining.pbrf import retrain_pbrf

    _use_threads(args.threads)
    retrain_pbrf(_setting(args), args.chunk, args.data, args.full, args.out, args.device)


def _predict(args: argparse.Namespace) -> None:
    from leaveout.retraining.predictions import predict

    _use_threads(args.threads)
    predict(_setting(args), args.data, args.full, args.out, args.device)


def _retrain_brittleness(args: argparse.Namespace) -> None:
    from leaveout.retraining.brittleness import retrain_brittleness

    _use_threads(args.threads)
    retrain_brittleness(
        _setting(args),
        args.method,
        args.data,
        args.predictions,
        args.scores,
        args.chosen_by,
        args.out,
        args.device,
    )


def _evaluate_brittleness(args: argparse.Namespace) -> None:
    from leaveout.metrics.brittleness import evaluate_brittleness

    setting = _setting(args)
    _stamped(
        args.out,
        plan.flips_key(setting, args.method, args.bootstrap),
        [args.retrained],
        lambda: evaluate_brittleness(
            args.retrained,
            args.out,
            setting=setting.name,
            method=args.method,
            root_seed=setting.seed,
            bootstrap=args.bootstrap,
        ),
    )


def _brittleness_table(args: argparse.Namespace) -> None:
    from leaveout.reporting.brittleness import brittleness_table

    _stamped(
        args.out,
        plan.report_key("brittleness_table", "brittleness"),
        args.csvs,
        lambda: brittleness_table(args.csvs, args.out),
    )


def _brittleness_figure(args: argparse.Namespace) -> None:
    from leaveout.reporting.brittleness import brittleness_figure

    _stamped(
        args.out,
        plan.report_key("brittleness_figure", "brittleness"),
        args.csvs,
        lambda: brittleness_figure(args.csvs, args.out),
    )


def _subgroups(args: argparse.Namespace) -> None:
    from leaveout.metrics.subgroups import subgroups

    setting = _setting(args)
    csvs = [path for path in args.files if path.suffix == ".csv"]
    scores = [path for path in args.files if path.suffix != ".csv"]
    _stamped(
        args.out,
        plan.subgroups_key(setting, args.metric, args.methods, args.bootstrap),
        [args.truth, args.data, args.predictions, *csvs, *scores],
        lambda: subgroups(
            args.metric,
            args.truth,
            args.data,
            args.predictions,
            csvs,
            scores,
            args.out,
            setting=setting.name,
            methods=args.methods,
            root_seed=setting.seed,
            bootstrap=args.bootstrap,
        ),
    )


def _subgroups_table(args: argparse.Namespace) -> None:
    from leaveout.reporting.subgroups import subgroups_table

    _stamped(
        args.out,
        plan.report_key("subgroups_table", "subgroups"),
        args.csvs,
        lambda: subgroups_table(args.csvs, args.out),
    )


def _merge_truth(args: argparse.Namespace) -> None:
    from leaveout.retraining.truth import merge_truth

    merge_truth(_setting(args), args.kind, args.chunks, args.out)


def _attribute(args: argparse.Namespace) -> None:
    from leaveout.attribution.run import run_method

    _score(args, plan.attribute_key, run_method)


def _self_influence(args: argparse.Namespace) -> None:
    from leaveout.attribution.self_influence import run_self_influence

    _score(args, plan.self_influence_key, run_self_influence)


def _score(
    args: argparse.Namespace,
    key: Callable[[Setting, Method, dict[str, Scalar]], str],
    run: Callable[..., None],
) -> None:
    _use_threads(args.threads)
    method, params = _grid_point(load_methods(CONFIG / "methods.yaml"), args.method, args.params)
    setting = _setting(args)
    _stamped(
        args.cost,
        key(setting, method, params),
        [args.data, *args.full, *args.half],
        lambda: run(
            setting,
            method,
            params,
            args.data,
            args.full,
            args.half,
            args.out,
            args.cost,
            args.device,
        ),
    )


def _known(methods: dict[str, Method], name: str) -> Method:
    if name not in methods:
        raise LeaveoutError(f"unknown method {name!r}; known: {', '.join(methods)}")
    return methods[name]


def _grid_point(
    methods: dict[str, Method], name: str, wanted: str
) -> tuple[Method, dict[str, Scalar]]:
    method = _known(methods, name)
    return method, grid_point(method, wanted)


def _evaluate(args: argparse.Namespace) -> None:
    from leaveout import stamps
    from leaveout.metrics.auc import evaluate_auc
    from leaveout.metrics.draws import write_draws
    from leaveout.metrics.evaluate import evaluate

    setting = _setting(args)
    measure = (
        evaluate_auc if args.metric == "auc" else partial(evaluate, args.metric, top_k=args.top_k)
    )
    key = plan.evaluate_key(setting, args.metric, args.method, args.bootstrap, args.top_k)
    inputs = [args.truth, *args.scores]

    def make() -> None:
        stamp = stamps.entries(key, stamps.sources(inputs))
        replicates = measure(
            args.truth,
            args.scores,
            args.out,
            setting=setting.name,
            method=args.method,
            root_seed=setting.seed,
            bootstrap=args.bootstrap,
        )
        write_draws(args.out, args.scores, replicates, stamp)

    _stamped(args.out, key, inputs, make)


def _damping(args: argparse.Namespace) -> None:
    from leaveout.attribution.damping import choose_damping

    _use_threads(args.threads)
    methods = load_methods(CONFIG / "methods.yaml")
    method = _known(methods, args.method)
    if not damped(method):
        raise LeaveoutError(
            f"{method.name} has no damping to choose: its grid has not several values of it. "
            f"Methods that have: {', '.join(m.name for m in methods.values() if damped(m))}"
        )
    setting = _setting(args)
    _stamped(
        args.out,
        plan.damping_key(setting, args.metric, method),
        [args.data, *args.full, *args.half, *args.scores],
        lambda: choose_damping(
            setting,
            args.metric,
            method,
            args.data,
            args.full,
            args.half,
            args.scores,
            args.out,
            args.device,
        ),
    )


def _damping_figure(args: argparse.Namespace) -> None:
    from leaveout.reporting.dampings import damping_figure

    _stamped(
        args.out,
        plan.report_key("damping_figure", args.metric),
        [*args.dampings, *args.csvs],
        lambda: damping_figure(args.metric, args.dampings, args.csvs, args.out),
    )


def _lds_width(args: argparse.Namespace) -> None:
    from leaveout.metrics.width import lds_width

    setting = _setting(args)
    _stamped(
        args.out,
        plan.width_key(setting, args.compare, args.bootstrap),
        [args.truth, *args.scores],
        lambda: lds_width(
            args.truth,
            args.scores,
            args.out,
            setting=setting.name,
            compare=args.compare,
            root_seed=setting.seed,
            bootstrap=args.bootstrap,
        ),
    )


def _width_figure(args: argparse.Namespace) -> None:
    from leaveout.reporting.widths import width_figure

    _stamped(
        args.out,
        plan.report_key("width_figure", args.setting),
        [args.table],
        lambda: width_figure(args.table, args.out),
    )


def _draws(args: argparse.Namespace) -> list[Path]:
    return [Path(plan.draws_path(str(path))) for path in args.csvs]


def _table(args: argparse.Namespace) -> None:
    from leaveout.reporting.tables import panel_table

    draws = _draws(args)
    _stamped(
        args.out,
        plan.report_key("table", args.metric),
        [*args.csvs, args.published, *args.dampings, *draws],
        lambda: panel_table(args.metric, args.csvs, args.published, args.out, args.dampings, draws),
    )


def _tidy_table(args: argparse.Namespace) -> None:
    from leaveout.reporting.tidy import tidy_table

    draws = _draws(args)
    _stamped(
        args.out,
        plan.report_key("tidy", "all"),
        [*args.csvs, *draws, *args.dampings],
        lambda: tidy_table(args.csvs, draws, args.dampings, args.out),
    )


def _rank_table(args: argparse.Namespace) -> None:
    from leaveout.reporting.ranks import rank_table

    draws = _draws(args)
    _stamped(
        args.out,
        plan.report_key("ranks", "all"),
        [*args.csvs, *draws],
        lambda: rank_table(args.csvs, draws, args.out),
    )


def _published_table(args: argparse.Namespace) -> None:
    from leaveout.reporting.published import published_table

    _stamped(
        args.out,
        plan.report_key("published", "all"),
        [*args.csvs, args.published, args.causes],
        lambda: published_table(args.csvs, args.published, args.causes, args.out),
    )


def _table_page(args: argparse.Namespace) -> None:
    from leaveout.reporting.pages import table_page

    _stamped(
        args.out,
        plan.report_key("page", args.name),
        [args.table],
        lambda: table_page(args.name, args.table, args.out),
    )


def _start_page(args: argparse.Namespace) -> None:
    from leaveout.reporting.start import start_page

    settings = _settings(args.settings)
    tables = dict(zip(args.metrics, args.tables, strict=True))
    _stamped(
        args.out,
        plan.start_key(settings, args.metrics),
        [*args.tables, *filter(None, (args.ranks, args.brittleness))],
        lambda: start_page(settings, tables, args.out, args.ranks, args.brittleness),
    )


def _setup_page(args: argparse.Namespace) -> None:
    from leaveout.reporting.setup import setup_page

    settings = _settings(args.settings)
    _stamped(
        args.out,
        plan.setup_key(settings),
        [args.costs, *args.made],
        lambda: setup_page(settings, args.made, args.costs, args.out),
    )


def _cost_table(args: argparse.Namespace) -> None:
    from leaveout.reporting.tables import cost_table

    _stamped(
        args.out,
        plan.report_key("table", "cost"),
        [*args.costs, *args.quality],
        lambda: cost_table(args.costs, args.out, args.quality),
    )


def _figure(args: argparse.Namespace) -> None:
    from leaveout.reporting.figures import panel_figure

    _stamped(
        args.out,
        plan.report_key("figure", args.metric),
        [args.table, *args.csvs],
        lambda: panel_figure(args.metric, args.table, args.csvs, args.out),
    )


def _grid_figure(args: argparse.Namespace) -> None:
    from leaveout.reporting.figures import grid_figure

    _stamped(
        args.out,
        plan.report_key("grid_figure", args.metric),
        args.csvs,
        lambda: grid_figure(args.metric, args.csvs, args.out),
    )


def _quality_figure(args: argparse.Namespace) -> None:
    from leaveout.reporting.quality import quality_figure

    _stamped(
        args.out,
        plan.report_key("quality_figure", args.metric),
        [args.table, args.costs],
        lambda: quality_figure(args.metric, args.table, args.costs, args.out),
    )


def _examples_figure(args: argparse.Namespace) -> None:
    from leaveout.reporting.examples import examples_figure

    _stamped(
        args.out,
        plan.report_key("examples_figure", args.setting),
        [args.data, args.truth, *args.csvs, *args.scores],
        lambda: examples_figure(
            args.setting, args.data, args.truth, args.csvs, args.scores, args.out
        ),
    )


def _self_influence_figure(args: argparse.Namespace) -> None:
    from leaveout.reporting.examples import self_influence_figure

    _stamped(
        args.out,
        plan.report_key("self_influence_figure", args.setting),
        [args.data, *args.csvs, *args.scores],
        lambda: self_influence_figure(args.setting, args.data, args.csvs, args.scores, args.out),
    )


def _workflow(args: argparse.Namespace) -> Plan:
    from leaveout.config import load_yaml
    from leaveout.workflow import Plan

    return Plan.load(load_yaml(args.configfile or CONFIG / "config.yaml"), CONFIG)


def _restore(args: argparse.Namespace) -> None:
    from leaveout.sharing import restore

    wanted = _workflow(args)
    pulled, compute = restore(wanted.steps(PUBLISHED), args.targets or wanted.shown())
    print(
        f"pulled {len(pulled)} files; Snakemake would compute {len(compute)}", *compute, sep="\n  "
    )


def _publish(args: argparse.Namespace) -> None:
    from leaveout.sharing import publish

    new = publish(_workflow(args).steps(PUBLISHED), args.remote, args.message)
    print("published" if new else "nothing new: what is published is what lies here")


def _plan(args: argparse.Namespace) -> None:
    from leaveout import forecast
    from leaveout.config import load_yaml, parse_config, select_methods

    if args.workloads:
        rows = forecast.workload_rows(args.workloads)
    else:
        file = args.configfile or CONFIG / "config.yaml"
        config = parse_config(load_yaml(file), file)
        names = args.settings or list(config.settings)
        if names == ["all"]:
            names = sorted(path.stem for path in (CONFIG / "settings").glob("*.yaml"))
        methods = load_methods(CONFIG / "methods.yaml")
        rows = [
            row
            for setting in _settings(names)
            for row in forecast.setting_rows(
                setting,
                select_methods(config, methods, setting.name),
                config.metrics_of(setting.name),
                config.brittleness,
            )
        ]
    print(forecast.as_csv(rows) if args.csv else forecast.as_text(rows), end="")


def _explain(args: argparse.Namespace) -> None:
    from leaveout.explain import explain
    from leaveout.explain.text import as_text

    answer = explain(
        args.table,
        args.row,
        args.column,
        folder=CONFIG,
        configfile=args.configfile,
        sources=PUBLISHED,
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

    import_truth(args.origin, args.metric, _setting(args), args.data, args.folder, args.out)


def _schema(args: argparse.Namespace) -> None:
    from leaveout.config import Setting

    schema = Setting.model_json_schema()
    schema["properties"].pop("name")
    schema["required"].remove("name")
    print(json.dumps(schema, indent=2))


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _device(name: str) -> str:
    """Check a device; unlike `choices`, this holds for a default from the environment too."""
    if name not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{name!r} is neither cpu nor cuda")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="leaveout", description="A reproducible benchmark of training-data attribution."
    )
    parser.add_argument("--version", action="version", version=f"leaveout {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str, *options: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        for option in options:
            sub.add_argument(f"--{option}", **shared[option])  # type: ignore[arg-type]
        return sub

    shared: dict[str, dict[str, object]] = {
        "setting": {"required": True, "help": "the setting, such as mnist_lr"},
        "data": {"type": Path, "required": True, "help": "the setting's data artefact"},
        "out": {"type": Path, "required": True, "help": "the file to write"},
        "chunk": {"required": True, "help": "which chunk: 0, 1, ... or, of a run, 0-0, 0-1, ..."},
        "device": {"type": _device, "default": DEVICE, "help": "cpu or cuda"},
        "threads": {"type": int, "default": 1, "help": "CPU threads (default 1)"},
        "metric": {"choices": METRICS, "required": True},
        "method": {"required": True, "help": "the method, such as grad_dot"},
    }
    trains = ("setting", "data", "chunk", "out", "device", "threads")
    command("prepare", _prepare, "load, split and normalise a data set", "setting", "out")
    sub = command("train", _train, "train one chunk of full or half models", *trains)
    sub.add_argument("--kind", choices=("full", "half"), required=True)
    command("retrain-lds", _retrain_lds, "retrain on one chunk of random subsets", *trains)
    command("retrain-loo", _retrain_loo, "retrain with each sample of a chunk left out", *trains)
    sub = command(
        "retrain-pbrf",
        _retrain_pbrf,
        "move a full model to where a chunk's samples count less",
        *trains,
    )
    sub.add_argument("--full", type=Path, required=True, help="the full models of the chunk's run")
    common = ("setting", "data", "out", "device", "threads")
    sub = command("predict", _predict, "say what full models make of the test samples", *common)
    sub.add_argument("--full", type=Path, nargs="+", required=True, help="full models")
    sub = command(
        "retrain-brittleness",
        _retrain_brittleness,
        "retrain without the samples a method calls most helpful",
        *("setting", "data", "method", "out", "device", "threads"),
    )
    sub.add_argument("--predictions", type=Path, required=True, help="from predict")
    text = "the method's LDS, which chooses among its scores (default: the first)"
    sub.add_argument("--chosen-by", type=Path, help=text)
    sub.add_argument("scores", type=Path, nargs="+", help="scores, one a grid point, in grid order")
    sub = command("merge-truth", _merge_truth, "put a ground truth together", "setting", "out")
    sub.add_argument("--kind", choices=TRUTHS, required=True)
    sub.add_argument("chunks", type=Path, nargs="+")
    for name, run, text in (
        ("attribute", _attribute, "score all training samples by one method"),
        ("self-influence", _self_influence, "score each training sample on itself"),
    ):
        scores = ("setting", "data", "method", "out", "device", "threads")
        sub = command(name, run, text, *scores)
        sub.add_argument("--params", default="default", help="hyper-parameters: damping=0.01")
        sub.add_argument("--full", type=Path, nargs="+", required=True, help="full models")
        sub.add_argument("--half", type=Path, nargs="*", default=[], help="half models")
        sub.add_argument("--cost", type=Path, required=True, help="the cost file to write")
    sub = command(
        "evaluate",
        _evaluate,
        "measure the scores of one method against a ground truth",
        *("setting", "method", "out"),
    )
    sub.add_argument("--metric", choices=(*METRICS, "lds_variance"), required=True)
    text = "the ground truth artefact; for auc the data artefact, which names the flipped"
    sub.add_argument("--truth", type=Path, required=True, help=text)
    sub.add_argument("--bootstrap", type=int, default=1000, help="bootstrap draws")
    text = "how many samples loo_topk looks at (default 10)"
    sub.add_argument("--top-k", type=int, default=10, help=text)
    text = "scores (for auc self-influence), one file a grid point, in grid order"
    sub.add_argument("scores", type=Path, nargs="+", help=text)
    sub = command(
        "damping",
        _damping,
        "choose a method's damping without retrained models",
        *("setting", "data", "method", "out", "device", "threads"),
    )
    sub.add_argument("--metric", choices=TRUTHS, required=True)
    sub.add_argument("--full", type=Path, nargs="+", required=True, help="full models")
    sub.add_argument("--half", type=Path, nargs="*", default=[], help="half models")
    sub.add_argument("scores", type=Path, nargs="+", help="scores, one a grid point, in grid order")
    text = "draw how a metric goes with the damping"
    sub = command("damping-figure", _damping_figure, text, "out")
    sub.add_argument("--metric", choices=TRUTHS, required=True)
    sub.add_argument("--dampings", type=Path, nargs="+", required=True, help="from damping")
    sub.add_argument("csvs", type=Path, nargs="+", help="the same methods' metrics")
    sub = command(
        "lds-width",
        _lds_width,
        "measure how two methods' LDS and its interval go with subsets and runs",
        *("setting", "out"),
    )
    sub.add_argument("--truth", type=Path, required=True, help="the LDS ground truth artefact")
    sub.add_argument("--compare", nargs=2, required=True, metavar="METHOD", help="which two")
    sub.add_argument("--bootstrap", type=int, default=1000, help="bootstrap draws")
    sub.add_argument("scores", type=Path, nargs="+", help="scores of both, each in grid order")
    text = "measure what retraining without a method's most helpful samples changed"
    sub = command("evaluate-brittleness", _evaluate_brittleness, text, "setting", "method", "out")
    sub.add_argument("--bootstrap", type=int, default=1000, help="bootstrap draws")
    sub.add_argument("retrained", type=Path, help="from retrain-brittleness")
    text = "make the table of retraining without the most helpful samples"
    sub = command("brittleness-table", _brittleness_table, text, "out")
    sub.add_argument("csvs", type=Path, nargs="+", help="from evaluate-brittleness, in order")
    text = "draw how many predictions flip"
    sub = command("brittleness-figure", _brittleness_figure, text, "out")
    sub.add_argument("csvs", type=Path, nargs="+", help="from evaluate-brittleness, in order")
    sub = command(
        "subgroups",
        _subgroups,
        "measure a metric by class of the test sample, and by how sure the models are",
        *("setting", "data", "out"),
    )
    sub.add_argument("--metric", choices=TRUTHS, required=True)
    sub.add_argument("--truth", type=Path, required=True, help="the ground truth artefact")
    sub.add_argument("--predictions", type=Path, required=True, help="from predict")
    sub.add_argument("--methods", nargs="+", required=True, help="which, in order")
    sub.add_argument("--bootstrap", type=int, default=1000, help="bootstrap draws")
    text = "a metric's CSV of each method, in order, then their scores"
    sub.add_argument("files", type=Path, nargs="+", help=text)
    text = "put metrics by subgroup together"
    sub = command("subgroups-table", _subgroups_table, text, "out")
    sub.add_argument("csvs", type=Path, nargs="+", help="from subgroups, in order")
    text = "draw how an LDS's interval goes with subsets and runs"
    sub = command("width-figure", _width_figure, text, "setting", "out")
    sub.add_argument("--table", type=Path, required=True, help="from lds-width")
    sub = command("table", _table, "make the table of a panel", "metric", "out")
    sub.add_argument("--published", type=Path, required=True, help="published values")
    sub.add_argument("--dampings", type=Path, nargs="*", default=[], help="from damping")
    sub.add_argument("csvs", type=Path, nargs="+", help="the methods' metrics, in order")
    sub = command("tidy-table", _tidy_table, "put all metrics in one long table", "out")
    sub.add_argument("--dampings", type=Path, nargs="*", default=[], help="from damping")
    sub.add_argument("csvs", type=Path, nargs="+", help="the metrics, in order")
    sub = command("rank-table", _rank_table, "say which methods really differ", "out")
    sub.add_argument("csvs", type=Path, nargs="+", help="the metrics, in order")
    text = "put our values beside the published ones"
    sub = command("published-table", _published_table, text, "out")
    sub.add_argument("--published", type=Path, required=True, help="published values")
    sub.add_argument("--causes", type=Path, required=True, help="why values differ (YAML)")
    sub.add_argument("csvs", type=Path, nargs="+", help="the metrics, in order")
    sub = command("table-page", _table_page, "write a table as a page", "out")
    sub.add_argument("--name", required=True, help="which table: a metric, cost, ...")
    sub.add_argument("--table", type=Path, required=True, help="the table")
    sub = command("start-page", _start_page, "write the page that the report opens with", "out")
    sub.add_argument("--settings", nargs="+", required=True, help="what is shown, in order")
    sub.add_argument("--metrics", nargs="+", choices=METRICS, required=True)
    sub.add_argument("--tables", type=Path, nargs="+", required=True, help="one a metric")
    sub.add_argument("--ranks", type=Path, help="the table of ranks")
    sub.add_argument("--brittleness", type=Path, help="the table of brittleness")
    text = "write the page of versions, hardware and configuration"
    sub = command("setup-page", _setup_page, text, "out")
    sub.add_argument("--settings", nargs="+", required=True, help="what is shown, in order")
    sub.add_argument("--costs", type=Path, required=True, help="the table of costs")
    text = "artefacts whose headers say what made them"
    sub.add_argument("made", type=Path, nargs="+", help=text)
    sub = command("cost-table", _cost_table, "make the table of costs", "out")
    sub.add_argument("--quality", type=Path, nargs="*", default=[], help="metrics, in order")
    sub.add_argument("costs", type=Path, nargs="+")
    sub = command("figure", _figure, "draw a panel", "metric", "out")
    sub.add_argument("--table", type=Path, required=True, help="the panel's table")
    sub.add_argument("csvs", type=Path, nargs="+", help="the methods' metrics, in order")
    sub = command("grid-figure", _grid_figure, "draw a metric along every grid", "metric", "out")
    sub.add_argument("csvs", type=Path, nargs="+", help="the methods' metrics, in order")
    text = "draw a metric against the time of scoring"
    sub = command("quality-figure", _quality_figure, text, "metric", "out")
    sub.add_argument("--table", type=Path, required=True, help="the panel's table")
    sub.add_argument("--costs", type=Path, required=True, help="the table of costs")
    pictured = ("setting", "data", "out")
    text = "draw test samples with their strongest supporters and opponents"
    sub = command("examples-figure", _examples_figure, text, *pictured)
    sub.add_argument("--truth", type=Path, required=True, help="a ground truth; it is drawn if LOO")
    text = "draw the most self-influential training samples"
    own = command("self-influence-figure", _self_influence_figure, text, *pictured)
    for picture in (sub, own):
        text = "the methods' metrics, in order, which choose hyper-parameters"
        picture.add_argument("--csvs", type=Path, nargs="+", required=True, help=text)
        picture.add_argument("scores", type=Path, nargs="+", help="the methods' scores")
    sub = command("restore", _restore, "pull what is needed to make some files, and no more")
    sub.add_argument("targets", nargs="*", help="files; by default tables, pages and figures")
    sub.add_argument("--configfile", type=Path, help="by default the folder's config.yaml")
    sub = command("publish", _publish, "record today's results in DVC, push and commit them")
    sub.add_argument("--configfile", type=Path, help="by default the folder's config.yaml")
    sub.add_argument("--remote", default="embedded", help="DVC remote (default embedded)")
    sub.add_argument("--message", default="Publish results", help="of the commit")
    sub = command("plan", _plan, "say what a run takes: jobs, hours, GPUs, memory, disk")
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--settings", nargs="+", help="which settings, or all of the folder")
    what.add_argument("--workloads", type=Path, help="a file of config/workloads instead")
    sub.add_argument("--configfile", type=Path, help="default: config.yaml of the folder")
    sub.add_argument("--csv", action="store_true", help="print CSV, without totals")
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
    sub = command(
        "import",
        _import,
        "make a ground truth of another library's files",
        *("setting", "data", "out"),
    )
    sub.add_argument("--metric", choices=TRUTHS, required=True)
    sub.add_argument("--from", choices=LIBRARIES, required=True, dest="origin", help="whose")
    sub.add_argument("folder", type=Path, help="where the files lie")
    command("schema", _schema, "print the JSON schema of a setting, for editors")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments; by default those of the process.

    Returns:
        Exit status: 0, or 1 with a message on standard error.
    """
    args = _parser().parse_args(argv)
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
