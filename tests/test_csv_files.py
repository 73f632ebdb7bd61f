"""Tables as CSV: names of any bytes, and nothing that a spreadsheet runs."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from autoencode.csv_files import csv_bytes, plain_cell


def test_a_table_is_text_whatever_bytes_are_in_a_name() -> None:
    rows = [("path", "score"), (Path(os.fsdecode(b"a,\xff.png")), 0.5), ("é\n", None)]
    assert csv_bytes(rows).decode() == 'path,score\n"a,\\udcff.png",0.5\n"é\n",\n'


def test_text_that_a_spreadsheet_would_run_is_quoted_and_read_back() -> None:
    cells = ["=1+21.jpg", "=cmd|' /C calc'!A0", "+1.png", "-x", "@sum", "\tx", "'=1", "plain", "-0.5", "1e3"]
    read = [line[0] for line in csv.reader(csv_bytes([[cell] for cell in cells]).decode().splitlines())]
    assert [cell[:1] in "=+-@\t" for cell in read[:7]] == [False] * 7
    assert read[7:] == cells[7:]
    assert [plain_cell(cell) for cell in read] == cells
