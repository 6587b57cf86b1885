"""The registry: every step of the workflow, in an order in which each comes after what it reads.

To add one, write a function that returns its contents, an entry in the file of its kind, and a rule
of the same name in ``workflow/rules``. Nothing else: keys, stamps, the command, ``explain`` and the
documentation's list of steps follow.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leaveout.workflow.plan import Plan
from leaveout.workflow.step import Step
from leaveout.workflow.steps import figures, measuring, scoring, tables, training

STEPS: dict[str, Step] = {
    step.name: step
    for room in (training, scoring, measuring, tables, figures)
    for step in room.STEPS
}
"""Every step by name."""


def load_plan(values: Mapping[str, Any], folder: Path | str) -> Plan:
    """Return the plan of a configuration, with all steps.

    Args:
        values: The top-level configuration.
        folder: Holds ``settings`` and ``methods.yaml``.

    Raises:
        ConfigError: Something does not fit the schema.
    """
    return Plan.load(values, folder, STEPS)
