"""Open files that anyone may have made: only regular ones, no longer than stated, without waiting.

A pack, run or model from someone else can hold a link to /dev/zero in the place of a list, a pipe that nobody
writes to, or a line without an end. Opened by name, the first takes all memory and the second waits for ever.
Every file that a command reads is opened here; a test looks for other ways in the source.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

# JSON of ours is some kilobytes, and the lists of a large pack and the log of a long run some hundred
# megabytes.
JSON_BYTES = 64 * 1024**2
TEXT_BYTES = 1024**3
# A path has at most 4,096 bytes, which JSON writes as up to 24 kilobytes; a label and a reason come on top.
LINE_BYTES = 1024**2

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


T = TypeVar("T")


class UnsafeFileError(OSError):
    """A file is not opened, because of what it is; `strerror` says what."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EINVAL, reason)

    def __str__(self) -> str:
        """Return the reason alone, without a number of the system's."""
        return str(self.strerror)


class _Unwaiting(io.FileIO):
    """A file whose reads return bytes or raise.

    The system has streams that call themselves regular files, as /proc/kmsg. Without waiting, a read of one
    that has no data returns None, which no reader expects.
    """

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer
        count: int | None = super().readinto(buffer)
        return _given(count)

    def readall(self) -> bytes:
        return _given(super().readall())


def _given(data: T | None) -> T:
    if data is None:
        raise UnsafeFileError("is a stream without data, not a file")
    return data


def open_file(
    path: str | Path, most_bytes: int | None = None, *, inside: Path | None = None
) -> io.BufferedReader:
    """Open a regular file for reading.

    Args:
        path: the file.
        most_bytes: a longer file is not opened; None for any length, where not all of it is read at once.
        inside: a folder that the file must be in, after links are followed. By default a link may lead
            anywhere, as in caches that keep each file once.

    Raises:
        OSError: there is no such file, or it cannot be read.
        UnsafeFileError: it is a folder, a pipe or a device, too long, or not inside the folder, or its name
            holds a zero byte.
    """
    if "\0" in os.fspath(path):  # which Python calls an error of the caller, and a table can name it
        raise UnsafeFileError("has a zero byte in its name")
    # A pipe or device must not even be opened: that can already block for ever or act on the device.
    _check(os.stat(path), most_bytes)  # noqa: PTH116 - a Path costs more than the call
    more = getattr(os, "O_NONBLOCK", 0)
    if inside is not None:
        # A link in the folder may lead to another file of it, not out: a pack from someone else would show
        # any file of its reader as pixels.
        real = os.path.realpath(path)
        if not Path(real).is_relative_to(os.path.realpath(inside)):
            raise UnsafeFileError("is a link that leads out of its folder")
        path, more = real, more | getattr(os, "O_NOFOLLOW", 0)
    # By now the path may lead to another file: not waited for if it is a pipe, and looked at again.
    file: io.BufferedReader = io.BufferedReader(
        _Unwaiting(path, "rb", opener=lambda name, flags: os.open(name, flags | more))
    )
    try:
        _check(os.fstat(file.fileno()), most_bytes)
    except BaseException:
        file.close()
        raise
    return file


def read_file(path: str | Path, most_bytes: int = JSON_BYTES, *, inside: Path | None = None) -> bytes:
    """Return the content of a regular file of at most so many bytes; arguments and errors as `open_file`."""
    with open_file(path, most_bytes, inside=inside) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(min(size, most_bytes) + 1)
        if len(content) > size:  # it grows
            content += file.read(most_bytes + 1 - len(content))
    if len(content) > most_bytes:
        raise UnsafeFileError(f"has more bytes than the limit of {most_bytes:,}")
    return content


def read_head(path: str | Path, size: int) -> bytes:
    """Return the first bytes of a regular file; none of one that is no such file or cannot be read."""
    try:
        with open_file(path) as file:
            return file.read(size)
    except OSError:
        return b""


def lines_of(file: BinaryIO, most_bytes: int = LINE_BYTES) -> Iterator[bytes]:
    """Yield the lines of a file, each with its line break.

    Raises:
        UnsafeFileError: a line is longer than `most_bytes`.
    """
    while line := file.readline(most_bytes + 1):
        if len(line) > most_bytes:
            raise UnsafeFileError(f"has a line of more than {most_bytes:,} bytes")
        yield line


def check_file(path: str | Path) -> None:
    """Reject what is not a regular file, before a library opens it by its name; errors as `open_file`."""
    open_file(path).close()


def open_log(path: Path) -> BinaryIO:
    """Open a log for appending, made if it is missing.

    Raises:
        OSError: it cannot be written.
        UnsafeFileError: it is a link, a pipe or a device: a run from someone else must not lead what is
            written to it to another file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if path.is_symlink():
        raise UnsafeFileError("is a link, which nothing is written through")
    descriptor = os.open(path, flags, 0o666 & allowed_by(path.parent))
    file = os.fdopen(descriptor, "ab")
    try:
        _check(os.fstat(descriptor), None)
    except BaseException:
        file.close()
        raise
    return file


def allowed_by(folder: Path) -> int:
    """Return the permissions that a file may have in a folder: none for a class of users kept out of it."""
    mode = folder.stat().st_mode
    return 0o700 | (0o070 if mode & 0o070 else 0) | (0o007 if mode & 0o007 else 0)


def allowed_beside(source: Path, out: Path) -> int:
    """Return the permissions that a copy of a folder may have: for users who can read the folder itself.

    Args:
        source: a folder or a file; of one that is missing, nothing is known, and all is allowed.
        out: where the copy goes. Folders that both are in keep users from the copy, too, and do not count.
    """
    source, out = source.absolute(), out.absolute()
    allowed = 0o777
    try:
        allowed &= _readers(source.stat().st_mode)
        for folder in source.parents:
            if folder not in out.parents:
                mode = folder.stat().st_mode
                allowed &= 0o700 | (0o070 if mode & 0o010 else 0) | (0o007 if mode & 0o001 else 0)
    except OSError:
        return allowed
    return allowed


def _readers(mode: int) -> int:
    return 0o700 | (0o070 if mode & 0o040 else 0) | (0o007 if mode & 0o004 else 0)


def _check(status: os.stat_result, most_bytes: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFileError(f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'something else')}, not a file")
    if most_bytes is not None and status.st_size > most_bytes:
        raise UnsafeFileError(f"has {status.st_size:,} bytes, more than the limit of {most_bytes:,}")
