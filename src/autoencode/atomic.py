"""Files that are either whole or not there, and folders that one process writes at a time.

A file is written beside its destination, fsynced and renamed. A kill, a crash or a full disk at any moment
leaves the old file or the new one, never a part of it. Two kinds of files are safe in other ways: a log, of
which only the last line can be cut short, and shards of a pack, which count once its manifest names them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from autoencode.csv_files import write_rows
from autoencode.errors import ConfigError, OutputError, any_of
from autoencode.untrusted import allowed_beside, allowed_by, open_log, read_head

TEMPORARY_SUFFIX = ".partial"
TABLES = (".csv", ".json")

_LOCK_NAME = ".lock"
_OF_SAFETENSORS = re.compile(r"\.tmp[0-9A-Za-z]{6}")  # what safetensors writes before it renames
_NAME_BYTES = 200
_LOOK_SECONDS = 0.2  # how long a writer waits: `is_locked` holds the lock for a moment
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")
_HEAD_BYTES = 4096  # every image format that is written has a zero byte in these; text has none


def reject_url(path: Path) -> None:
    """Reject a path that was made from a URL, such as s3:/bucket; an existing folder s3: is accepted.

    Raises:
        ConfigError: `path` was made from a URL.
    """
    scheme = path.parts[0] if path.parts else ""
    if _SCHEME.fullmatch(scheme) and not Path(scheme).exists():
        raise ConfigError(
            f"{scheme}//{'/'.join(path.parts[1:])} is in object storage. Give a path on this machine."
        )


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing; on success fsync it and rename it onto `path`.

    Raises:
        OutputError: the folder cannot be written to or the disk is full. `path` is as it was before.
    """
    reject_url(path)
    temporary = _temporary_beside(path)
    try:
        make_folder(path.parent)
        with new_file(temporary) as file:
            mode = os.fstat(file.fileno()).st_mode
            yield file
        # Some libraries replace the temporary file by one that only its owner may read.
        with temporary.open("rb+") as file:
            if hasattr(os, "fchmod"):  # Windows has no such permissions
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as err:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(err, OSError) and not isinstance(err, OutputError):
            raise OutputError.of(path, err) from err
        raise


def new_file(path: Path) -> IO[bytes]:
    """Make a file for writing, with the permissions of `allowed_by` its folder.

    Raises:
        FileExistsError: there is one, or a link, which somebody may have put there.
    """
    mode = 0o666 & allowed_by(path.parent)
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode))


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Make a temporary folder beside `path`, to be filled inside the context; then rename it onto `path`.

    Its files are not synced one by one: use it for files that can be made again.

    Raises:
        OutputError: the folder cannot be written, or `path` exists and is not empty.
    """
    temporary = _temporary_beside(path)
    try:
        make_folder(path.parent)
        temporary.mkdir(0o777 & allowed_by(path.parent))
        yield temporary
        temporary.rename(path)
        sync_folder(path.parent)
    except BaseException as err:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(err, OSError) and not isinstance(err, OutputError):
            raise OutputError.of(path, err) from err
        raise


def cut_name(name: str) -> str:
    """Return a name, or its beginning: there is room to add to it, up to the 255 bytes of a name."""
    content = os.fsencode(name)
    return name if len(content) <= _NAME_BYTES else content[:_NAME_BYTES].decode(errors="ignore")


def free_path(path: Path, ending: str = "") -> Path:
    """Return the path with this ending, or with a number before it from 2 on where something is there."""
    number, free = 1, path.with_name(f"{path.name}{ending}")
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}{ending}")
    return free


def check_output(path: Path, endings: Collection[str], inputs: Iterable[Path] = ()) -> None:
    """Reject an output file that cannot or should not be written, before the work that makes it.

    No file is made or changed.

    Args:
        path: where a result is to go.
        endings: the allowed extensions, in lower case with the dot; either those of tables or of images.
        inputs: files that are read or needed later; looked at only if `path` exists.

    Raises:
        ConfigError: the extension of `path` is not in `endings`; it is a folder; it is one of the inputs,
            directly or by a link; or it holds an image instead of text, or text instead of an image.
        OutputError: `path` cannot be written.
    """
    if path.suffix.lower() not in endings:
        raise ConfigError(f"Cannot write {path}: use a name that ends in {any_of(endings)}.")
    try:
        if path.is_dir():
            raise ConfigError(f"Cannot write {path}: it is a folder. Give the name of a file.")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir():
            raise OutputError(f"Could not write {path}: {folder} is not a folder. Choose another output.")
        # os.access is not enough: root is allowed to write even where nothing can be written.
        with tempfile.TemporaryFile(dir=folder):
            pass
        if not path.exists():
            return
        if any(given.exists() and path.samefile(given) for given in inputs):
            raise ConfigError(f"Writing {path} would overwrite an input. Choose another name.")
        head = read_head(path, _HEAD_BYTES)  # a mistyped option must not replace a photo by a table
    except OutputError:
        raise
    except OSError as err:
        raise OutputError.of(path, err) from err
    is_text = b"\0" not in head
    if head and is_text != (path.suffix.lower() in TABLES):
        kind = "text" if is_text else "an image or other binary data"
        raise ConfigError(f"{path} exists and holds {kind}. Choose another name.")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with atomic_file(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - anything JSON can hold
    """Write `value` to `path` as indented JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write rows to `path` as CSV, row by row, whole or not at all."""
    with atomic_file(path) as file:
        write_rows(file, rows)


def append_line(path: Path, line: str) -> None:
    """Append a line to a log and fsync it; a crash can cut short only the last line.

    Raises:
        OutputError: the line cannot be written.
    """
    try:
        with open_log(path) as file:
            file.write((line + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as err:
        raise OutputError(f"Could not write {path}: {err.strerror or err}.") from err


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401 - anything JSON can hold
    """Return the value of JSON text, which may be forged.

    Raises:
        ValueError: `text` is not JSON, is nested too deeply, or has a number that is not finite.
    """
    try:
        return json.loads(text, parse_constant=_reject_constant, parse_float=_finite)
    except RecursionError as err:  # a forged file of brackets alone
        raise ValueError("nested too deeply") from err


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")  # Python accepts NaN and Infinity, which nothing here writes


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text[:20]} is too large a number")  # 1e999 is JSON, and infinity in Python
    return value


def make_folder(path: Path, source: Path | None = None, *, is_private: bool = False) -> None:
    """Make `path` and its parents, none open to users who are kept out of the folder it is made in.

    Args:
        path: the folder; one that exists keeps its permissions.
        source: a folder or file whose content goes there: users who cannot read it cannot read the copy.
        is_private: for this user alone, whatever the source.

    Raises:
        OutputError: the folder cannot be made, for instance because a file has that name.
    """
    reject_url(path)
    try:
        if path.is_dir():
            return
        make_folder(path.parent)
        allowed = 0o700 if is_private else 0o777 & allowed_by(path.parent)
        path.mkdir(allowed & (0o777 if source is None else allowed_beside(source, path)), exist_ok=True)
    except OutputError:
        raise
    except OSError as err:
        raise OutputError.of(path, err) from err


def claim_folder(path: Path, mark: str, contents: str, source: Path | None = None) -> None:
    """Make the folder of a result; one that holds something else than an earlier result is left alone.

    Args:
        mark: a file in it by which an earlier result is known, also one half-written: it is written first.
        contents: what the result is, for the message.
        source: see `make_folder`.

    Raises:
        OutputError: the folder is not empty and has no such file, or cannot be made.
    """
    # One that another process is just filling is rejected, or waited for, where its lock is asked for.
    if path.is_dir() and names_in(path) and not (path / mark).exists() and not is_locked(path):
        raise OutputError(f"{path} is not empty and holds no earlier {contents}. Choose another --out.")
    make_folder(path, source)


def sync_folder(path: Path) -> None:
    """Make renames inside `path` survive a power cut, where the system supports that."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        descriptor = os.open(path, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        os.fsync(descriptor)


