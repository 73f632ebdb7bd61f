"""Tables and lists of image files: CSV, TSV and Parquet files, data frames, and text files of paths.

A table has a column `path` and, if wanted, `label`, `split` and `mask`; paths are relative to the folder of
the table. A text file has one path a line.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from autoencode.csv_files import plain_cell
from autoencode.errors import ConfigError, ImageFolderError, MissingExtraError
from autoencode.untrusted import TEXT_BYTES, open_file, read_file

TABLES = (".csv", ".tsv", ".parquet")
LISTS = (".txt", ".lst")
_COLUMNS = ("path", "label", "split", "mask")
# A Parquet file stores equal cells once, and may hold a thousand million rows in some kilobytes: a few are
# read at once, and no more than a text of the longest length would hold.
_PARQUET_ROWS, _ROW_BYTES = 1024, 32


class Row(NamedTuple):
    """A row of a table: the path of an image, and "" or what is said of it; `mask` is the path of a file."""

    number: int
    path: Path
    label: str
    split: str
    mask: Path | None


def rows_in(table: Path) -> Iterator[Row]:
    """Yield the rows of a CSV, TSV or Parquet file.

    Raises:
        ConfigError: a row has no path.
        ImageFolderError: the file cannot be read as a table.
        MissingExtraError: a Parquet file needs pyarrow.
    """
    return checked_rows(_read(table), table.resolve().parent, str(table.resolve()))


def checked_rows(rows: Iterable[Mapping[str, Any]], beside: Path, origin: str) -> Iterator[Row]:
    """Yield rows whose columns have any case, with paths relative to the folder `beside` them.

    Raises:
        ConfigError: a row has no path, or one with a zero byte.
    """
    for number, row in enumerate(rows, 1):
        cells = {str(name).strip().lower(): cell for name, cell in row.items() if name is not None}
        text = {name: "" if _is_empty(cells.get(name)) else str(cells[name]) for name in _COLUMNS}
        if not text["path"]:
            columns = ", ".join(map(str, row)) or "none"
            raise ConfigError(
                f"Row {number} of {origin} has no path. Name the columns path and, if wanted, label, split "
                f"and mask; its columns: {columns}."
            )
        _check_name(text["path"] + text["mask"], f"Row {number} of {origin}")
        path = Path(os.path.abspath(beside / text["path"]))  # noqa: PTH100 - links stay
        mask = beside / text["mask"] if text["mask"] else None
        yield Row(number, path, text["label"], text["split"].lower(), mask)


def masks_in(given: Any) -> dict[Path, Path] | None:  # noqa: ANN401
    """Return the masks that a table or data frame names, by the path of the image; None for anything else.

    Raises:
        AutoencodeError: an error of `rows_in`.
    """
    if (rows := rows_of_frame(given)) is not None:
        rows_with = checked_rows(rows, Path.cwd(), "a data frame")
    elif isinstance(given, str | Path) and Path(given).suffix.lower() in TABLES and Path(given).is_file():
        rows_with = rows_in(Path(given))
    else:
        return None
    return {row.path: row.mask for row in rows_with if row.mask}


def _is_empty(cell: object) -> bool:
    return cell is None or cell == "" or cell != cell


def _read(table: Path) -> Iterator[Mapping[str, Any]]:
    # One row after the other: of a small file that says the same a hundred million times, too.
    try:
        yield from (_of_parquet if table.suffix.lower() == ".parquet" else _of_text)(table)
    except (OSError, csv.Error, ValueError, NotImplementedError, MemoryError) as err:
        raise ImageFolderError(f"{table} cannot be read as a table: {err}.".replace("\n", " ")) from err


def _of_text(table: Path) -> Iterator[Mapping[str, Any]]:
    opened = open_file(table, TEXT_BYTES)
    with io.TextIOWrapper(opened, "utf-8-sig", errors="surrogateescape", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ","):
            yield {name: plain_cell(cell) for name, cell in row.items()}


def _of_parquet(table: Path) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as err:
        raise MissingExtraError("tables", f"Reading {table}") from err
    with open_file(table) as opened, parquet.ParquetFile(opened) as file:
        known = [name for name in file.schema_arrow.names if name.strip().lower() in _COLUMNS]
        length = 0
        for batch in file.iter_batches(_PARQUET_ROWS, columns=known or None):
            rows = batch.to_pylist()
            length += sum(_ROW_BYTES + len(str(cell)) for row in rows for cell in row.values())
            if length > TEXT_BYTES:
                raise ValueError(f"it holds more than {TEXT_BYTES:,} bytes of text")
            yield from rows


def rows_of_frame(given: object) -> Iterable[Mapping[str, Any]] | None:
    """Return the rows of a data frame of pandas or polars; None for anything else."""
    if not hasattr(given, "columns"):
        return None
    if hasattr(given, "to_dicts"):
        return list(given.to_dicts())
    return list(given.to_dict("records")) if hasattr(given, "to_dict") else None


def lines_of(file: Path) -> list[Path]:
    """Return the paths in a text file, one a line, relative to its folder; # begins a comment.

    Raises:
        ImageFolderError: the file cannot be read.
        ConfigError: a path has a zero byte, as a file has that is no text.
    """
    try:
        lines = read_file(file, TEXT_BYTES).decode("utf-8", "surrogateescape").splitlines()
    except OSError as err:
        raise ImageFolderError(f"Could not read {file}: {err.strerror or err}.") from err
    for number, line in enumerate(lines, 1):
        _check_name(line, f"Line {number} of {file}")
    folder = file.resolve().parent
    return [folder / line.strip() for line in lines if line.strip() and line[0] != "#"]


def _check_name(name: str, where: str) -> None:
    if "\0" in name:
        raise ConfigError(
            f"{where} has a zero byte, which no name of a file has. Give a table or list of text."
        )
