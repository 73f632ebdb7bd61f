"""What a pack says about itself: `pack.json`, its constant settings, and `manifest.jsonl`, one line a file.

The manifest is the only thing that makes rows of a shard count: replacing it, in one rename, is the moment at
which a pack changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autoencode.data.entries import Entries, Entry
from autoencode.data.preprocessing import Preprocessing
from autoencode.errors import ConfigError, PackError
from autoencode.files import atomic_file, parse_json, write_json

SETTINGS_NAME = "pack.json"
MANIFEST_NAME = "manifest.jsonl"
_FORMAT = "autoencode pack"
_VERSION = 1
_SHARD_BYTES = 256 * 1024**2
_MOST = 2**40


@dataclass(frozen=True)
class Settings:
    """What stays the same for the life of a pack.

    Attributes:
        folder: the image folder, absolute.
        preprocessing: how its images become pixels.
        rows_per_shard: rows in a full shard file.
        parts: in how many parts it is packed.
    """

    folder: Path
    preprocessing: Preprocessing
    rows_per_shard: int
    parts: int = 1

    @classmethod
    def of(cls, folder: Path, preprocessing: Preprocessing, parts: int = 1) -> Settings:
        """Return the settings of a new pack: shards of about 256 MiB."""
        row_bytes = preprocessing.height * preprocessing.width * 3
        return cls(folder.resolve(), preprocessing, max(1, _SHARD_BYTES // row_bytes), parts)


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
            "parts": settings.parts,
        },
    )


def is_pack(path: Path) -> bool:
    """Whether `path` is a pack, finished or not. Never raises."""
    try:
        value = parse_json((path / SETTINGS_NAME).read_bytes())
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
        value = parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as err:
        raise PackError(
            f"{pack} is not a pack: it has no {SETTINGS_NAME}. Make one: autoencode pack FOLDER --out PACK."
        ) from err
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
        rows_per_shard, parts = int(value["rows_per_shard"]), int(value.get("parts", 1))
        settings = Settings(Path(value["folder"]), preprocessing, rows_per_shard, parts)
        if not all(1 <= count <= _MOST for count in (rows_per_shard, parts)):
            raise ValueError("rows_per_shard or parts out of range")
    except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as err:
        raise PackError(f"{path} is damaged ({err}). {_REPACK}") from err
    return settings


def write_manifest(pack: Path, entries: Iterable[Entry]) -> None:
    """Replace `manifest.jsonl`, whole or not at all."""
    with atomic_file(pack / MANIFEST_NAME) as file:
        for entry in entries:
            file.write(json.dumps(entry.to_json()).encode() + b"\n")


def read_manifest(pack: Path) -> Entries | None:
    """Return the entries in the order of the file, or None if packing has not finished once.

    Raises:
        PackError: a line is damaged.
    """
    path = pack / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            return Entries(_parsed(path, file))
    except FileNotFoundError:
        return None
    except OSError as err:
        raise PackError(f"Could not read {path}: {err.strerror or err}.") from err
    except ValueError as err:
        raise PackError(f"{path} is damaged: {err}. {_REPACK}") from err


def _parsed(path: Path, lines: Iterable[bytes]) -> Iterator[Entry]:
    for number, line in enumerate(lines, 1):
        try:
            yield Entry.from_json(parse_json(line))
        except (TypeError, ValueError) as err:
            raise PackError(f"{path} is damaged in line {number}. {_REPACK}") from err


_REPACK = "Delete the pack and make it again."
