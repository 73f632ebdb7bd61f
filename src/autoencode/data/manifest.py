"""What a pack says about itself: `pack.json`, its constant settings, and `manifest.jsonl`, one line a file.

The manifest is the only thing that makes rows of a shard count: replacing it, in one rename, is the moment at
which a pack changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from autoencode.data.preprocessing import Preprocessing
from autoencode.errors import ConfigError, PackError
from autoencode.files import atomic_file, write_json

Split = Literal["train", "validation", "test"]
Status = Literal["packed", "refused"]

SETTINGS_NAME = "pack.json"
MANIFEST_NAME = "manifest.jsonl"
_FORMAT = "autoencode pack"
_VERSION = 1
_SHARD_BYTES = 256 * 1024**2


def split_of(sha256: str) -> Split:
    """Return the split of a file by its content alone, so that copies share one and no file ever moves.

    Args:
        sha256: digest of the file's content, 64 hexadecimal digits. Read as a fraction, below .75 is train,
            below .90 validation, and the rest test.
    """
    fraction = int(sha256[:16], 16) / 2**64
    return "train" if fraction < 0.75 else "validation" if fraction < 0.90 else "test"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the manifest: one file of the image folder.

    Attributes:
        path: relative to the folder, with "/"; bytes that are not UTF-8 as surrogates, as in `os.fsdecode`.
        size: bytes.
        mtime: nanoseconds since 1970.
        sha256: digest of the content; None if it could not be read.
        status: "packed", or "refused" for a file that cannot be used.
        reason: why it was refused.
        row: where its pixels are; files of the same content share a row.
        label: the first sub-folder, if it is in one.
        split: see `split_of`.
    """

    path: str
    size: int
    mtime: int
    sha256: str | None
    status: Status
    reason: str | None
    row: int | None
    label: str | None
    split: Split | None

    def to_json(self) -> dict[str, Any]:
        """Return the line as a JSON object."""
        return {name: getattr(self, name) for name in _ENTRY_FIELDS}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Entry:
        """Return the entry saved by `to_json`.

        Raises:
            ValueError, TypeError: it is something else.
        """
        entry = cls(**value)
        if not isinstance(entry.path, str) or entry.status not in get_args(Status):
            raise ValueError("no path or no status")
        if entry.status == "packed":
            if not isinstance(entry.row, int) or entry.row < 0 or entry.split not in get_args(Split):
                raise ValueError("no row or no split")
            if not isinstance(entry.sha256, str) or len(entry.sha256) != 64:
                raise ValueError("no sha256")
        return entry


_ENTRY_FIELDS = tuple(field.name for field in fields(Entry))


def packed(path: str, size: int, mtime: int, sha256: str, row: int) -> Entry:
    """Return the entry of a file whose pixels are in `row`."""
    return Entry(path, size, mtime, sha256, "packed", None, row, _label(path), split_of(sha256))


def refused(path: str, size: int, mtime: int, sha256: str | None, reason: str) -> Entry:
    """Return the entry of a file that cannot be used."""
    return Entry(path, size, mtime, sha256, "refused", reason, None, _label(path), None)


def _label(path: str) -> str | None:
    first, separator, _ = path.partition("/")
    return first if separator else None


@dataclass(frozen=True)
class Settings:
    """What stays the same for the life of a pack.

    Attributes:
        folder: the image folder, absolute.
        preprocessing: how its images become pixels.
        rows_per_shard: rows in a full shard file.
    """

    folder: Path
    preprocessing: Preprocessing
    rows_per_shard: int

    @classmethod
    def of(cls, folder: Path, preprocessing: Preprocessing) -> Settings:
        """Return the settings of a new pack: shards of about 256 MiB."""
        row_bytes = preprocessing.height * preprocessing.width * 3
        return cls(folder.resolve(), preprocessing, max(1, _SHARD_BYTES // row_bytes))


def write_settings(pack: Path, settings: Settings) -> None:
    """Write `pack.json`."""
    write_json(
        pack / SETTINGS_NAME,
        {
            "format": _FORMAT,
            "version": _VERSION,
            "folder": str(settings.folder),
            "preprocessing": settings.preprocessing.to_json(),
            "rows_per_shard": settings.rows_per_shard,
        },
    )


def is_pack(path: Path) -> bool:
    """Whether `path` is a pack, finished or not. Never raises."""
    try:
        value = json.loads((path / SETTINGS_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and value.get("format") == _FORMAT


def read_settings(pack: Path) -> Settings:
    """Return what `pack.json` says.

    Raises:
        PackError: there is no pack, it is damaged, or a newer version made it.
    """
    path = pack / SETTINGS_NAME
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as err:
        raise PackError(f"{pack} is not a pack: it has no {SETTINGS_NAME}.") from err
    except (OSError, ValueError) as err:
        raise PackError(f"Could not read {path}: {err}. {_REPACK}") from err
    if not isinstance(value, dict) or value.get("format") != _FORMAT:
        raise PackError(f"{pack} is not a pack: its {SETTINGS_NAME} is of something else.")
    if isinstance(value.get("version"), int) and value["version"] > _VERSION:
        raise PackError(
            f"The pack {pack} was made by a newer version of autoencode (format {value['version']}, this one"
            f" reads up to {_VERSION}). Upgrade: pip install --upgrade autoencode."
        )
    try:
        preprocessing = Preprocessing.from_json(value["preprocessing"])
        settings = Settings(Path(value["folder"]), preprocessing, int(value["rows_per_shard"]))
        if settings.rows_per_shard < 1:
            raise ValueError("rows_per_shard below 1")
    except (KeyError, TypeError, ValueError, ConfigError) as err:
        raise PackError(f"{path} is damaged ({err}). {_REPACK}") from err
    return settings


def write_manifest(pack: Path, entries: Iterable[Entry]) -> None:
    """Replace `manifest.jsonl`, whole or not at all."""
    with atomic_file(pack / MANIFEST_NAME) as file:
        for entry in entries:
            file.write(json.dumps(entry.to_json()).encode() + b"\n")


def read_manifest(pack: Path) -> list[Entry] | None:
    """Return the entries in the order of the file, or None if packing has not finished once.

    Raises:
        PackError: a line is damaged.
    """
    path = pack / MANIFEST_NAME
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return None
    except OSError as err:
        raise PackError(f"Could not read {path}: {err.strerror or err}.") from err
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(Entry.from_json(json.loads(line)))
        except (TypeError, ValueError) as err:
            raise PackError(f"{path} is damaged in line {number}. {_REPACK}") from err
    return entries


_REPACK = "Delete the pack and make it again."
