"""leaveout.workflow.costs, against torch's own modules, files really written, and naive sums."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from job_keys import prepare_key, train_key
from leaveout import attribution
from leaveout.config import Method, Scalar, Setting, catalogue, load_methods, load_setting
from leaveout.config.catalogue import DATASETS, Name
from leaveout.curvature.softmax_hvp import worthwhile
from leaveout.data.prepare import prepare
from leaveout.models.build import initialise
from leaveout.retraining import items
from leaveout.retraining import items as trainings
from leaveout.retraining.lds import retrain_lds
from leaveout.retraining.loo import retrain_loo
from leaveout.retraining.models import train_models
from leaveout.retraining.pbrf import retrain_pbrf
from leaveout.retraining.truth import merge_truth
from leaveout.scoring.self_influence import block_size
from leaveout.store import artefacts
from leaveout.store.contents import save
from leaveout.training import engine
from leaveout.workflow import costs
from leaveout.workflow.costs import HARDWARE, Layer, Workload

Make = Callable[..., Setting]
IMAGES: tuple[Name, ...] = ("mnist", "fashion_mnist", "digits")
LAYERS: tuple[Layer, ...] = ("full", "half", "lds", "loo", "pbrf")
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
    seen: list[int] = []

    def look(layer: nn.Module, given: Any, out: torch.Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        # each number of the output sums weight.numel() / units products
        products.append(2 * weight.numel() // len(weight) * out.numel())
        hidden.append(out.numel())
        seen.append(given[0].numel())
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
        last=seen[-1],
        dropped=sum(hidden[:-1]) if dropout else 0,
        widths=sum(widths) if linear else 0,
        stacked=linear,
    )
    assert found.train == 2 * sum(products) + sum(products[1:])


GPT: dict[str, Any] = {"name": "gpt", "vocabulary": 11, "context": 5, "layers": 3, "width": 12}


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ({"name": "resnet9", "width": 4}, (3, 8, 8)),
        (GPT, (5,)),
        ({**GPT, "bias": False, "tied": False, "dropout": 0.1}, (5,)),
    ],
    ids=str,
)
def test_larger_networks_have_torchs_sizes(
    make_setting: Make, model: dict[str, Any], shape: tuple[int, ...]
) -> None:
    setting = make_setting(model=model, dataset={"name": "mnist"})
    module = initialise(setting.model, shape, 11, 0).eval()
    products: list[int] = []

    def look(layer: nn.Module, given: Any, out: torch.Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        products.append(2 * weight.numel() // len(weight) * out.numel())

    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(look)
    module(torch.zeros(1, *shape, dtype=torch.long if model["name"] == "gpt" else None))
    found = costs.network(setting.model, shape, 11)
    assert found.parameters == sum(p.numel() for p in module.parameters())
    assert found.buffers == sum(b.numel() for b in module.buffers())
    attention = 3 * 4 * 5 * 5 * 12 if model["name"] == "gpt" else 0
    assert found.forward == sum(products) + attention
    assert not found.stacked
    assert bool(found.dropped) == bool(model.get("dropout"))


def test_only_what_is_trained_in_stacks_is_counted_so(make_setting: Make) -> None:
    def stacked(**changes: Any) -> bool:
        setting = make_setting(model={"name": "mlp", "hidden": (3,)}, **changes)
        return costs.workload(setting).network.stacked

    assert stacked()
    assert not stacked(objective={"name": "cross_entropy", "label_smoothing": 0.1})
    assert not stacked(recipe={"optimizer": "adamw"})
    tanh = make_setting(model={"name": "mlp", "hidden": (3,), "activation": "tanh"})
    assert not costs.workload(tanh).network.stacked


def test_iterations_are_steps_and_passes(make_setting: Make) -> None:
    recipe = {"epochs": None, "iterations": 10, "batch_size": 8, "optimizer": "adam"}
    work = costs.workload(make_setting(recipe=recipe))
    assert (work.iterations, work.epochs, work.optimizer_states) == (10, 3, 2)  # of 30 samples


def test_data_sets_have_the_shapes_of_their_files(make_setting: Make, tmp_path: Path) -> None:
    assert set(get_args(Name)) == set(DATASETS)
    for name in IMAGES:
        facts = DATASETS[name]
        setting = make_setting(dataset={"name": name, "classes": (4, 2)})
        save(tmp_path / name, prepare(setting))
        data = artefacts.read(tmp_path / name)
        inputs = data.tensors["train_inputs"]
        assert (1, *inputs.shape[1:]) == facts.shape  # one channel
        assert inputs.dtype.itemsize == facts.stored
        assert inputs.max() == facts.full_scale
        assert data.meta["n_classes"] == costs.workload(setting).network.outputs == 2
        assert costs.workload(make_setting(dataset={"name": name})).network.outputs == 10


@pytest.mark.parametrize("name", sorted(DATASETS.keys() - {"mnist", "fashion_mnist", "digits"}))
def test_tables_have_the_shapes_of_their_files(make_setting: Make, name: Name) -> None:
    facts = DATASETS[name]
    objective = {"name": "squared_error" if facts.classes is None else "cross_entropy"}
    setting = make_setting(dataset={"name": name}, objective=objective)
    found = prepare(setting)
    inputs = found.tensors["train_inputs"]
    assert isinstance(inputs, np.ndarray)
    assert inputs.shape[1:] == facts.shape
    assert inputs.dtype.itemsize == facts.stored
    assert found.facts["n_classes"] == facts.classes
    assert costs.workload(setting).network.outputs == (facts.classes or 1)


@pytest.mark.parametrize("model", MODELS[:3], ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("shared", [True, False])
def test_stacks_are_as_large_as_the_engine_makes_them(
    make_setting: Make, model: dict[str, Any], momentum: float, shared: bool
) -> None:
    for data in IMAGES:
        facts = DATASETS[data]
        setting = make_setting(
            dataset={"name": data}, model=model, recipe={"momentum": momentum, "batch_size": 70}
        )
        module = initialise(setting.model, facts.shape, 10, 0)
        made = engine._cached_size(module, torch.zeros(facts.shape), setting.recipe, shared)
        assert costs.stack_size(costs.workload(setting), shared) == made


def test_nothing_of_the_machine_is_looked_at() -> None:
    allowed = {"__future__", "itertools", "math", "dataclasses", "functools", "typing"}
    for path in Path(costs.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        imported = {
            name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
        }
        ours = {name for name in imported if name and name.startswith("leaveout.")}
        assert imported - ours <= allowed
        assert {name for name in ours if not name.startswith("leaveout.workflow.costs.")} <= {
            "leaveout.config",
            "leaveout.config.catalogue",
            "leaveout.config.subset_file",
            "leaveout.retraining.items",
        }
        # of math only what is exact; a logarithm may differ in its last bit between machines
        used = {
            n.attr
            for n in ast.walk(tree)
            if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "math"
        }
        assert used <= {"prod"}
    assert set(re.findall(r"(?m)^from (\S+)", Path(catalogue.__file__).read_text())) <= allowed


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


def test_a_point_of_pbrf_takes_its_passes_over_the_training_samples(make_setting: Make) -> None:
    once = costs.proximal_seconds(work(n_test=0, pbrf_passes=1))
    assert costs.proximal_seconds(work(n_test=0, pbrf_passes=7)) == pytest.approx(7 * once)
    assert costs.proximal_seconds(work(n_test=0, pbrf_passes=1, n_train=3000)) == (
        pytest.approx(3 * once)
    )
    found = [
        costs.workload(make_setting(pbrf={"solver": solver, "steps": 30})).pbrf_passes
        for solver in ("newton_cg", "sgd", "adam")
    ]
    assert found == [costs.PASSES, 30, 30]


# chunks


SECONDS = [1e-4, 0.02, 0.3, 1.0, 7.0, 29.0, 100.0, 299.0, 300.0, 1200.0, 3000.0]


@pytest.mark.parametrize("seconds", SECONDS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_proposed_chunk_takes_5_to_12_minutes_or_holds_the_most(
    seconds: float, layer: Layer
) -> None:
    most = costs.MOST[layer]
    size = costs.timed_size(seconds, most)
    assert size in costs.SIZES
    assert size <= most
    assert size == most or size * seconds >= 300
    assert size == 1 or size * seconds <= 2.5 * 300  # what the next smaller size falls short of


def test_round_numbers_leave_no_partial_chunk() -> None:
    assert set(costs.MOST.values()) <= set(costs.SIZES)
    for size in costs.SIZES:
        assert all(total % size == 0 for total in range(size, 5 * size, max(50, size)))
    for size in costs.SIZES[: costs.SIZES.index(50) + 1]:
        assert {part for total in (50, 100, 150, 500) for part in items.cut(total, size)} == {size}


@pytest.mark.parametrize("count", [1, 2, 3, 49, 50, 51, 100, 101, 5000])
@pytest.mark.parametrize("size", [1, 2, 7, 50, 1000])
def test_chunks_are_whole_but_for_the_last(count: int, size: int) -> None:
    cut = items.cut(count, size)
    assert sum(cut) == count
    assert set(cut[:-1]) <= {size}
    assert 0 < cut[-1] <= size


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("forward", [15680.0, 1e7, 1e9])
def test_more_items_or_runs_only_add_chunks(layer: Layer, forward: float) -> None:
    net = costs.Network(inputs=784, outputs=10, parameters=7850, forward=forward)
    of = work(network=net, full=30, half=70, lds=130, lds_runs=2, loo=(1300, 130), pbrf=(1300, 130))
    more = [
        dataclasses.replace(of, full=40, half=71, lds=5000, loo=(60_000, 130), pbrf=(60_000, 130)),
        dataclasses.replace(
            of, full=700, half=7000, lds=131, lds_runs=5, loo=(1300, 140), pbrf=(1300, 140)
        ),
    ]
    before = sizes(of, layer)
    whole = max(before.values())
    assert len(before) > 1
    for grown in more:
        after = sizes(grown, layer)
        assert before.keys() <= after.keys()
        assert all(after[name] == size for name, size in before.items() if size == whole)
        assert sum(after.values()) == sum(costs.parts(grown, layer)) > sum(before.values())


def sizes(of: Workload, layer: Layer) -> dict[str, int]:
    return {name: job.items for name, job in costs.chunk_jobs(of, layer).items()}


def test_no_chunk_reaches_from_one_run_into_the_next() -> None:
    of = work(lds=70, lds_runs=3, loo=(1010, 60))
    assert sizes(of, "loo") == {"0-0": 1000, "0-1": 10, "1-0": 60}
    cut = {"0-0": 50, "0-1": 20, "1-0": 50, "1-1": 20, "2-0": 50, "2-1": 20}
    assert sizes(of, "lds") == cut
    assert sizes(of, "full") == {"0": 10}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_stated_size_is_taken(layer: Layer, size: int) -> None:
    of = work(loo=(30, 5), pbrf=(30, 5), chunk=((layer, size),))
    assert costs.chunk_size(of, layer) == size
    assert sizes(of, layer) == items.chunk_sizes(layer, costs.parts(of, layer), size)
    assert max(sizes(of, layer).values()) == size


def test_hardware_moves_no_chunk_and_no_key(make_setting: Make) -> None:
    large: dict[str, Any] = {
        "dataset": {"name": "mnist", "n_train": 60_000},
        "model": {"name": "cnn", "channels": (32, 64)},
        "lds": {"subsets": 100},
    }
    for changes in ({}, large):
        cpu, gpu = (make_setting(hardware=name, **changes) for name in HARDWARE)
        for layer in LAYERS:
            assert trainings.chunks(cpu, layer) == trainings.chunks(gpu, layer)
            keys = [
                [train_key(s, layer, name) for name in trainings.chunks(s, layer)]
                for s in (cpu, gpu)
            ]
            assert keys[0] == keys[1]
    proposed = [costs.proposed_size(costs.workload(setting), "lds") for setting in (cpu, gpu)]
    assert proposed[0] < proposed[1]


# jobs


@pytest.mark.parametrize("layer", LAYERS)
def test_jobs_add_up_to_the_layer(make_setting: Make, layer: Layer) -> None:
    setting = make_setting(loo={"ids": "all", "replicate": 11})
    found = costs.chunk_jobs(costs.workload(setting), layer)
    cut = trainings.chunks(setting, layer)
    assert {name: job.items for name, job in found.items()} == {n: len(cut[n]) for n in cut}
    jobs = found.values()
    one = costs.item_seconds(costs.workload(setting), layer)
    models = sum(len(part) + (layer == "loo") for part in cut.values())
    start = HARDWARE["cpu"].start * len(found)
    assert sum(job.seconds for job in jobs) == pytest.approx(start + models * one)
    assert {name: costs.chunk_job(setting, layer, name) for name in cut} == found
    assert all(job.gpus == 0 for job in jobs)
    gpu = costs.chunk_jobs(costs.workload(make_setting(hardware="gpu")), layer)
    assert all(job.gpus == 1 for job in gpu.values())


@pytest.mark.parametrize("model", [MODELS[0], MODELS[2], MODELS[4]], ids=str)
def test_files_are_as_large_as_foretold(
    make_setting: Make, tmp_path: Path, model: dict[str, Any]
) -> None:
    setting = make_setting(
        model=model,
        dataset={"n_train": 900, "n_test": 700},
        loo={"ids": {"first": 12}},
        pbrf={"ids": {"first": 12}, "steps": 1, "tolerance": 0.5},
        recipe={"epochs": 2, "batch_size": 300},
    )
    of, data = costs.workload(setting), tmp_path / "data"
    save(data, prepare(setting), {"key": prepare_key(setting)})
    made: dict[Path, costs.Job] = {data: costs.data_job(of)}
    for layer in LAYERS:
        paths = []
        for name, job in costs.chunk_jobs(of, layer).items():
            path = tmp_path / f"{layer}{name}"
            if layer == "lds":
                save(path, retrain_lds(setting, name, data, "cpu"))
            elif layer == "loo":
                save(path, retrain_loo(setting, name, data, "cpu"))
            elif layer == "pbrf":
                base = tmp_path / f"full{trainings.base_chunk(setting, name)}"
                save(path, retrain_pbrf(setting, name, data, base, "cpu"))
            else:
                save(path, train_models(setting, layer, name, data, "cpu"))
            made[path] = job
            paths.append(path)
        if layer in ("lds", "loo", "pbrf"):
            save(tmp_path / f"truth-{layer}", merge_truth(setting, layer, paths))
            made[tmp_path / f"truth-{layer}"] = costs.truth_job(of, layer)
    for path, job in made.items():
        size = sum(a.nbytes for a in artefacts.read(path).tensors.values())
        assert job.disk == pytest.approx(size, rel=0.01), path.name


def scored(setting: Setting) -> Callable[..., costs.Job]:
    """Return a function of a method's name and hyper-parameters: its job on a setting."""

    def job(name: str, **params: Any) -> costs.Job:
        method = Method(name=name, module=f"leaveout.attribution.{name}", grid=({},))
        return costs.score_job(costs.workload(setting), method, params)

    return job


