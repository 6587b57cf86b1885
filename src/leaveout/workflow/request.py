"""What was asked for on Snakemake's command line, checked before Snakemake stumbles over it."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from leaveout.errors import LeaveoutError


def _hint(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else "."


def check_configfiles(words: Sequence[str]) -> None:
    """Refuse a configuration file that is not there: Snakemake's own answer is a traceback.

    Args:
        words: The command line.

    Raises:
        LeaveoutError: There is none of that name.
    """
    after = False
    for word in words:
        name, _, value = word.partition("=")
        if word.startswith("-"):
            after = name in ("--configfile", "--configfiles")
            word = value
        if after and word and not Path(word).is_file():
            known = (str(path) for path in Path(word).parent.glob("*.yaml"))
            shipped = (str(path) for path in Path("config").glob("*.yaml"))
            raise LeaveoutError(f"{word}: no such file{_hint(word, {*known, *shipped})}")


def check_folder(folder: Path) -> None:
    """Refuse a working folder that can't be written.

    Args:
        folder: The folder.

    Raises:
        LeaveoutError: It can't.
    """
    inside = folder / ".snakemake"
    if not os.access(inside if inside.exists() else folder, os.W_OK):
        raise LeaveoutError(
            f"{folder}: this folder is read-only, or not yours to write. Work in a copy, or in "
            "another folder: snakemake --directory FOLDER --configfile config/config.yaml"
        )


def check_targets(words: Sequence[str], results: str, files: Collection[str]) -> None:
    """Refuse a target among the results that nothing makes: Snakemake names none that is like it.

    Args:
        words: The command line.
        results: The folder of all results.
        files: All files that jobs of this configuration make.

    Raises:
        LeaveoutError: There is one.
    """
    for before, word in itertools.pairwise(words):
        path = os.path.normpath(word)
        is_target = path.startswith(f"{results}/") and not before.startswith("--")
        if is_target and path not in files and not Path(path).exists():
            raise LeaveoutError(
                f"{word}: no job of this configuration makes it{_hint(path, files)}"
            )
