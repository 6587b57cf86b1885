"""The two commands, as they are typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from leaveout.cli import program as cli
from leaveout.interop import files
from leaveout.store import artefacts

RESULTS = Path("results/mnist_lr")
Main = Callable[..., tuple[int, str]]


@pytest.fixture
def main(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Main:
    """Return a function that runs one command line in the finished folder: (status, error)."""
    monkeypatch.chdir(finished)
    monkeypatch.setattr(cli, "CONFIG", Path("config"))

    def run(*words: str | Path) -> tuple[int, str]:
        status = cli.main([str(word) for word in words])
        return status, capsys.readouterr().err

    return run


IMPORT = ("import", "--setting", "mnist_lr", "--data", RESULTS / "data.safetensors")


def test_a_whole_benchmark_is_written(main: Main, tmp_path: Path) -> None:
    truths = sorted((RESULTS / "truth").glob("*"))
    models = sorted((RESULTS / "models").glob("*/*"))
    assert main("export", "--to", "dattri", "--out", tmp_path, *truths, *models)[0] == 0
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.pt"))
    assert found == [
        "lds/indices_lds.pt",
        "lds/target_values_lds.pt",
        "loo/indices_loo.pt",
        "loo/target_values_loo.pt",
        *(f"models_full/{i}/model_weights_0.pt" for i in range(3)),
        *(f"models_half/{i}/model_weights_0.pt" for i in range(2)),
    ]


def test_what_was_exported_is_imported_and_evaluated(main: Main, tmp_path: Path) -> None:
    for library, folder in (("dattri", "lds"), ("kronfluence", ".")):
        truth = RESULTS / "truth/lds.safetensors"
        assert main("export", "--to", library, "--out", tmp_path, "--run", 1, truth)[0] == 0
        out = tmp_path / f"{library}.safetensors"
        source = ("--from", library, "--metric", "lds", "--out", out, tmp_path / folder)
        assert main(*IMPORT, *source)[0] == 0
        score = RESULTS / "scores/grad_dot/default.safetensors"
        csv = tmp_path / f"{library}.csv"
        evaluate = ("--method", "grad_dot", "--truth", out, "--scores", score, "--bootstrap", 10)
        named = ("--setting", "mnist_lr", "--metric", "lds", "--out", csv)
        assert main("evaluate", *named, *evaluate)[0] == 0
    assert (tmp_path / "dattri.csv").read_text() == (tmp_path / "kronfluence.csv").read_text()


@pytest.mark.parametrize("layout", ["lds", "loo"])
def test_retrained_models_are_measured(main: Main, tmp_path: Path, layout: str) -> None:
    # folders as dattri names them, filled with models whose losses the artefacts know
    models = [artefacts.read(RESULTS / f"models/full/{i}.safetensors").tensors for i in (0, 1)]
    states = [
        {
            n: torch.from_numpy(t[f"state.linear.{n[7:]}"][row, -1])
            for n in ("linear.weight", "linear.bias")
        }
        for t in models
        for row in range(len(t["run_id"]))
    ]
    folder = tmp_path / "bank"
    for i, state in enumerate(states):
        if layout == "loo":
            files.save(folder / f"index_{i}" / "model_weights.pt", state)
        else:
            (folder / str(i)).mkdir(parents=True)
            (folder / str(i) / "indices.txt").write_text("\n".join(map(str, range(60))))
            files.save(folder / str(i) / "model_weights_0.pt", state)
            files.save(folder / str(i) / "model_weights_1.pt", states[0])
    out = tmp_path / "out.safetensors"
    source = ("--from", "dattri", "--metric", layout, "--out", out, folder)
    assert main(*IMPORT, *source)[0] == 0
    target = artefacts.read(out, layout).tensors["target"]
    # in float64, by hand
    data = artefacts.read(RESULTS / "data.safetensors").tensors
    x = (data["test_inputs"].reshape(7, -1) / 255.0 - 0.1307) / 0.3081
    for i, state in enumerate(states):
        z = x @ state["linear.weight"].numpy().T.astype(np.float64) + state["linear.bias"].numpy()
        loss = np.log(np.exp(z).sum(axis=1)) - z[np.arange(7), data["test_labels"]]
        # logits are float32, a few units large: 1e-6 of them, 1e-5 with room
        assert target[i, 0] == pytest.approx(loss, abs=1e-5)
    if layout == "lds":
        assert np.array_equal(target[:, 1], np.broadcast_to(target[:1, 0], (3, 7)))


def test_bad_input_is_an_error_in_a_line(main: Main, tmp_path: Path) -> None:
    lds, models = RESULTS / "truth/lds.safetensors", RESULTS / "models/full/0.safetensors"
    for words, message in (
        (("export", "--to", "dattri", "--run", 7, lds), "there is no run 7"),
        (("export", "--to", "dattri", RESULTS / "data.safetensors"), "no ground truth of dattri's"),
        (("export", "--to", "kronfluence", models), "no files for what is of kind 'models'"),
        (("export", "--to", "kronfluence", lds, lds), "give one ground truth"),
        (("export", "--to", "dattri", "nothing"), "no such file"),
        ((*IMPORT, "--from", "dattri", "--metric", "lds", tmp_path), "nothing there is named like"),
        ((*IMPORT, "--from", "kronfluence", "--metric", "lds", tmp_path), "masks.pt: no such file"),
    ):
        status, error = main(*words, "--out", tmp_path / "x")
        assert (status, message in error) == (1, True), error
    assert not (tmp_path / "x").exists()


def test_models_of_another_architecture_are_named(main: Main, tmp_path: Path) -> None:
    torch_state = {"fc1.weight": torch.zeros(10, 784)}
    files.save(tmp_path / "index_3" / "model_weights.pt", torch_state)
    source = ("--from", "dattri", "--metric", "loo", "--out", tmp_path / "x", tmp_path)
    status, error = main(*IMPORT, *source)
    assert status == 1
    assert "not a state of mnist_lr's model" in error
    assert "linear.weight" in error
