"""Tables as CSV that a spreadsheet can open without running any of it, and files' names of any bytes."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # how a cell begins that a spreadsheet runs, quoted or not


def csv_bytes(rows: Iterable[Iterable[object]]) -> bytes:
    """Return rows as CSV in UTF-8; bytes of file names that are not UTF-8 are escaped as in JSON: \\udcff.

    Text that a spreadsheet would run as a formula gets a quote before it; `plain_cell` removes it.
    """
    content = io.BytesIO()  # not StringIO, which holds four bytes per character
    write_rows(content, rows)
    return content.getvalue()


def write_rows(file: IO[bytes], rows: Iterable[Iterable[object]]) -> None:
    """Write rows to an open file as `csv_bytes` has them, with one row in memory at a time."""
    text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
    csv.writer(text, lineterminator="\n").writerows(map(_safe_cell, row) for row in rows)
    text.detach()  # writes what is buffered, and does not close the file


def _safe_cell(cell: object) -> object:
    # A spreadsheet runs a cell that begins so as a formula, and a file's name may be anything. Numbers are
    # numbers: only text can be a formula.
    text = str(cell) if isinstance(cell, str | Path) else ""
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else cell


def _is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        float(text)
        return True
    return False


def plain_cell(cell: Any) -> Any:  # noqa: ANN401 - a reader of CSV gives text, None or a list
    """Return a cell of a table that `csv_bytes` wrote, without the quote against spreadsheets."""
    return cell[1:] if isinstance(cell, str) and cell[:1] == "'" and _FORMULA.match(cell) else cell
