from __future__ import annotations

import functools
import itertools
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler

from leaveout import retrain_lds, retrain_loo
from leaveout.banks.layout import BankError, read_ids, read_state
from leaveout.banks.retrain import subset_mask
from leaveout.errors import LeaveoutError

Loader = DataLoader[Any]
Train = Callable[..., nn.Module]
Contents = Callable[[Path], dict[str, bytes]]


def states(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    files = sorted(folder.glob("*/*.pt"))
    return {str(file.relative_to(folder)): read_state(file) for file in files}


def weights(state: dict[str, torch.Tensor]) -> bytes:
    return b"".join(value.numpy().tobytes() for value in state.values())


def test_loo_layout(tmp_path: Path, train_func: Train, loader: Loader) -> None:
    retrain_loo(train_func, loader, str(tmp_path / "bank"), indices=[7, 3], seed=5, lr=0.25)
    bank = tmp_path / "bank"
    assert {str(p.relative_to(bank)) for p in bank.rglob("*") if p.is_file()} == {
        ".lock",
        "metadata.yml",
        "ids.txt",
        "index_3/model_weights.pt",
        "index_7/model_weights.pt",
    }
    assert yaml.safe_load((bank / "metadata.yml").read_text()) == {
        "mode": "loo",
        "data_length": 24,
        "train_func": "train",
        "kwargs": {"lr": 0.25},
        "loader": {"sampler": "RandomSampler", "batch_size": 5, "drop_last": False},
        "seed": 5,
        "indices": [3, 7],
        "map_index_dir": {3: "./index_3", 7: "./index_7"},
    }
    assert read_ids(bank / "ids.txt").tolist() == list(range(24))
    state = torch.load(bank / "index_7" / "model_weights.pt", weights_only=True)
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "1.weight": (10, 65),
        "1.bias": (10,),
    }


def test_lds_layout(tmp_path: Path, train_func: Train, loader: Loader) -> None:
    retrain_lds(train_func, loader, tmp_path, 3, 0.3, 2, seed=2**70, epochs=1)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == {
        ".lock",
        "metadata.yml",
        "ids.txt",
        *(f"{s}/indices.txt" for s in range(3)),
        *(f"{s}/model_weights_{r}.pt" for s in range(3) for r in range(2)),
    }
    assert yaml.safe_load((tmp_path / "metadata.yml").read_text()) == {
        "mode": "lds",
        "data_length": 24,
        "train_func": "train",
        "kwargs": {"epochs": 1},
        "loader": {"sampler": "RandomSampler", "batch_size": 5, "drop_last": False},
        "subset_ratio": 0.3,
        "seed": 2**70,
        "num_subsets": 3,
        "num_runs_per_subset": 2,
        "subset_dir_map": {0: "./0", 1: "./1", 2: "./2"},
    }
    subsets = [read_ids(tmp_path / str(s) / "indices.txt").tolist() for s in range(3)]
    assert all(len(subset) == 7 and subset == sorted(subset) for subset in subsets)
    assert len({tuple(subset) for subset in subsets}) == 3


def test_a_model_sees_exactly_the_recorded_samples(tmp_path: Path, loader: Loader) -> None:
    seen: list[list[int]] = []

    def look(dataloader: Loader) -> nn.Module:
        pixels = torch.cat([inputs for inputs, _ in dataloader])
        whole = torch.stack([inputs for inputs, _ in loader.dataset])  # type: ignore[arg-type]
        seen.append([int((whole == row).all(dim=1).nonzero()) for row in pixels])
        return nn.Linear(1, 1)

    retrain_lds(look, loader, tmp_path / "lds", 4, seed=0)
    for subset, ids in enumerate(seen):
        assert sorted(ids) == read_ids(tmp_path / "lds" / str(subset) / "indices.txt").tolist()
        assert ids != sorted(ids)  # shuffled, as the user's loader
    seen.clear()
    retrain_loo(look, loader, tmp_path / "loo", [4, 20], seed=0)
    assert [set(range(24)) - set(ids) for ids in seen] == [{4}, {20}]
    # paired: the same order but for the sample left out
    assert [i for i in seen[0] if i != 20] == [i for i in seen[1] if i != 4]


