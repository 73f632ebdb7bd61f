"""Tables and lists of image files: CSV, TSV and Parquet files, data frames, and text files of paths."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autoencode.atomic import plain_cell
from autoencode.errors import ImageFolderError, MissingExtraError
from autoencode.untrusted import TEXT_BYTES, check_file, open_file, read_file

TABLES = (".csv", ".tsv", ".parquet")
LISTS = (".txt", ".lst")


def rows_of(table: Path) -> Iterable[Mapping[str, Any]]:
    """Return the rows of a CSV or Parquet file."""
    try:
        if table.suffix.lower() == ".parquet":
            try:
                from pyarrow import parquet
            except ImportError as err:
                raise MissingExtraError("tables", f"Reading {table}") from err
            check_file(table)
            rows: list[dict[str, Any]] = parquet.read_table(table).to_pylist()
            return rows
        with io.TextIOWrapper(
            open_file(table, TEXT_BYTES), "utf-8-sig", errors="surrogateescape", newline=""
        ) as file:
            read = csv.DictReader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ",")
            return [{name: plain_cell(cell) for name, cell in row.items()} for row in read]
    except (OSError, csv.Error, ValueError) as err:
        raise ImageFolderError(f"{table} cannot be read as a table: {err}.") from err


def rows_of_frame(given: object) -> Iterable[Mapping[str, Any]] | None:
    """Return the rows of a data frame of pandas or polars; None for anything else."""
    if not hasattr(given, "columns"):
        return None
    if hasattr(given, "to_dicts"):
        return list(given.to_dicts())
    return list(given.to_dict("records")) if hasattr(given, "to_dict") else None


def lines_of(file: Path) -> list[Path]:
    """Return the paths in a text file, one a line, relative to its folder; # begins a comment."""
    try:
        lines = read_file(file, TEXT_BYTES).decode("utf-8", "surrogateescape").splitlines()
    except OSError as err:
        raise ImageFolderError(f"Could not read {file}: {err.strerror or err}.") from err
    return [file.resolve().parent / line.strip() for line in lines if line.strip() and line[0] != "#"]
