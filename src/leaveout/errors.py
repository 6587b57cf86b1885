"""Errors a user can act on."""

from __future__ import annotations


class LeaveoutError(Exception):
    """A failure the user can mend.

    The message says what is wrong, where (the key or the file), and what to do. The command line
    prints it without a traceback and exits with status 1.
    """
