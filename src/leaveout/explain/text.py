"""An explanation in words: a tree for the terminal."""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import PurePath
from typing import Any

from leaveout.explain.chain import FOLLOWS

Entry = Mapping[str, Any]
WIDTH = 100
FEW = 3
"""More files of one folder than this are said in one line."""

UNITS = {
    "lds": "ground truth: {} subsets, {} each",
    "loo": "ground truth: {} samples left out, {} each",
    "pbrf": "ground truth: {} points, {} each",
    "auc": "{} flipped among them",
}
"""What a metric counts."""


def as_text(answer: Entry) -> str:
    """Return an explanation as text.

    Args:
        answer: What :func:`leaveout.explain.explain` returns.
    """
    lines = [f"{answer['table']}, row {answer['row']}: {answer['names']}", *_number(answer)]
    for title, part in (
        ("What it is", _what(answer)),
        ("Where it comes from", _tree(answer)),
        ("Seeds", _seeds(answer)),
        ("Code", _code(answer)),
        ("Machine and versions", _machine(answer)),
        ("Make it again", _remake(answer)),
        ("Verdict", _verdict(answer)),
    ):
        lines += ["", title, *(f"  {line}".rstrip() for line in part)]
    return "\n".join(lines) + "\n"


def _wrapped(text: str, indent: str = "", taken: int = 0) -> list[str]:
    return textwrap.wrap(
        text,
        max(40, WIDTH - 2 - taken),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _number(answer: Entry) -> list[str]:
    column, cells = answer["column"], answer["cells"]
    stem = column.removesuffix("value")
    line = f"{column} = {answer['cell']}"
    if column.endswith(("value", "ceiling")):
        low, high = (
            (f"{stem}ci_low", f"{stem}ci_high")
            if column.endswith("value")
            else (f"{column}_low", f"{column}_high")
        )
        if low in cells:
            line += f"   95% interval {cells[low]} to {cells[high]}"
        if column == "value" and "ceiling" in cells:
            line += f"   noise ceiling {cells['ceiling']}"
    return [line]


def _what(answer: Entry) -> Iterator[str]:
    for text in answer["says"]:
        yield from _wrapped(f"- {text}", "  ")
    if answer.get("source"):
        yield from _wrapped(f"- source: {answer['source']}", "  ")
    if choice := answer.get("choice"):
        yield from _wrapped(
            f"- hyper-parameters: {answer['chosen']}"
            + (
                f", one of {len(choice)}: {answer['chosen_by']}"
                if len(choice) > 1
                else ", no other"
            ),
            "  ",
        )
        if len(choice) > 1:
            wide = max(len(point["params"]) for point in choice)
            for point in choice:
                mark = "*" if point["params"] == answer["chosen"] else " "
                yield f"    {mark} {point['params']:{wide}}  {point['value']}"
    if why := answer.get("choice_unknown"):
        yield from _wrapped(f"- hyper-parameters: {answer['chosen']}; how chosen: {why}", "  ")
    if samples := answer.get("samples"):
        dropped = ", ".join(f"{n} {why}" for why, n in samples["dropped"].items())
        yield (
            f"- {samples['what']}: {samples['used']} of {samples['of']} used"
            + (f", dropped: {dropped}" if dropped else "")
        )
        runs = "1 run" if samples["runs"] == 1 else f"{samples['runs']} runs"
        what = UNITS.get(answer["metric"], "{} units of truth, {} each")
        counts = [what.format(samples["units"], runs)]
        if samples["unconverged"]:
            pbrf = answer["metric"] == "pbrf"
            why = "that did not converge" if pbrf else "with a run that diverged"
            counts.append(f"left out: {samples['unconverged']} {why}")
        yield from _wrapped(f"- {'; '.join(counts)}", "  ")
        if samples["not_computed"]:
            yield from _wrapped(f"- not computed: {samples['not_computed']}", "  ")
    if reported := answer.get("reported"):
        yield f"- in the metric's file, unrounded: {reported['value']}"


def _state(entry: Entry) -> str:
    if entry["faults"]:
        return "BROKEN"
    if entry["source"]:
        return "a source: no job makes it"
    if entry["stale"] == FOLLOWS:
        return "stale: made from what is"
    if entry["stale"]:
        return f"stale: {entry['stale']}"
    return "good" if entry["there"] else "what was read is what today's code makes"


def _bracket(entry: Entry) -> str:
    return "; ".join(filter(None, (_state(entry), entry["origin"]))).join("[]")


def _tree(answer: Entry) -> Iterator[str]:
    files = {entry["path"]: entry for entry in answer["files"]}
    seen: set[str] = set()
    yield from _branch(answer["table"], files, seen, "", "")
    yield ""
    yield "good: here, and what today's code and configuration make. stale: they make another."


def _branch(
    path: str, files: Mapping[str, Entry], seen: set[str], lead: str, below: str
) -> Iterator[str]:
    entry = files[path]
    again = path in seen
    seen.add(path)
    chosen = "  <- chosen" if entry.get("chosen") else ""
    if again:
        yield f"{lead}{path}  (see above){chosen}"
        return
    yield f"{lead}{path}{chosen}"
    groups = _groups(entry["inputs"], files)
    bar = f"{below}{'│' if groups else ' '}    "
    for line in [_bracket(entry), *_detail(entry)]:
        yield from (f"{bar}{part}" for part in _wrapped(line, "  ", len(bar)))
    yield from _twigs(groups, files, seen, below)


def _twigs(
    groups: Sequence[Sequence[str]], files: Mapping[str, Entry], seen: set[str], below: str
) -> Iterator[str]:
    for k, group in enumerate(groups):
        last = k == len(groups) - 1
        lead, under = f"{below}{'└─ ' if last else '├─ '}", f"{below}{'   ' if last else '│  '}"
        if len(group) == 1:
            yield from _branch(group[0], files, seen, lead, under)
        else:
            yield from _many(group, files, seen, lead, under)


def _groups(paths: Sequence[str], files: Mapping[str, Entry]) -> list[list[str]]:
    """Put files of a folder together where they are many; the chosen one and broken ones stay."""
    folders: dict[str, list[str]] = {}
    for path in paths:
        alone = files[path].get("chosen") or files[path]["faults"]
        folders.setdefault(path if alone else str(PurePath(path).parent), []).append(path)
    found = []
    for group in folders.values():
        found += [group] if len(group) > FEW else [[path] for path in group]
    return sorted(found, key=lambda group: len(group) > 1)


def _many(
    group: Sequence[str], files: Mapping[str, Entry], seen: set[str], lead: str, below: str
) -> Iterator[str]:
    entries = [files[path] for path in group]
    new = [path for path in group if path not in seen]
    first, last = PurePath(group[0]), PurePath(group[-1])
    yield f"{lead}{first.parent}: {len(group)} files, {first.stem} to {last.stem}"
    if not new:
        yield f"{below}    (see above)"
        return
    seen.update(group)
    inputs = list(dict.fromkeys(name for entry in entries for name in entry["inputs"]))
    groups = _groups(inputs, files)
    bar = f"{below}{'│' if groups else ' '}    "
    for state, count in Counter(map(_bracket, entries)).items():
        yield from (f"{bar}{line}" for line in _wrapped(f"{count} {state}", "  ", len(bar)))
    for line in _detail(entries[0], many=True):
        yield from (f"{bar}{part}" for part in _wrapped(line, "  ", len(bar)))
    yield from _twigs(groups, files, seen, below)


def _detail(entry: Entry, many: bool = False) -> Iterator[str]:
    """Say what a file's key and header hold."""
    for fault in entry["faults"]:
        yield f"! {fault}"
    key = entry["key"]
    if key is None:
        return
    words = [f"{key['step']}, version {key['code']}" if "code" in key else key["step"]]
    if "method_code" in key:
        words.append(f"method {key['method']}, version {key['method_code']}")
    if "count" in key and not many:
        words.append(f"{key['count']} trainings")
    if "bootstrap" in key:
        words.append(f"{key['bootstrap']} bootstrap draws")
    if commit := entry["made"].get("commit"):
        words.append(f"commit {commit[:7]}{'-dirty' * commit.endswith('-dirty')}")
    if entry["sha256"] and not many:
        words.append(f"sha256 {entry['sha256'][:12]}")
    yield "; ".join(words)
    layer = key.get("kind") or key["step"].removeprefix("retrain_")
    if isinstance(key.get(layer), Mapping):  # the part of the key that is about its own layer
        model = ", ".join(str(value) for value in key["model"].values())
        recipe, section = (
            ", ".join(f"{name} {value}" for name, value in key[part].items() if value)
            for part in ("recipe", layer)
        )
        yield "; ".join(filter(None, (model, recipe, section)))
    if data := entry.get("data"):
        wanted = key["dataset"]
        source = data["source"]
        whence = "; ".join(filter(None, (source["source"], source["revision"])))
        yield (
            f"{source['name']} ({whence}), the first "
            f"{wanted['n_train']} training and {wanted['n_test']} test samples"
            + (f" of the classes {wanted['classes']}" if "classes" in wanted else "")
        )
        for name, sha256 in source["sha256"].items():
            yield f"{name}: sha256 {sha256[:16]}"


def _seeds(answer: Entry) -> Iterator[str]:
    seeds = answer["seeds"]
    if seeds["root"] is None:
        yield "nothing is drawn"
        return
    yield f"root seed {seeds['root']}; each stream's seed is a function of it and an identity:"
    for stream in seeds["streams"]:
        identity = stream["identity"]
        shape = identity if isinstance(identity, str) else f"({', '.join(map(str, identity))})"
        text = f"- {stream['what']}" + (f": {shape}" if identity else "")
        if "first" in stream:
            first = ", ".join(map(str, stream["first"]))
            text += f"; torch_seed({seeds['root']}, {first}) = {stream['first_seed']}"
        yield from _wrapped(text, "  ")


def _code(answer: Entry) -> Iterator[str]:
    wide = max((len(entry["step"]) for entry in answer["code"]), default=0)
    for entry in answer["code"]:
        then, today = entry["code"], entry["today"]
        known = f"today {today}" if today else "not here today"
        known = "the same today" if today == then else known
        edited = ", edited since it was confirmed" if entry["edited"] else ""
        commits = ", ".join(commit[:7] for commit in entry["commits"])
        line = f"{entry['step']:{wide}}  version {then}  {known}{edited}"
        yield from _wrapped(line + (f"; commit {commits}" if commits else ""), "  ")


def _machine(answer: Entry) -> Iterator[str]:
    for made in answer["machine"]["made"]:
        versions = ", ".join(f"{k} {v}" for k, v in made.items() if k not in ("device", "files"))
        yield from _wrapped(f"{made['files']} files: {made['device']}; {versions}", "  ")
    if cost := answer["machine"]["cost"]:
        yield from _wrapped(
            f"the chosen scores: {cost['wall_s']} s, {cost['peak_rss_mb']} MB at most, "
            f"{cost['device']} ({cost['cpu']}), {cost['threads']} thread(s)",
            "  ",
        )
    yield "Metrics and tables have no machine on record: it decides nothing of them but time."


def _remake(answer: Entry) -> Iterator[str]:
    yield answer["remake"]["command"]
    if answer["config_note"]:
        yield from _wrapped(f"({answer['config_note']})")
    yield "or, step by step:"
    steps = answer["remake"]["steps"]
    for (verb, *_), group in groupby(steps, key=lambda line: line.split()[1:4]):
        lines = list(group)
        for line in lines[: 1 if len(lines) > FEW else FEW]:
            yield f"  {_short(line)}"
        if len(lines) > FEW:
            yield f"  and {len(lines) - 1} more of `leaveout {verb}`: --json has them"


def _short(line: str) -> str:
    """Leave out most of a long list of files."""
    words = shlex.split(line)
    shown: list[str] = []
    files = 0
    for word in words:
        files = files + 1 if "/" in word else 0
        if files <= FEW:
            shown.append(shlex.quote(word))
        elif shown[-1] != "...":
            shown.append("...")
    return " ".join(shown)


def _verdict(answer: Entry) -> Iterator[str]:
    files = answer["files"]
    here = [entry for entry in files if entry["there"]]
    absent = len(files) - len(here)
    if answer["broken"]:
        for text in answer["broken"]:
            yield from _wrapped(f"BROKEN: {text}", "  ")
    else:
        yield from _wrapped(
            f"The chain is whole: {len(here)} of {len(files)} files are here and are the ones that "
            "the number was made from"
            + (f"; {absent} are not here, and could not be looked at." if absent else "."),
        )
    yield from _absent(files)
    stale = [entry for entry in files if entry["stale"] and entry["stale"] != FOLLOWS]
    if stale:
        yield "Stale: today's code or configuration would make others of these, and what follows:"
        for why, paths in _by_reason(stale).items():
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            yield from _wrapped(f"- {paths[0]}{more}: {why}", "  ")
        yield "For the very number, check out the commits under Code."
    else:
        yield "Fresh: today's code and configuration make the same files."
    if check := answer.get("check"):
        yield from _checked(answer, check)


def _absent(files: Sequence[Entry]) -> Iterator[str]:
    """Say how files that are not here could be had."""
    gone = [entry for entry in files if not entry["there"]]
    for published, verb in ((True, "dvc pull"), (False, "snakemake")):
        paths = [entry["path"] for entry in gone if entry["published"] is published]
        if paths:
            more = f" (and so on: {len(paths)} files)" if len(paths) > 1 else ""
            yield f"To have them here: {verb} {shlex.quote(paths[0])}{more}"


def _by_reason(stale: Sequence[Entry]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in stale:
        found.setdefault(entry["stale"], []).append(entry["path"])
    return found


def _checked(answer: Entry, check: Entry) -> Iterator[str]:
    if not check["done"]:
        yield from _wrapped(f"Not computed again: {check['why']}", "  ")
        return
    if check["same"]:
        same = check["columns"] - len(check["differs"])
        text = f"Computed again: {check['again']}, the same"
        text += (
            f" ({same} of the row's {check['columns']} columns are)"
            if check["differs"]
            else (f", as are all {check['columns']} columns of the row")
        )
    else:
        text = f"Computed again: {check['again']}, and the table has {answer['cell']}"
    yield from _wrapped(text + (f"; {check['note']}" if check["note"] else ""), "  ")
    for name, both in check["differs"].items():
        yield f"- {name}: {both['table']} in the table, {both['again']} again"
