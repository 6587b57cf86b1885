"""bfloat16 changes a model by its own rounding; float32 is never anything less."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from leaveout.config import CNN, MLP, Linear, Model, Recipe
from leaveout.models.build import initialise
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.samples import Samples
from leaveout.training.engine import Path, select_device, train
from leaveout.training.trials import Trial

SHAPE, CLASSES, N = (1, 6, 6), 4, 48
HALF = Recipe(
    learning_rate=0.02,
    epochs=2,
    batch_size=12,
    momentum=0.5,
    weight_decay=0.01,
    precision="bfloat16",
)
FULL = HALF.model_copy(update={"precision": "float32"})
MODELS: dict[str, Model] = {
    "linear": Linear(name="linear"),
    "mlp": MLP(name="mlp", hidden=(16, 12), dropout=0.2),
    "cnn": CNN(name="cnn", channels=(3, 4), batch_norm=True),
}
ROUNDING = 2.0**-9  # half a unit in the last of 8 significant bits


def problem(device: str = "cpu") -> Samples:
    rng = np.random.default_rng(1)
    inputs = torch.from_numpy(rng.standard_normal((N, *SHAPE)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(CLASSES, size=N))
    return Samples(inputs, labels, CROSS_ENTROPY).to(device)


def trials(paired: bool) -> list[Trial]:
    if paired:
        return [Trial(2, ("a",), removed=k) for k in range(3)]
    kept = [np.sort(np.random.default_rng(k).choice(N, 24, replace=False)) for k in range(3)]
    return [Trial(2, ("a", k), kept=chosen) for k, chosen in enumerate(kept)]


def weights(
    model: Model, recipe: Recipe, path: Path, paired: bool, device: str = "cpu"
) -> dict[str, Tensor]:
    samples = problem(device)
    found = [
        {**t.snapshots[-1], "outputs": t.outputs(samples.inputs)}
        for t in train(
            lambda seed: initialise(model, SHAPE, CLASSES, seed),
            trials(paired),
            samples,
            recipe,
            path=path,
        )
    ]
    return {name: torch.cat([part[name] for part in found]).cpu() for name in found[0]}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the distance of two sets of outputs, relative to their spread over classes."""
    spread = b["outputs"] - b["outputs"].mean(2, keepdim=True)
    return float((a["outputs"] - b["outputs"]).norm() / spread.norm())


def paths(name: str) -> list[Path]:
    return ["functional", "reference"] if name == "cnn" else ["stack", "functional", "reference"]


# What a dozen roundings a step amount to over a few steps, in units of ROUNDING. A rounding can
# also turn a ReLU on or off, or (values tie in bfloat16) make a pooling choose another pixel, and
# then passes a whole gradient elsewhere: the conv net has more places for that, and batch norms
# that spread it. A path that calculated something else would be off by hundreds.
BOUND = {"linear": 8, "mlp": 8, "cnn": 64}


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_it_differs_from_float32_by_its_rounding_and_no_more(
    name: str, paired: bool, device: str
) -> None:
    expected = weights(MODELS[name], FULL, "reference", paired)
    reference = weights(MODELS[name], HALF, "reference", paired)
    for path in paths(name):
        found = weights(MODELS[name], HALF, path, paired, device)
        assert all(value.dtype != torch.bfloat16 for value in found.values())
        assert 0.1 < distance(found, expected) / ROUNDING < BOUND[name]
        assert distance(found, reference) / ROUNDING < BOUND[name]


@pytest.mark.parametrize("name", MODELS)
def test_one_gradient_is_the_same_by_all_paths_to_a_few_roundings(name: str) -> None:
    # one step at rate 1 from equal weights: the difference of the weights is that of the gradients
    one = {"epochs": 1, "batch_size": N, "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    half, full = (recipe.model_copy(update=one) for recipe in (HALF, FULL))
    still = full.model_copy(update={"learning_rate": 1e-30})
    start, exact = (weights(MODELS[name], recipe, "reference", True) for recipe in (still, full))
    reference = weights(MODELS[name], half, "reference", True)
    for path in paths(name)[:-1]:
        found = weights(MODELS[name], half, path, True)
        for key in (k for k in start if k.endswith("weight")):
            unit = ROUNDING * (exact[key] - start[key]).norm()
            assert (found[key] - reference[key]).norm() < BOUND[name] * unit, (path, key)
            # both see the same ReLUs flip, and float32 does not
            assert 0.1 * unit < (found[key] - exact[key]).norm() < 64 * unit, (path, key)


@pytest.mark.parametrize("path", ["stack", "functional", "reference"])
def test_weights_and_updates_stay_in_float32(path: Path) -> None:
    # steps far smaller than bfloat16 can add to these weights still add up
    slow = HALF.model_copy(update={"learning_rate": 1e-6, "momentum": 0.0, "weight_decay": 0.0})
    still = slow.model_copy(update={"learning_rate": 1e-30})
    far = slow.model_copy(update={"precision": "float32"})
    model = MODELS["linear"]
    start = weights(model, still, path, paired=True)["linear.weight"]
    moved = weights(model, slow, path, paired=True)["linear.weight"] - start
    expected = weights(model, far, path, paired=True)["linear.weight"] - start
    assert 0 < moved.abs().max() < ROUNDING * start.abs().median() / 10
    # a few roundings of the gradients; adding to the weights rounds by their 6e-8 / 2 each step
    assert (moved - expected).norm() < 8 * ROUNDING * expected.norm() + 1e-6 * start.norm()


@pytest.fixture(name="tf32_on")
def _tf32_on() -> Iterator[None]:
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


@pytest.mark.usefixtures("tf32_on")
def test_cuda_means_float32_even_where_tf32_was_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select_device("cuda") == torch.device("cuda")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_products_on_a_gpu_are_float32() -> None:
    where = select_device("cuda")
    left, right = torch.rand(2, 512, 512, generator=torch.Generator().manual_seed(0)).to(where)
    exact = left.double() @ right.double()
    # 512 products: TF32, with 11 bits, would be off by some 1e-4 of the result
    assert ((left @ right).double() - exact).abs().max() < 1e-6 * exact.abs().max()
