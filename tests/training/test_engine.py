"""The three paths give the same models, however they are cut into stacks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leaveout.config import CNN, MLP, Linear, Model, Recipe
from leaveout.errors import LeaveoutError
from leaveout.models.build import initialise
from leaveout.problem.objectives import CROSS_ENTROPY, cross_entropy
from leaveout.problem.samples import Samples
from leaveout.training import engine, functional, memory, stack
from leaveout.training.dropout import MaskStreams
from leaveout.training.engine import Path, choose_path, select_device, train
from leaveout.training.trials import Trial

SHAPE, CLASSES = (1, 4, 4), 3
PLAIN = Recipe(learning_rate=0.1, epochs=2, batch_size=8)
HEAVY = Recipe(learning_rate=0.05, epochs=2, batch_size=8, momentum=0.9, weight_decay=0.01)
DECAYING = PLAIN.model_copy(update={"weight_decay": 0.05})
LINEAR = Linear(name="linear")
WIDE = MLP(name="mlp", hidden=(16, 12), dropout=0.3)
CONV = CNN(name="cnn", channels=(2, 3), batch_norm=True)
MODELS = {"linear": LINEAR, "mlp": WIDE, "cnn": CONV}

State = dict[str, Tensor]


def subsets(n: int, sizes: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.sort(rng.choice(n, size, replace=False)) for size in sizes]


def removed(n: int) -> list[int]:
    return [0, n // 3, n // 2, n - 1]


def trial(*identity: str | int, root: int = 7, **rest: object) -> Trial:
    return Trial(root, identity, **rest)  # type: ignore[arg-type]


CASES: dict[str, Callable[[int], list[Trial]]] = {
    "equal subsets": lambda n: [
        trial("a", k, kept=kept) for k, kept in enumerate(subsets(n, [n // 2] * 4))
    ],
    "unequal subsets": lambda n: [
        trial("a", k, kept=kept)
        for k, kept in enumerate(subsets(n, [n // 2, n // 2 - 5, n // 4, n // 2 - 1]))
    ],
    "equal subsets of one identity": lambda n: [
        trial("a", kept=kept) for kept in subsets(n, [n // 2] * 4)
    ],
    "unequal subsets of one identity": lambda n: [
        trial("a", kept=kept) for kept in subsets(n, [n // 2, n // 2 - 5, n // 4, n])
    ],
    "full runs": lambda n: [trial("a", k) for k in range(4)],
    "one identity, several roots": lambda n: [trial("a", root=k) for k in range(4)],
    "masked": lambda n: [trial("a"), *(trial("a", removed=i) for i in removed(n))],
    "masked, several identities": lambda n: [
        trial("a", k % 2, removed=i) for k, i in enumerate(removed(n))
    ],
    "masked, file order": lambda n: [trial("a", removed=i, shuffle=False) for i in removed(n)],
    "dropped": lambda n: [
        trial("a"),
        *(trial("a", kept=np.delete(np.arange(n), i)) for i in removed(n)),
    ],
    "two dropped, file order": lambda n: [
        trial("a", kept=np.delete(np.arange(n), [i, (i + 5) % n]), shuffle=False)
        for i in removed(n)
    ],
    "masked beside dropped": lambda n: [
        trial("a", removed=3),
        trial("a", kept=np.delete(np.arange(n), 3)),
        trial("a", kept=np.delete(np.arange(n), 3), removed=5),
    ],
}


def problem(n: int, dtype: torch.dtype, device: str = "cpu") -> Samples:
    rng = np.random.default_rng(1)
    inputs = torch.from_numpy(rng.standard_normal((n, *SHAPE)))
    labels = torch.from_numpy(rng.integers(CLASSES, size=n))
    return Samples(inputs.to(dtype), labels, CROSS_ENTROPY).to(device)


def builder(model: Model, dtype: torch.dtype = torch.float64) -> Callable[[int], nn.Module]:
    return lambda seed: initialise(model, SHAPE, CLASSES, seed).to(dtype)


def run(
    model: Model,
    trials: list[Trial],
    n: int,
    recipe: Recipe,
    path: Path | None,
    size: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> list[list[State]]:
    """Return each trial's snapshots after epoch 1 and at the end, and its outputs."""
    samples, build = problem(n, dtype, device), builder(model, dtype)
    found = []
    for trained in train(build, trials, samples, recipe, [1], path=path, stack_size=size):
        outputs = trained.outputs(samples.inputs)
        for k in range(len(trained.trials)):
            states = [{key: v[k].cpu() for key, v in s.items()} for s in trained.snapshots]
            found.append([*states, {"outputs": outputs[k].cpu()}])
    return found


