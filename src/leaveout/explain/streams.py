"""Seeds: from which identity each random stream behind a number is derived.

A stream's seed is a function of the setting's root seed and the stream's identity
(:mod:`leaveout.seeds`); what the identity is, the key of each job decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from leaveout.seeds import torch_seed


def _stream(what: str, *identity: str | int, **more: Any) -> dict[str, Any]:
    return {"what": what, "identity": list(identity), **more}


def _training(root: int, what: str, like: str, first: tuple[str | int, ...]) -> dict[str, Any]:
    """Return the streams of trainings: their common shape, and the first one's seed."""
    seed = torch_seed(root, *first, "init")
    text = f"({like}, STREAM), STREAM being init, dropout, or order and EPOCH"
    return {"what": what, "identity": text, "first": [*first, "init"], "first_seed": seed}


def streams(keys: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the root seed and the streams of the jobs with these keys.

    Args:
        keys: The keys of the chain; what they say twice is said once.

    Returns:
        ``root``, None if no key names one, and ``streams``: each with ``what`` it is for and its
        ``identity``; for trainings the identity's shape, and the ``first`` one's with its seed.
    """
    found: dict[str, dict[str, Any]] = {}
    roots = []
    for key in keys:
        if "seed" in key:
            roots.append(int(key["seed"]))
        for stream in _of(key):
            found.setdefault(stream["what"], stream)
    return {"root": roots[0] if roots else None, "streams": list(found.values())}


def _of(key: Mapping[str, Any]) -> list[dict[str, Any]]:
    step, setting, root = key["step"], key.get("setting", ""), int(key.get("seed", 0))
    item, run = (key.get("items") or [[0, 0]])[0]
    match step:
        case "prepare":
            noise = key["dataset"].get("label_noise")
            flips = _stream("which labels are flipped", key["dataset"]["name"], "label_noise")
            return [flips] if noise else []
        case "full":
            return [_training(root, "full models", f"{setting}, full, RUN", (setting, step, run))]
        case "half":
            return [
                _stream("which samples a half keeps", setting, "half", "RUN", "subset"),
                _training(root, "half models", f"{setting}, half, RUN", (setting, step, run)),
            ]
        case "lds":
            drawn = _stream("which samples a subset keeps", setting, "lds", "SUBSET", "subset")
            if "kept" in key["lds"]:
                drawn = _stream("which samples a subset keeps: the user's own file, nothing drawn")
            if key["lds"]["pairing"] == "drop":
                like, first = f"{setting}, full, RUN", (setting, "full", run)
                return [
                    drawn,
                    _training(root, "models on subsets: the full run's own", like, first),
                ]
            like = f"{setting}, lds, SUBSET, RUN"
            return [
                drawn,
                _training(root, "models on subsets", like, (setting, "lds", item, run)),
            ]
        case "loo":
            if key["loo"]["pairing"] == "none":
                like, own = f"{setting}, loo, POSITION, RUN", (setting, "loo", item, run)
                return [_training(root, "leave-one-out models", like, own)]
            if key["loo"].get("second") == "nudge":
                what = "second leave-one-out run: the first one's, its initial weights nudged"
                return [_stream(what, setting, "nudge", "SEED OF INIT")]
            like, first = f"{setting}, full, RUN", (setting, "full", run)
            return [_training(root, "leave-one-out models: the full run's own", like, first)]
        case "pbrf":
            return [_stream("PBRF: nothing is drawn, it starts from the full runs' weights")]
        case "attribute" | "self_influence" | "damping":
            what = f"what {key['method']} draws itself, if anything"
            return [_stream(what, setting, "A NAME OF ITS OWN", "...")]
        case "auc":
            return [
                _stream("halves of the training samples", setting, "selection", "auc"),
                _stream("bootstrap of samples", setting, "bootstrap", "auc", "HALF"),
            ]
        case "evaluate":
            metric = key["metric"]
            return [
                _stream("halves of the test samples", setting, "selection"),
                _stream("bootstrap of retrainings", setting, "bootstrap", metric, "units", "COUNT"),
                _stream("bootstrap of test samples", setting, "bootstrap", metric, "tests", "HALF"),
            ]
    return []