MNIST = {"name": "mnist", "n_train": 5000, "n_test": 500}
MLP = {"name": "mlp", "hidden": [128, 64], "dropout": 0.1}


def test_scores(make_setting: Make) -> None:
    job = scored(make_setting(dataset=MNIST))
    start = job("random").seconds
    one = job("grad_dot").seconds - start
    assert job("tracin", runs=3).seconds - start == pytest.approx(3 * one)
    assert job("tracin_cp").seconds - start == pytest.approx(2 * one)  # checkpoints
    assert job("mine") == job("grad_dot")
    deep = scored(make_setting(dataset=MNIST, model=MLP))
    assert deep("if_cg", iterations=20).seconds > 1.9 * deep("if_cg", iterations=10).seconds - start
    assert job("if_lissa", depth=200).seconds > 1.5 * job("if_lissa", depth=100).seconds - start
    assert job("if_arnoldi", iterations=50).seconds < job("if_cg", iterations=10).seconds
    # all training samples are right-hand sides, too
    plain, relative = (deep(n, base="if_lissa", depth=10) for n in ("if_lissa", "relatif"))
    assert relative.seconds - start > 10 * (plain.seconds - start)
    assert plain.memory < relative.memory < plain.memory + 6 * costs.HELD
    # two 7850 x 7850 matrices in float64
    assert job("if_explicit").memory - job("if_cg").memory > 0.5 * 2 * 8 * 7850**2
    assert job("label_match") == job("random")
    assert job("feature_cosine").seconds < one + start
    assert job("knn_shapley").memory > job("feature_cosine").memory + 4 * 5000 * 500
    assert job("rps_l2", l2=1e-4).seconds - start > 5 * (job("rps_l2", l2=1e-2).seconds - start)
    assert job("if_ekfac") == job("if_kfac")
    assert job("grad_dot").seconds < job("if_ekfac").seconds < job("if_cg").seconds
    assert deep("astra", iterations=20).seconds > 1.5 * deep("astra", iterations=10).seconds - start
    for name in ("random", "grad_dot", "if_cg", "if_explicit", "if_ekfac", "astra", "knn_shapley"):
        assert job(name).disk == 5000 * 500 * 4 + 8 * 5500


