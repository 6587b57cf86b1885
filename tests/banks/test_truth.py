from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from leaveout import (
    calculate_lds_ground_truth,
    calculate_loo_ground_truth,
    retrain_lds,
    retrain_loo,
)
from leaveout.banks.layout import BankError, read_ids, write_state
from leaveout.metrics.lds import lds
from leaveout.problem.randomness import preserved, seeded

Loader = DataLoader[Any]
Train = Callable[..., nn.Module]
Target = Callable[..., Tensor]


def test_loo_equals_a_loop_written_by_hand(
    tmp_path: Path, digits: Any, target_func: Target, test_loader: Loader
) -> None:
    """A deterministic training, so that any loop over the samples that stay gives the same."""

    def train(dataloader: Any) -> nn.Module:
        model = nn.Sequential(nn.Dropout(0.1), nn.Linear(65, 10)).eval()
        for value in model.parameters():
            nn.init.constant_(value, 0.01)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):
            for inputs, labels in dataloader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
        return model

    retrain_loo(train, DataLoader(digits[0], batch_size=5), tmp_path, [19, 2, 11])
    values, indices = calculate_loo_ground_truth(target_func, tmp_path, test_loader)
    inputs, labels = digits[0].tensors
    with preserved():
        expected = []
        for left_out in (2, 11, 19):
            stay = [i for i in range(24) if i != left_out]
            batches = [stay[start : start + 5] for start in range(0, 23, 5)]
            model = train([(inputs[batch], labels[batch]) for batch in batches])
            expected.append(target_func(model, test_loader))
    assert torch.equal(indices, torch.tensor([2, 11, 19]))
    assert indices.dtype == torch.int64
    assert torch.equal(values, torch.stack(expected))  # the same operations in the same order
    assert len(torch.unique(values[:, 0])) == 3


def test_lds_is_minus_the_mean_over_runs(
    tmp_path: Path, train_func: Train, target_func: Target, loader: Loader, test_loader: Loader
) -> None:
    retrain_lds(train_func, loader, tmp_path, 3, 0.25, 2, seed=0)
    values, indices = calculate_lds_ground_truth(target_func, tmp_path, test_loader)
    assert (values.shape, values.dtype) == ((3, 7), torch.float32)
    assert (indices.shape, indices.dtype) == ((3, 6), torch.int64)
    with preserved():
        for subset in range(3):
            files = [tmp_path / str(subset) / f"model_weights_{run}.pt" for run in range(2)]
            a, b = (target_func(file, test_loader) for file in files)
            assert not torch.allclose(a, b)
            # two float32 numbers, their mean rounded once
            torch.testing.assert_close(values[subset], -(a + b) / 2, rtol=1e-6, atol=0)
            assert indices[subset].tolist() == read_ids(files[0].parent / "indices.txt").tolist()


def test_a_good_prediction_has_a_positive_lds(tmp_path: Path, test_loader: Loader) -> None:
    """The sign end to end: a helpful sample lowers the loss, and is to have a positive score."""
    helpful = torch.linspace(-1, 1, 24)

    def train(dataloader: Loader) -> nn.Module:
        model = nn.Linear(1, 1)
        with torch.no_grad():
            model.bias.fill_(sum(float(batch.sum()) for batch in dataloader))
        return model

    def loss(model: nn.Module, dataloader: Loader) -> Tensor:
        return torch.full((7,), 10 - float(model.bias.detach()))  # type: ignore[operator, union-attr]

    retrain_lds(train, DataLoader(helpful, batch_size=4), tmp_path / "lds", 12, seed=0)  # type: ignore[arg-type]
    shape = nn.Linear(1, 1, device="meta").to_empty(device="cpu")
    values, indices = calculate_lds_ground_truth(loss, tmp_path / "lds", test_loader, model=shape)
    mask = np.zeros((12, 24))
    np.put_along_axis(mask, indices.numpy(), 1, axis=1)
    score = helpful[:, None].expand(24, 7).numpy()
    assert lds(score, mask, -values.numpy()).tolist() == pytest.approx([1.0] * 7)
    retrain_loo(train, DataLoader(helpful, batch_size=4), tmp_path / "loo", seed=0)  # type: ignore[arg-type]
    values, indices = calculate_loo_ground_truth(loss, tmp_path / "loo", test_loader, model=shape)
    assert np.corrcoef(helpful[indices], values[:, 0])[0, 1] == pytest.approx(1.0)


