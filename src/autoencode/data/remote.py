"""Folders in object storage, named by a URL such as s3://bucket/pack and reached through fsspec.

Each kind of storage raises errors of its own. Here they become one: what could not be reached, what to do.

A pack in storage, seen through a folder on this disk: its lists are copied there, its shards come and go.

    M/remote.json          the URL, and which version of the manifest is here
    M/pack.json, M/manifest.jsonl, M/shards/00000.VERSION.cached

A mirror is opened as any pack is. The shards of all mirrors are held to a number of bytes; those that were
used longest ago are deleted first.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoencode.atomic import atomic_file, make_folder, one_at_a_time, parse_json, write_json
from autoencode.data import manifest
from autoencode.data.shards import SHARDS_NAME, Rows, Shards, number_of
from autoencode.errors import AutoencodeError, ConfigError, MissingExtraError, PackError, StorageError

if TYPE_CHECKING:
    from autoencode.data.preprocessing import Preprocessing

_URL = re.compile(r"[a-z][a-z0-9+.-]*:///*[^/]")
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_MISSING_CREDENTIALS = (
    "No credentials for {url}. Log in with the tool of its provider, or set the variables it reads "
    "(for s3://: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)."
)


def is_url(place: object) -> bool:
    """Whether `place` is the URL of a folder in storage, and no path."""
    return isinstance(place, str) and _URL.match(place) is not None


def folder_or_url(place: str | Path) -> Path | str:
    """Return a folder as a path, and a URL of storage as it is, without a slash at its end."""
    return str(place).rstrip("/") if is_url(place) else Path(place)


class Stamp(NamedTuple):
    """What tells a file from another of its name: its size in bytes, and a mark that its content changes."""

    size: int
    version: str


@dataclass(frozen=True)
class RemoteFolder:
    """A folder in storage. Every method may raise StorageError.

    Attributes:
        url: such as s3://bucket/pack, gs://bucket/pack, file:///mnt/share/pack, memory://pack.
    """

    url: str

    def listing(self) -> dict[str, Stamp]:
        """Return each file in it and its sub-folders, by its name from here."""
        with self._storage() as (storage, root):
            storage.invalidate_cache()
            found = storage.find(root, detail=True)
            start = len(root.rstrip("/")) + 1
            return {name[start:]: _stamp(info) for name, info in found.items()}

    def stamp(self, name: str) -> Stamp | None:
        """Return what is known of a file, or None if there is none of that name."""
        with self._storage() as (storage, root):
            storage.invalidate_cache()
            try:
                return _stamp(storage.info(f"{root}/{name}"))
            except FileNotFoundError:
                pass
            try:
                storage.ls(root)
            except FileNotFoundError as err:
                if "bucket" in str(err).lower():  # that one is not there is another matter
                    raise
            return None

    def read(self, name: str) -> bytes:
        """Return what a file holds."""
        with self._storage() as (storage, root):
            content: bytes = storage.cat_file(f"{root}/{name}")
            return content

    def download(self, name: str, path: Path) -> None:
        """Copy a file to the disk, whole or not at all.

        Raises:
            OutputError: the disk is full.
        """
        with self._storage() as (storage, root), atomic_file(path) as file:
            try:
                storage.get_file(f"{root}/{name}", file.name)
            except OSError as err:
                if err.errno in _OF_THE_DISK:
                    raise
                raise self._ours(err) from err

    def upload(self, path: Path, name: str) -> None:
        """Copy a file from the disk; it replaces one of that name as a whole."""
        with self._storage() as (storage, root):
            storage.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
            if "file" in storage.protocol:  # which would write over what is there
                with path.open("rb") as content, atomic_file(Path(root, name)) as file:
                    shutil.copyfileobj(content, file)
            else:
                storage.put_file(str(path), f"{root}/{name}")

    def delete(self, name: str) -> None:
        """Delete a file; one that is not there is no error."""
        with self._storage() as (storage, root), contextlib.suppress(FileNotFoundError):
            storage.rm_file(f"{root}/{name}")

    def lance_options(self) -> dict[str, str]:
        """Return what LanceDB has to be told to reach the same store; of AWS it finds out all of it itself.

        Credentials are left to be found where the providers' own tools look for them, as they may expire, but
        for those that fsspec is configured with.
        """
        if not self.url.startswith("s3://"):
            return {}
        with self._storage() as (storage, _):
            storage.connect()
            endpoint, region = storage.s3.meta.endpoint_url, storage.s3.meta.region_name
            options = {"aws_access_key_id": storage.key, "aws_secret_access_key": storage.secret}
            options["aws_session_token"] = storage.token
        if not endpoint.endswith(".amazonaws.com"):
            options |= {"aws_endpoint": endpoint, "aws_region": region}
            options["allow_http"] = str(endpoint.startswith("http://")).lower()
        return {name: value for name, value in options.items() if value}

    @contextlib.contextmanager
    def _storage(self) -> Iterator[tuple[Any, str]]:
        """Give the file system and the path of this folder in it, and make its errors ours."""
        import fsspec

        try:
            storage, root = fsspec.url_to_fs(self.url)
            yield storage, root
        except AutoencodeError:
            raise
        except Exception as err:
            raise self._ours(err) from err

    def _ours(self, err: Exception) -> AutoencodeError:
        """Make an error of a kind of storage one of ours."""
        said = first_line(err)
        if isinstance(err, ImportError) and self.url.startswith(("s3://", "s3a://")):
            return MissingExtraError("storage", f"Reading {self.url}")
        if isinstance(err, ImportError):
            return StorageError(f"Could not open {self.url}: {said}.")
        if isinstance(err, FileNotFoundError):
            return StorageError(f"Could not find {self.url}: {said}. Check the bucket and path.")
        if isinstance(err, PermissionError):
            return StorageError(f"{self.url} is not open to these credentials: {said}.")
        if type(err).__name__ in _NO_CREDENTIALS:
            return StorageError(_MISSING_CREDENTIALS.format(url=self.url))
        return StorageError(f"Could not reach {self.url}: {said}.")


def _stamp(info: dict[str, Any]) -> Stamp:
    # Each kind of storage has another name for it.
    version = next((info[name] for name in ("ETag", "etag", "mtime", "created") if name in info), "")
    if isinstance(version, datetime):
        version = version.timestamp()  # memory:// has both, by turns
    return Stamp(int(info["size"]), str(version))


def first_line(err: BaseException) -> str:
    """Return the first line of what an error of another library says."""
    lines = str(err).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(err).__name__


REMOTE_NAME = "remote.json"
FOLDER_VARIABLE, SIZE_VARIABLE = "AUTOENCODE_CACHE", "AUTOENCODE_CACHE_GB"
_DEFAULT_GB = 20.0
_CACHED = ".cached"
_LOCK = ".lists.lock"
_READ_AHEAD = 2  # shards on their way at once
_FEWEST = 3  # shards that the cache has room for, whatever is set: one in use, two on their way
_ATTEMPTS = 10


def cache_folder() -> Path:
    """Where mirrors are: AUTOENCODE_CACHE, or autoencode in the user's folder for such things."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autoencode"


