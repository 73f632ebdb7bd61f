"""Folders in object storage, named by a URL such as s3://bucket/pack and reached through fsspec.

Errors of each kind of storage become one error of ours, which names the URL and the remedy.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from autoencode.atomic import atomic_file, new_file
from autoencode.errors import AutoencodeError, MissingExtraError, StorageError
from autoencode.untrusted import open_file

_URL = re.compile(r"[a-z][a-z0-9+.-]*:///*[^/]")
# A run or index from someone else may name a pack by its URL. fsspec knows kinds that unpack, chain or
# interpret other files (reference://, zip://, dask://, a::b), one of which has run what was in a file
# (CVE-2026-104851): only those are opened that hold files.
_KINDS = {
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "hdfs", "webhdfs", "sftp", "ssh", "smb"),
    *("http", "https", "file", "local", "memory"),
}
# Kinds of storage with a write that fails where a file is: If-None-Match, or a generation of 0.
_CONDITIONAL = {"file", "local", "memory", "s3", "s3a", "gs", "gcs"}
_DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EFBIG, getattr(errno, "EDQUOT", None))  # not on Windows
# Errors are known by name, because the libraries that raise them need not be installed.
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_MISSING_CREDENTIALS = (
    "No credentials for {url}. Log in with the tool of its provider, or set the variables it reads "
    "(for s3://: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)."
)


def is_url(location: object) -> bool:
    """Whether `location` is a URL of object storage rather than a path."""
    return isinstance(location, str) and _URL.match(location) is not None


def folder_or_url(location: str | Path) -> Path | str:
    """Return a folder as a path, and a URL of storage as it is, without a slash at its end."""
    return str(location).rstrip("/") if is_url(location) else Path(location)


class Stamp(NamedTuple):
    """Distinguishes versions of a file: its size in bytes, and a mark that changes with its content."""

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
        """Return each file in it and its sub-folders, by its path relative to this folder."""
        with self._storage() as (storage, root):
            storage.invalidate_cache()  # fsspec remembers listings, and others write here as well
            found = storage.find(root, detail=True)
            start = len(root.rstrip("/")) + 1
            return {name[start:]: _stamp(info) for name, info in found.items()}

    def stamp(self, name: str) -> Stamp | None:
        """Return the version of a file, or None if there is none of that name."""
        with self._storage() as (storage, root):
            storage.invalidate_cache()
            try:
                return _stamp(storage.info(f"{root}/{name}"))
            except FileNotFoundError:
                pass
            # A missing bucket means a wrong URL; it must not look like an empty folder.
            try:
                storage.ls(root)
            except FileNotFoundError as err:
                if "bucket" in str(err).lower():
                    raise
            return None

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
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
                if err.errno in _DISK_ERRORS:
                    raise
                raise self._translated(err) from err

    def upload(self, path: Path, name: str) -> None:
        """Copy a file from the disk; it replaces one of that name as a whole."""
        with self._storage() as (storage, root):
            storage.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
            if "file" in storage.protocol:  # fsspec would overwrite the file in place
                with open_file(path) as content, atomic_file(Path(root, name)) as file:
                    shutil.copyfileobj(content, file)
            else:
                storage.put_file(str(path), f"{root}/{name}")

    def create(self, name: str, content: bytes) -> bool:
        """Write a file if there is none of that name; of several writers at once, one succeeds.

        Returns:
            Whether the file was written.

        Raises:
            StorageError: this kind of storage has no such write.
        """
        with self._storage() as (storage, root):
            path = f"{root}/{name}"
            if not _CONDITIONAL & {storage.protocol, *storage.protocol}:
                raise StorageError(
                    f"{self.url} cannot be locked: this kind of storage cannot write a file only if there is "
                    f"none. Pack to a folder, and copy it there."
                )
            try:
                if "file" in storage.protocol:  # where fsspec looks first, and writes then
                    storage.makedirs(root, exist_ok=True)
                    with new_file(Path(path)) as file:
                        file.write(content)
                else:
                    storage.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            return True

    def delete(self, name: str) -> None:
        """Delete a file; a missing one is no error."""
        with self._storage() as (storage, root), contextlib.suppress(FileNotFoundError):
            storage.rm_file(f"{root}/{name}")

    def lance_options(self) -> dict[str, str]:
        """Return the options with which LanceDB reaches the same storage; for AWS it finds them all itself.

        Only credentials that fsspec was configured with are passed on. Others may expire, and LanceDB finds
        them where the providers' own tools look for them.
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
        """Give the file system and the path of this folder in it, and translate its errors."""
        import fsspec

        kind = self.url.partition(":")[0]
        if kind not in _KINDS or "::" in self.url:
            raise StorageError(
                f"{self.url} is no storage of a known kind. Give a URL such as s3://bucket/pack."
            )
        try:
            storage, root = fsspec.url_to_fs(self.url)
            yield storage, root
        except AutoencodeError:
            raise
        except Exception as err:
            raise self._translated(err) from err

    def _translated(self, err: Exception) -> AutoencodeError:
        """Translate an error of a kind of storage into one of this package."""
        said = first_line(err)
        if isinstance(err, ImportError) and self.url.startswith(("s3://", "s3a://")):
            return MissingExtraError("storage", f"Reading {self.url}")
        if isinstance(err, ImportError):
            return StorageError(f"Could not open {self.url}: {said}.")
        if isinstance(err, FileNotFoundError):
            return StorageError(f"Could not find {self.url}: {said}. Check the bucket and path.")
        if isinstance(err, PermissionError):
            return StorageError(f"These credentials may not access {self.url}: {said}.")
        if type(err).__name__ in _NO_CREDENTIALS:
            return StorageError(_MISSING_CREDENTIALS.format(url=self.url))
        return StorageError(f"Could not reach {self.url}: {said}.")


def _stamp(info: dict[str, Any]) -> Stamp:
    # Each kind of storage names its version field differently.
    version = next((info[name] for name in ("ETag", "etag", "mtime", "created") if name in info), "")
    if isinstance(version, datetime):
        version = version.timestamp()  # memory:// returns either type
    return Stamp(int(info["size"]), str(version))


def first_line(err: BaseException) -> str:
    """Return the first line of the message of an error of another library."""
    lines = str(err).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(err).__name__
