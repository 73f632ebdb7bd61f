"""A log of changes, a JSON line each, which several processes may write: each takes in what others wrote.

Reading the lines from first to last gives the state. A crash can cost the change that was being written, and
none before it.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoencode.atomic import append_line, make_folder, one_at_a_time, parse_json, write_bytes
from autoencode.errors import OutputError
from autoencode.untrusted import TEXT_BYTES, read_file


class SharedLog(ABC):
    """The changes in one log, and those that are made from now on.

    Args:
        path: the log; the first change makes the file.

    Raises:
        OutputError: the file is there and a line of it is no such change.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = 0
        self._forget()
        self._catch_up()

    @abstractmethod
    def _forget(self) -> None:
        """Start from the state before the first line."""

    @abstractmethod
    def _take(self, record: Mapping[str, Any]) -> None:
        """Change the state by a line; ValueError, KeyError, TypeError or the like if it is no change."""

    def _append(self, record: Mapping[str, Any]) -> None:
        """Write a change down, with its time, and take it; within `_writing`."""
        record = {**record, "at": time.time()}
        append_line(self.path, json.dumps(record))
        self._take(record)
        self._lines += 1

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Lock the log, take in what others wrote, and remove a line that a crash cut short."""
        make_folder(self.path.parent)
        with one_at_a_time(self.path.with_name(f"{self.path.name}.lock")):
            if cut_short := self._catch_up():
                write_bytes(self.path, read_file(self.path, TEXT_BYTES)[: -len(cut_short)])
            yield

    def _catch_up(self) -> bytes:
        """Take in new lines; return the bytes after the last line break, which are no whole line."""
        content = read_file(self.path, TEXT_BYTES) if self.path.exists() else b""
        *lines, rest = content.split(b"\n")
        if len(lines) < self._lines:  # someone replaced the log: what was read from it no longer stands
            self._forget()
            self._lines = 0
        for line in lines[self._lines :]:
            try:
                self._take(parse_json(line))
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as err:
                raise OutputError(
                    f"Line {self._lines + 1} of {self.path} is damaged. Remove it to continue."
                ) from err
            self._lines += 1
        return rest
