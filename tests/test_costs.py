"""leaveout.costs, against torch's own modules, files really written, and naive sums."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from leaveout import artefacts, costs, plan
from leaveout.config import Method, Setting
from leaveout.costs import HARDWARE, Layer, Workload
from leaveout.data import catalogue
from leaveout.data.catalogue import DATASETS, Name
from leaveout.data.prepare import prepare
from leaveout.models.build import initialise
from leaveout.retraining.lds import retrain_lds
from leaveout.retraining.loo import retrain_loo
from leaveout.retraining.models import train_models
from leaveout.retraining.truth import merge_truth
from leaveout.training import engine

Make = Callable[..., Setting]
LAYERS: tuple[Layer, ...] = ("full", "half", "lds", "loo")
MODELS: list[dict[str, Any]] = [
    {"name": "linear"},
    {"name": "mlp", "hidden": (7,)},
    {"name": "mlp", "hidden": (9, 5), "dropout": 0.2},
    {"name": "cnn", "channels": (3, 5)},
    {"name": "cnn", "channels": (4,), "batch_norm": True},
]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_network_is_what_torch_builds(make_setting: Make, model: dict[str, Any]) -> None:
    setting = make_setting(model=model)
    module = initialise(setting.model, (1, 8, 8), 10, 0)
    assert isinstance(module, nn.Sequential)
    products: list[int] = []
    hidden: list[int] = []
    widths: list[int] = []

    def look(layer: nn.Module, given: Any, out: torch.Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        # each number of the output sums weight.numel() / units products
        products.append(2 * weight.numel() // len(weight) * out.numel())
        hidden.append(out.numel())
        widths.append(given[0].numel() + out.numel())

    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(look)
    module.eval()(torch.zeros(1, 1, 8, 8))
    found = costs.network(setting.model, (1, 8, 8), 10)
    dropout = isinstance(module[-2], nn.Dropout)
    linear = model["name"] != "cnn"
    assert found == costs.Network(
        inputs=64,
        outputs=10,
        parameters=sum(p.numel() for p in module.parameters()),
        buffers=sum(b.numel() for b in module.buffers()),
        forward=sum(products),
        first=products[0],
        activations=sum(hidden[:-1]),
        modules=len(module),
        dropped=sum(hidden[:-1]) if dropout else 0,
        widths=sum(widths) if linear else 0,
        stacked=linear,
    )
    assert found.train == 2 * sum(products) + sum(products[1:])


def test_data_sets_have_the_shapes_of_their_files(make_setting: Make, tmp_path: Path) -> None:
    assert set(get_args(Name)) == set(DATASETS)
    for name, facts in DATASETS.items():
        setting = make_setting(dataset={"name": name, "classes": (4, 2)})
        prepare(setting, tmp_path / name)
        data = artefacts.read(tmp_path / name)
        inputs = data.tensors["train_inputs"]
        assert (1, *inputs.shape[1:]) == facts.shape  # one channel
        assert inputs.dtype.itemsize == facts.stored
        assert inputs.max() == facts.full_scale
        assert data.meta["n_classes"] == costs.workload(setting).network.outputs == 2
        assert costs.workload(make_setting(dataset={"name": name})).network.outputs == 10


@pytest.mark.parametrize("model", MODELS[:3], ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("shared", [True, False])
def test_stacks_are_as_large_as_the_engine_makes_them(
    make_setting: Make, model: dict[str, Any], momentum: float, shared: bool
) -> None:
    for data, facts in DATASETS.items():
        setting = make_setting(
            dataset={"name": data}, model=model, recipe={"momentum": momentum, "batch_size": 70}
        )
        module = initialise(setting.model, facts.shape, 10, 0)
        made = engine._cached_size(module, torch.zeros(facts.shape), setting.recipe, shared)
        assert costs.stack_size(costs.workload(setting), shared) == made


def test_nothing_of_the_machine_is_looked_at() -> None:
    tree = ast.parse(Path(costs.__file__).read_text())
    imported = {
        name
        for node in tree.body  # what stands under TYPE_CHECKING is for the type checker
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    allowed = {"__future__", "itertools", "math", "dataclasses", "functools", "typing"}
    assert imported == {*allowed, "leaveout.data.catalogue"}  # which imports no more than this
    assert set(re.findall(r"(?m)^from (\S+)", Path(catalogue.__file__).read_text())) <= allowed
    # of math only what is exact; a logarithm may differ in its last bit between machines
    used = {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "math"
    }
    assert used == {"prod"}


# time


def work(**changes: Any) -> Workload:
    net = costs.Network(inputs=784, outputs=10, parameters=7850, forward=15680.0, first=15680.0)
    base = Workload("w", "cpu", net, n_train=1000, n_test=100, epochs=4, batch_size=10)
    return dataclasses.replace(base, **changes)


def test_time_grows_as_training_does() -> None:
    once = costs.training_seconds(work(n_test=0))
    assert costs.training_seconds(work(n_test=0, epochs=8)) == pytest.approx(2 * once)
    assert costs.training_seconds(work(n_test=0, n_train=3000)) == pytest.approx(3 * once)
    assert costs.training_seconds(work(n_test=0), ratio=0.5) == pytest.approx(once / 2)
    # 400 steps of 10 samples are 4 epochs of 1000, and as many on a half
    steps = work(n_test=0, epochs=0, iterations=400)
    assert costs.training_seconds(steps) == pytest.approx(once)
    assert costs.training_seconds(steps, ratio=0.5) == pytest.approx(once)
    assert costs.training_seconds(work()) > once
    for n in (991, 1000):  # the last batch is short
        assert costs.training_seconds(work(n_train=n, n_test=0)) > once * 0.99


def test_the_time_of_one_model_term_by_term() -> None:
    net = costs.Network(
        inputs=5, outputs=3, parameters=40, forward=100.0, first=60.0, activations=7, modules=4
    )
    on = HARDWARE["cpu"]
    plain = work(network=net, n_test=0, n_train=25, epochs=2, batch_size=10, optimizer_states=1)
    per_sample = 240 / on.other + 3 * on.output + 7 * on.activation
    per_step = 4 * on.module + 40 * on.momentum
    assert costs.training_seconds(plain) == pytest.approx(50 * per_sample + 6 * per_step)
    net = dataclasses.replace(net, stacked=True, dropped=7)
    stacked = dataclasses.replace(plain, network=net)
    every = 240 / on.linear + 3 * on.output + 7 * on.hidden
    per_sample = every + 5 * on.gathered + 7 * on.dropped
    per_step = on.step / 128 + 40 * on.momentum + on.drawn
    assert costs.training_seconds(stacked) == pytest.approx(50 * per_sample + 6 * per_step)
    per_sample = every + 7 * on.dropped / 128
    per_step = on.step / 128 + 40 * on.momentum + on.drawn / 128
    paired = costs.training_seconds(stacked, shared=True)
    assert paired == pytest.approx(50 * per_sample + 6 * per_step)


# chunks


COUNTS = [1, 2, 3, 7, 8, 9, 50, 100, 101, 127, 128, 129, 500, 5000, 60_000]
SECONDS = [1e-4, 0.02, 0.3, 1.0, 7.0, 29.0, 100.0, 310.0, 700.0, 1199.0, 1200.0, 1201.0, 3000.0]


@pytest.mark.parametrize("seconds", SECONDS)
@pytest.mark.parametrize("count", COUNTS)
def test_chunks_by_time(count: int, seconds: float) -> None:
    cut = costs.cut((count,), seconds)
    assert sum(cut) == count
    assert min(cut) > 0
    size = cut[0]
    times = np.array(cut) * seconds
    if count * seconds >= 1200:  # 5 to 60 minutes, or what one item takes
        assert times.min() >= min(300, seconds)
        assert times.max() <= max(25 * 60, seconds)
    else:
        assert len(cut) <= 8
        assert times.min() >= 30 or len(cut) == 1
    if len(cut) > 1:
        assert size & (size - 1) == 0  # a power of two
        assert set(cut[:-1]) == {size}
        assert times[-1] < times[0] + (300 if count * seconds >= 1200 else 30)


@pytest.mark.parametrize("seconds", [0.5, 45.0, 500.0])
def test_more_items_only_add_chunks_where_training_takes_long(seconds: float) -> None:
    count = int(8 * 1200 / seconds) + 1
    before = costs.cut((count,), seconds)
    for more in (1, 2, count // 7, count, 9 * count):
        after = costs.cut((count + more,), seconds)
        # all but the last chunk, which may have been a short one
        assert after[: len(before) - 1] == before[:-1]


def test_a_few_more_items_of_a_short_layer_move_nothing() -> None:
    before = costs.cut((100,), 5.0)
    assert before == [16] * 5 + [20]  # 500 s
    assert costs.cut((120,), 5.0)[:5] == before[:5]
    # passing a power of two does: the price of few jobs
    assert costs.cut((130,), 5.0)[0] == 32


def test_a_short_rest_joins_the_chunk_before_it() -> None:
    assert costs.cut((131,), 60.0) == [16] * 7 + [19]  # 3 minutes are too few
    assert costs.cut((133,), 60.0) == [16] * 8 + [5]
    assert costs.cut((68,), 1.0) == [32, 36]  # as are 4 s
    assert costs.cut((100,), 1.0) == [32, 32, 36]
    assert costs.cut((5,), 1.0, fixed=2) == [2, 2, 1]  # a fixed size is kept to


def test_no_chunk_reaches_from_one_run_into_the_next() -> None:
    for counts in ((100, 10), (5000, 500), (60, 60)):
        for seconds in (0.1, 10.0, 300.0):
            cut = costs.cut(counts, seconds)
            assert counts[0] in np.cumsum(cut)
            assert sum(cut) == sum(counts)


def test_hardware_moves_chunks_and_nothing_else(make_setting: Make) -> None:
    large: dict[str, Any] = {
        "dataset": {"name": "mnist", "n_train": 60_000},
        "model": {"name": "cnn", "channels": (32, 64)},
        "lds": {"subsets": 100, "chunk": "auto"},
    }
    cpu, gpu = (make_setting(hardware=name, **large) for name in HARDWARE)
    assert len(plan.chunks(cpu, "lds")) > len(plan.chunks(gpu, "lds"))
    fixed = [make_setting(hardware=name) for name in HARDWARE]
    for layer in LAYERS:
        keys = [
            [plan.train_key(s, layer, n) for n in range(len(plan.chunks(s, layer)))] for s in fixed
        ]
        assert keys[0] == keys[1]


# jobs


@pytest.mark.parametrize("layer", LAYERS)
def test_jobs_add_up_to_the_layer(make_setting: Make, layer: Layer) -> None:
    setting = make_setting(loo={"ids": "all", "replicate": 11})
    found = costs.chunk_jobs(costs.workload(setting), layer)
    assert [job.items for job in found] == [len(part) for part in plan.chunks(setting, layer)]
    one = costs.item_seconds(costs.workload(setting), layer)
    models = sum(len(part) + (layer == "loo") for part in plan.chunks(setting, layer))
    start = HARDWARE["cpu"].start * len(found)
    assert sum(job.seconds for job in found) == pytest.approx(start + models * one)
    assert [costs.chunk_job(setting, layer, n) for n in range(len(found))] == found
    assert all(job.gpus == 0 for job in found)
    gpu = costs.chunk_jobs(costs.workload(make_setting(hardware="gpu")), layer)
    assert all(job.gpus == 1 for job in gpu)


@pytest.mark.parametrize("model", [MODELS[0], MODELS[2], MODELS[4]], ids=str)
def test_files_are_as_large_as_foretold(
    make_setting: Make, tmp_path: Path, model: dict[str, Any]
) -> None:
    setting = make_setting(
        model=model,
        dataset={"n_train": 900, "n_test": 700},
        loo={"ids": {"first": 12}},
        recipe={"epochs": 2, "batch_size": 300},
    )
    of, data = costs.workload(setting), tmp_path / "data"
    prepare(setting, data)
    made: dict[Path, costs.Job] = {data: costs.data_job(of)}
    for layer in LAYERS:
        paths = []
        for number, job in enumerate(costs.chunk_jobs(of, layer)):
            path = tmp_path / f"{layer}{number}"
            if layer == "lds":
                retrain_lds(setting, number, data, path, "cpu")
            elif layer == "loo":
                retrain_loo(setting, number, data, path, "cpu")
            else:
                train_models(setting, layer, number, data, path, "cpu")
            made[path] = job
            paths.append(path)
        if layer in ("lds", "loo"):
            merge_truth(setting, layer, paths, tmp_path / f"truth-{layer}")
            made[tmp_path / f"truth-{layer}"] = costs.truth_job(of, layer)
    for path, job in made.items():
        size = sum(a.nbytes for a in artefacts.read(path).tensors.values())
        assert job.disk == pytest.approx(size, rel=0.01), path.name


def test_scores(make_setting: Make) -> None:
    of = costs.workload(make_setting(dataset={"name": "mnist", "n_train": 5000, "n_test": 500}))

    def job(name: str, **params: Any) -> costs.Job:
        method = Method(name=name, module=f"leaveout.attribution.{name}", grid=({},))
        return costs.score_job(of, method, params)

    start = job("random").seconds
    one = job("grad_dot").seconds - start
    assert job("tracin", runs=3).seconds - start == pytest.approx(3 * one)
    assert job("tracin_cp").seconds - start == pytest.approx(2 * one)  # checkpoints
    assert job("mine") == job("grad_dot")
    assert job("if_cg", iterations=20).seconds > 1.9 * job("if_cg", iterations=10).seconds - start
    # two 7850 x 7850 matrices in float64
    assert job("if_explicit").memory - job("if_cg").memory > 0.5 * 2 * 8 * 7850**2
    for name in ("random", "grad_dot", "if_cg", "if_explicit"):
        assert job(name).disk == 5000 * 500 * 4 + 8 * 5500


def test_the_gradients_of_a_large_net_are_formed_again_for_each_test_sample(
    make_setting: Make,
) -> None:
    method = Method(name="grad_dot", module="leaveout.attribution.grad_dot", grid=({},))
    net = costs.Network(inputs=10, outputs=2, parameters=30_000_000, forward=1e9)
    large = work(network=net)
    passes = 1000 * 100 + 100
    products = 2.0 * 1000 * 100 * 30_000_000
    on = HARDWARE["cpu"]
    expected = on.start + (passes * 3e9 + products) / on.other
    assert costs.score_job(large, method, {}).seconds == pytest.approx(expected, rel=1e-4)
