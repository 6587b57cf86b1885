"""The command line of each job of the plan: what a rule of the workflow runs, to be run by hand.

It is written from the plan, not copied from the rules; the tests hold it to what Snakemake prints.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import PurePath

from leaveout.plan import Step


def _under(paths: Sequence[str], folder: str) -> list[str]:
    """Return the paths that have a folder of some name above them."""
    return [path for path in paths if folder in PurePath(path).parts[:-1]]


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
    scores = _under(inputs, "scores") + _under(inputs, "self_influence")
    metric = ["--metric", key.get("metric", key.get("shows", ""))]
    csvs, dampings = _under(inputs, "metrics"), _option("--dampings", _under(inputs, "damping"))
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
            words += ["--truth", inputs[0], "--bootstrap", str(key["bootstrap"]), *to, *scores]
        case "damping":
            words = ["damping", *setting, *metric, "--method", key["method"], *data, *to, *scores]
            words += [*full, *half]
        case "width":
            words = ["lds-width", *setting, "--truth", inputs[0], "--compare", *key["compare"]]
            words += ["--bootstrap", str(key["bootstrap"]), *to, *scores]
        case "table" if key["shows"] == "cost":
            words = ["cost-table", *to, *inputs]
        case "table":
            published = [p for p in inputs if p not in csvs and p not in dampings]
            words = ["table", *metric, "--published", *published, *to, *csvs, *dampings]
        case "page":
            words = ["table-page", *metric, "--table", inputs[0], *to]
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
