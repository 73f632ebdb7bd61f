"""Packs in object storage, read through a cache of bounded size; without this module packs are folders.

A pack at a URL is used through a folder of the cache. Its lists are copied there; its shards are fetched when
needed and deleted when others need the room.

    C/remote.json          the URL, and the versions of the lists in this folder
    C/pack.json, C/manifest.jsonl, C/shards/00000.VERSION.cached

The shards of all packs in the cache take a bounded number of bytes; those used longest ago are deleted first.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import secrets
import socket
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from autoencode.atomic import make_folder, one_at_a_time, parse_json, write_json
from autoencode.data.manifest import MANIFEST_NAME, SETTINGS_NAME, PackSettings, is_pack
from autoencode.data.shards import SHARDS_NAME, PackFiles, Rows, Shards, number_of
from autoencode.errors import ConfigError, PackError, StorageError
from autoencode.storage import RemoteFolder, Stamp, is_url
from autoencode.untrusted import open_file, read_file

REMOTE_NAME = "remote.json"
FOLDER_VARIABLE, SIZE_VARIABLE = "AUTOENCODE_CACHE", "AUTOENCODE_CACHE_GB"
_DEFAULT_GB = 20.0
_CACHED = ".cached"
LOCK_NAME = "writing.lock"  # in storage
_LOCK = ".lists.lock"
_READ_AHEAD = 2  # shards fetched at once
_FEWEST = 3  # shards that the cache holds at least, whatever is set: one in use, two being fetched
_ATTEMPTS = 10


def cache_folder() -> Path:
    """Return the folder of the cache: AUTOENCODE_CACHE, or autoencode in the user's cache folder."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autoencode"


def cache_bytes() -> int:
    """Return the most bytes of cached shards: AUTOENCODE_CACHE_GB, or 20 GB.

    Raises:
        ConfigError: the variable is not a positive number.
    """
    text = os.environ.get(SIZE_VARIABLE, str(_DEFAULT_GB))
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 1e9:
        raise ConfigError(f"{SIZE_VARIABLE} is {text!r}; it must be a number of gigabytes above 0.")
    return int(size * 1e9)


def files_at(location: str | Path, *, must_exist: bool = True) -> PackFiles:
    """Return the files of a pack; for a pack at a URL, with its lists up to date.

    Args:
        location: the folder or the URL of the pack.
        must_exist: whether a URL without a pack is an error; a folder is not checked.

    Raises:
        PackError: there is no pack at the URL.
        StorageError: the storage cannot be reached.
        OutputError: the disk is full.
    """
    if not is_url(location):
        return _files_in(Path(location))
    url = str(location).rstrip("/")
    # A digest: a URL has characters that a folder's name may not have.
    files = CachedPackFiles(cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16], RemoteFolder(url))
    files.refresh()
    if must_exist and not is_pack(files.folder):
        raise PackError(f"There is no pack at {url}. Make one: autoencode pack FOLDER --out {url}")
    return files


def _files_in(folder: Path) -> PackFiles:
    # Only inside the cache: a remote.json in a folder from elsewhere must not cause network access.
    if folder.absolute().parent != cache_folder().absolute():
        return PackFiles(folder)
    url = _known(folder).get("url")
    return CachedPackFiles(folder, RemoteFolder(url)) if isinstance(url, str) else PackFiles(folder)


def _known(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError):
        return _parsed(read_file(folder / REMOTE_NAME, inside=folder))
    return {}