def assert_same(found: list[list[State]], expected: list[list[State]], atol: float) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs) == 3
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=atol, rtol=0)


def others(model: Model) -> list[Path]:
    return ["functional"] if isinstance(model, CNN) else ["stack", "functional"]


@pytest.mark.parametrize("n", [40, 41])  # whole batches, and a last batch of one
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("case", CASES)
def test_paths_agree(case: str, name: str, n: int) -> None:
    model = MODELS[name]
    recipe = DECAYING if n == 40 and name != "cnn" else HEAVY
    if name == "cnn" and n == 41 and case == "full runs":
        recipe = recipe.model_copy(update={"batch_size": 9})  # no batch norm over one sample
    trials = CASES[case](n)
    expected = run(model, trials, n, recipe, "reference")
    for path in others(model):
        assert_same(run(model, trials, n, recipe, path), expected, 1e-12)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("case", ["unequal subsets", "masked", "dropped"])
def test_paths_agree_to_rounding_in_float32(case: str, name: str, device: str) -> None:
    trials = CASES[case](41)
    expected = run(MODELS[name], trials, 41, HEAVY, "reference", dtype=torch.float32)
    for path in [*others(MODELS[name]), *(["reference"] if device == "cuda" else [])]:
        found = run(MODELS[name], trials, 41, HEAVY, path, dtype=torch.float32, device=device)
        # 12 steps, weights and logits of order 1: some hundred roundings of 6e-8
        assert_same(found, expected, 2e-5)


@pytest.mark.parametrize("path", ["stack", "functional", "reference"])
@pytest.mark.parametrize("model", [LINEAR, WIDE], ids=["linear", "mlp"])
def test_a_removed_sample_alone_in_its_batch_makes_no_step(model: Model, path: Path) -> None:
    # file order, 41 = 5 x 8 + 1: sample 40 is alone in the last batch, so to mask it is to drop it
    masked = run(model, [trial("a", removed=40, shuffle=False)] * 2, 41, HEAVY, path)
    kept = np.arange(40)
    dropped = run(model, [trial("a", kept=kept, shuffle=False)] * 2, 41, HEAVY, path)
    full = run(model, [trial("a", shuffle=False)], 41, HEAVY, path)
    if model is LINEAR:
        assert_same(masked, dropped, 1e-12)
    else:
        # the hole still draws a dropout mask, so the streams part after the first epoch
        torch.testing.assert_close(masked[0][0], dropped[0][0], atol=1e-12, rtol=0)
    assert (masked[0][1]["linear.weight" if model is LINEAR else "fc1.weight"]).isfinite().all()
    assert not torch.equal(masked[0][2]["outputs"], full[0][2]["outputs"])


@pytest.mark.parametrize("path", ["stack", "functional"])
@pytest.mark.parametrize("case", ["unequal subsets", "masked", "dropped", "equal subsets"])
def test_stack_size_and_order_change_nothing(case: str, path: Path) -> None:
    trials = CASES[case](41)
    expected = run(WIDE, trials, 41, HEAVY, path, size=1)
    for size in (2, 3, len(trials)):
        assert_same(run(WIDE, trials, 41, HEAVY, path, size=size), expected, 1e-12)
    backwards = run(WIDE, trials[::-1], 41, HEAVY, path, size=3)
    assert_same(backwards[::-1], expected, 1e-12)