@contextlib.contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """Remove `folder` again, and parents, if they were made in the context and an error left them empty."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for one in made:
                # Another process that holds the lock has not yet written anything.
                if one.exists() and not names_in(one) and not is_locked(one):
                    shutil.rmtree(one)
        raise


def remove_temporaries(folder: Path) -> None:
    """Delete the temporary files that a killed process left in `folder`; the caller holds its lock."""
    for leftover in folder.iterdir() if folder.is_dir() else ():
        if _is_temporary(leftover.name):
            with contextlib.suppress(OSError):
                leftover.unlink()


def _is_temporary(name: str) -> bool:
    return name.endswith(TEMPORARY_SUFFIX) or _OF_SAFETENSORS.fullmatch(name) is not None


def names_in(folder: Path) -> set[str]:
    """Return the names in `folder`, without locks and temporary files; none if it is missing.

    A process killed right after its start leaves only those, and the folder must count as empty.

    Raises:
        OSError: the folder cannot be read, or is a file.
    """
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    return {name for name in names if name != _LOCK_NAME and not _is_temporary(name)}


@contextlib.contextmanager
def exclusive(folder: Path, busy: str, error: type[Exception], source: Path | None = None) -> Iterator[None]:
    """Hold the lock of `folder` (made if missing), so that two processes never write it at once.

    The operating system drops the lock when the process ends, however it ends. See `removed_if_empty`.

    Args:
        busy, error: the message when another process holds the lock, and the class raised with it.
        source: see `make_folder`.

    Raises:
        OutputError: the folder or its lock file cannot be made.
    """
    from filelock import Timeout

    with removed_if_empty(folder):
        make_folder(folder, source)
        try:
            lock = _acquired(folder / _LOCK_NAME, _LOOK_SECONDS)
        except Timeout as err:
            raise error(busy) from err
        with lock:
            yield


@contextlib.contextmanager
def one_at_a_time(lock_path: Path) -> Iterator[None]:
    """Let one process or thread in at a time while the others wait; for work that takes moments.

    Raises:
        OutputError: the lock file cannot be made.
    """
    with _acquired(lock_path, timeout=-1):
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of `folder` (see `exclusive`); no file is made."""
    from filelock import Timeout

    if not (path := folder / _LOCK_NAME).exists():
        return False
    try:
        with _acquired(path, timeout=0):
            return False
    except Timeout:
        return True
    except OutputError:  # read-only for this user, who cannot lock it and so cannot ask
        return False


def _acquired(path: Path, timeout: float) -> AbstractContextManager[object]:
    """Acquire the lock of a file until the context is left; raises Timeout if another process holds it."""
    from filelock import FileLock, Timeout  # 30 ms, which commands that write nothing need not spend

    try:
        # filelock sets a mode by fchmod, which not every system has.
        mode = 0o644 & allowed_by(path.parent) if hasattr(os, "fchmod") else -1
        # Where a disk has no locks, it would use marker files, which a killed process leaves behind.
        return FileLock(path, mode=mode, fallback_to_soft=False).acquire(timeout=timeout)
    except Timeout:
        raise
    except OSError as err:
        raise OutputError.of(path, err) from err


def _temporary_beside(path: Path) -> Path:
    # In the same folder: only a rename inside one file system is atomic. Random: nobody can be there before.
    return path.with_name(f"{cut_name(path.name)}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
