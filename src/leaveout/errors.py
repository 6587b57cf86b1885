"""Errors a user can act on."""

from __future__ import annotations

from typing import Literal


class LeaveoutError(Exception):
    """A failure the user can mend.

    The message says what is wrong, where (the key or the file), and what to do. The command line
    prints it without a traceback and exits with status 1.
    """


class NotComputableError(LeaveoutError):
    """A method that can't score a setting: a fact for the table, which shows why and goes on.

    Attributes:
        reason: ``memory`` (it needs more than the setting allows), ``time`` (the same), or
            ``undefined`` (there is no such score for this model or these data).
        detail: What exactly, in a few words.
    """

    def __init__(self, reason: Literal["memory", "time", "undefined"], detail: str) -> None:
        """Say why, in one word and in a few."""
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