def test_samples_are_drawn_evenly() -> None:
    masks = np.stack([subset_mask(0, subset, 24, 0.5) for subset in range(200)])
    assert (masks.sum(axis=1) == 12).all()
    # binomial of 200 and 1/2: mean 100, deviation 7.1; four deviations for 24 samples
    assert np.abs(masks.sum(axis=0) - 100).max() < 4 * 7.1
    # independent of each other: of 12 samples, another subset keeps 6, give or take 1.25
    shared = (masks[1:] & masks[:-1]).sum(axis=1)
    assert abs(shared.mean() - 6) < 4 * 1.25 / np.sqrt(199)


def test_order_of_training_decides_nothing(
    tmp_path: Path, train_func: Train, loader: Loader, contents: Contents
) -> None:
    retrain_lds(train_func, loader, tmp_path / "whole", 4, num_runs_per_subset=2, seed=1)
    for start in (3, 0, 2, 1):
        retrain_lds(
            train_func,
            loader,
            tmp_path / "parts",
            1,
            num_runs_per_subset=2,
            start_id=start,
            total_num_subsets=4,
            seed=1,
        )
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    retrain_loo(train_func, loader, tmp_path / "loo", [5, 6, 7], seed=1)
    for indices in ([7], [5, 6]):
        retrain_loo(train_func, loader, tmp_path / "loo_parts", indices, seed=1)
    assert contents(tmp_path / "loo_parts") == contents(tmp_path / "loo")


def test_uneven_partitions(tmp_path: Path, train_func: Train, loader: Loader) -> None:
    for start, number in ((3, 2), (0, 3)):
        retrain_lds(
            train_func, loader, tmp_path, number, start_id=start, total_num_subsets=5, seed=1
        )
    assert len(states(tmp_path)) == 5


PARTITION = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from leaveout import retrain_lds, retrain_loo

def train(dataloader):
    model = nn.Linear(2, 1)
    for x, y in dataloader:  # by hand: torch.optim takes seconds to import
        gradients = torch.autograd.grad(nn.functional.mse_loss(model(x), y), [*model.parameters()])
        with torch.no_grad():
            for value, gradient in zip(model.parameters(), gradients):
                value -= 0.1 * gradient
    return model

def partition(folder, part, parts, seed):
    x = torch.arange(20.0).reshape(10, 2) / 20
    loader = DataLoader(TensorDataset(x, x.sum(dim=1, keepdim=True)), batch_size=3, shuffle=True)
    retrain_loo(train, loader, f"{folder}/loo", range(part, 10, parts), seed=seed)
    retrain_lds(train, loader, f"{folder}/lds", 20 // parts, start_id=part * (20 // parts),
                total_num_subsets=20, num_runs_per_subset=2, seed=7)
"""

AS_PROCESS = """
import sys
torch.set_num_threads(1)
print("ready", flush=True)
sys.stdin.readline()
partition(sys.argv[1], int(sys.argv[2]), 2, None)
"""


def test_partitions_in_parallel_processes(tmp_path: Path, contents: Contents) -> None:
    """Two at once, started at the same moment; where no seed is given, they agree on one."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PARTITION + AS_PROCESS, str(tmp_path / "two"), str(part)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for part in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    here: dict[str, Any] = {}
    exec(PARTITION, here)
    drawn = yaml.safe_load((tmp_path / "two" / "loo" / "metadata.yml").read_text())["seed"]
    here["partition"](tmp_path / "one", 0, 1, drawn)
    assert len(states(tmp_path / "one" / "lds")) == 40
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_two_root_seeds_share_nothing(tmp_path: Path, train_func: Train, loader: Loader) -> None:
    """Neighbouring seeds, which shift models by one where seeds are added up."""
    found = []
    for seed in range(4):
        retrain_lds(train_func, loader, tmp_path / str(seed), 4, 1.0, 2, seed=seed)
        found += [weights(state) for state in states(tmp_path / str(seed)).values()]
        retrain_loo(train_func, loader, tmp_path / f"loo{seed}", [1], seed=seed)
        found += [weights(state) for state in states(tmp_path / f"loo{seed}").values()]
    assert len(found) == len(set(found)) == 36
    subsets = {subset_mask(seed, i, 24, 0.5).tobytes() for seed in range(4) for i in range(30)}
    assert len(subsets) == 120


