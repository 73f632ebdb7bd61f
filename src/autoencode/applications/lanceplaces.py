"""Where an index that LanceDB keeps is, in a folder or in object storage: found there, or made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoencode.applications.indexsettings import AGAIN, IndexSettings
from autoencode.applications.lancerows import (
    IMAGES,
    SETTINGS,
    SOURCES,
    Cells,
    images_schema,
    settings_bytes,
    sources_schema,
)
from autoencode.applications.lancetables import Tables, said
from autoencode.data.storage import RemoteFolder
from autoencode.errors import ConfigError, ImageIndexError, MissingExtraError, OutputError

_SCHEMES = ("s3://", "gs://", "az://")


def find_tables(place: Path | str) -> Tables | None:
    """Open the tables of the index at `place`; None if there is none.

    Raises:
        ImageIndexError: they are damaged.
        StorageError: the storage cannot be reached.
        MissingExtraError: LanceDB is not installed.
    """
    if not is_lance_index(place):
        return None
    database = _connect(place)
    try:
        database.open_table(SETTINGS)
    except Exception as err:
        if isinstance(err, ValueError) and "not found" in str(err):  # its maker was killed before that
            return None
        raise ImageIndexError(f"The index {place} could not be read ({said(err)}). {AGAIN}") from err
    return Tables(place, database)


def is_lance_index(place: Path | str) -> bool:
    """Whether there is an index of LanceDB at `place`, usable or not.

    Raises:
        StorageError: the storage cannot be reached.
        ConfigError: a URL of another kind.
    """
    if isinstance(place, Path):
        return (place / f"{SETTINGS}.lance").is_dir()
    if not place.startswith(_SCHEMES):
        raise ConfigError(
            f"Cannot keep an index at {place}. Give a folder, or a URL of {', '.join(_SCHEMES)}."
        )
    return RemoteFolder(place).stamp(f"{SETTINGS}.lance") is not None


def create_tables(place: Path | str, settings: IndexSettings, size: int) -> Tables:
    """Make the tables of a new index; of several who do so at once, one's settings are those of all.

    Raises:
        ImageIndexError: there are images of an index that has lost its settings.
        OutputError: they cannot be written.
        StorageError: the storage cannot be reached.
        MissingExtraError: LanceDB is not installed.
    """
    import pyarrow as pa

    database = _connect(place)
    cells = Cells()
    line = {"settings": [settings_bytes(settings)], **{name: [value] for name, value in vars(cells).items()}}
    kinds = {"settings": pa.binary(), "cells": pa.int64(), "probes": pa.int64(), "recall": pa.float64()}
    try:
        database.create_table(SOURCES, schema=sources_schema(), exist_ok=True)
        images = database.create_table(IMAGES, schema=images_schema(size), exist_ok=True)
        # Whoever else makes the index now writes its settings before the first image.
        if images.count_rows() and not is_lance_index(place):
            raise ImageIndexError(f"{place} has images, and has lost what their codes are. {AGAIN}")
        database.create_table(SETTINGS, pa.table(line, schema=pa.schema(list(kinds.items()))))
    except ImageIndexError:
        raise
    except Exception as err:
        if "already exists" not in str(err):
            raise OutputError(f"Could not write to the index {place} ({said(err)}).") from err
    return Tables(place, database)


def _connect(place: Path | str) -> Any:  # noqa: ANN401
    try:
        import lancedb
    except ImportError as err:
        raise MissingExtraError("lance", "An index kept by LanceDB") from err
    options = RemoteFolder(place).lance_options() if isinstance(place, str) else None
    try:
        return lancedb.connect(str(place), storage_options=options)
    except Exception as err:
        raise ImageIndexError(f"Could not open the index {place} ({said(err)}).") from err
