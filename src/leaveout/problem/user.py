"""The user's own modules at work: a setting names one, and its function is called here.

That the module, the function and its keywords are there was seen when the setting was read
(:mod:`leaveout.config.own`), without importing them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from leaveout.config import Own
from leaveout.config.own import look_here
from leaveout.errors import LeaveoutError
from leaveout.problem.objective import Losses, Objective
from leaveout.problem.objectives import OBJECTIVES


def own_function(section: Own) -> Callable[..., Any]:
    """Import the function that a section of a setting names.

    Raises:
        LeaveoutError: The module needs another one that is not installed, or what has the
            function's name is none.
    """
    look_here()
    try:
        module = importlib.import_module(section.module)
    except ModuleNotFoundError as error:
        raise LeaveoutError(
            f"module: {section.module} needs {error.name}, which is not found; install it, or put "
            "it on PYTHONPATH"
        ) from error
    found = getattr(module, section.function, None)
    if not callable(found):
        raise LeaveoutError(
            f"module: {section.function} of {section.module} is {type(found).__name__}, and no "
            "function"
        )
    return found  # type: ignore[no-any-return]


def call_own(section: Own, **given: Any) -> Any:
    """Call the function that a section names, with the keywords of the setting.

    Args:
        section: The section.
        **given: What the function gets besides, where it takes an argument of that name; a keyword
            of the setting replaces it.
    """
    function = own_function(section)
    takes = inspect.signature(function).parameters
    known = {name: value for name, value in given.items() if name in takes}
    return function(**{**known, **section.keywords})


def make_objective(section: Any) -> Objective:
    """Return the objective that a section of a setting describes.

    Args:
        section: ``setting.objective``.

    Raises:
        LeaveoutError: A module of the user's gives no objective and no loss.
    """
    if not isinstance(section, Own):
        keywords = section.model_dump(exclude={"name"})
        return OBJECTIVES[section.name](**keywords)
    if section.function == "loss":
        return _of_losses(partial(own_function(section), **section.keywords), section.module)
    made = call_own(section)
    if isinstance(made, Objective):
        return made
    if not callable(made):
        raise LeaveoutError(
            f"objective: {section.module}.objective returned {type(made).__name__}; expected a "
            "leaveout.Objective, or a function of outputs and targets that gives one loss a sample"
        )
    return _of_losses(made, section.module)


def _of_losses(losses: Losses, name: str) -> Objective:
    """Return the objective of which the losses alone are known."""

    def checked(outputs: Any, targets: Any) -> Any:
        found = losses(outputs, targets)
        if getattr(found, "dim", lambda: 0)() != 1:
            shape = tuple(getattr(found, "shape", ()))
            raise LeaveoutError(
                f"objective: {name} returned losses of shape {shape}; expected one loss a sample, "
                "(samples,). Take reduction='none', and add up the rest of a sample's dimensions"
            )
        return found

    return Objective(name, checked)
