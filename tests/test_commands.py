"""What is special to one command; tests/workflow/test_explain.py holds all to the rules."""

from __future__ import annotations

from pathlib import Path

from leaveout import cli, commands
from leaveout.workflow import Plan

CONFIG = Path(__file__).parents[1] / "config"


def test_how_many_samples_are_looked_at_is_part_of_the_command() -> None:
    values = {"settings": ["digits_lr"], "methods": ["random"], "metrics": ["loo_topk"], "top_k": 3}
    steps = Plan.load(values, CONFIG).steps("config/published.csv")
    (step,) = [step for step in steps if step.outputs[0].endswith("loo_topk/random.csv")]
    words = commands.command(step)
    assert words is not None
    assert cli._parser().parse_args(words[1:]).top_k == 3