@pytest.mark.parametrize("model", [LINEAR, WIDE, CONV], ids=["linear", "mlp", "cnn"])
def test_threads_change_nothing(model: Model) -> None:
    trials = CASES["equal subsets"](300)
    one = run(model, trials, 300, HEAVY, None)
    torch.set_num_threads(2)
    try:
        two = run(model, trials, 300, HEAVY, None)
    finally:
        torch.set_num_threads(1)
    assert_same(two, one, 1e-12)


@pytest.mark.parametrize("path", ["stack", "functional", "reference"])
def test_what_is_done_twice_is_the_same(path: Path) -> None:
    trials = CASES["unequal subsets"](41)
    assert_same(run(WIDE, trials, 41, HEAVY, path), run(WIDE, trials, 41, HEAVY, path), 0)


@pytest.mark.parametrize("path", ["stack", "functional", "reference"])
@pytest.mark.parametrize("model", [LINEAR, WIDE], ids=["linear", "mlp"])
def test_no_two_trainings_share_a_model_by_accident(model: Model, path: Path) -> None:
    half, other = subsets(41, [20, 20])
    trials = [
        trial("s", "full", 0),
        trial("s", "full", 1),
        trial("s", "half", 0),
        trial("other", "full", 0),
        trial("s", "full", 0, root=8),
        trial("s", "full", 0, shuffle=False),
        trial("s", "full", 0, removed=2),
        trial("s", "full", 0, removed=3),
        trial("s", "full", 0, kept=half),
        trial("s", "full", 0, kept=other),
        trial("s", "full", 1, kept=half),
        trial("s", "full", 0, kept=np.delete(np.arange(41), 2)),
    ]
    outputs = [found[-1]["outputs"] for found in run(model, trials, 41, PLAIN, path)]
    for (i, a), (j, b) in itertools.combinations(enumerate(outputs), 2):
        assert (a - b).abs().max() > 1e-6, (trials[i], trials[j])


@pytest.mark.parametrize("path", ["stack", "functional"])
def test_equal_identities_start_alike_and_others_do_not(path: Path) -> None:
    still = PLAIN.model_copy(update={"learning_rate": 1e-300})
    half, other = subsets(41, [20, 13])
    trials = [trial("a", kept=half), trial("a", kept=other), trial("b", kept=half)]
    a, b, c = (found[-1]["outputs"] for found in run(WIDE, trials, 41, still, path))
    assert a.std(0).min() > 0.01  # the network is not dead: outputs depend on inputs
    torch.testing.assert_close(a, b, atol=1e-14, rtol=0)
    assert (a - c).abs().max() > 0.01


@pytest.mark.parametrize("path", ["stack", "functional", "reference"])
def test_snapshots_are_the_models_after_those_epochs(path: Path) -> None:
    samples = problem(41, torch.float64)
    trials = CASES["unequal subsets"](41)

    def states(epochs: int, kept: tuple[int, ...]) -> list[State]:
        recipe = HEAVY.model_copy(update={"epochs": epochs})
        stacks = list(train(builder(WIDE), trials, samples, recipe, kept, path=path))
        return [
            {k: torch.cat([t.snapshots[i][k] for t in stacks]) for k in stacks[0].snapshots[0]}
            for i in range(len(stacks[0].snapshots))
        ]

    long = states(4, (3, 1))
    assert len(long) == 3
    for snapshot, epochs in zip(long, (1, 3, 4), strict=True):
        short = states(epochs, (epochs,))
        assert len(short) == 1
        torch.testing.assert_close(snapshot, short[0], atol=1e-12, rtol=0)


def test_outputs_are_the_modules_own() -> None:
    inputs = problem(41, torch.float64).inputs
    trials = CASES["equal subsets"](41)
    for model in (WIDE, CONV):
        module = builder(model)(0).double().eval()
        for path in others(model):
            for snapshots in run(model, trials, 41, HEAVY, path):
                module.load_state_dict(snapshots[1])
                with torch.no_grad():
                    torch.testing.assert_close(
                        snapshots[2]["outputs"], module(inputs), atol=1e-12, rtol=0
                    )