@pytest.mark.parametrize("name", ["mnist", "digits"])
@pytest.mark.parametrize("samples", [200, 1500, 5000])
@pytest.mark.parametrize("vectors", [1, 50, 300, 1500, 5000, 50_000])
def test_softmax_regression_takes_the_way_its_products_take(
    make_setting: Make, name: str, samples: int, vectors: int
) -> None:
    net = costs.workload(make_setting(dataset={"name": name})).network
    inputs = torch.zeros(samples, net.inputs)
    by_sample = vectors * 4.0 * samples * (net.inputs + 1) * 9
    found = costs.curvature_flops(net, samples, vectors)
    assert (found < by_sample) == worthwhile(inputs, 10, vectors)
    assert found <= by_sample
    more = costs.curvature_flops(net, samples, 2 * vectors) - found
    if worthwhile(inputs, 10, vectors):  # each vector meets the matrix of each pair of classes
        assert more == pytest.approx(vectors * 2.0 * 45 * (net.inputs + 1) ** 2)


def test_a_score_takes_no_more_than_a_method_may(make_setting: Make) -> None:
    free, bound = (
        scored(make_setting(dataset=MNIST, model=MLP, attribution=limits))
        for limits in ({"memory_gb": 1000, "hours": 1e6}, {"memory_gb": 1, "hours": 0.02})
    )
    assert free("if_explicit").memory > 16 * 109386**2
    assert free("if_explicit").seconds > 2 * 3600
    start = bound("random").seconds
    assert free("if_cg").seconds > 100
    assert bound("if_cg").seconds == pytest.approx(start + 0.02 * 3600, rel=1e-3)
    assert bound("if_cg").memory < free("if_cg").memory
    assert bound("if_cg").memory < 1.5e9


