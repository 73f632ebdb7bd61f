"""Pixels on disk: rows of raw uint8 in numbered files that never change once a manifest names their rows.

A row is one image, (H, W, 3) uint8. Row r is in shard r // rows_per_shard, at position r % rows_per_shard.
Shards are written under a temporary name; the position of a skipped file stays unused, a hole.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from autoencode.atomic import TEMPORARY_SUFFIX, make_folder, names_in, new_file, sync_folder
from autoencode.errors import OutputError, PackError
from autoencode.untrusted import open_file

if TYPE_CHECKING:
    from autoencode.data.manifest import PackSettings

Rows = NDArray[np.int64] | Sequence[int]

SHARDS_NAME = "shards"
_SUFFIX = ".u8"
_OPEN_MAPS = 256  # a map keeps its file open, and 1,024 open files is a common limit
_COPY_BYTES = 64 * 1024**2
_REPACK_ADVICE = "The pack is damaged: delete it and make it again."


@dataclass(frozen=True)
class PackFiles:
    """The files of a pack in a folder on this disk; a subclass may keep them elsewhere.

    Attributes:
        folder: the folder, where `pack.json` and `manifest.jsonl` are up to date after `refresh`.
    """

    folder: Path
    is_local: ClassVar[bool] = True

    @property
    def location(self) -> str:
        """The text that opens this pack again, from any folder."""
        return str(self.folder.resolve())

    def __str__(self) -> str:
        """Return the name of the pack in messages."""
        return str(self.folder)

    def names(self) -> set[str]:
        """Return the names of the files in the pack, without locks and temporary files.

        Raises:
            OSError: the folder cannot be read, or is a file.
        """
        return names_in(self.folder)

    def refresh(self) -> None:
        """Update the lists in `folder` to changes made elsewhere."""

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep others from writing the pack, besides those that the lock of `folder` keeps out."""
        yield

    @contextlib.contextmanager
    def changing(self, name: str) -> Iterator[None]:
        """Allow a list of that name to be written or deleted in `folder` inside the context."""
        yield

    def shards(self, settings: PackSettings) -> Shards:
        """Return the shards of a pack with these settings."""
        return Shards(self.folder / SHARDS_NAME, *settings.shape)