def test_a_path_or_a_model(
    tmp_path: Path, train_func: Train, target_func: Target, loader: Loader, test_loader: Loader
) -> None:
    retrain_lds(train_func, loader, tmp_path, 2, seed=0)
    with seeded(0, "another"):
        model = nn.Sequential(nn.Dropout(0.1), nn.Linear(65, 10))
    before = model[1].weight.clone()
    by_path = calculate_lds_ground_truth(target_func, tmp_path, test_loader)
    by_model = calculate_lds_ground_truth(target_func, str(tmp_path), test_loader, model=model)
    assert torch.equal(by_path[0], by_model[0])
    assert torch.equal(model[1].weight, before)  # the user's own is left as it is
    assert model.training


def test_a_target_function_meant_for_models_is_told_so(
    tmp_path: Path, train_func: Train, loader: Loader, test_loader: Loader
) -> None:
    retrain_loo(train_func, loader, tmp_path, [1], seed=0)

    def documented(model: Any, dataloader: Loader) -> Tensor:
        model.eval()
        return torch.zeros(7)

    with pytest.raises(AttributeError) as caught:
        calculate_loo_ground_truth(documented, tmp_path, test_loader)
    assert "pass one of their kind by `model=`" in caught.value.__notes__[0]
    assert str(tmp_path / "index_1" / "model_weights.pt") in caught.value.__notes__[0]


def test_float64_targets_stay_so(
    tmp_path: Path, train_func: Train, loader: Loader, test_loader: Loader
) -> None:
    retrain_lds(train_func, loader, tmp_path, 2, num_runs_per_subset=2, seed=0)
    values, _ = calculate_lds_ground_truth(
        lambda path, _: np.full(7, 1 + 1e-12), tmp_path, test_loader
    )
    assert torch.equal(values, torch.full((2, 7), -1 - 1e-12, dtype=torch.float64))


@pytest.mark.parametrize(
    ("returned", "shape"),
    [(torch.tensor(1.0), r"\(\)"), (torch.zeros(4), r"\(4,\)"), (torch.zeros(7, 1), r"\(7, 1\)")],
)
def test_one_value_a_test_sample(
    tmp_path: Path,
    train_func: Train,
    loader: Loader,
    test_loader: Loader,
    returned: Tensor,
    shape: str,
) -> None:
    retrain_loo(train_func, loader, tmp_path, [1, 2], seed=0)
    with pytest.raises(BankError, match=rf"of shape {shape}; .* shape \(7,\)"):
        calculate_loo_ground_truth(lambda *_: returned, tmp_path, test_loader)


def test_targets_that_are_not_finite_are_kept_and_counted(
    tmp_path: Path, train_func: Train, loader: Loader, test_loader: Loader
) -> None:
    retrain_loo(train_func, loader, tmp_path, [1, 2], seed=0)
    with pytest.warns(UserWarning, match="1 of 2 models"):
        values, _ = calculate_loo_ground_truth(
            lambda path, _: torch.full((7,), torch.nan if "index_2" in str(path) else 0.0),
            tmp_path,
            test_loader,
        )
    assert values.isnan().sum(dim=1).tolist() == [0, 7]


def test_test_samples_in_another_order_under_every_model_are_refused(
    tmp_path: Path, digits: Any, train_func: Train, target_func: Target, loader: Loader
) -> None:
    retrain_loo(train_func, loader, tmp_path, [1], seed=0)
    with pytest.raises(BankError, match="test_dataloader shuffles"):
        calculate_loo_ground_truth(
            target_func, tmp_path, DataLoader(digits[1], batch_size=4, shuffle=True)
        )
    some = DataLoader(Subset(digits[1], [5, 1]), batch_size=1)
    values, _ = calculate_loo_ground_truth(target_func, tmp_path, some)
    assert values.shape == (1, 2)