def test_what_is_refused_takes_no_time(make_setting: Make) -> None:
    """Methods that say what memory they will take, and the two that see how long an epoch takes."""
    large, small = (
        scored(make_setting(dataset=MNIST, model=MLP, attribution=limits))
        for limits in ({"memory_gb": 1000, "hours": 1e6}, {"memory_gb": 0.04, "hours": 1e6})
    )
    start = HARDWARE["cpu"].start
    for name in ("if_explicit", "if_arnoldi", "source", "magic", "dvemb"):
        assert large(name).seconds > start + 5, name
        assert small(name).seconds == start, name
        assert small(name).disk == 8 * 5500, name
    # one of three epochs back, where all three would take longer than 36 seconds
    late = scored(make_setting(dataset=MNIST, model=MLP, attribution={"hours": 0.01}))("magic")
    assert large("magic").seconds - start > 36
    share = (late.seconds - start) / (large("magic").seconds - start)
    assert share == pytest.approx(1 / 3, abs=0.01)
    # the model has no dropout
    plain = scored(make_setting(dataset=MNIST))
    assert plain("trak", masks=10).seconds == start < plain("trak").seconds


# CPU seconds of whole jobs, start included, and MB at the peak: one thread of an AMD EPYC, torch
# 2.13.0, November 2026; at the grids of config/methods.yaml
Measured = list[tuple[str, dict[str, Scalar], float, int | None]]
MEASURED: dict[str, Measured] = {
    "mnist_lr": [
        ("label_match", {}, 2.5, 275),
        ("grad_dot", {}, 3.4, 283),
        ("tracin_cp", {}, 3.4, 285),
        ("knn_shapley", {"k": 10}, 3.3, 555),
        ("rps_l2", {"l2": 1.0}, 2.5, 351),
        ("rps_l2", {"l2": 1e-4}, 4.9, 352),
        ("if_explicit", {"damping": 1e-2}, 23, 1326),
        ("if_cg", {"damping": 1e-2, "iterations": 10}, 8.2, 587),
        ("if_lissa", {"depth": 100, "batch": 100}, 8.2, 626),
        ("if_arnoldi", {"damping": 1e-2, "iterations": 50}, 4.1, 490),
        ("if_ekfac", {"damping": 1e-2}, 5, 425),
        ("astra", {"damping": 1e-2, "iterations": 10}, 13, 649),
        ("relatif", {"base": "if_ekfac", "norm": "l", "damping": 1e-2}, 8.9, 743),
        ("datainf", {"damping": 1e-2}, 4, 344),
        ("trak_10", {"models": 10, "projection": 512}, 5.4, 347),
        ("trak_50", {"models": 50, "projection": 512}, 12.3, 352),
        ("trak_dropout", {"models": 1, "projection": 512, "masks": 10}, 2.3, 265),
        ("grass", {"damping": 1e-2, "projection": 512}, 4, 417),
        ("source", {"segments": 3}, 15.5, 658),
        ("dvemb", {}, 37.5, 319),
    ],
    "mnist_mlp": [
        ("feature_cosine", {}, 3.2, 318),
        ("tracin_cp", {}, 2.5, 380),
        ("knn_shapley", {"k": 10}, 3.8, 506),
        ("rps_l2_labels", {"l2": 1e-4, "targets": "labels"}, 2.5, 358),
        ("if_explicit", {"damping": 1e-2}, 2.2, 301),
        ("if_cg", {"damping": 1e-5, "iterations": 10}, 157, 2123),
        ("if_lissa", {"depth": 100, "batch": 100}, 135, 1638),
        ("if_lissa", {"depth": 100, "batch": 10}, 108, 1508),
        ("if_arnoldi", {"damping": 1e-2, "iterations": 50}, 19.2, 603),
        ("if_kfac", {"damping": 1e-2}, 14.7, 667),
        ("astra", {"damping": 1e-3, "iterations": 10}, 202, 1742),
        ("relatif", {"base": "if_ekfac", "norm": "theta", "damping": 1e-2}, 61, 1244),
        ("datainf", {"damping": 1e-2}, 4.4, 381),
        ("logra", {"damping": 1e-3, "rank": 16}, 2.9, 391),
        ("factgrass", {"damping": 1e-3, "projection": 256, "factored": True}, 3.6, 388),
        ("source", {"segments": 3}, 103, 1879),
    ],
}
# the same of self-influence on the perceptron; None: not measured
MEASURED_SELF: Measured = [
    ("grad_dot", {}, 2.1, 341),
    ("tracin", {"runs": 10, "weight": 1e-3}, 2.3, 348),
    ("rps_l2", {"l2": 1e-2}, 2.1, None),
    ("if_explicit", {"damping": 1e-2}, 2, None),
    ("if_ekfac", {"damping": 1e-3}, 3.2, 484),
    ("if_kfac", {"damping": 1e-3}, 2.5, None),
    ("trak_10", {"models": 10, "projection": 512}, 13, 449),
    ("trak_50", {"models": 50, "projection": 512}, 59, 465),
    ("knn_shapley", {"k": 10}, 6.1, 632),
    ("logra", {"damping": 1e-2, "rank": 16}, 6.7, None),
    ("datainf", {"damping": 1e-2}, 14.9, None),
    ("if_arnoldi", {"damping": 5e-3, "iterations": 50}, 114.5, 671),
    ("magic", {"shuffle": False}, 40.4, 1102),  # which finds that it would take 1.2 hours
]


