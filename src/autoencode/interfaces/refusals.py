"""Files that could not be used: a line each for the first few, and an error for those given by name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from rich.console import Console

from autoencode.errors import ImageError
from autoencode.interfaces.progress import console, counted, one_line

SHOWN = 5

Refused = Sequence[tuple[Path, str]]


def show_refused(refused: Refused, to: Console = console) -> None:
    """Print the first few with their reasons, and how many more there are."""
    for path, reason in refused[:SHOWN]:
        to.print(one_line(f"refused {path}: {reason}"), soft_wrap=True)
    if len(refused) > SHOWN:
        to.print(f"refused {len(refused) - SHOWN:,} more")


def fail_if_named(refused: Refused, given: Collection[Path]) -> None:
    """Refuse to call it done where a file that was asked for could not be used; one in a folder may be.

    Args:
        refused: the files that could not be used, with the reason.
        given: the files and folders that were asked for.

    Raises:
        ImageError: one of them was given by name.
    """
    named = [f"{path}: {reason}" for path, reason in refused if path in given]
    if named:
        raise ImageError(f"{counted(len(named), 'file')} asked for by name refused. {'; '.join(named)}.")
