from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import leaveout
from leaveout.errors import LeaveoutError
from leaveout.store import artefacts

RESULTS = Path("results/mnist_lr")
KEYS = {
    "model", "models_full", "models_half", "train_dataset", "test_dataset", "train_sampler",
    "test_sampler", "loss_func", "target_func", "train_func",
}  # fmt: skip


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def test_everything_documented_is_there(finished: Path) -> None:
    details, (values, indices) = leaveout.load_benchmark("lr", "mnist", "lds", root=finished)
    assert details.keys() == KEYS
    assert [len(details[f"models_{kind}"]) for kind in ("full", "half")] == [3, 2]
    assert (values.shape, indices.shape) == ((12, 7), (12, 30))
    _, (values, indices) = leaveout.load_benchmark("lr", "mnist", "loo", str(finished))
    assert (values.shape, indices.tolist()) == ((8, 7), [3, 4, 8, 17, 21, 30, 44, 50])


def test_samples_are_in_the_order_of_scores(finished: Path) -> None:
    details, _ = leaveout.load_benchmark("lr", "mnist", "lds", root=finished)
    data = artefacts.read(finished / RESULTS / "data.safetensors").tensors
    for part, count in (("train", 60), ("test", 7)):
        dataset, sampler = details[f"{part}_dataset"], details[f"{part}_sampler"]
        assert list(sampler) == list(range(count))
        image, label = dataset[5]
        assert image.shape == (1, 28, 28)
        pixels = data[f"{part}_inputs"][5].astype(np.float64) / 255
        # float32 of values up to 3
        assert image[0].numpy() == pytest.approx((pixels - 0.1307) / 0.3081, abs=1e-6)
        assert label.item() == data[f"{part}_labels"][5]


