"""A log of changes that two write at once, and what a crash or an editor leaves of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from autoencode.errors import OutputError
from autoencode.shared_log import SharedLog


class Sum(SharedLog):
    """A number that changes add to."""

    def _forget(self) -> None:
        self.total = 0

    def _take(self, record: Mapping[str, Any]) -> None:
        self.total += int(record["add"])

    def add(self, number: int) -> None:
        with self._writing():
            self._append({"add": number})


def test_each_of_two_takes_in_what_the_other_wrote(tmp_path: Path) -> None:
    one, other = Sum(tmp_path / "new" / "log"), Sum(tmp_path / "new" / "log")
    one.add(3)
    other.add(4)
    assert (one.total, other.total) == (3, 7)
    one.add(5)
    assert one.total == Sum(tmp_path / "new" / "log").total == 12


def test_a_line_that_a_crash_cut_short_is_removed_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "log"
    Sum(path).add(3)
    with path.open("a") as file:
        file.write('{"add": 4')
    again = Sum(path)
    assert again.total == 3
    again.add(5)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["add"] for record in records] == [3, 5]
    assert [sorted(record) for record in records] == [["add", "at"]] * 2  # each with its time


def test_a_log_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Sum(path)
    log.add(3)
    log.add(4)
    path.write_text('{"add": 10}\n')
    log.add(1)
    assert log.total == 11


@pytest.mark.parametrize("line", ["{", "[]", "3", "{}", '{"add": "x"}'])
def test_a_damaged_line_is_named_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log"
    path.write_text(f'{{"add": 1}}\n{line}\n')
    with pytest.raises(OutputError, match=r"^Line 2 of .*log is damaged"):
        Sum(path)
