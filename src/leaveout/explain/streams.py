"""Seeds: from which identity each random stream behind a number is derived.

A stream's seed is a function of the setting's root seed and the stream's identity
(:mod:`leaveout.seeds`); what the identity is, the key of each job decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from leaveout.config.metric_names import truth_of
from leaveout.retraining.items import chunk
from leaveout.seeds import torch_seed
from leaveout.workflow.step import Job
from leaveout.workflow.steps.training import digest

Key = Mapping[str, Any]


def streams(jobs: Iterable[tuple[Key, Job | None]]) -> dict[str, Any]:
    """Return the root seed and the streams of some jobs.

    Args:
        jobs: The keys of the chain, each with today's job for it; what they say twice is said once.

    Returns:
        ``root``, None if no key names one, and ``streams``: each with ``what`` it is for and its
        ``identity``; for trainings the identity's shape, and the ``first`` one's with its seed,
        unless today's job is another one.
    """
    found: dict[str, dict[str, Any]] = {}
    roots = []
    for key, job in jobs:
        if "seed" in key:
            roots.append(int(key["seed"]))
        for stream in _of(key, job):
            found.setdefault(stream["what"], stream)
    return {"root": roots[0] if roots else None, "streams": list(found.values())}


def _stream(what: str, *identity: str) -> dict[str, Any]:
    return {"what": what, "identity": list(identity)}


def _training(
    key: Key, job: Job | None, what: str, layer: str, places: str, *, like: str = ""
) -> dict[str, Any]:
    """Return the streams of a chunk's trainings: their common shape, and the first one's seed.

    Args:
        key: The chunk's key.
        job: Today's job for it.
        what: What they are.
        layer: The layer that is trained.
        places: What a training's identity has beside setting and layer, in words.
        like: The layer whose streams they use, by run; their own by default.
    """
    text = f"({key['setting']}, {like or layer}, {places}, STREAM)"
    found: dict[str, Any] = {
        "what": what,
        "identity": f"{text}, STREAM being init, dropout, or order and EPOCH",
    }
    wanted = chunk(job.setting, layer, job["chunk"]) if job else []  # type: ignore[arg-type]
    if wanted and digest(wanted) == key.get("items"):
        item, run = wanted[0]
        numbers = (item, run) if "," in places else (run,)
        first = (key["setting"], like or layer, *numbers, "init")
        found |= {"first": list(first), "first_seed": torch_seed(int(key["seed"]), *first)}
    return found


def _of(key: Key, job: Job | None) -> list[dict[str, Any]]:
    setting = key.get("setting", "")
    match key["step"]:
        case "prepare":
            asked = key["dataset"]
            noise = asked.get("label_noise")
            name = asked.get("name") or asked["module"]
            flips = _stream("which labels are flipped", name, "label_noise")
            return [flips] if noise else []
        case "train":
            kind = key["kind"]
            trained = _training(key, job, f"{kind} models", kind, "RUN")
            kept = _stream("which samples a half keeps", setting, "half", "RUN", "subset")
            return [kept, trained] if kind == "half" else [trained]
        case "retrain_lds":
            drawn = _stream("which samples a subset keeps", setting, "lds", "SUBSET", "subset")
            if "kept" in key:
                drawn = _stream("which samples a subset keeps: the user's own file, nothing drawn")
            if key["lds"]["pairing"] == "drop":
                what = "models on subsets: the full run's own"
                return [drawn, _training(key, job, what, "lds", "RUN", like="full")]
            return [drawn, _training(key, job, "models on subsets", "lds", "SUBSET, RUN")]
        case "retrain_loo":
            if key["loo"]["pairing"] == "none":
                return [_training(key, job, "leave-one-out models", "loo", "POSITION, RUN")]
            if key["loo"].get("second") == "nudge":
                what = "second leave-one-out run: the first one's, its initial weights nudged"
                return [_stream(what, setting, "nudge", "SEED OF INIT")]
            what = "leave-one-out models: the full run's own"
            return [_training(key, job, what, "loo", "RUN", like="full")]
        case "retrain_pbrf":
            return [_stream("PBRF: nothing is drawn, it starts from the full runs' weights")]
        case "attribute" | "self_influence" | "damping":
            what = f"what {key['method']} draws itself, if anything"
            return [_stream(what, setting, "A NAME OF ITS OWN", "...")]
        case "evaluate_auc":
            return [
                _stream("halves of the training samples", setting, "selection", "auc"),
                _stream("bootstrap of samples", setting, "bootstrap", "auc", "HALF"),
            ]
        case "evaluate":
            metric = truth_of(key["metric"])
            return [
                _stream("halves of the test samples", setting, "selection"),
                _stream("bootstrap of retrainings", setting, "bootstrap", metric, "units", "COUNT"),
                _stream("bootstrap of test samples", setting, "bootstrap", metric, "tests", "HALF"),
            ]
    return []