def everything(dataset: Dataset[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all inputs and labels, in order."""
    inputs, labels = zip(*[dataset[i] for i in range(len(dataset))], strict=True)
    return torch.stack(inputs), torch.stack(labels)


def test_the_target_is_what_the_ground_truth_is_made_of(finished: Path) -> None:
    details, _ = leaveout.load_benchmark("lr", "mnist", "loo", root=finished)
    loader = DataLoader(details["test_dataset"], batch_size=3, sampler=details["test_sampler"])
    # nothing is left out of the full run beside the leave-one-out models, which is full run 0
    wanted = artefacts.read(finished / RESULTS / "truth/loo.safetensors").tensors["full_target"][0]
    found = details["target_func"](details["models_full"][0], loader)
    assert (found.dtype, found.shape) == (torch.float32, (7,))
    # trained in another stack: the weights agree to float32's rounding over 24 steps
    assert found.numpy() == pytest.approx(wanted, abs=1e-5)
    other = details["target_func"](details["models_full"][1], loader)
    assert np.abs(other.numpy() - wanted).max() > 1e-2


def test_checkpoints_load_into_the_model(finished: Path) -> None:
    details, _ = leaveout.load_benchmark("lr", "mnist", "lds", root=finished)
    loader = DataLoader(details["test_dataset"], batch_size=7)
    images, labels = everything(details["test_dataset"])
    full = artefacts.read(finished / RESULTS / "models/full/1.safetensors").tensors
    assert not details["model"].training
    details["model"].load_state_dict(torch.load(details["models_full"][2], weights_only=True))
    found = details["model"].linear.weight.detach().numpy()
    assert np.array_equal(found, full["state.linear.weight"][0, -1])
    with torch.no_grad():
        outputs = details["model"](images)
    wanted = torch.nn.functional.cross_entropy(outputs, labels, reduction="none")
    for checkpoint in (details["models_full"][2], torch.load(details["models_full"][2])):
        # float32 logits of a few units
        torch.testing.assert_close(
            details["loss_func"](checkpoint, loader), wanted, atol=1e-5, rtol=0
        )


def test_training_follows_the_recipe_and_the_seed_alone(finished: Path) -> None:
    details, _ = leaveout.load_benchmark("lr", "mnist", "lds", root=finished)
    train = details["train_func"]
    loader = DataLoader(details["train_dataset"], batch_size=8, shuffle=True)
    first, again, other = (train(loader, seed=seed).linear.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)

    # the first step by hand, from where a training of no epoch begins
    eight = torch.utils.data.Subset(details["train_dataset"], range(8))
    batch, (x, y) = DataLoader(eight, batch_size=8), everything(eight)
    start = train(batch, seed=3, epoch_num=0).double()
    outputs = start(x.double())
    torch.nn.functional.cross_entropy(outputs, y).backward()
    slope = start.linear.weight.grad
    stepped = train(batch, seed=3, epoch_num=1)
    torch.testing.assert_close(
        stepped.linear.weight.double(), start.linear.weight - 0.05 * slope, atol=1e-6, rtol=0
    )
    # and momentum, as the recipe has it: the second step goes on along the first
    moved = train(batch, seed=3, epoch_num=1).double()
    torch.nn.functional.cross_entropy(moved(x.double()), y).backward()
    second = moved.linear.weight - 0.05 * (0.5 * slope + moved.linear.weight.grad)
    found = train(batch, seed=3, epoch_num=2).linear.weight.double()
    torch.testing.assert_close(found, second, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("model", "dataset", "metric", "message"),
    [
        ("lr", "mnist", "ids", "metric: unknown 'ids'; did you mean 'lds'?"),
        ("lr", "mnits", "lds", "dataset: unknown 'mnits'; did you mean 'mnist'? Valid: mnist"),
        ("rl", "mnist", "lds", "model: unknown 'rl' for data set 'mnist'; did you mean 'lr'?"),
    ],
)
def test_what_is_unknown_is_named_with_the_nearest(
    finished: Path, model: str, dataset: str, metric: str, message: str
) -> None:
    with pytest.raises(LeaveoutError) as raised:
        leaveout.load_benchmark(model, dataset, metric, root=finished)
    assert message in str(raised.value)


def test_a_folder_without_settings_is_named(tmp_path: Path) -> None:
    with pytest.raises(LeaveoutError, match="no settings there; root is to be the folder"):
        leaveout.load_benchmark("lr", "mnist", "lds", root=tmp_path)


def test_what_is_missing_comes_with_the_command_that_makes_it(copy: Path) -> None:
    (copy / RESULTS / "models/half/0.safetensors").unlink()
    with pytest.raises(LeaveoutError) as raised:
        leaveout.load_benchmark("lr", "mnist", "lds", root=copy)
    path = "results/mnist_lr/models/half/0.safetensors"
    assert f"leaveout restore {path}\n" in str(raised.value)
    # the workflow's configuration does not name the setting
    assert str(raised.value).endswith(f"snakemake --config 'settings=[mnist_lr]' {path}")
    (copy / "config/config.yaml").write_text("settings: [mnist_lr]\n")
    with pytest.raises(LeaveoutError) as raised:
        leaveout.load_benchmark("lr", "mnist", "lds", root=copy)
    assert str(raised.value).endswith(f"  snakemake {path}")


def test_what_is_stale_is_not_used(copy: Path) -> None:
    setting = copy / "config/settings/mnist_lr.yaml"
    setting.write_text(setting.read_text().replace("learning_rate: 0.05", "learning_rate: 0.06"))
    with pytest.raises(LeaveoutError, match=r"recipe\.learning_rate: 0\.05 -> 0\.06"):
        leaveout.load_benchmark("lr", "mnist", "lds", root=copy)


def test_a_ground_truth_from_elsewhere_is_not_taken_for_ours(copy: Path) -> None:
    from leaveout.config import load_setting
    from leaveout.interop.transfer import export, import_truth

    truth = copy / RESULTS / "truth/lds.safetensors"
    export("kronfluence", [truth], copy / "files")
    setting = load_setting(copy / "config/settings/mnist_lr.yaml")
    data = copy / RESULTS / "data.safetensors"
    import_truth("kronfluence", "lds", setting, data, copy / "files", truth)
    with pytest.raises(LeaveoutError, match="not what today's configuration and code make"):
        leaveout.load_benchmark("lr", "mnist", "lds", root=copy)


def test_the_package_alone_loads_no_torch() -> None:
    code = (
        "import sys, json, leaveout; before = 'torch' in sys.modules; leaveout.load_benchmark; "
        "print(json.dumps([before, 'torch' in sys.modules, 'load_benchmark' in dir(leaveout)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, True, True]
    with pytest.raises(AttributeError, match="no attribute 'load_benchmarks'"):
        leaveout.load_benchmarks  # noqa: B018