def test_the_path_suits_architecture_and_device() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    samples, trials = problem(10, torch.float64), CASES["unequal subsets"](41)

    def path(model: Model, device: torch.device, **changes: Any) -> Path:
        recipe = PLAIN.model_copy(update=changes)
        return choose_path(builder(model)(0), trials, samples, recipe, device)

    assert path(LINEAR, cpu) == "stack"
    assert path(WIDE, cuda) == "stack"
    assert path(CONV, cpu) == "reference"
    assert path(CONV, cuda) == "functional"
    # what the stack does not know goes another way
    assert path(WIDE, cpu, optimizer="adamw") == "reference"
    assert path(WIDE, cpu, schedule="cosine") == "reference"
    assert path(WIDE, cuda, clip=1.0) == "functional"
    assert path(WIDE, cuda, epochs=None, iterations=9) == "reference"  # their sizes differ
    smooth = replace(samples, objective=cross_entropy(label_smoothing=0.1))
    found = choose_path(builder(WIDE)(0), trials, smooth, PLAIN, cpu)
    assert found == "reference"


class Running(nn.Module):
    """Has a running mean of its own, which a mapped step would forget."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, CLASSES)
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().flatten(1).mean(0)
        return self.last(x.flatten(1) - self.mean)  # type: ignore[no-any-return]


class Branching(nn.Module):
    """Looks at values to decide what to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1).abs() if x.sum() > 0 else x.flatten(1))  # type: ignore[no-any-return]


class Kept(nn.BatchNorm2d):
    """Stays in evaluation."""

    def train(self, mode: bool = True) -> Kept:
        return super().train(False)


class Doubled(nn.BatchNorm2d):
    """Does more than batch norm."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def convolved(norm: nn.Module, again: nn.Module | None = None) -> nn.Module:
    first, second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
    layers = (first, norm, nn.ReLU(), second, again or nn.Identity(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(32, CLASSES))


def twice(norm: nn.Module) -> nn.Module:
    return convolved(norm, norm)


class Constant(nn.Module):
    """Has a buffer that is no part of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, CLASSES)
        self.register_buffer("scale", torch.linspace(1, 2, 16), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1) * self.scale)  # type: ignore[no-any-return]


MAPPED: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: convolved(nn.BatchNorm2d(2)),
    "in evaluation": lambda: convolved(Kept(2)),
    "used twice": lambda: twice(nn.BatchNorm2d(2)),
    "cumulative": lambda: convolved(nn.BatchNorm2d(2, momentum=None)),
    "without statistics": lambda: convolved(nn.BatchNorm2d(2, track_running_stats=False)),
    "buffer outside of the state": Constant,
    "not affine": lambda: convolved(nn.BatchNorm2d(2, affine=False)),
}
NOT_MAPPED: dict[str, Callable[[], nn.Module]] = {
    "running mean of its own": Running,
    "looks at values": Branching,
    "instance norm": lambda: convolved(nn.InstanceNorm2d(2, track_running_stats=True)),
    "more than batch norm": lambda: convolved(Doubled(2)),
    "spectral norm": lambda: nn.Sequential(
        nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(16, CLASSES))
    ),
}


@pytest.mark.parametrize("name", [*MAPPED, *NOT_MAPPED])
def test_only_what_can_be_mapped_over_models_is(name: str) -> None:
    """By a step of both ways: what a mapped step would get wrong goes one by one."""

    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return {**MAPPED, **NOT_MAPPED}[name]().double()

    samples, trials = problem(10, torch.float64), [trial("a"), trial("b", removed=3)]
    cuda = torch.device("cuda")
    for recipe in (PLAIN, PLAIN.model_copy(update={"optimizer": "adamw", "clip": 1.0})):
        found = choose_path(build(0), trials, samples, recipe, cuda)
        assert found == ("functional" if name in MAPPED else "reference")
    if name not in MAPPED:
        return
    heavy = HEAVY.model_copy(update={"batch_size": 5})
    (mapped,) = train(build, trials, samples, heavy, path="functional")
    one_by_one = train(build, trials, samples, heavy, path="reference")
    for number, known in enumerate(one_by_one):
        assert mapped.snapshots[-1].keys() == known.snapshots[-1].keys()
        for key, value in known.snapshots[-1].items():
            torch.testing.assert_close(
                mapped.snapshots[-1][key][number], value[0], atol=1e-11, rtol=0
            )


