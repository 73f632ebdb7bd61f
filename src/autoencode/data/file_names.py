"""Names for the files of one folder, of which none is given twice."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from autoencode.atomic import cut_name


class FileNames:
    """Gives each result a file name of its own: the one wanted or, if that is taken, one with a number.

    Names are compared in lower case, as file systems of other machines do.

    Args:
        taken: names of other files in the folder.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = {name.lower() for name in taken}
        self._numbers: dict[str, int] = {}  # the last one of each name: many files may share a name

    def free(self, name: str) -> str:
        """Return a name that is not taken, and take it: "a.png", then "a-2.png"."""
        path, number = Path(name), self._numbers.get(name.lower(), 1)
        free = name
        while free.lower() in self._taken:
            number += 1
            free = f"{cut_name(path.stem)}-{number}{path.suffix}"
        self._numbers[name.lower()] = number
        self._taken.add(free.lower())
        return free
