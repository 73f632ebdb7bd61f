"""The description of a pack: `pack.json`, its constant settings, and `manifest.jsonl`, one line per file.

Rows of a shard count only if the manifest names them: a pack changes at the moment its manifest is replaced,
in one rename.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoencode.atomic import atomic_file, parse_json, write_json
from autoencode.data.entries import Entries, Entry
from autoencode.data.preprocessing import Preprocessing
from autoencode.errors import ConfigError, PackError, other_version
from autoencode.untrusted import UnsafeFileError, lines_of, open_file, read_file

if TYPE_CHECKING:
    from autoencode.data.listing import Listing


SETTINGS_NAME = "pack.json"
MANIFEST_NAME = "manifest.jsonl"
_FORMAT = "autoencode pack"
_VERSION = 2
_SHARD_BYTES = 256 * 1024**2  # a shard in storage is fetched whole, in seconds, while others are in use
_MOST = 2**40  # rows per shard: a forged number must not overflow the bytes computed from it


@dataclass(frozen=True)
class PackSettings:
    """The settings that stay the same for the lifetime of a pack.

    Attributes:
        folder: the image folder, absolute.
        preprocessing: how its images become pixels.
        rows_per_shard: rows in a full shard file.
        origin: what its images were listed from, such as the path of a table; "" for the folder.
        note: what was recognised in it, such as folders that are splits; "" for nothing.
        has_given_splits: whether splits were given; otherwise the content decides them.
    """

    folder: Path
    preprocessing: Preprocessing
    rows_per_shard: int
    origin: str = ""
    note: str = ""
    has_given_splits: bool = False

    @classmethod
    def of(cls, listing: Listing, preprocessing: Preprocessing) -> PackSettings:
        """Return the settings of a new pack: shards of about 256 MiB."""
        row_bytes = preprocessing.height * preprocessing.width * 3
        folder, given = listing.folder.resolve(), listing.splits is not None
        origin = "" if listing.origin == str(folder) else listing.origin
        return cls(folder, preprocessing, max(1, _SHARD_BYTES // row_bytes), origin, listing.note, given)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height and width of an image, and rows of a full shard."""
        return self.preprocessing.height, self.preprocessing.width, self.rows_per_shard


def write_settings(pack: Path, settings: PackSettings) -> None:
    """Write `pack.json`."""
    write_json(
        pack / SETTINGS_NAME,
        {
            "format": _FORMAT,
            "version": _VERSION,
            "folder": str(settings.folder),
            "preprocessing": settings.preprocessing.to_json(),
            "rows_per_shard": settings.rows_per_shard,
            "origin": settings.origin,
            "note": settings.note,
            "has_given_splits": settings.has_given_splits,
        },
    )


def is_pack(path: Path) -> bool:
    """Whether `path` is a pack, finished or not. Never raises."""
    try:
        value = parse_json(read_file(path / SETTINGS_NAME, inside=path))
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and value.get("format") == _FORMAT


def read_settings(pack: Path) -> PackSettings:
    """Return the settings in `pack.json`.

    Raises:
        PackError: there is no pack, it is damaged, or it was made by another version.
    """
    path = pack / SETTINGS_NAME
    try:
        value = parse_json(read_file(path, inside=pack))
    except (FileNotFoundError, NotADirectoryError) as err:
        raise PackError(
            f"{pack} is not a pack: it has no {SETTINGS_NAME}. Make one: autoencode pack FOLDER --out PACK."
        ) from err
    except UnsafeFileError as err:
        raise PackError(f"{path} {err}. Do not use this pack.") from err
    except (OSError, ValueError) as err:
        raise PackError(f"Could not read {path}: {err}. {_REPACK_ADVICE}") from err
    if not isinstance(value, dict) or value.get("format") != _FORMAT:
        raise PackError(f"{pack} is not a pack: its {SETTINGS_NAME} is of something else.")
    version = value.get("version")
    if isinstance(version, int) and version != _VERSION:
        raise PackError(other_version(pack, version, _VERSION, _REPACK_ADVICE))
    try:
        preprocessing = Preprocessing.from_json(value["preprocessing"])
        settings = PackSettings(
            Path(value["folder"]),
            preprocessing,
            int(value["rows_per_shard"]),
            str(value.get("origin", "")),
            str(value.get("note", "")),
            value.get("has_given_splits") is True,
        )
        if not 1 <= settings.rows_per_shard <= _MOST:
            raise ValueError("rows_per_shard out of range")
    except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as err:
        raise PackError(f"{path} is damaged ({err}). {_REPACK_ADVICE}") from err
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
        with open_file(path, inside=pack) as file:
            return Entries(_parsed(path, lines_of(file), read_settings(pack).has_given_splits))
    except FileNotFoundError:
        return None
    except UnsafeFileError as err:
        raise PackError(f"{path} {err}. Do not use this pack.") from err
    except OSError as err:
        raise PackError(f"Could not read {path}: {err.strerror or err}.") from err
    except ValueError as err:
        raise PackError(f"{path} is damaged: {err}. {_REPACK_ADVICE}") from err


def _parsed(path: Path, lines: Iterable[bytes], has_given_splits: bool) -> Iterator[Entry]:
    last = ""
    for number, line in enumerate(lines, 1):
        try:
            entry = Entry.from_json(parse_json(line), has_given_splits=has_given_splits)
            # Written in the order of paths; one line a hundred thousand times would be as many images.
            if number > 1 and entry.path <= last:
                raise ValueError("a path twice, or out of order")
        except (TypeError, ValueError) as err:
            raise PackError(f"{path} is damaged in line {number}. {_REPACK_ADVICE}") from err
        last = entry.path
        yield entry


_REPACK_ADVICE = "Delete the pack and make it again."
