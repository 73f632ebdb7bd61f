"""Commands on folders of images: the runs and indexes that they made, and those that the page begins."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from autoencode.atomic import free_path, is_locked
from autoencode.data.pack import open_pack
from autoencode.errors import AutoencodeError, ConfigError
from autoencode.index.memory import PACK_NAME, FileIndex, FileStore
from autoencode.models.model_file import MODEL_NAME
from autoencode.training.run import is_run
from autoencode.web.pictures import readable

INDEXES = "indexes"
LOG_NAME = "page.log"
MOST_FOLDERS, DEEPEST = 2_000, 3  # looked through for runs and indexes


def made_in(root: Path, path: Path) -> list[dict[str, Any]]:
    """Return the runs and indexes under a folder, the newest first, with their paths relative to `root`."""
    found: list[tuple[float, dict[str, Any]]] = []
    for looked, (folder, inner, names) in enumerate(os.walk(path)):
        here = Path(folder)
        if looked > MOST_FOLDERS or len(here.relative_to(path).parts) >= DEEPEST:
            inner.clear()
        is_model, is_index = MODEL_NAME in names and is_run(here), FileStore().holds(here)
        if is_model or is_index:
            inner.clear()
            about = {
                "path": readable(here.relative_to(root).as_posix()),
                "kind": "run" if is_model else "index",
                "training": is_model and is_locked(here),
            }
            with contextlib.suppress(OSError):
                found.append((here.stat().st_mtime, about))
    return [about for _, about in sorted(found, key=lambda one: -one[0])]


def index_of(root: Path, source: Path, opened: FileIndex | None = None) -> tuple[Path, str] | None:
    """Return an index under `root` of a folder of images, and the folder as that index names it.

    A new one beside it would have none of the tags and decisions that are kept in it.

    Args:
        root: the folder that holds `indexes`.
        source: the folder of images, without links.
        opened: the index that the page shows, which is preferred.
    """
    for path in _candidates(root, source, opened):
        if not path.is_relative_to(root):
            continue
        with contextlib.suppress(AutoencodeError, OSError):
            known = _source_of(path, *_state(path))
            if known is not None and Path(known).resolve() == source:
                return path, known
    return None


def _candidates(root: Path, source: Path, opened: FileIndex | None) -> Iterator[Path]:
    if opened is not None:
        yield Path(opened.path).resolve()
    place = root / INDEXES
    with contextlib.suppress(OSError):
        inner = sorted(path for path in place.iterdir() if path.is_dir())
        # Of several, the first that was made: it has had the time to be given tags.
        yield from sorted(inner, key=lambda path: (path.name != source.name, path.name))


def _state(path: Path) -> tuple[int, int]:
    file = next(one for one in (*(path / name for name in FileStore.contents), path) if one.exists())
    status = file.stat()
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=64)
def _source_of(path: Path, *_: int) -> str | None:
    """Return the folder that an index is of, also of one that was stopped before it was whole."""
    if FileStore().holds(path):
        return FileStore().open(path).sources[0]
    pack = path / PACK_NAME
    return str(open_pack(pack).folder) if pack.is_dir() else None


class Work(NamedTuple):
    """A command that is running, or has ended; `is_update` of an index that was there."""

    kind: Literal["train", "index"]
    source: Path
    out: Path
    log: Path
    process: subprocess.Popen[bytes]
    is_update: bool = False


class Starter:
    """Opens and makes what lies under one folder, for the page, one command at a time.

    Args:
        root: the folder; None where nothing may be chosen, as on a page for other machines.
    """

    def __init__(self, root: Path | None) -> None:
        self.root = None if root is None else root.resolve()
        self.work: Work | None = None

    def inside(self, relative: str) -> Path:
        """Return a folder under the root.

        Raises:
            ConfigError: there is none, or it lies elsewhere, also by a link.
        """
        assert self.root is not None
        try:
            path = (self.root / relative).resolve()
            is_folder = path.is_dir()
        except (OSError, ValueError, RuntimeError) as err:  # too long; a zero byte; a loop of links
            raise ConfigError("There is no such folder.") from err
        if not path.is_relative_to(self.root) or not is_folder:
            raise ConfigError(f"Only folders under {self.root} can be opened. Start the page in another one.")
        return path

    def begin(self, kind: Literal["train", "index"], source: Path, opened: FileIndex | None = None) -> Work:
        """Start to train or index the images of a folder; an index of it is updated, and keeps its tags.

        Args:
            kind: the command.
            source: the folder, from `inside`.
            opened: the index that the page shows.

        Raises:
            ConfigError: another command is running.
        """
        assert self.root is not None
        if self.is_busy:
            raise ConfigError("Another command is running. Wait for it, or stop it.")
        place = self.root / ("runs" if kind == "train" else INDEXES)
        there = index_of(self.root, source, opened) if kind == "index" else None
        out, named = there or (free_path(place / source.name), str(source))
        place.mkdir(parents=True, exist_ok=True)
        log = place / f"{out.name}-{LOG_NAME}"
        command = [sys.executable, "-m", "autoencode", kind, named, "--out", str(out)]
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.root,
                env={**os.environ, "AUTOENCODE_LINE_SECONDS": "0.5"},
            )
        self.work = Work(kind, source, out, log, process, is_update=there is not None)
        return self.work

    @property
    def is_busy(self) -> bool:
        """Whether a command is running."""
        return self.work is not None and self.work.process.poll() is None

    def stop(self) -> None:
        """End the command as Ctrl-C does: what it made so far is kept."""
        if self.work is not None and self.is_busy:
            self.work.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """End the command with the page."""
        self.stop()
        if self.work is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.work.process.wait(10)
