"""The command line."""

from leaveout.cli.program import main

__all__ = ["main"]