def test_seeds_are_handed_to_functions_that_take_them(tmp_path: Path, loader: Loader) -> None:
    given: list[Any] = []

    def by_name(dataloader: Loader, seed: int = 0) -> nn.Module:
        np.random.seed(seed)  # refuses what is not below 2**32
        given.append(seed)
        return nn.Linear(1, 1)

    def by_keywords(dataloader: Loader, **kwargs: Any) -> nn.Module:
        given.append(kwargs)
        return nn.Linear(1, 1)

    retrain_lds(by_name, loader, tmp_path / "a", 5, num_runs_per_subset=4, seed=0)
    assert len(set(given)) == 20
    given.clear()
    retrain_loo(by_name, loader, tmp_path / "b", [1, 2], seed=0)
    assert len(set(given)) == 1  # paired
    given.clear()
    retrain_loo(by_keywords, loader, tmp_path / "c", [1], seed=0, width=3)
    assert given[0]["width"] == 3
    assert set(given[0]) == {"width", "seed"}


def test_without_a_seed_a_bank_draws_its_own(
    tmp_path: Path, train_func: Train, loader: Loader, contents: Contents
) -> None:
    for name in ("a", "b"):
        retrain_lds(train_func, loader, tmp_path / name, 2)
    assert not set(map(weights, states(tmp_path / "a").values())) & set(
        map(weights, states(tmp_path / "b").values())
    )
    seed = yaml.safe_load((tmp_path / "a" / "metadata.yml").read_text())["seed"]
    retrain_lds(train_func, loader, tmp_path / "a", 4)  # goes on with it
    retrain_lds(train_func, loader, tmp_path / "c", 4, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "c")


def test_the_callers_randomness_is_untouched(
    tmp_path: Path, train_func: Train, loader: Loader
) -> None:
    def draws() -> tuple[float, float]:
        return random.random(), float(np.random.rand())

    python, numpy = random.getstate(), np.random.get_state()
    expected = draws()
    random.setstate(python)
    np.random.set_state(numpy)
    retrain_loo(train_func, loader, tmp_path / "loo", [1], seed=0)  # torch's: the fixture of all
    retrain_lds(train_func, loader, tmp_path / "lds", 1, seed=0)
    assert draws() == expected


def test_killed_anywhere_it_goes_on(
    tmp_path: Path, train_func: Train, loader: Loader, contents: Contents
) -> None:
    retrain_lds(train_func, loader, tmp_path / "calm", 3, num_runs_per_subset=2, seed=1)
    calls = itertools.count()
    fatal = set(range(1, 20, 2))  # every second training falls over

    @functools.wraps(train_func)
    def falling(dataloader: Loader) -> nn.Module:
        if next(calls) in fatal:
            raise MemoryError("no more of it")
        return train_func(dataloader)

    trained = []
    for _ in range(10):
        before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("torn/*/*.pt")}
        try:
            retrain_lds(falling, loader, tmp_path / "torn", 3, num_runs_per_subset=2, seed=1)
        except MemoryError:
            trained.append(len(list(tmp_path.glob("torn/*/*.pt"))))
            assert {p: p.stat().st_mtime_ns for p in before} == before  # none trained twice
        else:
            break
    assert trained == [1, 2, 3, 4, 5]
    assert contents(tmp_path / "torn") == contents(tmp_path / "calm")


