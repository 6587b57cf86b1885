"""A small step of one's own, in a module of one's own that tests can edit."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from leaveout.config import Setting
from leaveout.workflow import lock
from leaveout.workflow.step import Input, Job, Option, Step

MODULE = """
import numpy as np

from leaveout.errors import NotComputableError
from leaveout.store.artefacts import Stream
from leaveout.store.contents import Arrays

CALLS = []
MEANWHILE = lambda: None
REFUSE = False


def call(job):
    return {"given": job.file("given"), "factor": job.options["factor"]}


def compute(given, factor):
    CALLS.append(given)
    values = np.array([float(word) for word in given.read_text().split()]) * factor

    def blocks():
        yield values
        MEANWHILE()
        if REFUSE:
            raise NotComputableError("memory", "too large")

    stream = Stream(np.dtype("float64"), values.shape, blocks())
    arrays = Arrays("score", {"scores": stream, "id": np.arange(len(values))},
                    {"scores": ("n",), "id": ("n",)}, {"label": "own"})
    return {"values": arrays, "text": f"{values.sum()}\\n"}
"""


@dataclass
class Own:
    """A step, its module, and where its files lie.

    Attributes:
        step: The step.
        file: Its module's file.
        setting: The setting of its jobs.
    """

    step: Step
    file: Path
    setting: Setting
    factor: float = 2.0

    @property
    def module(self) -> ModuleType:
        """The step's module, as a job imports it."""
        return importlib.import_module("own_step")

    def job(self) -> Job:
        """Return the one job, with configuration as it is now."""
        return Job(
            step=self.step,
            names={"setting": self.setting.name},
            options={"factor": self.factor},
            load=lambda name: self.setting,
            method=None,
            inputs={"given": ("given.csv",)},
            outputs={name: path.format(setting="tiny") for name, path in OUTPUTS.items()},
        )

    def edit(self, old: str, new: str) -> None:
        """Edit the module's file."""
        text = self.file.read_text()
        assert old in text
        self.file.write_text(text.replace(old, new))


OUTPUTS = {"out": "{setting}/out.safetensors", "beside": "{setting}/beside.csv"}


@pytest.fixture
def own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_setting: Callable[..., Setting]
) -> Iterator[Own]:
    """Give a step of one's own in an empty folder with its input, ``given.csv``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lib").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "lib")
    file = tmp_path / "lib" / "own_step.py"
    file.write_text(MODULE)
    Path("given.csv").write_text("1 2 3")
    Path("tiny").mkdir()
    lock.look_again()
    monkeypatch.setattr(lock, "LOCK", tmp_path / "steps.lock")
    step = Step(
        name="own",
        help="multiply",
        outputs=OUTPUTS,
        inputs={"given": Input("numbers", "given.csv")},
        every=lambda plan: [{"setting": "tiny"}],
        compute="own_step:compute",
        call=importlib.import_module("own_step").call,
        decides=lambda job: {"seed": job.setting.seed},
        options={"factor": Option("by which", lambda plan, names: 2.0, float)},
    )
    yield Own(step, file, make_setting())
    del sys.modules["own_step"]
    lock.look_again()
