from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job_keys import prepare_key
from leaveout.config import Method, Setting
from leaveout.data.prepare import prepare
from leaveout.errors import LeaveoutError
from leaveout.metrics.evaluate import evaluate
from leaveout.retraining import trainings
from leaveout.retraining.items import chunks, items
from leaveout.retraining.lds import retrain_lds
from leaveout.retraining.loo import retrain_loo
from leaveout.retraining.models import train_models
from leaveout.retraining.truth import merge_truth
from leaveout.scoring.run import run_method
from leaveout.store import artefacts
from leaveout.store.artefacts import Artefact
from leaveout.store.contents import save
from leaveout.training.trials import Trial

Make = Callable[..., Setting]
METHOD = Method(name="grad_dot", module="leaveout.attribution.grad_dot", grid=({},))


def trial(*identity: str | int, **more: Any) -> Trial:
    return Trial(0, ("tiny", *identity), **more)


def some(*positions: int) -> np.ndarray:
    return np.array(positions)


def test_equal_names_are_equal_models() -> None:
    one = [
        trial("full", 0),
        trial("full", 1),
        trial("half", 0),
        trial("full", 0, removed=3),
        trial("full", 0, removed=4),
        trial("full", 0, shuffle=False),
        trial("full", 0, kept=some(0, 1)),
        trial("full", 0, kept=some(0, 2)),
        trial("lds", 0, 1, kept=some(0, 1)),
        trial("half", 0, kept=some(0, 1)),
    ]
    names = [trainings.name(t, 5) for t in one]
    assert len(set(names)) == len(one)
    assert names[:5] == ["full:0", "full:1", "half:0", "full:0 -3", "full:0 -4"]
    # a subset of all samples is no subset, and has no order
    assert trainings.name(trial("full", 0, kept=np.arange(5)), 5) == "full:0"
    assert trainings.name(trial("full", 0, kept=some(1, 0)), 5) == names[6]


def test_no_heavy_module_is_needed() -> None:
    code = "import sys; import leaveout.retraining.trainings; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