def test_killed_while_writing_it_goes_on(
    tmp_path: Path,
    train_func: Train,
    loader: Loader,
    contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    retrain_loo(train_func, loader, tmp_path / "calm", [1, 2], seed=1)
    save, calls = torch.save, itertools.count()

    def half(state: Any, handle: Any) -> None:
        save(state, handle)
        if next(calls) == 1:
            handle.truncate(handle.tell() // 2)
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        retrain_loo(train_func, loader, tmp_path / "torn", [1, 2], seed=1)
    assert not (tmp_path / "torn" / "index_2" / "model_weights.pt").exists()
    retrain_loo(train_func, loader, tmp_path / "torn", [1, 2], seed=1)
    assert contents(tmp_path / "torn") == contents(tmp_path / "calm")


@pytest.mark.parametrize("damage", ["empty", "half", "bit", "text"])
def test_a_damaged_checkpoint_is_trained_anew(
    tmp_path: Path, train_func: Train, loader: Loader, contents: Contents, damage: str
) -> None:
    retrain_loo(train_func, loader, tmp_path, [1, 2, 3], seed=1)
    whole = contents(tmp_path)
    victim = tmp_path / "index_2" / "model_weights.pt"
    data = bytearray(victim.read_bytes())
    bias = data.find(read_state(victim)["1.bias"].numpy().tobytes())
    assert bias > 0
    data[bias] ^= 1
    victim.write_bytes(
        {"empty": b"", "half": data[: len(data) // 2], "bit": data, "text": b"weights"}[damage]
    )
    with pytest.warns(
        UserWarning, match="index_2/model_weights.pt: not a file of torch.save, or dam"
    ):
        retrain_loo(train_func, loader, tmp_path, [1, 2, 3], seed=1)
    assert contents(tmp_path) == whole


def test_more_subsets_and_more_runs_train_only_the_new(
    tmp_path: Path, train_func: Train, loader: Loader, contents: Contents
) -> None:
    calls = itertools.count()

    @functools.wraps(train_func)
    def counted(dataloader: Loader) -> nn.Module:
        next(calls)
        return train_func(dataloader)

    retrain_lds(counted, loader, tmp_path / "grown", 2, seed=1)
    retrain_lds(counted, loader, tmp_path / "grown", 3, seed=1)
    assert next(calls) == 3
    retrain_lds(counted, loader, tmp_path / "grown", 3, num_runs_per_subset=2, seed=1)
    assert next(calls) == 3 + 1 + 3
    retrain_lds(counted, loader, tmp_path / "grown", 1, num_runs_per_subset=2, seed=1)
    assert next(calls) == 3 + 1 + 3 + 1  # nothing to do
    retrain_lds(train_func, loader, tmp_path / "at_once", 3, num_runs_per_subset=2, seed=1)
    assert contents(tmp_path / "grown") == contents(tmp_path / "at_once")


def test_a_different_call_is_refused_and_told_apart(
    tmp_path: Path, digits: Any, train_func: Train, loader: Loader, contents: Contents
) -> None:
    usual: dict[str, Any] = {
        "train_func": train_func,
        "dataloader": loader,
        "path": tmp_path,
        "num_subsets": 2,
        "num_runs_per_subset": 2,
        "seed": 1,
        "lr": 0.5,
    }
    retrain_lds(**usual)
    before = contents(tmp_path)
    small = Subset(digits[0], range(20))
    for change, message in (
        ({"seed": 2}, r"seed \(bank: 1, this call: 2\)"),
        ({"subset_ratio": 0.25}, r"subset_ratio \(bank: 0.5, this call: 0.25\)"),
        ({"num_runs_per_subset": 1}, "num_runs_per_subset 2, this call 1"),
        ({"lr": 0.25}, r"kwargs \(bank: \{lr: 0.5\}, this call: \{lr: 0.25\}\)"),
        ({"train_func": lambda _: nn.Linear(1, 1)}, "train_func"),
        ({"dataloader": DataLoader(digits[0], 4, shuffle=True)}, "batch_size: 4"),
        ({"dataloader": DataLoader(digits[0], 5)}, "SequentialSampler"),
        (
            {"dataloader": DataLoader(small, 5, shuffle=True)},
            r"made of 24 samples, this call's loader draws 20: 4 only in the bank \(e.g. 20\)",
        ),
    ):
        with pytest.raises(BankError, match=message):
            retrain_lds(**{**usual, **change})
    with pytest.raises(BankError, match="mode"):
        retrain_loo(train_func, loader, tmp_path, seed=1, lr=0.5)
    assert contents(tmp_path) == before
    retrain_lds(**usual)
    assert contents(tmp_path) == before


def test_other_samples_of_the_same_number_are_told_apart(
    tmp_path: Path, digits: Any, train_func: Train
) -> None:
    a, b = (DataLoader(Subset(digits[0], range(s, s + 20)), 5) for s in (0, 2))
    retrain_loo(train_func, a, tmp_path, [5], seed=0)
    with pytest.raises(BankError, match=r"2 are only in this one \(e.g. 20\), 2 only in the bank"):
        retrain_loo(train_func, b, tmp_path, [5], seed=0)


def test_where_it_is_trained_may_differ(tmp_path: Path, train_func: Train, loader: Loader) -> None:
    @functools.wraps(train_func)
    def on(dataloader: Loader, device: str) -> nn.Module:
        return train_func(dataloader)

    retrain_loo(on, loader, tmp_path, [1], seed=0, device="cpu")
    retrain_loo(on, loader, tmp_path, [2], seed=0, device="cpu:0")


def test_arguments_bound_beforehand_count(
    tmp_path: Path, train_func: Train, loader: Loader
) -> None:
    retrain_loo(functools.partial(train_func, lr=0.5), loader, tmp_path, [1], seed=0)
    retrain_loo(train_func, loader, tmp_path, [2], seed=0, lr=0.5)
    with pytest.raises(BankError, match=r"0.25"):
        retrain_loo(functools.partial(train_func, lr=0.25), loader, tmp_path, [1], seed=0)


def test_ids_are_the_datasets_in_names_and_records(
    tmp_path: Path, digits: Any, train_func: Train
) -> None:
    chosen = [20, 4, 9, 15, 2, 11]
    by_sampler = DataLoader(digits[0], 2, sampler=SubsetRandomSampler(chosen))
    by_subset = DataLoader(Subset(digits[0], chosen), 2, shuffle=True)
    for name, loader in (("sampler", by_sampler), ("subset", by_subset)):
        retrain_loo(train_func, loader, tmp_path / name, seed=0)
        found = {p.parent.name for p in (tmp_path / name).glob("*/model_weights.pt")}
        assert found == {f"index_{i}" for i in chosen}
        retrain_lds(train_func, loader, tmp_path / f"{name}_lds", 3, seed=0)
        for subset in range(3):
            ids = read_ids(tmp_path / f"{name}_lds" / str(subset) / "indices.txt").tolist()
            assert len(ids) == 3
            assert set(ids) <= set(chosen)
        for outside in (0, 24, -4):
            with pytest.raises(LeaveoutError, match=f"1 are no ids .*, e.g. {outside};"):
                retrain_loo(train_func, loader, tmp_path / name, [4, outside], seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_subsets": 0}, "num_subsets is 0"),
        ({"num_runs_per_subset": 0}, "num_runs_per_subset is 0"),
        ({"num_runs_per_subset": 1.5}, "a whole number"),
        ({"start_id": -1, "total_num_subsets": 9}, "start_id is -1"),
        ({"total_num_subsets": -1}, "total_num_subsets is -1"),
        ({"start_id": 2}, "subsets 2 to 3 are asked for, but the bank is to hold 2"),
        ({"start_id": 3, "total_num_subsets": 4}, "subsets 3 to 4 .* hold 4"),
        ({"subset_ratio": 0.0}, "subset_ratio is 0.0"),
        ({"subset_ratio": 0.04}, "of 24 samples"),
        ({"subset_ratio": 1.1}, "subset_ratio is 1.1"),
        ({"subset_ratio": float("nan")}, "subset_ratio is nan"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_numbers_out_of_range(
    tmp_path: Path, train_func: Train, loader: Loader, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):  # as the field documents
        retrain_lds(train_func, loader, tmp_path / "bank", **{"num_subsets": 2, **arguments})
    assert not (tmp_path / "bank").exists()


def test_a_function_that_returns_no_module(tmp_path: Path, loader: Loader) -> None:
    with pytest.raises(BankError, match="returned a NoneType"):
        retrain_loo(lambda _: None, loader, tmp_path, [1])  # type: ignore[arg-type, return-value]


def test_a_state_that_only_code_could_read_back(tmp_path: Path, loader: Loader) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> Any:
            return Path("somewhere")

    with pytest.raises(BankError, match=r"index_1/model_weights.pt: .* without running code"):
        retrain_loo(lambda _: Odd(1, 1), loader, tmp_path, [1])
    assert not list(tmp_path.glob("index_1/*"))


def test_checkpoints_without_metadata_are_not_adopted(
    tmp_path: Path, train_func: Train, loader: Loader
) -> None:
    retrain_loo(train_func, loader, tmp_path, [1], seed=0)
    (tmp_path / "metadata.yml").unlink()
    with pytest.raises(BankError, match=r"index_1/model_weights.pt\) but no metadata.yml"):
        retrain_loo(train_func, loader, tmp_path, [1], seed=0)


def test_metadata_that_cannot_be_read(tmp_path: Path, train_func: Train, loader: Loader) -> None:
    (tmp_path / "metadata.yml").write_text("mode: [loo")
    with pytest.raises(BankError, match=r"metadata.yml: it cannot be read"):
        retrain_loo(train_func, loader, tmp_path, [1], seed=0)
    (tmp_path / "metadata.yml").write_text("!!python/object/apply:os.system ['touch TRAPPED']")
    with pytest.raises(BankError, match=r"metadata.yml: it cannot be read"):
        retrain_loo(train_func, loader, tmp_path, [1], seed=0)
    assert not Path("TRAPPED").exists()


def test_a_subset_that_was_altered(tmp_path: Path, train_func: Train, loader: Loader) -> None:
    retrain_lds(train_func, loader, tmp_path, 2, seed=0)
    (tmp_path / "1" / "indices.txt").write_text("1\n2\n3\n")
    with pytest.raises(BankError, match=r"1/indices.txt: it lists other ids"):
        retrain_lds(train_func, loader, tmp_path, 2, seed=0)


def test_file_systems_without_locks(
    tmp_path: Path, train_func: Train, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(UserWarning, match="no locks"):
        retrain_loo(train_func, loader, tmp_path, [1], seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        retrain_loo(train_func, loader, tmp_path, [2], seed=0)
    assert len(states(tmp_path)) == 2


def test_buffers_and_shared_weights_come_back(tmp_path: Path, loader: Loader) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(65, 65), nn.BatchNorm1d(65), nn.Linear(65, 65))
        model[2].weight = model[0].weight
        return model

    def fit(dataloader: Loader) -> nn.Module:
        model = build()
        for inputs, _ in dataloader:
            model(inputs)
        return model

    retrain_loo(fit, loader, tmp_path, [1], seed=0)
    with torch.random.fork_rng(devices=[]):
        again = build()
    again.load_state_dict(read_state(tmp_path / "index_1" / "model_weights.pt"))
    assert int(again[1].num_batches_tracked) == 5  # type: ignore[index, arg-type]
