"""The command line of each job of the plan: what a rule of the workflow runs, to be run by hand.

It is written from the plan, not copied from the rules; the tests hold it to what Snakemake prints.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import PurePath

from leaveout.plan import Step


def _under(paths: Sequence[str], *folders: str) -> list[str]:
    """Return the paths that have a folder of one of these names above them, in order."""
    return [path for path in paths if {*folders} & {*PurePath(path).parts[:-1]}]


def _option(name: str, values: Sequence[str]) -> list[str]:
    return [name, *values] if values else []


def command(step: Step) -> list[str] | None:
    """Return the command that does a job, word by word; None for a step it does not know.

    Args:
        step: The job. Which files play which part, their places below ``results`` say.
    """
    key = json.loads(step.key)
    out, inputs = step.outputs[0], list(step.inputs)
    place = PurePath(out)
    setting = ["--setting", key.get("setting", place.parts[1] if len(place.parts) > 2 else "")]
    to, chunk = ["--out", out], ["--chunk", place.stem]
    data = ["--data", *inputs[:1]]
    full, half = (_option(f"--{kind}", _under(inputs, kind)) for kind in ("full", "half"))
    scores = _under(inputs, "scores", "self_influence")
    metric = ["--metric", key.get("metric", key.get("shows", ""))]
    csvs = [path for path in _under(inputs, "metrics") if path.endswith(".csv")]
    dampings = _option("--dampings", _under(inputs, "damping"))
    config = [path for path in inputs if PurePath(path).parts[0] != place.parts[0]]
    match key["step"]:
        case "prepare":
            words = ["prepare", *setting, *to]
        case "full" | "half":
            words = ["train", "--kind", key["step"], *setting, *data, *chunk, *to]
        case "lds" | "loo":
            words = [f"retrain-{key['step']}", *setting, *data, *chunk, *to]
        case "pbrf":
            words = ["retrain-pbrf", *setting, *data, *full, *chunk, *to]
        case "truth":
            words = ["merge-truth", "--kind", key["layer"], *setting, *to, *inputs]
        case "attribute" | "self_influence":
            words = [key["step"].replace("_", "-"), *setting, "--method", key["method"]]
            words += ["--params", place.name.removesuffix(".safetensors"), *data, *full, *half]
            words += [*to, "--cost", step.outputs[1]]
        case "evaluate" | "auc":
            words = ["evaluate", *setting, *metric, "--method", key["method"]]
            words += ["--truth", inputs[0], "--bootstrap", str(key["bootstrap"])]
            words += [*_option("--top-k", [str(key["top_k"])] if "top_k" in key else []), *to]
            words += scores
        case "damping":
            words = ["damping", *setting, *metric, "--method", key["method"], *data, *to, *scores]
            words += [*full, *half]
        case "width":
            words = ["lds-width", *setting, "--truth", inputs[0], "--compare", *key["compare"]]
            words += ["--bootstrap", str(key["bootstrap"]), *to, *scores]
        case "table" if key["shows"] == "cost":
            words = ["cost-table", *to, *scores, *_option("--quality", csvs)]
        case "table":
            words = ["table", *metric, "--published", *config, *to, *csvs, *dampings]
        case "tidy":
            words = ["tidy-table", *to, *csvs, *dampings]
        case "ranks":
            words = ["rank-table", *to, *csvs]
        case "published":
            words = ["published-table", "--published", config[0], "--causes", config[1], *to, *csvs]
        case "predict":
            words = ["predict", *setting, *data, *to, *full]
        case "brittleness":
            words = ["retrain-brittleness", *setting, "--method", key["method"], *data]
            words += ["--predictions", inputs[1], *to, *scores, *_option("--chosen-by", csvs)]
        case "flips":
            words = ["evaluate-brittleness", *setting, "--method", key["method"]]
            words += ["--bootstrap", str(key["bootstrap"]), *to, *inputs]
        case "subgroups":
            words = ["subgroups", *setting, *metric, "--truth", inputs[0], "--data", inputs[1]]
            words += ["--predictions", inputs[2], "--bootstrap", str(key["bootstrap"]), *to]
            words += [*csvs, *scores, "--methods", *key["methods"]]
        case "brittleness_table" | "subgroups_table":
            words = [key["step"].replace("_", "-"), *to, *inputs]
        case "page":
            words = ["table-page", "--name", key["shows"], "--table", inputs[0], *to]
        case "figure":
            words = ["figure", *metric, "--table", inputs[0], *to, *csvs]
        case "damping_figure":
            words = ["damping-figure", *metric, *to, *csvs, *dampings]
        case "width_figure":
            words = ["width-figure", "--setting", key["shows"], "--table", inputs[0], *to]
        case _:
            return None
    return ["leaveout", *words]


def line(step: Step) -> str | None:
    """Return the command as it is typed, None for a step it does not know."""
    words = command(step)
    return None if words is None else shlex.join(words)
