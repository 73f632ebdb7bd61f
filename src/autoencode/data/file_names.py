"""Names for result files, of which none is given twice."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from autoencode.atomic import cut_name


class FileNames:
    """Gives each result a file name of its own: the one wanted or, if that is taken, one with a number.

    Names may have sub-folders, with "/" between. They are compared in lower case, as file systems of other
    machines do.

    Args:
        taken: names of other files in the folder.
        reserved: names that only `own` gives.
    """

    def __init__(self, taken: Iterable[str] = (), reserved: Iterable[str] = ()) -> None:
        self._taken = {name.lower() for name in taken}
        self._reserved = {name.lower() for name in reserved}
        self._numbers: dict[str, int] = {}  # the last one of each name: many files may share a name

    def own(self, name: str) -> str:
        """Return a name that may be reserved, and take it; one with a number if it is taken."""
        if name.lower() in self._taken:
            return self.free(name)
        self._taken.add(name.lower())
        return name

    def free(self, name: str) -> str:
        """Return a name that is neither taken nor reserved, and take it: "a.png", then "a-2.png"."""
        path, number, free = PurePosixPath(name), self._numbers.get(name.lower(), 1), name
        while free.lower() in self._taken or free.lower() in self._reserved:
            number += 1
            free = path.with_name(f"{cut_name(path.stem)}-{number}{path.suffix}").as_posix()
        self._numbers[name.lower()] = number
        self._taken.add(free.lower())
        return free
