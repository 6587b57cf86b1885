"""Benchmark a problem of one's own: retrain, score, and see which method is right.

The files are those of the workflow: chunks of retrained models' targets, ground truths, models and
scores. A run that was stopped goes on where it was; what belongs to another problem is refused.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from leaveout.config import Recipe, Setting
from leaveout.config.sections import LDS, LOO, PBRF, Full, Half
from leaveout.doors.attribute import check_params, method_module
from leaveout.doors.samples import Given, plainly, samples_of, tried
from leaveout.doors.scores import Scores, Truth, collected
from leaveout.errors import LeaveoutError
from leaveout.problem.call import numbers, state_of
from leaveout.problem.randomness import seeded
from leaveout.problem.samples import Samples
from leaveout.problem.torch_losses import Given as Loss
from leaveout.problem.torch_losses import objective_of
from leaveout.problem.trees import tensors
from leaveout.retraining import trainings
from leaveout.retraining.common import Data
from leaveout.retraining.items import base_chunk, chunks
from leaveout.retraining.lds import lds_chunk
from leaveout.retraining.loo import loo_chunk
from leaveout.retraining.models import kept_models, models_chunk
from leaveout.retraining.pbrf import pbrf_chunk
from leaveout.retraining.truth import merge_truth
from leaveout.scoring.run import held, load_task, score_blocks
from leaveout.store import artefacts
from leaveout.store.contents import Arrays, save
from leaveout.training.trials import Trial

GIVEN = "leaveout.doors.given"
Section = TypeVar("Section", bound=BaseModel)
CHUNK = 10
"""Trainings in a file: what is lost when a run is stopped, at most."""

Ids = Literal["all"] | Mapping[str, int] | Sequence[int]


class Benchmark:
    """Ground truth of a problem of one's own, and methods measured against it.

    Example:
        >>> def build() -> nn.Module:
        ...     return nn.Linear(3, 2)
        >>> x, y = torch.randn(40, 3), torch.arange(40) % 2
        >>> bench = Benchmark(  # doctest: +SKIP
        ...     (x[:32], y[:32]), (x[32:], y[32:]), build, nn.CrossEntropyLoss(),
        ...     Recipe(learning_rate=0.1, epochs=5, batch_size=8), folder="bench",
        ... )
        >>> truth = bench.lds(subsets=50, runs=2)  # doctest: +SKIP
        >>> print(bench.score("if_explicit", damping=1e-2).against(truth))  # doctest: +SKIP
    """

    def __init__(
        self,
        train: Given,
        test: Given,
        build: Callable[[], nn.Module],
        loss: Loss,
        recipe: Recipe,
        *,
        folder: Path | str,
        test_loss: Loss | None = None,
        name: str = "own",
        seed: int = 0,
        version: str = "",
        device: str = "cpu",
        memory_gb: float = 8.0,
    ) -> None:
        """State the problem; nothing is trained yet.

        Args:
            train: Training samples, as :func:`leaveout.attribute` takes them.
            test: Test samples.
            build: Returns a new model, its weights drawn from torch's generator, which is seeded
                for each training.
            loss: What is trained on: a torch loss module, a function, a name or an ``Objective``.
            recipe: Optimiser, schedule and sizes.
            folder: Where all files go.
            test_loss: What is attributed, of a test sample; by default its loss.
            name: Of the problem; all random streams derive from it and the seed.
            seed: Root seed.
            version: A word of yours that is part of the problem's identity: change it where the
                code of model or loss changes in a way that neither the model's initial weights nor
                the loss's name show.
            device: ``cpu`` or ``cuda``.
            memory_gb: Memory that a method may take.

        Raises:
            LeaveoutError: An argument is wrong, or the folder holds another problem.
        """
        objective = objective_of(loss)
        asked = (objective if test_loss is None else objective_of(test_loss)).measured()
        left = plainly(samples_of(train, objective, "train"), loss)
        objective = left.objective
        right = samples_of(test, asked, "test")
        if objective.check is not None:
            objective.check(left.targets)

        def seeded_build(number: int) -> nn.Module:
            with seeded(number, "model"):
                torch.manual_seed(number)
                return build()

        trial = seeded_build(0).eval()
        for some, what in ((left, "train"), (right, "test")):
            tried(trial, some, what)
        self.data = Data(None, left.to(device), right.to(device), objective, seeded_build)
        self.folder, self.device, self.recipe = Path(folder), device, recipe
        self.setting = _section(
            Setting,
            **{
                "name": name,
                "seed": seed,
                "dataset": {"module": GIVEN, "n_train": len(left), "n_test": len(right)},
                "model": {"module": GIVEN},
                "objective": {"module": GIVEN},
                "recipe": recipe,
                "attribution": {"memory_gb": memory_gb},
                "full": {"chunk": 1, "checkpoints": 1},
                "half": {"chunk": 1},
                "pbrf": {"ids": {"spaced": 2}},
            },
        )
        self.identity = {
            "name": name,
            "seed": seed,
            "train": _digest(left),
            "test": _digest(right),
            "model": _state_digest(trial),
            "loss": [objective.name, asked.name if test_loss is not None else ""],
            "recipe": recipe.identity(),
            "version": version,
        }
        self._claim()

    def lds(
        self,
        subsets: int = 50,
        ratio: float = 0.5,
        runs: int = 2,
        *,
        keep_models: bool = False,
    ) -> Truth:
        """Retrain on random subsets: the truth of the linear datamodeling score.

        Args:
            subsets: How many. More of them later leave those that are trained as they are.
            ratio: Size of each, as a part of the training samples.
            runs: Models of each subset; two or more give a noise ceiling.
            keep_models: Whether to write the retrained models too, ``models`` files in
                ``folder/lds/.../models``; where they are missing they are trained again.

        Raises:
            LeaveoutError: A file in the folder is of another problem.
        """
        setting = self._with(
            lds=_section(LDS, subsets=subsets, ratio=ratio, runs=runs, chunk=CHUNK)
        )
        make = functools.partial(lds_chunk, setting)
        return self._truth(setting, "lds", make, keep_models)

    def loo(self, ids: Ids = "all", replicate: int = 20, *, keep_models: bool = False) -> Truth:
        """Retrain with one sample left out: the truth of leave-one-out.

        Args:
            ids: Which samples: ``all``, ``{"spaced": n}``, ``{"first": n}``, or a list of places.
            replicate: So many of them get a second run, for the noise ceiling.
            keep_models: Whether to write the retrained models too, as for :meth:`lds`.
        """
        setting = self._with(loo=_section(LOO, ids=_ids(ids), replicate=replicate, chunk=CHUNK))
        make = functools.partial(loo_chunk, setting)
        return self._truth(setting, "loo", make, keep_models)

    def pbrf(
        self, ids: Ids | None = None, damping: float = 1e-3, replicate: int = 0, steps: int = 50
    ) -> Truth:
        """Move the full model to where a sample counts no more (proximal Bregman response).

        Args:
            ids: Which samples, as for :meth:`loo`; by default 50 of them, evenly spaced.
            damping: Weight of half the squared distance from the full model.
            replicate: So many are solved from a second full model too, for the ceiling.
            steps: Steps at most.

        Raises:
            NotComputableError: The loss states no curvature.
        """
        wanted = {"spaced": 50} if ids is None else _ids(ids)
        values = {"ids": wanted, "damping": damping, "replicate": replicate, "steps": steps}
        runs = 2 if replicate else 1
        setting = self._with(
            pbrf=_section(PBRF, **values, chunk=CHUNK),
            full=Full(runs=runs, checkpoints=1, chunk=1),
        )
        full = dict(zip(chunks(setting, "full"), self._models(setting, "full"), strict=True))

        def solve(part: str, data: Data) -> Arrays:
            return pbrf_chunk(setting, part, data, full[base_chunk(setting, part)])

        return self._truth(setting, "pbrf", solve)

    def score(
        self, method: str, *, runs: int = 1, checkpoints: int = 1, half: int = 0, **params: Any
    ) -> Scores:
        """Score the training samples by a method, at models trained for it.

        Args:
            method: A method's name, or the path of a module of your own.
            runs: Full models to train.
            checkpoints: Kept along each training, for methods that trace it.
            half: Models on random halves to train, for TRAK.
            **params: The method's hyper-parameters.

        Raises:
            NotComputableError: The method is not defined for this problem.
            LeaveoutError: An argument is wrong or missing.
        """
        module = method_module(method)
        check_params(module, params)
        if "half" in getattr(module, "NEEDS", ()) and not half:
            half = int(params.get("models", 1))
        setting = self._with(
            full=_section(Full, runs=runs, checkpoints=checkpoints, chunk=1),
            **({"half": Half(runs=half, chunk=1)} if half else {}),
        )
        full = [artefacts.read(path, "models") for path in self._models(setting, "full")]
        some = (
            [artefacts.read(path, "models") for path in self._models(setting, "half")]
            if half
            else []
        )
        task = load_task(setting, self.data, full, some)
        shape = (len(task.train), len(task.test))
        name = module.__name__.rpartition(".")[2]
        blocks = score_blocks(lambda: module.attribute(task, **params), shape, name, [])
        values = collected(held(module, task, blocks), len(task.train), name)
        facts = trainings.joined([*full, *some])
        return Scores(values, task.train.ids, task.test.ids, name, params, facts)

    # files

    def _with(self, **sections: Any) -> Setting:
        """Return the setting with other sections, checked anew."""
        values = {name: getattr(self.setting, name) for name in type(self.setting).model_fields}
        return _section(Setting, **{**values, **sections})

    def _claim(self) -> None:
        """Write down whose folder it is, or see that it is this problem's."""
        path = self.folder / "problem.json"
        text = json.dumps(self.identity, indent=1, sort_keys=True) + "\n"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with artefacts.atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            return
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise LeaveoutError(
                f"{path}: it is damaged ({error}); choose another folder"
            ) from error
        odd = [key for key, value in self.identity.items() if known.get(key) != value]
        if odd:
            raise LeaveoutError(
                f"{self.folder}: it holds another problem: {', '.join(odd)} "
                f"{'differ' if len(odd) > 1 else 'differs'}. Choose another folder"
            )

    def _kept(self, path: Path, what: Mapping[str, Any], make: Callable[[], Arrays]) -> Path:
        """Make a file unless it is there, whole and made of the same."""
        key = json.dumps({**self.identity, **what}, sort_keys=True)
        if path.exists():
            try:
                if artefacts.read(path, leave=artefacts.ALL).meta.get("key") == key:
                    return path
            except artefacts.CorruptArtefactError:
                pass  # a job was stopped, or a disk is faulty: it is made again
        save(path, make(), {"key": key, "setting": self.setting.name})
        return path

    def _with_models(
        self,
        setting: Setting,
        models: Path,
        path: Path,
        what: Mapping[str, Any],
        make: Callable[[Data], Arrays],
    ) -> None:
        """Make a chunk of targets together with the file of its models, if that is not there."""

        def train() -> Arrays:
            trials: list[Trial] = []
            finals: list[Mapping[str, Tensor]] = []

            def keep(some: Sequence[Trial], states: Mapping[str, Tensor]) -> None:
                trials.extend(some)
                finals.append({name: value.cpu() for name, value in states.items()})

            targets = make(replace(self.data, keep=keep))
            self._kept(path, what, lambda: targets)
            return kept_models(setting, self.data, trials, finals)

        self._kept(models, what, train)

    def _models(self, setting: Setting, kind: Literal["full", "half"]) -> list[Path]:
        section = getattr(setting, kind).model_dump(exclude={"runs", "chunk"})
        return [
            self._kept(
                self.folder / "models" / f"{kind}-{_short(section)}" / f"{part}.safetensors",
                {kind: section, "runs": wanted},
                functools.partial(models_chunk, setting, kind, part, self.data),
            )
            for part, wanted in chunks(setting, kind).items()
        ]

    def _truth(
        self,
        setting: Setting,
        metric: Literal["lds", "loo", "pbrf"],
        make: Callable[[str, Data], Arrays],
        keep_models: bool = False,
    ) -> Truth:
        section = getattr(setting, metric).model_dump(
            mode="json", exclude={"subsets", "runs", "ids", "replicate", "chunk"}
        )
        place = self.folder / metric / _short(section)
        paths = []
        for part, wanted in chunks(setting, metric).items():
            name = f"{part}-of-{_short(wanted)}.safetensors"
            what, path = {metric: section, "items": wanted}, place / name
            made = functools.partial(make, part)
            if keep_models:
                self._with_models(setting, place / "models" / name, path, what, made)
            paths.append(self._kept(path, what, functools.partial(made, self.data)))
        items = [*chunks(setting, metric).values()]
        path = self.folder / "truth" / f"{metric}-{_short([section, items])}.safetensors"
        self._kept(
            path, {metric: section, "all": items}, lambda: merge_truth(setting, metric, paths)
        )
        return Truth(path, metric, setting.name, setting.seed)


def _section(kind: type[Section], **values: Any) -> Section:
    """Return a section of a setting, checked.

    Raises:
        LeaveoutError: A value is wrong; names it.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise LeaveoutError(f"{kind.__name__}: {'; '.join(found)}") from error


def _ids(ids: Ids) -> Any:
    return ids if isinstance(ids, str | Mapping) else tuple(int(i) for i in ids)


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _digest(samples: Samples) -> str:
    """Return a digest of samples: their numbers, types, shapes and ids."""
    sha = hashlib.sha256(samples.ids.tobytes())
    for value in tensors((samples.inputs, samples.targets)):
        array = np.ascontiguousarray(value.detach().cpu().numpy())
        sha.update(f"{array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()[:16]


def _state_digest(module: nn.Module) -> str:
    """Return a digest of a new model: its parts by name, and their initial numbers."""
    numbers(module)  # it has parameters
    sha = hashlib.sha256(repr(module).encode())
    for name, value in state_of(module).items():
        sha.update(name.encode())
        sha.update(value.detach().cpu().numpy().tobytes())
    return sha.hexdigest()[:16]
