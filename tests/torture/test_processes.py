"""The quick part of what kills, fills, races, forges and repeats; `make torture` has the long one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Torture = Callable[..., str]


def test_packing_survives_kills(torture: Torture) -> None:
    assert torture("kills", "--cases", "4", "--only", "pack").split()[1:3] == ["4", "0"]


def test_a_full_disk_and_a_read_only_one_are_one_clear_line(torture: Torture) -> None:
    line = torture("disks", "--cases", "3", "--only", "pack")
    if "root" in line or "file system" in line:
        pytest.skip(line.partition("; ")[2])
    assert line.split()[1:3] == ["4", "0"]


def test_two_at_once_are_rejected_by_name_or_find_it_done(torture: Torture) -> None:
    assert torture("concurrency", "--cases", "2", "--only", "pack", "--only", "index").split()[1:3] == [
        "4",
        "0",
    ]


def test_odd_requests_to_every_address_are_answered(torture: Torture) -> None:
    assert torture("routes", "--cases", "3").split()[2] == "0"


def test_forged_files_are_rejected_in_one_line(torture: Torture) -> None:
    line = torture(
        "forged",
        "--cases",
        "4",
        *[f"--only={kind}" for kind in ("VAE", "index of inverted lists", "run.json")],
    )
    assert line.split()[1:3] == ["12", "0"]


def test_the_same_seed_gives_the_same_bytes(torture: Torture) -> None:
    assert torture("determinism", "--cases", "2", "--only", "pack").split()[1:3] == ["2", "0"]


def test_memory_and_open_files_stay_flat(torture: Torture) -> None:
    assert torture("soak", "--cases", "1").split()[2] == "0"