@dataclass(frozen=True)
class Shards:
    """The shard files of one pack.

    Attributes:
        folder: the folder of the files.
        height: H, pixels.
        width: W, pixels.
        rows_per_shard: rows in a full shard.
        token: part of the temporary names, so that a worker of a killed run cannot write into the files of
            the next.
    """

    folder: Path
    height: int
    width: int
    rows_per_shard: int
    token: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.height * self.width * 3

    @property
    def known_digests(self) -> Path:
        """A file for the digests of packed content, while packing."""
        return self.folder / f"known{TEMPORARY_SUFFIX}"

    def path(self, shard: int) -> Path:
        """Return the file of a finished shard."""
        return self.folder / f"{shard:05d}{_SUFFIX}"

    def shards_of(self, rows: Rows) -> list[int]:
        """Return the shards that hold `rows`, in order."""
        shards: list[int] = np.unique(np.asarray(rows, np.int64) // self.rows_per_shard).tolist()
        return shards

    def reserve(self, first_row: int, count: int) -> None:
        """Make temporary files with room for `count` rows from `first_row`, which starts a shard.

        Raises:
            OutputError: the files cannot be made.
        """
        make_folder(self.folder)
        for start in range(0, count, self.rows_per_shard):
            rows = min(self.rows_per_shard, count - start)
            path = self._temporary((first_row + start) // self.rows_per_shard)
            try:
                with new_file(path) as file:
                    # A sparse file: holes of skipped files take no room on most file systems.
                    file.truncate(rows * self.row_bytes)
            except OSError as err:
                raise _not_written(path, err) from err

    def write(self, row: int, pixels: NDArray[np.uint8]) -> None:
        """Write one row, or consecutive rows of one shard, to reserved room.

        Many processes may do so at once: each opens the file itself, so that they share no position.

        Raises:
            OutputError: the disk is full, or another error of writing.
        """
        shard, position = divmod(row, self.rows_per_shard)
        path = self._temporary(shard)
        try:
            with path.open("rb+") as file:
                file.seek(position * self.row_bytes)
                file.write(np.ascontiguousarray(pixels).data)
        except OSError as err:
            raise _not_written(path, err) from err

    def finish(self, rows: Rows) -> None:
        """Give the shards of `rows` their final names, once their pixels are on the disk.

        Raises:
            OutputError: the disk is full, or another error of writing.
        """
        for shard in self.shards_of(rows):
            temporary = self._temporary(shard)
            try:
                # The pixels must be on disk before the final name appears.
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                temporary.replace(self.path(shard))
            except OSError as err:
                raise _not_written(temporary, err) from err
        sync_folder(self.folder)

    def copy(self, rows: NDArray[np.int64], first_row: int) -> None:
        """Copy `rows` to new, finished shards from `first_row` on, which starts a shard.

        Raises:
            OutputError: the disk is full, or another error of writing.
        """
        self.reserve(first_row, len(rows))
        reader = ShardReader(self, rows)
        step = max(1, _COPY_BYTES // self.row_bytes)
        for shard_start in range(0, len(rows), self.rows_per_shard):
            shard_stop = min(shard_start + self.rows_per_shard, len(rows))
            for start in range(shard_start, shard_stop, step):
                self.write(first_row + start, reader.pixels(rows[start : min(start + step, shard_stop)]))
        self.finish(range(first_row, first_row + len(rows), self.rows_per_shard))

    def keep_only(self, shards: Collection[int]) -> None:
        """Delete every other shard, finished or not; a shard that cannot be deleted only takes space."""
        for path in self.folder.glob("*"):
            number = number_of(path.name)
            is_needed = number in shards and not path.name.endswith(TEMPORARY_SUFFIX)
            if path.name.startswith(self.known_digests.name) or (number is not None and not is_needed):
                with contextlib.suppress(OSError):
                    path.unlink()

    def status(self, shard: int) -> tuple[int, object]:
        """Return the size of a finished shard in bytes, and its identity, which a replacement does not have.

        Raises:
            OSError: there is no such shard.
        """
        status = self.path(shard).stat()
        return status.st_size, _identity(status)

    def open(self, shard: int, identity: object) -> BinaryIO:
        """Open a finished shard.

        Raises:
            OSError: there is no such shard.
            PackError: the shard was replaced since `status` returned this identity.
        """
        file = open_file(self.path(shard), inside=self.folder.parent)
        if _identity(os.fstat(file.fileno())) != identity:
            file.close()
            raise PackError(f"{self.path(shard)} has changed since the pack was opened. Open it again.")
        return file

    def prefetch(self, rows: NDArray[np.int64]) -> None:
        """Prefetch rows; does nothing for shards on this disk."""

    def location(self, shard: int) -> str:
        """Return the location of a shard, for messages."""
        return str(self.path(shard))

    @property
    def window(self) -> int:
        """Shards that can be in use at once; 0 for all of them."""
        return 0

    @property
    def most_maps(self) -> int:
        """Shards mapped at once."""
        return _OPEN_MAPS

    def _temporary(self, shard: int) -> Path:
        path = self.path(shard)
        return path.with_name(f"{path.name}.{self.token}{TEMPORARY_SUFFIX}")


class ShardReader:
    """Pixels of rows, from memory maps opened when first needed. Any thread may use it."""

    def __init__(self, shards: Shards, rows: NDArray[np.int64]) -> None:
        """Check that every shard is there and long enough for `rows`.

        Raises:
            PackError: a shard is missing or too short.
        """
        self._shards = shards
        identities: dict[int, object] = {}
        # A partial, not a bound method: a reference cycle would keep files open until a garbage collection.
        self._map = functools.lru_cache(shards.most_maps)(functools.partial(_open_map, shards, identities))
        numbers, positions = np.divmod(np.sort(rows), shards.rows_per_shard)
        for last in np.flatnonzero(np.diff(numbers, append=-1)):
            shard, needed = int(numbers[last]), (int(positions[last]) + 1) * shards.row_bytes
            try:
                size, identities[shard] = shards.status(shard)
            except OSError as err:
                raise PackError(f"{shards.location(shard)} is missing. {_REPACK_ADVICE}") from err
            if size < needed:
                raise PackError(
                    f"{shards.location(shard)} is too short ({size:,} bytes of {needed:,}). {_REPACK_ADVICE}"
                )

    def prefetch(self, rows: NDArray[np.int64]) -> None:
        """Prepare to read `rows`, in that order, if that takes time."""
        self._shards.prefetch(rows)

    def pixels(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pixels (B, H, W, 3) of `rows` (B,), a copy.

        Raises:
            PackError: the pack was changed by another process and no longer has these rows.
        """
        shards = self._shards
        numbers, positions = np.divmod(rows, shards.rows_per_shard)
        present = np.unique(numbers)
        # One shard holds most packs: indexing its map copies each row once instead of twice.
        if len(present) == 1:
            pixels = self._map(int(present[0]))[positions]
            return pixels.reshape(-1, shards.height, shards.width, 3)
        pixels = np.empty((len(rows), shards.row_bytes), np.uint8)
        for shard in present:
            chosen = np.flatnonzero(numbers == shard)
            pixels[chosen] = self._map(int(shard))[positions[chosen]]
        return pixels.reshape(len(rows), shards.height, shards.width, 3)


def _open_map(shards: Shards, identities: Mapping[int, object], shard: int) -> NDArray[np.uint8]:
    try:
        with shards.open(shard, identities.get(shard)) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OutputError:  # also an OSError: the cache of a remote pack has no room
        raise
    except OSError as err:
        raise PackError(
            f"{shards.location(shard)} was deleted since the pack was opened. Open it again."
        ) from err
    rows = len(mapped) // shards.row_bytes
    # The array keeps the map open, and the map its file, even if an update deletes the shard meanwhile.
    return np.frombuffer(mapped, np.uint8, rows * shards.row_bytes).reshape(rows, -1)


def number_of(name: str) -> int | None:
    """Return the number of the shard that a file of that name is or will be; None if it is neither."""
    number, separator, rest = name.partition(".")
    is_shard = separator and number.isdecimal() and f".{rest}".startswith(_SUFFIX)
    return int(number) if is_shard else None


def _identity(status: os.stat_result) -> tuple[int, ...]:
    # A shard never changes: another inode or time means that the pack was deleted and made again.
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _not_written(path: Path, err: OSError) -> OutputError:
    reason = err.strerror or str(err)
    return OutputError(f"Could not write {path}: {reason}. The pack is as it was before.")