def _parsed(content: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        value = parse_json(content)
        if isinstance(value, dict):
            return value
    return {}


@dataclass(frozen=True)
class CachedPackFiles(PackFiles):
    """The files of a pack at a URL, whose lists are copied to a folder of the cache.

    Attributes:
        remote: the pack in storage.
    """

    remote: RemoteFolder
    is_local = False

    @property
    def location(self) -> str:
        """The URL."""
        return self.remote.url

    def __str__(self) -> str:
        return self.remote.url

    def names(self) -> set[str]:
        """Return the paths of the files in storage, without the lock."""
        return set(self.remote.listing()) - {LOCK_NAME}

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the lock in storage, a file that is written only if there is none.

        Raises:
            PackError: another process holds it, or was killed while it did.
            StorageError: this kind of storage has no such write.
        """
        holder = {"machine": socket.gethostname(), "cache": str(self.folder.absolute())}
        mark = json.dumps({**holder, "launch": secrets.token_hex(8)}).encode()
        if not self.remote.create(LOCK_NAME, mark):
            held = _parsed(self.remote.read(LOCK_NAME))
            # A process that packs here holds the lock of the cache folder; this one has it, so no other does.
            if any(held.get(name) != value for name, value in holder.items()):
                where = held.get("machine", "another machine")
                raise PackError(
                    f"Another process is packing into {self}, on {where}. Wait until it is done; if it was "
                    f"killed, delete {self}/{LOCK_NAME}."
                )
            self.remote.delete(LOCK_NAME)
            if not self.remote.create(LOCK_NAME, mark):
                raise PackError(f"Another process is packing into {self}. Wait until it is done.")
        try:
            yield
        finally:
            with contextlib.suppress(StorageError):
                if self.remote.read(LOCK_NAME) == mark:
                    self.remote.delete(LOCK_NAME)

    def refresh(self) -> None:
        """Copy the lists that have changed; delete those that are gone."""
        make_folder(cache_folder(), is_private=True)  # nobody knows who may read the pack in storage
        make_folder(self.folder)
        with one_at_a_time(self.folder / _LOCK):
            known = _known(self.folder)
            found: dict[str, Any] = {"url": self.remote.url}
            for name in (SETTINGS_NAME, MANIFEST_NAME):
                stamp = self.remote.stamp(name)
                if stamp is None:
                    (self.folder / name).unlink(missing_ok=True)
                    continue
                found[name] = list(stamp)
                if not (self.folder / name).exists() or known.get(name) != found[name]:
                    self.remote.download(name, self.folder / name)
            if found != known:
                write_json(self.folder / REMOTE_NAME, found)

    @contextlib.contextmanager
    def changing(self, name: str) -> Iterator[None]:
        """Let a list be written or deleted in the cache, then do the same in storage.

        Another process on this machine that opens the pack meanwhile waits: it would download the list that
        is about to be replaced.
        """
        with one_at_a_time(self.folder / _LOCK):
            known = _known(self.folder)
            # If the process ends here, the list in the cache must not count as the one in storage.
            if known.pop(name, None) is not None:
                write_json(self.folder / REMOTE_NAME, known)
            yield
            if (self.folder / name).exists():
                self.remote.upload(self.folder / name, name)
            else:
                self.remote.delete(name)

    def shards(self, settings: PackSettings) -> Shards:
        """Return the shards in storage."""
        return RemoteShards(self.folder / SHARDS_NAME, *settings.shape, remote=self.remote)


@dataclass(frozen=True)
class RemoteShards(Shards):
    """Shards in storage, fetched whole when needed; new ones are uploaded and deleted from this disk.

    Attributes:
        remote: the pack in storage.
    """

    remote: RemoteFolder = field(default_factory=lambda: RemoteFolder(""), kw_only=True)

    @property
    def window(self) -> int:
        """Shards in use at once: `most_maps`, or 0 if the cache holds all of them."""
        total = sum(stamp.size for name, stamp in self._listed.items() if name.startswith(f"{SHARDS_NAME}/"))
        return 0 if total <= cache_bytes() else self.most_maps

    @property
    def most_maps(self) -> int:
        """Shards mapped at once, a third of the cache: one third is in use, one is being fetched.

        The last third is not yet released: a map keeps a file on the disk that the cache has deleted.
        """
        return max(1, cache_bytes() // (_FEWEST * self.row_bytes * self.rows_per_shard))

    def location(self, shard: int) -> str:
        """Return the URL of a shard."""
        return f"{self.remote.url}/{self._name(shard)}"

    def status(self, shard: int) -> Stamp:
        """Return the version of a finished shard; errors: see `Shards.status`."""
        if (stamp := self._listed.get(self._name(shard))) is None:
            raise FileNotFoundError(self._name(shard))
        return stamp

    def open(self, shard: int, identity: object) -> BinaryIO:
        """Open a finished shard, fetched first if it is not in the cache.

        Raises:
            PackError: it has changed, or the cache has no room for it.
            StorageError, OutputError: it cannot be fetched.
        """
        for _ in range(_ATTEMPTS):
            path = self._fetched(shard)
            # Another process may delete this shard, to make room for its own, before it is opened.
            with contextlib.suppress(FileNotFoundError):
                return open_file(path, inside=self.folder)
        raise PackError(f"The cache {self.folder.parent.parent} has no room: set {SIZE_VARIABLE} higher.")

    def prefetch(self, rows: NDArray[np.int64]) -> None:
        """Begin to fetch the shards of the rows needed next, in their order."""
        numbers, first = np.unique(
            rows[: self.most_maps * self.rows_per_shard] // self.rows_per_shard, return_index=True
        )
        for shard in numbers[np.argsort(first)].tolist():
            coming = self._coming.get(shard)
            if (coming is None or coming.done()) and not self._cached(shard).exists():
                self._coming[shard] = self._fetchers.submit(self._fetched, shard)

    def finish(self, rows: Rows) -> None:
        """Upload the shards of `rows`.

        Raises:
            OutputError, StorageError: they cannot be written.
        """
        super().finish(rows)
        for shard in self.shards_of(rows):
            self.remote.upload(self.path(shard), self._name(shard))
            self.path(shard).unlink(missing_ok=True)
        self.__dict__.pop("_listed", None)  # the listing lacks the new shards

    def keep_only(self, shards: Collection[int]) -> None:
        """Delete every other shard in storage, and all unfinished ones on this disk."""
        super().keep_only(())
        start = f"{SHARDS_NAME}/"
        for name in self.remote.listing():
            number = number_of(name.removeprefix(start)) if name.startswith(start) else None
            if number is not None and number not in shards:
                self.remote.delete(name)

    def _name(self, shard: int) -> str:
        return f"{SHARDS_NAME}/{self.path(shard).name}"

    def _cached(self, shard: int) -> Path:
        version = hashlib.sha256(self.status(shard).version.encode()).hexdigest()[:12]
        return self.folder / f"{shard:05d}.{version}{_CACHED}"

    def _fetched(self, shard: int) -> Path:
        path, stamp = self._cached(shard), self.status(shard)
        make_folder(self.folder)
        # Processes that train together on one machine need the same shard at once; one of them fetches it.
        with one_at_a_time(self.folder / f"{shard:05d}.lock"):
            if not path.exists() or path.stat().st_size != stamp.size:
                size = max(cache_bytes(), _FEWEST * self.row_bytes * self.rows_per_shard)
                _make_room(self.folder.parent.parent, size - stamp.size)
                self.remote.download(self._name(shard), path)
                # The listing may be older than the fetched file.
                if self.remote.stamp(self._name(shard)) != stamp:
                    path.unlink(missing_ok=True)
                    raise PackError(
                        f"{self.location(shard)} has changed since the pack was opened. Open it again."
                    )
            with contextlib.suppress(OSError):
                os.utime(path)  # the time of use, for `_make_room`
        return path

    @functools.cached_property
    def _listed(self) -> dict[str, Stamp]:
        return self.remote.listing()

    # Both are made when first needed: shards are pickled for workers, and threads cannot be pickled.
    @functools.cached_property
    def _coming(self) -> dict[int, Future[Path]]:
        return {}

    @functools.cached_property
    def _fetchers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_READ_AHEAD, thread_name_prefix="shards")


def _make_room(cache: Path, size: int) -> None:
    """Delete the shards used longest ago, of all packs, until the rest takes no more than `size` bytes."""
    found = []
    for path in cache.glob(f"*/{SHARDS_NAME}/*{_CACHED}"):
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    taken = sum(size for _, size, _ in found)
    for _, file_size, path in sorted(found):
        if taken <= size:
            return
        path.unlink(missing_ok=True)
        taken -= file_size
