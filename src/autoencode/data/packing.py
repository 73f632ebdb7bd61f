"""Bring a pack in step with its folder: decode what is new, forget what is gone, commit in one rename.

1. List the folder. A file of the same path, size and time as in the manifest is not opened.
2. Give each other file a row, and let workers read, hash, decode and write it there. Content that is already
   packed, under another name or time, is not decoded; it keeps its row.
3. Rename the new shards, then replace the manifest. Until then the old pack is whole, from then on the new.
4. Delete the shards that no entry needs.

A pack in storage is made in its mirror (see `mirror`), a shard at a time: no more of it is on this disk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoencode.atomic import exclusive, names_in, remove_temporaries
from autoencode.data import manifest, workers
from autoencode.data import remote as mirror
from autoencode.data.manifest import Entries, Entry, Settings, unread
from autoencode.data.reading import Decoder, read_all
from autoencode.data.shards import ShardReader, Shards
from autoencode.data.sources import image_names
from autoencode.errors import ConfigError, ImageFolderError, PackError, StorageError

if TYPE_CHECKING:
    from autoencode.data.preprocessing import Limits, Preprocessing

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
) -> None:
    """Make `pack`, or bring it in step with `folder`.

    Arguments and errors: see `pack.pack_folder`.
    """
    worker_count = workers.available_cores() if worker_count is None else worker_count
    if worker_count < 1:
        raise ConfigError(f"The number of workers must be 1 or more, not {worker_count}.")
    _reject_what_is_not_ours(pack)
    listed = Entries(_survey(folder))
    wanted = Settings.of(folder, preprocessing)
    location = mirror.shown(pack)
    busy = f"Another process is packing into {location}. Wait until it is done, or choose another output."
    with exclusive(pack, busy, PackError):
        entries = _entries_of(pack)
        if manifest.is_pack(pack) and entries is not None:
            settings = manifest.read_settings(pack)
            _reject_other_settings(location, settings, wanted)
        else:
            settings = wanted
            with mirror.changing(pack, manifest.SETTINGS_NAME):
                manifest.write_settings(pack, settings)
        entries = Entries() if entries is None else entries
        shards = mirror.shards_of(pack, settings.preprocessing, settings.rows_per_shard)
        ShardReader(shards, _rows(entries))  # an update of a damaged pack is damaged
        try:
            remove_temporaries(pack)
            shards.keep_only(shards.shards_of(_rows(entries)))
            decoder = Decoder(settings.folder, preprocessing, limits, shards)
            _update(listed, entries, decoder, worker_count, progress)
            if not mirror.remote_of(pack):
                _compact(listed, shards)
            if listed != entries or not (pack / manifest.MANIFEST_NAME).exists():
                with mirror.changing(pack, manifest.MANIFEST_NAME):
                    manifest.write_manifest(pack, listed)
        except BaseException:
            with contextlib.suppress(OSError, PackError, StorageError):
                _tidy(pack, shards)
            raise
        shards.keep_only(shards.shards_of(_rows(listed)))


def _entries_of(pack: Path) -> Entries | None:
    """Return what is in the pack, as of now; None if it has not been packed."""
    mirror.pull(pack, manifest.MANIFEST_NAME)
    return manifest.read_manifest(pack)


def _tidy(pack: Path, shards: Shards) -> None:
    """Delete what a failed run leaves, going by the manifest on the disk, which may be old or new."""
    entries = _entries_of(pack)
    shards.keep_only(shards.shards_of(_rows(entries or Entries())))
    if entries is None:
        with mirror.changing(pack, manifest.SETTINGS_NAME):
            (pack / manifest.SETTINGS_NAME).unlink(missing_ok=True)
        shards.folder.rmdir()


def _reject_what_is_not_ours(pack: Path) -> None:
    remote = mirror.remote_of(pack)
    try:
        names = names_in(pack) if remote is None else set(remote.listing())
    except NotADirectoryError as err:
        raise PackError(f"{pack} is a file. Choose another output.") from err
    except OSError as err:
        raise PackError(f"Could not read {pack}: {err.strerror or err}. Choose another output.") from err
    if names and not manifest.is_pack(pack):
        raise PackError(f"{mirror.shown(pack)} is not a pack, and not empty. Choose another output.")


def _reject_other_settings(pack: str, settings: Settings, wanted: Settings) -> None:
    advice = "Choose another output, or delete the pack to make it anew."
    if settings.folder != wanted.folder:
        raise PackError(f"{pack} is a pack of {settings.folder}, not of {wanted.folder}. {advice}")
    have, want = settings.preprocessing.to_json(), wanted.preprocessing.to_json()
    different = [f"{name} {have[name]}, not {want[name]}" for name in have if have[name] != want[name]]
    if different:
        raise PackError(f"{pack} was made with {'; '.join(different)}. {advice}")


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
    if not len(_rows(listed)):
        raise ImageFolderError(_all_skipped(decoder.folder, listed))


def _new_rows(count: int, shards: Shards, used: list[int]) -> NDArray[np.int64]:
    """Return `count` rows (N,) in new shards, one after the other, beyond those that are used."""
    first = (max(used, default=-1) + 1) * shards.rows_per_shard
    return np.arange(first, first + count, dtype=np.int64)


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
