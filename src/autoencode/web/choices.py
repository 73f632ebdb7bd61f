"""What a person said about groups of copies, which file stays or that all do: a log of JSON lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autoencode.shared_log import SharedLog

if TYPE_CHECKING:
    from autoencode.data.entries import Entry

CHOICES_NAME = "copies.jsonl"

_Key = tuple[str, str]  # path and digest, as of tags


class Choices(SharedLog):
    """The choices in one log, and those that are made from now on."""

    def _forget(self) -> None:
        self._stays = set[_Key]()
        self._kept = set[frozenset[_Key]]()

    def stays(self, group: Sequence[Entry]) -> int | None:
        """Return the place in a group of the file that was chosen to stay; None if none was."""
        return next((at for at, entry in enumerate(group) if _key(entry) in self._stays), None)

    def keeps_all(self, group: Sequence[Entry]) -> bool:
        """Whether all files of a group stay."""
        return frozenset(map(_key, group)) in self._kept

    def choose(self, group: Sequence[Entry], at: int) -> None:
        """Let the file at a place of a group stay, and the others not.

        Raises:
            OutputError: the log cannot be written; the choice does not count then.
        """
        with self._writing():
            self._append({"stays": _key(group[at]), "of": [_key(entry) for entry in group]})

    def keep_all(self, group: Sequence[Entry], *, is_on: bool) -> None:
        """Let all files of a group stay, or no longer.

        Raises:
            OutputError: the log cannot be written; the choice does not count then.
        """
        with self._writing():
            self._append({"all": [_key(entry) for entry in group], "on": is_on})

    def _take(self, record: Mapping[str, Any]) -> None:
        if "all" in record:
            group = frozenset(map(_read, record["all"]))
            (self._kept.add if record["on"] else self._kept.discard)(group)
            return
        chosen, group = _read(record["stays"]), frozenset(map(_read, record["of"]))
        self._stays -= group
        self._stays.add(chosen)
        self._kept.discard(group)


def _key(entry: Entry) -> _Key:
    return entry.path, str(entry.sha256)


def _read(value: Sequence[object]) -> _Key:
    path, digest = value
    return str(path), str(digest)