def test_a_stack_of_convolutions_is_refused() -> None:
    samples = problem(10, torch.float64)
    with pytest.raises(ValueError, match="stacks of linear layers only"):
        next(train(builder(CONV), [trial("a")], samples, PLAIN, path="stack"))


@pytest.mark.parametrize("path", ["stack", "functional"])
@pytest.mark.parametrize("case", CASES)
def test_masks_drawn_on_the_device_give_the_same_models(
    case: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = CASES[case](41)
    expected = run(WIDE, trials, 41, HEAVY, path)
    there = partial(MaskStreams, on_device=True)
    monkeypatch.setattr({"stack": stack, "functional": functional}[path], "MaskStreams", there)
    # the same masks; what lies beyond the end of a row has weight 0 but may round otherwise
    assert_same(run(WIDE, trials, 41, HEAVY, path), expected, 1e-12)


FULL_DEVICE = "CUDA out of memory. Tried to allocate 20.00 MiB."


@pytest.mark.parametrize(
    ("path", "model"),
    [("stack", WIDE), ("functional", WIDE), ("functional", CONV)],
    ids=["stack", "functional", "conv net"],
)
@pytest.mark.parametrize("case", ["equal subsets", "unequal subsets", "masked", "dropped"])
def test_a_full_device_changes_no_model(
    case: str,
    path: Path,
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trials = CASES[case](41) * 3
    expected = run(model, trials, 41, HEAVY, path)
    name = f"train_{path}"
    real = getattr(engine, name)
    room = iter([3, 3, 1])  # after the second stack another job takes more of the device
    fits, sizes = [next(room)], []

    def cramped(first: object, state: State, part: list[Trial], *rest: object) -> object:
        found = real(first, state, part, *rest)  # fails only after it has changed the state
        sizes.append(len(part))
        if len(part) > fits[0]:
            raise torch.OutOfMemoryError(FULL_DEVICE)
        fits[0] = next(room, 1)
        return found

    monkeypatch.setattr(engine, name, cramped)
    found = run(model, trials, 41, HEAVY, path, size=len(trials))
    assert_same(found, expected, 1e-12)
    whole = len(trials)
    assert sizes == [whole, whole // 2, 3, 3, 3, *[1] * (whole - 6)]
    notes = capsys.readouterr().err.splitlines()
    assert [note.split("; ")[1].split(". ")[0] for note in notes] == [
        f"going on with {size}" for size in (whole // 2, 3, 1)
    ]


@pytest.mark.parametrize("path", ["stack", "functional"])
def test_outputs_of_a_full_device_are_made_in_smaller_blocks(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = CASES["equal subsets"](41)
    expected = run(WIDE, trials, 41, HEAVY, path)
    name = f"{path}_outputs"
    real = getattr(engine, name)

    def cramped(first: object, state: State, inputs: Tensor) -> Tensor:
        if len(next(iter(state.values()))) > 1:
            raise torch.OutOfMemoryError(FULL_DEVICE)
        return real(first, state, inputs)  # type: ignore[no-any-return]

    monkeypatch.setattr(engine, name, cramped)
    assert_same(run(WIDE, trials, 41, HEAVY, path), expected, 1e-12)


@pytest.mark.parametrize(("path", "name"), [("stack", "train_stack"), ("reference", "train_one")])
def test_one_model_too_large_for_the_device_is_an_error_with_a_remedy(
    path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError(FULL_DEVICE)

    monkeypatch.setattr(engine, name, full)
    with pytest.raises(LeaveoutError, match=r"one alone \(CUDA out.*20\.00 MiB.*set `device: cpu`"):
        run(WIDE, CASES["masked"](41), 41, HEAVY, path)


@pytest.mark.parametrize(
    "error",
    [MemoryError("host"), RuntimeError("DefaultCPUAllocator: can't allocate memory"), KeyError(1)],
    ids=["MemoryError", "RuntimeError", "KeyError"],
)
def test_other_errors_are_not_tried_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def broken(*_: object) -> None:
        calls.append(1)
        raise error

    monkeypatch.setattr(engine, "train_stack", broken)
    with pytest.raises(type(error)) as caught:
        run(WIDE, CASES["masked"](41), 41, HEAVY, "stack")
    assert caught.value is error
    assert len(calls) == 1


class FakeGpu:
    """Memory of a GPU of which each model takes ``each`` bytes while it trains."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int, each: int) -> None:
        self.tried: list[list[Trial]] = []
        self.samples: list[int] = []
        monkeypatch.setattr(memory, "free_memory", lambda _: free)
        monkeypatch.setattr(memory, "peak_memory", self.peak)
        for name in ("train_stack", "train_functional"):
            monkeypatch.setattr(engine, name, self.watch(getattr(engine, name)))
        self.each = each

    def watch(self, real: Callable[..., object]) -> Callable[..., object]:
        def watched(
            first: object, state: State, trials: list[Trial], samples: Samples, *rest: object
        ):  # type: ignore[no-untyped-def]
            self.tried.append(trials)
            self.samples.append(len(samples))
            return real(first, state, trials, samples, *rest)

        return watched

    def peak(self, _: torch.device, work: Callable[[], object]) -> int:
        work()
        return self.each * len(self.tried[-1])


@pytest.mark.parametrize("model", [LINEAR, WIDE, CONV], ids=["linear", "mlp", "cnn"])
@pytest.mark.parametrize("case", ["equal subsets", "equal subsets of one identity", "masked"])
def test_the_stack_is_what_half_of_a_gpus_memory_holds(
    model: Model, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = CASES[case](41) * 20
    samples, build = problem(41, torch.float32), builder(model, torch.float32)
    module = build(0)
    path: Path = "functional" if model is CONV else "stack"
    job = engine._Job(build, module, path, trials, samples, HEAVY, (1,))
    values = sum(v.numel() * v.element_size() for v in module.state_dict().values())
    # two snapshots (epoch 1 and the end) of this stack and of the one before
    each = 10_000 + 4 * values + 24 * 41
    gpu = FakeGpu(monkeypatch, free=2 * each * 37 + each, each=10_000)
    assert engine._fitting_size(job) == 37
    assert [len(tried) for tried in gpu.tried] == [1, 8]
    assert gpu.samples == [8, 8]  # one batch: a single step
    orders = {trial.order_identity() for trial in gpu.tried[1]}
    assert len(orders) == (1 if case == "masked" else 8)  # as the real work's


def test_a_stack_is_bounded_by_what_there_is_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, trials = problem(41, torch.float64), CASES["masked"](41)
    job = engine._Job(builder(WIDE), builder(WIDE)(0), "stack", trials, samples, HEAVY, ())
    FakeGpu(monkeypatch, free=1 << 40, each=100)
    assert engine._fitting_size(job) == len(trials)


def test_initial_states_are_the_modules_own() -> None:
    samples = problem(41, torch.float64)
    trials = [trial("a"), trial("b"), trial("a", removed=3), trial("c"), trial("b", removed=1)]
    job = engine._Job(builder(CONV), builder(CONV)(0), "stack", trials, samples, HEAVY, ())
    state = job._initial(trials)
    for row, one in enumerate(trials):
        expected = builder(CONV)(one.init_seed()).double().state_dict()
        assert set(state) == set(expected)
        for name, value in expected.items():
            assert state[name].dtype == value.dtype
            assert torch.equal(state[name][row], value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named_with_its_remedy() -> None:
    with pytest.raises(LeaveoutError, match=r"device: cuda .* no GPU.*Set `device: cpu`"):
        select_device("cuda")
