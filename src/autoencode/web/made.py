"""What was made of folders of images before: the runs and indexes under a folder, and the index of one."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoencode.atomic import is_locked
from autoencode.data.pack import open_pack
from autoencode.errors import AutoencodeError
from autoencode.index.memory import PACK_NAME, FileIndex, FileStore
from autoencode.models.model_file import MODEL_NAME
from autoencode.training.run import is_run
from autoencode.web.pictures import readable

INDEXES = "indexes"
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
