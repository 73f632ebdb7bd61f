"""Bring a pack in step with its folder: decode what is new, forget what is gone, commit in one rename.

1. List the folder. A file of the same path, size and time as in the manifest is not opened.
2. Give each other file a row, and let workers read, hash, decode and write it there. Content that is already
   packed, under another name or time, is not decoded; it keeps its row.
3. Rename the new shards, then replace the manifest. Until then the old pack is whole, from then on the new.
4. Delete the shards that no entry needs.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoencode.data import manifest, workers
from autoencode.data.images import Limits, Preprocessing, find_images, read_bytes, read_image
from autoencode.data.manifest import Entry, Settings
from autoencode.data.shards import ShardReader, Shards
from autoencode.errors import ConfigError, ImageError, ImageFolderError, PackError
from autoencode.files import TEMPORARY_SUFFIX, exclusive, remove_temporaries

_SHARDS_NAME = "shards"
_SPARE_SHARDS = 32
_REASONS_SHOWN = 3


@dataclass(frozen=True)
class _File:
    """A file as it was when the folder was listed, before anything was read of it."""

    path: str
    size: int
    mtime: int


@dataclass(frozen=True)
class _Outcome:
    """What a worker found: an unusable file has a reason."""

    sha256: str | None
    reason: str | None = None


@dataclass(frozen=True)
class _Decoder:
    """What a worker does with (path, row): read and hash; decode and write what is not yet known."""

    folder: Path
    preprocessing: Preprocessing
    limits: Limits
    known: frozenset[str]
    shards: Shards

    def __call__(self, task: tuple[str, int]) -> _Outcome:
        path, row = task
        sha256 = None
        try:
            content = read_bytes(self.folder / path, self.limits)
            sha256 = hashlib.sha256(content).hexdigest()
            if sha256 not in self.known:
                self.shards.write(row, read_image(content, self.preprocessing, self.limits))
        except ImageError as err:
            return _Outcome(sha256, str(err))
        return _Outcome(sha256)


def shards_of(pack: Path, settings: Settings) -> Shards:
    """Return the shards of a pack."""
    size = settings.preprocessing
    return Shards(pack / _SHARDS_NAME, size.height, size.width, settings.rows_per_shard)


def update(
    folder: Path,
    pack: Path,
    preprocessing: Preprocessing,
    limits: Limits,
    worker_count: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Make `pack`, or bring it in step with `folder`. Arguments and errors: see `pack.pack_folder`."""
    worker_count = workers.available_cores() if worker_count is None else worker_count
    if worker_count < 1:
        raise ConfigError(f"The number of workers must be 1 or more, not {worker_count}.")
    _refuse_what_is_not_ours(pack)
    paths = find_images(folder)
    wanted = Settings.of(folder, preprocessing)
    busy = f"Another process is packing into {pack}. Wait until it is done, or choose another output."
    with exclusive(pack, busy, PackError):
        if manifest.is_pack(pack):
            settings, entries = manifest.read_settings(pack), manifest.read_manifest(pack)
        else:
            settings, entries = wanted, None
        if entries is None:
            settings = wanted
            manifest.write_settings(pack, settings)
        else:
            _refuse_other_settings(pack, settings, wanted)
        entries = entries or []
        shards = shards_of(pack, settings)
        ShardReader(shards, np.array(_rows(entries), np.int64))  # an update of a damaged pack is damaged
        decoder = _Decoder(
            settings.folder, preprocessing, limits, frozenset(_rows_by_content(entries)), shards
        )
        try:
            remove_temporaries(pack)
            shards.keep_only(shards.shards_of(_rows(entries)))
            updated = _compacted(_update(paths, folder, entries, decoder, worker_count, progress), shards)
            if updated != entries:
                manifest.write_manifest(pack, updated)
        except BaseException:
            with contextlib.suppress(OSError, PackError):
                _tidy(pack, shards)
            raise
        shards.keep_only(shards.shards_of(_rows(updated)))


def _tidy(pack: Path, shards: Shards) -> None:
    """Delete what a failed run leaves, going by the manifest on the disk, which may be old or new."""
    entries = manifest.read_manifest(pack)
    shards.keep_only(shards.shards_of(_rows(entries or [])))
    if entries is None:
        (pack / manifest.SETTINGS_NAME).unlink(missing_ok=True)
        shards.folder.rmdir()


def _refuse_what_is_not_ours(pack: Path) -> None:
    try:
        names = [path.name for path in pack.iterdir()] if pack.exists() else []
    except NotADirectoryError as err:
        raise PackError(f"{pack} is a file. Choose another output.") from err
    except OSError as err:
        raise PackError(f"Could not read {pack}: {err.strerror or err}. Choose another output.") from err
    # A lock or a temporary file alone is what a run leaves that was killed in its first moment.
    others = [name for name in names if name != ".lock" and not name.endswith(TEMPORARY_SUFFIX)]
    if others and not manifest.is_pack(pack):
        raise PackError(f"{pack} is not a pack, and not empty. Choose another output.")


