"""Files in one archive, which is sent while it is made: it is never in memory as a whole."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from autoencode.data.decoding import read_bytes
from autoencode.data.preprocessing import Limits
from autoencode.errors import ImageError


class _Sink(io.RawIOBase):
    """Bytes that are not sent yet; a zip file is sent as it is made, and never whole in memory."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:  # noqa: ANN401 - any buffer
        self._parts.append(bytes(content))
        return len(content)

    def take(self) -> bytes:
        """Return what was written since the last call."""
        content, self._parts = b"".join(self._parts), []
        return content


def zipped(files: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    """Yield a zip file of (name inside, file), a file in memory at a time; it names unreadable ones."""
    sink, taken, missing = _Sink(), set[str](), list[str]()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as file:  # images are compressed already
        for name, path in files:
            inside = _free(_inside(name), taken)
            try:
                content = read_bytes(path, Limits().max_bytes)
                # A zip file knows no date before 1980.
                date = max(
                    datetime.fromtimestamp(path.stat().st_mtime).timetuple()[:6], (1980, 1, 1, 0, 0, 0)
                )
            except (ImageError, OSError, ValueError) as err:
                missing.append(f"{inside}: {err}")
                continue
            file.writestr(zipfile.ZipInfo(inside, date), content)
            yield sink.take()
        if missing:
            file.writestr(_free("missing.txt", taken), "\n".join([*missing, ""]))
    yield sink.take()


def _inside(name: str) -> str:
    """Return a name in an archive that leads nowhere else, on any system that unpacks it."""
    kept = "".join(letter if letter.isprintable() and letter not in '\\:*?"<>|' else "_" for letter in name)
    parts = [part.rstrip(". ") for part in kept.split("/")]
    return "/".join(part for part in parts if part) or "unnamed"


def _free(name: str, taken: set[str]) -> str:
    # Unpacked on a Mac or Windows, names that differ in case alone are one file.
    stem, dot, ending = name.rpartition(".")
    count, free = 1, name
    while free.casefold() in taken:
        count += 1
        free = f"{stem}-{count}.{ending}" if dot and "/" not in ending else f"{name}-{count}"
    taken.add(free.casefold())
    return free
