"""A setting as dattri's `load_benchmark` hands it out, from this project's own artefacts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler, TensorDataset

from leaveout.config import Setting, load_setting, load_yaml, nearest, parse_config
from leaveout.errors import LeaveoutError
from leaveout.interop import dattri, files
from leaveout.problem.samples import Samples
from leaveout.retraining.common import Data, load_data
from leaveout.store import artefacts, stamps
from leaveout.training.losses import stacked_targets
from leaveout.training.optimisers import rate, total_epochs, total_steps
from leaveout.training.precision import forward_precision
from leaveout.training.reference import torch_optimizer
from leaveout.workflow.plan import Plan
from leaveout.workflow.review import difference, wanted_specs
from leaveout.workflow.step import Job
from leaveout.workflow.steps import STEPS

METRICS = ("lds", "loo")

Checkpoint = str | Path | Mapping[str, Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]


def load_benchmark(
    model: str, dataset: str, metric: str, root: str | Path = "."
) -> tuple[dict[str, Any], tuple[Tensor, Tensor]]:
    """Load what attribution methods take and what they are to be measured against.

    The dictionary has the keys of dattri's function of that name, so that its attributors and
    metrics take what this returns (Deng et al. 2024, arXiv 2410.04555):

    - ``model``: the architecture, in evaluation mode.
    - ``models_full``, ``models_half``: paths of state dicts, one a run, trained on all samples and
      on random halves. They are written to ``results/SETTING/checkpoints`` on every call.
    - ``train_dataset``, ``test_dataset``: (input, label), in the order of scores and indices, with
      ``train_sampler`` and ``test_sampler`` over all of it.
    - ``loss_func``, ``target_func``: ``f(checkpoint, dataloader, device="cpu")`` gives the loss of
      each sample, (samples,); a checkpoint is a path or a state dict.
    - ``train_func``: ``f(dataloader, seed=0, device="cpu", epoch_num=None)`` trains a model by the
      setting's recipe.

    The ground truth is ``(target values, indices)``: for LDS minus the loss (subset, test), runs
    averaged, and the kept positions (subset, size); for LOO the loss (removed, test) and the
    positions left out (removed,). Target values are float32, positions int64.

    Args:
        model: The part of the setting's name after the data set's, such as ``lr``.
        dataset: The first part, such as ``mnist``.
        metric: ``lds`` or ``loo``.
        root: The folder that has ``config`` and ``results``.

    Raises:
        LeaveoutError: There is no such setting or metric (the nearest is named), or a file is
            missing or stale (the command that makes it is named).
    """
    root = Path(root)
    if metric not in METRICS:
        raise LeaveoutError(f"metric: unknown {metric!r}{nearest(metric, METRICS, cutoff=0)}")
    setting = _setting(model, dataset, root)
    config = parse_config({"settings": [setting.name], "metrics": [metric]})
    plan = Plan(config, {setting.name: setting}, {}, STEPS)
    steps = ("prepare", "train", f"retrain_{metric}", "merge_truth")
    jobs = [plan.job(step, names) for step in steps for names in plan.names(step)]
    _check_good(root, setting.name, jobs, f"retrain_{metric}")

    (prepared,), (truth,) = plan.files("prepare"), plan.files("merge_truth")
    data = load_data(setting, root / prepared, "cpu")
    if not isinstance(data.train.inputs, Tensor) or not isinstance(data.train.targets, Tensor):
        raise LeaveoutError(
            f"{setting.name}: its samples are several tensors each, which a TensorDataset of "
            "inputs and labels does not hold; read them by leaveout.Benchmark"
        )
    checkpoints = {
        kind: dattri.write_models(
            [artefacts.read(root / path, "models") for path in plan.files("train", kind=kind)],
            root / "results" / setting.name / "checkpoints" / kind,
        )
        for kind in ("full", "half")
    }
    train, test = (TensorDataset(s.inputs, s.targets) for s in (data.train, data.test))
    losses = _loss_func(data)
    return {
        "model": data.build(0).eval(),
        "models_full": [str(path) for path in checkpoints["full"]],
        "models_half": [str(path) for path in checkpoints["half"]],
        "train_dataset": train,
        "test_dataset": test,
        "train_sampler": SequentialSampler(train),
        "test_sampler": SequentialSampler(test),
        "loss_func": losses,
        "target_func": losses,
        "train_func": _train_func(setting, data),
    }, dattri.ground_truth(artefacts.read(root / truth, metric))


def _setting(model: str, dataset: str, root: Path) -> Setting:
    name = f"{dataset}_{model}"
    paths = {path.stem: path for path in (root / "config" / "settings").glob("*.yaml")}
    if not paths:
        raise LeaveoutError(
            f"{root / 'config' / 'settings'}: no settings there; root is to be the folder that has "
            "config and results, such as a clone of leaveout"
        )
    if name not in paths:
        # a model's name begins after the first _; what differs is named for itself
        known = dict(stem.split("_", 1) for stem in paths if "_" in stem)
        models = [stem.removeprefix(f"{dataset}_") for stem in paths if stem.startswith(dataset)]
        if dataset not in known:
            hint = nearest(dataset, sorted(known), cutoff=0)
            raise LeaveoutError(f"dataset: unknown {dataset!r}{hint}")
        hint = nearest(model, sorted(models), cutoff=0)
        raise LeaveoutError(f"model: unknown {model!r} for data set {dataset!r}{hint}")
    return load_setting(paths[name])


def _check_good(root: Path, name: str, jobs: Sequence[Job], between: str) -> None:
    """See that files are there, and are what today's configuration and code make.

    Args:
        root: The folder that has ``config`` and ``results``.
        name: The setting's name.
        jobs: Those that make the files, and all that comes before.
        between: The step whose files need not be there.
    """
    command = f"snakemake{_selecting(root, name)}"
    makers = {path: job for job in jobs if job.step.name != between for path in job.makes}
    if missing := [path for path in makers if not (root / path).is_file()]:
        listed = " ".join(missing)
        raise LeaveoutError(
            f"{root}: {len(missing)} of the files of {name} are not there, such as "
            f"{missing[0]}. In that folder,\n  leaveout restore {listed}\npulls what is published, "
            f"and what is not is made by\n  {command} {listed}"
        )
    wanted = wanted_specs(jobs)
    for path, job in makers.items():
        stamp = stamps.read(root / path)
        if stamp is None or stamp.spec != wanted[path]:
            why = difference(stamp.key, job.key) if stamp else "no stamp"
            raise LeaveoutError(
                f"{root / path}: not what today's configuration and code make "
                f"({why or 'what it was made from has changed'}). Make it anew, in "
                f"{root}, with:\n  {command} {path}"
            )


def _selecting(root: Path, name: str) -> str:
    """Return the option that makes the workflow know a setting, if it needs one."""
    path = root / "config" / "config.yaml"
    if path.is_file() and name in parse_config(load_yaml(path), path).settings:
        return ""
    return f" --config 'settings=[{name}]'"


def _loss_func(data: Data) -> Callable[..., Tensor]:
    def loss_func(checkpoint: Checkpoint, dataloader: Batches, device: str = "cpu") -> Tensor:
        """Return what is measured of each sample under a checkpoint, float32, (samples,)."""
        module = data.build(0)
        state = (
            checkpoint if isinstance(checkpoint, Mapping) else files.load_state(Path(checkpoint))
        )
        module.load_state_dict(dict(state))
        module.to(device).eval()
        # a loader draws a seed for workers, if there are any or not, from torch's own generator
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            found = [
                stacked_targets(module(some.inputs)[None], some)[0].cpu()
                for some in (
                    Samples(*batch, data.test.objective).to(device) for batch in dataloader
                )
            ]
        return torch.cat(found).float()

    return loss_func


def _train_func(setting: Setting, data: Data) -> Callable[..., nn.Module]:
    recipe = setting.recipe

    def train_func(
        dataloader: Batches, seed: int = 0, device: str = "cpu", epoch_num: int | None = None
    ) -> nn.Module:
        """Train a model on a loader by the setting's recipe; it depends on loader and seed alone.

        It is a plain loop, whose streams are not those of the artefacts' models.
        """
        where = torch.device(device)
        # a loader that shuffles, and dropout, draw from torch's own generator
        with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
            torch.manual_seed(seed)
            module = data.build(seed).to(where).train()
            optimizer = torch_optimizer(module, recipe)
            steps = total_steps(recipe, len(data.train))
            done = 0
            passes = total_epochs(recipe, len(data.train)) if epoch_num is None else epoch_num
            for _ in range(passes):
                for batch in dataloader:
                    some = Samples(*batch, data.objective).to(where)
                    for group in optimizer.param_groups:
                        group["lr"] = rate(recipe, min(done, steps - 1), steps)
                    with forward_precision(recipe, where):
                        outputs = module(some.inputs)
                    data.objective.batch_loss(outputs.float(), some.targets).backward()
                    if recipe.clip is not None:
                        nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
                    optimizer.step()
                    optimizer.zero_grad()
                    done += 1
        return module

    return train_func
