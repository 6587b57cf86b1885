"""Commands that an explanation names are those that rules run; and what a fresh clone is told."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from leaveout.cli import program as cli
from leaveout.workflow.steps import load_plan

Run = Callable[..., str]


def test_commands_are_those_of_the_rules(
    fresh: Path,
    snakemake: Callable[..., tuple[int, str]],
    edit: Callable[[Path, str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, setting = fresh / "config/config.yaml", fresh / "config/settings/tiny.yaml"
    edit(config, "[lds, loo, pbrf]", "[lds, loo, pbrf, auc]\ncompare: [if_explicit, grad_dot]")
    edit(config, "if_explicit]", "if_explicit, trak_1]")
    edit(setting, "n_test: 12", "n_test: 12, label_noise: {fraction: 0.1}")
    with (fresh / "config/methods.yaml").open("a") as file:
        file.write("trak_1: {module: leaveout.attribution.trak, models: 1, projection: 8}\n")
    status, output = snakemake(fresh, "--dry-run", "--printshellcmds")
    assert status == 0, output
    start = "Shell command: "
    shown = [line.removeprefix(start) for line in output.splitlines() if line.startswith(start)]
    shown = [line for line in shown if line != "None"]  # rules that only name others
    parser = cli.parser()

    def read(line: str) -> dict[str, object]:
        words = shlex.split(line.partition(" 2> ")[0])
        assert words[0] == "leaveout"
        found = vars(parser.parse_args(words[1:]))
        # which run a job belongs to, and how many threads it has, decide nothing
        return {k: str(v) for k, v in found.items() if k not in ("run", "plan", "threads")}

    by_rules = {str(words["out"]): words for words in map(read, shown)}
    monkeypatch.chdir(fresh)
    jobs = load_plan(yaml.safe_load(config.read_text()), "config").jobs
    assert len(jobs) > 40
    assert by_rules.keys() == {job.makes[0] for job in jobs}
    for job in jobs:
        assert read(job.line) == by_rules[job.makes[0]]


def test_a_fresh_clone_after_a_pull(tmp_path: Path, modest: Path, finished: Path, run: Run) -> None:
    """All is explained but scores and chunks, which are not published; and nothing is written."""
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(modest), str(clone))
    assert "no such file" in run(
        clone, "leaveout", "explain", "results/lds_table.csv", "--row", "1", status=1
    )
    run(clone, "dvc", "pull", "--quiet")
    before = {path: path.stat() for path in clone.rglob("*") if ".git" not in path.parts}
    ask = ("leaveout", "explain", "results/lds_table.csv", "--row", "method=if_explicit")
    answer = json.loads(run(clone, *ask, "--json"))
    files = {file["path"]: file for file in answer["files"]}
    assert answer["broken"] == []
    assert all(file["stale"] is None for file in files.values())
    origins = {path: file["origin"] for path, file in files.items()}
    here = {path for path, file in files.items() if file["there"]}
    assert {origins[path] for path in here} == {"as published (dvc pull)"}
    assert {origins[path] for path in origins if path not in here} == {
        "not here: left out of what is published"
    }
    assert "results/tiny/truth/lds.safetensors" in here
    assert "results/tiny/retrain/lds/0-0.safetensors" in files.keys() - here
    text = run(clone, *ask)
    assert "The chain is whole" in text
    assert "Fresh: " in text
    after = {path: path.stat() for path in clone.rglob("*") if ".git" not in path.parts}
    same = [
        path for path, status in before.items() if status.st_mtime_ns == after[path].st_mtime_ns
    ]
    changed = {str(p.relative_to(clone)) for p in before.keys() - set(same)}
    assert not {path for path in changed if "__pycache__" not in path and "src" not in path}
    # where the jobs ran, they are on record
    answer = json.loads(run(finished, *ask, "--check", "--json"))
    assert {file["origin"] for file in answer["files"]} == {"made here"}
    assert answer["check"]["same"]
    assert answer["check"]["differs"] == {}