def test_a_bank_that_is_not_whole(
    tmp_path: Path, train_func: Train, target_func: Target, loader: Loader, test_loader: Loader
) -> None:
    lds_bank, loo_bank = tmp_path / "lds", tmp_path / "loo"
    retrain_lds(train_func, loader, lds_bank, 2, start_id=1, total_num_subsets=4, seed=0)
    with pytest.raises(
        BankError, match=r"2 of 4 checkpoints are missing \(0/model_weights_0.pt, 3/model_wei"
    ):
        calculate_lds_ground_truth(target_func, lds_bank, test_loader)
    retrain_loo(train_func, loader, loo_bank, [1, 2], seed=0)
    (loo_bank / "index_2" / "model_weights.pt").unlink()
    with pytest.raises(BankError, match=r"1 of 2 checkpoints are missing \(index_2/model"):
        calculate_loo_ground_truth(target_func, loo_bank, test_loader)
    with pytest.raises(BankError, match="of mode 'loo', not 'lds'"):
        calculate_lds_ground_truth(target_func, loo_bank, test_loader)
    (loo_bank / "metadata.yml").write_text("mode: lds\nnum_subsets: 2\n")
    with pytest.raises(BankError, match="what the bank is to hold: num_runs_per_subset"):
        calculate_lds_ground_truth(target_func, loo_bank, test_loader)
    with pytest.raises(BankError, match=r"metadata.yml: no such file"):
        calculate_lds_ground_truth(target_func, tmp_path, test_loader)


def test_damaged_files_are_named(
    tmp_path: Path, train_func: Train, target_func: Target, loader: Loader, test_loader: Loader
) -> None:
    retrain_lds(train_func, loader, tmp_path, 2, seed=0)
    victim = tmp_path / "1" / "model_weights_0.pt"
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BankError, match=r"1/model_weights_0.pt: not a file of torch.save, or dam"):
        calculate_lds_ground_truth(target_func, tmp_path, test_loader)
    victim.write_bytes(whole)
    ids = tmp_path / "1" / "indices.txt"
    text = ids.read_text()
    for damaged, message in (
        (text[:10], "indices.txt: . ids, but subset 0 has 12"),
        ("x" + text, "indices.txt: not a list of ids"),
        (text + text[-3:], "indices.txt: it lists an id twice"),
    ):
        ids.write_text(damaged)
        with pytest.raises(BankError, match=message):
            calculate_lds_ground_truth(target_func, tmp_path, test_loader)


class Trap:
    """Unpickled, it leaves a trace."""

    trace: Path

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_no_code_in_a_checkpoint_is_run(
    tmp_path: Path,
    train_func: Train,
    target_func: Target,
    loader: Loader,
    test_loader: Loader,
    how: str,
) -> None:
    retrain_loo(train_func, loader, tmp_path / "bank", [1], seed=0)
    victim = tmp_path / "bank" / "index_1" / "model_weights.pt"
    trap = {"weight": torch.zeros(1), "trap": Trap(tmp_path / "TRAPPED")}
    if how == "pickle":
        victim.write_bytes(pickle.dumps(trap))
    else:
        torch.save(trap, victim, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(BankError, match=r"index_1/model_weights.pt: (refused|not a file)"):
        calculate_loo_ground_truth(target_func, tmp_path / "bank", test_loader)
    with pytest.warns(UserWarning, match="trained anew"):
        retrain_loo(train_func, loader, tmp_path / "bank", [1], seed=0)
    calculate_loo_ground_truth(target_func, tmp_path / "bank", test_loader)
    assert not (tmp_path / "TRAPPED").exists()


def test_a_bank_that_dattri_wrote_can_be_read(
    tmp_path: Path, target_func: Target, test_loader: Loader
) -> None:
    """Its paths are those of the machine and folder it was made in."""
    for subset in range(2):
        (tmp_path / str(subset)).mkdir()
        (tmp_path / str(subset) / "indices.txt").write_text("4\n1\n7")
        with preserved():
            model = nn.Sequential(nn.Dropout(0.1), nn.Linear(65, 10))
        write_state(tmp_path / str(subset) / "model_weights_0.pt", model.state_dict())
    (tmp_path / "metadata.yml").write_text(
        "mode: lds\ndata_length: 8\nnum_subsets: 2\nnum_runs_per_subset: 1\n"
        "subset_dir_map: {0: made/elsewhere/0, 1: made/elsewhere/1}\n"
    )
    values, indices = calculate_lds_ground_truth(target_func, tmp_path, test_loader)
    assert values.shape == (2, 7)
    assert indices.tolist() == [[4, 1, 7], [4, 1, 7]]