def cache_bytes() -> int:
    """How much of the disk shards of mirrors may take: AUTOENCODE_CACHE_GB, or 20 GB; three may always.

    Raises:
        ConfigError: the variable is no positive number.
    """
    text = os.environ.get(SIZE_VARIABLE, str(_DEFAULT_GB))
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 1e9:
        raise ConfigError(f"{SIZE_VARIABLE} is {text!r}; it must be a number of gigabytes above 0.")
    return int(size * 1e9)


def local(place: str | Path) -> Path:
    """Return the folder to read from: `place`, or the mirror of the pack at a URL, brought in step with it.

    Raises:
        PackError: there is no pack at the URL.
        StorageError: it cannot be reached.
        OutputError: the disk is full.
    """
    folder = prepared(place)
    if is_url(place) and not manifest.is_pack(folder):
        raise PackError(f"There is no pack at {place}. Make one: autoencode pack FOLDER --out {place}")
    return folder


def prepared(place: str | Path) -> Path:
    """Return the folder for a pack to be made, or brought in step, at `place`; errors: see `local`."""
    if not is_url(place):
        return Path(place)
    url = str(place).rstrip("/")
    folder = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16]
    make_folder(folder)
    _refresh(RemoteFolder(url), folder)
    return folder


def _refresh(remote: RemoteFolder, folder: Path) -> None:
    """Copy the lists that have changed; drop those that are gone."""
    with one_at_a_time(folder / _LOCK):
        known = _read(folder)
        found: dict[str, Any] = {"url": remote.url}
        for name in (manifest.SETTINGS_NAME, manifest.MANIFEST_NAME):
            stamp = remote.stamp(name)
            if stamp is None:
                (folder / name).unlink(missing_ok=True)
                continue
            found[name] = list(stamp)
            if not (folder / name).exists() or known.get(name) != found[name]:
                remote.download(name, folder / name)
        if found != known:
            write_json(folder / REMOTE_NAME, found)


def named(folder: Path) -> str:
    """Return what `local` makes this folder of: a URL, or its absolute path."""
    remote = remote_of(folder)
    return str(folder.resolve()) if remote is None else remote.url


def shown(folder: Path) -> str:
    """Return what a message calls a pack: its URL, or the path it was given by."""
    remote = remote_of(folder)
    return str(folder) if remote is None else remote.url


def remote_of(folder: Path) -> RemoteFolder | None:
    """Return what `folder` mirrors; None if it is a pack itself, wherever it claims to come from."""
    if folder.absolute().parent != cache_folder().absolute():
        return None  # a folder from a stranger reaches no network
    url = _read(folder).get("url")
    return RemoteFolder(url) if isinstance(url, str) else None


def pull(folder: Path, name: str) -> None:
    """Bring a file of a mirror in step with the storage; a pack itself has it already."""
    if (remote := remote_of(folder)) is not None:
        with one_at_a_time(folder / _LOCK):
            if remote.stamp(name) is None:
                (folder / name).unlink(missing_ok=True)
            else:
                remote.download(name, folder / name)


