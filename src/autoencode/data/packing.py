"""Update a pack: decode the new files of its folder, forget those that are gone, commit in one rename.

1. List the folder. A file of the same path, size and time as in the manifest is not opened.
2. Give each other file a row, and let processes here or on a cluster read, hash and decode it (`decoders`).
   Content that is packed already, under another name or time, keeps its row.
3. Rename the new shards, then replace the manifest. Until then the old pack is valid, then the new.
4. Delete the shards that no entry needs.

Files to read and results are not kept as objects; memory hardly grows with the number of files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoencode.atomic import exclusive, make_folder, remove_temporaries
from autoencode.data import manifest
from autoencode.data.decoders import Decode, Decoder
from autoencode.data.entries import Entries, Entry, skipped_entry
from autoencode.data.manifest import PackSettings
from autoencode.data.shards import PackFiles, ShardReader, Shards
from autoencode.errors import ImageFolderError, PackError, StorageError

if TYPE_CHECKING:
    from autoencode.data.listing import Listing
    from autoencode.data.pack import Progress
    from autoencode.data.preprocessing import Limits, Preprocessing

_SPARE_SHARDS = 32  # small shards of updates: joining them copies pixels, keeping them costs open files
_REASONS_SHOWN = 3
_LATEST = 2**63 - 1  # nanoseconds, the year 2262


def update(
    listing: Listing,
    files: PackFiles,
    preprocessing: Preprocessing,
    limits: Limits,
    decode: Decode,
    progress: Progress | None,
) -> None:
    """Make the pack in `files`, or update it to the files that are listed.

    Args:
        listing: the images, see `listed`.
        preprocessing, limits, progress: see `pack.pack_folder`, also for the errors.
        files: of the pack.
        decode: the processes in which files are read.
    """
    _reject_what_is_not_ours(files)
    listed = _unread(listing)
    wanted = PackSettings.of(listing, preprocessing)
    busy = f"Another process is packing into {files}. Wait until it is done, or choose another output."
    source = listing.folder if files.is_local else None
    with exclusive(files.folder, busy, PackError, source), files.claimed():
        files.refresh()
        has_manifest = (files.folder / manifest.MANIFEST_NAME).exists()
        if manifest.is_pack(files.folder) and has_manifest:
            settings = manifest.read_settings(files.folder)
            _reject_other_settings(files, settings, wanted)
            entries = manifest.read_manifest(files.folder) or Entries()
            given = settings.has_given_splits or wanted.has_given_splits
            noted = replace(settings, note=wanted.note, has_given_splits=given)
            if noted != settings:  # before the manifest, which may have given splits from then on
                settings = noted
                with files.changing(manifest.SETTINGS_NAME):
                    manifest.write_settings(files.folder, settings)
        else:
            # The settings of a run killed before its first manifest do not count.
            settings, entries = wanted, Entries()
            with files.changing(manifest.SETTINGS_NAME):
                manifest.write_settings(files.folder, settings)
        shards = files.shards(settings)
        # Raises if shards are missing, which an update must not hide.
        ShardReader(shards, _rows(entries))
        try:
            remove_temporaries(files.folder)
            shards.keep_only(shards.shards_of(_rows(entries)))
            decoder = Decoder(settings.folder, preprocessing, limits, shards)
            _read_new(listed, entries, decoder, decode, progress)
            if files.is_local:
                _compact(listed, shards)
            # An unchanged manifest is not written again: caches of a pack in storage compare its version.
            if listed != entries or not has_manifest:
                with files.changing(manifest.MANIFEST_NAME):
                    manifest.write_manifest(files.folder, listed)
        except BaseException:
            with contextlib.suppress(OSError, PackError, StorageError):
                _tidy(files, shards)
            raise
        # Only now: the old pack was valid until the manifest was replaced.
        shards.keep_only(shards.shards_of(_rows(listed)))


def _tidy(files: PackFiles, shards: Shards) -> None:
    """Delete the leftovers of a failed run, according to the current manifest, old or new."""
    files.refresh()
    entries = manifest.read_manifest(files.folder)
    shards.keep_only(shards.shards_of(_rows(entries or Entries())))
    if entries is None:
        with files.changing(manifest.SETTINGS_NAME):
            (files.folder / manifest.SETTINGS_NAME).unlink(missing_ok=True)
        shards.folder.rmdir()


def _reject_what_is_not_ours(files: PackFiles) -> None:
    try:
        names = files.names()
    except NotADirectoryError as err:
        raise PackError(f"{files} is a file. Choose another output.") from err
    except OSError as err:
        raise PackError(f"Could not read {files}: {err.strerror or err}. Choose another output.") from err
    if names and not manifest.is_pack(files.folder):
        raise PackError(f"{files} is not a pack, and not empty. Choose another output.")


def _reject_other_settings(files: PackFiles, settings: PackSettings, wanted: PackSettings) -> None:
    advice = "Choose another output, or delete the pack and make it again."
    made, asked = (one.origin or one.folder for one in (settings, wanted))
    if made == asked and settings.folder != wanted.folder:
        made, asked = settings.folder, wanted.folder
    if made != asked:
        raise PackError(f"{files} is a pack of {made}, not of {asked}. {advice}")
    if different := settings.preprocessing.differences(wanted.preprocessing):
        raise PackError(f"{files} was made with {different}. {advice}")


def _rows(entries: Entries) -> NDArray[np.int64]:
    return np.unique(entries.packed.rows)


def _unread(listing: Listing) -> Entries:
    """Return an entry for each file with its size and time, unread, ordered by path."""
    reasons = dict(listing.skipped)
    labels = dict(zip(listing.names, listing.labels or (), strict=listing.labels is not None))
    splits = dict(zip(listing.names, listing.splits or (), strict=listing.splits is not None))
    names = sorted((*listing.names, *reasons)) if reasons else listing.names
    entries = Entries(_unread_entry(listing.folder, name, reasons.get(name)) for name in names)
    entries.give(
        None if listing.labels is None else [labels.get(name) for name in names],
        None if listing.splits is None else [splits.get(name) for name in names],
        holds_out_validation="validation" not in (listing.splits or ()),
    )
    return entries


def _unread_entry(folder: Path, name: str, reason: str | None) -> Entry:
    size, mtime = 0, 0
    with contextlib.suppress(OSError):  # the worker that reads the file gives the reason
        status = os.stat(f"{folder}/{name}")  # noqa: PTH116 - a Path costs more than the call
        size, mtime = status.st_size, min(max(status.st_mtime_ns, -_LATEST), _LATEST)
    return skipped_entry(name, size, mtime, reason=reason)


def _read_new(
    listed: Entries, entries: Entries, decoder: Decoder, decode: Decode, progress: Progress | None
) -> None:
    """Read the new files and complete `listed`; every row it names is then in a finished shard."""
    shards = decoder.shards
    kept = _unchanged(listed, entries)
    kept[listed.has_reason] = -1
    chosen = np.flatnonzero((kept < 0) & ~listed.has_reason)
    listed.copy_content(np.flatnonzero(kept >= 0), entries.take(kept[kept >= 0]))
    # New rows come after those in use, so that no shard of the old pack changes.
    first = (max(shards.shards_of(_rows(entries)), default=-1) + 1) * shards.rows_per_shard
    fresh = np.arange(first, first + len(chosen), dtype=np.int64)
    _read_all(listed, chosen, fresh, decoder, entries.packed.digests, decode, progress)
    _share_rows(listed, chosen, fresh, entries.packed)
    if not len(_rows(listed)):
        raise ImageFolderError(_all_skipped(decoder.folder, listed.take(chosen)))


def _unchanged(listed: Entries, entries: Entries) -> NDArray[np.int64]:
    """Return for each file (N,) the index of its entry if that is still valid, or -1.

    Both are ordered by path. A skipped file is tried again every time: permissions, limits and decoders
    may have changed, which does not show in its time.
    """
    kept = np.full(len(listed), -1, np.int64)
    old = enumerate(entries)
    position, entry = next(old, (-1, None))
    for index, file in enumerate(listed):
        while entry is not None and entry.path < file.path:
            position, entry = next(old, (-1, None))
        if entry is None:
            break
        same = (entry.path, entry.size, entry.mtime) == (file.path, file.size, file.mtime)
        if same and entry.status == "packed":
            kept[index] = position
    return kept


def _share_rows(listed: Entries, chosen: NDArray[np.int64], fresh: NDArray[np.int64], have: Entries) -> None:
    """Set the row of each file that was read (T,): copies share that of the first or of the pack."""
    # A stable sort puts entries of the pack first, then the files in their order: the first keeps its row.
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


def _all_skipped(folder: Path, entries: Sequence[Entry]) -> str:
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


class _Tasks:
    """The files to read, as (path, row), made on demand; each reserves its shard when first asked for."""

    def __init__(
        self, listed: Entries, chosen: NDArray[np.int64], rows: NDArray[np.int64], shards: Shards
    ) -> None:
        self._listed, self._chosen, self._rows, self._shards = listed, chosen, rows, shards
        numbers, counts = np.unique(rows // shards.rows_per_shard, return_counts=True)
        self._left = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
        self._to_reserve, self._used = dict(self._left), set[int]()

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int, /) -> tuple[str, int]:
        row = int(self._rows[index])
        shard = row // self._shards.rows_per_shard
        # Not all shards at once: those of a pack in storage leave this disk once they are full.
        if count := self._to_reserve.pop(shard, 0):
            self._shards.reserve(shard * self._shards.rows_per_shard, count)
        return self._listed.path(int(self._chosen[index])), row

    def done(self, index: int, *, is_usable: bool) -> None:
        """Count a file as read; the last file of a shard finishes it, if any of its files is usable."""
        shard = int(self._rows[index]) // self._shards.rows_per_shard
        self._left[shard] -= 1
        if is_usable:
            self._used.add(shard)
        # A shard without any image stays temporary; `keep_only` deletes it.
        if not self._left[shard] and shard in self._used:
            self._shards.finish([shard * self._shards.rows_per_shard])


def _read_all(
    listed: Entries,
    chosen: NDArray[np.int64],
    rows: NDArray[np.int64],
    decoder: Decoder,
    known: NDArray[np.bytes_],
    decode: Decode,
    progress: Progress | None,
) -> None:
    """Read files and record the results in `listed`. Each shard is finished once it is full.

    Args:
        listed: entries, in which those to read have neither digest nor reason.
        chosen: indices (T,) of the entries to read.
        rows: the row for the pixels of each (T,), ascending from the first row of a shard.
        decoder: reads and decodes a file.
        known: digests (K,), 32 bytes each, of the content of the pack.
        decode: the processes that run the decoder.
        progress: called with (files read, files to read).

    Raises:
        OutputError: a row could not be written.
        AutoencodeError: no process could be started.
    """
    report = progress or (lambda done, total: None)
    report(0, len(chosen))
    if not len(chosen):
        return
    make_folder(decoder.shards.folder)
    decoder = decoder.with_known_digests(known)
    tasks = _Tasks(listed, chosen, rows, decoder.shards)
    with contextlib.closing(decode(decoder, tasks)) as outcomes:  # closed, it ends its processes
        for done, (index, outcome) in enumerate(outcomes, 1):
            listed.set_content(int(chosen[index]), outcome.digest, outcome.reason)
            tasks.done(index, is_usable=outcome.reason is None)
            report(done, len(chosen))
