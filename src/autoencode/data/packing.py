"""Bring a pack in step with its folder: decode what is new, forget what is gone, commit in one rename.

1. List the folder. A file of the same path, size and time as in the manifest is not opened.
2. Give each other file a row, and let workers read, hash, decode and write it there. Content that is already
   packed, under another name or time, is not decoded; it keeps its row.
3. Rename the new shards, then replace the manifest. Until then the old pack is whole, from then on the new.
4. Delete the shards that no entry needs.

A pack in storage is made in its mirror (see `mirror`), a shard at a time: no more of it is on this disk. Of
several parts, each has a manifest of its own, and whoever finds all of them merges them.
"""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoencode.atomic import TEMPORARY_SUFFIX, exclusive, one_at_a_time, remove_temporaries
from autoencode.data import manifest, workers
from autoencode.data import remote as mirror
from autoencode.data.manifest import Entries, Entry, Settings, unread
from autoencode.data.reading import Decoder, read_all
from autoencode.data.shards import WHOLE, Part, ShardReader, Shards
from autoencode.data.sources import image_names
from autoencode.errors import ConfigError, ImageFolderError, PackError, StorageError

if TYPE_CHECKING:
    from autoencode.data.preprocessing import Limits, Preprocessing

_PARTS_NAME, _MERGING = "parts", ".merging.lock"
_SPARE_SHARDS = 32
_REASONS_SHOWN = 3
_LATEST = 2**63 - 1  # nanoseconds, the year 2262


def update(
    folder: Path,
    pack: Path,
    preprocessing: Preprocessing,
    limits: Limits,
    worker_count: int | None,
    progress: Callable[[int, int], None] | None,
    part: Part = WHOLE,
) -> int:
    """Make `pack` or a part of it, or bring it in step with `folder`; return how many parts are done.

    Arguments and errors: see `pack.pack_folder`.
    """
    worker_count = workers.available_cores() if worker_count is None else worker_count
    if worker_count < 1:
        raise ConfigError(f"The number of workers must be 1 or more, not {worker_count}.")
    _reject_what_is_not_ours(pack)
    listed = Entries(entry for entry in _survey(folder) if part.takes(entry.path))
    wanted = Settings.of(folder, preprocessing, part.count)
    where = _folder_of(pack, part)
    at = f"{mirror.shown(pack)}{'' if part == WHOLE else f', part {part.index + 1}'}"
    busy = f"Another process is packing into {at}. Wait until it is done, or choose another output."
    with exclusive(where, busy, PackError):
        entries = _manifest_of(pack, part)
        if manifest.is_pack(pack) and (entries is not None or part != WHOLE or _has_parts(pack)):
            settings = manifest.read_settings(pack)
            _reject_other_settings(mirror.shown(pack), settings, wanted)
        else:
            settings = wanted
            with mirror.changing(pack, manifest.SETTINGS_NAME):
                manifest.write_settings(pack, settings)
        entries = Entries() if entries is None else entries
        shards = mirror.shards_of(pack, settings.preprocessing, settings.rows_per_shard, part)
        ShardReader(shards, _rows(entries))  # an update of a damaged pack is damaged
        try:
            remove_temporaries(where)
            shards.keep_only(_needed(pack, part, entries, shards))
            decoder = Decoder(settings.folder, preprocessing, limits, shards)
            _update(listed, entries, decoder, worker_count, progress)
            if part == WHOLE and not mirror.remote_of(pack):
                _compact(listed, shards)
            if listed != entries or not (where / manifest.MANIFEST_NAME).exists():
                _write(pack, part, listed)
            done = 1 if part == WHOLE else _merge(pack, part.count)
        except BaseException:
            with contextlib.suppress(OSError, PackError, StorageError):
                _tidy(pack, part, shards)
            raise
        shards.keep_only(shards.shards_of(_rows(listed)))
    return done


def _has_parts(pack: Path) -> bool:
    """Whether a pack that is not finished is made in several parts."""
    with contextlib.suppress(PackError):
        return manifest.read_settings(pack).parts > 1
    return False


def _folder_of(pack: Path, part: Part) -> Path:
    """Where the manifest of a part is."""
    return pack if part == WHOLE else pack / _PARTS_NAME / str(part)