@contextlib.contextmanager
def changing(folder: Path, name: str) -> Iterator[None]:
    """Let a file of a pack be written or deleted, then bring the storage in step, if that is where it is.

    Whoever opens the pack on this machine meanwhile waits: it would put the storage's file in its place.
    """
    remote = remote_of(folder)
    if remote is None:
        yield
        return
    with one_at_a_time(folder / _LOCK):
        known = _read(folder)
        if known.pop(name, None) is not None:  # what is cut short is not taken for the storage's
            write_json(folder / REMOTE_NAME, known)
        yield
        if (folder / name).exists():
            remote.upload(folder / name, name)
        else:
            remote.delete(name)


def _read(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        content = parse_json((folder / REMOTE_NAME).read_bytes())
        if isinstance(content, dict):
            return content
    return {}


def shards_of(pack: Path, preprocessing: Preprocessing, rows_per_shard: int) -> Shards:
    """Return the shards of a pack, or of what a folder mirrors."""
    shape = (pack / SHARDS_NAME, preprocessing.height, preprocessing.width, rows_per_shard)
    remote = remote_of(pack)
    return Shards(*shape) if remote is None else RemoteShards(*shape, remote=remote)


@dataclass(frozen=True)
class RemoteShards(Shards):
    """Shards in storage, fetched whole when they are needed; what is written goes there and leaves this disk.

    Attributes:
        remote: the pack.
    """

    remote: RemoteFolder = field(default_factory=lambda: RemoteFolder(""), kw_only=True)

    @property
    def window(self) -> int:
        """Shards in use at once: those that `most_maps` says, or 0 where the cache holds all of them."""
        total = sum(stamp.size for name, stamp in self._listed.items() if name.startswith(f"{SHARDS_NAME}/"))
        return 0 if total <= cache_bytes() else self.most_maps

    @property
    def most_maps(self) -> int:
        """Shards mapped at once: a third of the cache; the next are on their way, the last not yet let go.

        A map keeps a file on the disk that the cache has let go.
        """
        return max(1, cache_bytes() // (_FEWEST * self.row_bytes * self.rows_per_shard))

    def location(self, shard: int) -> str:
        """Return where a shard is, for messages."""
        return f"{self.remote.url}/{self._name(shard)}"

    def status(self, shard: int) -> Stamp:
        """Return what is known of a finished shard.

        Raises:
            OSError: it is not there.
        """
        if (stamp := self._listed.get(self._name(shard))) is None:
            raise FileNotFoundError(self._name(shard))
        return stamp

    def open(self, shard: int, identity: object) -> BinaryIO:
        """Open a finished shard, fetched if it is not here.

        Raises:
            PackError: it is no longer what it was.
            StorageError, OutputError: it cannot be fetched.
        """
        for _ in range(_ATTEMPTS):
            path = self._fetched(shard)
            # Another process may make room for a shard of its own before this one is open.
            with contextlib.suppress(FileNotFoundError):
                return path.open("rb")
        raise PackError(f"The cache {self.folder.parent.parent} has no room: set {SIZE_VARIABLE} higher.")

    def expect(self, rows: NDArray[np.int64]) -> None:
        """Begin to fetch the shards of the rows that come next, in the order in which they are needed."""
        numbers, first = np.unique(
            rows[: self.most_maps * self.rows_per_shard] // self.rows_per_shard, return_index=True
        )
        for shard in numbers[np.argsort(first)].tolist():
            coming = self._coming.get(shard)
            if (coming is None or coming.done()) and not self._cached(shard).exists():
                self._coming[shard] = self._fetchers.submit(self._fetched, shard)

    def finish(self, rows: Rows) -> None:
        """Put the shards of `rows` into the storage.

        Raises:
            OutputError, StorageError: they cannot be written.
        """
        super().finish(rows)
        for shard in self.shards_of(rows):
            self.remote.upload(self.path(shard), self._name(shard))
            self.path(shard).unlink(missing_ok=True)
        self.__dict__.pop("_listed", None)

    def keep_only(self, shards: Collection[int]) -> None:
        """Delete every other shard, in the storage and what was begun here."""
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
        with one_at_a_time(self.folder / f"{shard:05d}.lock"):
            if not path.exists() or path.stat().st_size != stamp.size:
                size = max(cache_bytes(), _FEWEST * self.row_bytes * self.rows_per_shard)
                _make_room(self.folder.parent.parent, size - stamp.size)
                self.remote.download(self._name(shard), path)
                if self.remote.stamp(self._name(shard)) != stamp:
                    path.unlink(missing_ok=True)
                    raise PackError(
                        f"{self.location(shard)} has changed since the pack was opened. Open it again."
                    )
            with contextlib.suppress(OSError):
                os.utime(path)
        return path

    @functools.cached_property
    def _listed(self) -> dict[str, Stamp]:
        return self.remote.listing()

    @functools.cached_property
    def _coming(self) -> dict[int, Future[Path]]:
        return {}

    @functools.cached_property
    def _fetchers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_READ_AHEAD, thread_name_prefix="shards")


def _make_room(cache: Path, size: int) -> None:
    """Delete the shards used longest ago, of all mirrors, until the rest takes no more than `size` bytes."""
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
