"""leaveout.workflow.forecast and `leaveout plan`: totals, bounds, proposals, documentation."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from leaveout.cli import program as cli
from leaveout.config import ConfigError, Setting, load_methods, load_setting
from leaveout.config.damping import damped
from leaveout.retraining import items as trainings
from leaveout.workflow import costs, forecast

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
PUBLISHED = CONFIG / "workloads" / "published.yaml"
LARGE = CONFIG / "workloads" / "large.yaml"
METHODS = load_methods(CONFIG / "methods.yaml")
SETTINGS = sorted(path.stem for path in (CONFIG / "settings").glob("*.yaml"))

Main = Callable[..., str]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """Return a function that runs `leaveout plan`: what it printed."""
    monkeypatch.setattr(cli, "CONFIG", CONFIG)

    def run(*arguments: str, status: int = 0) -> str:
        assert cli.main(["plan", *arguments]) == status
        printed = capsys.readouterr()
        return printed.err if status else printed.out

    return run


def layer(rows: list[forecast.Row], name: str) -> forecast.Row:
    (found,) = [row for row in rows if row.layer == name]
    return found


def test_rows_are_the_jobs_of_the_workflow() -> None:
    setting = load_setting(CONFIG / "settings" / "mnist_lr.yaml")
    rows = forecast.setting_rows(setting, METHODS.values())
    jobs = {row.layer: len(row.jobs) for row in rows}
    assert jobs == {
        "data": 1,
        "full": len(trainings.chunks(setting, "full")),
        "half": len(trainings.chunks(setting, "half")),
        "lds": len(trainings.chunks(setting, "lds")),
        "loo": len(trainings.chunks(setting, "loo")),
        "truth": 2,
        "scores": sum(len(method.grid) for method in METHODS.values()),
        "damping": sum(damped(method) for method in METHODS.values()),
    }
    no_halves = [method for method in METHODS.values() if method.needs == ("full",)]
    with_pbrf = forecast.setting_rows(setting, no_halves, ["pbrf"])
    assert [row.layer for row in with_pbrf] == ["data", "full", "pbrf", "truth", "scores"]
    assert len(layer(with_pbrf, "pbrf").jobs) == len(trainings.chunks(setting, "pbrf"))
    halves = METHODS["grad_dot"].model_copy(update={"needs": ("full", "half")})
    flipped = setting.model_copy(
        update={"dataset": setting.dataset.model_copy(update={"label_noise": {"fraction": 0.1}})}
    )
    for asked, expected in (
        (["auc"], {"self_influence"}),
        (["lds", "auc"], {"scores", "self_influence"}),
        (["lds"], {"scores"}),
    ):
        layers = {row.layer for row in forecast.setting_rows(flipped, METHODS.values(), asked)}
        assert layers & {"scores", "self_influence"} == expected
    clean = {row.layer for row in forecast.setting_rows(setting, METHODS.values(), ["auc"])}
    assert clean == {"data", "full", "half"}
    with_halves = forecast.setting_rows(setting, [halves], ["lds"])
    assert [row.layer for row in with_halves] == ["data", "full", "half", "lds", "truth", "scores"]
    assert len(layer(with_halves, "truth").jobs) == 1


def test_a_row_sums_its_jobs() -> None:
    jobs = [
        costs.Job(seconds=60, memory=3e6, disk=1e6, gpus=0),
        costs.Job(seconds=7200, memory=2e6, disk=5e6, gpus=1),
        costs.Job(seconds=1800, memory=1e6, disk=0, gpus=1),
    ]
    assert forecast.Row("s", "lds", jobs).values() == {
        "setting": "s",
        "layer": "lds",
        "jobs": 3,
        "minutes_shortest": 1,
        "minutes_longest": 120,
        "core_hours": 60 / 3600,
        "gpu_hours": 2.5,
        "gpus_per_job": 1,
        "memory_mb": 3,
        "disk_mb": 6,
    }


def test_the_table_and_the_csv_show_the_same(main: Main) -> None:
    arguments = ["--settings", "mnist_lr", "digits_mlp"]
    rows = list(csv.DictReader(io.StringIO(main(*arguments, "--csv"))))
    assert list(rows[0]) == list(forecast.COLUMNS)
    assert [r["setting"] for r in rows] == ["mnist_lr"] * 10 + ["digits_mlp"] * 9
    text = main(*arguments).splitlines()
    header = ["setting", "layer", "jobs", "min a job", "core-h", "GPU-h", "GPUs", "memory", "disk"]
    assert re.split(r" {2,}", text[0]) == header
    assert len(text) == 1 + 1 + len(rows) + 1 + 1
    for line, row in zip(text[2:], rows, strict=False):
        cells = re.split(r" {2,}", line)
        assert cells[:3] == [row["setting"], row["layer"], row["jobs"]]
    total = re.split(r" {2,}", text[-1])
    assert total[:2] == ["total", str(sum(int(r["jobs"]) for r in rows))]
    assert float(total[3]) == pytest.approx(sum(float(r["core_hours"]) for r in rows), abs=0.006)
    assert float(total[4]) == 0
    longest = max(float(r["minutes_longest"]) for r in rows)
    # two decimals below 1, one from there on
    within = 0.006 if longest < 0.995 else 0.051
    assert float(total[2].split("-")[1]) == pytest.approx(longest, abs=within)


def test_all_settings_and_those_of_the_configuration(main: Main, tmp_path: Path) -> None:
    shown = csv.DictReader(io.StringIO(main("--settings", "all", "--csv")))
    assert sorted({row["setting"] for row in shown}) == SETTINGS
    assert "mnist_lr" in main()
    file = tmp_path / "own.yaml"
    file.write_text("settings: [digits_lr]\nmethods: [random]\nmetrics: [lds]\n")
    rows = list(csv.DictReader(io.StringIO(main("--configfile", str(file), "--csv"))))
    assert [r["layer"] for r in rows] == ["data", "full", "lds", "truth", "scores"]
    assert rows[-1]["jobs"] == "1"


def test_removals_are_one_job_for_each_method_that_names_them() -> None:
    setting, methods = load_setting(CONFIG / "settings" / "digits_lr.yaml"), [*METHODS.values()]
    rows = {
        len(names): {row.layer: row for row in forecast.setting_rows(setting, methods, m, names)}
        for m in [("brittleness",)]
        for names in (["random"], ["random", "grad_dot"])
    }
    assert "truth" not in rows[1]
    asked = setting.brittleness
    assert asked is not None
    trained = asked.n_test * len(asked.k) * asked.runs
    for count, found in rows.items():
        assert [job.items for job in found["brittleness"].jobs] == [trained] * count
    (job,) = rows[1]["brittleness"].jobs
    one = costs.training_seconds(costs.workload(setting))
    assert job.seconds == pytest.approx(costs.CPU.start + trained * one)
    none = load_setting(CONFIG / "settings" / "digits_mlp.yaml")
    layers = {row.layer for row in forecast.setting_rows(none, methods, ("brittleness",))}
    assert "scores" in layers
    assert "brittleness" not in layers


def test_faults_are_named(main: Main, tmp_path: Path) -> None:
    assert "did you mean 'mnist_lr'" in main("--settings", "mnist_rl", status=1)
    assert "gone.yaml: no such file" in main("--configfile", "gone.yaml", status=1)
    text = PUBLISHED.read_text()
    for old, new, said in (
        ("n_test: 500", "n_tset: 500", "mnist_lr: .*n_tset"),
        ("  projection: 512\n", "", "mnist_lr: 'projection'"),
        ("modules: 2", "modulos: 2", "mnist_lr: .*modulos"),
        ("hardware: cpu", "hardware: tpu", "mnist_lr.hardware: cpu or gpu, not 'tpu'"),
    ):
        (tmp_path / "w.yaml").write_text(text.replace(old, new, 1))
        with pytest.raises(ConfigError, match=rf"w\.yaml: {said}"):
            forecast.workload_rows(tmp_path / "w.yaml")


def test_what_is_too_much_is_said(main: Main) -> None:
    warned = main("--workloads", str(LARGE)).splitlines()[-1]
    assert warned.startswith("warning: jobs of more than 60 minutes: imagenet_resnet50 data")
    many = [forecast.Row("s", "lds", [costs.Job(60, 1, 1)] * 2001)]
    assert "warning: 2001 jobs" in forecast.as_text(many)
    assert "warning" not in forecast.as_text([forecast.Row("s", "lds", many[0].jobs[1:])])


@pytest.mark.parametrize("path", sorted((CONFIG / "settings").glob("*.yaml")), ids=lambda p: p.stem)
def test_no_other_size_is_proposed_for_what_ships(path: Path) -> None:
    rows = forecast.setting_rows(load_setting(path), METHODS.values(), ["lds", "loo", "pbrf"])
    assert not any(row.proposal for row in rows)


def test_another_chunk_size_is_proposed_where_the_stated_one_is_far_off(
    make_setting: Callable[..., Setting],
) -> None:
    # 43 s a model on half of the samples
    slow = {
        "dataset": {"n_train": 1000},
        "recipe": {"epochs": 500_000, "batch_size": 100},
        "lds": {"subsets": 200, "runs": 2, "chunk": 200},
    }

    def proposals(**changes: object) -> list[str]:
        setting = make_setting(**changes)
        text = forecast.as_text(forecast.setting_rows(setting, [], ["lds"]))
        return [line for line in text.splitlines() if line.startswith("proposed: ")]

    work = costs.workload(make_setting(**slow))
    one, start = costs.item_seconds(work, "lds"), costs.HARDWARE["cpu"].start
    size = costs.timed_size(one, costs.MOST["lds"])
    minutes = (start + size * one) / 60
    assert 200 * one > 3600
    assert 5 <= minutes < 60
    assert proposals(**slow) == [
        f"proposed: tiny: lds.chunk: {size} ({minutes:.1f} min a job, {400 // size} jobs)"
    ]
    short = {"lds": {"subsets": 100, "runs": 2, "chunk": 2}}
    minutes = (start + 50 * costs.item_seconds(costs.workload(make_setting(**short)), "lds")) / 60
    assert proposals(**short) == [
        f"proposed: tiny: lds.chunk: 50 ({minutes:.2f} min a job, 4 jobs)"
    ]
    few = {"lds": {"subsets": 20, "runs": 2, "chunk": 2}}
    assert len(forecast.setting_rows(make_setting(**few), [], ["lds"])[2].jobs) == 20
    assert proposals(**few) == []
    # a model that takes longer than an hour is a job, however it is cut
    slow["recipe"] = {"epochs": 50_000_000, "batch_size": 100}
    assert proposals(**slow | {"full": {"chunk": 1}, "lds": {"chunk": 1}}) == []


def test_it_reads_the_configuration_and_no_more() -> None:
    code = (
        "import sys; from leaveout import cli; cli.main(['plan', '--settings', 'all']);"
        "print(*sorted(m for m in sys.modules if '.' not in m))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "numpy", "pandas", "scipy", "sklearn", "snakemake", "matplotlib"}


# the published settings


def test_the_published_settings_are_within_bounds() -> None:
    rows = forecast.workload_rows(PUBLISHED)
    assert len({row.setting for row in rows}) == 6
    assert sum(len(row.jobs) for row in rows) <= 2000
    for row in rows:
        minutes = [job.seconds / 60 for job in row.jobs]
        assert max(minutes) <= 60, row
        if row.layer in (*costs.LAYERS, "features") and sum(minutes) > 25:
            # the second run of leave-one-out and PBRF is a layer of its own
            parts = 2 if row.layer in ("loo", "pbrf") else 1
            assert sorted(minutes)[parts - 1] >= 5, row
    assert "warning" not in forecast.as_text(rows)


@pytest.mark.parametrize("name", ["mnist_lr", "mnist_mlp"])
def test_what_the_package_can_train_has_the_costs_of_its_setting(
    name: str, make_setting: Callable[..., Setting]
) -> None:
    found = {work.name: work for work, _, _ in forecast.load_workloads(PUBLISHED)}[name]
    if name == "mnist_lr":
        stated = costs.workload(load_setting(CONFIG / "settings" / "mnist_lr.yaml"))
        assert found == replace(stated, chunk=())  # it states no sizes: they are the proposed ones
        for layer in ("full", "half", "lds", "loo", "pbrf"):
            assert costs.chunk_size(found, layer) == costs.chunk_size(stated, layer)
        return
    hidden = {"name": "mlp", "hidden": (128, 64), "dropout": 0.1}
    model = make_setting(model=hidden).model
    assert found.network == costs.network(model, (1, 28, 28), 10)


def test_features_are_one_pass_of_every_model() -> None:
    (work, projection, _) = forecast.load_workloads(PUBLISHED)[2]
    jobs = costs.feature_jobs(work, projection)
    assert sum(job.items for job in jobs) == 60
    on = costs.HARDWARE["gpu"]
    flops = 60 * 5500 * (3 * 1.413e9 + 2 * 4.83e6 * 512)
    seconds = sum(job.seconds for job in jobs) - on.start * len(jobs)
    assert seconds == pytest.approx(flops / (0.3 * 19.5e12))
    assert sum(job.disk for job in jobs) == 60 * 5500 * 512 * 4


# the documentation


@pytest.mark.parametrize("file", [PUBLISHED, LARGE], ids=lambda path: path.stem)
def test_the_documented_plan_is_the_one_that_comes_out(file: Path) -> None:
    text = (ROOT / "docs" / "scale.md").read_text()
    command = f"$ leaveout plan --workloads config/workloads/{file.name}\n"
    shown = text.split(command)[1].split("```")[0]
    assert shown == forecast.as_text(forecast.workload_rows(file))


def test_the_documented_estimates_are_the_ones_that_come_out() -> None:
    """The table of docs/scale.md: every estimate as computed now, and within a factor of two."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from estimates import CASES
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    number = r" ([\d.e-]+) \|"
    row = rf"^\| (.+?) \|{number}{number} [\d.]+ \|{number}{number}"
    rows = re.findall(row, (ROOT / "docs" / "scale.md").read_text(), re.M)
    assert {name for name, *_ in rows} == set(CASES)
    for name, lds, lds_estimate, loo, loo_estimate in rows:
        work = costs.workload(Setting.model_validate({"name": "estimates", **CASES[name][0]}))
        found = [costs.training_seconds(work, 0.5), costs.training_seconds(work, shared=True)]
        assert [f"{seconds:.2g}" for seconds in found] == [lds_estimate, loo_estimate], name
        for estimate, measured in zip(found, (lds, loo), strict=True):
            assert 0.5 < estimate / float(measured) < 2, name
