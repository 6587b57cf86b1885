"""A problem of one's own: truths, scores, and what a stopped or changed run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leaveout import Benchmark, Recipe
from leaveout.doors import benchmark
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.store import artefacts

N, M, WIDTH = 20, 6, 3
RECIPE = Recipe(optimizer="adamw", learning_rate=0.05, epochs=4, batch_size=5, schedule="linear")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 1))


X, U = drawn(N, WIDTH), drawn(M, WIDTH, seed=1)
Y, V = X.sum(1, keepdim=True).sin(), U.sum(1, keepdim=True).sin()


def make(folder: Path, **changes: Any) -> Benchmark:
    given: dict[str, Any] = {"train": (X, Y), "test": (U, V), "loss": nn.MSELoss()} | changes
    train, test, loss = (given.pop(name) for name in ("train", "test", "loss"))
    maker, recipe = given.pop("build", build), given.pop("recipe", RECIPE)
    return Benchmark(train, test, maker, loss, recipe, folder=folder, **given)


def test_targets_are_the_losses_of_models_trained_on_each_subset(tmp_path: Path) -> None:
    """One step of full batches: each model's target follows from its initial weights."""

    def zero() -> nn.Module:
        model = nn.Linear(WIDTH, 1)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        return model

    recipe = Recipe(learning_rate=0.1, epochs=1, batch_size=20)
    truth = make(tmp_path, build=zero, recipe=recipe).lds(subsets=4, runs=1)
    read = artefacts.read(truth.path, "lds")
    for mask, target in zip(read.tensors["mask"], read.tensors["target"][:, 0], strict=True):
        kept = torch.from_numpy(mask.astype(bool))
        assert kept.sum() == N // 2
        # minus the rate times the gradient of the mean of (w x + b - y)^2 at 0
        weight = 0.2 * (Y[kept] * X[kept]).mean(0)
        bias = 0.2 * Y[kept].mean()
        expected = ((U @ weight + bias)[:, None] - V).square()[:, 0]
        np.testing.assert_allclose(target, expected.numpy(), rtol=1e-5)


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(tmp_path / "whole").lds(subsets=25, runs=1)
    real, calls = benchmark.lds_chunk, []

    def stops(*arguments: Any) -> Any:
        calls.append(arguments[1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(benchmark, "lds_chunk", stops)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "parts").lds(subsets=25, runs=1)
    again = make(tmp_path / "parts").lds(subsets=25, runs=1)
    assert calls == ["0-0", "0-1", "0-1", "0-2"]  # the first part is not made again
    one, other = (artefacts.read(t.path, "lds").tensors for t in (whole, again))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    calls.clear()
    make(tmp_path / "parts").lds(subsets=25, runs=1)
    assert calls == []
    make(tmp_path / "parts").lds(subsets=30, runs=1)
    assert calls == ["0-2"]  # the last part grows, whole ones stay


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    truth = make(tmp_path).loo(ids=[1, 5, 7], replicate=0)
    before = artefacts.read(truth.path, "loo").tensors["target"]
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-20])
    after = artefacts.read(make(tmp_path).loo(ids=[1, 5, 7], replicate=0).path, "loo")
    assert np.array_equal(after.tensors["target"], before)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"train": (X + 1, Y)}, "train"),
        ({"test": (U, V + 1)}, "test"),
        ({"loss": nn.L1Loss()}, "loss"),
        ({"build": lambda: nn.Linear(WIDTH, 1)}, "model"),
        ({"recipe": RECIPE.model_copy(update={"epochs": 5})}, "recipe"),
        ({"seed": 1}, "seed"),
        ({"version": "2"}, "version"),
    ],
)
def test_another_problem_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    make(tmp_path)
    with pytest.raises(LeaveoutError, match=f"holds another problem: .*{word}"):
        make(tmp_path, **changes)


def test_magic_foretells_leaving_one_out_of_adamw(tmp_path: Path) -> None:
    """Through AdamW, its schedule and dropout: the derivative of the very training."""
    bench = make(tmp_path)
    truth = bench.loo(replicate=0)
    magic = bench.score("magic", shuffle=True)
    result = magic.against(truth, bootstrap=50)
    assert result.value > 0.9
    assert result.low <= result.value <= result.high
    other = bench.score("random").against(truth, bootstrap=50)
    assert abs(other.value) < 0.5


def test_pbrf_and_what_it_needs(tmp_path: Path) -> None:
    bench = make(tmp_path / "mse")
    truth = bench.pbrf(ids=[0, 3, 6, 9, 12, 15], damping=0.1)
    scores = bench.score("if_explicit", damping=0.1, curvature="gauss_newton")
    assert scores.against(truth, bootstrap=50).value > 0.9
    with pytest.raises(NotComputableError, match="L1Loss has none"):
        make(tmp_path / "l1", loss=nn.L1Loss()).pbrf(ids=[0, 3, 6], damping=0.1)


def test_no_model_judges_itself_and_other_samples_are_named(tmp_path: Path) -> None:
    bench = make(tmp_path / "one")
    other = make(tmp_path / "two", train=(X[:15], Y[:15]))
    with pytest.raises(LeaveoutError, match="no subset of"):
        bench.score("grad_dot").against(other.lds(subsets=4, runs=1))


def test_the_generator_is_left_as_it_was(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    make(tmp_path).lds(subsets=3, runs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_values_that_are_wrong_are_named(tmp_path: Path) -> None:
    bench = make(tmp_path)
    with pytest.raises(LeaveoutError, match=r"LDS: subsets.*greater than 2"):
        bench.lds(subsets=2)
    with pytest.raises(LeaveoutError, match=r"Setting: .*outside the training slice 0\.\.19"):
        bench.loo(ids=[50])
    with pytest.raises(LeaveoutError, match="if_explicit: give damping"):
        bench.score("if_explicit")


def test_models_are_kept_where_asked(tmp_path: Path) -> None:
    """They give the targets; without them nothing but targets is written."""
    bench = make(tmp_path)
    first = bench.lds(subsets=12, runs=1)
    assert not [*tmp_path.rglob("models/*")]
    bench.lds(subsets=12, runs=1, keep_models=True)
    truth = bench.loo({"first": 3}, replicate=1, keep_models=True)
    read = artefacts.read(first.path, "lds").tensors
    with torch.random.fork_rng():
        module, row = build().eval(), 0
    for path in sorted((tmp_path / "lds").rglob("models/*.safetensors")):
        kept = artefacts.read(path, "models")
        names, masks = [*module.state_dict()], kept.tensors["mask"]
        for number, mask in enumerate(masks):
            state = {n: torch.tensor(kept.tensors[f"state.{n}"][number, 0]) for n in names}
            module.load_state_dict(state)
            assert (mask == read["mask"][row]).all()
            with torch.no_grad():
                losses = (module(U) - V).square()[:, 0]
            np.testing.assert_allclose(losses, read["target"][row, 0], rtol=1e-5)
            row += 1
    assert row == 12
    path, _ = sorted((tmp_path / "loo").rglob("models/*.safetensors"))
    kept = artefacts.read(path, "models")
    assert kept.tensors["mask"].sum(axis=1).tolist() == [N, N - 1, N - 1, N - 1]
    assert artefacts.read(truth.path, "loo").tensors["target"].shape == (3, 1, M)
    assert [*path.parents[1].glob("*.safetensors")]
    # one that was lost is made again, with the same numbers
    before = path.read_bytes()
    path.unlink()
    bench.loo({"first": 3}, replicate=1, keep_models=True)
    assert path.read_bytes() == before
