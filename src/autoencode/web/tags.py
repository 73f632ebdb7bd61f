"""Tags that a person gives to images: a log of JSON lines, so that they survive a restart and can be undone.

A line adds a tag to some images or takes it from them, or undoes the last line that stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from autoencode.errors import ConfigError
from autoencode.shared_log import SharedLog

if TYPE_CHECKING:
    from autoencode.data.entries import Entry

TAGS_NAME = "tags.jsonl"
MOST_LETTERS = 60

_Key = tuple[str, str]  # path and digest: another picture saved under the same name has no tags


class _Change(NamedTuple):
    tag: str
    is_on: bool
    keys: tuple[_Key, ...]  # those that it changed: undoing leaves the others as they were
    at: float  # Unix time, in seconds


class Tags(SharedLog):
    """The tags in one log, and those that are given from now on."""

    def _forget(self) -> None:
        self._of: dict[str, set[_Key]] = {}
        self._history: list[_Change] = []

    def of(self, entry: Entry) -> list[str]:
        """Return the tags of an image, sorted."""
        key = _key(entry)
        return sorted(tag for tag, keys in self._of.items() if key in keys)

    def counts(self) -> dict[str, int]:
        """Return how many images have each tag, by tag, sorted."""
        return {tag: len(self._of[tag]) for tag in sorted(self._of)}

    def set(self, tag: str, entries: Sequence[Entry], *, is_on: bool) -> int:
        """Give images a tag, or take it from them; return how many it changed.

        Raises:
            ConfigError: the tag is empty, longer than 60 letters, or holds characters that are not printable.
            OutputError: the log cannot be written; the change does not count then.
        """
        tag = tag.strip()
        if not tag or len(tag) > MOST_LETTERS or not tag.isprintable():
            raise ConfigError(f"A tag is 1 to {MOST_LETTERS} printable letters.")
        with self._writing():
            known = self._of.get(tag, set())
            keys = tuple(dict.fromkeys(key for key in map(_key, entries) if (key in known) != is_on))
            if keys:
                self._append({"tag": tag, "on": is_on, "images": keys})
        return len(keys)

    def undo(self) -> str | None:
        """Take back the last change that stands; return its tag, None if there is none."""
        with self._writing():
            if not self._history:
                return None
            tag = self._history[-1].tag
            self._append({"undo": True})
        return tag

    def last_at(self) -> float:
        """Return when the last change that stands was made (Unix time); 0 without one."""
        return self._history[-1].at if self._history else 0.0

    def _take(self, record: Mapping[str, Any]) -> None:
        if record.get("undo"):
            last = self._history.pop()
            self._change(last.tag, not last.is_on, last.keys)
            return
        tag, is_on = str(record["tag"]), bool(record["on"])
        keys = tuple((str(path), str(sha256)) for path, sha256 in record["images"])
        self._change(tag, is_on, keys)
        self._history.append(_Change(tag, is_on, keys, float(record.get("at", 0))))

    def _change(self, tag: str, is_on: bool, keys: Sequence[_Key]) -> None:
        known = self._of.setdefault(tag, set())
        (known.update if is_on else known.difference_update)(keys)
        if not known:
            del self._of[tag]


def _key(entry: Entry) -> _Key:
    return entry.path, str(entry.sha256)