def _refuse_other_settings(pack: Path, settings: Settings, wanted: Settings) -> None:
    advice = "Choose another output, or delete the pack to make it anew."
    if settings.folder != wanted.folder:
        raise PackError(f"{pack} is a pack of {settings.folder}, not of {wanted.folder}. {advice}")
    have, want = settings.preprocessing.to_json(), wanted.preprocessing.to_json()
    different = [f"{name} {have[name]}, not {want[name]}" for name in have if have[name] != want[name]]
    if different:
        raise PackError(f"{pack} was made with {'; '.join(different)}. {advice}")


def _rows(entries: Collection[Entry]) -> list[int]:
    return sorted({entry.row for entry in entries if entry.row is not None})


def _rows_by_content(entries: Collection[Entry]) -> dict[str, int]:
    return {e.sha256: e.row for e in entries if e.sha256 is not None and e.row is not None}


def _survey(paths: list[Path], folder: Path) -> list[_File]:
    files = []
    for path in paths:
        try:
            status = path.stat()
            size, mtime = status.st_size, status.st_mtime_ns
        except OSError:  # the worker will find out why
            size, mtime = 0, 0
        files.append(_File(path.relative_to(folder).as_posix(), size, mtime))
    return files


def _update(
    paths: list[Path],
    folder: Path,
    entries: list[Entry],
    decoder: _Decoder,
    worker_count: int,
    progress: Callable[[int, int], None] | None,
) -> list[Entry]:
    """Return the new entries, with every row they name in a finished shard."""
    unchanged = {_File(e.path, e.size, e.mtime): e for e in entries if e.status == "packed"}
    files = _survey(paths, folder)
    # A refused file is tried again each time: permissions, limits and decoders change without its time.
    tasks = [file for file in files if file not in unchanged]
    rows = _rows_by_content(entries)
    shards = decoder.shards
    first_row = (1 + max(shards.shards_of(rows.values()), default=-1)) * shards.rows_per_shard
    outcomes = _decode_all(tasks, first_row, decoder, worker_count, progress)

    updated = []
    for file in files:
        entry = unchanged.get(file)
        if entry is None:
            outcome, row = outcomes[file.path]
            if outcome.sha256 is None or outcome.reason is not None:
                reason = outcome.reason or "cannot be read"
                entry = manifest.refused(file.path, file.size, file.mtime, outcome.sha256, reason)
            else:
                row = rows.setdefault(outcome.sha256, row)
                entry = manifest.packed(file.path, file.size, file.mtime, outcome.sha256, row)
        updated.append(entry)
    live = _rows(updated)
    if not live:
        raise ImageFolderError(_all_refused(folder, updated))
    shards.finish(row for row in live if row >= first_row)
    return updated


def _decode_all(
    tasks: list[_File],
    first_row: int,
    decoder: _Decoder,
    worker_count: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, tuple[_Outcome, int]]:
    """Return the outcome of each task and its row, by path. The row depends on its place in `tasks` alone."""
    report = progress or (lambda done, total: None)
    report(0, len(tasks))
    outcomes: dict[str, tuple[_Outcome, int]] = {}
    if tasks:
        decoder.shards.reserve(first_row, len(tasks))
    numbered = [(file.path, first_row + index) for index, file in enumerate(tasks)]
    results = workers.run(decoder, numbered, seconds=decoder.limits.seconds_per_file, workers=worker_count)
    with contextlib.closing(results):
        for index, result in results:
            outcome = _Outcome(None, result.reason) if isinstance(result, workers.Lost) else result
            outcomes[tasks[index].path] = (outcome, first_row + index)
            report(len(outcomes), len(tasks))
    return outcomes


def _all_refused(folder: Path, entries: list[Entry]) -> str:
    shown = "; ".join(f"{e.path}: {e.reason}" for e in entries[:_REASONS_SHOWN])
    more = f"; and {len(entries) - _REASONS_SHOWN:,} more" if len(entries) > _REASONS_SHOWN else ""
    return f"No image in {folder}/ can be used, of {len(entries):,} found. {shown}{more}."


def _compacted(entries: list[Entry], shards: Shards) -> list[Entry]:
    """Copy the rows in use to new shards, if most space is not in use or there are many small shards."""
    live = _rows(entries)
    used = shards.shards_of(live)
    allocated = sum(shards.path(shard).stat().st_size for shard in used) // shards.row_bytes
    fewest = -(-len(live) // shards.rows_per_shard)
    if len(live) * 2 >= allocated and len(used) <= fewest + _SPARE_SHARDS:
        return entries
    first_row = (1 + used[-1]) * shards.rows_per_shard
    shards.copy(np.array(live, np.int64), first_row)
    moved = {row: first_row + place for place, row in enumerate(live)}
    return [e if e.row is None else _moved(e, moved[e.row]) for e in entries]


def _moved(entry: Entry, row: int) -> Entry:
    assert entry.sha256 is not None
    return manifest.packed(entry.path, entry.size, entry.mtime, entry.sha256, row)