def config_setting(name: str) -> Setting:
    return load_setting(Path(__file__).parents[2] / "config" / "settings" / f"{name}.yaml")


@pytest.mark.parametrize("name", [*MEASURED, "mnist_mlp_noise10"])
def test_jobs_take_what_was_measured_within_a_factor_of_two(name: str) -> None:
    methods = load_methods(Path(__file__).parents[2] / "config" / "methods.yaml")
    work, job = costs.workload(config_setting(name)), costs.score_job
    if name.endswith("noise10"):
        job = costs.self_influence_job
    documented = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    for method, params, seconds, megabytes in MEASURED.get(name, MEASURED_SELF):
        found = job(work, methods[method], params)
        # of a short job most is its start, which is not the same on every day
        most = 2 if max(seconds, found.seconds) >= 10 else 3
        assert 1 / most < found.seconds / seconds < most, (method, params, found.seconds)
        # a job that asks for too little memory is killed; a margin of a half is put on top
        measured = megabytes or found.memory / 1e6
        assert 0.75 < found.memory / 1e6 / measured < 2, (method, params, found.memory)
        if f"| {name}, {method} |" in documented:
            time = f"| {seconds:g} | {found.seconds:.3g} |"
            assert (
                f"| {name}, {method} {time} {measured} | {found.memory / 1e6:.0f} |" in documented
            )


