"""Tables as CSV: names of any bytes, nothing that a spreadsheet runs, and written whole or not at all."""

from __future__ import annotations

import csv
import errno
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoencode.csv_files import csv_bytes, plain_cell, write_csv
from autoencode.errors import OutputError


def test_a_table_is_text_whatever_bytes_are_in_a_name() -> None:
    rows = [("path", "score"), (Path(os.fsdecode(b"a,\xff.png")), 0.5), ("é\n", None)]
    assert csv_bytes(rows).decode() == 'path,score\n"a,\\udcff.png",0.5\n"é\n",\n'


def test_a_long_table_is_written_row_by_row_and_whole_or_not_at_all(tmp_path: Path) -> None:
    def rows(most: int) -> Iterator[tuple[object, ...]]:
        for number in range(100_000):
            if number == most:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield (f"image-{number}.png", number / 7)

    table = tmp_path / "table.csv"
    tracemalloc.start()
    write_csv(table, rows(-1))
    most_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most_bytes < 200_000 < table.stat().st_size
    assert table.read_bytes() == csv_bytes(rows(-1))
    before = table.read_bytes()
    with pytest.raises(OutputError, match="No space left"):
        write_csv(table, rows(50_000))
    assert table.read_bytes() == before
    assert list(tmp_path.iterdir()) == [table]


def test_text_that_a_spreadsheet_would_run_is_quoted_and_read_back() -> None:
    cells = ["=1+21.jpg", "=cmd|' /C calc'!A0", "+1.png", "-x", "@sum", "\tx", "'=1", "plain", "-0.5", "1e3"]
    read = [line[0] for line in csv.reader(csv_bytes([[cell] for cell in cells]).decode().splitlines())]
    assert [cell[:1] in "=+-@\t" for cell in read[:7]] == [False] * 7
    assert read[7:] == cells[7:]
    assert [plain_cell(cell) for cell in read] == cells