class Bank:
    """All files of a tiny setting."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.folder, self.setting, self.data = folder, setting, folder / "data"
        save(self.data, prepare(setting), {"key": prepare_key(setting)})
        self.header = {"setting": setting.name, "seed": setting.seed}
        self.models: dict[str, list[Path]] = {"full": [], "half": []}
        for kind, paths in self.models.items():
            for name in chunks(setting, kind):  # type: ignore[arg-type]
                paths.append(folder / f"{kind}{name}")
                save(paths[-1], train_models(setting, kind, name, self.data, "cpu"))  # type: ignore[arg-type]

    def truth(self, metric: Any) -> Path:
        retrain = {"lds": retrain_lds, "loo": retrain_loo}[metric]
        paths = [self.folder / f"{metric}{name}" for name in chunks(self.setting, metric)]
        for path in paths:
            save(path, retrain(self.setting, path.name[3:], self.data, "cpu"))
        save(self.folder / metric, merge_truth(self.setting, metric, paths), self.header)
        return self.folder / metric

    def score(self, half: bool = True) -> Path:
        out = self.folder / "score"
        paths = (self.models["full"], self.models["half"] if half else [])
        found = run_method(self.setting, METHOD, {}, self.data, *paths, "cpu")
        save(out, found["score"], self.header)
        return out

    def evaluated(self, metric: str, truth: Path, score: Path) -> set[str]:
        out = self.folder / "out.csv"
        names = {"setting": "tiny", "method": "grad_dot"}
        found = evaluate(metric, truth, [score], [], **names, root_seed=3, bootstrap=10)
        save(out, found["csv"])
        lines = [line.split(",") for line in out.read_text().splitlines()]
        return {line[lines[0].index("shares_models")] for line in lines[1:]}


def names(path: Path, part: str = "models") -> list[str]:
    found: list[str] = artefacts.read(path).meta["trainings"][part]
    return found


def test_every_file_says_which_models_are_in_it(make_setting: Make, tmp_path: Path) -> None:
    bank = Bank(tmp_path, make_setting())
    full, half = ([n for p in bank.models[k] for n in names(p)] for k in ("full", "half"))
    assert full == ["full:0", "full:1", "full:2"]
    assert [n.split(" on ")[0] for n in half] == ["half:0", "half:1", "half:2"]
    truth, loo = bank.truth("lds"), bank.truth("loo")
    wanted = [f"lds:{subset}:{run}" for subset, run in items(bank.setting, "lds")]
    assert [n.split(" on ")[0] for n in names(truth)] == wanted
    assert names(loo) == [f"full:{run} -{i}" for i, run in items(bank.setting, "loo")]
    # the full run that its differences are from is that of all, and by design
    assert names(loo, "shared") == ["full:0", "full:1"]
    assert names(truth, "shared") == []
    assert names(bank.score(half=False)) == full
    score = bank.score()
    assert names(score) == full + half
    for metric, path in (("lds", truth), ("loo", loo)):
        assert bank.evaluated(metric, path, score) == {"no"}


@pytest.mark.parametrize("metric", ["lds", "loo"])
def test_paired_models_are_no_overlap(make_setting: Make, tmp_path: Path, metric: str) -> None:
    pairing = {"lds": {"pairing": "drop"}, "loo": {"pairing": "drop"}}
    bank = Bank(tmp_path, make_setting(**pairing))
    truth = bank.truth(metric)
    assert {n.split(" ")[0] for n in names(truth)} == {"full:0", "full:1"}
    assert bank.evaluated(metric, truth, bank.score()) == {"no"}


def test_a_paired_subset_of_all_samples_is_the_full_model(
    make_setting: Make, tmp_path: Path
) -> None:
    own = tmp_path / "own.txt"
    own.write_text("1 2 3\n4 5 6\n" + " ".join(map(str, range(30))))
    lds = {"subsets": str(own), "runs": 1, "pairing": "drop"}
    base = make_setting().model_dump(exclude={"lds"})
    bank = Bank(tmp_path, Setting.model_validate({**base, "lds": lds}))
    truth, score = bank.truth("lds"), bank.score()
    states = artefacts.read(bank.models["full"][0])
    assert states.meta["trainings"]["models"][0] in names(truth)
    with pytest.raises(LeaveoutError, match=r"1 of the models .* ground truth's own .*: full:0\."):
        bank.evaluated("lds", truth, score)
    assert not (tmp_path / "out.csv").exists()


def changed(path: Path, out: Path, **meta: Any) -> Path:
    read = artefacts.read(path)
    kept = {k: v for k, v in {**read.meta, **meta}.items() if v is not None}
    artefacts.write(out, read.kind, read.tensors, read.dims, kept)
    return out


def test_scores_from_models_of_the_truth_are_refused(make_setting: Make, tmp_path: Path) -> None:
    bank = Bank(tmp_path, make_setting())
    truth, score = bank.truth("lds"), bank.score()
    taken = {"models": [*names(score), *names(truth)[2:4]], "shared": []}
    peeking = changed(score, tmp_path / "peeking", trainings=taken)
    with pytest.raises(LeaveoutError, match=r"peeking: 2 of the models it was computed from are"):
        bank.evaluated("lds", truth, peeking)
    nobody = changed(score, tmp_path / "nobody", trainings=None)
    assert bank.evaluated("lds", truth, nobody) == {"unknown"}


def artefact(setting: str, seed: int, *models: str) -> Artefact:
    record = {"models": list(models), "shared": ["full:0"]}
    meta = {"setting": setting, "seed": seed, "trainings": record}
    return Artefact(Path("x"), "score", {}, {}, meta, "")


def test_other_settings_and_seeds_have_other_streams() -> None:
    here = artefact("a", 0, "lds:0:0")
    assert trainings.check_apart(here, artefact("b", 0, "lds:0:0"))
    assert trainings.check_apart(here, artefact("a", 1, "lds:0:0"))
    assert trainings.check_apart(here, artefact("a", 0, "lds:1:0", "full:0"))
    with pytest.raises(LeaveoutError, match="lds:0:0"):
        trainings.check_apart(here, artefact("a", 0, "full:0", "lds:0:0"))


def test_a_file_made_from_others_holds_the_models_of_all() -> None:
    found = trainings.joined([artefact("a", 0, "x", "y"), artefact("a", 0, "y", "z")])
    assert found == {"trainings": {"models": ["x", "y", "z"], "shared": ["full:0"]}}
    unknown = Artefact(Path("x"), "score", {}, {}, {}, "")
    assert trainings.joined([artefact("a", 0, "x"), unknown]) == {}