def test_methods_with_a_self_influence_of_their_own_are_known() -> None:
    folder = Path(attribution.__file__).parent
    names = {path.stem for path in folder.glob("*.py")} - {"self_influence"}
    own = {
        name
        for name in names
        if hasattr(importlib.import_module(f"leaveout.attribution.{name}"), "self_influence")
    }
    assert own == set(costs.OWN_SELF_INFLUENCE)


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


def test_self_influence_takes_what_its_blocks_of_scores_take() -> None:
    config = Path(__file__).parents[2] / "config"
    work = costs.workload(load_setting(config / "settings" / "mnist_lr_noise10.yaml"))
    method = Method(name="if_cg", module="leaveout.attribution.if_cg", grid=({},))
    params: dict[str, Scalar] = {"damping": 1e-2, "iterations": 10}
    start = HARDWARE["cpu"].start
    whole = costs.score_job(dataclasses.replace(work, n_test=work.n_train), method, params)
    found = costs.self_influence_job(work, method, params)
    assert found.seconds == pytest.approx(whole.seconds, rel=1e-12)  # one block holds all
    assert found.disk < whole.disk / 100
    large = dataclasses.replace(work, n_train=60_000, method_seconds=math.inf)
    size = block_size(60_000, work.network.parameters)
    block = costs.score_job(dataclasses.replace(large, n_test=size), method, params)
    found = costs.self_influence_job(large, method, params)
    assert found.memory == block.memory
    blocks = -(-60_000 // size)
    assert found.seconds - start == pytest.approx(blocks * (block.seconds - start), rel=1e-12)
    allowed = 1.01 * blocks * (block.seconds - start)
    for seconds, made in ((allowed, blocks), (allowed / 1.1, 1)):  # the first block says so
        bounded = dataclasses.replace(large, method_seconds=seconds)
        found = costs.self_influence_job(bounded, method, params)
        assert found.seconds - start == pytest.approx(made * (block.seconds - start), rel=1e-12)