def _manifest_of(pack: Path, part: Part) -> Entries | None:
    """Return what is in a part, as of now; None if it has not been packed."""
    where = _folder_of(pack, part)
    mirror.pull(pack, f"{where.relative_to(pack) / manifest.MANIFEST_NAME}")
    return manifest.read_manifest(where)


def _write(pack: Path, part: Part, entries: Iterable[Entry]) -> None:
    where = _folder_of(pack, part)
    with mirror.changing(pack, f"{where.relative_to(pack) / manifest.MANIFEST_NAME}"):
        manifest.write_manifest(where, entries)


def _needed(pack: Path, part: Part, entries: Entries, shards: Shards) -> list[int]:
    """Return the shards that the entries of a part are in, now and as the whole pack has them.

    A run that was killed before it merged the parts has left a whole that is older than the part.
    """
    whole = None if part == WHOLE else _manifest_of(pack, WHOLE)
    return sorted({*shards.shards_of(_rows(entries)), *shards.shards_of(_rows(whole or Entries()))})


def _merge(pack: Path, count: int) -> int:
    """Make one manifest of those of all parts, if they are all there; return how many are.

    Another may end its part meanwhile. On a disk it waits until this has merged, and merges again. Storage
    has no locks: there this looks once more, until nothing has changed.
    """
    with one_at_a_time(pack / _MERGING):
        parts = _manifests(pack, count)
        while len(parts) == count:
            merged = Entries(heapq.merge(*parts, key=lambda entry: entry.path))
            packed = np.flatnonzero(merged.rows >= 0)
            _share_rows(merged, packed, merged.rows[packed], Entries())
            if not len(packed):
                raise ImageFolderError(_all_skipped(manifest.read_settings(pack).folder, merged))
            if merged != _manifest_of(pack, WHOLE):
                _write(pack, WHOLE, merged)
            if mirror.remote_of(pack) is None or (again := _manifests(pack, count)) == parts:
                break
            parts = again
    return len(parts)


def _manifests(pack: Path, count: int) -> list[Entries]:
    """Return what is in each part that is done."""
    parts = (Part(index, count) for index in range(count))
    return [entries for part in parts if (entries := _manifest_of(pack, part)) is not None]


def _tidy(pack: Path, part: Part, shards: Shards) -> None:
    """Delete what a failed run leaves, going by the manifest on the disk, which may be old or new."""
    entries = _manifest_of(pack, part)
    shards.keep_only(_needed(pack, part, entries or Entries(), shards))
    if entries is None and part == WHOLE:
        with mirror.changing(pack, manifest.SETTINGS_NAME):
            (pack / manifest.SETTINGS_NAME).unlink(missing_ok=True)
        shards.folder.rmdir()


def _reject_what_is_not_ours(pack: Path) -> None:
    remote = mirror.remote_of(pack)
    try:
        if remote is not None:
            names = list(remote.listing())
        else:
            names = [path.name for path in pack.iterdir()] if pack.exists() else []
    except NotADirectoryError as err:
        raise PackError(f"{pack} is a file. Choose another output.") from err
    except OSError as err:
        raise PackError(f"Could not read {pack}: {err.strerror or err}. Choose another output.") from err
    # A lock or a temporary file alone is what a run leaves that was killed in its first moment.
    others = [name for name in names if name != ".lock" and not name.endswith(TEMPORARY_SUFFIX)]
    if others and not manifest.is_pack(pack):
        raise PackError(f"{mirror.shown(pack)} is not a pack, and not empty. Choose another output.")


def _reject_other_settings(pack: str, settings: Settings, wanted: Settings) -> None:
    advice = "Choose another output, or delete the pack to make it anew."
    if settings.folder != wanted.folder:
        raise PackError(f"{pack} is a pack of {settings.folder}, not of {wanted.folder}. {advice}")
    have, want = settings.preprocessing.to_json(), wanted.preprocessing.to_json()
    if settings.parts != wanted.parts:
        raise PackError(f"{pack} is {_in_parts(settings.parts)}, not {_in_parts(wanted.parts)}. {advice}")
    different = [f"{name} {have[name]}, not {want[name]}" for name in have if have[name] != want[name]]
    if different:
        raise PackError(f"{pack} was made with {'; '.join(different)}. {advice}")


def _in_parts(count: int) -> str:
    return "packed as a whole" if count == 1 else f"packed in {count} parts (--shard i/{count})"


def _rows(entries: Entries) -> NDArray[np.int64]:
    return np.unique(entries.packed.rows)


