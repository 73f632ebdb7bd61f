"""Every error this package raises on purpose, its version, and the command that installs an extra.

AutoencodeError
├── ConfigError          a setting that cannot be used, or settings that do not fit together
├── ImageError           one image file or array that cannot be used
├── ImageFolderError     a folder that is missing, empty, or has no usable image
├── ImageIndexError      an index of images that is missing, damaged, or made with another model
├── PackError            a pack that is missing, damaged, or made with other settings
├── StorageError         object storage that cannot be reached, or that has no such bucket
├── RunError             a run folder that is not ours, is in use, or was started with other settings
├── DivergedError        training produced a loss that is not finite
├── ModelFileError       a file that is not a model, is damaged, or is of another version
├── OutputError          a result could not be written; an existing file is unchanged
└── MissingExtraError    an optional dependency is not installed; names the command that installs it

The message says what happened, where, and what to do. The command line prints it in one line and
exits with 2 for a ConfigError, with 1 for the others; a traceback is a bug.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path


VERSION = "0.2.0"


def install_command(extra: str) -> str:
    """Return the command that adds an optional part to this installation, which may be of a checkout.

    "" as the part is the package itself, for a dependency that was removed.

    direct_url.json (PEP 610) names the origin of a package, unless it was installed from an index.
    """
    import json
    from importlib import metadata
    from urllib.parse import unquote, urlsplit

    try:
        origin = json.loads(metadata.distribution("autoencode").read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        origin = {}
    part = f"[{extra}]" if extra else ""
    url = urlsplit(origin.get("url", ""))
    if url.scheme != "file":
        return f"pip install 'autoencode{part}'"
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f"pip install {editable}'{unquote(url.path)}{part}'"


class AutoencodeError(Exception):
    """Base of every error raised on purpose."""

    def __reduce__(self) -> tuple[Callable[[str, str], AutoencodeError], tuple[str, str]]:
        return restored, (type(self).__name__, str(self))


def restored(name: str, message: str) -> AutoencodeError:
    """Return an error of another process from the name of its class and its message."""
    # A subclass of another package has a name that is unknown here, or that of something else.
    kind = globals().get(name)
    if not (isinstance(kind, type) and issubclass(kind, AutoencodeError)):
        kind = AutoencodeError
    return kind.__new__(kind, message)


class ConfigError(AutoencodeError, ValueError):
    """A setting that cannot be used, or settings that do not fit together."""


class ImageError(AutoencodeError):
    """One image file or array that cannot be used."""


class ImageFolderError(AutoencodeError):
    """A folder that is missing, empty, or has no usable image."""


class ImageIndexError(AutoencodeError):
    """An index of images that is missing, damaged, or made with another model."""


class PackError(AutoencodeError):
    """A pack that is missing, damaged, or made with other settings."""


class StorageError(AutoencodeError):
    """Object storage that cannot be reached, or that has no such bucket."""


class RunError(AutoencodeError):
    """A run folder that is not ours, is in use, or was started with other settings."""


class DivergedError(AutoencodeError):
    """Training produced a loss that is not finite."""


class ModelFileError(AutoencodeError):
    """A file that is not a model, is damaged, or is of another version."""


class OutputError(AutoencodeError, OSError):
    """A result could not be written; an existing file is unchanged."""

    @classmethod
    def of(cls, path: Path, err: OSError) -> OutputError:
        """Return the error of the system about a file or folder as one of these."""
        # A file where a folder is needed has one of two errors, which name neither. That a temporary file is
        # there already is another matter.
        is_there = isinstance(err, FileExistsError) and str(err.filename) in map(str, (path, *path.parents))
        if is_there or isinstance(err, NotADirectoryError):
            file = next((one for one in (path, *path.parents) if one.exists() and not one.is_dir()), None)
            if file is not None:
                return cls(f"Could not write {path}: {file} is a file, not a folder. Choose another place.")
        # Not Path.is_file(), which fails at a name that is too long.
        unchanged = " The file there is unchanged." if os.path.isfile(path) else ""  # noqa: PTH113
        return cls(f"Could not write {path}: {err.strerror or err}.{unchanged}")


class MissingExtraError(AutoencodeError, ImportError):
    """A dependency is not installed: one of an extra or, where that is "", of the package itself."""

    def __init__(self, extra: str, purpose: str, command: str = "") -> None:
        part = "an optional part" if extra else "a part of the package"
        super().__init__(f"{purpose}: {part} is missing. Install it: {command or install_command(extra)}")


def any_of(names: Iterable[str]) -> str:
    """Return "a", "a or b", "a, b or c"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Reject a value that is none of the choices, which the message lists.

    Args:
        name: of what is chosen, for instance "embedding".
        value: the choice made.
        choices: all there are.

    Raises:
        ConfigError: the value is none of them.
    """
    if value not in (choices := tuple(choices)):
        raise ConfigError(f"Unknown {name} {value!r}. Choose {any_of(choices)}.")


def other_version(path: object, found: int, version: int, remake: str) -> str:
    """Return the error about a file of format `found`, not `version`; `remake` is advice on an old one."""
    age, advice = "an earlier", remake
    if found > version:
        age, advice = "a newer", "Upgrade: pip install --upgrade autoencode"
    return (
        f"{path} was written by {age} version of autoencode (format {found}; this one reads format "
        f"{version}). {advice}"
    )
