"""Decisions: written as they are made, read back the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from autoencode import ConfigError, OutputError, Pack
from autoencode.outliers.review import Decisions, chosen_entries, decided_files, file_list


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "decisions.jsonl"


def standing(decisions: Decisions, pack: Pack) -> list[str | None]:
    return [decisions.of(pack, entry) for entry in pack.entries[:4]]


def test_what_was_decided_is_read_back(tiny_pack: Pack, log: Path) -> None:
    decisions = Decisions(log)
    assert not log.exists()
    decisions.decide(tiny_pack, tiny_pack.entries[0], "drop")
    decisions.decide(tiny_pack, tiny_pack.entries[1], "keep")
    decisions.decide(tiny_pack, tiny_pack.entries[0], "keep")
    decisions.decide(tiny_pack, tiny_pack.entries[2], "drop")
    assert (
        standing(Decisions(log), tiny_pack)
        == standing(decisions, tiny_pack)
        == ["keep", "keep", "drop", None]
    )
    assert Decisions(log).counts(tiny_pack) == {"keep": 2, "drop": 1}


def test_undoing_goes_back_one_by_one_also_after_a_restart(tiny_pack: Pack, log: Path) -> None:
    decisions = Decisions(log)
    for decision in ("drop", "keep"):
        decisions.decide(tiny_pack, tiny_pack.entries[0], decision)
    decisions.decide(tiny_pack, tiny_pack.entries[1], "drop")
    path = tiny_pack.entries[1].path
    assert decisions.undo(tiny_pack) == path
    again = Decisions(log)
    assert standing(again, tiny_pack)[:2] == ["keep", None]
    again.undo(tiny_pack)
    assert standing(again, tiny_pack)[0] == "drop"
    again.undo(tiny_pack)
    assert standing(Decisions(log), tiny_pack)[0] is None
    assert Decisions(log).undo(tiny_pack) is None


def test_a_line_cut_short_by_a_crash_costs_that_decision_alone(tiny_pack: Pack, log: Path) -> None:
    decisions = Decisions(log)
    for entry in tiny_pack.entries[:2]:
        decisions.decide(tiny_pack, entry, "drop")
    log.write_bytes(log.read_bytes()[:-20])
    again = Decisions(log)
    assert standing(again, tiny_pack) == ["drop", None, None, None]
    again.decide(tiny_pack, tiny_pack.entries[3], "keep")
    assert standing(Decisions(log), tiny_pack) == ["drop", None, None, "keep"]


def test_another_damage_is_an_error_that_names_the_line(tiny_pack: Pack, log: Path) -> None:
    decisions = Decisions(log)
    for entry in tiny_pack.entries[:2]:
        decisions.decide(tiny_pack, entry, "drop")
    first, second = log.read_text().splitlines()
    log.write_text(f"{first[:-5]}\n{second}\n")
    with pytest.raises(OutputError, match="Line 1 of"):
        Decisions(log)
    log.write_bytes(f"{first}\n".encode() + b"\xff" + f"{second}\n".encode())
    with pytest.raises(OutputError, match="Line 2 of"):
        Decisions(log)


def test_only_keep_and_drop_are_decisions(tiny_pack: Pack, log: Path) -> None:
    with pytest.raises(ConfigError, match="Choose keep or drop"):
        Decisions(log).decide(tiny_pack, tiny_pack.entries[0], "burn")  # type: ignore[arg-type]
    assert not log.exists()


def test_lists_hold_the_files(tiny_pack: Pack, log: Path) -> None:
    decisions = Decisions(log)
    decisions.decide(tiny_pack, tiny_pack.entries[2], "drop")
    path = tiny_pack.folder / tiny_pack.entries[2].path
    assert path.is_file()
    assert decided_files(decisions, tiny_pack, "drop").decode() == f"{path}\n"
    assert decided_files(decisions, tiny_pack, "keep") == b""
    assert file_list(tiny_pack, chosen_entries(tiny_pack, [2])).decode() == f"{path}\n"
    with pytest.raises(ConfigError, match="one beyond them"):
        chosen_entries(tiny_pack, [len(tiny_pack)])


def test_two_that_write_one_log_know_of_each_other(tiny_pack: Pack, log: Path) -> None:
    one, other = Decisions(log), Decisions(log)
    for place in range(3):
        one.decide(tiny_pack, tiny_pack.entries[place], "drop")
    assert other.undo(tiny_pack) == tiny_pack.entries[2].path
    other.decide(tiny_pack, tiny_pack.entries[3], "keep")
    for _ in range(3):
        one.undo(tiny_pack)
    assert one.undo(tiny_pack) is None
    assert standing(Decisions(log), tiny_pack) == standing(one, tiny_pack) == [None] * 4


def test_a_path_with_a_line_break_is_in_no_list(tiny_pack: Pack) -> None:
    broken = dataclasses.replace(tiny_pack.entries[0], path="a\n/etc/passwd")
    assert file_list(tiny_pack, [broken, tiny_pack.entries[1]]).decode().splitlines() == [
        str(tiny_pack.folder / tiny_pack.entries[1].path)
    ]


def test_decisions_about_another_folder_are_neither_counted_nor_undone(tiny_pack: Pack, log: Path) -> None:
    decisions = Decisions(log)
    elsewhere = SimpleNamespace(folder=Path("elsewhere"))
    decisions.decide(tiny_pack, tiny_pack.entries[0], "drop")
    decisions.decide(elsewhere, tiny_pack.entries[1], "keep")  # type: ignore[arg-type]
    assert decisions.counts(tiny_pack) == {"keep": 0, "drop": 1}
    assert decisions.undo(tiny_pack) == tiny_pack.entries[0].path
    assert decisions.undo(tiny_pack) is None
    assert Decisions(log).undo(elsewhere) == tiny_pack.entries[1].path  # type: ignore[arg-type]