def _update(
    listed: Entries,
    entries: Entries,
    decoder: Decoder,
    worker_count: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Set in `listed` what is in the files, with every row it names in a finished shard."""
    shards = decoder.shards
    kept = _unchanged(listed, entries)
    chosen = np.flatnonzero(kept < 0)
    listed.copy_content(np.flatnonzero(kept >= 0), entries.take(kept[kept >= 0]))
    fresh = _new_rows(len(chosen), shards, shards.shards_of(_rows(entries)))
    read_all(listed, chosen, fresh, decoder, entries.packed.digests, worker_count, progress)
    _share_rows(listed, chosen, fresh, entries.packed)
    if not len(_rows(listed)) and shards.part == WHOLE:
        raise ImageFolderError(_all_skipped(decoder.folder, listed))


def _new_rows(count: int, shards: Shards, used: list[int]) -> NDArray[np.int64]:
    """Return `count` rows (N,) in new shards, one after the other, beyond those that are used."""
    needed = -(-count // shards.rows_per_shard)
    first = shards.part.first_after(max(used, default=-1))
    numbers = first + shards.part.count * np.arange(needed)
    rows = numbers[:, None] * shards.rows_per_shard + np.arange(shards.rows_per_shard)
    return rows.ravel()[:count].astype(np.int64)


def _survey(folder: Path) -> Iterator[Entry]:
    """Yield each file with its size and time before anything is read of it."""
    for name in image_names(folder):
        size, mtime = 0, 0
        with contextlib.suppress(OSError):  # the worker will find out why
            status = os.stat(f"{folder}/{name}")  # noqa: PTH116 - a Path costs more than the call
            size, mtime = status.st_size, min(max(status.st_mtime_ns, -_LATEST), _LATEST)
        yield unread(name, size, mtime)


def _unchanged(listed: Entries, entries: Entries) -> NDArray[np.int64]:
    """Return for each file (N,) the index of the entry that still holds, or -1.

    Both are ordered by path. A skipped file is tried again each time: permissions, limits and decoders change
    without its time.
    """
    kept = np.full(len(listed), -1, np.int64)
    old = enumerate(entries)
    place, entry = next(old, (-1, None))
    for index, file in enumerate(listed):
        while entry is not None and entry.path < file.path:
            place, entry = next(old, (-1, None))
        if entry is None:
            break
        same = (entry.path, entry.size, entry.mtime) == (file.path, file.size, file.mtime)
        if same and entry.status == "packed":
            kept[index] = place
    return kept


def _share_rows(listed: Entries, chosen: NDArray[np.int64], fresh: NDArray[np.int64], have: Entries) -> None:
    """Set the row of each file that was read (T,): copies share that of the first, or that in the pack."""
    usable = ~listed.has_reason[chosen]
    digests = np.concatenate([have.digests, listed.digests[chosen[usable]]])
    rows = np.concatenate([have.rows, fresh[usable]])
    order = np.argsort(digests, kind="stable")
    digests = digests[order]
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = digests[1:] != digests[:-1]
    rows[order] = rows[order[is_first]][np.cumsum(is_first) - 1]
    all_rows = listed.rows.copy()
    all_rows[chosen[usable]] = rows[len(have) :]
    listed.set_rows(all_rows)


def _all_skipped(folder: Path, entries: Entries) -> str:
    shown = "; ".join(f"{e.path}: {e.reason}" for e in entries[:_REASONS_SHOWN])
    more = f"; and {len(entries) - _REASONS_SHOWN:,} more" if len(entries) > _REASONS_SHOWN else ""
    return f"No image in {folder}/ can be used, of {len(entries):,} found. {shown}{more}."


def _compact(entries: Entries, shards: Shards) -> None:
    """Copy the rows in use to new shards, if most space is not in use or there are many small shards."""
    live = _rows(entries)
    used = shards.shards_of(live)
    allocated = sum(shards.path(shard).stat().st_size for shard in used) // shards.row_bytes
    fewest = -(-len(live) // shards.rows_per_shard)
    if len(live) * 2 >= allocated and len(used) <= fewest + _SPARE_SHARDS:
        return
    first_row = (1 + used[-1]) * shards.rows_per_shard
    shards.copy(live, first_row)
    moved = np.where(entries.rows < 0, -1, first_row + np.searchsorted(live, entries.rows))
    entries.set_rows(moved)
